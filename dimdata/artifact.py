"""Generators as folders: folder -> generator, strictly checked; generator -> folder, whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dimdata.config import ArtifactConfig, config_bytes, parse_config, raw_config, read_config, update_scores
from dimdata.errors import ArgumentError, DimdataError, FormatError
from dimdata.files import CARD, CONFIG, FILES, HOLDOUT, MODEL, PREVIEW, max_bytes, world_error, write_folder
from dimdata.generators.base import GENERATORS, Generator, shapes_only
from dimdata.names import bundled, generator_folder, locate, resolve
from dimdata.recipe import WHITENING
from dimdata.spec import FORMAT_MAJOR, FORMAT_MINOR, Spec, canonical_json, jsonable
from dimdata.tensorfile import AGAIN, DTYPES, Entry, TensorFile, finite
from dimdata.whitening import Whitening

METADATA = "dimdata"

__all__ = [
    "ArtifactConfig",
    "bundled",
    "holdout",
    "load",
    "read_config",
    "resolve",
    "save",
    "update_scores",
]


def load(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Generator:
    """Load a generator.

    Args:
        source: The name of a bundled generator, `owner/name` on the Hub, or a local folder (a `Path`, or a string that
            begins with `.`, `/` or `~`).
        revision: Branch, tag or commit on the Hub.
        token: As in `huggingface_hub`.
        cache_dir: As in `huggingface_hub`.
        local_files_only: Whether to ask the Hub for nothing.

    Returns:
        The generator, on the CPU, in evaluation mode, without gradients.

    Raises:
        NotFoundError: If there is nothing of that name.
        ArgumentError: If `source` is malformed or could mean two things.
        FormatError: If the folder is incomplete, damaged, hostile, or newer than this version reads.
        WorldError: If the disk or the network fails.
    """
    found = locate(source, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    generator = _read(found.folder)
    generator.name, generator.revision, generator.folder = found.name, found.revision, found.folder.absolute()
    return generator


def _identity(generator: Any, recipe: Any) -> str:
    """The text that ties weights to their config: what the header's metadata holds."""
    return canonical_json({"generator": generator, "recipe": recipe})


