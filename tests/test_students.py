"""Students, their names, and where their weights come from."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from dimdata.engine import Engine
from dimdata.errors import ArgumentError, FormatError, NotFoundError
from dimdata.generators.base import shapes_only
from dimdata.generators.table import table_generator
from dimdata.recipe import Leg, Recipe, Start
from dimdata.students import STUDENTS, default_norm, find_student, make_student
from dimdata.students.norms import NORMS, norm_in
from dimdata.students.source import InitLaw, StoredWeights, TrainedOn, source_of
from dimdata.students.store import StudentInfo, load_student, save_student

SHAPE = (1, 8, 8)
CPU = Engine.of("cpu", "fp32", "off")
INFO = StudentInfo(student="convnet2-w8", image_shape=SHAPE, classes=("a", "b", "c"), mean=(0.5,), std=(0.25,))

VARIANTS = ("alexnet-in", "vgg11-in", "resnet10-w16-in", "resnetap10-w16-gn", "mobilenet-v2-in", "resnet10-w16-none")
SMALL = tuple(
    name
    for name in STUDENTS
    if name not in ("densenet121", "resnet18-imagenet") and not name.endswith(("-full", "-thin", "18-w16"))
)  # one of each family


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def same(first: nn.Module, second: nn.Module) -> bool:
    mine, other = first.state_dict(), second.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("convnet3", (3, 32, 32), 320_010),
        ("convnet3", (1, 28, 28), 317_706),
        ("convnet3-bn", (3, 32, 32), 320_010),
        ("lenet", (1, 28, 28), 61_706),
        ("lenet", (1, 32, 32), 61_706),
        ("mlp", (1, 28, 28), 118_282),
        ("mlp", (3, 32, 32), 411_146),
        ("alexnet", (3, 32, 32), 1_872_202),
        ("alexcifarnet", (3, 32, 32), 1_756_426),
        ("resnet10-thin", (3, 32, 32), 1_228_970),
        ("resnet18-thin", (3, 32, 32), 2_797_610),
        ("resnetap18-thin", (3, 32, 32), 2_797_610),
        ("resnet18-full", (3, 32, 32), 11_173_962),
        ("resnet18-full-in", (3, 32, 32), 11_173_962),
        ("resnet18-imagenet", (3, 32, 32), 11_181_642),
        ("vgg11", (3, 32, 32), 9_231_114),
        ("vgg11-in", (3, 32, 32), 9_231_114),
        ("densenet121", (3, 32, 32), 6_956_298),
        ("densenet121-g12", (3, 32, 32), 1_000_618),
        ("mobilenet-v2", (3, 32, 32), 2_236_682),
    ],
)
def test_parameter_counts_are_those_of_the_field(name: str, shape: tuple[int, int, int], count: int) -> None:
    with shapes_only():
        assert parameters(find_student(name)(shape, 10)) == count


@pytest.mark.parametrize("name", [*SMALL, "convnet1-w12-gn", "convnet3-w16-none", *VARIANTS])
def test_every_student_takes_every_shape(name: str) -> None:
    for shape in ((1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 33, 20)):
        with shapes_only():
            network = find_student(name)(shape, 7)
            assert network(torch.empty(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", [*SMALL, *VARIANTS])
def test_students_learn_and_are_deterministic(name: str) -> None:
    network = make_student(name, (1, 28, 28), 7)
    images = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    network(images).logsumexp(1).sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
    network.eval()
    logits = network(images)
    assert torch.equal(network(images), logits)
    images[1] = images[1].flip(0, 1)
    other = network(images)
    assert torch.allclose(other[0], logits[0], atol=1e-5)
    assert not torch.equal(other[1], logits[1])


@pytest.mark.parametrize(
    ("name", "side"),
    [("vgg11-in", 8), ("alexnet-in", 8), ("resnet10-w16-in", 16), ("resnetap10-w16-in", 16), ("mobilenet-v2-in", 16)],
)
def test_instance_norm_leaves_something_of_the_smallest_images(name: str, side: int) -> None:
    """Of a single pixel it would leave its own bias, whatever the image."""
    network = make_student(name, (1, side, side), 5).eval()
    first, second = network(torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(0)))
    assert not torch.allclose(first, second, atol=1e-6)


def test_names_end_in_the_norm() -> None:
    kinds = {"bn": nn.BatchNorm2d, "in": nn.GroupNorm, "gn": nn.GroupNorm}
    for name in ("vgg11", "alexnet", "resnet10-w16", "resnetap18-thin", "mobilenet-v2"):
        for norm in NORMS:
            with shapes_only():
                network = find_student(f"{name}-{norm}")((1, 28, 28), 10)
            found = {type(m) for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)}
            assert found == ({kinds[norm]} if norm in kinds else set())
            assert norm_in(network) == norm
    assert default_norm(STUDENTS["vgg11"]) == "bn"
    assert default_norm(STUDENTS["convnet3"]) is None
    for name in ("convnet3-bn-in", "densenet121-in", "mlp-bn", "vgg11-", "vgg11-bn-in", "vgg11-ln"):
        with pytest.raises(NotFoundError):
            find_student(name)
    with pytest.raises(ArgumentError, match="batch"):
        find_student("vgg11")((1, 28, 28), 10, norm="batch")  # type: ignore[call-arg]


def test_networks_are_those_of_torchvision_but_for_the_stem() -> None:
    from torchvision.models import resnet18
    from torchvision.models.vgg import cfgs, make_layers

    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def take(theirs: nn.Module, ours: nn.Module) -> None:
        tensors = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
        theirs.load_state_dict(dict(tensors))

    theirs, ours = resnet18(num_classes=10), make_student("resnet18-full", (3, 32, 32), 10).eval()
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    take(theirs.eval(), ours)
    assert torch.allclose(theirs(images), ours(images), atol=1e-4)

    features, vgg = make_layers(cfgs["A"], batch_norm=True).eval(), make_student("vgg11", (3, 32, 32), 10).eval()
    take(features, vgg.features)
    assert torch.allclose(vgg.classifier(features(images).flatten(1)), vgg(images), atol=1e-5)


def test_stems_of_small_images_keep_the_resolution_and_that_of_imagenet_does_not() -> None:
    with shapes_only():
        images = torch.empty(1, 1, 28, 28)
        dense, mobile, image = (
            find_student(name)((1, 28, 28), 10) for name in ("densenet121-g12", "mobilenet-v2", "resnet10-imagenet")
        )
        assert dense.features.pool0(dense.features.conv0(images)).shape == (1, 24, 28, 28)
        assert mobile.features[:3](images).shape == (1, 24, 28, 28)
        assert mobile.features(images).shape == (1, 1280, 4, 4)
        assert image.maxpool(image.conv1(images)).shape == (1, 64, 7, 7)


def test_only_networks_of_torchvision_import_it() -> None:
    code = (
        "import sys; from dimdata.students import make_student; make_student('convnet3', (1, 8, 8), 2)\n"
        "assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_set_depth_width_and_norm() -> None:
    network = make_student("convnet4-w24-bn", (3, 32, 32), 5)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [24] * 4
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == 4
    assert not any(isinstance(m, nn.GroupNorm) for m in network.modules())


def test_28_pixels_become_32() -> None:
    network = make_student("convnet3-w8", (1, 28, 28), 10)
    assert network.features[:3](network.pad(torch.zeros(1, 1, 28, 28))).shape == (1, 8, 32, 32)


def test_average_pooling_replaces_strides() -> None:
    strides = {
        name: [m.stride for m in make_student(name, (3, 32, 32), 10).modules() if isinstance(m, nn.Conv2d)]
        for name in ("resnet10-thin", "resnetap10-thin")
    }
    assert (2, 2) in strides["resnet10-thin"]
    assert (2, 2) not in strides["resnetap10-thin"]


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("convnet3x", (1, 8, 8), NotFoundError),
        ("convnet0", (1, 8, 8), NotFoundError),
        ("convnet3-w0", (1, 8, 8), NotFoundError),
        ("convnet4", (1, 8, 8), ArgumentError),
        ("resnet10-thin", (1, 7, 8), ArgumentError),
        ("vgg11", (1, 8, 4), ArgumentError),
        ("alexnet", (1, 7, 8), ArgumentError),
        ("alexcifarnet", (1, 3, 8), ArgumentError),
        ("resnet10-thin-in", (1, 15, 16), ArgumentError),
        ("mobilenet-v2", (1, 7, 8), ArgumentError),
        ("mobilenet-v2-in", (1, 15, 16), ArgumentError),
        ("densenet121", (1, 7, 8), ArgumentError),
        ("resnet18-imagenet", (1, 7, 8), ArgumentError),
    ],
)
def test_unusable_students_are_refused(name: str, shape: tuple[int, int, int], kind: type[Exception]) -> None:
    with pytest.raises(kind), shapes_only():
        find_student(name)(shape, 10)


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="resnet18-thin"):
        find_student("resnet18")
    with pytest.raises(NotFoundError, match="resnet18-full"):
        find_student("resnet18-ful-in")


@pytest.mark.parametrize("name", ["mobilenet-v2", "resnet10-imagenet", "vgg11-in", "alexnet", "mlp"])
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = make_student(name, SHAPE, 10, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert same(first, make_student(name, SHAPE, 10, seed=1))
    assert not same(first, make_student(name, SHAPE, 10, seed=2))


def test_equal_seeds_give_equal_networks_and_touch_no_global_state() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = make_student("convnet2", SHAPE, 10, seed=1)
    law = InitLaw("convnet2", SHAPE, 10, "kaiming", seed=9).network(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert same(first, make_student("convnet2", SHAPE, 10, seed=1))
    assert same(law, InitLaw("convnet2", SHAPE, 10, "kaiming", seed=9).network(4))
    assert not same(first, make_student("convnet2", SHAPE, 10, seed=2))
    assert not same(first, make_student("convnet2", SHAPE, 10, seed=1 + 2**64))


@pytest.mark.parametrize("law", ["default", "xavier", "kaiming", "orthogonal", "normal"])
def test_a_law_gives_different_networks_by_number_and_seed(law: str) -> None:
    source = InitLaw("lenet", (1, 28, 28), 10, law, seed=0)
    assert same(source.network(0), source.network(0))
    assert not same(source.network(0), source.network(1))
    assert not same(source.network(0), InitLaw("lenet", (1, 28, 28), 10, law, seed=1).network(0))


def test_laws_have_their_own_scales() -> None:
    weight = {
        law: InitLaw("lenet", (1, 28, 28), 10, law).network(0).fc1.requires_grad_(False)
        for law in ("xavier", "kaiming", "normal")
    }
    assert weight["xavier"].weight.std() == pytest.approx((2 / (400 + 120)) ** 0.5, rel=0.02)
    assert weight["kaiming"].weight.std() == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert weight["normal"].weight.std() == pytest.approx(0.02, rel=0.02)
    assert not weight["normal"].bias.any()
    rows = InitLaw("lenet", (1, 28, 28), 10, "orthogonal").network(0).fc2.weight
    assert torch.allclose(rows @ rows.T, torch.eye(84), atol=1e-5)
    with pytest.raises(ArgumentError, match="sideways"):
        InitLaw("lenet", (1, 28, 28), 10, "sideways").network(0)


def test_a_recipe_start_names_a_source() -> None:
    stored = make_student("lenet", SHAPE, 3, seed=8)
    tensors = {f"start.{name}": tensor for name, tensor in stored.state_dict().items()} | {"lr": torch.ones(3)}
    start = Start(law="stored", student="lenet")
    source = source_of(start, SHAPE, 3, student="lenet", tensors=tensors)
    assert isinstance(source, StoredWeights)
    assert same(source.network(0), stored)
    assert same(source.network(1), stored)
    assert same(source_of(start, SHAPE, 3, tensors=tensors).network(0), stored)
    assert source_of(Start(law="xavier"), SHAPE, 3, student="lenet", seed=2) == InitLaw("lenet", SHAPE, 3, "xavier", 2)
    with pytest.raises(ArgumentError, match="lenet"):
        source_of(start, SHAPE, 3, student="convnet3", tensors=tensors)
    with pytest.raises(FormatError, match="start"):
        source_of(start, SHAPE, 3, tensors={"lr": torch.ones(3)})
    with pytest.raises(FormatError, match="fc3"):
        source_of(start, SHAPE, 4, tensors=tensors).network(0)
    with pytest.raises(ArgumentError, match="No student"):
        source_of(Start(), SHAPE, 3)


def test_networks_trained_on_a_generator() -> None:
    recipe = Recipe(legs=(Leg(epochs=10, batch_size=6),))
    images = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    generator = table_generator(images, classes=("a", "b", "c"), mean=(0.5,), std=(0.25,), recipe=recipe)
    young = InitLaw("convnet2-w8", SHAPE, 3)
    trained = TrainedOn(generator, young, steps=2, engine=CPU)
    assert same(trained.network(3), trained.network(3))
    assert not same(trained.network(3), trained.network(4))
    assert not same(trained.network(3), young.network(3))
    assert not same(trained.network(3), TrainedOn(generator, young, steps=3, engine=CPU).network(3))
    assert trained.network(3).training


def test_a_stored_student_comes_back(tmp_path) -> None:
    network = make_student("convnet2-w8", SHAPE, 3, seed=1).to(memory_format=torch.channels_last)
    recipe = Recipe(legs=(Leg(epochs=3, batch_size=4, augment="flip"),))
    info = StudentInfo(**{**INFO.to_json(), "recipe": recipe, "generator": "dim-x", "seed": 7})
    path = save_student(network, tmp_path / "student.safetensors", info)
    loaded, read = load_student(path)
    assert same(loaded, network)
    assert not loaded.training
    assert read == info
    assert [p.name for p in tmp_path.iterdir()] == ["student.safetensors"]


def test_batch_statistics_are_stored(tmp_path) -> None:
    network = make_student("resnet10-w16", SHAPE, 3)
    network(torch.rand(4, *SHAPE))
    info = StudentInfo(**{**INFO.to_json(), "student": "resnet10-w16"})
    loaded, _ = load_student(save_student(network, tmp_path / "s.safetensors", info))
    assert same(loaded, network)
    assert loaded.state_dict()["stem.1.num_batches_tracked"] == 1


def test_files_that_are_no_students_are_refused(tmp_path) -> None:
    from safetensors.torch import save_file

    path = save_student(make_student("convnet2-w8", SHAPE, 3), tmp_path / "s.safetensors", INFO)
    data = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-100])
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    wrong = StudentInfo(**{**INFO.to_json(), "student": "convnet2-w16"})
    save_student(make_student("convnet2-w8", SHAPE, 3), tmp_path / "wrong.safetensors", wrong)
    for name in ("cut", "other", "wrong", "absent"):
        with pytest.raises(FormatError):
            load_student(tmp_path / f"{name}.safetensors")
