from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_network
from torch import nn

from dimdata import artifact
from dimdata.cells import Cell, in_steps, plan, real_images, with_epochs
from dimdata.distill.staging import walk
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, DataError, DimdataError, NotFoundError
from dimdata.evaluate import _Run, evaluate, prepare
from dimdata.generators.base import Generator
from dimdata.generators.table import TableGenerator, table_generator
from dimdata.nearest import distances, nearest_check
from dimdata.protocols import protocol
from dimdata.real import RealData, Split, distinct_real, load_real
from dimdata.recipe import Leg, Recipe, Start
from dimdata.scores import SHIPPED, Row, Score, read_rows

STUDENT = "convnet1-w8"
CPU = Engine(torch.device("cpu"))
FEW = Recipe(legs=(Leg(epochs=6, batch_size=16, lr=0.05, schedule="onecycle"),))


@pytest.fixture(scope="module")
def real() -> RealData:
    return load_real("digits")


@pytest.fixture
def network() -> Generator:
    generator = make_network(image_shape=(1, 8, 8))
    generator.recipe = FEW
    return generator


@pytest.fixture
def stored(real: RealData) -> TableGenerator:
    return distinct_real(real, 40, 0, FEW)


def run(source: Any, **arguments: Any) -> list[Score]:
    return evaluate(source, **({"students": STUDENT, "engine": CPU, "seeds": 2} | arguments))


def of(scores: list[Score], what: str, draw: str | None = None) -> Score:
    (score,) = (s for s in scores if s.what == what and draw in (None, s.draw))
    return score


def test_a_generator_beside_its_baselines(network: Generator, real: RealData) -> None:
    rows: list[Row] = []
    scores = run(network, ipc=3, draws=("fresh", "fixed"), real=real, on_row=rows.append)
    fresh, fixed = of(scores, "generator", "fresh"), of(scores, "generator", "fixed")
    random, distinct, every = (of(scores, what) for what in ("random", "distinct", "all"))
    assert len(scores) == 5
    assert len(rows) == 10

    # Two batches an epoch, 16 + 14 images; the same number of steps and images for everybody.
    assert {s.steps for s in scores} == {12}
    assert {s.images_seen for s in scores} == {180}
    assert (fresh.distinct, fixed.distinct) == (180, 30)
    assert (random.distinct, distinct.distinct, every.distinct) == (30, 180, 180)

    assert fresh.baselines == {"random": random.mean, "distinct": distinct.mean, "all": every.mean}
    assert fresh.share == pytest.approx(100 * fresh.mean / distinct.mean)
    assert fixed.baselines == {"random": random.mean, "all": every.mean}
    assert fresh.stored_bytes == network.nbytes
    assert fresh.test == "digits test (500)"
    assert not fresh.ipc_claim
    assert fixed.ipc_claim
    assert fresh.epochs == 6
    assert fresh.seeds == (0, 1)
    assert fresh.std is not None
    assert all(0 <= row.accuracy <= 100 and row.accuracy == round(row.accuracy, 2) for row in rows)
    assert all(row.engine["device"] == "cpu" for row in rows)


