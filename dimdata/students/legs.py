"""What a leg says of optimisation: the optimiser, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dimdata.errors import FormatError
from dimdata.recipe import Leg


def lr_at(leg: Leg, step: int, total: int) -> float:
    """Return the learning rate of a step.

    `onecycle` rises on a cosine from a 25th of the peak during `warmup`, then falls to a 250,000th, as torch's
    `OneCycleLR` does (Smith and Topin, arXiv 1708.07120).

    Args:
        leg: The leg.
        step: From 0.
        total: Steps of the leg.
    """
    if leg.schedule == "onecycle":
        top, end = max(leg.warmup * total - 1, 0.0), total - 1
        low, last = leg.lr / 25, leg.lr / 250_000
        if step < top:
            return _cosine(low, leg.lr, step / top)
        return _cosine(leg.lr, last, (step - top) / (end - top)) if end > top else leg.lr
    if leg.schedule == "cosine":
        return _cosine(leg.lr, 0.0, step / total)
    if leg.schedule == "step":
        return leg.lr * leg.lr_factor ** sum(step >= drop * total for drop in leg.lr_drops)
    return leg.lr


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def rates_of(leg: Leg, total: int, tensors: Mapping[str, Tensor]) -> Callable[[int], float]:
    """Return the function from a leg's steps to learning rates: its schedule, or the stored step sizes.

    Args:
        leg: The leg.
        total: Its steps.
        tensors: The recipe's tensors.

    Raises:
        FormatError: If the step sizes are missing, of another number, or not all positive.
    """
    if leg.step_sizes is None:
        return lambda step: lr_at(leg, step, total)
    stored = tensors.get(leg.step_sizes)
    if stored is None:
        raise FormatError(f"The recipe's step sizes {leg.step_sizes!r} are not stored with the generator.")
    sizes = stored.flatten().tolist()
    if not all(size > 0 for size in sizes):
        raise FormatError(f"The step sizes {leg.step_sizes!r:.80} that the recipe stores are not all positive.")
    if len(sizes) != total:
        raise FormatError(
            f"{len(sizes)} learned step sizes {leg.step_sizes!r:.80} are stored, and this training takes {total} steps "
            "in their leg.",
            "They belong to all images and the recipe's own epochs: leave out ipc and epochs.",
        )
    return sizes.__getitem__


def optimizer_of(
    leg: Leg, parameters: list[nn.Parameter], device: torch.device, last: torch.optim.Optimizer | None
) -> torch.optim.Optimizer:
    """Return the optimiser of a leg: the last one, with its state and new settings, if it is of the same kind.

    Stored step sizes mean plain gradient descent: no momentum, no weight decay.
    """
    fused = device.type in ("cpu", "cuda", "mps")
    if leg.step_sizes is not None:
        return torch.optim.SGD(parameters, lr=0.0, fused=fused)
    settings: dict[str, Any] = {"weight_decay": leg.weight_decay}
    kind: type[torch.optim.Optimizer] = torch.optim.AdamW
    if leg.optimizer == "sgd":
        kind = torch.optim.SGD
        settings |= {"momentum": leg.momentum, "nesterov": leg.nesterov and leg.momentum > 0}
    if type(last) is not kind:
        return kind(parameters, lr=leg.lr, fused=fused, **settings)  # type: ignore[call-arg]
    last.param_groups[0].update(settings)
    return last