def _read(folder: Path) -> Generator:
    raw = raw_config(folder)
    config = parse_config(raw)
    with TensorFile(folder / MODEL, max_bytes()) as file:
        if file.size != config.weights.bytes:
            raise FormatError(
                f"{file.path} is damaged: it has {file.size:,} bytes, not {config.weights.bytes:,}.",
                AGAIN,
            )
        if file.metadata != {METADATA: _identity(raw["generator"], raw["recipe"])}:
            raise FormatError(
                f"{CONFIG} and {MODEL} of {folder} do not belong together: they describe different generators."
            )
        generator = _empty(config)
        _compare(generator, file.entries)
        tensors = file.read(config.weights.sha256)
    split: dict[str, dict[str, Tensor]] = {"generator": {}, "recipe": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        split[part][rest] = tensor
    generator.recipe_tensors = split["recipe"]
    Whitening.of(generator.recipe, generator.recipe_tensors)  # refuses values that whiten nothing
    generator.format_minor = int(config.format.partition(".")[2])
    return generator.restore(split["generator"])


def _empty(config: ArtifactConfig) -> Generator:
    """Build the generator as shapes alone."""
    kind = GENERATORS[config.generator.kind]
    try:
        with shapes_only():
            return kind(config.generator, config.recipe)
    except DimdataError:
        raise
    except (RuntimeError, TypeError, ValueError, ArithmeticError, MemoryError) as error:
        raise FormatError(f"config.json describes a generator that cannot be built: {error!s:.120}.") from error


def _compare(generator: Generator, entries: Mapping[str, Entry]) -> None:
    """Compare names, types and shapes of stored tensors with those that the config implies."""
    implied = {f"generator.{name}": (t.dtype, tuple(t.shape)) for name, t in generator.stored().items()}
    recipe = generator.recipe
    names = {*implied, *(f"recipe.{name}" for name in recipe.tensors)}
    if recipe.whitening is not None:
        shapes = recipe.whitening.shapes(generator.spec.image_shape)
        implied |= {f"recipe.{WHITENING}{name}": expected for name, expected in shapes.items()}
    if names != set(entries):
        name = min(names ^ set(entries))
        raise FormatError(f"{MODEL} {'lacks the' if name in names else 'has a surplus'} tensor {name!r:.120}.")
    for name, (dtype, shape) in implied.items():
        entry = entries[name]
        if (entry.dtype, entry.shape) != (dtype, shape):
            raise FormatError(
                f"The tensor {name!r:.120} is {entry.dtype} {list(entry.shape)}; "
                f"{CONFIG} implies {dtype} {list(shape)}."
            )
    for leg in recipe.legs:
        if leg.step_sizes is not None:
            entry = entries[f"recipe.{leg.step_sizes}"]
            fits = entry.dtype == torch.float32 and len(entry.shape) == 1 and leg.steps in (None, entry.shape[0])
            if not fits:
                raise FormatError(
                    f"The step sizes {leg.step_sizes!r:.80} are {entry.dtype} {list(entry.shape)}; "
                    f"the leg implies torch.float32 [{leg.steps or 'steps'}]."
                )


def save(
    generator: Generator,
    folder: str | os.PathLike[str],
    *,
    provenance: Mapping[str, Any] | None = None,
    scores: Sequence[Mapping[str, Any]] = (),
    preview: bytes | None = None,
    card: str | None = None,
    holdout: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a generator's folder, or replace it, so that a killed process leaves the old or the new one.

    Args:
        generator: What to write.
        folder: Where; it must be absent, empty, or the folder of a generator.
        provenance: How it was made.
        scores: Measured results.
        preview: A PNG of its images.
        card: The text of `README.md`.
        holdout: A few real test images, {"images": uint8 `[N, C, H, W]`, "labels": int64 `[N]`}.

    Returns:
        The folder.

    Raises:
        ArgumentError: If the folder holds something else, or what is given cannot be stored.
        WorldError: If the disk is full or the place cannot be written; an old generator stays.
    """
    from safetensors.torch import save as to_bytes

    if not isinstance(generator, Generator):
        what = type(generator).__name__
        raise ArgumentError(f"A {what} is no generator.", "Give what `load` returns, or a dataset's `generator`.")
    target = Path(folder).expanduser().resolve()
    _require_replaceable(target)
    if generator.spec.kind not in GENERATORS:
        raise ArgumentError(
            f"A generator of the kind {generator.spec.kind!r} cannot be stored.",
            "Store the plain generator; levers are options of the draw." if generator.levers else "Register its class.",
        )
    spec, recipe = generator.spec.to_json(), generator.recipe.to_json()
    given, named = set(generator.recipe_tensors), set(generator.recipe.tensors)
    if given != named:
        raise ArgumentError(
            f"The recipe's tensor {min(given ^ named)!r} is {'not named' if given - named else 'missing'}."
        )
    Whitening.of(generator.recipe, generator.recipe_tensors)
    tensors = {f"generator.{name}": tensor for name, tensor in generator.stored().items()}
    tensors |= {f"recipe.{name}": tensor for name, tensor in generator.recipe_tensors.items()}
    tensors = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values() or not tensor.numel():
            raise ArgumentError(f"The tensor {name} is {tensor.dtype} {list(tensor.shape)}, which is not stored.")
        if not finite(tensor):
            raise ArgumentError(f"The tensor {name} has values that are not finite as {generator.spec.storage}.")
    model = to_bytes(tensors, {METADATA: _identity(spec, recipe)})
    files = {MODEL: model}
    if holdout is not None:
        if not _holdout_fits(generator.spec, holdout) or not _labels_fit(generator.spec, holdout["labels"]):
            raise ArgumentError(
                "The test images do not fit the generator.",
                f"Give images, uint8 [N, {', '.join(map(str, generator.spec.image_shape))}], and labels, int64 [N].",
            )
        files[HOLDOUT] = to_bytes({name: tensor.cpu().contiguous() for name, tensor in holdout.items()})
    if preview is not None:
        files[PREVIEW] = preview
    if card is not None:
        files[CARD] = card.encode("utf-8")
    files[CONFIG] = config_bytes(
        {
            "format": f"{FORMAT_MAJOR}.{max(FORMAT_MINOR, generator.format_minor)}",
            "generator": spec,
            "recipe": recipe,
            "weights": {"sha256": hashlib.sha256(model).hexdigest(), "bytes": len(model)},
            "scores": jsonable(list(scores)),
            "provenance": jsonable(provenance or {}),
        }
    )
    write_folder(target, files)
    return target


def _require_replaceable(folder: Path) -> None:
    """Refuse to replace anything but a generator, and any file that would be lost."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ArgumentError(f"{folder} is a file.", "Choose a folder that is absent, empty, or a generator's.")
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise world_error(error, f"Reading the folder {folder}") from error
    if not names:
        return
    if CONFIG not in names:
        raise ArgumentError(f"The folder {folder} holds something else than a generator.", "Choose another folder.")
    if surplus := names - set(FILES):
        raise ArgumentError(
            f"The folder {folder} holds {min(surplus)!r:.120}, which replacing the generator would delete.",
            "Move it away, or choose another folder.",
        )
    if not {"format", "generator"} <= set(raw_config(folder)):
        raise ArgumentError(f"The {CONFIG} in {folder} is not a generator's.", "Choose another folder.")


def holdout(folder: str | os.PathLike[str]) -> tuple[Tensor, Tensor] | None:
    """Return the real test images that come with a generator.

    Returns:
        Images uint8 `[N, C, H, W]` and labels int64 `[N]`, or none if the folder has none.

    Raises:
        FormatError: If they are damaged, or do not fit the generator.
    """
    path = generator_folder(Path(folder)) / HOLDOUT
    spec = read_config(folder).generator
    if not path.exists():
        return None
    with TensorFile(path, max_bytes()) as file:
        if not _holdout_fits(spec, file.entries):
            raise FormatError(f"The test images of {path} do not fit the generator.")
        tensors = file.read()
    images, labels = tensors["images"], tensors["labels"]
    if not _labels_fit(spec, labels):
        raise FormatError(f"The test labels of {path} name a class that does not exist.")
    return images, labels


def _holdout_fits(spec: Spec, tensors: Mapping[str, Entry] | Mapping[str, Tensor]) -> bool:
    count = tuple(tensors["labels"].shape[:1]) if "labels" in tensors else ()
    implied = {"images": (torch.uint8, (*count, *spec.image_shape)), "labels": (torch.int64, count)}
    return (
        len(count) == 1 and count[0] > 0 and {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()} == implied
    )


def _labels_fit(spec: Spec, labels: Tensor) -> bool:
    return bool(((labels >= 0) & (labels < spec.num_classes)).all())
