"""A network of the user's own goes wherever a student's name does, and no downloaded file can name code to import."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_network
from torch import Tensor, nn

from dimdata import artifact
from dimdata.cli.main import main
from dimdata.distill.dim import DimConfig
from dimdata.distill.run import distill
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, FormatError, NotFoundError
from dimdata.evaluate import evaluate
from dimdata.generators.base import Generator
from dimdata.generators.table import table_generator
from dimdata.real import load_real
from dimdata.recipe import Leg, Recipe, Start
from dimdata.scores import read_rows
from dimdata.students import find_student, make_student
from dimdata.students.own import identity, student_name, user_student
from dimdata.students.source import InitLaw, StoredWeights, TrainedOn, source_of
from dimdata.students.store import load_student, save_student
from dimdata.students.train import train

CPU = Engine.of("cpu", "fp32", "off")
SHAPE = (1, 8, 8)
SOURCE = """
from torch import nn

def tiny(image_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(image_shape[1] * image_shape[2], num_classes))

class Nets:
    tiny = staticmethod(tiny)

def needs_more(image_shape, num_classes, depth):
    return tiny(image_shape, num_classes)

number = 3
"""


class Tied(nn.Module):
    """A layer of one's own, with one tensor under two names."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        side = image_shape[1] * image_shape[2]
        self.first, self.second = nn.Linear(side, side), nn.Linear(side, side)
        self.second.weight = self.first.weight
        self.last = nn.Linear(side, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.second(self.first(images.flatten(1)).relu()).relu())
        return logits


def lazy(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(12), nn.ReLU(), nn.LazyLinear(num_classes)).eval()


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(mine, other) for mine, other in pairs)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that can be imported and has not been."""
    name = "nets_of_a_user"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def generator() -> Generator:
    made = make_network(image_shape=SHAPE)
    made.recipe = Recipe(legs=(Leg(epochs=2, batch_size=10, lr=0.05),))
    return made


def test_a_reference_is_imported_for_the_user(module: str) -> None:
    factory = user_student(f"{module}:tiny")
    assert make_student(factory, SHAPE, 4)(torch.zeros(3, *SHAPE)).shape == (3, 4)
    assert user_student(f"{module}:Nets.tiny") is factory
    assert student_name(factory) == f"{module}:tiny"
    assert user_student("lenet") == "lenet"
    assert user_student(Tied) is Tied


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("lenett", NotFoundError, "lenet"),
        ("nets_of_nobody:tiny", NotFoundError, "PYTHONPATH"),
        ("nets_of_a_user:tinny", NotFoundError, "tiny"),
        ("nets_of_a_user:Nets.tinny", NotFoundError, "tiny"),
        ("nets_of_a_user:number", ArgumentError, "not a factory"),
        ("nets_of_a_user:needs_more", ArgumentError, "depth"),
        ("nets_of_a_user:", ArgumentError, "form"),
        (":tiny", ArgumentError, "form"),
        ("nets of a user:tiny", ArgumentError, "form"),
        ("nets_of_a_user:tiny:2", ArgumentError, "form"),
        ("broken_net:tiny", ArgumentError, "ZeroDivisionError"),
    ],
)
def test_references_that_lead_nowhere(
    name: str, kind: type[Exception], words: str, module: str, tmp_path: Path
) -> None:
    (tmp_path / "broken_net.py").write_text("1 / 0")
    with pytest.raises(kind, match=words):
        user_student(name)


def test_no_code_is_imported_for_a_name_in_a_file(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a generator, its recipe or a stored student calls its network, nothing runs."""
    name = f"{module}:tiny"
    images = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    stored = nn.Linear(64, 3).state_dict()
    recipe = Recipe(
        legs=(Leg(epochs=1, batch_size=3),),
        start=Start(law="stored", student=name),
        tensors=tuple(f"start.1.{key}" for key in stored),
    )
    hostile = table_generator(images, classes=("a", "b", "c"), mean=(0.5,), std=(0.3,), recipe=recipe)
    hostile.recipe_tensors = {f"start.1.{key}": tensor for key, tensor in stored.items()}
    folder = artifact.save(hostile, tmp_path / "hostile")
    loaded = artifact.load(folder)
    sources = (
        lambda: find_student(name),
        lambda: make_student(name, SHAPE, 3),
        lambda: train(name, loaded, engine=CPU),
        lambda: source_of(loaded.recipe.start, SHAPE, 3, tensors=loaded.recipe_tensors).network(0),
        lambda: StoredWeights(name, SHAPE, 3, stored).network(0),
        lambda: InitLaw(name, SHAPE, 3).network(0),
        lambda: TrainedOn(loaded, InitLaw(name, SHAPE, 3), engine=CPU).network(0),
        lambda: evaluate(loaded, students=name, real="digits", engine=CPU),
        lambda: evaluate(loaded, real="digits", engine=CPU),
    )
    for source in sources:
        with pytest.raises((NotFoundError, ArgumentError)):
            source()
    plain = ["--device", "cpu", "--compile", "off"]
    shown = str(folder)
    for words in (["train", shown], ["train", shown, "--student", "mlp"], ["evaluate", shown, "--real", "digits"]):
        assert main([*words, *plain]) == 2
        assert "Traceback" not in capsys.readouterr().err
    path = tmp_path / "student.safetensors"
    info = train("mlp", loaded, recipe=Recipe(legs=recipe.legs), engine=CPU).info
    save_student(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), path, type(info)(**{**vars(info), "student": name}))
    with pytest.raises(ArgumentError, match=name):
        load_student(path)
    assert module not in sys.modules


