"""Networks that were trained on the stages before, which a later stage of a progressive distillation asks for.

They are trained when a stage first asks for them, and handed out in turn. As published (arXiv 2310.06982) all are of
one age; here their ages may be staggered.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

from torch import nn

from dimdata import latents
from dimdata.distill.staging import shortened
from dimdata.engine import Engine
from dimdata.generators.base import Generator
from dimdata.real import RealData, all_real
from dimdata.recipe import WHITENING, Leg, Recipe
from dimdata.students.source import NetworkSource, TrainedOn

_FRESH_IPC = 10  # images per class an epoch where they are unlimited; only steps count
_GOLDEN = (math.sqrt(5) - 1) / 2
_REAL_BATCH = 128
_ON_REAL = latents.stream("pdd.real")


def fresh_ipc(generator: Generator) -> int:
    """Return the images per class of an epoch, where they are unlimited: all stages have their turn in it."""
    return max(_FRESH_IPC, generator.stages)


@dataclass(frozen=True)
class RealSteps:
    """Steps on real images that networks take after those on the stages before.

    Attributes:
        data: What they are taken on.
        steps: Those of the oldest network.
        lr: Learning rate of SGD.
    """

    data: RealData
    steps: int
    lr: float

    def count(self, share: float) -> int:
        """Return the steps of a network of a share of the greatest age."""
        return max(1, round(self.steps * share))

    def after(
        self, source: NetworkSource, share: float, generator: Generator, seed: int, engine: Engine, alike: int
    ) -> TrainedOn:
        """Return networks of a source that took their share of the steps, seeing images as on a generator."""
        whitened, tensors = generator.recipe.whitening, generator.recipe_tensors
        leg = Leg(steps=self.count(share), batch_size=_REAL_BATCH, lr=self.lr, weight_decay=0.0)
        names = tuple(name for name in tensors if name.startswith(WHITENING))
        lesson = all_real(self.data, Recipe(legs=(leg,), whitening=whitened, tensors=names))
        lesson.recipe_tensors = {name: tensors[name] for name in names}
        return TrainedOn(lesson, source, seed=latents.fold(seed, _ON_REAL), engine=engine, alike=alike)


class Shelf:
    """Networks of staggered age, trained on a generator when they are first asked for, and handed out in turn.

    The first few already are of ages from young to old, since a method may ask for no more.

    Args:
        generator: What they are trained on.
        source: The networks before training.
        size: How many there are.
        age: Steps of the oldest.
        youngest: Share of that age which all of them have at least, in [0, 1].
        seed: Of the trainings.
        engine: Device and precision.
        real: What they are trained on afterwards, if anything.

    Attributes:
        real_images: Real images that they were shown so far, repeated ones counted each time.
    """

    def __init__(
        self,
        generator: Generator,
        source: NetworkSource,
        size: int,
        age: int,
        youngest: float,
        seed: int,
        engine: Engine,
        real: RealSteps | None = None,
    ) -> None:
        self.generator, self.source, self.size, self.age, self.youngest = generator, source, size, age, youngest
        self.seed, self.engine, self.real, self.real_images = seed, engine, real, 0
        # The whole number without a common divisor that is nearest to the golden section spreads any first few.
        self._stride = min(
            (n for n in range(1, size + 1) if math.gcd(n, size) == 1), key=lambda n: abs(n - size * _GOLDEN)
        )
        self._made: dict[int, nn.Module] = {}

    def share(self, number: int) -> float:
        """Return the age of network `number` as a share of the oldest one's, in (0, 1]."""
        rank = number * self._stride % self.size
        return self.youngest + (1 - self.youngest) * (rank + 1) / self.size

    def steps(self, number: int) -> int:
        """Return the steps of network `number`'s training."""
        return max(1, round(self.age * self.share(number)))

    def network(self, number: int) -> nn.Module:
        """Return a copy of network `number` modulo the size; see `NetworkSource`."""
        place = number % self.size
        if place not in self._made:
            recipe = self.generator.recipe
            trained = TrainedOn(
                self.generator,
                self.source,
                recipe=recipe if recipe.learned_steps else shortened(recipe, self.steps(place)),
                ipc=fresh_ipc(self.generator) if self.generator.images is None else None,
                seed=self.seed,
                engine=self.engine,
                alike=self.size,
            )
            if self.real is not None:
                share = self.share(place)
                trained = self.real.after(trained, share, self.generator, self.seed, self.engine, self.size)
                self.real_images += min(_REAL_BATCH, len(self.real.data.train)) * self.real.count(share)
            self._made[place] = trained.network(place)
            self._made[place].zero_grad()  # or what is kept would take twice the memory
        return copy.deepcopy(self._made[place])
