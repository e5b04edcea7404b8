"""Progressive dataset distillation (arXiv 2310.06982) over any base method that can be staged.

Stage k is the base method on its own share of the images and of the steps, with one difference: where it would use
fresh networks, it is given networks that were trained on stages 1 to k-1, which change no more. What is distilled in a
stage is thus what a student needs next. (A base that learns a table may have the images before in its batches, too:
`union`.) Any prefix of the stages is a generator, and students are trained on the growing union of stages, leg by leg.

Nothing here depends on what the base is: it is asked for a config of one stage (`Method.for_stages`), and its
generators for their union (`Generator.joined`).

Over `dd`, a stage is learned for networks that end where the stages before took them, and a
student's leg goes through the images of its stage alone; from a fixed start there is but one such network.

Over `dim`, every stage is a whole network. With `settings.network.name` `subpixel-coded` it is one network instead that
is conditioned on the stage: the first stage trains all of it, each later one only its own code (see
`dimdata.generators.coded`), for which `first_share` gives the first more of the steps.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dimdata import latents
from dimdata.distill.config import make_config
from dimdata.distill.forgetting import forgetting_counts, hardest
from dimdata.distill.method import METHODS, Earlier, Losses, Method, Phase, Probe
from dimdata.distill.shelf import RealSteps, Shelf, fresh_ipc
from dimdata.distill.staging import shares, steps_of, walk
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, FormatError
from dimdata.generators.base import GENERATORS, Generator, shapes_only
from dimdata.real import RealData
from dimdata.recipe import MAX_LEGS, Recipe
from dimdata.report import size
from dimdata.spec import Record, Spec, canonical_json, require
from dimdata.students import find_student
from dimdata.students.source import NetworkSource

log = logging.getLogger("dimdata")


@dataclass(frozen=True, kw_only=True)
class PddConfig(Record):
    """How progressive distillation is run.

    Attributes:
        base: The method of each stage.
        stages: How many stages; images and steps are shared equally among them.
        first_share: Share of the steps that the first stage gets, for bases whose later stages learn less; 0 = as many
            as any other.
        preset: A preset or TOML file of the base's config; empty = its defaults.
        settings: Settings of the base, which win over those; `ipc` is that of all stages together.
        last_share: Share of the student's steps that its last leg gets, on all stages; the others share the rest in
            proportion to their batches an epoch, as all of them do without. A prefix of the stages is then trained on
            for fewer steps. None = no leg is apart.
        networks: How many networks of each architecture are trained on the stages before, each when a stage first asks
            for it, and then handed out in turn; fewer where they would be alike. Their training comes on top of the
            steps, and of a time budget: for the preset `dm-fashion-mnist` at the default about a third of a stage's own
            time at two stages, and more than half at five. A run that is resumed trains them again.
        age: Student steps of the oldest of these networks; 0 = those of the legs before, which a student has behind it
            when it comes to the stage.
        youngest: Share of that age which all of them have at least; their ages lie at equal distances above it. As
            published, all are of full age (1); over `mtt` there are 100, and over `idc` each is used but once. Where
            students walk the stages in learned steps (`dd`), all are of full age.
        real_steps: Steps on real images that the oldest network takes after those on the stages, the others as many
            fewer as they are younger; 0 = none. What is distilled is then what a student needs that goes on from the
            stages to real images, as it is for the experts of `mtt`, which take such steps by themselves.
        real_lr: Learning rate of these steps: SGD with momentum 0.9, 128 of the stage's real images each.
        drop: Share of the real images of each class that the last stage leaves out, the easiest first; the stages
            between leave out proportionally less, the first none.
        drop_student: The network whose forgetting tells which images are easy.
        drop_epochs: Its passes over the training images.
    """

    base: str = "dm"
    stages: int = 5
    first_share: float = 0.0
    preset: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    last_share: float | None = None
    networks: int = 32
    age: int = 0
    youngest: float = 0.0
    real_steps: int = 0
    real_lr: float = 0.01
    drop: float = 0.0
    drop_student: str = "convnet3-w32"
    drop_epochs: int = 6

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        require(1 <= self.stages <= MAX_LEGS, f"config.stages is {self.stages}; 1 to {MAX_LEGS:,} are possible.")
        require(0 <= self.first_share < 1, f"config.first_share is {self.first_share}; it must be in [0, 1).")
        require(self.networks >= 1, f"config.networks is {self.networks}; 1 or more is needed.")
        require(self.age >= 0, f"config.age is {self.age}; it must not be negative.")
        require(0 <= self.youngest <= 1, f"config.youngest is {self.youngest}; it must be in [0, 1].")
        require(self.real_steps >= 0, f"config.real_steps is {self.real_steps}; it must not be negative.")
        require(self.real_lr > 0, f"config.real_lr is {self.real_lr}; it must be positive.")
        share = self.last_share
        require(share is None or 0 < share < 1, f"config.last_share is {share}; it must be in (0, 1).")
        require(0 <= self.drop < 1, f"config.drop is {self.drop}; it must be in [0, 1).")
        require(self.drop_epochs >= 2, f"config.drop_epochs is {self.drop_epochs}; 2 or more show forgetting.")

    def of_base(self) -> Record:
        """Return the base's config for all stages together."""
        return make_config(METHODS[self.base].Config, self.preset or None, self.settings, where="config.settings")


