"""Modules and optimisers as flat named tensors, so that a checkpoint is one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def pack_module(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module under a prefix."""
    return {f"{prefix}.{name}": tensor.detach() for name, tensor in module.state_dict().items()}


def unpack_module(prefix: str, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy packed tensors into a module, in place."""
    own = {name.removeprefix(f"{prefix}."): t for name, t in state.items() if name.startswith(f"{prefix}.")}
    module.load_state_dict(own)


def pack_optimizer(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the moments and counters of an optimiser; learning rates follow from the step and are not kept."""
    packed = {}
    for number, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if value is not None:
                packed[f"{prefix}.{number}.{key}"] = torch.as_tensor(value)
    return packed


def unpack_optimizer(prefix: str, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Restore an optimiser from packed tensors; without any, as if it had never taken a step."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    values: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith(f"{prefix}."):
            number, key = name.removeprefix(f"{prefix}.").split(".", 1)
            like = parameters[int(number)]
            # Fused optimisers walk through memory, so moments must lie in the order of their parameters.
            moment = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            values.setdefault(int(number), {})[key] = moment
    optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
