"""Does one generator serve every student? Students as rows, generators as columns; for the terminal and for cards."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from dimdata.report import drawn, markdown_table, percent, remark, size
from dimdata.scores import Score

ImageShape = tuple[int, int, int]

REFERENCE = "convnet3"  # the student that others are compared with
_COUNTED_AT = (3, 32, 32)  # what orders students, whatever they are trained on
_SHAPES = {"mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28), "digits": (1, 8, 8)}  # of datasets that are otherwise


@dataclass(frozen=True)
class Figure:
    """An accuracy in percent.

    Attributes:
        mean: Over seeds.
        std: Sample deviation; none for one seed, or where it is not known.
        remark: What it must not be shown without; see `dimdata.report.remark`.
        parameters: Of the student at the dataset's shape; none where it is not known.
    """

    mean: float
    std: float | None = None
    remark: str = ""
    parameters: int | None = None


@dataclass
class Column:
    """What students reach on one generator at one budget, or on as many distinct real images.

    Attributes:
        title: What heads the column.
        score: One of its scores; all agree in name, dataset, budget, draw, levers, protocol, test images and recipe.
        real: Whether these are the students of the real-image ceiling.
        figures: By the student's name.
        seeds: Seeds of each student; none where they are not known.
        distinct: Distinct images that each student saw; none where it is not known.
    """

    title: str
    score: Score
    real: bool = False
    figures: dict[str, Figure] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    distinct: int | None = None

    @property
    def spread(self) -> float | None:
        """The highest mean less the lowest, in points; none for less than two students."""
        means = [figure.mean for figure in self.figures.values()]
        return round(max(means) - min(means), 2) if len(means) > 1 else None

    @property
    def gain(self) -> tuple[float, str] | None:
        """The best mean among students larger than the reference less the reference's own, in points, and which it is.

        None where there is no such student, or no reference.
        """
        if REFERENCE not in self.figures:
            return None
        sizes = {name: self._parameters(name) for name in self.figures}
        larger = [name for name, count in sizes.items() if (count or 0) > (sizes[REFERENCE] or 0)]
        if not larger:
            return None
        best = max(larger, key=lambda name: self.figures[name].mean)
        return round(self.figures[best].mean - self.figures[REFERENCE].mean, 2), best

    @property
    def unsized(self) -> list[str]:
        """The students of which nobody knows how large they are; the gain leaves them out."""
        return [name for name in self.figures if self._parameters(name) is None]

    def _parameters(self, student: str) -> int | None:
        """Return the parameters of a student at the shape of this column's dataset, as counted when it was trained."""
        counted = self.figures[student].parameters
        return counted or parameters(student, _SHAPES.get(self.score.dataset, _COUNTED_AT))


@functools.cache
def parameters(student: str, image_shape: ImageShape = _COUNTED_AT) -> int | None:
    """Return the parameters of a student for ten classes of images; none where no student is called so."""
    from dimdata.generators.base import shapes_only
    from dimdata.students import find_student

    try:
        with shapes_only():  # no memory: a name may come out of a downloaded generator
            return sum(tensor.numel() for tensor in find_student(student)(image_shape, 10).parameters())
    except Exception:  # not known here, or of a package whose factories do as they like
        return None


def by_size(students: Iterable[str]) -> list[str]:
    """Return students without repetition, the smallest first; those that no name builds come last.

    Counted at one shape for all datasets, so that the order does not change from one to the next.
    """
    return sorted(dict.fromkeys(students), key=lambda name: (parameters(name) or float("inf"), name))


def columns(scores: Iterable[Score], least: int = 1) -> list[Column]:
    """Return a column for each generator, budget, draw with its levers, protocol, test images and recipe, in order.

    Where distinct real images were scored for two students or more, or for the only one there is, a column of these
    follows the generator's.

    Args:
        scores: Of one evaluation or several; those of baselines are passed over, their means come with the others.
        least: Columns of fewer students are left out.
    """
    found: dict[tuple[str, ...], tuple[Column, Column]] = {}
    scores = list(scores)
    for score in scores:
        if score.what != "generator":
            continue
        source = (score.name, score.dataset, score.test)
        key = (*source, score.budget_text, str(score.images), score.draw, score.levers, score.protocol, score.recipe)
        if key not in found:
            own = Column(score.name, score, distinct=score.distinct)
            shown = next((ceiling.distinct for ceiling in _ceilings(score, scores)), None)
            found[key] = own, Column(f"{score.name}: distinct real", score, real=True, distinct=shown)
        own, real = found[key]
        own.figures[score.student] = Figure(score.mean, score.std, remark(score), score.parameters)
        own.seeds[score.student] = len(score.seeds)
        if score.draw == "fresh" and "distinct" in score.baselines:
            real.figures[score.student] = Figure(score.baselines["distinct"], parameters=score.parameters)
            for ceiling in _ceilings(score, scores):
                if ceiling.student == score.student:
                    real.seeds[score.student] = len(ceiling.seeds)
    made: list[Column] = []
    alone = all(len(own.figures) == 1 for own, _ in found.values())
    for own, real in found.values():
        if len(own.figures) >= least:
            made += [own, real] if len(real.figures) > (not alone) else [own]
    return made


