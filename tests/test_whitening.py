"""ZCA whitening: the map itself, what students see of it, and the folder that carries it."""

import copy
import dataclasses
import json
import pickle

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from dimdata import artifact
from dimdata.dataset import GeneratedDataset
from dimdata.distill.config import make_config
from dimdata.distill.dm import DM, DmConfig
from dimdata.distill.idc import IDC, IdcConfig
from dimdata.distill.pdd import PDD, PddConfig
from dimdata.distill.run import distill
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, FormatError
from dimdata.evaluate import evaluate
from dimdata.levers import Teacher
from dimdata.real import load_real, subset
from dimdata.recipe import WHITENING, Leg, Recipe, WhiteningSpec
from dimdata.students.score import accuracy
from dimdata.students.store import load_student, save_student
from dimdata.students.train import train
from dimdata.whitening import NEGLIGIBLE, Whitening

PLAIN = {"device": "cpu", "precision": "fp32", "compile": "off"}
CPU = Engine.of(*PLAIN.values())
LEG = {"epochs": 1, "batch_size": 20, "shuffle": False}
SETTINGS = {"ipc": 2, "student": "convnet1-w8", "real_batch": 8, "zca": 0.01, "recipe": {"legs": [LEG]}}


@pytest.fixture(scope="module")
def real():
    return load_real("digits")


