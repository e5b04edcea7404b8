"""The method seam: what the one distillation loop asks of every algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dimdata.distill.staging import shortened, steps_of
from dimdata.engine import Engine
from dimdata.errors import ArgumentError
from dimdata.generators.base import Generator
from dimdata.real import RealData
from dimdata.recipe import Recipe
from dimdata.registry import Registry
from dimdata.spec import Record
from dimdata.students.source import NetworkSource
from dimdata.students.train import require_recipe

METHODS: Registry[type[Method]] = Registry(
    "method",
    "dimdata.methods",
    tuple(f"dimdata.distill.{name}" for name in ("dim", "dd", "dm", "idc", "mtt", "pdd")),
)

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
        like: An earlier phase whose steps take as long, so that these need not be timed.
        part: Takes a part of a step and writes nothing; returns its losses and which share of a step it was. It is what
            an estimate times, where whole steps take minutes, or leave files; none = steps are timed.
        ready: Steps whose results are there already, so that they take no time.
        fixed: Whether it has as many steps whatever the budget, which is then shared out among the other phases.
    """

    name: str
    steps: int
    step: Callable[[int], Losses]
    images: int
    period: int = 1
    like: str = ""
    part: Callable[[], tuple[Losses, float]] | None = None
    ready: int = 0
    fixed: bool = False


@dataclass(frozen=True)
class Probe:
    """How a generator is scored while it is distilled.

    Attributes:
        student: The network trained on it.
        ipc: Images per class; none = all there are.
        students: Networks trained, of which the mean counts.
        steps: Steps of each at most; none = the whole recipe.
    """

    student: str = "convnet3-w32"
    ipc: int | None = 10
    students: int = 1
    steps: int | None = 500

    def recipe(self, generator: Generator) -> Recipe:
        """Return the generator's recipe in at most `steps` steps, its schedules with it.

        A student that is stopped before its learning rate has fallen tells little of how the generator improves.
        """
        recipe = generator.recipe
        if self.steps is None or recipe.learned_steps:  # which are all taken or none
            return recipe
        lengths = []
        for leg in recipe.legs:
            stored = generator.view(stage=leg.stage, alone=leg.alone).images
            images = stored or 0 if self.ipc is None else self.ipc * generator.spec.num_classes
            lengths.append(float(steps_of(leg, images)))
        return recipe if sum(lengths) <= self.steps else shortened(recipe, self.steps, lengths)


@dataclass(frozen=True)
class Earlier:
    """What a later stage of a progressive distillation builds on.

    Attributes:
        generator: The stages before, in one; they change no more.
        after: From the networks that a method would use to the same networks, trained on those stages.
        state: What `state_dict` of the stage before returned at its end, for methods that go on from it.
        key: Digest of the stages and of how `after` trains on them, by which to keep what is made of its networks.
        seed: Of the whole run, for choices that all stages share; the stage has one of its own besides.
        real: The real data of the first stage, of which a later one may be given a part.
    """

    generator: Generator
    after: Callable[[NetworkSource], NetworkSource]
    state: Mapping[str, Tensor]
    key: str
    seed: int
    real: RealData


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
        earlier: The stages before, where this is a later stage of a progressive distillation. Only methods that can
            be staged (`for_stages`) are given one.
    """

    Config: ClassVar[type[Record]]
    rate_setting: str = "lr"
    """The setting by which all steps are made smaller, as `--set` names it."""
    settles: bool = False
    """Whether what is done in a phase is settled with its last step, so that later steps cannot be given to it."""

    def __init__(
        self, config: Record, real: RealData, engine: Engine, seed: int, steps: int, earlier: Earlier | None = None
    ) -> None:
        self.real, self.engine, self.seed, self.steps, self.earlier = real, engine, seed, steps, earlier

    @classmethod
    def resolve(cls, config: Record) -> Record:
        """Return the config with all that it names written out, so that a recorded run depends on no other file."""
        return config

    @classmethod
    def for_stages(cls, config: Record, stages: int) -> Record:
        """Return the config of one of `stages` equal stages that together make what `config` asks for.

        Raises:
            ArgumentError: If this method cannot be staged, or not in so many stages.
        """
        name = next((name for name in METHODS if METHODS[name] is cls), cls.__name__)
        able = [name for name in METHODS if METHODS[name].staged()]
        raise ArgumentError(f"The method {name} cannot be distilled in stages.", f"Use {', '.join(able)}.")

    @classmethod
    def staged(cls) -> bool:
        """Whether the method can be distilled in stages: whether it says how by `for_stages`."""
        return any("for_stages" in kind.__dict__ for kind in cls.__mro__ if kind is not Method)

    @classmethod
    @abstractmethod
    def default_steps(cls, config: Record) -> int:
        """Return the steps of a run that names no budget."""

    @classmethod
    def budget(cls, config: Record, real: RealData) -> int:
        """Return the same where it depends on the data: the steps of so many epochs of it."""
        return cls.default_steps(config)

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """Return the phases in order; their steps add up to the budget."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that training changes, as flat named tensors."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, in place."""

    def enter(self, phase: Phase) -> Phase:
        """Return a phase as it is known when its first step is about to be taken; asked for just before."""
        return phase

    def ailing(self, inside: str = "") -> str:
        """Return what looks wrong with the images, and what to do about it; empty = nothing does.

        Args:
            inside: What stands before the names of this method's settings where `--set` names them.
        """
        return ""

    def images_beside(self) -> int:
        """Return the real images consumed beside those that the steps of the phases tell."""
        return 0

    def beside(self) -> str:
        """Return what a run does that takes time beside its steps, in a sentence; empty = nothing that counts."""
        return ""

    def least_per_class(self) -> int:
        """Return the real images of each class that there must be."""
        return 1

    def probe(self) -> Probe:
        """Return how the generator is scored on the way."""
        return Probe()

    def disk(self, anew: bool = False) -> int:
        """Return the bytes that the run will write outside its folder; `anew`: as if nothing of them were there."""
        return 0

    def check_room(self, needed: int) -> None:  # noqa: B027 - most methods write nothing there
        """Refuse to go on where what `disk` counts would not fit.

        Args:
            needed: Bytes; all that a run will write there.

        Raises:
            WorldError: If there is less room.
        """

    def checkpoint_bytes(self, anew: bool = False) -> int:
        """Return the bytes of the largest checkpoint of the run, as far as can be known by now; see `disk`."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state_dict().values())

    def provenance(self) -> Mapping[str, str]:
        """Return what the plan of the run does not say of where its result comes from."""
        return {}

    @abstractmethod
    def generator(self) -> Generator:
        """Return the generator as it stands; asked for at any time."""

    def require_recipe(self) -> None:
        """Find out whether students can be trained by the recipe of what will be made; asked for before the first step.

        Raises:
            ArgumentError: If the recipe names tensors or stages that there will not be.
            NotFoundError: If it names a student or an augmentation that there is not.
        """
        require_recipe(self.outline())

    def outline(self) -> Generator:
        """Return a generator like the finished one in all but its values, by which to tell its size beforehand."""
        return self.generator()
