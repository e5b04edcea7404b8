"""Differentiable augmentation of batches: DSA (Zhao and Bilen, ICML 2021) and CutMix (Yun et al., ICCV 2019).

An augmentation is written as names joined by `+`, such as `flip+crop+cutout`. A name may carry a strength,
`crop:0.25`; without, it is the field's:

| name | strength | without |
|---|---|---|
| `flip` | the share of images mirrored | 0.5 |
| `crop` | how far the image moves, as a share of its side | 0.125 |
| `cutout` | side of the blank rectangle, as a share of the image's | 0.5 |
| `color` | 1 is DSA's brightness 1, saturation 2 and contrast 0.5; 0 is none | 1 |
| `scale` | the greatest factor that a side is stretched by | 1.2 |
| `rotate` | the greatest angle in degrees | 15 |
| `cutmix` | the share of batches mixed | 0.5 |

The same names mean quite different strengths in three *dialects*: `each` applies every operation to every image (DiM);
`one` applies a single operation, drawn for each batch (DC, DSA, DM and MTT); `idc` applies colour, flip and cutout to
every image, and a single one of the others (IDC, DREAM). CutMix comes last in any dialect.

The parameters of an image are a pure function of a key and the image's number, so augmenting two batches with one key
treats the k-th images of both alike (siamese), and no random state is touched.

Strengths are meant for images normalised to zero mean and unit deviation (a blank is then the mean colour); on images
in [0, 1] the colour operations are stronger and a blank is black.
"""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dimdata import latents
from dimdata.errors import ArgumentError
from dimdata.registry import Registry

Dialect = Literal["each", "one", "idc"]
DIALECTS: tuple[Dialect, ...] = typing.get_args(Dialect)

Apply = Callable[[Tensor, Tensor, float], Tensor]
Mix = Callable[[Tensor, Tensor, int, float], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Operation:
    """One augmentation of images.

    Attributes:
        values: How many random values an image needs.
        apply: Maps images `[B, C, H, W]`, uniform values in [0, 1) `[B, values]` and the strength to images of the
            same shape.
        strength: Used where none is written.
        least: The least strength.
        most: The greatest.
        always: Whether the dialect `idc` applies it to every batch.
    """

    values: int
    apply: Apply
    strength: float
    least: float
    most: float
    always: bool = False


@dataclass(frozen=True)
class Mixing:
    """One augmentation that mixes images and their targets.

    Attributes:
        apply: Maps images `[B, C, H, W]`, targets `[B, K]` (distributions), a folded key and the strength to new ones.
        strength: As in `Operation`, and so are `least` and `most`.
    """

    apply: Mix
    strength: float
    least: float
    most: float


AUGMENTATIONS: Registry[Operation | Mixing] = Registry("augmentation", "dimdata.augmentations")

_BRIGHTNESS, _SATURATION, _CONTRAST = 1.0, 2.0, 1.0  # widths of the ranges at strength 1

_PARAMETERS = latents.stream("augment")
_CHOICE = latents.stream("augment.choice")
_MIX = latents.stream("augment.mix")


def operation(
    name: str, values: int, strength: float, least: float = 0.0, most: float = 1.0, always: bool = False
) -> Callable[[Apply], Apply]:
    """Return a decorator that registers an augmentation; arguments as in `Operation`."""

    def add(apply: Apply) -> Apply:
        AUGMENTATIONS.register(name)(Operation(values, apply, strength, least, most, always))
        return apply

    return add


@operation("flip", 1, strength=0.5, always=True)
def flip(images: Tensor, values: Tensor, share: float) -> Tensor:
    """Mirror a share of the images, left to right."""
    return torch.where(values[:, 0, None, None, None] < share, images.flip(3), images)


@operation("crop", 2, strength=1 / 8)
def crop(images: Tensor, values: Tensor, pad: float) -> Tensor:
    """Move the image by up to a share of each side; what comes in is blank."""
    batch, channels, height, width = images.shape
    top, left = math.floor(height * pad + 0.5), math.floor(width * pad + 0.5)
    padded = F.pad(images, (left, left, top, top))
    # In half precision a value may be rounded up to 1.
    rows = (values[:, 0] * (2 * top + 1)).long().clamp_(max=2 * top)[:, None] + torch.arange(
        height, device=images.device
    )
    columns = (values[:, 1] * (2 * left + 1)).long().clamp_(max=2 * left)[:, None] + torch.arange(
        width, device=images.device
    )
    moved = padded.gather(2, rows[:, None, :, None].expand(batch, channels, height, padded.shape[3]))
    return moved.gather(3, columns[:, None, None, :].expand(batch, channels, height, width))


@operation("cutout", 2, strength=0.5, always=True)
def cutout(images: Tensor, values: Tensor, share: float) -> Tensor:
    """Blank a rectangle of a share of each side; its centre is anywhere, so some of it may lie outside."""
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for axis, side in ((0, images.shape[2]), (1, images.shape[3])):
        size = math.floor(side * share + 0.5)
        start = (values[:, axis] * (side + 1 - size % 2)).long()[:, None] - size // 2
        place = torch.arange(side, device=images.device)
        within = (place >= start) & (place < start + size)
        inside = inside & (within[:, :, None] if axis == 0 else within[:, None, :])
    return images * ~inside[:, None]


@operation("color", 3, strength=1.0, always=True)
def color(images: Tensor, values: Tensor, strength: float) -> Tensor:
    """Shift the brightness, then scale the distance to grey (saturation) and to the mean (contrast)."""
    brightness, saturation, contrast = ((values - 0.5) * strength)[:, :, None, None, None].unbind(1)
    images = images + brightness * _BRIGHTNESS
    images = torch.lerp(images.mean(1, keepdim=True), images, 1 + saturation * _SATURATION)
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, 1 + contrast * _CONTRAST)


