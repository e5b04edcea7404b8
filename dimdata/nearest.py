"""Are training images stored? Distances of draws to the nearest one, beside those of held-out real images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dimdata import latents
from dimdata.errors import ArgumentError, DataError
from dimdata.generators.base import Generator
from dimdata.spec import Record, require

_CHOICE = latents.stream("nearest held-out")
_BLOCK = 8_192  # training images compared at a time: bounds the memory at about 100 MB for 32x32 colour images


@dataclass(frozen=True, kw_only=True)
class NearestCheck(Record):
    """Distances to the nearest training image: root mean square per pixel, of images in [0, 1].

    Attributes:
        draws: How many draws were compared.
        held_out: How many held-out real images were compared.
        train: How many training images they were compared with.
        generated: Least, 1 % quantile and median distance of the draws.
        real: The same of the held-out images.
        closer: Draws nearer to a training image than the 1 % quantile of the held-out images; about 1 % of `draws`
            where the draws are no nearer to the training images than new real images are.
    """

    draws: int
    held_out: int
    train: int
    generated: tuple[float, float, float]
    real: tuple[float, float, float]
    closer: int

    @classmethod
    def label(cls) -> str:
        """Return the name of this record in messages."""
        return "nearest-image check"

    def check(self) -> None:
        """See `Record.check`."""
        require(min(self.draws, self.held_out, self.train) > 0, "nearest-image check: nothing was compared.")
        require(0 <= self.closer <= self.draws, "nearest-image check: more draws are close than there are.")


def distances(queries: Tensor, pool: Tensor) -> Tensor:
    """Return the distance of each query to the nearest image of a pool.

    Args:
        queries: float `[Q, C, H, W]` in [0, 1].
        pool: `[N, C, H, W]`, uint8 in 0..255 or float in [0, 1].

    Returns:
        float32 `[Q]`: root mean square difference per pixel.
    """
    flat = queries.flatten(1).float()
    best = torch.full((len(flat),), torch.inf, device=flat.device)
    where = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
    for start in range(0, len(pool), _BLOCK):
        block = _floats(pool[start : start + _BLOCK]).to(flat.device)
        squares = torch.addmm(block.square().sum(1), flat, block.T, alpha=-2)  # less |q|^2, the same for all
        least, index = squares.min(1)
        nearer = least < best
        best[nearer] = least[nearer]
        where[nearer] = index[nearer] + start
    # The expanded square loses its digits where two images almost agree, which is the case looked for.
    found = _floats(pool[where.to(pool.device)]).to(flat.device)
    return (flat - found).square().mean(1).sqrt()


def nearest_check(
    generator: Generator, train: Tensor, held_out: Tensor, *, count: int = 1_000, seed: int = 0
) -> NearestCheck:
    """Compare draws with the training images a generator was distilled from.

    Pixel distance sees stored images, and not those that were shifted, mirrored or recoloured.

    Args:
        generator: Draws `count` images, fewer where fewer exist.
        train: uint8 `[N, C, H, W]`, the training images.
        held_out: uint8 `[M, C, H, W]`, real images it never saw; `count` of them are chosen by `seed`.
        count: How many of each are compared.
        seed: Of the draw and of the choice.

    Raises:
        ArgumentError: If `count` is not positive.
        DataError: If the shapes differ, or there are no images.
    """
    if count < 1:
        raise ArgumentError(f"count is {count}; at least one image must be compared.", "Use 1,000.")
    shape = tuple(generator.spec.image_shape)
    for what, images in (("training", train), ("held-out", held_out)):
        if len(images) == 0 or tuple(images.shape[1:]) != shape:
            raise DataError(
                f"The {what} images have the shape {tuple(images.shape)}; the generator draws {shape}.",
                "Compare it with the dataset it was distilled from.",
            )
    chosen = latents.permutation(latents.fold(_CHOICE, seed), len(held_out))[:count]
    generated = distances(_draws(generator, min(count, generator.images or count), seed), train)
    real = distances(_floats(held_out[chosen.to(held_out.device)]).view(-1, *shape).to(generated.device), train)
    limit = real.quantile(0.01)
    return NearestCheck(
        draws=len(generated),
        held_out=len(real),
        train=len(train),
        generated=_summary(generated),
        real=_summary(real),
        closer=int((generated < limit).sum()),
    )


def _draws(generator: Generator, count: int, seed: int) -> Tensor:
    index = torch.arange(count, device=generator.device)
    parts = [
        generator.draw(latents.latents(seed, 0, part, generator.spec.latent), part)[0].clamp(0, 1)
        for part in torch.split(index, 250)
    ]
    return torch.cat(parts)


def _floats(images: Tensor) -> Tensor:
    """Return images as float32 rows in [0, 1]."""
    rows = images.flatten(1)
    return rows.float() / 255 if images.dtype == torch.uint8 else rows.float()


def _summary(values: Tensor) -> tuple[float, float, float]:
    points = torch.quantile(values, torch.tensor([0.0, 0.01, 0.5], device=values.device))
    low, one_percent, median = (round(float(value), 4) for value in points)
    return low, one_percent, median
