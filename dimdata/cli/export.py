"""`dimdata export`: a draw as files that other programs read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dimdata.cli import options, output

if TYPE_CHECKING:
    from collections.abc import Callable


def run(
    name: options.Name,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="The folder to write: absent, or empty.", show_default=False),
    ],
    ipc: Annotated[int | None, typer.Option("--ipc", help="Images per class. [default: 10, or all there are]")] = None,
    draws: Annotated[
        int, typer.Option("--draws", help="Epochs of a fresh draw, one after another: --ipc images per class each.")
    ] = 1,
    draw: Annotated[str, typer.Option("--draw", help="fresh (new images every epoch) or fixed.")] = "fresh",
    seed: options.Seed = 0,
    stage: Annotated[int | None, typer.Option("--stage", help="Use the first stages of the generator only.")] = None,
    levers: options.Levers = "",
    teacher: options.Teacher = None,
    format: Annotated[
        str,
        typer.Option(
            "--format", help="folder (PNG files, one folder a class), safetensors, npz, or webdataset (shards)."
        ),
    ] = "folder",
    dtype: Annotated[
        str, typer.Option("--dtype", help="uint8, or float32 (safetensors and npz), which clips nothing.")
    ] = "uint8",
    shard_size: Annotated[int, typer.Option("--shard-size", help="Images of a WebDataset shard.")] = 10_000,
    device: options.Device = "cpu",
    json: options.Json = False,
) -> None:
    """Write a draw as an image folder, safetensors, .npz or WebDataset shards, with labels and a card.

    \b
    dimdata export dim-mnist --ipc 50 -o digits
    dimdata export dim-mnist --ipc 10 --draws 100 --format webdataset -o shards
    """
    from dimdata.artifact import read_config, resolve
    from dimdata.engine import find_device
    from dimdata.export import export
    from dimdata.report import size

    if ipc is None and read_config(resolve(name)).generator.images is None:
        ipc = 10
    with output.progress() as report:
        done = export(
            name,
            out,
            format=format,
            ipc=ipc,
            draws=draws,
            draw=draw,  # type: ignore[arg-type]
            seed=seed,
            stage=stage,
            levers=options.chosen(levers, teacher),
            dtype=dtype,
            shard_size=shard_size,
            device=find_device(device),
            on_images=_watch(report),
        )
    if json:
        output.emit_json(
            {"folder": str(done.folder), "images": done.images, "bytes": done.bytes, "notes": list(done.notes)}
        )
        return
    output.line(done.folder)
    output.note(f"{done.images:,} images, {size(done.bytes)}; README.md says where they come from.")
    for text in done.notes:
        output.note(text)


def _watch(report: output.Report) -> Callable[[int, int], None]:
    """Return what shows how many images are written."""
    start = time.monotonic()

    def on_images(done: int, total: int) -> None:
        rate = done / max(time.monotonic() - start, 1e-9)
        left = (total - done) / rate
        report({"phase": "export", "step": done, "steps": total, "images_per_second": rate, "eta_seconds": left})

    return on_images