def test_names_say_where_a_factory_is() -> None:
    assert student_name("convnet3") == "convnet3"
    assert student_name(Tied) == f"{__name__}:Tied"
    assert student_name(lazy) == f"{__name__}:lazy"
    assert student_name(Tied(SHAPE, 2)) == f"{__name__}:Tied"
    assert student_name(find_student("resnet10-thin")) == "dimdata.students.resnet:ResNet"


def test_lazy_layers_are_drawn_from_the_seed() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = make_student(lazy, SHAPE, 4, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.training
    torch.manual_seed(4)
    assert same(first, make_student(lazy, SHAPE, 4, seed=1))
    assert not same(first, make_student(lazy, SHAPE, 4, seed=2))


def test_a_factory_that_makes_no_network_is_refused() -> None:
    with pytest.raises(ArgumentError, match="not an nn"):
        make_student(lambda shape, classes: 3, SHAPE, 4)  # type: ignore[arg-type, return-value]


def test_training_storing_and_loading(generator: Generator, tmp_path: Path) -> None:
    result = train(Tied, generator, ipc=2, engine=CPU, seed=3)
    assert result.info.student == f"{__name__}:Tied"
    assert same(result.network, train(Tied, generator, ipc=2, engine=CPU, seed=3).network)
    path = save_student(result.network, tmp_path / "tied.safetensors", result.info)
    loaded, info = load_student(path, student=Tied)
    assert same(loaded, result.network)
    assert info == result.info
    with pytest.raises(ArgumentError, match="factory"):
        load_student(path)
    with pytest.raises(FormatError, match="tensors"):
        load_student(path, student=lazy)


def test_sources_take_factories(generator: Generator) -> None:
    young = InitLaw(Tied, SHAPE, 10, "xavier")
    assert same(young.network(2), young.network(2))
    assert not same(young.network(2), young.network(3))
    old = TrainedOn(generator, young, steps=2, ipc=2, engine=CPU)
    assert same(old.network(1), old.network(1))
    assert not same(old.network(1), young.network(1))
    weights = young.network(0).state_dict()
    start = Start(law="stored", student="anything")
    tensors = {f"start.{name}": tensor for name, tensor in weights.items()}
    assert same(source_of(start, SHAPE, 10, student=Tied, tensors=tensors).network(5), young.network(0))
    with pytest.raises(FormatError, match=f"{__name__}:lazy"):
        source_of(start, SHAPE, 10, student=lazy, tensors=tensors).network(0)


def test_rows_name_the_factory_and_are_found_again(generator: Generator, tmp_path: Path) -> None:
    path, real = tmp_path / "scores.jsonl", load_real("digits")
    settings = {"ipc": 2, "seeds": 1, "real": real, "baselines": ["random"], "engine": CPU, "output": path}
    first = evaluate(generator, students=[Tied, "mlp"], **settings)  # type: ignore[arg-type]
    assert [score.student for score in first if score.what == "generator"] == [f"{__name__}:Tied", "mlp"]
    written = path.read_bytes()
    assert evaluate(generator, students=(Tied, "mlp"), **settings) == first  # type: ignore[arg-type]
    assert evaluate(generator, students=Tied, **settings) == first[:2]  # type: ignore[arg-type]
    assert path.read_bytes() == written
    assert {row.student for row in read_rows(path)} == {f"{__name__}:Tied", "mlp"}


def test_a_changed_network_is_another(module: str, tmp_path: Path) -> None:
    def of(source: str) -> object:
        (tmp_path / f"{module}.py").write_text(source)
        sys.modules.pop(module, None)
        return identity(user_student(f"{module}:tiny"), SHAPE, 4)

    first = of(SOURCE)
    assert of(SOURCE) == first
    assert of(SOURCE + "\nother = 1\n") == first
    assert of(SOURCE.replace("nn.Flatten(), ", "nn.Flatten(), nn.Tanh(), ")) != first
    assert of(SOURCE.replace("    return nn", "    # slow\n    return nn", 1)) != first
    assert identity("convnet3", SHAPE, 4) == "convnet3"
    assert json.dumps(identity(Tied, SHAPE, 4)) == json.dumps(identity(Tied, SHAPE, 4))


def test_two_factories_of_one_name_are_refused(generator: Generator) -> None:
    def make(width: int):
        def mine(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_classes))

        return mine

    with pytest.raises(ArgumentError, match="mine"):
        evaluate(generator, students=[make(3), make(4)], real="digits", engine=CPU)