@pytest.fixture(scope="module")
def whitening(real):
    return Whitening.fit(real.train.images, 0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A generator of a whitened distillation."""
    out = tmp_path_factory.mktemp("zca") / "run"
    return distill("digits", out=out, method="dm", settings=SETTINGS, steps=3, **PLAIN)


def matrix(whitening, shape):
    """The linear map as `[P, P]`."""
    basis = torch.eye(whitening.mean.numel()).view(-1, *shape)
    return whitening(basis + whitening.mean).flatten(1)


class Eye(nn.Module):
    """A network that remembers the first images it sees while it is trained, and the last ones in `eval()`."""

    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.linear = nn.Linear(torch.Size(image_shape).numel(), num_classes)
        self.first, self.last = None, None

    def forward(self, images):
        if self.training and self.first is None:
            self.first = images.detach().clone()
        if not self.training:
            self.last = images.detach().clone()
        return self.linear(images.flatten(1))


# --- the map ---------------------------------------------------------------------------------------------------------


def test_it_is_the_inverse_root_of_the_regularised_covariance(real):
    whitening = Whitening.fit(real.train.images, 1e-4)
    pixels = real.train.images.flatten(1).double() / 255
    wanted = torch.cov(pixels.T) + 1e-4 * torch.eye(64)
    found = matrix(whitening, (1, 8, 8)).double()
    apart = found @ wanted @ found - torch.eye(64)  # which is zero for wanted^(-1/2) alone, symmetric and positive
    assert apart.abs().max() < 0.03, "components are rounded to float16, and the least are left out"
    assert torch.allclose(found, found.T, atol=0.05)
    torch.testing.assert_close(whitening.mean.flatten(), pixels.mean(0).float())


def test_whitened_images_vary_alike_in_all_directions(real):
    images = real.train.images.float() / 255
    before = torch.linalg.eigvalsh(torch.cov(images.flatten(1).T))
    after = torch.linalg.eigvalsh(torch.cov(Whitening.fit(real.train.images, 1e-3)(images).flatten(1).T))
    torch.testing.assert_close(after, before / (before + 1e-3), atol=0.01, rtol=0)
    assert before[-1] > 30 * before[32]
    assert after[-1] < 1.2 * after[32]


def test_small_components_are_left_out_and_change_little(real):
    eps = 0.05
    whitening = Whitening.fit(real.train.images, eps)
    pixels = real.train.images.flatten(1).double() / 255
    variances, vectors = torch.linalg.eigh(torch.cov(pixels.T))
    assert whitening.spec.components == int((variances > NEGLIGIBLE * eps).sum()) < 64
    whole = (vectors * (variances + eps).rsqrt() @ vectors.T).float()
    images = real.test.images.float() / 255
    found, wanted = whitening(images).flatten(1), (images.flatten(1) - whitening.mean.flatten()) @ whole
    assert (found - wanted).norm() < 0.01 * wanted.norm()


def test_the_inverse_gives_the_images_back(real, whitening):
    images = real.test.images[:50].float() / 255
    torch.testing.assert_close(whitening.inverse(whitening(images)), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(whitening(images[0]), whitening(images)[0])


def test_half_precision_around_it_changes_nothing(real, whitening):
    images = real.test.images[:5].float() / 255
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(whitening(images), whitening(images.clone()))
        inside = whitening.inverse(whitening(images))
    torch.testing.assert_close(inside, images, atol=1e-5, rtol=0)


def test_gradients_flow_through_it(real, whitening):
    images = (real.test.images[:2].float() / 255).requires_grad_()
    whitening(images).sum().backward()
    wanted = matrix(whitening, (1, 8, 8)).sum(1)  # the map is symmetric but for rounding
    torch.testing.assert_close(images.grad.flatten(1)[0], wanted, atol=1e-3, rtol=1e-3)


def test_what_was_first_used_in_inference_mode_can_be_differentiated(real, whitening):
    fresh = Whitening(whitening.spec, whitening.mean, whitening.components, whitening.variances)
    images = real.train.images[:4].float() / 255
    with torch.inference_mode():
        expected = fresh(images)
    images.requires_grad_()
    found = fresh(images)
    found.sum().backward()
    assert images.grad is not None
    assert torch.equal(found.detach(), expected)


def test_constant_images_can_be_whitened():
    whitening = Whitening.fit(torch.full((4, 1, 2, 2), 51, dtype=torch.uint8), 0.1)
    assert whitening.spec.components == 1
    assert whitening(torch.full((1, 2, 2), 0.2)).abs().max() < 1e-6


# --- what a distillation makes of it, and what students see ----------------------------------------------------------


def test_generated_images_stay_images(real):
    dm = DM(make_config(DmConfig, SETTINGS), real, CPU, 0, 10)
    start = subset(real.train, 2, dm.start_seed).images.float() / 255
    made = dm.generator()
    index = torch.arange(20)
    torch.testing.assert_close(made.draw(torch.empty(20, 0), index)[0], start, atol=1e-3, rtol=0)
    torch.testing.assert_close(dm.table.detach(), dm.whitening(start))
    for step in range(3):
        dm.phases()[0].step(step)
    made = dm.generator()
    drawn = made.draw(torch.empty(20, 0), index)[0]
    torch.testing.assert_close(dm.whitening(drawn), dm.table.detach(), atol=0.02, rtol=1e-2)


def test_uint8_stays_within_the_range_of_images(real):
    dm = DM(make_config(DmConfig, SETTINGS | {"storage": "uint8", "lr": 50.0}), real, CPU, 0, 10)
    for step in range(3):
        dm.phases()[0].step(step)
    images = dm.denormalize(dm.table.detach())
    assert images.min() > -1e-4
    assert images.max() < 1 + 1e-4


def test_the_folder_carries_it(folder, whitening):
    read = artifact.load(folder)
    found = Whitening.of(read.recipe, read.recipe_tensors)
    for name, tensor in whitening.tensors().items():
        assert torch.equal(found.tensors()[name], tensor)
    assert read.nbytes == read.table.nbytes + read.recipe.whitening.nbytes((1, 8, 8))
    assert "whitened" in read.recipe.describe()


def test_datasets_normalise_by_it(folder, whitening, real):
    plain, seen = GeneratedDataset(folder), GeneratedDataset(folder, output="normalized")
    torch.testing.assert_close(seen[3][0], whitening(plain[3][0]))
    test = real.test.images[:4].float() / 255
    torch.testing.assert_close(plain.normalize(test), whitening(test))
    with pytest.raises(ArgumentError, match="it whitens images of shape"):
        plain.normalize(torch.zeros(1, 9, 9))
    again = pickle.loads(pickle.dumps(seen))
    assert torch.equal(again[3][0], seen[3][0])
    size, bare = len(pickle.dumps(seen)), len(pickle.dumps(seen.generator))
    assert size < bare + 4000, "the tensors travel once"
    assert copy.deepcopy(whitening) is whitening


def test_students_are_trained_and_scored_on_whitened_images(folder, whitening, real):
    generator = artifact.load(folder)
    images = generator.draw(torch.empty(20, 0), torch.arange(20))[0]
    made = train(Eye, generator, engine=CPU)
    torch.testing.assert_close(made.network.first, whitening(images))
    test = (real.test.images[:5], real.test.labels[:5], real.mean, real.std)
    accuracy(made.network, *test, CPU, whitening=made.info.whitening)
    torch.testing.assert_close(made.network.last, whitening(real.test.images[:5].float() / 255))
    bare = dataclasses.replace(generator.recipe, whitening=None, tensors=())
    other = train(Eye, generator, recipe=bare, engine=CPU)
    assert other.info.whitening is None
    torch.testing.assert_close(other.network.first, (images - real.mean[0]) / real.std[0])


def test_evaluations_show_whitened_images_alone(folder, whitening, real, tmp_path):
    seen = []

    class Watching(Eye):
        def __init__(self, image_shape, num_classes):
            super().__init__(image_shape, num_classes)
            seen.append(self)

    scores = evaluate(folder, students=Watching, seeds=1, real=real, baselines=("random",), engine=CPU)
    assert [score.what for score in scores] == ["generator", "random"]
    tested = whitening(real.test.images.float() / 255)
    trained = [each for each in seen if each.first is not None]
    assert len(trained) == 2
    for network in trained:
        torch.testing.assert_close(network.last, tested[-len(network.last) :])
    spread = whitening(real.train.images.float() / 255).std()
    for network in trained:
        assert 0.5 * spread < network.first.std() < 2 * spread, "the baseline's images are whitened, too"


def test_stored_students_and_teachers_whiten(folder, whitening, real, tmp_path):
    made = train("convnet1-w8", folder, engine=CPU)
    network, info = load_student(save_student(made.network, tmp_path / "student.safetensors", made.info))
    assert torch.equal(info.whitening.components, whitening.components)
    images = real.test.images[:6].float() / 255
    teacher = Teacher.load(tmp_path / "student.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), network(whitening(images)))
        torch.testing.assert_close(info.normalize(images), whitening(images))
    with safe_open(tmp_path / "student.safetensors", "pt") as file:
        assert '"whitening":null' not in file.metadata()["dimdata.student"]


def test_stages_share_one_whitening_and_resume_with_it(real):
    settings = {"base": "dm", "stages": 3, "settings": SETTINGS | {"ipc": 3}, "networks": 1, "age": 2, "drop": 0.5}
    settings["settings"]["recipe"] = {"legs": [LEG | {"epochs": 6}]}
    settings["drop_epochs"], settings["drop_student"] = 2, "convnet1-w8"
    config = make_config(PddConfig, settings)
    whole = PDD(config, real, CPU, 0, 9)
    steps = [phase.step for phase in whole.phases() for _ in range(phase.steps)]
    numbers = [number for phase in whole.phases() for number in range(phase.steps)]
    for step, number in list(zip(steps, numbers, strict=True))[:7]:
        step(number)
    state = {name: tensor.detach().contiguous() for name, tensor in whole.state_dict().items()}
    other = PDD(config, real, CPU, 0, 9)
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(state)))  # as a checkpoint is
    made, again = whole.generator(), other.generator()
    for name, tensor in whole.done[0].recipe_tensors.items():
        assert torch.equal(made.recipe_tensors[name], tensor)
        assert torch.equal(again.recipe_tensors[name], tensor)
    assert torch.equal(made.table, again.table)
    assert made.view(stage=1).recipe.whitening == made.recipe.whitening


def test_probes_whiten_and_their_images_are_not_fitted_to(real, whitening, tmp_path):
    made = distill(real, out=tmp_path / "run", method="dm", settings=SETTINGS, steps=2, probes=1, **PLAIN)
    assert "validation_accuracy" in (tmp_path / "run/metrics.jsonl").read_text()
    assert not torch.equal(artifact.load(made).recipe_tensors[f"{WHITENING}mean"], whitening.mean)


def test_nothing_is_there_unless_asked_for(real):
    made = DM(make_config(DmConfig, SETTINGS | {"zca": 0.0}), real, CPU, 0, 10).generator()
    assert made.recipe_tensors == {}
    assert "whitening" not in made.recipe.to_json()
    assert GeneratedDataset(made).normalize.whitening is None
    assert make_config(DmConfig).zca == 0


def test_sheets_are_not_whitened(real):
    with pytest.raises(ArgumentError, match="Sheets of several images"):
        IDC(make_config(IdcConfig, {"ipc": 1, "zca": 0.1}), real, CPU, 0, 10)
    single = IDC(
        make_config(IdcConfig, {"ipc": 1, "zca": 0.1, "factor": 1, "student": "convnet1-w8"}), real, CPU, 0, 10
    )
    assert single.generator().recipe.whitening.eps == pytest.approx(0.1)


# --- what is refused -------------------------------------------------------------------------------------------------


def change(folder, target, *path, value):
    """Copy a folder with one value of its config.json, and of the weights' header, changed."""
    target.mkdir()
    config = json.loads((folder / "config.json").read_text())
    part = config
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    (target / "config.json").write_text(json.dumps(config))
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return target


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (("recipe", "whitening", "eps"), 0.0, r"whitening.eps is 0"),
        (("recipe", "whitening", "components"), 0, r"whitening.components is 0"),
        (("recipe", "whitening", "components"), 10**9, r"1 to 65,536 are read"),
        (("recipe", "whitening", "rank"), 3, "unknown field 'rank'"),
        (("recipe", "whitening"), None, "contradict each other"),
        (("recipe", "tensors"), [], "contradict each other"),
        (("recipe", "whitening", "eps"), 0.02, "do not belong together"),
    ],
)
def test_hostile_configs(folder, tmp_path, path, value, match):
    with pytest.raises(FormatError, match=match):
        artifact.load(change(folder, tmp_path / "g", *path, value=value))