def _ceilings(score: Score, scores: Sequence[Score]) -> Iterator[Score]:
    """Return the scores of distinct real images at the budget of a score, of whichever student."""

    def budget(of: Score) -> tuple[object, ...]:
        return of.dataset, of.test, of.protocol, of.images, of.steps

    return (other for other in scores if other.what == "distinct" and budget(other) == budget(score))


def grid(made: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table: the students by size, then what is to be known of each column."""
    students = by_size(name for column in made for name in column.figures)
    rows = [[name, *(_figure(column, name) for column in made)] for name in students]
    facts = {
        "spread": [_points(column.spread) for column in made],
        "best larger over ConvNet-3": [_gain(column) for column in made],
        "budget": [column.score.budget_text for column in made],
        "draw": ["-" if column.real else column.score.draw for column in made],
        "student steps": [f"{column.score.steps:,}" for column in made],
        "distinct images": ["-" if column.distinct is None else f"{column.distinct:,}" for column in made],
        "seeds": [_range(column.seeds.values()) for column in made],
        "stored": ["-" if column.real else size(column.score.stored_bytes) for column in made],
        "test images": [column.score.test for column in made],
    }
    if any(column.score.levers for column in made):
        facts["levers"] = ["-" if column.real else column.score.levers or "-" for column in made]
    if any(column.score.candidates > 1 for column in made):
        facts["drawn"] = ["-" if column.real else f"{drawn(column.score):,}" for column in made]
    if len({column.score.protocol for column in made}) > 1:
        facts["protocol"] = [column.score.protocol for column in made]
    if len(students) == 1:  # which is compared with none other
        del facts["spread"], facts["best larger over ConvNet-3"]
    return ["student", *(column.title for column in made)], rows + [[what, *cells] for what, cells in facts.items()]


def cross_architecture(scores: Iterable[Score], least: int = 2) -> str:
    """Return the table in markdown, of what was scored with `least` students or more; empty where nothing was."""
    made = columns(scores, least)
    return markdown_table(*grid(made)) if made else ""


def cross_notes(scores: Iterable[Score]) -> list[str]:
    """Return what a reader of the table must know beyond `report.notes`, one sentence or two each."""
    made = columns(scores)
    if all(column.spread is None for column in made):
        return []
    notes = ["Students stand in the order of their parameters. Spread: the highest mean less the lowest, in points."]
    if any(parameters(name) is None for column in made for name in column.figures):
        notes[0] = notes[0].replace("parameters.", "parameters on 32x32 colour images, networks of one's own last.")
    if any(column.gain for column in made):
        notes.append(
            "Best larger over ConvNet-3: the best mean of the students with more parameters than ConvNet-3 has, less "
            "its own, in points. Differences within the deviation over seeds mean nothing."
        )
    unsized = dict.fromkeys(name for column in made if REFERENCE in column.figures for name in column.unsized)
    if unsized:
        notes.append(f"How large {', '.join(unsized)} is, is not known: the gain over ConvNet-3 leaves it out.")
    return notes


def _figure(column: Column, student: str) -> str:
    figure = column.figures.get(student)
    return "-" if figure is None else " ".join(filter(None, (percent(figure.mean, figure.std), figure.remark)))


def _points(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _gain(column: Column) -> str:
    return "-" if column.gain is None else f"{column.gain[0]:+.2f} ({column.gain[1]})"


def _range(counts: Iterable[int]) -> str:
    if not (found := list(counts)):
        return "-"
    low, high = min(found), max(found)
    return str(low) if low == high else f"{low} to {high}"