def test_real_images_that_suffice_are_learned_from(real: RealData) -> None:
    """The scores are those of training: many real images teach digits, random pixels do not."""
    recipe = Recipe(legs=(Leg(epochs=40, batch_size=32, lr=0.2, schedule="onecycle"),))
    noise = torch.randint(0, 256, (100, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    facts: dict[str, Any] = {"classes": real.classes, "mean": real.mean, "std": real.std, "recipe": recipe}
    scores = run(table_generator(noise, **facts), ipc=10, seeds=1, real=real, students="convnet1-w16")
    assert of(scores, "random").mean > 80
    assert of(scores, "all").mean > of(scores, "random").mean
    assert of(scores, "generator").mean < 40


def test_the_student_of_a_table_equals_the_baseline_made_of_the_same_images(
    stored: TableGenerator, real: RealData
) -> None:
    """Baselines have no branch: a table of the baseline's own images scores the same."""
    stored.recipe = Recipe(legs=(Leg(epochs=5, batch_size=20, lr=0.05),))
    scores = run(stored, seeds=[0], real=real, baselines=["random"])
    assert of(scores, "generator").accuracies == of(scores, "random").accuracies
    assert of(scores, "generator").mean > 10


def test_stored_images_have_a_fixed_draw_only(stored: TableGenerator, real: RealData) -> None:
    scores = run(stored, draws=("fresh", "fixed"), seeds=1, real=real)
    assert {s.what for s in scores} == {"generator", "random", "all"}
    score = of(scores, "generator")
    assert (score.draw, score.ipc, score.images, score.distinct, score.ipc_claim) == ("fixed", 4, 40, 40, True)
    uneven = distinct_real(real, 37, 0, FEW)
    score = of(run(uneven, seeds=1, real=real, baselines=()), "generator")
    assert (score.ipc, score.images, score.budget_text) == (None, 37, "37 stored images")


def test_images_of_unequal_classes_are_no_number_per_class(real: RealData) -> None:
    labels = torch.cat([torch.zeros(31, dtype=torch.int64), torch.arange(1, 10)])
    facts: dict[str, Any] = {"classes": real.classes, "mean": real.mean, "std": real.std, "recipe": FEW}
    skewed = table_generator(real.train.images[:40], labels=labels, **facts)
    score = of(run(skewed, seeds=1, real=real, baselines=()), "generator")
    assert (score.ipc, score.ipc_claim, score.budget_text) == (None, False, "40 stored images")
    with pytest.raises(ArgumentError, match="The first 10 images of this generator are not 1 of each"):
        run(skewed, ipc=1, real=real)


def test_all_takes_the_row_of_distinct_where_both_are_everything(network: Generator, real: RealData) -> None:
    rows: list[Row] = []
    few = dataclasses.replace(real, train=real.train.select(torch.arange(150)), test=real.test.select(torch.arange(50)))
    run(network, ipc=3, seeds=1, real=few, on_row=rows.append, baselines=("all", "distinct"))
    generator, distinct, every = rows
    assert [row.what for row in rows] == ["generator", "distinct", "all"]
    assert generator.distinct == 180
    assert distinct.distinct == every.distinct == 150
    assert distinct.accuracy == every.accuracy
    assert distinct.seconds == every.seconds  # not computed twice
    assert distinct.key != every.key


def test_a_rerun_skips_what_is_done(network: Generator, real: RealData, tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    first = run(network, ipc=1, real=real, output=path)
    whole = path.read_bytes()
    assert len(read_rows(path)) == 8
    assert run(network, ipc=1, real=real, output=path) == first  # seconds included: nothing was trained
    assert path.read_bytes() == whole

    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:57])  # killed while it wrote the fourth row
    rows: list[Row] = []
    again = run(network, ipc=1, real=real, output=path, on_row=rows.append)
    assert [s.accuracies for s in again] == [s.accuracies for s in first]
    assert path.read_bytes().startswith(b"".join(lines[:3]))
    assert [row.key for row in read_rows(path)] == [row.key for row in rows]

    more = run(network, ipc=1, real=real, output=path, seeds=3)
    assert of(more, "generator").accuracies[:2] == of(first, "generator").accuracies
    assert path.read_bytes().count(b"\n") == 12


def test_rows_are_those_of_what_was_asked_for(network: Generator, real: RealData, tmp_path: Path) -> None:
    """Whatever changes the result changes the key."""
    path = tmp_path / "scores.jsonl"

    def count(generator: Generator = network, data: RealData = real, **arguments: Any) -> int:
        run(generator, **({"ipc": 1, "seeds": 1, "real": data, "output": path, "baselines": ()} | arguments))
        return len(read_rows(path))

    assert count() == 1
    assert count() == 1
    other = make_network(image_shape=(1, 8, 8), seed=1)
    other.recipe = FEW
    assert count(other) == 2
    assert count(students="convnet1-w4") == 3
    assert count(draws="fixed") == 4
    assert count(epochs=7) == 5
    assert count(recipe=Recipe(legs=(dataclasses.replace(FEW.legs[0], lr=0.02),))) == 6
    assert count(data=dataclasses.replace(real, test=real.test.select(torch.arange(100)))) == 7
    assert count(seeds=[5]) == 8
    assert count(ipc=2) == 9


def test_a_recipe_beside_a_protocol_is_refused(network: Generator, real: RealData) -> None:
    """Rows would be called by a protocol that nobody followed."""
    with pytest.raises(ArgumentError, match="'dim-paper', which has a recipe of its own"):
        run(network, ipc=1, real=real, recipe=FEW, protocol="dim-paper")


def test_keys_of_rows_stay_what_they_are() -> None:
    """Rows that users have, and those that are shipped, are found by them: a change of keys loses hours of training."""
    images = torch.zeros(20, 1, 4, 4, dtype=torch.uint8)
    images[10:] = 255
    labels = torch.arange(20) % 2
    data = RealData(
        name="squares",
        train=Split(images, labels),
        test=Split(images[5:15], labels[5:15]),
        classes=("a", "b"),
        mean=(0.5,),
        std=(0.5,),
    )
    table = table_generator(images[8:12].float() / 255, classes=data.classes, mean=(0.5,), std=(0.5,), recipe=FEW)
    cells = plan(
        table,
        ipc=(1, 2),
        students=(STUDENT,),
        draws="fixed",
        seeds=1,
        recipe=None,
        epochs=None,
        protocol=protocol("dimdata"),
        baselines=("random", "all"),
    )
    one = _Run(table, data, {STUDENT: STUDENT}, "dimdata", CPU, "")
    assert {f"{cell.what} {cell.ipc}": one.key(cell) for cell in cells} == {
        "generator 1": "11d3d4f4e719d9e52853d84f7a03d03a",
        "generator 2": "7aa63e186638948dcc79da71add73425",
        "random 1": "4b7e9f2b0b4d71ab353dfcc01ecdbbfd",
        "random 2": "5b1fbd22dff96146778a26ff7aef7389",
        "all 1": "5fb3d5e2a51466c8d8f37c7bfe4fd69a",
        "all 2": "e6fdb09dd9ca84c55a1cbd98c5ed9969",
    }


@pytest.mark.parametrize("name", ["dim-mnist", "dim-fashion-mnist", "dim-cifar10"])
def test_ceilings_of_bundled_generators_are_shipped(name: str) -> None:
    """As rows of their recipe, so that nobody waits for hours."""
    made = artifact.load(name)
    shipped = {(row.dataset, row.what, row.student, row.ipc, row.budget) for row in read_rows(SHIPPED)}
    cells = plan(
        made,
        ipc=(1, 10),
        students=("convnet3",),
        draws="fresh",
        seeds=1,
        recipe=None,
        epochs=None,
        protocol=protocol("dimdata"),
        baselines=("distinct",),
    )
    ceilings = [cell for cell in cells if cell.what == "distinct"]
    assert len(ceilings) == 2
    for cell in ceilings:
        budget = _Run.budget(SimpleNamespace(generator=made), cell)
        assert (made.spec.dataset, "distinct", "convnet3", cell.ipc, budget) in shipped


def test_rows_are_of_the_generator_that_was_asked_for(network: Generator, real: RealData, tmp_path: Path) -> None:
    """A copy takes up the rows of the original, and goes by its own name."""
    path = tmp_path / "scores.jsonl"
    for name in ("original", "copy"):
        folder = artifact.save(network, tmp_path / name)
        for score in run(folder, ipc=1, seeds=1, real=real, baselines=["random"], output=path):
            assert score.name == (str(folder) if score.what == "generator" else "digits")
    assert len(read_rows(path)) == 2


def test_rows_are_called_by_what_was_asked_for(network: Generator, real: RealData, tmp_path: Path) -> None:
    """The same images under another name, such as a folder that was moved, and the same recipe by another protocol."""
    path = tmp_path / "scores.jsonl"
    run(network, ipc=1, seeds=1, real=real, baselines=["random"], output=path)
    moved = dataclasses.replace(real, name="moved")
    scores = run(network, ipc=1, seeds=2, real=moved, baselines=["random"], output=path)
    assert len(read_rows(path)) == 4
    generator, random = of(scores, "generator"), of(scores, "random")
    assert generator.seeds == random.seeds == (0, 1)
    assert (generator.dataset, random.dataset, random.name) == ("moved", "moved", "moved")
    assert generator.test == "moved test (500)"
    assert set(generator.baselines) == {"random"}
    same = {"recipe": FEW, "baselines": (), "ipc": 1, "seeds": 1, "real": real, "students": STUDENT, "engine": CPU}
    (score,) = prepare(network, **same, protocol="dim-paper").run(path)
    assert score.protocol == "dim-paper"
    assert len(read_rows(path)) == 4


def test_baselines_are_shared_by_generators_of_one_recipe(network: Generator, real: RealData, tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    run(network, ipc=1, seeds=1, real=real, output=path)
    other = make_network(image_shape=(1, 8, 8), seed=1)
    other.recipe = FEW
    scores = run(other, ipc=1, seeds=1, real=real, output=path)
    assert path.read_bytes().count(b"\n") == 4 + 1
    assert set(of(scores, "generator").baselines) == {"random", "distinct", "all"}


def test_the_hold_out_serves_where_no_real_data_is_given(network: Generator, real: RealData, tmp_path: Path) -> None:
    assert real.test is not None
    held = {"images": real.test.images[:60], "labels": real.test.labels[:60]}
    folder = artifact.save(network, tmp_path / "generator", holdout=held)
    (score,) = run(folder, ipc=1, seeds=1)
    assert score.test == "hold-out (60)"
    assert score.baselines == {}
    assert run(artifact.load(folder), ipc=1, seeds=1)[0].mean == score.mean
    bare = artifact.save(network, tmp_path / "bare")
    with pytest.raises(DataError, match="without test images"):
        run(bare, ipc=1)
    with pytest.raises(DataError, match="without test images"):
        run(network, ipc=1)


def test_seeds_by_ipc(network: Generator, real: RealData) -> None:
    scores = run(network, ipc=(2, 1), seeds={1: [4, 7], 2: 1}, real=real, baselines=(), epochs=1)
    assert [(s.ipc, s.seeds) for s in scores] == [(1, (4, 7)), (2, (0,))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ipc": 0}, "ipc is 0"),
        ({"ipc": -1}, "ipc is -1"),
        ({"ipc": 1.5}, "ipc"),
        ({"ipc": ()}, "No ipc"),
        ({"ipc": True}, "ipc is True"),
        ({"draws": "frosh"}, "no draw"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": []}, "seeds"),
        ({"seeds": "3"}, "seeds is '3'"),
        ({"seeds": 2.5}, "seeds is 2.5"),
        ({"seeds": True}, "seeds is True"),
        ({"seeds": ["0"]}, "whole numbers"),
        ({"seeds": {1: "3"}}, "seeds is '3'"),
        ({"draws": ()}, "No draw is given"),
        ({"draws": []}, "No draw is given"),
        ({"students": 5}, "student is 5"),
        ({"students": ()}, "No student"),
        ({"students": ["mlp", None]}, "student is None"),
        ({"students": nn.Linear(64, 10)}, "student is a network"),
        ({"students": [nn.Linear(64, 10)]}, "student is a network"),
        ({"students": lambda shape, classes: 1 / 0}, "<lambda> cannot make .*ZeroDivisionError"),
        ({"students": lambda shape: None}, "<lambda> cannot make .*TypeError"),
        ({"real": None, "baselines": ["randon"]}, "no baseline"),
        ({"baselines": ["randon"]}, "no baseline"),
        ({"epochs": 0}, "epochs is 0"),
        ({"students": "convnett3"}, "convnett3"),
        ({"protocol": "dim-papers"}, "Did you mean dim-paper"),
    ],
)
def test_bad_arguments_are_refused_before_training(
    network: Generator, real: RealData, arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ArgumentError, NotFoundError), match=message) as caught:
        run(network, **({"ipc": 1, "real": real, "output": tmp_path / "x"} | arguments))
    assert isinstance(caught.value, DimdataError)
    assert not (tmp_path / "x").exists()


def test_a_lambda_is_a_factory(network: Generator, real: RealData) -> None:
    (score,) = run(
        network,
        ipc=1,
        seeds=1,
        epochs=1,
        real=real,
        baselines=(),
        students=lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(64, classes)),
    )
    assert score.student.endswith("<lambda>")
    assert score.parameters == 65 * 10


