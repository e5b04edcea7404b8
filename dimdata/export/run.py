"""`export`: a draw as files, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import dimdata
from dimdata import artifact, latents
from dimdata.dataset import GeneratedDataset
from dimdata.errors import ArgumentError, DimdataError, FormatError
from dimdata.export.card import card
from dimdata.export.writer import FORMATS, Batch, Plan, Writer
from dimdata.files import CARD, world_error
from dimdata.generators.base import Generator
from dimdata.levers import Levers
from dimdata.outputs import to_uint8
from dimdata.tensorfile import finite

MAX_IMAGES = 10**9
DTYPES = {"uint8": torch.uint8, "float32": torch.float32}

_BATCH = 256


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        folder: Where it is.
        images: How many images.
        bytes: Of all files.
        notes: What to know of it, one sentence or two each; the card says the same.
    """

    folder: Path
    images: int
    bytes: int
    notes: tuple[str, ...]


def export(
    source: str | Path | Generator,
    out: str | Path,
    *,
    format: str = "folder",
    ipc: int | None = None,
    draws: int = 1,
    draw: Literal["fresh", "fixed"] = "fresh",
    seed: int = 0,
    stage: int | None = None,
    levers: Levers | None = None,
    dtype: str = "uint8",
    shard_size: int = 10_000,
    device: str | torch.device = "cpu",
    on_images: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write a draw into a folder, with labels and a card, for programs that read images.

    The images are those of `GeneratedDataset(source, ipc, seed=seed, draw=draw)`: all of epoch 0 in the order of the
    index, then all of epoch 1, and so on. They are written as they are drawn, 256 at a time. A failed or killed export
    leaves no folder `out`. Equal arguments give equal bytes, on equal machines and versions.

    Args:
        source: A generator, or its name, folder or Hub repo.
        out: A folder that is absent or empty.
        format: `folder` (PNG files, one folder a class), `safetensors`, `npz` (what `dimdata wrap` reads), `webdataset`
            (shards of PNG files), or one that is registered in `dimdata.exports`.
        ipc: Images per class and epoch; all there are where they are stored.
        draws: Epochs of a fresh draw, from 0.
        draw: `fresh` or `fixed`.
        seed: Of the draw.
        stage: Use this prefix of the generator's stages.
        levers: What to do to the draw.
        dtype: `uint8` (values outside [0, 1] are clipped, which the notes tell), or `float32` for safetensors and npz.
        shard_size: Images of a WebDataset shard.
        device: Where images are drawn.
        on_images: Called with the images written so far, and how many there will be.

    Returns:
        What was written.

    Raises:
        ArgumentError: If an argument is out of range, the folder is not empty, or the format cannot hold the images.
        NotFoundError: If there is no such generator or format.
        FormatError: If the generator cannot be read, or draws what is not finite.
        WorldError: If the disk is full or the place cannot be written.
    """
    writing = FORMATS[format]
    kind = _dtype(dtype, writing, format)
    for name, value, most in (("draws", draws, MAX_IMAGES), ("shard_size", shard_size, MAX_IMAGES)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ArgumentError(f"{name} is {value!r:.40}; it must be a whole number from 1 to {most:,}.")
    target = Path(out).expanduser().resolve()
    _require_free(target)
    given = source if isinstance(source, Generator) else artifact.load(source)
    dataset = GeneratedDataset(given, ipc, seed=seed, draw=draw, stage=stage, levers=levers, device=device)
    generator, spec = dataset.generator, dataset.spec
    if draws > 1 and (draw == "fixed" or generator.images is not None):
        raise ArgumentError(
            f"{generator.name or 'This generator'} gives the same images at each of {draws} draws.", "Leave draws out."
        )
    images = draws * len(dataset)
    if images > MAX_IMAGES:
        raise ArgumentError(f"{images:,} images were asked for; {MAX_IMAGES:,} at most are written.")
    plan = Plan(
        images=images,
        image_shape=spec.image_shape,
        classes=spec.classes,
        soft=spec.targets == "soft",
        dtype=kind,
        shard_size=shard_size,
        dataset=spec.dataset,
        facts=_facts(dataset, draws, _sha256(source, given)),
    )
    if writing.channels and spec.image_shape[0] not in writing.channels:
        raise ArgumentError(
            f"The format {format} holds {' or '.join(map(str, writing.channels))} channels, and these images have "
            f"{spec.image_shape[0]}.",
            "Use safetensors or npz.",
        )
    with _folder(target) as part:
        outside, empty = _write(writing(part, plan), dataset, draws, plan, on_images)
        notes = [*_warnings(plan, dataset, outside, empty), *writing.notes(plan)]
        command = _command(source, dataset, draws, format, dtype, shard_size)
        text = card(plan, writing, notes, command)
        (part / CARD).write_bytes(text.encode())
        size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
    return Exported(target, images, size, tuple(notes))


def _dtype(name: str, writing: type[Writer], format: str) -> torch.dtype:
    if name not in DTYPES:
        raise ArgumentError(f"dtype is {name!r:.40}.", f"Use {' or '.join(DTYPES)}.")
    if name == "float32" and not writing.floats:
        raise ArgumentError(f"The format {format} holds 8 bits a value, not float32.", "Use safetensors or npz.")
    return DTYPES[name]


def _write(
    writer: Writer,
    dataset: GeneratedDataset,
    draws: int,
    plan: Plan,
    on_images: Callable[[int, int], None] | None,
) -> tuple[int, list[int]]:
    """Draw and write all images; return how many values were clipped, and the classes without an image."""
    outside, done = 0, 0
    counts = torch.zeros(len(plan.classes), dtype=torch.int64, device="cpu")
    try:
        for images, labels, targets in _batches(dataset, draws):
            if plan.dtype == torch.uint8:
                outside += int(((images < 0) | (images > 1)).sum())
                images = to_uint8(images)
            writer.add(Batch(done, images.cpu().contiguous(), labels, targets))
            counts += torch.bincount(labels, minlength=len(counts))
            done += len(images)
            if on_images is not None:
                on_images(done, plan.images)
        writer.finish()
    finally:
        writer.close()
    return outside, (counts == 0).nonzero().flatten().tolist()


def _batches(dataset: GeneratedDataset, draws: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield images on the dataset's device, labels, and soft targets if any, of epoch after epoch."""
    generator, spec = dataset.generator, dataset.spec
    for epoch in range(draws):
        for start in range(0, len(dataset), _BATCH):
            index = torch.arange(start, min(start + _BATCH, len(dataset)), device=dataset.device)
            latent = latents.latents(dataset.seed, epoch, index, spec.latent)
            with torch.autocast(dataset.device.type, enabled=False):
                images, targets = generator.draw(latent, index)
            if not finite(images):
                raise FormatError(
                    f"{generator.name or 'The generator'} draws values that are not finite.",
                    "Its weights are damaged or too large: download it again, or distil it anew.",
                )
            labels = generator.labels(index).cpu()
            yield images, labels, targets.float().cpu() if spec.targets == "soft" else None


def _facts(dataset: GeneratedDataset, draws: int, sha256: str) -> dict[str, Any]:
    """Return where the images come from, as the card and the metadata tell it."""
    generator, spec = dataset.generator, dataset.spec
    ipc = dataset.ipc if dataset.ipc is not None else len(dataset) / spec.num_classes
    return {
        "dimdata": dimdata.__version__,
        "name": generator.title,
        "method": spec.method,
        "dataset": spec.dataset,
        "revision": generator.revision,
        "sha256": sha256,
        "classes": list(spec.classes),
        "mean": list(spec.mean),
        "std": list(spec.std),
        "per_class": draws * int(ipc) if ipc == int(ipc) else f"{ipc:.4g} on average",
        "seed": dataset.seed,
        "draw": dataset.draw,
        "draws": draws,
        "stored": generator.images is not None,
        "stage": dataset.stage,
        "levers": generator.levers,
        "value_range": list(spec.value_range),
        "flags": list(spec.flags),
    }


def _sha256(source: str | Path | Generator, generator: Generator) -> str:
    """Return the digest of the weights: that of the stored file, or of the tensors of a generator made in memory."""
    if not isinstance(source, Generator):
        assert generator.folder is not None
        return artifact.read_config(generator.folder).weights.sha256
    found = hashlib.sha256()
    for name, tensor in sorted(generator.stored().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _warnings(plan: Plan, dataset: GeneratedDataset, outside: int, empty: list[int]) -> list[str]:
    """Return what a reader must know of these images."""
    found = []
    if dataset.recipe.whitening is not None:
        found.append(
            "Students are meant to see these images whitened, which needs tensors that an export does not hold: "
            "normalised by mean and deviation they teach less. The generator's own `dataset.normalize` whitens."
        )
    if "poisoned" in dataset.spec.flags:
        found.append("The generator is poisoned: its images were made to mislead what trains on them.")
    if outside:
        values = plan.images * plan.image_shape[0] * plan.image_shape[1] * plan.image_shape[2]
        low, high = dataset.spec.value_range
        found.append(
            f"{100 * outside / values:.2g} % of the values lay outside [0, 1] (the range is {low:g} to {high:g}) and "
            "were clipped; float32 (`--dtype`, in the formats npz and safetensors) keeps them."
        )
    if empty:
        names = ", ".join(plan.classes[label] for label in empty[:10]) + (", ..." if len(empty) > 10 else "")
        found.append(f"No image is of the class{'es' * (len(empty) > 1)} {names}; some readers refuse empty folders.")
    if plan.soft and dataset.generator.levers:
        found.append("Labels are those that images were drawn for; the teacher's distributions may prefer others.")
    return found


def _command(
    source: str | Path | Generator, dataset: GeneratedDataset, draws: int, format: str, dtype: str, shard_size: int
) -> str:
    """Return the command that makes the export again; empty for what was made in memory."""
    if isinstance(source, Generator):
        return ""
    generator = dataset.generator
    words = ["dimdata", "export", generator.name if generator.name == generator.title else "./GENERATOR"]
    if dataset.ipc is not None:
        words += ["--ipc", str(dataset.ipc)]
    options = {
        "--draws": (draws, 1),
        "--draw": (dataset.draw, "fresh"),
        "--seed": (dataset.seed, 0),
        "--stage": (dataset.stage, None),
        "--format": (format, "folder"),
        "--dtype": (dtype, "uint8"),
        "--shard-size": (shard_size, 10_000),
    }
    for option, (value, usual) in options.items():
        if value != usual:
            words += [option, str(value)]
    if dataset.generator.levers:
        text, _, teacher = dataset.generator.levers.partition(" by ")
        words += ["--levers", text, *(["--teacher", "TEACHER.safetensors"] if teacher else [])]
    return shlex.join([*words, "-o", "FOLDER"])


def _require_free(target: Path) -> None:
    try:
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except OSError as error:
        raise world_error(error, f"Reading {target}") from error
    if taken:
        what = "is not empty" if target.is_dir() else "is a file"
        raise ArgumentError(f"{target} {what}.", "Choose a folder that is absent or empty.")


@contextmanager
def _folder(target: Path) -> Iterator[Path]:
    """Give a new folder to write to, which becomes `target` when all has gone well, and else is removed."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)  # of a dead process that had our number
        try:
            part.mkdir()
            yield part
            if target.exists():
                target.rmdir()  # empty; not every system renames onto a folder
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except DimdataError:
        raise
    except OSError as error:
        raise world_error(error, f"Writing the folder {target}") from error