def test_the_command_line_takes_a_reference(
    module: str, generator: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = load_real("digits")
    assert real.test is not None
    holdout = {"images": real.test.images[:40], "labels": real.test.labels[:40]}
    folder = artifact.save(generator, tmp_path / "generator", holdout=holdout)
    plain = ["--device", "cpu", "--compile", "off", "--json"]
    out = tmp_path / "tiny.safetensors"
    words = ["train", str(folder), "--ipc", "2", "--student", f"{module}:tiny", "-o", str(out), *plain]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["student"] == f"{module}:tiny"
    assert load_student(out, user_student(f"{module}:tiny"))[1].student == f"{module}:tiny"  # type: ignore[arg-type]
    words = ["evaluate", str(folder), "--ipc", "2", "--seeds", "1", "--student", f"mlp,{module}:Nets.tiny"]
    assert main([*words, "--real", "digits", "--baselines", "none", *plain]) == 0
    assert [score["student"] for score in json.loads(capsys.readouterr().out)] == ["mlp", f"{module}:tiny"]
    assert main([*words[:-1], f"{module}:tinny", "--real", "digits"]) == 2
    assert "tiny" in capsys.readouterr().err


def test_the_pool_of_dim_takes_a_reference(module: str, tmp_path: Path) -> None:
    settings = {
        "network": {"width": 16, "mid": 16, "stem": 8},
        "latent": 8,
        "critic": 8,
        "batch_size": 20,
        "pool": [f"{module}:tiny", "mlp"],
    }
    plain = {"device": "cpu", "precision": "fp32", "compile": "off"}
    folder = distill("digits", out=tmp_path / "run", settings=settings, steps=8, **plain)  # type: ignore[arg-type]
    assert artifact.load(folder).images is None
    assert DimConfig.from_json(settings | {"network": {"name": "subpixel"}}).pool[0] == f"{module}:tiny"
    with pytest.raises(NotFoundError, match="tinny"):
        distill("digits", out=tmp_path / "other", settings=settings | {"pool": [f"{module}:tinny"]}, steps=8)


class Masked(nn.Module):
    """A network with a tensor that a student's file does not hold."""

    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.linear = nn.Linear(image_shape[0] * image_shape[1] * image_shape[2], num_classes)
        self.register_buffer("mask", torch.ones(3, dtype=torch.bool))

    def forward(self, images):
        return self.linear(images.flatten(1))


def test_a_network_that_could_not_be_read_again_is_not_stored(tmp_path, monkeypatch, capsys):
    made = train(Masked, "dim-mnist", ipc=1, limit_steps=2, engine=Engine.of("cpu", "fp32", "off"))
    with pytest.raises(ArgumentError, match="'mask' is bool, and files of students hold float32"):
        save_student(made.network, tmp_path / "a.safetensors", made.info)
    (tmp_path / "masked.py").write_text("from test_own_network import Masked as net\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "b.safetensors"
    words = ("train", "dim-mnist", "--ipc", "1", "--student", "masked:net", "-o", str(out))
    assert main(list(words)) == 2
    assert "persistent=False" in capsys.readouterr().err
    made = train("convnet1-w8", "dim-mnist", ipc=1, limit_steps=2, engine=Engine.of("cpu", "fp32", "off"))
    next(made.network.parameters()).data[0] = float("nan")
    with pytest.raises(FormatError, match="is not finite, so it is not stored"):
        save_student(made.network, out, made.info)
    assert not list(tmp_path.glob("*.safetensors"))
