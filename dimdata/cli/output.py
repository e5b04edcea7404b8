"""What commands print: data on stdout, all else on stderr."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dimdata.errors import ArgumentError, WorldError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

QUIET_SECONDS = 5.0  # between two lines of progress where there is no terminal

Report = Callable[[Mapping[str, Any]], None]


def plain(text: object) -> str:
    """Return text without control characters, which could otherwise steer the terminal; they are shown escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in str(text))


def line(text: object = "") -> None:
    """Print data."""
    print(plain(text), flush=True)


def note(text: object) -> None:
    """Print what is not data."""
    print(plain(text), file=sys.stderr, flush=True)


def require_place(path: Path, usual: str, kind: str = "") -> None:
    """Raise `ArgumentError` unless a file can be written there as far as folders go; asked before long work.

    Args:
        path: The file.
        usual: What such a file may be called, for the hint.
        kind: The ending that it must have, if any.
    """
    if path.is_dir():
        raise ArgumentError(f"{path} is a folder.", f"Name a file, such as {path / usual}.")
    if kind and path.suffix.lower() != kind:
        raise ArgumentError(f"{path} does not end in {kind}, which is what is written.", f"Call it {usual}, say.")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise ArgumentError(f"There is no folder {parent} to write {path.name} to.", "Make it first.")
    if not os.access(parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise WorldError(f"{path} cannot be written: permission denied.", "Choose another place.")


def emit_json(data: Any) -> None:
    """Print data for machines."""
    print(json.dumps(data, indent=2, ensure_ascii=True), flush=True)


def table(header: Sequence[str], rows: Iterable[Sequence[object]], keep: int = 1) -> None:
    """Print rows in aligned columns; numbers are set flush right.

    Args:
        header: Names of the columns.
        rows: Values.
        keep: On a terminal that is too narrow, the columns are printed in several parts; each begins with so many of
            the first ones.
    """
    lines = [[_cell(value) for value in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [all(_numeric(cell) for cell in column[1:]) for column in zip(*lines, strict=True)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf
    for number, part in enumerate(_parts(widths, keep, room)):
        if number:
            print()
        for cells in lines:
            padded = [cells[i].rjust(widths[i]) if right[i] else cells[i].ljust(widths[i]) for i in part]
            print("  ".join(padded).rstrip())
    sys.stdout.flush()


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else plain(value).replace("\n", " ")


def _parts(widths: Sequence[int], keep: int, room: float) -> list[list[int]]:
    """Return which columns go side by side."""
    first = list(range(keep))
    parts = [first]
    for i in range(keep, len(widths)):
        if sum(widths[j] + 2 for j in parts[-1]) + widths[i] > room and len(parts[-1]) > keep:
            parts.append(first)
        parts[-1] = [*parts[-1], i]
    return parts


def show(made: Table, keep: int) -> None:
    """Print a table of rich as `table` does."""
    table([str(column.header) for column in made.columns], zip(*(c.cells for c in made.columns), strict=True), keep)


def facts(pairs: Mapping[str, object]) -> None:
    """Print one fact a line; long ones are folded and continue under their beginning."""
    indent = max(len(name) for name in pairs) + 2
    width = max(shutil.get_terminal_size().columns - indent, 40)
    for name, value in pairs.items():
        lines = [
            part
            for text in plain(value).split("\n")
            for part in textwrap.wrap(text, width, break_on_hyphens=False) or [""]
        ]
        for number, part in enumerate(lines):
            print(f"{'' if number else plain(name):{indent}}{part}".rstrip())
    sys.stdout.flush()


def _numeric(cell: str) -> bool:
    return cell in ("", "-") or cell[0].isdigit() or cell[0] == "-"


def duration(seconds: float) -> str:
    """Return a time as people say it.

    >>> duration(42), duration(600), duration(7260)
    ('42 s', '10 min', '2 h 1 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def progress() -> Iterator[Report]:
    """Show progress on stderr: a bar on a terminal, else a line every few seconds.

    Yields:
        A function of events {"phase", "step", "steps", "images_per_second", "eta_seconds", "losses"}. An event without
        "steps", such as a probe or a "note", is shown as a line of its own.
    """
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16, table_column=Column(min_width=16)),
        TextColumn("{task.completed:.0f}/{task.total:.0f}", markup=False, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[details]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console, redirect_stdout=False) as bars:
        bar = bars.add_task("", total=1, details="", visible=False)

        def show_event(event: Mapping[str, Any]) -> None:
            if "steps" not in event:
                note(_sentence(event))
                return
            bars.update(
                bar,
                description=plain(event["phase"]),
                completed=event["step"],
                total=event["steps"],
                details=plain(_details(event)),
                visible=True,
            )

        yield show_event


def _lines() -> Report:
    last = -QUIET_SECONDS

    def show_event(event: Mapping[str, Any]) -> None:
        nonlocal last
        now = time.monotonic()
        if "steps" not in event:
            note(_sentence(event))
        elif now - last >= QUIET_SECONDS or event["step"] == event["steps"]:
            last = now
            note(f"{event['phase']} {event['step']}/{event['steps']}: {_details(event)}")

    return show_event


def _sentence(event: Mapping[str, Any]) -> str:
    if "note" in event:
        return str(event["note"])
    values = [f"{name.replace('_', ' ')} {value}" for name, value in event.items() if name not in ("phase", "step")]
    return f"{event['phase']} at step {event.get('step', '?')}: {', '.join(values)}"


def _details(event: Mapping[str, Any]) -> str:
    """Return the rate, the time left and the losses of an event."""
    parts = []
    if event.get("images_per_second"):
        parts.append(f"{event['images_per_second']:,.0f} images/s")
    if event.get("eta_seconds"):
        parts.append(f"{duration(event['eta_seconds'])} left")
    parts += [f"{name} {value:.3g}" for name, value in event.get("losses", {}).items()]
    return ", ".join(parts)