@operation("scale", 2, strength=1.2, least=1.0, most=4.0)
def scale(images: Tensor, values: Tensor, most: float) -> Tensor:
    """Stretch each side by a factor between 1/`most` and `most`."""
    factors = values * (most - 1 / most) + 1 / most
    return _warp(images, torch.diag_embed(factors))


@operation("rotate", 1, strength=15.0, most=180.0)
def rotate(images: Tensor, values: Tensor, degrees: float) -> Tensor:
    """Turn by up to so many degrees either way."""
    angle = (values[:, 0] - 0.5) * (2 * math.radians(degrees))
    sine, cosine = angle.sin(), angle.cos()
    return _warp(images, torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2))


def _warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Sample images at places transformed by `matrices` `[B, 2, 2]` about the centre; outside is blank."""
    grid = F.affine_grid(F.pad(matrices, (0, 1)), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), align_corners=False)


def cutmix(images: Tensor, targets: Tensor, key: int, share: float) -> tuple[Tensor, Tensor]:
    """Replace, in a share of the batches, one rectangle of every image by that of another image of the batch.

    The rectangle's area is uniform before it is cut off at the border, and targets are mixed by what is left of it.
    """
    chance, area, row, column = (_uniform(latents.fold(key, number)) for number in range(4))
    if chance >= share:
        return images, targets
    height, width = images.shape[2:]
    top, bottom = _span(height, row, math.sqrt(area))
    left, right = _span(width, column, math.sqrt(area))
    order = latents.permutation(latents.fold(key, 4), len(images), images.device)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right][order]
    return mixed, torch.lerp(targets, targets[order], (bottom - top) * (right - left) / (height * width))


AUGMENTATIONS.register("cutmix")(Mixing(cutmix, strength=0.5, least=0.0, most=1.0))


def _span(side: int, centre: float, share: float) -> tuple[int, int]:
    """Return where a stretch of a share of a side begins and ends, about a place in [0, 1) of it."""
    middle, half = int(centre * side), int(share * side) // 2
    return max(0, middle - half), min(side, middle + half)


@functools.lru_cache(maxsize=32)
def _parameters(words: tuple[int, ...], count: int, size: int, device: torch.device) -> Tensor:
    """Return the values `[len(words), count, size]` of several operations for the images 0, 1, 2 ... of a batch.

    Two batches augmented alike are so within a step: only the last few are kept.
    """
    return latents.uniforms(words, torch.arange(count, device=device), size)


def _uniform(word: int) -> float:
    """Return a 64-bit word as a value in [0, 1)."""
    return (word >> 11) * 2.0**-53


Kind = TypeVar("Kind", Operation, Mixing)


@dataclass(frozen=True)
class Step(Generic[Kind]):
    """An operation by name, at a strength.

    Attributes:
        name: As registered.
        does: What is registered.
        strength: What is written, or the operation's own.
        word: Tells its random values from those of other operations.
    """

    name: str
    does: Kind
    strength: float
    word: int


@dataclass(frozen=True)
class Augment:
    """Operations on a batch, in order; make one with `parse`.

    Attributes:
        steps: What is done to images.
        mixes: What mixes images and targets, afterwards.
        dialect: Which of the steps a batch goes through; see the module.
    """

    steps: tuple[Step[Operation], ...] = ()
    mixes: tuple[Step[Mixing], ...] = ()
    dialect: Dialect = "each"

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
        if not self.steps:
            return images
        chosen = self._chosen(key)
        if not chosen:
            return images
        words = tuple(latents.fold(_PARAMETERS, step.word, key) for step in chosen)
        most = max(step.does.values for step in chosen)  # all at once: on a GPU, launches are what they cost
        if index is None:
            values = _parameters(words, len(images), most, images.device)
        else:
            values = latents.uniforms(words, index, most)
        # A copy, since what is kept must not change, whatever an operation does to its values.
        for step, own in zip(chosen, values.to(images.dtype, copy=True), strict=True):
            images = step.does.apply(images, own[:, : step.does.values], step.strength)
        return images

    def mix(self, images: Tensor, targets: Tensor, num_classes: int, key: int) -> tuple[Tensor, Tensor]:
        """Mix the images of a batch, and their targets likewise.

        Args:
            images: Floating `[B, C, H, W]`.
            targets: int64 `[B]`, or distributions `[B, num_classes]`.
            num_classes: How many classes there are.
            key: As in `__call__`.

        Returns:
            Images and targets as they are where nothing mixes; else images, and targets as distributions
            `[B, num_classes]` whether this batch was mixed or not, so that all batches are of one kind.
        """
        if not self.mixes:
            return images, targets
        if not targets.is_floating_point():
            targets = F.one_hot(targets, num_classes).to(images.dtype)
        for step in self.mixes:
            images, targets = step.does.apply(images, targets, latents.fold(_MIX, step.word, key), step.strength)
        return images, targets

    def _chosen(self, key: int) -> tuple[Step[Operation], ...]:
        """Return the steps of a batch."""
        if self.dialect == "each":
            return self.steps
        free = [step for step in self.steps if self.dialect == "one" or not step.does.always]
        drawn = free[latents.fold(_CHOICE, key) % len(free)] if free else None
        return tuple(step for step in self.steps if step is drawn or step not in free)


def parse(text: str, dialect: str = "each", *, mixing: bool = False) -> Augment:
    """Read `flip+crop:0.25` into an augmentation; the empty text and `none` leave images as they are.

    Args:
        text: Names joined by `+`, each with a strength after a colon or without; see the module.
        dialect: `each`, `one` or `idc`.
        mixing: Whether there are targets, for operations that mix them.

    Raises:
        NotFoundError: If an operation is not registered.
        ArgumentError: If the dialect is unknown, a strength is no number in the operation's range, or targets would
            be mixed where there are none.
    """
    if dialect not in DIALECTS:
        raise ArgumentError(f"The dialect of the augmentation is {dialect!r:.40}.", f"Use {', '.join(DIALECTS)}.")
    steps: list[Step[Operation]] = []
    mixes: list[Step[Mixing]] = []
    for word in () if text in ("", "none") else text.split("+"):
        name, colon, written = word.partition(":")
        does = AUGMENTATIONS[name]
        strength = _strength(name, does, written) if colon else does.strength
        if isinstance(does, Operation):
            steps.append(Step(name, does, strength, latents.stream(name)))
        elif mixing:
            mixes.append(Step(name, does, strength, latents.stream(name)))
        else:
            raise ArgumentError(f"{name} mixes labels, which this augmentation does not see.", "Leave it out here.")
    return Augment(tuple(steps), tuple(mixes), dialect)


def _strength(name: str, does: Operation | Mixing, written: str) -> float:
    """Return a strength as written."""
    try:
        strength = float(written)
    except ValueError:
        strength = math.nan
    if not does.least <= strength <= does.most:
        raise ArgumentError(
            f"The strength of {name} is {written!r:.40}; it is a number from {does.least:g} to {does.most:g}.",
            f"Write {name} for the usual {does.strength:g}.",
        )
    return strength
