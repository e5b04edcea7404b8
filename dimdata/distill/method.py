"""The method seam: what the one distillation loop asks of every algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dimdata.engine import Engine
from dimdata.generators.base import Generator
from dimdata.real import RealData
from dimdata.registry import Registry
from dimdata.spec import Record

METHODS: Registry[type[Method]] = Registry("method", "dimdata.methods", ("dimdata.distill.dim",))

Losses = Mapping[str, Tensor]


@dataclass(frozen=True)
class Phase:
    """A part of a method in time.

    Attributes:
        name: Shown in progress and metrics.
        steps: How many steps it takes.
        step: Takes one step, given its number within the phase; returns scalar losses to show.
        images: Real images that a step consumes.
        period: After so many steps the work of a step repeats; what is timed is a multiple of it.
    """

    name: str
    steps: int
    step: Callable[[int], Losses]
    images: int
    period: int = 1


class Method(ABC):
    """An algorithm that distils real data into a generator.

    All noise is drawn from `dimdata.latents`, keyed by (seed, step, position), so that a run resumed from
    `state_dict` goes on exactly as if it had never stopped.

    Args:
        config: An instance of `Config`.
        real: What to distil; methods read `real.train` alone.
        engine: Device and precision.
        seed: Of all noise.
        steps: Steps of all phases together.
    """

    Config: ClassVar[type[Record]]

    def __init__(self, config: Record, real: RealData, engine: Engine, seed: int, steps: int) -> None:
        self.real, self.engine, self.seed, self.steps = real, engine, seed, steps

    @classmethod
    @abstractmethod
    def default_steps(cls, config: Record) -> int:
        """Return the steps of a run that names no budget."""

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """Return the phases in order; their steps add up to the budget."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that training changes, as flat named tensors."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, in place."""

    @abstractmethod
    def generator(self) -> Generator:
        """Return the generator as it stands; asked for at any time."""