@METHODS.register("pdd")
class PDD(Method):
    """Progressive distillation; see the module's docstring."""

    Config = PddConfig
    rate_setting = "settings.lr"
    settles = True

    def __init__(
        self,
        config: PddConfig,
        real: RealData,
        engine: Engine,
        seed: int,
        steps: int,
        earlier: Earlier | None = None,
    ) -> None:
        super().__init__(config, real, engine, seed, steps, earlier)
        self.config = config
        self.kind = METHODS[config.base]
        self.share = self.kind.for_stages(config.of_base(), config.stages)
        if min(_lengths(steps, config)) < 1:  # or there would be no first stage to look at
            raise ArgumentError(
                f"{steps} steps are too few for {config.stages} stages.", "Give one or more for each stage."
            )
        find_student(config.drop_student)
        self.done: list[Generator] = []
        self.counts: Tensor | None = None  # how often each real image is forgotten
        self._shelves: list[Shelf] = []
        self._shown = 0  # real images that networks of finished stages were shown, or before this process took over
        self._checked = 0  # the steps for which this process has seen that every stage can be distilled
        self.base = self._base({})
        self._phases = {phase.name: phase for phase in self.base.phases()}
        self._require_stages()
        first = self.base.generator()
        # What cannot be walked is refused now.
        self.walked = walk([first.recipe] * config.stages, [first.images] * config.stages, config.last_share)
        self._require_whole_legs()
        if config.stages > 1 and (outside := self.disk(anew=True)):
            log.warning("All %d stages write up to %s outside the run's folder.", config.stages, size(outside))
        # From stored weights, learned steps lead all networks to the same one.
        alike = self.walked.learned_steps and self.walked.start.law == "stored"
        self.networks = 1 if alike else config.networks

    @classmethod
    def resolve(cls, config: Record) -> Record:
        """Return the config with the base's settings written out, those of its preset too."""
        assert isinstance(config, PddConfig)
        base = METHODS[config.base].resolve(config.of_base())
        return dataclasses.replace(config, preset="", settings=base.to_json())

    @classmethod
    def budget(cls, config: Record, real: RealData) -> int:
        """Return those that the base takes for one stage on this data, for all stages together."""
        assert isinstance(config, PddConfig)
        kind = METHODS[config.base]
        return kind.budget(kind.for_stages(config.of_base(), config.stages), real) * config.stages

    @classmethod
    def default_steps(cls, config: Record) -> int:
        """Return those that the base takes for one stage, for all stages together."""
        assert isinstance(config, PddConfig)
        kind = METHODS[config.base]
        return kind.default_steps(kind.for_stages(config.of_base(), config.stages)) * config.stages

    def phases(self) -> tuple[Phase, ...]:
        """Return the base's phases, stage by stage; what is there already is that of the stage under way alone."""
        found = []
        for stage in range(self.config.stages):
            self.base.steps = self._budget(stage)
            for phase in self.base.phases():
                step = functools.partial(self._step, stage, phase.name)
                name, like = (f"stage {number}: {phase.name}" for number in (stage + 1, 1))
                ready = phase.ready if stage == len(self.done) else 0
                like = like if stage else ""
                found.append(dataclasses.replace(phase, name=name, step=step, like=like, ready=ready))
        self._fit()
        return tuple(found)

    def enter(self, phase: Phase) -> Phase:
        """Begin the stage of a phase, and return the phase as it is there; see `Method.enter`."""
        self._reach(int(phase.name.split(":")[0].removeprefix("stage ")) - 1)
        now = {other.name: other for other in self.phases()}.get(phase.name, phase)
        return dataclasses.replace(now, steps=phase.steps)

    def _require_stages(self) -> None:
        """Refuse what a later stage could not do, before the first begins.

        Raises:
            ArgumentError: If a stage would have too few steps, or be left too few real images.
        """
        fixed = sum(phase.steps for phase in self._phases.values() if phase.fixed)
        short = min(_lengths(self.steps, self.config))
        if short <= fixed:
            known = f"; {fixed} of these are fixed" if fixed else ""
            raise ArgumentError(
                f"{self.steps} steps are too few for {self.config.stages} stages: one would have {short}{known}.",
                "Ask for more steps, or fewer stages.",
            )
        least, there = self.base.least_per_class(), int(self.real.train.counts.min())
        left = max(1, round(self._share_of(self.config.stages - 1) * there))
        if left < least <= there:
            raise ArgumentError(
                f"drop is {self.config.drop:g}, which leaves {left} real images of a class in the last stage; it "
                f"starts from {least}.",
                "Drop fewer, or learn fewer images.",
            )

    def _require_whole_legs(self) -> None:
        """Refuse settings that cut legs, or put steps between them, where the steps of each were learned.

        Raises:
            ArgumentError: If there are any.
        """
        if not self.walked.learned_steps or self.config.stages == 1:
            return
        for name in ("last_share", "age", "youngest", "real_steps"):
            if getattr(self.config, name) != PddConfig.__dataclass_fields__[name].default:
                raise ArgumentError(
                    f"{name} is {getattr(self.config, name)}, but students of {self.config.base} walk the stages in "
                    "learned steps, all of them and no others.",
                    f"Leave out {name}.",
                )

    def _share_of(self, stage: int) -> float:
        """Return the share of the real images that a stage is given."""
        return 1 - self.config.drop * stage / max(1, self.config.stages - 1)

    def _budget(self, stage: int) -> int:
        """Return the steps of a stage."""
        return _lengths(self.steps, self.config)[stage]

    def _fit(self) -> None:
        """Give the stage under way its budget, which a run may change before it begins."""
        self.base.steps = self._budget(len(self.done))
        self._phases = {phase.name: phase for phase in self.base.phases()}

    def _step(self, stage: int, name: str, step: int) -> Losses:
        self._reach(stage)
        return self._phases[name].step(step)

    def _reach(self, stage: int) -> None:
        """Finish the stages before a stage."""
        if self._checked != self.steps:
            self._require_stages()
            self.base.check_room(self.disk())
            self._checked = self.steps
        while len(self.done) < stage:
            self._advance()

    def _advance(self) -> None:
        """Freeze the stage under way and begin the next."""
        state = {name: tensor.detach().clone() for name, tensor in self.base.state_dict().items()}
        part = self.base.generator().to("cpu")
        # Stages that share what whitens them would share it in a checkpoint, which holds no tensor twice.
        part.recipe_tensors = {name: tensor.clone() for name, tensor in part.recipe_tensors.items()}
        self.done.append(part)
        self._shown = self._networks_saw()
        self._shelves.clear()  # the networks of a finished stage would stay on the device
        self.base = self._base(state)
        self._fit()

    def _base(self, state: Mapping[str, Tensor]) -> Method:
        """Return the method of the stage under way, which may go on from the state of the one before."""
        stage = len(self.done)
        budget = self._budget(stage)
        if not stage:
            return self.kind(self.share, self.real, self.engine, self.seed, budget)
        generator, seed = self._union(self.done), latents.fold(self.seed, stage)
        age, config = self._age(generator), self.config

        data = self._hard(stage)
        real = RealSteps(data, config.real_steps, config.real_lr) if config.real_steps else None

        def after(source: NetworkSource) -> NetworkSource:
            shelf = Shelf(generator, source, self.networks, age, config.youngest, seed, self.engine, real)
            self._shelves.append(shelf)
            return shelf

        earlier = Earlier(generator, after, state, self._key(generator, age, seed), self.seed, self.real)
        return self.kind(self.share, data, self.engine, seed, budget, earlier)

    def _age(self, before: Generator) -> int:
        """Return the student steps of the oldest networks that are trained on finished stages."""
        if self.config.age:
            return self.config.age
        unlimited = fresh_ipc(before) * before.spec.num_classes
        return sum(self._leg_steps(before, unlimited)[: len(self.done)])

    def _leg_steps(self, generator: Generator, unlimited: int) -> list[int]:
        """Return a student's steps in the leg of each stage of a generator, whose images may be without limit."""
        legs = self.walked.legs[: generator.stages]
        return [steps_of(leg, generator.view(stage=leg.stage, alone=leg.alone).images or unlimited) for leg in legs]

    def _key(self, generator: Generator, age: int, seed: int) -> str:
        """Return a digest of all that decides on the networks of a `Shelf`, but for what they are before it."""
        config = self.config
        training: dict[str, float] = {"networks": config.networks, "age": age, "youngest": config.youngest}
        if config.real_steps:
            training |= {"real_steps": config.real_steps, "real_lr": config.real_lr}
        of = {"seed": seed, "recipe": generator.recipe.to_json(), "bf16": self.engine.bf16}
        text = canonical_json(training | of)
        found = hashlib.blake2b(text.encode(), digest_size=16)
        for _, tensor in sorted((generator.state_dict() | generator.recipe_tensors).items()):
            found.update(tensor.detach().cpu().contiguous().numpy().data)
        return found.hexdigest()

    def _hard(self, stage: int) -> RealData:
        """Return the real data of a stage, without the images that are too easy for it."""
        share = self._share_of(stage)
        if share == 1:
            return self.real
        if self.counts is None:
            self.counts = forgetting_counts(
                self.real, self.config.drop_student, self.config.drop_epochs, self.engine, self.seed
            )
        return dataclasses.replace(self.real, train=hardest(self.real.train, self.counts, share, self.seed))

    def _union(self, parts: list[Generator], last_share: float | None = None) -> Generator:
        """Return stages as one generator, with the recipe that walks them."""
        recipe = walk([part.recipe for part in parts], [part.images for part in parts], last_share)
        # What is not of the base, such as real images that it learned nothing but step sizes for, remains what it was.
        method = parts[0].spec.method
        return type(parts[0]).joined(parts, recipe, "pdd" if method == self.config.base else method)

    def ailing(self, inside: str = "") -> str:
        """Return what looks wrong with the images of the stage under way; see `Method.ailing`."""
        return self.base.ailing(f"{inside}settings.")

    def require_recipe(self) -> None:
        """Ask the base, by whose recipe networks are trained stage by stage; see `Method.require_recipe`."""
        self.base.require_recipe()

    def probe(self) -> Probe:
        """Score a student as the base does, but by the whole recipe, which alone walks all stages."""
        return dataclasses.replace(self.base.probe(), steps=None)

    def checkpoint_bytes(self, anew: bool = False) -> int:
        """Return the bytes of the largest checkpoint: the base's, and the stages before, each like the first."""
        counts = 0 if self.counts is None else self.counts.nbytes
        base = self.base.checkpoint_bytes(anew or self._later > 0)
        return counts + base + (self.config.stages - 1) * self.base.generator().nbytes

    def disk(self, anew: bool = False) -> int:
        """Return the bytes that the stages will write outside the run's folder.

        That is what the stage under way lacks, and all of later ones, each like the first: what they build on is not
        made yet, and so what is made of it cannot be there.
        """
        return self.base.disk(anew) + self.base.disk(anew=True) * self._later

    @property
    def _later(self) -> int:
        """How many stages follow the one under way."""
        return self.config.stages - 1 - len(self.done)

    def beside(self) -> str:
        """Return how many networks are trained on the stages before, and in how many steps; see `Method.beside`."""
        if self.config.stages == 1:
            return ""
        whole, config = self.outline(), self.config
        unlimited = fresh_ipc(whole) * whole.spec.num_classes
        lengths = self._leg_steps(whole, unlimited)
        ages = [config.age or sum(lengths[:stage]) for stage in range(1, config.stages)]
        youngest = 1.0 if self.walked.learned_steps else config.youngest
        share = youngest + (1 - youngest) * (self.networks + 1) / (2 * self.networks)
        on_real = f" and up to {config.real_steps:,} on real images" if config.real_steps else ""
        networks = f"{self.networks} network{'s' * (self.networks > 1)}"
        told = ""
        if config.drop:
            seen = config.drop_epochs * len(self.real.train)
            told = f" What is easy is told by {config.drop_student}, on {seen:,} real images before the second stage."
        return (
            f"Each later stage first trains up to {networks} on the stages before, "
            f"{round(self.networks * share * sum(ages)):,} student steps in all{on_real}; that time is not counted."
            f"{told}"
        )

    def images_beside(self) -> int:
        """Return those that told which are easy, and those that networks saw after the stages before.

        See `Method.images_beside`.
        """
        told = 0 if self.counts is None else self.config.drop_epochs * len(self.real.train)
        return told + self._networks_saw()

    def _networks_saw(self) -> int:
        """Return the real images that networks were shown after the stages before."""
        return self._shown + sum(shelf.real_images for shelf in self._shelves)

    def generator(self) -> Generator:
        """Return the stages done and the one under way."""
        return self._union([*self.done, self.base.generator().to("cpu")], self.config.last_share)

    def outline(self) -> Generator:
        """Return all stages, as if each were the one under way."""
        return self._union([self.base.generator().to("cpu")] * self.config.stages, self.config.last_share)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the finished stages, the forgetting counts, and the state of the base."""
        state = {"stage": torch.tensor([len(self.done)])}
        for number, part in enumerate(self.done):
            text = canonical_json({"spec": part.spec.to_json(), "recipe": part.recipe.to_json()})
            state[f"stage.{number}.config"] = torch.tensor(list(text.encode()), dtype=torch.uint8)
            state |= {f"stage.{number}.tensors.{name}": tensor for name, tensor in part.state_dict().items()}
            state |= {f"stage.{number}.recipe.{name}": tensor for name, tensor in part.recipe_tensors.items()}
        if self.counts is not None:
            state["forgetting"] = self.counts
        if self.config.real_steps:
            state["shown"] = torch.tensor([self._networks_saw()])
        return state | {f"base.{name}": tensor for name, tensor in self.base.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.counts = state["forgetting"].cpu() if "forgetting" in state else None
        self._shown = int(state["shown"]) if "shown" in state else 0
        self._shelves.clear()
        try:
            self.done = [_restored(number, state) for number in range(int(state["stage"]))]
        except FormatError as error:
            raise ValueError(str(error)) from error  # it is the checkpoint that is damaged
        self.base = self._base({})
        self.base.load_state_dict(_under("base.", state))
        self._fit()


def _lengths(steps: int, config: PddConfig) -> list[int]:
    """Return the steps of each stage."""
    later = config.stages - 1
    if not config.first_share or not later:
        return shares(steps, [1.0] * config.stages)
    return shares(steps, [config.first_share, *([(1 - config.first_share) / later] * later)])


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _restored(number: int, state: Mapping[str, Tensor]) -> Generator:
    """Return a finished stage of a checkpoint."""
    text = json.loads(bytes(state[f"stage.{number}.config"].tolist()))
    spec, recipe = Spec.from_json(text["spec"]), Recipe.from_json(text["recipe"])
    with shapes_only():
        part = GENERATORS[spec.kind](spec, recipe)
    tensors = _under(f"stage.{number}.tensors.", state)
    part.load_state_dict({name: tensor.cpu() for name, tensor in tensors.items()}, assign=True)
    part.recipe_tensors = {name: tensor.cpu() for name, tensor in _under(f"stage.{number}.recipe.", state).items()}
    return part.requires_grad_(False).eval()
