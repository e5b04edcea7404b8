"""`dimdata wrap`: a published distilled set as a generator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dimdata.cli import options, output
from dimdata.errors import ArgumentError


def run(
    images: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="An .npz file of `images` and `labels` (or `targets`, distributions)."),
    ],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The generator's folder.")],
    classes: Annotated[str | None, typer.Option("--classes", help="Names: cat,dog. [default: 0,1,...]")] = None,
    dataset: Annotated[str, typer.Option("--dataset", help="The real dataset it stands for, such as cifar10.")] = "",
    mean: Annotated[str | None, typer.Option("--mean", help="Of the real images, per channel: 0.49,0.48,0.45.")] = None,
    std: Annotated[str | None, typer.Option("--std", help="Likewise.")] = None,
    normalized: Annotated[
        bool,
        typer.Option("--normalized", help="The images in FILE are normalised by these already."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Make a generator of stored images: any published distilled set, or a choice of real images.

    Images are normalised by --mean and --std, else as the --dataset is if dimdata knows it, else by the stored images.
    Floating ones are taken to lie in [0, 1], or about it, unless --normalized says that this was done to them.

    Example: dimdata wrap images.npz ./mine --dataset cifar10
    """
    from dimdata.artifact import read_config
    from dimdata.hub.readme import save_with_card
    from dimdata.preview import png
    from dimdata.real import names
    from dimdata.real.known import KNOWN, load_digits
    from dimdata.wrap import wrap_npz

    out = out.expanduser()
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not _wrapped(out)):
        raise ArgumentError(f"{out} exists and holds something else.", "Choose a folder that is absent or empty.")
    name = dataset.lower()
    known = load_digits() if name == "digits" else KNOWN.get(name)
    generator = wrap_npz(
        images,
        classes=None if classes is None else [name.strip() for name in classes.split(",")],
        mean=_numbers("mean", mean) or (known.mean if known else None),
        std=_numbers("std", std) or (known.std if known else None),
        dataset=name if name in names() else dataset,
        normalized=normalized,
    )
    folder = save_with_card(generator, out, provenance={"wrapped": images.name}, preview=png(generator))
    if json:
        output.emit_json({"generator": str(folder), **read_config(folder).to_json()})
        return
    output.line(folder)
    shape = "x".join(map(str, generator.spec.image_shape))
    output.note(f"{generator.images:,} images {shape} of {generator.spec.num_classes} classes.")


def _wrapped(folder: Path) -> bool:
    """Whether a folder holds what this command wrote, which it may write anew."""
    from dimdata.artifact import read_config
    from dimdata.errors import DimdataError

    try:
        return "wrapped" in read_config(folder).provenance
    except DimdataError:
        return False


def _numbers(name: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ArgumentError(
            f"--{name} is {text!r:.80}, not a list of numbers.", f"Write --{name} 0.49,0.48,0.45."
        ) from None
