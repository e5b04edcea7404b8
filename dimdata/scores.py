"""What an evaluation found: one row a trained student, in JSON lines; one score over the seeds, for people."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dimdata.errors import DimdataError, FormatError
from dimdata.files import world_error
from dimdata.protocols import CLAIM_EPOCHS
from dimdata.spec import Record, canonical_json, require

What = Literal["generator", "random", "distinct", "all"]

_HEAD = b'{"key": "'  # how every line begins
NEAR_GUESSING = 2.0  # points over guessing up to which a student has not learned; at most twice what guessing gives
SHIPPED = Path(__file__).parent / "zoo" / "baselines.jsonl"  # real-image baselines that come with the package


def digest(data: Any) -> str:
    """Return 128 bits of a hash over the canonical JSON of `data`."""
    return hashlib.blake2b(canonical_json(data).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Row(Record):
    """One student, trained and scored.

    Attributes:
        key: Digest of all that determines the row; a row of this key is never computed again.
        what: `generator`, or a baseline of real images: `random` (as many as an epoch has, the same throughout),
            `distinct` (as many as the generator showed altogether: the practical ceiling), `all` there are.
        name: The generator, or the dataset of a baseline.
        source: Digest of the generator, or of the real data.
        dataset: The real dataset.
        test: The test images and their number.
        student: Name of the student.
        ipc: Images per class and epoch; none where classes are unequal.
        images: Images of an epoch of the generator; the budget that a baseline is measured at.
        draw: `fresh` or `fixed`.
        protocol: The protocol.
        recipe: The recipe followed, in one line.
        budget: Digest of the images of an epoch and the generator's recipe; baselines are compared at equal budgets.
        epochs: Passes over the draw; none where the recipe counts steps.
        seed: Of the student, the draw and the choice of real images.
        accuracy: Percent right at the last epoch.
        steps: Optimiser steps.
        images_seen: Images shown to the student, repeats included.
        distinct: Distinct images among them.
        stored_bytes: Bytes of the stored tensors.
        seconds: Wall time of training.
        stages: Percent right after each leg of a recipe that walks the stages of a generator; empty for others.
        stage_steps: Optimiser steps up to the end of each of these legs.
        stage_bytes: Bytes of the stages that each of them trains on.
        levers: What was done to the draw, in words; empty for the plain draw.
        candidates: Images drawn for each one shown; the levers may choose among several.
        plain: Digest of the generator without its levers; empty for baselines, and in rows from before it was kept.
        parameters: Of the student at the dataset's shape; none in rows from before they were counted.
        loss: Of the last step; none where it was no finite number, and in rows from before it was kept.
        diverged: Whether that loss was no finite number.
        engine: Device, precision and versions.
    """

    key: str
    what: What
    name: str
    source: str
    dataset: str
    test: str
    student: str
    ipc: int | None
    images: int
    draw: Literal["fresh", "fixed"]
    protocol: str
    recipe: str
    budget: str
    epochs: int | None
    seed: int
    accuracy: float
    steps: int
    images_seen: int
    distinct: int
    stored_bytes: int
    seconds: float
    levers: str = ""
    candidates: int = 1
    stages: tuple[float, ...] = ()
    stage_steps: tuple[int, ...] = ()
    stage_bytes: tuple[int, ...] = ()
    plain: str = ""
    parameters: int | None = None
    loss: float | None = None
    diverged: bool = False
    engine: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """See `Record.check`."""
        require(0 <= self.accuracy <= 100, f"row.accuracy is {self.accuracy}; it is a percentage.")
        require(self.loss is None or not self.diverged, "row.loss is finite, and row.diverged says that it was not.")

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads; a row from before a loss was kept says nothing of it."""
        unknown = self.loss is None and not self.diverged
        later = {"plain": not self.plain, "parameters": self.parameters is None, "loss": unknown}
        absent = {name for name, value in (later | {"diverged": not self.diverged}).items() if value}
        return {name: value for name, value in super().to_json().items() if name not in absent}

    @property
    def failed(self) -> bool:
        """Whether the student diverged, or is within `NEAR_GUESSING` of what guessing gives."""
        guess = _guess(self)
        return self.diverged or (guess is not None and self.accuracy <= guess + min(NEAR_GUESSING, guess))

    @property
    def ipc_claim(self) -> bool:
        """Whether the figure may be called one of `ipc` images per class."""
        if self.what in ("distinct", "all") or self.ipc is None:
            return False
        if self.draw == "fixed":
            return self.distinct <= self.images  # stages of networks show an index anew in each leg
        return self.images_seen == CLAIM_EPOCHS * self.images

    @property
    def budget_text(self) -> str:
        """The budget in a few words: an IPC claim only where it holds."""
        return _budget_text(self)


