"""Generators: labels from indices, draws without state, tables and their stages, and construction without memory."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import make_network, make_table, recipe
from torch import Tensor, nn
from torch.nn import functional as F

from dimdata import load
from dimdata.artifact import save
from dimdata.distill.config import make_config
from dimdata.distill.dim import DiM, DimConfig
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, DimdataError, FormatError
from dimdata.generators.base import GENERATORS, Generator, shapes_only
from dimdata.generators.cost import cost
from dimdata.generators.layers import full, separable
from dimdata.generators.network import NetworkGenerator, build
from dimdata.generators.pyramid import _subpixel
from dimdata.generators.table import TableGenerator, table_generator
from dimdata.latents import latents
from dimdata.real import load_real
from dimdata.spec import Spec

CLASSES: dict[str, Any] = {"classes": ("a", "b", "c"), "mean": (0.5,), "std": (0.2,)}


def small_table(count: int = 6, **arguments: Any) -> TableGenerator:
    pictures = (torch.arange(count * 16) % 251).to(torch.uint8).view(count, 1, 4, 4)
    return table_generator(pictures, recipe=recipe(), **CLASSES, **arguments)


def draw(generator: Generator, index: Tensor) -> tuple[Tensor, Tensor]:
    return generator.draw(latents(0, 0, index, generator.spec.latent), index)


@pytest.mark.parametrize("kind", ["network", "table"])
def test_draw(kind: str) -> None:
    generator: Generator = make_network() if kind == "network" else make_table()
    index = torch.tensor([0, 7, 13, 9])
    images, targets = draw(generator, index)
    assert images.shape == (4, 1, 28, 28)
    assert images.dtype == torch.float32
    assert not images.requires_grad
    low, high = generator.spec.value_range
    assert low <= float(images.min())
    assert float(images.max()) <= high
    assert float(images.std()) > 0.01, "the images are not all alike"
    assert torch.equal(targets, torch.tensor([0, 7, 3, 9]))
    assert torch.equal(targets, generator.labels(index))
    alone = torch.cat([draw(generator, index[i : i + 1])[0] for i in range(4)])
    assert torch.allclose(alone, images, atol=1e-5)


def test_drawing_leaves_global_randomness_alone() -> None:
    generator = make_network()
    before = torch.get_rng_state()
    draw(generator, torch.arange(10))
    assert torch.equal(before, torch.get_rng_state())


def test_a_class_changes_the_image() -> None:
    generator = make_network()
    latent = latents(0, 0, torch.zeros(2, dtype=torch.int64), generator.spec.latent)
    images, _ = generator.draw(latent, torch.tensor([0, 1]))
    assert not torch.allclose(images[0], images[1])


@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 32), (1, 5, 9), (2, 1, 1), (3, 33, 70)])
def test_network_shapes(image_shape: tuple[int, int, int]) -> None:
    images, _ = draw(make_network(image_shape=image_shape), torch.arange(3))
    assert images.shape == (3, *image_shape)
    assert bool(images.isfinite().all())


@pytest.mark.parametrize(
    "changes",
    [
        {"images": 10},
        {"latent": 0},
        {"storage": "uint8"},
        {"targets": "soft"},
        {"options": {}},
        {"options": {"name": 3}},
        {"options": {"name": "subpixle"}},
        {"options": {"name": "subpixel", "width": 0}},
        {"options": {"name": "subpixel", "depth": 3}},
    ],
)
def test_networks_refuse_what_they_cannot_be(changes: dict[str, Any]) -> None:
    spec = Spec.from_json(make_network().spec.to_json() | changes)
    with pytest.raises(DimdataError), shapes_only():
        NetworkGenerator(spec, recipe())


@pytest.mark.parametrize(
    "changes",
    [
        {"images": None},
        {"latent": 3},
        {"options": {"stages": [10, 11]}},
        {"options": {"stages": [20, 0]}},
        {"options": {"rows": 3}},
        {"value_range": [-1.0, 1.0]},
    ],
)
def test_tables_refuse_what_they_cannot_be(changes: dict[str, Any]) -> None:
    spec = Spec.from_json(make_table().spec.to_json() | changes)
    with pytest.raises(FormatError), shapes_only():
        TableGenerator(spec, recipe())


def test_table_without_labels_counts_through_the_classes() -> None:
    generator = small_table(labels=torch.tensor([0, 1, 2, 0, 1, 2]))
    assert set(generator.stored()) == {"table"}
    assert generator.labels(torch.arange(6)).tolist() == [0, 1, 2, 0, 1, 2]
    assert generator.images == 6
    images, _ = draw(generator, torch.tensor([2]))
    assert torch.equal(images[0].flatten() * 255, torch.arange(32.0, 48.0))


def test_table_with_labels_and_soft_targets() -> None:
    labels = torch.tensor([2, 2, 0, 1, 0, 0])
    assert torch.equal(draw(small_table(labels=labels), torch.arange(6))[1], labels)
    targets = torch.eye(3)[labels] * 0.8 + 0.1
    soft = small_table(targets=targets)
    assert torch.equal(draw(soft, torch.arange(6))[1], targets)
    assert torch.equal(soft.labels(torch.arange(6)), labels)
    with pytest.raises(FormatError, match="class that does not exist"):
        small_table(labels=labels + 1)


def test_learned_images_may_leave_the_range() -> None:
    pictures = torch.linspace(-2, 3, 3 * 16).view(3, 1, 4, 4)
    generator = table_generator(pictures, recipe=recipe(), **CLASSES)
    assert generator.spec.value_range == (-2.0, 3.0)
    assert torch.equal(draw(generator, torch.arange(3))[0], pictures)


def test_stages_are_prefixes() -> None:
    generator = small_table(count=9, stages=(3, 3, 3))
    assert generator.stages == 3
    assert generator.view() is generator
    assert generator.view(stage=3) is generator
    prefix = generator.view(stage=2)
    assert prefix.images == 6
    assert prefix.stages == 2
    assert torch.equal(draw(prefix, torch.arange(6))[0], draw(generator, torch.arange(6))[0])
    table = prefix.stored()["table"]
    assert table.data_ptr() == generator.stored()["table"].data_ptr(), "a prefix shares memory"
    for stage in (0, 4, -1):
        with pytest.raises(ArgumentError, match="has 3 stages"):
            generator.view(stage=stage)
    with pytest.raises(ArgumentError, match="has 1 stage,"):
        make_network().view(stage=2)


@pytest.mark.parametrize("kind", ["network", "table"])
def test_sample(kind: str) -> None:
    generator: Generator = make_network() if kind == "network" else make_table()
    images, targets = generator.sample([3, 3, 0, 3], seed=5)
    assert targets.tolist() == [3, 3, 0, 3]
    assert not torch.equal(images[0], images[1])
    assert torch.allclose(generator.sample(torch.tensor([3]), seed=5)[0][0], images[0], atol=1e-5)
    assert torch.allclose(generator.sample([0], seed=5)[0][0], images[2], atol=1e-5)
    if kind == "network":
        assert not torch.allclose(generator.sample([3], seed=6)[0], images[:1])
    assert generator.sample([])[0].shape[0] == 0
    for label in (-1, 10):
        with pytest.raises(ArgumentError, match="0 to 9"):
            generator.sample([label])


def test_sample_walks_through_stored_images() -> None:
    generator = small_table(labels=torch.tensor([2, 2, 0, 0, 0, 0]))
    images, _ = generator.sample([2, 2, 2])
    assert torch.equal(images[0], images[2]), "the two images of the class come round again"
    assert not torch.equal(images[0], images[1])
    with pytest.raises(ArgumentError, match=r"no image of class 1 \(b\)"):
        generator.sample([1])


def test_nbytes_counts_what_is_stored() -> None:
    assert make_table().nbytes == 20 * 784
    assert make_network("float32").nbytes == 2 * make_network("float16").nbytes


def test_shapes_only_takes_no_memory_and_no_randomness() -> None:
    before = torch.get_rng_state()
    with shapes_only():
        layers = nn.ModuleList([nn.Embedding(10**6, 10**6), nn.Linear(10**6, 10**6), nn.Conv2d(10**4, 10**4, 99)])
    assert all(p.device.type == "meta" for p in layers.parameters())
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(0)
    assert nn.Embedding(2, 2).weight.abs().sum() > 0, "initial values are drawn again afterwards"
    torch.set_rng_state(before)


def test_shapes_only_imports_no_compiler() -> None:
    code = (
        "import sys, torch; from conftest import make_network; make_network(); "
        "print([m for m in ('sympy', 'torch._dynamo') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=__file__.rsplit("/", 1)[0])
    assert out.stdout.strip() == "[]", out.stderr


def test_kinds_are_registered() -> None:
    assert {"network", "table"} <= set(GENERATORS)


PYRAMIDS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "nearest": {"upsampling": "nearest"},
    "separable": {"convolution": "separable"},
    "nearest and separable": {"upsampling": "nearest", "convolution": "separable"},
    "norm": {"condition": "norm"},
    "concat": {"condition": "concat"},
    "one resolution": {"widths": [8], "refine": 0},
    "four resolutions": {"widths": [16, 12, 8, 8], "refine": 2},
    "no second convolution": {"refine": -1},
}


def pyramid(image_shape: tuple[int, int, int] = (1, 28, 28), **options: Any) -> Generator:
    """A pyramid with initial weights, and running statistics that are not those of the start."""
    spec = make_network(image_shape=image_shape).spec
    spec = dataclasses.replace(spec, options={"name": "pyramid", "widths": [16, 12, 8], "stem": 8, **options})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = NetworkGenerator(spec, recipe())
    for name, buffer in generator.named_buffers():
        buffer.fill_(0.01 if name.endswith("mean") else 0.02)
    return generator.requires_grad_(False).eval()


def plain_pyramid(weights: dict[str, Tensor], latent: Tensor, label: Tensor, side: int) -> Tensor:
    """The bundled networks, written out: a map of 7x7 or 8x8, doubled twice by sub-pixel convolutions."""
    named = {name.removeprefix("network."): tensor for name, tensor in weights.items()}

    def affine(x: Tensor, name: str) -> Tensor:
        if f"{name}.scale" not in named:  # the label enters beside the latent alone
            return F.relu(x)
        scale, shift = named[f"{name}.scale"][label], named[f"{name}.shift"][label]
        return F.relu(torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None]))

    def convolved(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, named[f"{name}.weight"], named[f"{name}.bias"], padding=1)

    x = F.linear(latent, named["project.weight"], named["project.bias"]) + named["label.weight"][label]
    x = x.view(len(x), -1, side // 4, side // 4).contiguous(memory_format=torch.channels_last)
    x = affine(convolved(affine(x, "stem_affine"), "body"), "body_affine")
    x = affine(F.pixel_shuffle(convolved(x, "up.0"), 2), "up_affine.0")
    x = x + affine(convolved(x, "refine"), "refine_affine")
    x = affine(F.pixel_shuffle(convolved(x, "up.1"), 2), "up_affine.1")
    return torch.sigmoid(convolved(x, "image"))


@pytest.mark.parametrize("name", ["dim-mnist", "dim-fashion-mnist", "dim-cifar10"])
def test_bundled_generators_draw_the_same_to_the_bit(name: str) -> None:
    generator = load(name)
    index = torch.arange(20)
    latent = latents(0, 0, index, generator.spec.latent)
    weights = {key: tensor.to(torch.float32) for key, tensor in generator.state_dict().items()}
    expected = plain_pyramid(weights, latent, generator.labels(index), generator.spec.image_shape[1])
    assert torch.equal(generator.draw(latent, index)[0], expected.contiguous())


@pytest.mark.parametrize("convolution", [full, separable])
def test_subpixel_is_a_pixel_shuffle(convolution: Callable[[int, int], nn.Module]) -> None:
    """To the bit, and so are its gradients up to rounding."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = convolution(12, 4 * 6)
    x = torch.rand(5, 12, 7, 9).contiguous(memory_format=torch.channels_last)
    found, expected = _subpixel(layer, x), F.pixel_shuffle(layer(x), 2)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    weights = tuple(layer.parameters())
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), weights),
        torch.autograd.grad(expected.square().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("more", [{}, {"condition": "concat"}, {"condition": "norm"}])
def test_subpixel_is_a_pyramid(more: dict[str, Any]) -> None:
    """With equal weights they draw the same, and equal random states give them equal weights."""
    spec = make_network(image_shape=(3, 32, 32)).spec
    options = [
        {"name": "subpixel", "width": 24, "mid": 20, "stem": 8, **more},
        {"name": "pyramid", "widths": [24, 20, 16], "stem": 8, **more},
    ]
    made = []
    for each in options:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            made.append(build(dataclasses.replace(spec, options=each)).eval())
    first, second = (network.state_dict() for network in made)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    latent, label = latents(0, 0, torch.arange(5), spec.latent), torch.arange(5)
    with torch.no_grad():
        assert torch.equal(made[0](latent, label), made[1](latent, label))


def test_a_varied_start_varies_alike_in_full_and_separable_convolutions() -> None:
    spec = make_network(image_shape=(3, 32, 32)).spec
    label, deviations = torch.zeros(64, dtype=torch.int64), []
    for convolution in ("full", "separable"):
        options = {"name": "pyramid", "widths": [48, 32, 16], "stem": 32, "convolution": convolution}
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(3)
            network = build(dataclasses.replace(spec, options=options)).eval()
            network.start_varied()
            deviations.append(float(network(latents(0, 0, torch.arange(64), spec.latent), label).std(0).mean()))
    assert 2 / 3 < deviations[1] / deviations[0] < 3 / 2, deviations


@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramids_draw(name: str, tmp_path) -> None:
    generator = pyramid(**PYRAMIDS[name])
    index = torch.tensor([0, 7, 13, 9])
    images, _ = draw(generator, index)
    assert images.shape == (4, 1, 28, 28)
    alone = torch.cat([draw(generator, index[i : i + 1])[0] for i in range(4)])
    assert torch.allclose(alone, images, atol=1e-5), "an image does not depend on its batch"
    latent = latents(0, 0, torch.zeros(2, dtype=torch.int64), generator.spec.latent)
    both, _ = generator.draw(latent, torch.tensor([0, 1]))
    assert not torch.allclose(both[0], both[1]), "the class changes the image"
    save(generator, tmp_path / "generator")
    assert torch.equal(draw(load(tmp_path / "generator"), index)[0], images)


@pytest.mark.parametrize("image_shape", [(3, 32, 32), (1, 5, 9), (2, 1, 1), (3, 33, 70)])
def test_pyramids_of_every_size(image_shape: tuple[int, int, int]) -> None:
    for widths in ([8], [8, 8, 8, 8]):
        images, _ = draw(pyramid(image_shape, widths=widths, refine=0), torch.arange(3))
        assert images.shape == (3, *image_shape)


@pytest.mark.parametrize(
    "options",
    [
        {"widths": []},
        {"widths": [8] * 11},
        {"widths": [8, 0]},
        {"widths": [8, 2000]},
        {"stem": 0},
        {"refine": 3},
        {"refine": -2},
        {"upsampling": "bilinear"},
        {"convolution": "grouped"},
        {"condition": "film"},
        {"widths": [1] * 9 + [1024], "stem": 1, "condition": "concat", "image_shape": (1, 4096, 4096)},
    ],
)
def test_pyramids_refuse_what_they_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        pyramid(**options)


@pytest.mark.parametrize("name", ["nearest and separable", "norm", "concat"])
def test_pyramids_are_distilled_and_go_on_from_a_checkpoint(name: str) -> None:
    network = {"name": "pyramid", "widths": [8, 8], "stem": 4, **PYRAMIDS[name]}
    config = make_config(
        DimConfig, {"network": network, "critic": 4, "batch_size": 16, "pool": ["convnet1-w8"], "latent": 4}
    )

    def made() -> DiM:
        return DiM(config, load_real("digits"), Engine.of("cpu", "fp32", "off"), 0, 8)

    method, other = made(), made()
    steps = [phase.step for phase in method.phases() for _ in range(phase.steps)]
    for number, step in enumerate(steps[:4]):
        step(number)
    other.load_state_dict({key: tensor.clone() for key, tensor in method.state_dict().items()})
    for each in (method, other):
        for step in range(2):
            each.phases()[1].step(step)
    index = torch.arange(20)
    images, _ = draw(method.generator(), index)
    assert torch.equal(images, draw(other.generator(), index)[0])
    assert not torch.equal(images, draw(made().generator(), index)[0])


def test_norm_learns_from_batches_and_draws_from_running_statistics() -> None:
    generator = pyramid(condition="norm")
    before = {name: buffer.clone() for name, buffer in generator.named_buffers()}
    assert before
    generator.train()
    draw(generator, torch.arange(8))
    assert all(not torch.equal(buffer, before[name]) for name, buffer in generator.named_buffers())


def test_cost_counts_every_product() -> None:
    cells = {4: 7 * 7, 2: 14 * 14, 1: 28 * 28}
    linear = 8 * 8 * cells[4]  # latent, stem
    shared = linear + 9 * 8 * 16 * cells[4] + 9 * 12 * 12 * cells[2] + 9 * 8 * 1 * cells[1]
    doubled = 9 * 16 * 4 * 12 * cells[4] + 9 * 12 * 4 * 8 * cells[2]
    spec = pyramid().spec
    assert cost(spec).macs == shared + doubled
    assert cost(spec).flop == 2 * (shared + doubled)
    assert cost(pyramid(upsampling="nearest").spec).macs == shared + doubled, "where a product is taken is no saving"
    assert cost(pyramid(refine=-1).spec).macs == shared + doubled - 9 * 12 * 12 * cells[2]
    thin = (9 * 8 + 8 * 16) * cells[4] + (9 * 16 + 16 * 48) * cells[4] + (9 * 12 + 12 * 32) * cells[2]
    thin += (9 * 12 + 12 * 12) * cells[2]
    assert cost(pyramid(convolution="separable").spec).macs == linear + thin + 9 * 8 * cells[1]


def test_cost_counts_every_byte_and_stage() -> None:
    for storage in ("float16", "float32"):
        generator = make_network(storage)
        assert cost(generator.spec).nbytes == generator.nbytes
    one = cost(make_network().spec)
    options = {"stages": 3, "network": dict(make_network().spec.options)}
    staged = cost(dataclasses.replace(make_network().spec, kind="staged", options=options))
    assert (staged.macs, staged.nbytes) == (one.macs, 3 * one.nbytes)
    table = make_table()
    assert (cost(table.spec).macs, cost(table.spec).nbytes) == (0, table.nbytes)


def test_bundled_generators_are_cheap() -> None:
    for name in ("dim-mnist", "dim-fashion-mnist", "dim-cifar10"):
        spent = cost(load(name).spec)
        assert 1e6 < spent.flop <= 60e6
        assert spent.nbytes <= 4e6
