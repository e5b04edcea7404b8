"""Penalties on the slope of a critic, which keep the adversarial game stable.

Register another with `PENALTIES.register(name)`, from any package through the entry-point group `dimdata.penalties`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from dimdata import latents
from dimdata.distill.losses import flatness
from dimdata.registry import Registry

Score = Callable[[Tensor, Tensor], Tensor]
"""From images `[B, C, H, W]` in [0, 1] and labels int64 `[B]` to a critic's scores `[B]`."""


class Penalty(ABC):
    """A penalty in two parts: where the slope is measured, with all noise, and the arithmetic.

    Attributes:
        compiles: Whether `measure` can be compiled.
    """

    compiles: ClassVar[bool] = True

    @abstractmethod
    def place(
        self, real: Tensor, fake: Tensor, labels: Tensor, fake_labels: Tensor, key: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Choose where to measure.

        Args:
            real: `[B, C, H, W]` in [0, 1].
            fake: Generated ones of the same shape, detached.
            labels: Of the real images, int64 `[B]`.
            fake_labels: Of the generated ones, int64 `[B]`.
            key: A folded key; equal keys give equal noise.

        Returns:
            Images `[N, C, H, W]`, directions of the same shape (or none: `[0]`), and labels int64 `[N]`.
        """

    @abstractmethod
    def measure(self, score: Score, images: Tensor, direction: Tensor, labels: Tensor) -> Tensor:
        """Return the penalty, a scalar that is differentiable in the critic's weights."""


PENALTIES: Registry[Penalty] = Registry("critic penalty", "dimdata.penalties")


class Flatness(Penalty):
    """The squared slope along a random direction, by a finite difference; see `losses.flatness`."""

    distance = 0.05  # of the two ends, in image units: a few grey levels

    def place(
        self, real: Tensor, fake: Tensor, labels: Tensor, fake_labels: Tensor, key: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Measure at all images, real and generated; see `Penalty.place`."""
        images = torch.cat([real, fake])
        size = images[0].numel()
        noise = latents.normal(key, torch.arange(len(images), device=images.device), size).view_as(images)
        return images, noise * self.distance, torch.cat([labels, fake_labels])

    def measure(self, score: Score, images: Tensor, direction: Tensor, labels: Tensor) -> Tensor:
        """See `Penalty.measure`."""
        scores = score(torch.cat([images, images + direction]), torch.cat([labels, labels]))
        count = len(images)
        return flatness(scores[:count], scores[count:], self.distance)


class GradientPenalty(Penalty):
    """The squared distance of the gradient's norm from 1 between real and generated images (WGAN-GP).

    Gulrajani et al., NeurIPS 2017. The true gradient is taken, for images in [-1, 1] as published, and differentiated
    once more for the critic's weights; that is nearly half of the published critic step, and cannot be compiled.
    """

    compiles = False
    unit = 2.0  # the length of [-1, 1] in image units

    def place(
        self, real: Tensor, fake: Tensor, labels: Tensor, fake_labels: Tensor, key: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Measure at one place between each real image and the generated one beside it; see `Penalty.place`."""
        share = latents.uniform(key, torch.arange(len(real), device=real.device), 1)[:, :, None, None]
        return torch.lerp(fake, real, share.to(real.dtype)), real.new_empty(0), labels

    def measure(self, score: Score, images: Tensor, direction: Tensor, labels: Tensor) -> Tensor:
        """See `Penalty.measure`."""
        images = images.detach().requires_grad_()
        (slope,) = torch.autograd.grad(score(images, labels).sum(), images, create_graph=True)
        norms: Tensor = torch.linalg.vector_norm(slope.float().flatten(1), dim=1) / self.unit
        return (norms - 1).square().mean()


PENALTIES.register("flatness")(Flatness())
PENALTIES.register("gradient")(GradientPenalty())
