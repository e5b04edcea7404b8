"""Scores for people: a table for the terminal, one in markdown, a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dimdata.errors import ArgumentError, DimdataError
from dimdata.files import world_error
from dimdata.protocols import protocol
from dimdata.scores import Score

if TYPE_CHECKING:
    from rich.table import Table

WHAT = {
    "generator": "generator",
    "random": "random real",
    "distinct": "distinct real (ceiling)",
    "all": "all real",
}

Column = tuple[str, Callable[[Score], str]]


def _percent(mean: float, std: float | None) -> str:
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def _baseline(name: str) -> Callable[[Score], str]:
    def cell(score: Score) -> str:
        return f"{score.baselines[name]:.2f}" if name in score.baselines else "-"

    return cell


def _share(score: Score) -> str:
    return "-" if score.share is None else f"{score.share:.1f} %"


def size(count: int) -> str:
    """Return a number of bytes in words.

    >>> size(512), size(1_500_000)
    ('512 B', '1.50 MB')
    """
    for limit, unit in ((1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.2f} {unit}"
    return f"{count} B"


_COMMON: tuple[Column, ...] = (
    ("student", lambda s: s.student),
    ("budget", lambda s: s.budget_text),
    ("draw", lambda s: s.draw),
    ("accuracy %", lambda s: _percent(s.mean, s.std)),
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
    tests, protocols = (list(dict.fromkeys(getattr(s, name) for s in lines)) for name in ("test", "protocol"))
    found = [f"Accuracy on {' or '.join(tests)} in percent, mean ± sample deviation over seeds."] if lines else []
    if any(s.draw == "fresh" and s.ipc_claim for s in lines):
        found.append("IPC n under a fresh draw: 1,000 epochs of n new images per class.")
    if "random real" in shown:
        found.append("Random real: as many random real images as an epoch has, the same throughout.")
    if "distinct real" in shown:
        found.append(
            "Distinct real: as many distinct real images as the fresh draws show (or all there are), seen as often: "
            "the practical ceiling. Share: how much of it is reached."
        )
    if "all real" in shown:
        found.append("All real: every real training image, for the same number of steps.")
    if shown & {"random real", "distinct real", "all real"}:
        found.append("Baselines follow the same recipe, with the same seeds.")
    found += [f"Protocol {name}: {protocol(name).text}" for name in protocols if name != "dimdata"]
    found += [f"Recipe: {text}." for text in dict.fromkeys(s.recipe for s in lines)]
    return found


def table(scores: Sequence[Score]) -> Table:
    """Return the scores as a table of rich."""
    from rich.table import Table
    from rich.text import Text

    lines, columns = _columns(scores)
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name, _ in columns:
        text = name in ("name", "trained on", "student", "budget", "draw", "protocol", "test images")
        made.add_column(name, justify="left" if text else "right", overflow="fold")
    for line in lines:
        made.add_row(*(Text(cell(line)) for _, cell in columns))
    return made


def markdown(scores: Sequence[Score]) -> str:
    """Return the scores as a markdown table; empty where there are none."""
    lines, columns = _columns(scores)
    if not lines:
        return ""
    names = [name for name, _ in columns]
    body = [[escape(cell(line)) for _, cell in columns] for line in lines]
    rows = [names, ["---"] * len(names), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def escape(value: Any) -> str:
    """Return text that markdown and HTML show as it is, in one line."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#~$!" else c for c in text)


def plot(scores: Sequence[Score], path: str | Path) -> Path:
    """Draw accuracy against images per class, with the ceiling, into a file whose ending says its format.

    Raises:
        ArgumentError: If no score is one of a number of images per class, or the ending is unknown.
        DimdataError: If matplotlib is not installed.
        WorldError: If the file cannot be written.
    """
    path = Path(path)
    lines: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores:
        if score.what == "generator" and score.ipc_claim:
            lines.setdefault((score.name, score.student, score.protocol), []).append(score)
    if not lines:
        raise ArgumentError("There is no score at a number of images per class to plot.", "Evaluate without epochs.")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DimdataError("Plots need matplotlib, which is not installed.", "pip install dimdata[report]") from None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    _draw_lines(axes, lines)
    ticks = sorted({score.ipc for group in lines.values() for score in group if score.ipc is not None})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("images per class")
    axes.set_ylabel(f"accuracy on {next(iter(lines.values()))[0].test}, %")
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise ArgumentError(f"{path} cannot be drawn: {error}", "Use a name that ends in .png, .svg or .pdf.") from None
    except OSError as error:
        raise world_error(error, f"Writing {path}") from error
    return path


def _draw_lines(axes: Any, lines: dict[tuple[str, str, str], list[Score]]) -> None:
    """Draw the scores of each student in a colour of its own: one line for each draw, and one for each baseline."""
    varying = [len({key[i] for key in lines}) > 1 for i in range(3)]
    for number, (key, group) in enumerate(lines.items()):
        name = ", ".join(part for part, varies in zip(key, varying, strict=True) if varies)
        name = name.replace("$", r"\$")  # no formula
        prefix, colour = f"{name}: " if name else "", f"C{number}"
        group = sorted(group, key=lambda score: score.ipc or 0)
        for draw, marker in (("fresh", "o"), ("fixed", "s")):
            own = [s for s in group if s.draw == draw]
            if own:
                x, y, error = [s.ipc for s in own], [s.mean for s in own], [s.std or 0 for s in own]
                axes.errorbar(x, y, error, color=colour, marker=marker, capsize=3, label=f"{prefix}{draw} draw")
        for what, style in (("distinct", "--"), ("random", ":")):
            points = {s.ipc: s.baselines[what] for s in group if what in s.baselines}
            if points:
                axes.plot(*zip(*points.items(), strict=True), style, color=colour, alpha=0.7, label=prefix + WHAT[what])
