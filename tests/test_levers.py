"""Levers: chosen candidates, another spread, soft labels; pure in (seed, epoch, index), and reported apart."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
from conftest import make_network, make_table
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from dimdata import GeneratedDataset, artifact, latents
from dimdata.cli.main import main
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, FormatError, NotFoundError
from dimdata.evaluate import evaluate
from dimdata.generators.base import Generator
from dimdata.generators.table import table_generator
from dimdata.levers import LeveredGenerator, Levers, Teacher, apply
from dimdata.plots import plot
from dimdata.real import load_real
from dimdata.recipe import Leg, Recipe
from dimdata.report import markdown, notes
from dimdata.scores import Row, read_rows
from dimdata.students import make_student
from dimdata.students.store import StudentInfo, load_student, save_student
from dimdata.students.train import train

PLAIN = Engine.of("cpu", "fp32", "off")
INDEX = torch.arange(60)


def info_of(generator: Generator, student: str = "convnet1-w8", **changes: object) -> StudentInfo:
    spec = generator.spec
    values = {
        "student": student,
        "image_shape": spec.image_shape,
        "classes": spec.classes,
        "mean": spec.mean,
        "std": spec.std,
        "generator": "real digits",
    }
    return StudentInfo(**{**values, **changes})  # type: ignore[arg-type]


def make_teacher(generator: Generator, student: str = "convnet1-w8", seed: int = 3) -> Teacher:
    """An untrained network with an opinion all the same: its logits are made ten times as large."""
    network = make_student(student, generator.spec.image_shape, generator.spec.num_classes, seed)
    with torch.no_grad():
        for parameter in list(network.parameters())[-2:]:
            parameter *= 10
    return Teacher(network, info_of(generator, student))


@pytest.fixture
def generator() -> Generator:
    """A tiny network whose images differ as much as noise does."""
    made = make_network(image_shape=(1, 8, 8))
    for name, tensor in made.named_parameters():
        if name.endswith(("project.weight", "image.weight")):
            tensor *= 10
    return made


@pytest.fixture
def teacher(generator: Generator) -> Teacher:
    return make_teacher(generator)


def candidates(generator: Generator, teacher: Teacher, count: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Every candidate `[60, n, ...]` of the plain generator, one by one, and the log-probability of its label."""
    size = generator.spec.latent
    noise = latents.latents(seed, epoch, INDEX, size * count)
    images = torch.stack([generator.draw(part, INDEX)[0] for part in noise.split(size, dim=1)], dim=1)
    spec = generator.spec
    normalised = (images.flatten(0, 1) - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]
    with torch.no_grad():
        logits = teacher.network(normalised).view(len(INDEX), count, -1).double()
    label = (INDEX % spec.num_classes)[:, None, None].expand(-1, count, 1)
    return images, F.log_softmax(logits, dim=2).gather(2, label)[:, :, 0]


