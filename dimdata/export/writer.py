"""The seam of export formats: a writer takes batches of a draw, one after another, and never holds them all."""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dimdata.registry import Registry

FORMATS: Registry[type[Writer]] = Registry("export format", "dimdata.exports", ("dimdata.export.formats",))

MAX_NAME = 120  # bytes of a folder's name


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be written.

    Attributes:
        images: How many, over all epochs.
        image_shape: (channels, height, width).
        classes: Class names; label k is `classes[k]`.
        soft: Whether targets are distributions.
        dtype: `torch.uint8` or `torch.float32`, of the images that `add` is given.
        shard_size: Images of a shard, for formats that have shards.
        dataset: The real dataset the images stand for; may be empty.
        facts: Where the images come from, for the metadata of formats that have some.
    """

    images: int
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    soft: bool
    dtype: torch.dtype
    shard_size: int
    dataset: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digits(self) -> int:
        """Digits of an image's number."""
        return max(5, len(str(self.images - 1)))


@dataclass(frozen=True)
class Batch:
    """A part of a draw.

    Attributes:
        first: Number of the first image; numbers count on over the epochs.
        images: `[B, C, H, W]` on the CPU, of the plan's type.
        labels: int64 `[B]`.
        targets: float32 `[B, num_classes]`; none where targets are the labels.
    """

    first: int
    images: Tensor
    labels: Tensor
    targets: Tensor | None = None


class Writer(ABC):
    """Writes a draw into a folder that nobody reads yet; equal batches give equal bytes.

    Args:
        folder: Empty.
        plan: What will come.
    """

    floats: ClassVar[bool] = False
    """Whether it can hold float32 images."""
    channels: ClassVar[tuple[int, ...]] = ()
    """Numbers of channels that it can hold; empty = any."""
    folders: ClassVar[bool] = False
    """Whether each class has a folder of its own, called by `folder_names`."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan

    @abstractmethod
    def add(self, batch: Batch) -> None:
        """Write a batch; batches come in order."""

    @abstractmethod
    def finish(self) -> None:
        """Write what comes last."""

    @abstractmethod
    def close(self) -> None:
        """Let go of open files, after `finish` or after a failure; errors count no more."""

    @classmethod
    @abstractmethod
    def usage(cls, plan: Plan) -> str:
        """Return Python code that loads what was written."""

    @classmethod
    def notes(cls, plan: Plan) -> list[str]:
        """Return what a reader must know of this format, one sentence or two each."""
        return []


def folder_names(classes: Sequence[str]) -> list[str]:
    """Return the names of the classes' folders, which any file system can hold.

    Readers number classes by the order of their folders' names. Where plain names would number them otherwise, or are
    no safe names, every folder's name begins with its label, so that the order is that of the labels.
    """
    plain = [_safe(name) for name in classes]
    if all(map(_usable, plain)) and _rising(plain) and not set(plain) <= _PARTS:
        return plain
    digits = len(str(len(plain) - 1))
    return [f"{label:0{digits}}_{name.strip('._-')}".rstrip("_") for label, name in enumerate(plain)]


_PARTS = {"train", "test", "val", "valid", "validation"}  # names that readers take for parts of a dataset
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows


def _safe(name: str) -> str:
    text = re.sub(r"[^\w.+-]+", "_", unicodedata.normalize("NFC", name))
    return text.encode()[:MAX_NAME].decode(errors="ignore")


def _usable(name: str) -> bool:
    return bool(name) and name[0] not in "._-" and name[-1] != "." and not _RESERVED.fullmatch(name)


def _rising(names: Sequence[str]) -> bool:
    """Whether the order is that of the names, with and without regard to case, and no two are alike."""
    folded = [name.casefold() for name in names]
    return len(set(folded)) == len(folded) and list(names) == sorted(names) and folded == sorted(folded)
