"""What a loader costs beyond the bare generator forward, in microseconds an image.

Run `python tests/benchmarks/loader_overhead.py`; it prints a table and one JSON line, and exits with 1 if a target is
missed. The generator is one matrix, so that the small difference is not lost in the noise of a large forward: what a
loader adds does not depend on what the forward costs. Each round times the bare forward and both loaders one after
another, in processor time and on one thread, and the least time of each is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dimdata import latents
from dimdata.dataset import GeneratedDataset
from dimdata.generators.base import Generator
from dimdata.recipe import Leg, Recipe
from dimdata.spec import Spec

TARGETS = {"DataLoader": 10.0, "ds.loader": 4.0}
SHAPES = ((1, 28, 28), (3, 32, 32))


class OneMatrix(Generator):
    """The least network: sigmoid(latent @ matrix)."""

    kind = "one-matrix"

    def __init__(self, spec: Spec, recipe: Recipe) -> None:
        super().__init__(spec, recipe)
        values = latents.normal(0, torch.arange(spec.latent), math.prod(spec.image_shape))
        self.matrix = nn.Parameter(values * 0.1)

    def _draw(self, latent: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        images = torch.sigmoid(latent @ self.matrix)
        return images.view(-1, *self.spec.image_shape), self.labels(index)


def one_matrix(shape: tuple[int, int, int], latent: int) -> OneMatrix:
    """Make a generator of 10 classes."""
    spec = Spec(
        kind="one-matrix",
        method="benchmark",
        dataset="benchmark",
        classes=tuple("0123456789"),
        image_shape=shape,
        mean=(0.5,) * shape[0],
        std=(0.25,) * shape[0],
        latent=latent,
    )
    return OneMatrix(spec, Recipe(legs=(Leg(epochs=1, batch_size=128),)))


def measure(shape: tuple[int, int, int], batch_size: int, batches: int, rounds: int, latent: int) -> dict[str, float]:
    """Return microseconds an image: the bare forward, and what each loader adds."""
    images = batch_size * batches
    classes = 10
    generator = one_matrix(shape, latent)
    dataset = GeneratedDataset(generator, ipc=-(-images // classes))
    index = torch.arange(batch_size)
    noise = torch.randn(batch_size, latent, generator=torch.Generator().manual_seed(0))
    plain = DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True)
    whole = dataset.clone().loader(batch_size, drop_last=True)

    def bare() -> int:
        for _ in range(batches):
            dataset.generator.draw(noise, index)
        return batches

    def through(loader: DataLoader[object]) -> Callable[[], int]:
        return lambda: sum(1 for _ in loader)

    ways = {"forward": bare, "DataLoader": through(plain), "ds.loader": through(whole)}
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            count = way()
            best[name] = min(best[name], (time.process_time() - start) / (count * batch_size) * 1e6)
    return {"forward": best["forward"]} | {name: best[name] - best["forward"] for name in TARGETS}


def main() -> int:
    """Measure, print, and tell whether the targets are met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=20, help="batches a pass")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--latent", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    print(f"{'images':>10} {'forward':>9} {'DataLoader':>11} {'ds.loader':>10}   (microseconds an image)")
    for shape in SHAPES:
        row = measure(shape, options.batch_size, options.batches, options.rounds, options.latent)
        name = "x".join(map(str, shape))
        rows[name] = {key: round(value, 2) for key, value in row.items()}
        print(f"{name:>10} {row['forward']:9.2f} {row['DataLoader']:+11.2f} {row['ds.loader']:+10.2f}")
    met = all(row[way] <= most for row in rows.values() for way, most in TARGETS.items())
    setting = {"batch_size": options.batch_size, "latent": options.latent}
    print(json.dumps({"benchmark": "loader_overhead", **setting, "targets": TARGETS, "rows": rows, "met": met}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
