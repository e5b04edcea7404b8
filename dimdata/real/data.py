"""A real dataset in memory, checked once, on entry."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dimdata.errors import DataError
from dimdata.spec import MAX_CLASSES, MAX_SIDE

MAX_CHANNELS = 64


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images.

    Attributes:
        images: uint8 `[N, C, H, W]`, 0 to 255.
        labels: int64 `[N]`.
        num_classes: How many classes there are; 0 = the highest label and one.
    """

    images: Tensor
    labels: Tensor
    num_classes: int = 0

    def __post_init__(self) -> None:
        if not self.num_classes:
            object.__setattr__(self, "num_classes", int(self.labels.max()) + 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self):,} images {'x'.join(map(str, self.images.shape[1:]))}, {self.num_classes} classes)"

    @property
    def counts(self) -> Tensor:
        """Images of each class, int64 `[num_classes]`."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    def select(self, rows: Tensor) -> Split:
        """Return the images of rows int64 `[M]`, in that order."""
        return Split(self.images[rows], self.labels[rows], self.num_classes)


@dataclass(frozen=True, eq=False, kw_only=True)
class RealData:
    """A real dataset; made by `load_real` or `from_arrays`, which check it.

    Attributes:
        name: What it was loaded as.
        train: The training images.
        test: The test images, if there are any.
        classes: Class names; label k is `classes[k]`.
        mean: Per-channel mean of the training images in [0, 1], for normalisation.
        std: Per-channel standard deviation, likewise.
        title: The name in print.
        licence: A licence identifier of the Hub, such as `cc-by-4.0`; `other` and `unknown` are such identifiers too.
        url: Where it comes from.
        citation: BibTeX.
        root: Where named datasets lie, as it was given to `load_real`; others that a run needs are looked for there.
    """

    name: str
    train: Split
    test: Split | None = None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    title: str = ""
    licence: str = "unknown"
    url: str = field(default="", repr=False)
    citation: str = field(default="", repr=False)
    root: str | Path | None = field(default=None, repr=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256 of the training images and labels, hexadecimal."""
        digest = hashlib.sha256(repr(tuple(self.train.images.shape)).encode())
        for tensor in (self.train.images, self.train.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        labels: Any,
        *,
        test_images: Any = None,
        test_labels: Any = None,
        classes: Sequence[str] | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        name: str = "arrays",
        title: str = "",
        licence: str = "unknown",
        url: str = "",
        citation: str = "",
    ) -> RealData:
        """Make a dataset of arrays, after checking them.

        Args:
            images: uint8 `[N, C, H, W]`, `[N, H, W, C]` or `[N, H, W]`, a tensor or a NumPy array.
            labels: Integers `[N]` in 0 to num_classes - 1.
            test_images: Like `images`.
            test_labels: Like `labels`.
            classes: Class names; the numbers themselves unless given.
            mean: Per-channel mean in [0, 1]; of the training images unless given.
            std: Per-channel standard deviation, likewise.
            name: What to call it.
            title: The name in print; `name` unless given.
            licence: A licence identifier.
            url: Where it comes from.
            citation: BibTeX.

        Raises:
            DataError: If the arrays cannot be used as they are.
        """
        count = None if classes is None else len(classes)
        train = _split(images, labels, f"the training part of {name}", count)
        names = tuple(map(str, range(train.num_classes) if classes is None else classes))
        if len(names) < 2:
            raise DataError(f"{name} has {len(names)} class; at least 2 are needed.", "Add images of another class.")
        if len(set(names)) < len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise DataError(f"{name} names the class {twice!r} twice.", "Give each class a name of its own.")
        empty = (train.counts == 0).nonzero().flatten().tolist()
        if empty:
            raise DataError(
                f"Class {empty[0]} ({names[empty[0]]}) of {name} has no training image.",
                "Add images of it, or leave the class out and number the others 0, 1, 2, ... without a gap.",
            )
        if (test_images is None) != (test_labels is None):
            lacking, there = ("labels", "images") if test_labels is None else ("images", "labels")
            raise DataError(f"{name} has test {there} but no test {lacking}.", "Give both, or neither.")
        test = None
        if test_images is not None:
            test = _split(test_images, test_labels, f"the test part of {name}", train.num_classes)
            if test.images.shape[1:] != train.images.shape[1:]:
                raise DataError(
                    f"Test images of {name} are {_size(test.images)}, training images {_size(train.images)}.",
                    "Bring both to one size and number of channels.",
                )
        own_mean, own_std = (mean, std) if mean and std else _moments(train.images)
        return cls(
            name=name,
            train=train,
            test=test,
            classes=names,
            mean=mean or own_mean,
            std=std or own_std,
            title=title or name,
            licence=licence,
            url=url,
            citation=citation,
        )


