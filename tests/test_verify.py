"""Verification: files against their digests, and claims of cards, true, false and absurd, against students."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dimdata import artifact, preview
from dimdata.claims import BUDGET, find_training
from dimdata.cli.main import main
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, DataError, FormatError, NotFoundError
from dimdata.evaluate import evaluate
from dimdata.generators.base import Generator
from dimdata.generators.table import table_generator
from dimdata.protocols import protocol
from dimdata.real import RealData, load_real, random_real
from dimdata.recipe import Leg, Recipe
from dimdata.scores import Score
from dimdata.verify import Trial, try_claim, verify_files

STUDENT = "convnet1-w8"
EPOCHS = 40
ENGINE = Engine(torch.device("cpu"))


@pytest.fixture(scope="module")
def real() -> RealData:
    return load_real("digits")


@pytest.fixture(scope="module")
def measured(real: RealData) -> tuple[Generator, list[Score]]:
    """Ten real images of each digit as a generator, and what students truly reach on them."""
    table = random_real(real, 10, seed=0, recipe=Recipe(legs=(Leg(epochs=EPOCHS, batch_size=20, lr=0.05),)))
    scores = evaluate(table, students=STUDENT, seeds=3, real=real, baselines=(), engine=ENGINE)
    return table, scores


@pytest.fixture
def folder(measured: tuple[Generator, list[Score]], real: RealData, tmp_path: Path) -> Path:
    """The folder of that generator, with a hold-out, a preview, and the true scores."""
    table, scores = measured
    assert real.test is not None
    holdout = {"images": real.test.images[:200], "labels": real.test.labels[:200]}
    return artifact.save(
        table,
        tmp_path / "digits",
        scores=[score.to_json() for score in scores],
        holdout=holdout,
        preview=preview.png(table),
    )


def claim(folder: Path, **changes: Any) -> None:
    """Make the card claim something else."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["scores"][0] |= changes
    path.write_text(json.dumps(config))


def too_high(folder: Path) -> dict[str, Any]:
    """What the score would say if its best student had reached 99.9 %."""
    (score,) = artifact.read_config(folder).scores
    accuracies = [accuracy + 99.9 - max(score["accuracies"]) for accuracy in score["accuracies"]]
    return {"accuracies": accuracies, "mean": round(sum(accuracies) / len(accuracies), 2)}


def tried(folder: Path, budget: int = BUDGET, real: RealData | None = None, **options: Any) -> Trial:
    generator, files = verify_files(folder)
    dataset = None if real is None else real.name
    training = find_training(generator, artifact.read_config(folder), budget, dataset)
    return try_claim(generator, files, training, real=real, engine=ENGINE, **options)


# --- files -----------------------------------------------------------------------------------------------------------


def test_whole_files(folder: Path) -> None:
    generator, files = verify_files(folder)
    assert files.sha256 == artifact.read_config(folder).weights.sha256
    assert files.bytes == (folder / "model.safetensors").stat().st_size
    assert (files.holdout, files.preview, files.revision) == (200, "as drawn", None)
    assert generator.images == 100


def test_damage_is_found(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="sha256"):
        verify_files(folder)


