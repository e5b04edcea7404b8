"""Differentiable augmentation of batches, after DSA (Zhao and Bilen, ICML 2021).

The parameters of an image are a pure function of a key and the image's number, so augmenting two batches with one key
treats the k-th images of both alike (siamese), and no random state is touched.

Strengths are DSA's, meant for images normalised to zero mean and unit deviation (a blank is then the mean colour);
on images in [0, 1] the colour operations are stronger and a blank is black.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dimdata import latents
from dimdata.errors import ArgumentError
from dimdata.registry import Registry


@dataclass(frozen=True)
class Operation:
    """One augmentation.

    Attributes:
        values: How many random values an image needs.
        apply: Maps images `[B, C, H, W]` and uniform values in [0, 1) `[B, values]` to images of the same shape.
    """

    values: int
    apply: Callable[[Tensor, Tensor], Tensor]


AUGMENTATIONS: Registry[Operation] = Registry("augmentation", "dimdata.augmentations")

_PAD = 1 / 8  # of a side
_CUTOUT = 0.5
_BRIGHTNESS, _SATURATION, _CONTRAST = 1.0, 2.0, 0.5
_SCALE = 1.2
_DEGREES = 15.0

_PARAMETERS = latents.stream("augment")
_CHOICE = latents.stream("augment.choice")

Apply = Callable[[Tensor, Tensor], Tensor]


def operation(name: str, values: int) -> Callable[[Apply], Apply]:
    """Return a decorator that registers an augmentation of `values` random values an image."""

    def add(apply: Apply) -> Apply:
        AUGMENTATIONS.register(name)(Operation(values, apply))
        return apply

    return add


@operation("flip", 1)
def flip(images: Tensor, values: Tensor) -> Tensor:
    """Mirror half of the images, left to right."""
    return torch.where(values[:, 0, None, None, None] < 0.5, images.flip(3), images)


@operation("crop", 2)
def crop(images: Tensor, values: Tensor) -> Tensor:
    """Move the image by up to an eighth of each side; what comes in is blank."""
    batch, channels, height, width = images.shape
    top, left = math.floor(height * _PAD + 0.5), math.floor(width * _PAD + 0.5)
    padded = F.pad(images, (left, left, top, top))
    rows = (values[:, 0] * (2 * top + 1)).long()[:, None] + torch.arange(height, device=images.device)
    columns = (values[:, 1] * (2 * left + 1)).long()[:, None] + torch.arange(width, device=images.device)
    moved = padded.gather(2, rows[:, None, :, None].expand(batch, channels, height, padded.shape[3]))
    return moved.gather(3, columns[:, None, None, :].expand(batch, channels, height, width))


@operation("cutout", 2)
def cutout(images: Tensor, values: Tensor) -> Tensor:
    """Blank a rectangle of half of each side; its centre is anywhere, so some of it may lie outside."""
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for axis, side in ((0, images.shape[2]), (1, images.shape[3])):
        size = math.floor(side * _CUTOUT + 0.5)
        start = (values[:, axis] * (side + 1 - size % 2)).long()[:, None] - size // 2
        place = torch.arange(side, device=images.device)
        within = (place >= start) & (place < start + size)
        inside = inside & (within[:, :, None] if axis == 0 else within[:, None, :])
    return images * ~inside[:, None]


@operation("color", 3)
def color(images: Tensor, values: Tensor) -> Tensor:
    """Shift the brightness, then scale the distance to grey (saturation) and to the mean (contrast)."""
    brightness, saturation, contrast = values[:, :, None, None, None].unbind(1)
    images = images + (brightness - 0.5) * _BRIGHTNESS
    images = torch.lerp(images.mean(1, keepdim=True), images, saturation * _SATURATION)
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast + _CONTRAST)


@operation("scale", 2)
def scale(images: Tensor, values: Tensor) -> Tensor:
    """Stretch each side by a factor between 1/1.2 and 1.2."""
    factors = values * (_SCALE - 1 / _SCALE) + 1 / _SCALE
    return _warp(images, torch.diag_embed(factors))


@operation("rotate", 1)
def rotate(images: Tensor, values: Tensor) -> Tensor:
    """Turn by up to 15 degrees either way."""
    angle = (values[:, 0] - 0.5) * (2 * math.radians(_DEGREES))
    sine, cosine = angle.sin(), angle.cos()
    return _warp(images, torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2))


def _warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Sample images at places transformed by `matrices` `[B, 2, 2]` about the centre; outside is blank."""
    grid = F.affine_grid(F.pad(matrices, (0, 1)), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), align_corners=False)


@dataclass(frozen=True)
class Augment:
    """Operations on a batch, in order; make one with `parse`.

    Attributes:
        names: Registered names.
        dialect: `each` (every operation on every image) or `one` (one operation of the list a batch).
    """

    names: tuple[str, ...]
    dialect: str = "each"

    def __call__(self, images: Tensor, key: int, index: Tensor | None = None) -> Tensor:
        """Augment images.

        Args:
            images: Floating `[B, C, H, W]`.
            key: A folded key, such as `latents.fold(seed, step)`; equal keys give equal parameters.
            index: int64 `[B]`, the number of each image; its place in the batch unless given. Equal numbers are
                treated alike, so zeros give the whole batch one set of parameters.

        Returns:
            `[B, C, H, W]`, differentiable in the images.
        """
        if index is None:
            index = torch.arange(len(images), device=images.device)
        for name in self._chosen(key):
            chosen = AUGMENTATIONS[name]
            word = latents.fold(_PARAMETERS, latents.stream(name), key)
            values = latents.uniform(word, index, chosen.values)
            images = chosen.apply(images, values.to(images.dtype))
        return images

    def _chosen(self, key: int) -> tuple[str, ...]:
        if self.dialect == "one" and self.names:
            return (self.names[latents.fold(_CHOICE, key) % len(self.names)],)
        return self.names


def parse(text: str, dialect: str = "each") -> Augment:
    """Read `flip+crop` into an augmentation; the empty text and `none` leave images as they are.

    Raises:
        NotFoundError: If an operation is not registered.
        ArgumentError: If the dialect is neither `each` nor `one`.
    """
    if dialect not in ("each", "one"):
        raise ArgumentError(f"The dialect of the augmentation is {dialect!r}.", "Use each or one.")
    names = () if text in ("", "none") else tuple(text.split("+"))
    for name in names:
        AUGMENTATIONS[name]
    return Augment(names, dialect)
