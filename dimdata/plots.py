"""Scores as pictures: accuracy against images per class, student, and stage by stage. Needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dimdata.cross import REFERENCE, Column, by_size, columns
from dimdata.errors import ArgumentError, DimdataError
from dimdata.files import write_atomic
from dimdata.report import WHAT, size
from dimdata.scores import Score
from dimdata.stages import Walk

PANELS = 3  # side by side
TOLD_STAGES = 5  # of a walk, at most: more texts would cover one another
LEAST_SPAN = 4.0  # points of accuracy that a panel shows at least, so that noise does not look like a difference
MOST_SPAN = 105.0  # all accuracies, and room for a dot at 100

_BAND, _LINE = "spread", "ConvNet-3 on the generator"


def require_plots(path: str | Path) -> None:
    """Raise what would keep a plot from being written to `path`; asked before long work.

    Raises:
        ArgumentError: If the ending of `path` is no format of pictures.
        DimdataError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise DimdataError("Plots need matplotlib, which is not installed.", "pip install 'dimdata[report]'") from None
    if Path(path).suffix[1:].lower() not in FigureCanvasBase.filetypes:
        raise ArgumentError(f"{path} has no ending of a picture.", "Use a name that ends in .png, .svg or .pdf.")


def plot(scores: Sequence[Score], path: str | Path) -> Path:
    """Draw accuracy against images per class, with the ceiling, into a file whose ending says its format.

    Raises:
        ArgumentError: If no score is one of a number of images per class, or the ending is unknown.
        DimdataError: If matplotlib is not installed.
        WorldError: If the file cannot be written.
    """
    require_plots(path)
    lines: dict[tuple[str, ...], list[Score]] = {}
    for score in scores:
        if score.what == "generator" and score.ipc_claim:
            key = (score.name, score.student, score.protocol, score.levers or "no levers")
            lines.setdefault(key, []).append(score)
    if not lines:
        raise ArgumentError(
            "There is no score at a number of images per class to plot.",
            "Figures at IPC n need 1,000 epochs of a fresh draw; see the table.",
        )
    with _figure(Path(path).expanduser(), 6.4, 4.2) as figure:
        axes = figure.subplots()
        _draw_lines(axes, lines)
        ticks = sorted({score.ipc for group in lines.values() for score in group if score.ipc is not None})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("images per class")
        axes.set_ylabel(f"accuracy on {_text(next(iter(lines.values()))[0].test)}, %")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return Path(path).expanduser()