def test_a_config_of_other_weights_is_found(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["recipe"]["legs"][0]["lr"] = 0.5
    path.write_text(json.dumps(config))
    with pytest.raises(FormatError, match="do not belong together"):
        verify_files(folder)


@pytest.mark.parametrize("kind", ["other", "size", "text", "none"])
def test_previews_are_compared(folder: Path, kind: str) -> None:
    path = folder / "preview.png"
    with Image.open(path) as picture:
        size = picture.size
    if kind == "none":
        path.unlink()
    elif kind == "text":
        path.write_text("no picture")
    else:
        Image.new("RGB", size if kind == "other" else (5, 5)).save(path)
    assert verify_files(folder)[1].preview == ("absent" if kind == "none" else "other")


# --- claims ----------------------------------------------------------------------------------------------------------


def test_a_true_claim_is_confirmed(folder: Path, real: RealData) -> None:
    trial = tried(folder)
    assert trial.verdict == "confirmed"
    assert (trial.full, trial.alike) == (True, True)
    assert (trial.images, trial.steps) == (100 * EPOCHS, 5 * EPOCHS)
    assert set(trial.seeds).isdisjoint(trial.claim.seeds)
    assert trial.test == "hold-out (200)"
    p = trial.claim.mean
    assert trial.from_test == pytest.approx(math.sqrt(p * (100 - p) * (1 / 200 + 1 / 500)), abs=1e-3)
    assert trial.tolerance == pytest.approx(3 * math.hypot(trial.from_seeds, trial.from_test), abs=0.01)
    assert trial.tolerance < 12
    whole = tried(folder, real=real, seeds=2)
    assert (whole.verdict, len(whole.seeds), whole.from_test) == ("confirmed", 2, 0.0)
    assert whole.tolerance < trial.tolerance


def test_a_false_claim_is_refuted(folder: Path, real: RealData) -> None:
    claim(folder, **too_high(folder))
    assert tried(folder, real=real).verdict == "refuted"


def test_the_claims_own_test_images_leave_an_error_too(folder: Path, real: RealData) -> None:
    """Five points more on 30 images are chance; on many others they would not be."""
    (score,) = artifact.read_config(folder).scores
    lucky = {"accuracies": [accuracy + 5 for accuracy in score["accuracies"]], "mean": round(score["mean"] + 5, 2)}
    claim(folder, **lucky, test="hold-out (30)")
    trial = tried(folder, real=real)
    p = trial.claim.mean
    assert trial.from_test == pytest.approx(math.sqrt(p * (100 - p) * (1 / 500 + 1 / 30)), abs=1e-3)
    assert trial.verdict == "confirmed"
    for test in ("others (1,000,000)", "others (0)", "others", "others (many)"):
        claim(folder, test=test)
        trial = tried(folder, real=real)
        assert trial.from_test == pytest.approx(math.sqrt(p * (100 - p) / 500), abs=0.01)
        assert trial.verdict == "refuted"


def test_a_cut_training_confirms_and_never_refutes(folder: Path, real: RealData) -> None:
    cut = tried(folder, budget=100 * EPOCHS // 4)
    assert not cut.full
    assert cut.images == 100 * EPOCHS // 4
    claim(folder, **too_high(folder))
    assert tried(folder, budget=100, real=real).verdict == "open"
    claim(folder, mean=5.0, accuracies=[5.0, 5.0, 5.0])
    assert tried(folder, budget=100, real=real).verdict == "confirmed"


def test_another_recipe_leaves_it_open(folder: Path, real: RealData) -> None:
    claim(folder, **too_high(folder), recipe="something else")
    trial = tried(folder, real=real)
    assert (trial.alike, trial.verdict) == (False, "open")


def test_the_largest_claim_within_the_budget_is_chosen(measured: tuple[Generator, list[Score]], folder: Path) -> None:
    table, (score,) = measured
    config = artifact.read_config(folder)

    def chosen(budget: int, *claims: Score) -> tuple[int, bool, str, int]:
        stored = dataclasses.replace(config, scores=tuple(c.to_json() for c in claims))
        training = find_training(table, stored, budget)
        return training.images, training.full, training.claim.protocol, len(training.claim.seeds)

    half = dataclasses.replace(score, ipc=5, images=50, images_seen=50 * EPOCHS)
    one = dataclasses.replace(half, seeds=(0,), accuracies=(half.mean,))
    assert chosen(10**6, half, score) == (100 * EPOCHS, True, "dimdata", 3)
    assert chosen(60 * EPOCHS, score, half) == (50 * EPOCHS, True, "dimdata", 3)
    assert chosen(60 * EPOCHS, one, half, one) == (50 * EPOCHS, True, "dimdata", 3)
    assert chosen(10 * EPOCHS, score, half) == (10 * EPOCHS, False, "dimdata", 3), "the smallest, cut"
    recipe = protocol("dim-paper").recipe(table.recipe, 10, 10).describe()
    paper = dataclasses.replace(score, protocol="dim-paper", epochs=1000, images_seen=100_000, recipe=recipe)
    assert chosen(10**6, paper, score) == (100_000, True, "dim-paper", 3)
    with pytest.raises(ArgumentError, match="can be tried") as caught:
        chosen(10, score)
    assert "--budget 100" in caught.value.hint
    with pytest.raises(ArgumentError, match="budget is 0"):
        chosen(0, score)


@pytest.mark.parametrize(
    "changes",
    [
        {"student": "os:system"},
        {"student": "no-such-student"},
        {"student": "convnet9"},  # images are too small for it
        {"student": "convnet3-w9999"},  # hundreds of millions of parameters
        {"protocol": "trust-me"},
        {"ipc": 0, "images": 0},
        {"ipc": 10**9, "images": 10**10},
        {"ipc": None, "images": 7},
        {"images_seen": 1},
        {"images_seen": 10**18},
        {"epochs": 10**12},
        {"epochs": -1},
        {"draw": "fresh"},
        {"levers": "best-of=4"},
        {"mean": 100.5, "accuracies": [100.5]},
        {"mean": 99.0},  # its seeds say something else
        {"accuracies": []},
    ],
)
def test_absurd_claims_are_not_tried(folder: Path, changes: dict[str, Any]) -> None:
    claim(folder, **changes)
    with pytest.raises(NotFoundError, match="can be repeated"):
        tried(folder)


def test_without_claims_or_test_images(folder: Path, real: RealData) -> None:
    claim(folder, dataset="mnist")
    with pytest.raises(NotFoundError, match="claims no accuracy on digits"):
        tried(folder)
    claim(folder, dataset="digits")
    (folder / "holdout.safetensors").unlink()
    with pytest.raises(DataError, match="no real test images"):
        tried(folder)
    with pytest.raises(ArgumentError, match="seeds is 0"):
        tried(folder, real=real, seeds=0)


# --- on the command line ---------------------------------------------------------------------------------------------

PLAIN = ["--compile", "off", "--precision", "fp32", "--device", "cpu"]


def test_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder), *PLAIN]) == 0
    printed = capsys.readouterr()
    for part in ("sha256", "4,000 images", "standard errors", "confirmed", "200 real test images"):
        assert part in printed.out, part
    assert "Training a student" in printed.err
    claim(folder, **too_high(folder))
    assert main(["verify", str(folder), "--real", "digits", "--json", *PLAIN]) == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (found["ok"], found["trial"]["verdict"]) == (False, "refuted")
    assert "points below" in found["problem"]
    assert "points below" in printed.err
    assert main(["verify", str(folder), "--real", "digits", "--budget", "100", *PLAIN]) == 2
    assert "--budget 4000" in capsys.readouterr().err


