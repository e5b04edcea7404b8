"""Baselines: tables of real images, or of averages of them, that go wherever a generator goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dimdata.generators.table import TableGenerator, table_generator
from dimdata.real.choice import balanced, subset
from dimdata.real.data import RealData, Split
from dimdata.recipe import Recipe

_ROUNDS = 50  # Lloyd's rounds; classes settle in 10 to 40


def _table(real: RealData, split: Split, recipe: Recipe) -> TableGenerator:
    return table_generator(
        split.images,
        labels=split.labels,
        classes=real.classes,
        mean=real.mean,
        std=real.std,
        recipe=recipe,
        dataset=real.name,
        method="real",
    )


def random_real(real: RealData, ipc: int, seed: int, recipe: Recipe) -> TableGenerator:
    """Return `ipc` random training images of each class; row = slot * num_classes + label.

    Raises:
        ArgumentError: If a class has fewer.
    """
    return _table(real, subset(real.train, ipc, seed), recipe)


def selected_real(
    real: RealData, ipc: int, seeds: Sequence[int], score: Callable[[TableGenerator], float], recipe: Recipe
) -> TableGenerator:
    """Return the best of several random choices, the first of equals (Wang et al., arXiv 1811.10959, section 4.1).

    Args:
        real: The dataset.
        ipc: Images of each class.
        seeds: One of each choice; see `random_real`.
        score: From a choice to a figure that is lower the better it is; NaN is worse than any.
        recipe: How to train on it.

    Raises:
        ArgumentError: If a class has fewer images.
    """

    def rank(table: TableGenerator) -> float:
        found = score(table)
        return math.inf if math.isnan(found) else found

    return min((random_real(real, ipc, seed, recipe) for seed in seeds), key=rank)


def distinct_real(real: RealData, count: int, seed: int, recipe: Recipe) -> TableGenerator:
    """Return `count` distinct random training images, or all there are, as balanced as the classes allow."""
    return _table(real, balanced(real.train, count, seed), recipe)


def all_real(real: RealData, recipe: Recipe) -> TableGenerator:
    """Return all training images; their memory is shared with `real`."""
    return _table(real, real.train, recipe)


def class_mean(real: RealData, recipe: Recipe) -> TableGenerator:
    """Return the average training image of each class, rounded to uint8."""
    means = [_pixels(real, label).mean(0) for label in range(real.num_classes)]
    return _centres(real, torch.stack(means)[None], recipe)


def kmeans_real(real: RealData, ipc: int, seed: int, recipe: Recipe) -> TableGenerator:
    """Return the centres of `ipc` clusters of each class's training images, in pixel space, rounded to uint8.

    Raises:
        ArgumentError: If a class has fewer images.
    """
    start = subset(real.train, ipc, seed).images.flatten(1).to(torch.float32)
    n = real.num_classes
    centres = [_lloyd(_pixels(real, label), start[label::n]) for label in range(n)]
    return _centres(real, torch.stack(centres, dim=1), recipe)


def _pixels(real: RealData, label: int) -> Tensor:
    """Return the training images of a class, float32 `[N, P]`, 0 to 255."""
    return real.train.images[real.train.labels == label].flatten(1).to(torch.float32)


def _centres(real: RealData, pixels: Tensor, recipe: Recipe) -> TableGenerator:
    """Make a table of pixels `[slots, num_classes, P]`."""
    images = pixels.round().to(torch.uint8).view(-1, *real.image_shape)
    return _table(
        real, Split(images, torch.arange(len(images), device="cpu") % real.num_classes, real.num_classes), recipe
    )


def _lloyd(points: Tensor, centres: Tensor) -> Tensor:
    """Move centres `[K, P]` to the means of the points `[N, P]` nearest to them until none changes side."""
    nearest = None
    for _ in range(_ROUNDS):
        # The squared distance without the point's own norm, which does not change which centre is nearest.
        closest = (centres.square().sum(1) - points @ (2 * centres).T).argmin(1)
        if nearest is not None and torch.equal(closest, nearest):
            break
        nearest = closest
        members = torch.nn.functional.one_hot(nearest, len(centres)).to(points.dtype)
        counts = members.sum(0)[:, None]
        centres = torch.where(counts > 0, members.T @ points / counts.clamp(min=1), centres)
    return centres
