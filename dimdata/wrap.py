"""Published distilled sets as generators: a `.npz` of images and labels becomes a table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dimdata.errors import ArgumentError, DataError, NotFoundError
from dimdata.generators.table import TableGenerator, table_generator
from dimdata.real.sources import require_archive
from dimdata.recipe import Leg, Recipe
from dimdata.spec import MAX_CLASSES, MAX_SIDE
from dimdata.tensorfile import finite

IMAGES = ("images", "x")
LABELS = ("labels", "y")
TARGETS = ("targets",)
CLASSES = ("classes",)
CHANNELS = (1, 3)
_ROUNDING = 1e-3  # of the sum of a distribution that was stored in half precision
MAX_VALUE = 64.0  # normalised and learned images stay far below; images in 0..255 do not
MAX_DEVIATION = 0.6  # images in [0, 1] have 0.5 at most, and learned ones about as much; normalised ones have 1

log = logging.getLogger("dimdata")


def wrap_npz(
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dataset: str = "",
    recipe: Recipe | None = None,
    normalized: bool = False,
) -> TableGenerator:
    """Make a table generator of a `.npz` file.

    Rows are put in the order of the index, slot by slot with one image of each class, so that a prefix of a balanced
    set is balanced.

    Args:
        path: A file with `images` (or `x`): uint8 in 0..255 or floating, `[N, H, W]`, `[N, H, W, C]` or
            `[N, C, H, W]` with 1 or 3 channels; and `labels` (or `y`): integers `[N]`, or `targets`: floating
            `[N, num_classes]`, each row a distribution over the classes.
        classes: Class names; those of the file's `classes`, or "0", "1", ..., unless given.
        mean: Per-channel mean of the real images for normalisation; that of these images unless given.
        std: Per-channel standard deviation, likewise.
        dataset: The real dataset it stands for.
        recipe: How to train on it; 1,000 epochs of SGD (0.01, momentum 0.9, weight decay 5e-4, batch 256) unless given.
        normalized: Whether the floating images are stored normalised by `mean` and `std`, which must then be given.

    Raises:
        NotFoundError: If there is no such file.
        DataError: If its arrays are missing, mixed, not finite, do not fit one another, or targets are no
            distributions.
        ArgumentError: If `mean` or `std` do not fit the channels, or are missing where the images are normalised.
    """
    arrays = _arrays(Path(path).expanduser())
    images = _images(arrays[IMAGES[0]])
    images = _denormalized(images, mean, std) if normalized else _told(images)
    targets = _targets(arrays[TARGETS[0]]) if TARGETS[0] in arrays else None
    labels = targets.argmax(1) if targets is not None else _labels(arrays[LABELS[0]])
    if len(labels) != len(images):
        raise DataError(f"There are {len(images):,} images but {len(labels):,} labels.")
    if classes is None and CLASSES[0] in arrays and arrays[CLASSES[0]].dtype.kind == "U":
        classes = [str(name) for name in arrays[CLASSES[0]].ravel()]
    names = _names(classes, int(labels.max()) + 1 if targets is None else targets.shape[1], exact=targets is not None)
    order = _index_order(labels)
    images, labels = images[order], labels[order]
    return table_generator(
        images,
        labels=labels if targets is None else None,
        targets=targets[order] if targets is not None else None,
        classes=names,
        mean=_statistic("mean", mean, images),
        std=_statistic("std", std, images),
        recipe=recipe or Recipe(legs=(Leg(epochs=1000, batch_size=min(256, len(images))),)),
        dataset=dataset,
    )


def _arrays(path: Path) -> dict[str, Any]:
    """Read the arrays, under the first of their names."""
    if not path.is_file():
        raise NotFoundError(f"There is no file {path!s:.200}.")
    require_archive(path)
    found, names = {}, []
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.lib.npyio.NpzFile):
            with archive:
                names = archive.files
                for group in (IMAGES, LABELS, TARGETS, CLASSES):
                    if name := next((name for name in group if name in names), None):
                        found[group[0]] = archive[name]
    except Exception as error:  # of a damaged file numpy and zipfile raise what they like
        if "allow_pickle" in str(error):
            raise DataError(f"{path} holds Python objects, which are not read.", "Save plain arrays.") from error
        raise DataError(
            f"{path} is not a readable .npz file: {error!s:.120}.", "Save it again with numpy.savez."
        ) from error
    if not names:
        raise DataError(f"{path} holds no named arrays.", "Save images and labels together with numpy.savez.")
    held = ", ".join(names)
    if IMAGES[0] not in found:
        raise DataError(f"{path} has no array called {' or '.join(IMAGES)}; it holds {held:.120}.")
    if (LABELS[0] in found) == (TARGETS[0] in found):
        raise DataError(
            f"{path} must have either {' or '.join(LABELS)} or {TARGETS[0]}; it holds {held:.120}.",
        )
    return found


def _images(array: Any) -> Tensor:
    """Return uint8 or float32 `[N, C, H, W]`."""
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"The images are {array.dtype}.", "Give uint8 in 0..255, or floating values.")
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or not array.size:
        raise DataError(
            f"The images have the shape {list(array.shape)}.", "Give [N, H, W], [N, H, W, C] or [N, C, H, W]."
        )
    first, last = array.shape[1] in CHANNELS, array.shape[3] in CHANNELS
    if first == last:
        which = "could have their channels first or last" if first else "have neither 1 nor 3 channels"
        raise DataError(f"The images of shape {list(array.shape)} {which}.", "Give [N, H, W], or 1 or 3 channels.")
    if last:
        array = np.moveaxis(array, 3, 1)
    if max(array.shape[2:]) > MAX_SIDE:
        raise DataError(f"The images have the sides {list(array.shape[2:])}; {MAX_SIDE} at most are read.")
    kind = np.uint8 if array.dtype == np.uint8 else np.float32
    with np.errstate(over="ignore"):
        images = torch.from_numpy(np.ascontiguousarray(array, dtype=kind))
    if not finite(images):
        raise DataError("The images have values that are not finite.")
    if images.is_floating_point() and float(images.abs().max()) > MAX_VALUE:
        raise DataError(
            f"The floating images run from {float(images.min()):g} to {float(images.max()):g}.",
            "Scale them to [0, 1], or give uint8 in 0..255.",
        )
    return images


def _denormalized(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """Return images in [0, 1], or about it."""
    if not images.is_floating_point():
        raise ArgumentError("Images of uint8 are in 0..255, not normalised.", "Leave out normalized.")
    if mean is None or std is None:
        raise ArgumentError(
            "What the images are normalised by is not known.",
            "Give mean and std, or on the command line a --dataset that dimdata knows.",
        )
    shift, scale = (
        torch.tensor(_statistic(name, given, images))[:, None, None] for name, given in (("mean", mean), ("std", std))
    )
    return images * scale + shift


def _told(images: Tensor) -> Tensor:
    """Return the images, and warn where they seem to be stored normalised: students would normalise them once more."""
    if images.is_floating_point() and float(images.std(unbiased=False)) > MAX_DEVIATION:
        log.warning(
            "The floating images deviate by %.2f from their mean, and values in [0, 1] by 0.5 at most: if they are "
            "stored normalised, say so (normalized=True, or --normalized).",
            float(images.std(unbiased=False)),
        )
    return images


def _labels(array: Any) -> Tensor:
    """Return int64 `[N]`."""
    if array.dtype.kind not in "iu":
        raise DataError(f"The labels are {array.dtype}, not integers.", "Distributions over the classes are `targets`.")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not array.size:
        raise DataError(f"The labels have the shape {list(array.shape)}, not [N].")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= MAX_CLASSES:
        raise DataError(f"The labels run from {low} to {high}; 0 to {MAX_CLASSES - 1} are read.")
    return torch.from_numpy(array.astype(np.int64))


def _targets(array: Any) -> Tensor:
    """Return float32 `[N, num_classes]`."""
    if array.dtype.kind != "f" or array.ndim != 2 or not array.size or array.shape[1] > MAX_CLASSES:
        raise DataError(f"The targets are {array.dtype} {list(array.shape)}, not floating [N, num_classes].")
    with np.errstate(over="ignore"):
        targets = torch.from_numpy(array.astype(np.float32))
    if not finite(targets):
        raise DataError("The targets have values that are not finite.")
    if float(targets.min()) < 0 or not bool((targets.sum(1) - 1).abs().max() < _ROUNDING):
        raise DataError(
            "The targets are no distributions: values are below 0, or do not add up to 1 for each image.",
            "Save the softmax of logits, or divide each row by its sum.",
        )
    return targets


def _names(classes: Sequence[str] | None, count: int, *, exact: bool) -> tuple[str, ...]:
    if classes is None:
        return tuple(map(str, range(count)))
    if len(set(classes)) != len(classes):
        raise ArgumentError("A class is named twice.")
    if len(classes) < count or (exact and len(classes) != count):
        raise DataError(f"{len(classes)} classes are named, but the file has {count}.", "Name every class once.")
    return tuple(classes)


def _index_order(labels: Tensor) -> Tensor:
    """Return the order by (slot, label), where the slot counts the images of a class as they come."""
    by_label = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    starts = (counts.cumsum(0) - counts)[labels[by_label]]
    slot = torch.empty_like(labels)
    slot[by_label] = torch.arange(len(labels), device="cpu") - starts
    return torch.argsort(slot * len(counts) + labels)


def _statistic(name: str, given: Sequence[float] | None, images: Tensor) -> tuple[float, ...]:
    """Return what is given for each channel, or the statistic of the images in [0, 1]."""
    if given is not None:
        if len(given) != images.shape[1]:
            raise ArgumentError(f"{name} has {len(given)} values, but the images have {images.shape[1]} channels.")
        return tuple(float(value) for value in given)
    values = torch.stack([_moment(name, channel) for channel in images.unbind(1)])
    if images.dtype == torch.uint8:
        values = values / 255
    return tuple(round(float(value), 6) or 1.0 if name == "std" else round(float(value), 6) for value in values)


def _moment(name: str, channel: Tensor) -> Tensor:
    values = channel.to(torch.float32)
    return values.mean() if name == "mean" else values.std(unbiased=False)