def cross_plot(scores: Sequence[Score], path: str | Path) -> Path:
    """Draw accuracy against the student, a panel for each generator and budget, into a file.

    All panels show the same number of points of accuracy, so that spreads can be compared by eye. The band reaches
    from the lowest to the highest mean; the dashed line is ConvNet-3.

    Args:
        scores: As for `dimdata.cross.columns`.
        path: Its ending says the format: `.png`, `.svg`, `.pdf`.

    Raises:
        ArgumentError: If there are not two students to compare on any generator, or the ending is unknown.
        DimdataError: If matplotlib is not installed.
        WorldError: If the file cannot be written.
    """
    require_plots(path)
    made = columns(scores, least=2)
    panels: list[list[Column]] = []
    for column in made:
        if column.real:
            panels[-1].append(column)
        else:
            panels.append([column])
    if not panels:
        raise ArgumentError("There are no scores of two students to compare.", "Evaluate with several students.")
    students = by_size(name for column in made for name in column.figures)
    across = min(PANELS, len(panels))
    down = -(-len(panels) // across)
    with _figure(Path(path).expanduser(), 1.2 + 2.7 * across, down * (1.25 + 0.34 * len(students)) + 0.3) as figure:
        places = figure.subplots(down, across, sharey=True, squeeze=False).flatten()
        span = _span(panels)
        shown: dict[str, Any] = {}
        for axes, panel in zip(places, panels, strict=False):
            _draw_panel(axes, panel, students, span)
            shown |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        for axes in places[len(panels) :]:
            axes.set_visible(False)
        style: dict[str, Any] = {"frameon": False, "fontsize": "small"}
        order = [label for label in (WHAT["generator"], WHAT["distinct"], _BAND, _LINE) if label in shown]
        handles = [shown[label] for label in order]
        figure.legend(handles, order, loc="outside lower center", ncols=len(order), **style)
    return Path(path).expanduser()


def stage_plot(found: Sequence[Walk], path: str | Path) -> Path:
    """Draw accuracy after each stage against student steps into a file: a line for each walk, a dot for each seed.

    Args:
        found: As `dimdata.stages.walks` returns them.
        path: Its ending says the format: `.png`, `.svg`, `.pdf`.

    Raises:
        ArgumentError: If there are no stages to plot, or the ending is unknown.
        DimdataError: If matplotlib is not installed.
        WorldError: If the file cannot be written.
    """
    require_plots(path)
    if not found:
        raise ArgumentError("There is no score after each stage to plot.", "Evaluate a generator with stages.")
    with _figure(Path(path).expanduser(), 6.4, 4.2) as figure:
        axes = figure.subplots()
        parts = [(walk.name, walk.student, walk.budget, f"{walk.draw} draw", walk.levers or "plain") for walk in found]
        varying = [len(set(each)) > 1 for each in zip(*parts, strict=True)]
        for number, (walk, words) in enumerate(zip(found, parts, strict=True)):
            told = [word for word, varies in zip(words, varying, strict=True) if varies]
            _draw_walk(axes, walk, f"C{number}", _text(", ".join(told)))
        if len(found) > 1:
            axes.legend(frameon=False, fontsize="small")
        elif len(found[0].steps) <= TOLD_STAGES:
            _tell_stages(axes, found[0])
            axes.margins(0.16, 0.18)
        title = [
            _text(words) for words, varies in zip(parts[0], varying, strict=True) if not varies and words != "plain"
        ]
        axes.set_title(", ".join(title), loc="left", fontsize="medium")
        axes.set_xlim(left=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("student steps")
        axes.set_ylabel(f"accuracy on {_text(found[0].test)}, %")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return Path(path).expanduser()


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Any]:
    """Give a figure of so many inches to draw on, and write it when all is drawn; equal drawings give equal files."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    buffer = io.BytesIO()
    kind = path.suffix[1:].lower()
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with rc_context({"svg.hashsalt": "dimdata"}):
        figure.savefig(buffer, format=kind, dpi=150, facecolor="white", metadata=undated)
    write_atomic(path, buffer.getvalue())


def _text(name: str) -> str:
    """Return a name that matplotlib does not read as a formula."""
    return name.replace("$", r"\$")


def _draw_lines(axes: Any, lines: dict[tuple[str, ...], list[Score]]) -> None:
    """Draw the scores of each student in a colour of its own: one line for each draw, and one for each baseline."""
    varying = [len(set(parts)) > 1 for parts in zip(*lines, strict=True)]
    for number, (key, group) in enumerate(lines.items()):
        name = _text(", ".join(part for part, varies in zip(key, varying, strict=True) if varies))
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
                axes.plot(
                    *zip(*points.items(), strict=True),
                    style,
                    marker=".",
                    color=colour,
                    alpha=0.7,
                    label=prefix + WHAT[what],
                )


def _draw_walk(axes: Any, walk: Walk, colour: str, label: str) -> None:
    """Draw the mean after each stage with its deviation, and every seed behind it."""
    for steps, by_seed in zip(walk.steps, walk.accuracies, strict=True):
        if len(by_seed) > 1:
            axes.plot([steps] * len(by_seed), list(by_seed.values()), "o", color=colour, alpha=0.3, markersize=3.5)
    error = [std or 0 for std in walk.stds]
    axes.errorbar(walk.steps, walk.means, error, color=colour, marker="o", capsize=3, label=label)


def _tell_stages(axes: Any, walk: Walk) -> None:
    """Write what each point of a single walk is: its stage, its accuracy, and the bytes of the stages so far."""
    for stage, (steps, mean, stored) in enumerate(zip(walk.steps, walk.means, walk.stored, strict=True), 1):
        axes.annotate(
            f"stage {stage}: {mean:.2f}\n{size(stored)}",
            (steps, mean),
            (6, -8),
            textcoords="offset points",
            va="top",
            fontsize="x-small",
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.4},
        )


def _span(panels: Sequence[Sequence[Column]]) -> float:
    """Return the points of accuracy that every panel shows."""
    return min(MOST_SPAN, max(LEAST_SPAN, *(1.35 * (high - low) for low, high in map(_range, panels))))


def limits(low: float, high: float, span: float) -> tuple[float, float]:
    """Return the ends of an axis of `span` points around accuracies: not below 0, and little beyond 100.

    Args:
        low: The lowest accuracy, less its deviation.
        high: The highest, and its deviation.
        span: Points to show, at most `MOST_SPAN`.
    """
    right = min((low + high + span) / 2, 100 + span / 20)
    left = max(0.0, right - span)
    return left, left + span


def _range(panel: Sequence[Column]) -> tuple[float, float]:
    """Return the lowest and highest accuracy of a panel, deviations included."""
    figures = [figure for column in panel for figure in column.figures.values()]
    return min(f.mean - (f.std or 0) for f in figures), max(f.mean + (f.std or 0) for f in figures)


def _draw_panel(axes: Any, panel: Sequence[Column], students: Sequence[str], span: float) -> None:
    """Draw one generator: a row for each student, the smallest on top."""
    rows = {name: len(students) - 1 - i for i, name in enumerate(students)}
    own, *real = panel
    means = [figure.mean for figure in own.figures.values()]
    x, y = means, [rows[name] for name in own.figures]
    error = [figure.std or 0 for figure in own.figures.values()]
    axes.errorbar(x, y, xerr=error, fmt="o", color="C0", capsize=2.5, markersize=5, label=WHAT["generator"])
    for column in real:
        x, y = [f.mean for f in column.figures.values()], [rows[name] for name in column.figures]
        axes.plot(x, y, "D", color="0.45", fillstyle="none", markersize=5, label=WHAT["distinct"])
    axes.axvspan(min(means), max(means), color="C0", alpha=0.12, linewidth=0, label=_BAND)
    if REFERENCE in own.figures:
        line = {"color": "C0", "linestyle": "--", "linewidth": 1, "alpha": 0.6, "zorder": 1}
        axes.axvline(own.figures[REFERENCE].mean, label=_LINE, **line)
    for name, figure in own.figures.items():
        axes.annotate(
            f"{figure.mean:.2f}",
            (figure.mean, rows[name]),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize="x-small",
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.4},
        )
    low, high = _range(panel)
    axes.set_xlim(*limits(low, high, span))
    axes.set_ylim(-0.6, len(students) - 0.3)
    axes.set_yticks([*rows.values()], [_text(name) for name in rows])
    axes.tick_params(left=False, labelsize="small")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    score = own.score
    facts = f"{score.budget_text}, {score.draw} draw, {size(score.stored_bytes)}, spread {own.spread:.2f}"
    axes.set_title(_text(score.name), loc="left", fontsize="medium", fontweight="bold", pad=16)
    axes.text(0, 1.02, facts, transform=axes.transAxes, fontsize="x-small", color="0.3")
    axes.set_xlabel(f"accuracy on {_text(score.test)}, %", fontsize="x-small")