def test_tensors_that_do_not_fit(whitening, folder):
    spec, mean, components, variances = whitening.spec, *whitening.tensors().values()
    with pytest.raises(FormatError, match="components is"):
        Whitening(spec, mean, components.float(), variances)
    with pytest.raises(FormatError, match="variances is"):
        Whitening(spec, mean, components, variances[:-1])
    with pytest.raises(FormatError, match="have no more"):
        Whitening(WhiteningSpec(eps=0.1, components=65), mean, components, variances)
    with pytest.raises(FormatError, match="no unit vectors"):
        Whitening(spec, mean, components * 5, variances)
    with pytest.raises(FormatError, match="variance is negative"):
        Whitening(spec, mean, components, -variances)
    generator = artifact.load(folder)
    tensors = {name: t for name, t in generator.recipe_tensors.items() if not name.endswith("mean")}
    with pytest.raises(FormatError, match=r"lacks the tensor whitening\.mean"):
        Whitening.of(generator.recipe, tensors)


def test_values_that_whiten_nothing_are_neither_stored_nor_read(folder, tmp_path, monkeypatch):
    generator = artifact.load(folder)
    generator.recipe_tensors[f"{WHITENING}variances"] *= -1
    with pytest.raises(FormatError, match="variance is negative"):
        artifact.save(generator, tmp_path / "g")
    with monkeypatch.context() as patch:
        patch.setattr("dimdata.artifact.Whitening.of", lambda recipe, tensors: None)
        artifact.save(generator, tmp_path / "g")
    with pytest.raises(FormatError, match="variance is negative"):
        artifact.load(tmp_path / "g")