def draw(generator: Generator, levers: Levers, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
    levered = apply(generator, levers)
    return levered.draw(latents.latents(seed, epoch, INDEX, levered.spec.latent), INDEX)


# --- what each lever does -------------------------------------------------------------------------------------------


def test_nothing_asked_is_nothing_done(generator: Generator) -> None:
    assert apply(generator, Levers()) is generator
    assert generator.levers == ""
    assert generator.candidates == 1
    assert "levers" not in repr(GeneratedDataset(generator, 1, levers=Levers()))


@pytest.mark.parametrize("epoch", [0, 3])
def test_the_candidate_that_the_teacher_likes_best_for_its_label(
    generator: Generator, teacher: Teacher, epoch: int
) -> None:
    images, scores = candidates(generator, teacher, 5, seed=7, epoch=epoch)
    best = scores.argmax(1)
    assert len(best.unique()) > 1, "the teacher has a choice"
    chosen, targets = draw(generator, Levers(best_of=5, teacher=teacher), seed=7, epoch=epoch)
    assert torch.allclose(chosen, images[torch.arange(60), best], atol=1e-6)
    assert torch.equal(targets, INDEX % 10)
    plain = generator.draw(latents.latents(7, epoch, INDEX, generator.spec.latent), INDEX)[0]
    assert torch.allclose(chosen[best == 0], plain[best == 0], atol=1e-6), "the first candidate is the plain draw"


def test_a_certain_teacher_still_tells_candidates_apart(generator: Generator, teacher: Teacher) -> None:
    with torch.no_grad():
        for parameter in list(teacher.network.parameters())[-2:]:
            parameter *= 1000
    images, scores = candidates(generator, teacher, 4, seed=0, epoch=0)
    tied = (scores.float() == 0).sum(1) > 1
    assert tied.any(), "several candidates of an index have the probability 1"
    spec = generator.spec
    normalised = (images.flatten(0, 1) - spec.mean[0]) / spec.std[0]
    with torch.no_grad():
        logits = teacher.network(normalised).view(60, 4, 10).double()
    own = F.one_hot(INDEX % 10, 10).bool()[:, None].expand(-1, 4, -1)
    margin = logits[own].view(60, 4) - logits.masked_fill(own, -torch.inf).amax(2)  # the odds, at such sizes
    chosen, _ = draw(generator, Levers(best_of=4, teacher=teacher))
    assert torch.allclose(chosen[tied], images[torch.arange(60), margin.argmax(1)][tied], atol=1e-6)


def test_large_batches_are_judged_in_parts(
    generator: Generator, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    levers = Levers(best_of=5, keep=2, soft_labels=True, teacher=teacher)
    whole = draw(generator, levers)
    monkeypatch.setattr("dimdata.levers._AT_ONCE", 70)  # one candidate of each of the sixty at a time
    for part, same in zip(draw(generator, levers), whole, strict=True):
        assert torch.allclose(part, same, atol=1e-5)


def test_keep_takes_any_of_the_best_as_often(generator: Generator, teacher: Teacher) -> None:
    ranks = []
    for epoch in range(10):
        images, scores = candidates(generator, teacher, 4, seed=1, epoch=epoch)
        chosen, _ = draw(generator, Levers(best_of=4, keep=3, teacher=teacher), seed=1, epoch=epoch)
        near = (images - chosen[:, None]).flatten(2).abs().amax(2)
        assert (near.amin(1) < 1e-6).all(), "it is one of the candidates"
        ranks += (scores > scores.gather(1, near.argmin(1)[:, None])).sum(1).tolist()
    counts = torch.bincount(torch.tensor(ranks), minlength=4).tolist()
    assert counts[3] == 0, "never the worst"
    assert all(150 < count < 250 for count in counts[:3]), counts


def test_spread_scales_the_noise(generator: Generator) -> None:
    noise = latents.latents(2, 1, INDEX, generator.spec.latent)
    for spread in (0.5, 1.7):
        images, targets = draw(generator, Levers(spread=spread), seed=2, epoch=1)
        assert torch.equal(images, generator.draw(noise * spread, INDEX)[0])
        assert torch.equal(targets, INDEX % 10)
    narrow, wide = (draw(generator, Levers(spread=spread))[0].std(0).mean() for spread in (0.2, 2))
    assert narrow < wide


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_labels_are_the_teachers(generator: Generator, teacher: Teacher, temperature: float) -> None:
    images, targets = draw(generator, Levers(soft_labels=True, temperature=temperature, teacher=teacher))
    assert torch.equal(images, draw(generator, Levers(spread=1.0))[0])
    spec = generator.spec
    with torch.no_grad():
        logits = teacher.network((images - spec.mean[0]) / spec.std[0])
    assert torch.allclose(targets, torch.softmax(logits / temperature, 1), atol=1e-5)
    levered = apply(generator, Levers(soft_labels=True, teacher=teacher))
    assert levered.spec.targets == "soft"
    assert torch.equal(levered.labels(INDEX), INDEX % 10), "what was asked for, whatever the teacher thinks"
    assert not torch.equal(targets.argmax(1), INDEX % 10)


def test_soft_labels_of_chosen_images(generator: Generator, teacher: Teacher) -> None:
    images, targets = draw(generator, Levers(best_of=3, spread=0.8, soft_labels=True, teacher=teacher))
    spec = generator.spec
    with torch.no_grad():
        logits = teacher.network((images - spec.mean[0]) / spec.std[0])
    assert torch.allclose(targets, torch.softmax(logits, 1), atol=1e-5)


def test_stored_images_take_soft_labels_stage_by_stage() -> None:
    table = make_table()
    levers = Levers(soft_labels=True, teacher=make_teacher(table))
    images, targets = GeneratedDataset(table, levers=levers, stage=1)[list(range(10))]
    assert torch.equal(images, table.table[:10] / 255)
    assert targets.shape == (10, 10)
    with pytest.raises(ArgumentError, match="2 stages, not 3"):
        GeneratedDataset(table, levers=levers, stage=3)


# --- a levered generator is a generator -----------------------------------------------------------------------------

ALL = {"best_of": 4, "keep": 2, "spread": 0.9, "soft_labels": True, "temperature": 2.0}


@pytest.fixture
def dataset(generator: Generator, teacher: Teacher) -> GeneratedDataset:
    return GeneratedDataset(generator, 6, seed=4, levers=Levers(**ALL, teacher=teacher))  # type: ignore[arg-type]


def passes(dataset: GeneratedDataset, **arguments: object) -> list[tuple[Tensor, Tensor]]:
    """Two epochs in the order of the index."""
    loader = DataLoader(dataset, **arguments)  # type: ignore[arg-type]
    return [tuple(torch.cat(parts) for parts in zip(*loader, strict=True)) for _ in range(2)]  # type: ignore[misc]


def test_pure_in_seed_epoch_and_index(dataset: GeneratedDataset) -> None:
    wanted = passes(dataset.clone(), batch_size=60)
    assert not torch.equal(wanted[0][0], wanted[1][0]), "each epoch is new"
    for arguments in ({"batch_size": 7}, {"batch_size": 1}, {"batch_size": 16, "num_workers": 2}):
        for (images, targets), (same, soft) in zip(passes(dataset.clone(), **arguments), wanted, strict=True):
            assert torch.allclose(images, same, atol=1e-5)
            assert torch.allclose(targets, soft, atol=1e-5)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    images, _ = dataset.clone()[order]
    assert torch.allclose(images, wanted[0][0][order], atol=1e-5)


def test_the_dataset_is_as_any_other(dataset: GeneratedDataset, generator: Generator) -> None:
    image, target = dataset[0]
    assert image.shape == (1, 8, 8)
    assert target.shape == (10,)
    assert target.sum() == pytest.approx(1, abs=1e-5)
    assert dataset.targets.tolist() == (INDEX % 10).tolist()
    assert "best-of=4,keep=2,spread=0.9,soft-labels,temperature=2 by convnet1-w8 of real digits (" in repr(dataset)
    assert dataset.generator.candidates == 4
    twin = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(twin.clone()[0][0], dataset.clone()[0][0])
    assert dataset.generator.recipe == generator.recipe


def test_no_global_random_state_is_touched_and_the_generator_stays_as_it_was(
    generator: Generator, teacher: Teacher
) -> None:
    before, weights = torch.random.get_rng_state(), {k: v.clone() for k, v in generator.state_dict().items()}
    draw(generator, Levers(**ALL, teacher=teacher))  # type: ignore[arg-type]
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(weights[name], tensor) for name, tensor in generator.state_dict().items())
    assert generator.spec.latent == 8


def test_a_teachers_judgement_does_not_depend_on_the_batch(generator: Generator) -> None:
    teacher = make_teacher(generator, "convnet1-w8-bn")
    levered = apply(generator, Levers(soft_labels=True, teacher=teacher)).train()
    noise = latents.latents(0, 0, INDEX, 8)
    together, alone = levered.draw(noise, INDEX)[1], levered.draw(noise[:1], INDEX[:1])[1]
    assert torch.allclose(together[:1], alone, atol=1e-5)


def test_chosen_classes(generator: Generator, teacher: Teacher) -> None:
    levered = apply(generator, Levers(best_of=3, teacher=teacher))
    images, labels = levered.sample([3, 3, 8], seed=2)
    assert labels.tolist() == [3, 3, 8]
    alone, _ = levered.sample([8], seed=2)
    assert torch.allclose(images[2], alone[0], atol=1e-5)


def test_levers_on_levers(generator: Generator, teacher: Teacher) -> None:
    both = apply(apply(generator, Levers(spread=0.5)), Levers(best_of=2, teacher=teacher))
    once = apply(generator, Levers(spread=0.5, best_of=2, teacher=teacher))
    noise = latents.latents(0, 0, INDEX, both.spec.latent)
    assert torch.allclose(both.draw(noise, INDEX)[0], once.draw(noise, INDEX)[0], atol=1e-6)
    assert both.levers.startswith("spread=0.5; best-of=2 by ")


def test_a_levered_draw_is_not_stored(tmp_path: Path, generator: Generator) -> None:
    with pytest.raises(ArgumentError, match="cannot be stored"):
        artifact.save(apply(generator, Levers(spread=0.5)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"best_of": 0}, "best_of is 0"),
        ({"best_of": 2.0}, "best_of is 2.0"),
        ({"best_of": 2}, "needs a teacher"),
        ({"soft_labels": True}, "needs a teacher"),
        ({"best_of": 4, "keep": 4, "teacher": "x"}, "keep is 4, of 4"),
        ({"keep": 2}, "keep is 2, of 1"),
        ({"spread": 0}, "spread is 0"),
        ({"spread": float("nan")}, "spread is nan"),
        ({"spread": True}, "spread is True"),
        ({"temperature": 2.0}, "without soft_labels"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"teacher": "x"}, "nothing asks for it"),
    ],
)
def test_values_out_of_range(values: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Levers(**values)  # type: ignore[arg-type]


def test_reading_and_describing(teacher: Teacher) -> None:
    levers = Levers(**ALL, teacher=teacher)  # type: ignore[arg-type]
    assert Levers.parse(levers.describe(), teacher) == levers
    assert Levers.parse("") == Levers()
    exact = Levers(spread=0.123456789012)
    assert Levers.parse(exact.describe()) == exact
    for text, message in (
        ("best-off=4", "best-of"),
        ("best-of", "best-of=4"),
        ("best-of=four", "no number"),
        ("soft-labels=2", "Write soft-labels"),
    ):
        with pytest.raises(ArgumentError, match=message):
            Levers.parse(text, teacher)


def test_what_a_teacher_says_does_not_balance_classes() -> None:
    """So many of each class are so many of each stored label."""
    labels = torch.cat([torch.arange(10), torch.zeros(11, dtype=torch.int64)])
    whole = make_table()
    made = table_generator(
        torch.zeros(21, 1, 28, 28),
        labels=labels,
        classes=whole.spec.classes,
        mean=whole.spec.mean,
        std=whole.spec.std,
        recipe=whole.recipe,
    )
    levered = apply(made, Levers(soft_labels=True, teacher=make_teacher(made)))
    assert len(GeneratedDataset(levered, ipc=1)) == 10
    with pytest.raises(ArgumentError, match="not 2 of each class"):
        GeneratedDataset(levered, ipc=2)


def test_levers_on_noise_are_refused_where_images_are_stored() -> None:
    table = make_table()
    with pytest.raises(ArgumentError, match="one candidate"):
        apply(table, Levers(best_of=2, teacher=make_teacher(table)))
    with pytest.raises(ArgumentError, match="no noise"):
        apply(table, Levers(spread=0.5))


def test_too_many_candidates(generator: Generator, teacher: Teacher) -> None:
    with pytest.raises(ArgumentError, match="best_of is 257"):
        Levers(best_of=257, teacher=teacher)
    spec = dataclasses.replace(generator.spec, latent=60_000)
    generator.spec = spec
    with pytest.raises(ArgumentError, match="2 candidates of 60000 values"):
        apply(generator, Levers(best_of=2, teacher=teacher))


def test_a_teacher_must_fit(tmp_path: Path, generator: Generator) -> None:
    network = make_student("convnet1-w8", (1, 8, 8), 10)
    others = ("1", "0", *"23456789")
    with pytest.raises(ArgumentError, match="knows '1' where it has '0'"):
        apply(generator, Levers(soft_labels=True, teacher=Teacher(network, info_of(generator, classes=others))))
    wide = make_teacher(make_network(image_shape=(3, 8, 8)))
    with pytest.raises(ArgumentError, match=r"\(3, 8, 8\)"):
        apply(generator, Levers(soft_labels=True, teacher=wide))


def test_teachers_are_files(tmp_path: Path, generator: Generator, teacher: Teacher) -> None:
    path = save_student(teacher.network, tmp_path / "teacher.safetensors", teacher.info)
    by_file = draw(generator, Levers(best_of=3, teacher=path))[0]
    assert torch.equal(by_file, draw(generator, Levers(best_of=3, teacher=teacher))[0])
    assert Teacher.load(path).digest == teacher.digest != make_teacher(generator, seed=9).digest
    with pytest.raises(NotFoundError, match="no teacher"):
        apply(generator, Levers(best_of=3, teacher=tmp_path / "absent.safetensors"))
    folder = artifact.save(generator, tmp_path / "generator")
    with pytest.raises(FormatError, match="not a stored student"):
        apply(generator, Levers(best_of=3, teacher=folder / "model.safetensors"))


# --- training, scoring, reporting -----------------------------------------------------------------------------------


def test_students_train_on_any_levered_draw(generator: Generator, teacher: Teacher) -> None:
    levered = apply(generator, Levers(**ALL, teacher=teacher))  # type: ignore[arg-type]
    results = [train("convnet1-w8", levered, ipc=1, engine=PLAIN) for _ in range(2)]
    assert results[0].loss == results[1].loss
    assert results[0].images_drawn == results[0].distinct_images == 20
    assert results[0].info.generator.endswith(f"({teacher.digest})")
    assert results[0].loss != train("convnet1-w8", generator, ipc=1, engine=PLAIN).loss


def test_scores_of_levers_stand_apart_and_are_kept(tmp_path: Path, generator: Generator, teacher: Teacher) -> None:
    real = load_real("digits")
    generator.spec = dataclasses.replace(generator.spec, classes=real.classes)
    teacher = make_teacher(generator)
    recipe = Recipe(legs=(Leg(epochs=2, batch_size=10),))
    draws = {
        "": generator,
        "best": apply(generator, Levers(best_of=4, teacher=teacher)),
        "other": apply(generator, Levers(best_of=4, teacher=make_teacher(generator, seed=5))),
        "narrow": apply(generator, Levers(spread=0.5)),
    }
    file, new = tmp_path / "rows.jsonl", []
    for _ in range(2):
        scores = {
            name: evaluate(
                source,
                ipc=1,
                students="convnet1-w8",
                seeds=2,
                real=real,
                recipe=recipe,
                baselines=("random",),
                engine=PLAIN,
                output=file,
            )
            for name, source in draws.items()
        }
        new.append(len(read_rows(file)))
    assert new == [2 * 4 + 2, 2 * 4 + 2], "baselines are shared, the second call computes nothing"
    own = [found[0] for found in scores.values()]
    assert [score.candidates for score in own] == [1, 4, 4, 1]
    assert len({score.levers for score in own}) == 4
    assert len({tuple(score.baselines.items()) for score in own}) == 1
    assert own[1].stored_bytes > own[0].stored_bytes == own[3].stored_bytes, "a teacher is stored, too"
    text = markdown(own)
    assert "best-of=4 by convnet1-w8 of real digits" in text
    assert "| 80 |" in text, "twenty images seen, eighty drawn"
    assert any("Drawn:" in note for note in notes(own))
    assert "levers" not in markdown(own[:1])
    assert plot([dataclasses.replace(score, ipc_claim=True) for score in own], tmp_path / "plot.svg").is_file()
    labels = (tmp_path / "plot.svg").read_text()
    assert "no levers" in labels
    assert "spread=0.5" in labels


def test_rows_from_before_levers_are_plain() -> None:
    line = (Path(artifact.__file__).parent / "zoo/baselines.jsonl").read_text().splitlines()[0]
    row = Row.from_json({k: v for k, v in json.loads(line).items() if k not in ("levers", "candidates")})
    assert row.levers == ""
    assert row.candidates == 1


def test_the_command_line_trains_a_teacher_and_pulls_levers(
    tmp_path: Path, generator: Generator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fast = ["--device", "cpu", "--precision", "fp32", "--compile", "off", "--student", "convnet1-w8"]
    words = ["train", "--real", "digits", "--ipc", "20", "--epochs", "2", "-o", "teacher.safetensors", *fast]
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["name"] == "real digits"
    assert facts["distinct"] == 200
    assert facts["accuracy"] > 15
    assert load_student("teacher.safetensors")[1].generator == "real digits"

    generator.spec = dataclasses.replace(generator.spec, classes=load_real("digits").classes)
    artifact.save(generator, "generator")
    pulled = ["--levers", "best-of=3,soft-labels", "--teacher", "teacher.safetensors"]
    assert main(["train", "./generator", "--ipc", "1", *pulled, *fast, "--json", "--real", "digits"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["images_seen"], facts["drawn"]) == (20, 60)
    assert facts["levers"].startswith("best-of=3,soft-labels by convnet1-w8 of real digits")
    words = ["evaluate", "./generator", "--ipc", "1", "--epochs", "1", "--seeds", "1", "--baselines", "none", *fast]
    assert main([*words, *pulled, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["levers"] == facts["levers"]
    for number, extra in enumerate(([], pulled)):
        assert main(["preview", "./generator", "-o", f"{number}.png", *extra]) == 0
    assert Path("0.png").read_bytes() != Path("1.png").read_bytes()
    assert main(["export", "./generator", "--ipc", "1", "-o", "images", *pulled]) == 0
    card = Path("images/README.md").read_text()
    assert "--levers best-of=3,soft-labels --teacher TEACHER.safetensors" in card


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "nothing to train on"),
        (["train", "dim-mnist", "--size", "32"], "--size"),
        (["train", "dim-mnist", "--levers", "best-of=4"], "needs a teacher"),
        (["preview", "dim-mnist", "--levers", "spraed=1"], "spread"),
        (["evaluate", "dim-mnist", "--levers", "spread=0.9", "--teacher", "t.safetensors"], "nothing asks for it"),
        (["export", "dim-mnist", "-o", "x", "--levers", "soft-labels", "--teacher", "absent"], "no teacher"),
    ],
)
def test_mistakes_on_the_command_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_the_levered_kind_is_no_kind_of_a_folder() -> None:
    from dimdata.generators.base import GENERATORS

    assert LeveredGenerator.kind not in GENERATORS


def test_levers_as_a_text_are_told_how_to_be_read():
    with pytest.raises(ArgumentError, match="levers is a str, not Levers") as caught:
        GeneratedDataset("dim-mnist", ipc=1, levers="best-of=2")
    assert "Levers.parse" in caught.value.hint
