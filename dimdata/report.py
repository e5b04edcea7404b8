"""Scores for people: a table for the terminal, one in markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dimdata import protocols
from dimdata.scores import NEAR_GUESSING, Score

if TYPE_CHECKING:
    from rich.table import Table

WHAT = {
    "generator": "generator",
    "random": "random real",
    "distinct": "distinct real (ceiling)",
    "all": "all real",
}

Column = tuple[str, Callable[[Score], str]]


def percent(mean: float, std: float | None) -> str:
    """Return an accuracy as tables show it: `97.00 ± 1.00`, without a deviation for one seed."""
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def _accuracy(score: Score) -> str:
    return " ".join(filter(None, (percent(score.mean, score.std), remark(score))))


def remark(score: Score) -> str:
    """Return what an accuracy must not be shown without: how many of its students failed; empty where none did."""
    diverged, guessing = len(score.diverged), len(set(score.failed) - set(score.diverged))
    of = f" of {len(score.seeds)}" if len(score.seeds) > 1 else ""
    told = [
        f"{count}{of} {what}" if of else what
        for count, what in ((diverged, "diverged"), (guessing, "did not learn"))
        if count
    ]
    return f"({', '.join(told)})" if told else ""


def failures(scores: Iterable[Score]) -> list[str]:
    """Return what the remarks of these scores mean."""
    found = []
    scores = list(scores)
    if any(score.diverged for score in scores):
        found.append("Diverged: the loss of the last step was no finite number, so the accuracy measures nothing.")
    if any(set(score.failed) - set(score.diverged) for score in scores):
        found.append(
            f"Did not learn: at most {NEAR_GUESSING:g} points over guessing. The mean holds such students, and says "
            "little of the generator then."
        )
    return found


def _baseline(name: str) -> Callable[[Score], str]:
    def cell(score: Score) -> str:
        return f"{score.baselines[name]:.2f}" if name in score.baselines else "-"

    return cell


def drawn(score: Score) -> int:
    """Return how many images were drawn for a student, those that the levers did not choose included."""
    return score.images_seen * score.candidates


def _share(score: Score) -> str:
    return "-" if score.share is None else f"{score.share:.1f} %"


def size(count: int) -> str:
    """Return a number of bytes in words.

    >>> size(512), size(1_500_000)
    ('512 B', '1.50 MB')
    """
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.2f} {unit}"
    return f"{count} B"


_COMMON: tuple[Column, ...] = (
    ("student", lambda s: s.student),
    ("budget", lambda s: s.budget_text),
    ("draw", lambda s: s.draw),
    ("levers", lambda s: s.levers or "-"),
    ("accuracy %", _accuracy),
    ("after each stage", lambda s: " / ".join(f"{value:.1f}" for value in s.stages) or "-"),
)
_BASELINES: tuple[Column, ...] = (
    ("random real", _baseline("random")),
    ("distinct real", _baseline("distinct")),
    ("share", _share),
    ("all real", _baseline("all")),
)
_COST: tuple[Column, ...] = (
    ("seeds", lambda s: str(len(s.seeds))),
    ("steps", lambda s: f"{s.steps:,}"),
    ("distinct images", lambda s: f"{s.distinct:,}"),
    ("drawn", lambda s: f"{drawn(s):,}" if s.candidates > 1 else "-"),
    ("stored", lambda s: size(s.stored_bytes)),
)


def _columns(scores: Sequence[Score]) -> tuple[list[Score], list[Column]]:
    """Return the scores that make lines, and the columns: baselines are columns where a generator is scored."""
    lines = [score for score in scores if score.what == "generator"]
    columns = [*_COMMON, *_COST]
    if lines:
        columns = [*_COMMON, *_BASELINES, *_COST]
    else:
        lines = list(scores)
        columns.insert(0, ("trained on", lambda s: WHAT[s.what]))
    if len({(s.name, s.dataset) for s in lines}) > 1:
        columns.insert(0, ("name", lambda s: s.name))
    if len({s.protocol for s in lines}) > 1:
        columns.append(("protocol", lambda s: s.protocol))
    if len({s.test for s in lines}) > 1:
        columns.append(("test images", lambda s: s.test))
    return lines, [column for column in columns if any(column[1](line) != "-" for line in lines)]


def notes(scores: Sequence[Score]) -> list[str]:
    """Return what a reader of the table must know, one sentence or two each."""
    lines, columns = _columns(scores)
    shown = {name for name, _ in columns}
    tests, followed = (list(dict.fromkeys(getattr(s, name) for s in lines)) for name in ("test", "protocol"))
    found = [f"Accuracy on {' or '.join(tests)} in percent, mean ± sample deviation over seeds."] if lines else []
    if any(s.draw == "fresh" and s.ipc_claim for s in lines):
        found.append("IPC n under a fresh draw: 1,000 epochs of n new images per class.")
    if "random real" in shown:
        found.append("Random real: as many random real images as an epoch has, the same throughout.")
        if any("learned step sizes" in s.recipe for s in lines):
            found.append("Random real images are trained on with step sizes learned for other images.")
    if "distinct real" in shown:
        found.append(
            "Distinct real: as many distinct real images as the fresh draws show (or all there are), seen as often: "
            "the practical ceiling. Share: how much of it is reached."
        )
    if "all real" in shown:
        found.append("All real: drawn from all real training images, for the same number of steps.")
    if shown & {"random real", "distinct real", "all real"}:
        found.append("Baselines follow the same recipe, with the same seeds or the first of them.")
    if "levers" in shown:
        found.append("Levers: options of the draw. Figures without and with them are never taken together.")
    if "drawn" in shown:
        found.append("Drawn: all images drawn, those that were not chosen included.")
    found += failures(scores)
    found += [
        f"{WHAT[s.what].capitalize()}, {s.student}, {s.budget_text}: {remark(s)[1:-1]}."
        for s in scores
        if s.failed and s not in lines
    ]
    found += [_protocol(name) for name in followed if name != "dimdata"]
    alike = ("from stored weights", "stored order", "no augmentation")
    if any(s.std == 0 and all(words in s.recipe for words in alike) for s in lines):
        found.append("± 0.00: the start is stored and nothing is shuffled or augmented, so that seeds cannot differ.")
    found += [f"Recipe: {text}." for text in dict.fromkeys(s.recipe for s in lines)]
    return found


def _protocol(name: str) -> str:
    if name not in protocols.names():  # of a newer version
        return f"Protocol {name:.80} is not known to this version."
    return f"Protocol {name}: {protocols.protocol(name).text}"


def table(scores: Sequence[Score]) -> Table:
    """Return the scores as a table of rich."""
    from rich.table import Table
    from rich.text import Text

    lines, columns = _columns(scores)
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name, _ in columns:
        text = name in ("name", "trained on", "student", "budget", "draw", "levers", "protocol", "test images")
        made.add_column(name, justify="left" if text else "right", overflow="fold")
    for line in lines:
        made.add_row(*(Text(cell(line)) for _, cell in columns))
    return made


def markdown(scores: Sequence[Score]) -> str:
    """Return the scores as a markdown table; empty where there are none."""
    lines, columns = _columns(scores)
    if not lines:
        return ""
    return markdown_table([name for name, _ in columns], [[cell(line) for _, cell in columns] for line in lines])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a markdown table of plain texts, which are shown as they are."""
    lines = [
        [escape(cell) for cell in header],
        ["---"] * len(header),
        *([escape(cell) for cell in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escape(value: Any) -> str:
    """Return text that markdown and HTML show as it is, in one line; what cannot be seen is marked."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(str(value).split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#~$!" else c for c in text)
