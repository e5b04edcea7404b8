"""Choices among real images: balanced, reproducible, and without a random state."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from dimdata.errors import ArgumentError, DataError
from dimdata.latents import fold, permutation, stream
from dimdata.real.data import RealData, Split

_CHOICE = stream("real.choice")
_VALIDATION = stream("real.validation")


def _order(split: Split, key: int) -> Tensor:
    """Return all rows, shuffled, so that the r-th images of all classes lie together: int64 `[N]`.

    Any prefix is as balanced as the classes allow; while all have images left, row i has label i mod num_classes.
    """
    order = permutation(key, len(split))
    labels = split.labels[order]
    by_class = torch.argsort(labels, stable=True)
    starts = split.counts.cumsum(0) - split.counts
    rank = torch.empty_like(labels)
    rank[by_class] = torch.arange(len(split), device=labels.device) - starts[labels[by_class]]
    return order[torch.argsort(rank * split.num_classes + labels)]


def balanced(split: Split, count: int, seed: int = 0) -> Split:
    """Choose `count` distinct images at random, or all there are, as balanced as the classes allow.

    The choice of a smaller count is a prefix of that of a larger one.

    Raises:
        ArgumentError: If `count` is not positive.
    """
    if count < 1:
        raise ArgumentError(f"{count} images were asked for.", "Ask for 1 or more.")
    return split.select(_order(split, fold(_CHOICE, seed))[:count])


def subset(split: Split, per_class: int, seed: int = 0) -> Split:
    """Choose `per_class` images of each class at random, arranged so that index = slot * num_classes + label.

    Raises:
        ArgumentError: If a class has fewer.
    """
    least = int(split.counts.min())
    if per_class > least:
        label = int(split.counts.argmin())
        raise ArgumentError(
            f"{per_class} images of each class were asked for, but class {label} has {least}.",
            f"Ask for at most {least}.",
        )
    return balanced(split, per_class * split.num_classes, seed)


def validation_split(real: RealData, fraction: float = 0.1, seed: int = 0) -> RealData:
    """Set a part of the training images aside as the test images, the same share of every class.

    What is chosen by looking at accuracies is chosen on this part, so that the test images stay unseen.

    Args:
        real: A dataset; its test images are left out of the result.
        fraction: The share set aside, in (0, 1); at least one image of each class.
        seed: Equal seeds set equal images aside.

    Raises:
        ArgumentError: If the fraction is out of range.
        DataError: If a class has one image only.
    """
    if not 0 < fraction < 1:
        raise ArgumentError(f"The validation fraction is {fraction}.", "Choose one between 0 and 1, such as 0.1.")
    train = real.train
    aside = []
    for label, count in enumerate(train.counts.tolist()):
        if count < 2:
            raise DataError(
                f"Class {label} ({real.classes[label]}) of {real.name} has {count} training image, "
                "too few to set one aside for validation.",
                "Add images of it.",
            )
        part = min(max(1, round(count * fraction)), count - 1)
        own = (train.labels == label).nonzero().flatten()
        aside.append(own[permutation(fold(_VALIDATION, seed, label), count)[:part]])
    chosen = torch.zeros(len(train), dtype=torch.bool, device="cpu")
    chosen[torch.cat(aside)] = True
    rows = torch.arange(len(train), device="cpu")
    return dataclasses.replace(real, train=train.select(rows[~chosen]), test=train.select(rows[chosen]))