def test_without_test_images_no_training_is_announced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "holdout.safetensors").unlink()
    assert main(["verify", str(folder), "--real", "holdout", *PLAIN]) == 2
    printed = capsys.readouterr()
    assert "no real test images" in printed.err
    assert "Training" not in printed.err


def test_quick_trains_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder), "--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert "trial" not in found
    (folder / "model.safetensors").write_bytes(b"\0" * (folder / "model.safetensors").stat().st_size)
    assert main(["verify", str(folder), "--quick", "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["ok"] is False
    assert "model.safetensors" in printed.err
    shutil.rmtree(folder)
    assert main(["verify", str(folder), "--quick"]) == 2


# Images of the shortest training that a card claims, where these are many.
LONG = {"pdd-dim-fashion-mnist": 100_000, "pdd-fashion-mnist": 300_000, "pdd-mnist": 300_000}


def test_a_claim_that_takes_longer_than_usual_is_cut() -> None:
    """One is of stages in epochs, the others of stages in steps."""
    for name, images in LONG.items():
        generator, files = verify_files(name)
        config = artifact.read_config(files.folder)
        training = find_training(generator, config, BUDGET)
        assert not training.full
        assert 0.9 * BUDGET < training.images <= BUDGET
        assert [leg.stage for leg in training.recipe.legs] == [leg.stage for leg in generator.recipe.legs]
        whole = find_training(generator, config, images)
        assert (whole.full, whole.alike, whole.images) == (True, True, images)


def test_a_claim_in_steps_can_be_tried_within_a_part_of_them(real: RealData, tmp_path: Path) -> None:
    assert real.test is not None
    legs = tuple(Leg(stage=stage, steps=60, batch_size=50, lr=0.05) for stage in (1, 2))
    both = random_real(real, 10, seed=0, recipe=Recipe(legs=legs[:1]))
    images = (both.draw(torch.empty(100, 0), torch.arange(100))[0] * 255).round().to(torch.uint8)
    table = table_generator(
        images,
        labels=torch.arange(100) % 10,
        classes=real.classes,
        mean=real.mean,
        std=real.std,
        recipe=Recipe(legs=legs),
        stages=(50, 50),
        dataset="digits",
    )
    scores = evaluate(table, students=STUDENT, seeds=3, real=real, baselines=(), engine=ENGINE)
    holdout = {"images": real.test.images, "labels": real.test.labels}
    artifact.save(table, tmp_path / "made", scores=[score.to_json() for score in scores], holdout=holdout)
    trial = tried(tmp_path / "made", budget=3000)
    assert (trial.steps, trial.images, trial.full, trial.alike) == (60, 3000, False, True)
    assert trial.verdict in ("confirmed", "open")
    whole = tried(tmp_path / "made")
    assert (whole.steps, whole.images, whole.full, whole.verdict) == (120, 6000, True, "confirmed")


@pytest.mark.parametrize("name", [name for name in artifact.bundled() if name not in LONG])
def test_bundled_generators_can_be_verified(name: str) -> None:
    generator, files = verify_files(name)
    assert files.preview == "as drawn"
    training = find_training(generator, artifact.read_config(files.folder), BUDGET)
    assert training.full
    assert training.alike
    assert training.images <= BUDGET
