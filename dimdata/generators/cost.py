"""What drawing an image costs: products and bytes, from the specification alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from dimdata.generators.base import GENERATORS, Generator, shapes_only
from dimdata.generators.network import NetworkGenerator
from dimdata.generators.staged import StagedGenerator
from dimdata.recipe import Leg, Recipe
from dimdata.spec import Spec


@dataclass(frozen=True)
class Cost:
    """What a generator costs.

    Attributes:
        macs: Multiply-accumulates of the convolutions and matrix products that draw one image; 0 where images are
            stored.
        nbytes: Bytes of the stored tensors, those of a recipe left out.
    """

    macs: int
    nbytes: int

    @property
    def flop(self) -> int:
        """Floating-point operations of one image: two for each multiply-accumulate."""
        return 2 * self.macs


def cost(spec: Spec) -> Cost:
    """Count what a generator costs, without weights, memory or arithmetic.

    Raises:
        FormatError: If the specification describes no generator.
    """
    generator = outline(spec)
    drawing = generator
    if isinstance(generator, StagedGenerator):  # which sorts images by network; each image is drawn by one of them
        drawing = outline(dataclasses.replace(spec, kind=NetworkGenerator.kind, options=dict(generator.config.network)))
    latent = torch.empty(1, spec.latent, device="meta")
    index = torch.empty(1, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        drawing.draw(latent, index)
    return Cost(macs=counter.get_total_flops() // 2, nbytes=generator.nbytes)


def outline(spec: Spec) -> Generator:
    """Return a generator without weights and memory: what it is, but not what it draws.

    Raises:
        FormatError: If the specification describes no generator.
    """
    recipe = Recipe(legs=(Leg(epochs=1, batch_size=1),))
    with shapes_only():
        return GENERATORS[spec.kind](spec, recipe).eval()