def test_a_student_that_diverges_does_not_pass_unnoticed(
    network: Generator, real: RealData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wild = Recipe(legs=(Leg(epochs=20, batch_size=16, lr=1e30, momentum=0.0),))
    rows: list[Row] = []
    path = tmp_path / "rows.jsonl"
    arguments: dict[str, Any] = {"ipc": 2, "seeds": 1, "real": real, "baselines": (), "output": path}
    (score,) = run(network, recipe=wild, students="mlp", on_row=rows.append, **arguments)
    (warning,) = (record.getMessage() for record in caplog.records if record.name == "dimdata")
    assert warning.startswith("mlp diverged: the loss of its last step, of 40, is ")
    assert rows[0].diverged
    assert score.diverged == score.failed == (0,)
    assert json.loads(path.read_text())["loss"] is None
    caplog.clear()
    run(network, on_row=rows.append, **arguments)
    assert not caplog.records
    assert rows[1].loss is not None
    assert 0 < rows[1].loss < 100


def test_a_part_of_stored_stages_is_no_budget(real: RealData) -> None:
    """At 2 of 3 x 2 images per class all legs would be of the first stage."""
    leg = Recipe(legs=(Leg(epochs=3, batch_size=20),))
    parts = [distinct_real(real, 20, seed, leg) for seed in range(3)]
    staged = TableGenerator.joined(parts, walk([leg] * 3, [20] * 3), "pdd")
    for ipc in (2, 3, 5, (2, 6)):
        with pytest.raises(ArgumentError, match="3 stages") as caught:
            run(staged, ipc=ipc, real=real, baselines=())
        assert "Use stage=k, a prefix of the stages" in caught.value.hint
    rows: list[Row] = []
    run(staged, ipc=6, seeds=1, real=real, baselines=(), on_row=rows.append)
    run(staged, stage=2, ipc=4, seeds=1, real=real, baselines=(), on_row=rows.append)
    run(staged, ipc=2, seeds=1, real=real, baselines=(), recipe=leg, on_row=rows.append)  # walks no stages
    assert [len(row.stages) for row in rows] == [3, 2, 0]


def test_learned_step_sizes_belong_to_the_whole_training(stored: TableGenerator, real: RealData) -> None:
    stored.recipe = Recipe(
        legs=(Leg(epochs=2, batch_size=20, shuffle=False, step_sizes="rates"),),
        start=Start(law="xavier"),
        tensors=("rates",),
    )
    stored.recipe_tensors = {"rates": torch.full((4,), 0.01)}
    assert run(stored, seeds=1, real=real, baselines=())[0].steps == 4
    for changed in ({"ipc": 1}, {"epochs": 1}):
        with pytest.raises(DimdataError, match="4 learned step sizes") as caught:
            run(stored, seeds=1, real=real, baselines=(), **changed)
        assert "leave out ipc and epochs" in caught.value.hint


def test_data_that_does_not_fit_is_refused(network: Generator, stored: TableGenerator, real: RealData) -> None:
    wide = make_network(image_shape=(1, 16, 16))
    with pytest.raises(DataError, match="have the shape"):
        run(wide, ipc=1, real=real)
    two = RealData.from_arrays(
        real.train.images[:4], [0, 1, 0, 1], test_images=real.train.images[:2], test_labels=[0, 1], name="two"
    )
    with pytest.raises(DataError, match="two has 2 classes"):
        run(network, ipc=1, real=two)
    with pytest.raises(DataError, match="no test images"):
        run(network, ipc=1, real=dataclasses.replace(real, test=None))
    with pytest.raises(ArgumentError, match="40 are stored"):
        run(stored, ipc=5, real=real)


def test_epochs_are_shared_among_legs() -> None:
    def total(*epochs: int, to: int) -> list[int | None]:
        legs = tuple(Leg(epochs=n, batch_size=1) for n in epochs)
        return [leg.epochs for leg in with_epochs(Recipe(legs=legs), to).legs]

    assert total(1000, to=30) == [30]
    assert total(100, 300, to=8) == [2, 6]
    assert total(1, 1000, 1, to=3) == [1, 1, 1]
    assert sum(n or 0 for n in total(3, 5, 7, to=100)) == 100
    with pytest.raises(ArgumentError, match="2 legs"):
        total(5, 5, to=1)
    with pytest.raises(ArgumentError, match="counts steps"):
        with_epochs(Recipe(legs=(Leg(steps=5, batch_size=1),)), 3)


@pytest.mark.parametrize(("images", "batch"), [(10, 64), (100, 64), (500, 64), (103, 64), (100, 10), (7, 3)])
def test_baselines_have_the_steps_and_images_of_the_generator(images: int, batch: int) -> None:
    recipe = Recipe(legs=(Leg(epochs=1000, batch_size=batch),))
    cell = Cell("distinct", "convnet3", None, images, (images,), "fresh", 0, recipe)
    (leg,) = in_steps(cell).legs
    assert leg.steps == 1000 * -(-images // batch)
    assert leg.epochs is None
    assert leg.batch_size <= batch
    assert real_images(cell, 10**9) == 1000 * images
    assert abs(leg.steps * leg.batch_size - 1000 * images) < leg.steps  # up to rounding a batch to whole images
    assert real_images(cell, 60_000) == min(60_000, 1000 * images)
    assert real_images(dataclasses.replace(cell, what="random"), 60_000) == images
    assert real_images(dataclasses.replace(cell, what="all"), 60_000) == 60_000


def test_real_images_of_unequal_classes_are_mixed_though_the_recipe_does_not_shuffle(
    network: Generator, real: RealData
) -> None:
    """They lie slot by slot: unshuffled, the last batches of a pass would be of the largest class alone."""
    network.recipe = Recipe(legs=(Leg(epochs=2, batch_size=16, shuffle=False),))

    def part(rows: torch.Tensor) -> RealData:
        train = real.train
        return dataclasses.replace(real, train=Split(train.images[rows], train.labels[rows], train.num_classes))

    rare = torch.cat([torch.where(real.train.labels == k)[0][: 40 if k else 3] for k in range(10)])
    equal = torch.cat([torch.where(real.train.labels == k)[0][:40] for k in range(10)])

    def mixed(rows: torch.Tensor, what: str, ipc: int = 20, shuffle: bool = False) -> tuple[bool, str]:
        of_leg = Recipe(legs=(dataclasses.replace(network.recipe.legs[0], shuffle=shuffle),))
        made = prepare(network, ipc=ipc, students=STUDENT, real=part(rows), recipe=of_leg, baselines=[what], engine=CPU)
        (cell,) = (cell for cell in made._cells if cell.what == what and cell.seed == 0)
        return made._run._material(cell)[2].legs[0].shuffle, made._run.key(cell)

    for what in ("random", "distinct", "all"):
        assert mixed(rare, what)[0]
        assert not mixed(rare, what, ipc=1)[0], "20 images are two of each class"
        assert not mixed(equal, what)[0]
        assert mixed(equal, what, shuffle=True)[0]
    shuffled, key = mixed(rare, "all")
    few = mixed(rare, "all", ipc=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "_mixed", lambda *_: False)  # as it was before
        plain, old = mixed(rare, "all")
        assert mixed(rare, "all", ipc=1) == few
    assert (shuffled, plain) == (True, False)
    assert key != old, "a row that was trained otherwise is not taken up"
    scores = run(network, ipc=20, seeds=1, real=part(rare), baselines=["all"])
    assert of(scores, "all").steps == of(scores, "generator").steps


def in_stages(real: RealData, legs: tuple[Leg, ...], stages: tuple[int, ...]) -> Generator:
    """Real images in stages, which students walk by these legs."""
    rows = sum(stages)
    return table_generator(
        real.train.images[:rows],
        labels=real.train.labels[:rows],
        classes=real.classes,
        mean=real.mean,
        std=real.std,
        recipe=Recipe(legs=legs),
        stages=stages,
    )


def test_baselines_of_a_staged_recipe_need_no_stages(real: RealData) -> None:
    legs = (Leg(stage=1, epochs=2, batch_size=10), Leg(stage=2, epochs=3, batch_size=10))
    staged = in_stages(real, legs, (10, 20))
    cells = plan(
        staged,
        ipc=None,
        students=[STUDENT],
        draws="fresh",
        seeds=1,
        recipe=None,
        epochs=None,
        protocol=protocol("dimdata"),
        baselines=["random"],
    )
    assert cells[0].leg_images == (10, 30)
    assert [(leg.stage, leg.steps) for leg in in_steps(cells[1]).legs] == [(None, 2), (None, 9)]
    scores = run(staged, seeds=1, real=real, baselines=["random"])
    assert of(scores, "generator").steps == of(scores, "random").steps == 11


def test_baselines_of_stages_see_as_many_images_where_batches_do_not_divide_them(real: RealData) -> None:
    """Legs of 10, 20 and 30 images in batches of 10, 20 and 15: the second would be 20 and 10 of the 30 random ones."""
    legs = tuple(Leg(stage=stage, steps=6, batch_size=20) for stage in (1, 2, 3))
    staged = in_stages(real, legs, (10, 10, 10))
    scores = run(staged, seeds=1, real=real, baselines=["random", "all"])
    generator, random, everything = (of(scores, what) for what in ("generator", "random", "all"))
    assert generator.images_seen == random.images_seen == everything.images_seen == 6 * 10 + 6 * 20 + 6 * 15
    assert generator.steps == random.steps == 18
    assert random.distinct == 30
    assert everything.distinct == 270, "legs go on where the one before ended"


def test_the_paper_protocol_is_that_of_the_published_code(network: Generator, real: RealData) -> None:
    rule = protocol("dim-paper").recipe
    for ipc, batch, shuffle in ((1, 10, False), (10, 10, False), (50, 64, True)):
        (leg,) = rule(FEW, ipc, 10).legs
        assert (leg.epochs, leg.batch_size, leg.shuffle) == (1000, batch, shuffle)
        assert (leg.optimizer, leg.lr, leg.schedule, leg.momentum, leg.weight_decay) == (
            "sgd",
            0.01,
            "constant",
            0.9,
            5e-4,
        )
        assert leg.augment == "color+crop"
    score = of(run(network, ipc=2, seeds=1, real=real, protocol="dim-paper", epochs=3), "generator")
    assert score.protocol == "dim-paper"
    assert (score.steps, score.images_seen) == (6, 60)


def test_distances_are_those_to_the_nearest() -> None:
    pool = torch.randint(0, 256, (300, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    queries = torch.rand(20, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    queries[3] = pool[299].float() / 255
    found = distances(queries, pool)
    expected = torch.cdist(queries.flatten(1).double(), pool.flatten(1).double() / 255).min(1).values / 6
    assert torch.allclose(found.double(), expected, atol=1e-6)
    assert found[3] == 0


def test_a_generator_of_training_images_does_not_pass_unnoticed(real: RealData, network: Generator) -> None:
    assert isinstance(real.test, Split)
    copy = nearest_check(distinct_real(real, 200, 0, FEW), real.train.images, real.test.images)
    assert (copy.draws, copy.held_out, copy.train) == (200, 500, 1297)
    assert copy.generated == (0.0, 0.0, 0.0)
    assert copy.closer == 200
    assert 0 < copy.real[0] <= copy.real[1] < copy.real[2]
    new = nearest_check(network, real.train.images, real.test.images, count=300)
    assert new.draws == 300
    assert new.generated[0] > 0
    assert new.closer == 0
    same = nearest_check(distinct_real(real, 500, 1, FEW), real.test.images, real.test.images)
    assert same.real == (0.0, 0.0, 0.0)


def test_the_nearest_check_refuses_other_shapes(network: Generator, real: RealData) -> None:
    with pytest.raises(DataError, match="training images have the shape"):
        nearest_check(network, torch.zeros(5, 3, 8, 8, dtype=torch.uint8), real.train.images)
    with pytest.raises(DataError, match="held-out"):
        nearest_check(network, real.train.images, real.train.images[:0])
    with pytest.raises(ArgumentError, match="count is 0"):
        nearest_check(network, real.train.images, real.train.images, count=0)
