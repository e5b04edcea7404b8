"""How good is a generator? Students are trained on it and on real images, and scored on real test images."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dimdata import artifact
from dimdata.cells import (
    BASELINES,
    SEEDS,
    Cell,
    Seeds,
    check_baselines,
    images_shown,
    in_steps,
    plan,
    real_images,
    whole_batches,
)
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, DataError
from dimdata.generators.base import Generator
from dimdata.protocols import protocol as find_protocol
from dimdata.real import RealData, Split, distinct_real, load_real, require_classes
from dimdata.recipe import Recipe
from dimdata.scores import Results, Row, Score, aggregate, digest
from dimdata.students import Factory, find_student
from dimdata.students.own import identity, student_name
from dimdata.students.train import accuracy, train
from dimdata.whitening import Whitening


def evaluate(
    source: str | Path | Generator,
    *,
    ipc: int | Sequence[int] | None = None,
    stage: int | None = None,
    students: str | Factory | Sequence[str | Factory] | None = None,
    draws: str | Sequence[str] = ("fresh",),
    seeds: Seeds | Mapping[int, Seeds] = SEEDS,
    real: str | Path | RealData | None = None,
    recipe: Recipe | None = None,
    epochs: int | None = None,
    protocol: str = "dimdata",
    baselines: Sequence[str] = BASELINES,
    engine: Engine | str | torch.device | None = None,
    output: str | Path | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> list[Score]:
    """Train students on a generator, and on real images at the same budget, and score them on real test images.

    Scores are those of the last epoch, in `eval()` mode. Every finished student is a row of `output` at once; a call
    with the same file goes on where an earlier one ended.

    Args:
        source: A generator, or its name, folder or Hub repo.
        ipc: Images per class, one or more; 1, 10 and 50 unless given (those that are no fewer than its stages), or all
            there are where they are stored.
        stage: Evaluate this prefix of the stages, as a generator by itself, which takes as many steps as the recipe's
            legs up to there.
        students: Names of students, or factories of one's own; rows call these `package.module:factory`. The student
            that the recipe was made for unless given, or convnet3.
        draws: `fresh`, `fixed`, or both. Stored images are the same at every epoch, so their draw is always fixed.
        seeds: How many (3 means seeds 0, 1, 2), or which; or either by images per class, as in {50: 1}, with 3
            elsewhere.
        real: The real dataset, or what `load_real` reads. Without, the test images are the generator's hold-out, and
            there are no baselines.
        recipe: Followed instead of the generator's own; not with `dim-paper`, which has one.
        epochs: Passes over the draw instead of the recipe's. A fresh draw of other than 1,000 epochs is reported by
            its number of images, not as so many images per class.
        protocol: `dimdata` or `dim-paper`; see `dimdata.protocols`.
        baselines: Of real images, at the same student, recipe and steps: `random` (the same number an epoch,
            throughout), `distinct` (the same number of distinct ones as a fresh draw shows: the practical ceiling),
            `all` there are.
        engine: Where to compute: an engine, or a device such as `cpu` or `cuda:1`; the best there is unless given.
        output: A file of JSON lines.
        on_row: Called with each row, old or new, as it is known.

    Returns:
        One score for each (student, budget, draw), and one for each baseline.

    Raises:
        ArgumentError: If an argument is out of range, the recipe counts steps and `epochs` is given, or `ipc` is a
            part of stored stages that the recipe walks.
        NotFoundError: If a generator, student, protocol or dataset is unknown.
        DataError: If the real data does not fit the generator, or there are no test images.
    """
    find_protocol(protocol)
    if recipe is not None and protocol != "dimdata":
        raise ArgumentError(
            f"A recipe was given, and the protocol {protocol!r:.80}, which has a recipe of its own.",
            "Give one of them.",
        )
    ready = prepare(
        source,
        ipc=ipc,
        stage=stage,
        students=students,
        draws=draws,
        seeds=seeds,
        real=real,
        recipe=recipe,
        epochs=epochs,
        protocol=protocol,
        baselines=baselines,
        engine=engine,
    )
    return ready.run(output, on_row)


def prepare(
    source: str | Path | Generator,
    *,
    ipc: int | Sequence[int] | None = None,
    stage: int | None = None,
    students: str | Factory | Sequence[str | Factory] | None = None,
    draws: str | Sequence[str] = ("fresh",),
    seeds: Seeds | Mapping[int, Seeds] = SEEDS,
    real: str | Path | RealData | None = None,
    recipe: Recipe | None = None,
    epochs: int | None = None,
    protocol: str = "dimdata",
    baselines: Sequence[str] = BASELINES,
    engine: Engine | str | torch.device | None = None,
) -> Evaluation:
    """Return an evaluation that is ready to run: what can be refused has been.

    Arguments and errors: see `evaluate`. Here a recipe may be given beside a protocol, as whose rows are then labelled:
    the protocol's own, or a shorter one that a caller answers for.
    """
    whole = source if isinstance(source, Generator) else artifact.load(source)
    generator = whole.view(stage=stage)
    if stage is not None and recipe is not None:
        recipe = recipe.upto(stage)
    students = (recipe or generator.recipe).student if students is None else students
    chosen = _students(students)
    rule = find_protocol(protocol)
    check_baselines(baselines)
    cells = plan(
        generator,
        ipc=ipc,
        students=tuple(chosen),
        draws=draws,
        seeds=seeds,
        recipe=recipe,
        epochs=epochs,
        protocol=rule,
        baselines=() if real is None else baselines,
    )
    real = None if real is None else load_real(real)  # after all that can be refused without it
    prefix = f" (stage{'s 1-' if stage > 1 else ' '}{stage})" if stage is not None and stage < whole.stages else ""
    return Evaluation(tuple(cells), _Run(generator, real, chosen, protocol, Engine.given(engine), prefix))


@dataclass(frozen=True)
class Evaluation:
    """Students that are to be trained and scored; made by `prepare`."""

    _cells: tuple[Cell, ...]
    _run: _Run

    def run(self, output: str | Path | None = None, on_row: Callable[[Row], None] | None = None) -> list[Score]:
        """Train and score them; see `evaluate`."""
        results = Results(output)
        rows = {}
        for cell in self._cells:
            row = self._run.row(cell, results)
            rows[row.key] = row
            if on_row is not None:
                on_row(row)
        return aggregate(rows.values())


def _students(students: str | Factory | Sequence[str | Factory]) -> dict[str, str | Factory]:
    """Return students by name."""
    listed: list[str | Factory]
    if isinstance(students, str) or callable(students) or not isinstance(students, Iterable):
        listed = [students]
    else:
        listed = list(students)
    if not listed:
        raise ArgumentError("No student is given.", "Name one or more, such as convnet3.")
    chosen: dict[str, str | Factory] = {}
    for student in listed:
        find_student(student)
        name = student_name(student)
        if chosen.setdefault(name, student) is not student and not isinstance(student, str):
            raise ArgumentError(f"Two students are called {name}.", "Give each a function or class of its own.")
    return chosen


class _Run:
    """What the cells of one evaluation share."""

    def __init__(
        self,
        generator: Generator,
        real: RealData | None,
        students: Mapping[str, str | Factory],
        protocol: str,
        engine: Engine,
        prefix: str,
    ) -> None:
        self.generator = generator
        self.name = (generator.name or generator.spec.method) + prefix
        self.students = students
        shape, classes = generator.spec.image_shape, generator.spec.num_classes
        self.identities = {name: identity(student, shape, classes) for name, student in students.items()}
        self.real = real
        self.there = 0 if real is None else len(real.train)
        self.protocol = protocol
        self.dataset = generator.spec.dataset if real is None else real.name
        self.engine = engine
        self.test, self.test_text = _test(generator, real)
        self.fingerprint = fingerprint(generator)
        plain = getattr(generator, "plain", generator)
        self.plain = self.fingerprint if plain is generator else fingerprint(plain)
        self.test_fingerprint = _tensor_digest(self.test.images, self.test.labels)

    def row(self, cell: Cell, results: Results) -> Row:
        """Return the row of a cell, computed if it is not there yet."""
        key = self.key(cell)
        row = results.find(key)
        if row is None:
            row = self._same_as_distinct(cell, key, results) or self.compute(cell, key)
            results.add(row)
        # The file may know the same images by another name, or be from before rows said whose levers they are.
        own = cell.what == "generator"
        row = dataclasses.replace(
            row,
            name=self.name if own else self.dataset,
            plain=self.plain if own else row.plain,
            dataset=self.dataset,
            test=self.test_text,
            protocol=self.protocol,
        )
        if row.stages and not row.stage_steps:  # of a file that was written before rows said so
            row = dataclasses.replace(row, **self._on_the_way(cell))
        return row

    def source(self, cell: Cell) -> str:
        """Return the digest of what the student of a cell is trained on."""
        if cell.what == "generator":
            return self.fingerprint
        assert self.real is not None
        return fingerprint_of_real(self.real)

    def budget(self, cell: Cell) -> str:
        """Return the digest of the images of an epoch and the recipe with its tensors."""
        tensors = {name: _tensor_digest(tensor) for name, tensor in self.generator.recipe_tensors.items()}
        used = {name: tensors.get(name) for name in cell.recipe.tensors}
        return digest([cell.images, cell.leg_images, cell.recipe.to_json(), used])

    def key(self, cell: Cell) -> str:
        """Return the digest of all that determines a row, but for the machine."""
        trained_on = [cell.what, self.source(cell), cell.draw, self.budget(cell)]
        if whole_batches(cell):
            trained_on.append("whole batches, from leg to leg")
        if self._mixed(cell):
            trained_on.append("shuffled")
        return digest([*trained_on, self.identities[cell.student], cell.seed, self.test_fingerprint])

    def _mixed(self, cell: Cell) -> bool:
        """Whether a baseline is shuffled though its recipe does not shuffle.

        Real images lie slot by slot with one of each class, as long as there is one. Behind these are those of the
        larger classes alone, and a student that meets them last forgets the others.
        """
        legs = cell.recipe.legs
        if cell.what == "generator" or self.real is None or len(legs) > 1 or legs[0].shuffle:
            return False
        least = int(torch.bincount(self.real.train.labels, minlength=self.real.num_classes).min())
        return min(images_shown(cell), real_images(cell, self.there)) > least * self.real.num_classes

    def _same_as_distinct(self, cell: Cell, key: str, results: Results) -> Row | None:
        """Return the row of the `distinct` baseline for `all`, where that already took all real images."""
        twin = dataclasses.replace(cell, what="distinct", draw="fresh")
        if cell.what != "all" or real_images(twin, self.there) < self.there:
            return None
        row = results.find(self.key(twin))
        return None if row is None else dataclasses.replace(row, key=key, what="all", draw=cell.draw)

    def compute(self, cell: Cell, key: str) -> Row:
        """Train and score the student of a cell."""
        generator, ipc, recipe = self._material(cell)
        spec = generator.spec
        whitening = Whitening.of(recipe, generator.recipe_tensors)
        stages: list[float] = []

        def right(network: nn.Module) -> float:
            test = (self.test.images, self.test.labels, spec.mean, spec.std)
            share = accuracy(network, *test, self.engine, whitening=whitening)
            return round(100 * share, 2)

        def on_leg(number: int, network: nn.Module) -> None:
            if recipe.legs[number - 1].stage is not None:
                stages.append(right(network))

        result = train(
            self.students[cell.student],
            generator,
            ipc=ipc,
            recipe=recipe,
            seed=cell.seed,
            draw=cell.draw,
            engine=self.engine,
            on_leg=on_leg,
            whole_batches=whole_batches(cell),
        )
        counted = [leg.epochs for leg in recipe.legs if leg.epochs is not None]
        return Row(
            key=key,
            what=cell.what,
            name=self.name if cell.what == "generator" else self.dataset,
            source=self.source(cell),
            dataset=self.dataset,
            test=self.test_text,
            student=cell.student,
            ipc=cell.ipc,
            images=cell.images,
            draw=cell.draw,
            protocol=self.protocol,
            recipe=recipe.describe(),
            budget=self.budget(cell),
            epochs=sum(counted) if len(counted) == len(recipe.legs) else None,
            seed=cell.seed,
            accuracy=stages[-1] if recipe.legs[-1].stage is not None else right(result.network),
            steps=result.steps,
            images_seen=result.images_drawn,
            distinct=result.distinct_images,
            stored_bytes=generator.nbytes,
            seconds=round(result.seconds, 2),
            levers=generator.levers,
            candidates=generator.candidates,
            plain=self.plain if cell.what == "generator" else "",
            parameters=sum(tensor.numel() for tensor in result.network.parameters()),
            loss=result.loss if math.isfinite(result.loss) else None,
            diverged=result.diverged,
            stages=tuple(stages),
            **(self._on_the_way(cell) if stages else {}),
            engine=self.engine.describe(),
        )

    def _on_the_way(self, cell: Cell) -> dict[str, Any]:
        """Return the steps up to each stage, and the bytes of the stages so far."""
        steps = list(itertools.accumulate(leg.steps or 0 for leg in in_steps(cell).legs))
        ends = [(at, leg.stage) for at, leg in zip(steps, cell.recipe.legs, strict=True) if leg.stage is not None]
        return {
            "stage_steps": tuple(at for at, _ in ends),
            "stage_bytes": tuple(self.generator.view(stage=stage).nbytes for _, stage in ends),
        }

    def _material(self, cell: Cell) -> tuple[Generator, int | None, Recipe]:
        """Return what the student of a cell is trained on, its images per class (none = all), and the recipe."""
        if cell.what == "generator":
            return self.generator, cell.ipc, cell.recipe
        assert self.real is not None
        recipe = in_steps(cell, self._mixed(cell))
        table = distinct_real(self.real, real_images(cell, self.there), cell.seed, recipe)
        table.recipe_tensors = {name: self.generator.recipe_tensors[name] for name in recipe.tensors}
        return table, None, recipe


def _test(generator: Generator, real: RealData | None) -> tuple[Split, str]:
    """Return the test images and what rows call them."""
    spec = generator.spec
    hint = f"Evaluate it on {spec.dataset or 'the dataset it was distilled from'}."
    if real is None:
        test = _holdout(generator)
        return test, f"hold-out ({len(test):,})"
    if real.test is None:
        raise DataError(f"{real.name} has no test images.", "Add some; scores are those of images held out.")
    if real.num_classes != spec.num_classes:
        raise DataError(f"{real.name} has {real.num_classes} classes, the generator {spec.num_classes}.", hint)
    if real.image_shape != spec.image_shape:
        raise DataError(
            f"Images of {real.name} have the shape {real.image_shape}; the generator draws {spec.image_shape}.", hint
        )
    require_classes(spec, real)
    return real.test, f"{real.name} test ({len(real.test):,})"


def _holdout(generator: Generator) -> Split:
    """Return the real test images that came with a generator."""
    found = None if generator.folder is None else artifact.holdout(generator.folder)
    if found is None:
        raise DataError(
            f"{generator.name or 'This generator'} comes without test images.",
            f"Name the real dataset, such as real={generator.spec.dataset or 'mnist'}.",
        )
    return Split(*found, generator.spec.num_classes)


def fingerprint(generator: Generator) -> str:
    """Return the digest by which rows know a generator: of all that determines a draw."""
    tensors = {name: _tensor_digest(tensor) for name, tensor in sorted(generator.stored().items())}
    return digest([generator.spec.to_json(), tensors])


def fingerprint_of_real(real: RealData) -> str:
    """Return the digest by which the rows of baselines know real data."""
    return digest([real.fingerprint, real.mean, real.std])


def _tensor_digest(*tensors: Tensor) -> str:
    found = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()
