"""Arguments and options that several commands share; their types are plain, so that help needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import dimdata


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
Real = Annotated[
    str | None,
    typer.Option("--real", metavar="DATA", help="Real images to test on: a dataset, folder, .npz file, or `holdout`."),
]
Root = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="DIR",
        help="Where torchvision keeps real datasets (downloaded there if absent). [default: ~/.cache/dimdata/data]",
    ),
]
