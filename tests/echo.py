"""A generator whose images show their latent and their index, so that tests can see which draw they are."""

from __future__ import annotations

import torch
from torch import Tensor

from dimdata import latents
from dimdata.generators.base import Generator
from dimdata.recipe import Leg, Recipe
from dimdata.spec import Spec

Z = 4
RECIPE = Recipe(legs=(Leg(epochs=1, batch_size=8),))


class EchoGenerator(Generator):
    """Images `[1, 1, Z + 1]`: the latent, then the index."""

    kind = "echo"

    def _draw(self, latent: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([latent, index[:, None]], dim=1)[:, None, None], self.labels(index)


def echo(classes: int = 3, flags: tuple[str, ...] = ()) -> EchoGenerator:
    """Make one."""
    spec = Spec(
        kind="echo",
        method="echo",
        dataset="none",
        classes=tuple(f"class {i}" for i in range(classes)),
        image_shape=(1, 1, Z + 1),
        mean=(0.5,),
        std=(0.25,),
        value_range=(-5.0, 2.0**24),
        latent=Z,
        flags=flags,
    )
    return EchoGenerator(spec, RECIPE)


def index_of(images: Tensor) -> Tensor:
    """Return the indices of echoed images `[..., 1, 1, Z + 1]`, flat."""
    return images.reshape(-1, Z + 1)[:, Z].to(torch.int64)


def epochs_of(images: Tensor, seed: int = 0, most: int = 12) -> list[int]:
    """Return the epoch of each echoed image, by its exact latent; -1 where it is of no epoch below `most`."""
    rows, index = images.reshape(-1, Z + 1)[:, :Z], index_of(images)
    epochs = torch.full((len(rows),), -1)
    for epoch in range(most):
        epochs[(rows == latents.latents(seed, epoch, index, Z)).all(1)] = epoch
    return epochs.tolist()
