"""Arguments and options that several commands share; their types are plain, so that help needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import dimdata

if TYPE_CHECKING:
    from dimdata.generators.base import Generator
    from dimdata.levers import Levers as Choice


def _bundled(incomplete: str) -> list[str]:
    """Complete the names of bundled generators in the shell."""
    folders = Path(dimdata.__file__).parent.glob("zoo/*/config.json")
    return sorted(path.parent.name for path in folders if path.parent.name.startswith(incomplete))


Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A bundled generator (dim-mnist), a folder (./runs/mine) or a Hub repository (owner/name).",
        autocompletion=_bundled,
    ),
]
OptionalName = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        help="A bundled generator (dim-mnist), a folder (./runs/mine) or a Hub repository (owner/name).",
        autocompletion=_bundled,
    ),
]
Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME",
        help="Bundled generators, folders or Hub repositories; unless given, every bundled one that is not made for "
        "one student alone.",
        autocompletion=_bundled,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Seed = Annotated[int, typer.Option("--seed", help="Equal seeds give equal results.")]
Device = Annotated[
    str,
    typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps."),
]
Precision = Annotated[
    str,
    typer.Option("--precision", help="auto, fp32 or bf16."),
]
Compile = Annotated[
    str,
    typer.Option("--compile", help="auto, on or off: whether to compile the hot functions."),
]
_REAL = "Real images to test on: a dataset, folder, .npz file, or `holdout`, those that come with the generator."
Real = Annotated[
    str | None,
    typer.Option(
        "--real",
        metavar="DATA",
        help=f"{_REAL} [default: the dataset distilled, if known, else holdout]",
    ),
]
RealOrHoldout = Annotated[
    str | None,
    typer.Option("--real", metavar="DATA", help=f"{_REAL} [default: holdout]"),
]
Root = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="DIR",
        help="Where torchvision keeps real datasets (downloaded there if absent). [default: $DIMDATA_DATA, or "
        "~/.cache/dimdata/data]",
    ),
]
Draws = Annotated[str, typer.Option("--draw", help="fresh, fixed, or fresh,fixed.")]
Students = Annotated[int, typer.Option("--seeds", help="Students trained for each figure.")]
Protocol = Annotated[str, typer.Option("--protocol", help="dimdata (the generator's recipe) or dim-paper.")]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", help="Instead of the recipe's (mostly 1,000); not where it counts steps."),
]
Rows = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Keep each student's row in this .jsonl file, and go on there."
    ),
]
Levers = Annotated[
    str,
    typer.Option(
        "--levers",
        metavar="TEXT",
        help="What to do to the draw: best-of=4 (candidates, of which the teacher chooses), keep=2 (any of the two "
        "best), spread=0.9 (of the noise), soft-labels (the teacher's), temperature=2; joined by commas.",
    ),
]
Teacher = Annotated[
    Path | None,
    typer.Option("--teacher", metavar="FILE", help="A student of `train -o`: the judge that --levers ask for."),
]


def chosen(levers: str, teacher: Path | None) -> Choice | None:
    """Return the levers of a command line, none without any."""
    if not levers and teacher is None:
        return None
    from dimdata.levers import Levers as Choice

    return Choice.parse(levers, teacher)


def levered(generator: Generator, levers: str, teacher: Path | None) -> Generator:
    """Return the generator with the levers of a command line; itself without any."""
    choice = chosen(levers, teacher)
    if choice is None:
        return generator
    from dimdata.levers import apply

    return apply(generator, choice)