def test_more_components_than_pixels_are_refused_before_anything_is_read(folder, tmp_path):
    generator = artifact.load(folder)
    recipe = dataclasses.replace(generator.recipe, whitening=WhiteningSpec(eps=0.01, components=65))
    with pytest.raises(FormatError, match="images of 64 values have no more"):
        recipe.whitening.shapes((1, 8, 8))
    generator.recipe = recipe
    with pytest.raises(FormatError, match="images of 64 values have no more"):
        artifact.save(generator, tmp_path / "g")


def test_bad_settings():
    with pytest.raises(FormatError, match=r"config\.zca"):
        make_config(DmConfig, {"zca": -0.1})
    with pytest.raises(FormatError, match="contradict each other"):
        Recipe(legs=(Leg(epochs=1, batch_size=1),), whitening=WhiteningSpec(eps=0.1, components=3))
    names = [f"{WHITENING}{name}" for name in ("mean", "components", "variances")]
    by_hand = {"legs": [LEG], "tensors": names, "whitening": {"eps": 0.1, "components": 3}}
    with pytest.raises(FormatError, match="not set by hand"):
        make_config(DmConfig, {"recipe": by_hand})


def test_cards_and_info_say_it(folder, capsys):
    from dimdata.cli.main import main

    card = (folder / "README.md").read_text()
    assert "see images whitened (ZCA, eps 0.01)" in card
    capsys.readouterr()
    assert main(["info", str(folder)]) == 0
    assert "whitened (ZCA, eps 0.01" in " ".join(capsys.readouterr().out.split())


def test_images_too_large_to_whiten_are_refused():
    with pytest.raises(ArgumentError, match="50,000 values takes a matrix of 20 GB"):
        Whitening.fit(torch.zeros(2, 1, 200, 250, dtype=torch.uint8), 0.1)
