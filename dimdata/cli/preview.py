"""`dimdata preview`: a grid of images, one column a class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dimdata.cli import options, output


def run(
    name: options.Name,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The PNG file to write.")] = Path(
        "preview.png"
    ),
    rows: Annotated[int, typer.Option("--rows", help="Images of each class.")] = 10,
    columns: Annotated[
        int | None, typer.Option("--columns", help="Classes shown, from the first. [default: all, 20 at most]")
    ] = None,
    stage: Annotated[int | None, typer.Option("--stage", help="Show the first stages of the generator only.")] = None,
    seed: options.Seed = 0,
    levers: options.Levers = "",
    teacher: options.Teacher = None,
) -> None:
    """Draw a grid of images, one column a class."""
    output.require_place(out, "preview.png", ".png")
    from dimdata import load
    from dimdata.files import write_atomic
    from dimdata.preview import png

    generator = options.levered(load(name), levers, teacher).view(stage=stage)
    write_atomic(out, png(generator, rows=rows, columns=columns, seed=seed))
    output.line(out)
