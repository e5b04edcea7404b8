"""The reference for unrolled training: autograd through one graph of the whole of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


def plain_gradients(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    images: Tensor,
    targets: Tensor,
    sizes: Tensor,
    real: Tensor,
    labels: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what `Unroll.gradients` returns, for one network, by autograd through a graph of the whole training.

    The reference that tests and benchmarks compare with: simple, and its memory holds every activation of every step.

    Returns:
        The loss, and the gradients of images, targets and step sizes.
    """
    given: list[Tensor] = [t.detach().requires_grad_() for t in (images, targets, sizes)]

    def loss_of(weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, dict(weights), (x,)), y)

    now: dict[str, Any] = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    for t in range(len(sizes)):
        batch = t % len(images)
        loss = loss_of(now, given[0][batch], given[1][batch])
        slopes = torch.autograd.grad(loss, list(now.values()), create_graph=True)
        now = {name: w - given[2][t] * g for (name, w), g in zip(now.items(), slopes, strict=True)}
    final = loss_of(now, real, labels)
    return (final.detach(), *torch.autograd.grad(final, given))  # type: ignore[return-value]