@dataclass(frozen=True, kw_only=True)
class Score(Record):
    """Rows that differ by their seed only, taken together; fields not named here are those of `Row`.

    Attributes:
        ipc_claim: Whether this is a figure at `ipc` images per class; otherwise it is one at `images_seen` images.
        mean: Mean accuracy, in percent.
        std: Sample standard deviation; none for one seed.
        seeds: The seeds.
        diverged: Those of them whose student diverged.
        failed: Those of them whose student diverged or did not learn; see `Row.failed`.
        accuracies: The accuracy of each seed.
        seconds: Wall time of training one student, on average.
        stages: Mean accuracy after each stage, where the recipe walks stages.
        baselines: Mean accuracy of each baseline at this budget.
    """

    what: What
    name: str
    dataset: str
    test: str
    student: str
    ipc: int | None
    images: int
    ipc_claim: bool
    draw: Literal["fresh", "fixed"]
    protocol: str
    recipe: str
    epochs: int | None
    mean: float
    std: float | None
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    steps: int
    images_seen: int
    distinct: int
    stored_bytes: int
    seconds: float
    levers: str = ""
    candidates: int = 1
    stages: tuple[float, ...] = ()
    parameters: int | None = None
    diverged: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    baselines: Mapping[str, float] = field(default_factory=dict)

    def check(self) -> None:
        """See `Record.check`."""
        for name, value in self.baselines.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100
            require(number, f"score.baselines.{name} is {value!r:.40}; it is a percentage.")

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads; of failures and parameters only what there is to say."""
        optional = ("parameters", "diverged", "failed")
        return {name: value for name, value in super().to_json().items() if name not in optional or value}

    @property
    def share(self) -> float | None:
        """Percent of the practical ceiling that a fresh draw reaches; none where that was not measured."""
        ceiling = self.baselines.get("distinct")
        if self.what != "generator" or self.draw != "fresh" or not ceiling:
            return None
        return 100 * self.mean / ceiling

    @property
    def budget_text(self) -> str:
        """The budget in a few words: an IPC claim only where it holds."""
        return _budget_text(self)


def _guess(row: Row) -> float | None:
    """Return the accuracy of guessing in percent; none where the number of classes is not known."""
    return None if not row.ipc or not row.images else 100 * row.ipc / row.images


def _budget_text(of: Row | Score) -> str:
    if of.ipc_claim:
        return f"IPC {of.ipc}"
    if of.ipc is None and of.draw == "fixed" and of.what in ("generator", "random"):  # classes have unequal numbers
        return f"{of.images:,} stored images"
    return f"{of.images_seen:,} images"


def aggregate(rows: Iterable[Row]) -> list[Score]:
    """Take rows together over their seeds, in order of appearance; baselines come along with the scores they bound."""
    groups: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in rows:
        group = (row.what, row.source, row.student, row.draw, row.budget, row.test)
        groups.setdefault(group, {})[row.seed] = row
    means = {
        (row.what, row.dataset, row.student, row.budget, row.test): _mean(group)
        for group in groups.values()
        for row in group.values()
        if row.what != "generator"
    }
    return [_score(group, means) for group in groups.values()]


def _mean(group: Mapping[int, Row]) -> float:
    return round(statistics.fmean(row.accuracy for row in group.values()), 2)


def _score(group: Mapping[int, Row], means: Mapping[tuple[Any, ...], float]) -> Score:
    seeds = sorted(group)
    first = group[seeds[0]]
    accuracies = tuple(group[seed].accuracy for seed in seeds)
    baselines = {}
    if first.what == "generator":
        at = (first.dataset, first.student, first.budget, first.test)
        # A fixed draw shows few images, which `random` equals; the ceiling is that of the fresh draw only.
        bounds = ("random", "distinct", "all") if first.draw == "fresh" else ("random", "all")
        baselines = {what: means[what, *at] for what in bounds if (what, *at) in means}
    return Score(
        what=first.what,
        name=first.name,
        dataset=first.dataset,
        test=first.test,
        student=first.student,
        ipc=first.ipc,
        images=first.images,
        ipc_claim=first.ipc_claim,
        draw=first.draw,
        protocol=first.protocol,
        recipe=first.recipe,
        epochs=first.epochs,
        mean=_mean(group),
        std=round(statistics.stdev(accuracies), 2) if len(accuracies) > 1 else None,
        seeds=tuple(seeds),
        accuracies=accuracies,
        steps=first.steps,
        images_seen=first.images_seen,
        distinct=first.distinct,
        stored_bytes=first.stored_bytes,
        seconds=round(statistics.fmean(row.seconds for row in group.values()), 1),
        stages=tuple(
            round(statistics.fmean(each), 2) for each in zip(*(row.stages for row in group.values()), strict=False)
        ),
        levers=first.levers,
        candidates=first.candidates,
        parameters=first.parameters,
        diverged=tuple(seed for seed in seeds if group[seed].diverged),
        failed=tuple(seed for seed in seeds if group[seed].failed),
        baselines=baselines,
    )


class Results:
    """Rows by key, kept in a file of JSON lines as they come.

    A last line that was cut off while it was written does not count, and gives way to the next row. Several programs
    may add to one file; each finds the rows that were there when it began.

    Args:
        path: The file, made if it is absent. None keeps rows in memory.
        shipped: A file of rows to look up before computing, never written to; those of real-image baselines that come
            with the package unless given.

    Raises:
        FormatError: If a line of the file is no row.
        WorldError: If the file cannot be read or written.
    """

    def __init__(self, path: str | Path | None = None, shipped: Path = SHIPPED) -> None:
        self.path = Path(path).expanduser() if path is not None else None
        self.rows: dict[str, Row] = {}
        self.shipped = {row.key: row for row in read_rows(shipped)} if shipped.is_file() else {}
        self._cut_off = (0, b"")  # a fragment at the end, until the first row is added: where it begins, and its bytes
        self._ending = b""  # what a last row lacks that is whole otherwise
        if self.path is not None:
            self._open(self.path)

    def _open(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()  # a place that cannot be written is found now, not after the first student
            content = path.read_bytes()
            end = content.rfind(b"\n") + 1
            if _is_row(content[end:]):
                self._ending = b"\n"
            else:
                self._cut_off = end, content[end:]
        except OSError as error:
            raise world_error(error, f"Writing {path}") from error
        self.rows.update((row.key, row) for row in read_rows(path))

    def find(self, key: str) -> Row | None:
        """Return the row of a key; a shipped one is copied into the file, which then stands by itself."""
        if key not in self.rows and key in self.shipped:
            self.add(self.shipped[key])
        return self.rows.get(key)

    def add(self, row: Row) -> None:
        """Keep a row, in the file at once."""
        if self.path is not None:
            line = self._ending + _line(row)
            try:
                self._remove_fragment(self.path)
                # A buffer for all of it makes one write at the end of the file: lines of several programs never mix.
                with self.path.open("ab", buffering=len(line) + 1) as file:
                    file.write(line)
            except OSError as error:
                raise world_error(error, f"Writing {self.path}") from error
            self._ending = b""
        self.rows[row.key] = row

    def _remove_fragment(self, path: Path) -> None:
        """Remove the fragment that was there at the beginning, unless another program has done so and gone on."""
        start, fragment = self._cut_off
        if fragment:
            with path.open("r+b") as file:
                file.seek(start)
                if file.read() == fragment:
                    file.truncate(start)
        self._cut_off = (0, b"")


def read_rows(path: str | Path) -> list[Row]:
    """Read a file of rows, but for a last line that was cut off.

    Raises:
        FormatError: If a line is no row.
        WorldError: If the file cannot be read.
    """
    path = Path(path).expanduser()
    try:
        *lines, fragment = path.read_bytes().split(b"\n")
    except OSError as error:
        raise world_error(error, f"Reading {path}") from error
    if _is_row(fragment) or not (fragment.startswith(_HEAD) or _HEAD.startswith(fragment)):
        lines.append(fragment)  # whole, or not cut off by us: some other file, to be refused below
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(Row.from_json(json.loads(line), keep_unknown=True))
        except (ValueError, RecursionError) as error:  # a FormatError is a ValueError too
            why = error.message if isinstance(error, DimdataError) else "it is not JSON."
            raise FormatError(
                f"Line {number} of {path} is no row of results: {why}", "Remove the line, or use another file."
            ) from None
    return rows


def _is_row(line: bytes) -> bool:
    """Return whether a line without its end is a whole row."""
    try:
        Row.from_json(json.loads(line), keep_unknown=True)
    except (ValueError, RecursionError):
        return False
    return True


def _line(row: Row) -> bytes:
    rest = {name: value for name, value in row.to_json().items() if name != "key"}
    return (json.dumps({"key": row.key, **rest}, allow_nan=False) + "\n").encode()
