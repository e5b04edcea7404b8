"""Normalisation layers of students, by the short names that stand at the end of a student's name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from dimdata.errors import ArgumentError, nearest

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "bn": lambda width: nn.BatchNorm2d(width),
    "in": lambda width: nn.GroupNorm(width, width),  # instance norm with scale and shift, as the field writes it
    "gn": lambda width: nn.GroupNorm(next(g for g in (8, 4, 2, 1) if width % g == 0), width),
    "none": lambda width: nn.Identity(),
}
"""`bn` (batch), `in` (instance, with scale and shift), `gn` (up to 8 groups), `none`: from channels to the layer."""


def norm_of(name: str) -> Callable[[int], nn.Module]:
    """Return what makes a norm for a number of channels.

    Raises:
        ArgumentError: If there is no such norm.
    """
    if name not in NORMS:
        raise ArgumentError(f"There is no norm called {name!r:.40}.", nearest(name, NORMS))
    return NORMS[name]


def norm_in(network: nn.Module) -> str:
    """Return the norm that a network has, by the first of its layers that is one."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            return "bn"
        if isinstance(layer, nn.GroupNorm):
            return "in" if layer.num_groups == layer.num_channels else "gn"
    return "none"