def _size(images: Tensor) -> str:
    return "x".join(map(str, images.shape[1:]))


def _tensor(values: Any, what: str) -> Tensor:
    if isinstance(values, np.ndarray):
        if values.dtype.hasobject:
            raise DataError(f"{what} are an array of objects.", "Save them as an array of numbers.")
        values = np.require(values, requirements=["C", "W"])
    try:
        return torch.as_tensor(values, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} are no array of numbers: {error}.", "Give a tensor or a NumPy array.") from error


def _split(images: Any, labels: Any, what: str, num_classes: int | None) -> Split:
    """Check images and labels; without `num_classes`, the highest label says how many classes there are."""
    x, y = _tensor(images, f"The images of {what}"), _tensor(labels, f"The labels of {what}")
    if x.dtype != torch.uint8:
        raise DataError(
            f"The images of {what} are {str(x.dtype).removeprefix('torch.')}; uint8 from 0 to 255 is expected.",
            "Scale them to 0..255, round, and convert them to uint8.",
        )
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise DataError(
            f"The labels of {what} are {str(y.dtype).removeprefix('torch.')}; integers are expected.",
            "Give the number of the class of each image.",
        )
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim != 4:
        raise DataError(
            f"The images of {what} have the shape {tuple(x.shape)}.",
            "Give [N, C, H, W], [N, H, W, C] or [N, H, W].",
        )
    if x.shape[3] <= 4 < x.shape[1]:
        x = x.permute(0, 3, 1, 2)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or len(y) != len(x):
        raise DataError(
            f"There are {len(x)} images in {what}, but labels of the shape {tuple(y.shape)}.",
            "Give one label for each image.",
        )
    if not len(x):
        raise DataError(f"There are no images in {what}.", "Give at least one for each class.")
    channels, height, width = x.shape[1:]
    if not (1 <= channels <= MAX_CHANNELS and 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise DataError(
            f"The images of {what} are {_size(x)}; 1 to {MAX_CHANNELS} channels and sides of 1 to {MAX_SIDE} are read.",
            "Resize them first.",
        )
    y = y.to(torch.int64)
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= (num_classes or MAX_CLASSES):
        expected = f"0 to {num_classes - 1}" if num_classes else f"0 to {MAX_CLASSES - 1} at most"
        raise DataError(f"The labels of {what} run from {low} to {high}, not {expected}.", "Number the classes from 0.")
    return Split(x.contiguous(), y, num_classes or high + 1)


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel, in float64, by way of exact histograms."""
    means, stds = [], []
    values = torch.arange(256, dtype=torch.float64, device="cpu") / 255
    for channel in images.unbind(1):
        counts = torch.zeros(256, dtype=torch.int64, device="cpu")
        for begin in range(0, len(channel), 1024):  # bincount widens to int64, so a part at a time
            counts += torch.bincount(channel[begin : begin + 1024].flatten(), minlength=256)
        weights = counts.double() / channel.numel()
        mean = float(weights @ values)
        means.append(mean)
        stds.append(max(float(weights @ (values - mean) ** 2) ** 0.5, 1 / 255))  # of one colour: still divisible
    return tuple(means), tuple(stds)
