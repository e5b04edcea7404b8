"""Scoring a network on real images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dimdata.engine import Engine
from dimdata.errors import ArgumentError
from dimdata.students import compiling
from dimdata.whitening import Whitening


def accuracy(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    engine: Engine | None = None,
    batch: int = 500,
    whitening: Whitening | None = None,
) -> float:
    """Return the share of images that a network classifies rightly, in `eval()` mode.

    Args:
        network: Moved to the engine's device; its mode is restored.
        images: `[N, C, H, W]`, uint8 or floating in [0, 1].
        labels: int64 `[N]`.
        mean: Per-channel mean to normalise by.
        std: Standard deviation, likewise.
        engine: Where to compute.
        batch: Images at a time.
        whitening: What whitens images instead, for a student that was trained so; a training's
            `TrainResult.info.whitening`.

    Returns:
        A share in [0, 1].

    Raises:
        ArgumentError: If there are no images, or not one label for each.
    """
    if not len(images) or len(images) != len(labels):
        raise ArgumentError(f"There are {len(images):,} images and {len(labels):,} labels to score on.")
    engine = engine or Engine.of()
    engine.place(network)
    shift = torch.tensor(tuple(mean), device=engine.device)[:, None, None]
    scale = torch.tensor(tuple(std), device=engine.device)[:, None, None]
    training = network.training
    network.eval()
    right = torch.zeros((), dtype=torch.int64, device=engine.device)
    classes_of = engine.compile(_classes) if compiling.worth(engine, len(images), batch) else _classes
    with torch.no_grad(), engine.autocast(), compiling.room_for_shapes(engine):
        for part, truth in zip(torch.split(images, batch), torch.split(labels, batch), strict=True):
            part = part.to(engine.device)
            part = part.float() / 255 if part.dtype == torch.uint8 else part.float()
            part = (part - shift) / scale if whitening is None else whitening(part)
            part = part.contiguous(memory_format=torch.channels_last)
            found = (classes_of if len(part) == batch else _classes)(network, part)  # a last, smaller batch as it is
            right += (found == truth.to(engine.device)).sum()
    network.train(training)
    return int(right) / len(images)


def _classes(network: nn.Module, images: Tensor) -> Tensor:
    """Return the class numbers int64 `[B]` of normalised images; networks of one class share one compiled function."""
    classes: Tensor = network(images).argmax(1)
    return classes
