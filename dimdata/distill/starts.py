"""Where the networks of an unrolled training start, and how a recipe says so."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimdata import latents
from dimdata.distill.method import Earlier, Losses
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, NotFoundError
from dimdata.generators.base import Generator
from dimdata.real import RealData, all_real, load_real
from dimdata.recipe import Leg, Recipe, Start
from dimdata.spec import Record, require
from dimdata.students.source import START, InitLaw, NetworkSource, StoredWeights, load_weights, source_of
from dimdata.students.store import load_student
from dimdata.students.train import train

PART = 20  # steps, or a fiftieth of a network's training where that is more, that an estimate takes at a time

_NETWORKS = latents.stream("dd.networks")
_CHOICE = latents.stream("dd.choice")
_STATE = "pretrained"
_RESIZED = 1000  # images at a time

log = logging.getLogger("dimdata")

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Pretrain(Record):
    """Weights that are trained before distillation begins.

    Attributes:
        on: A real dataset (a name, which lies where that of the run does, or where `DIMDATA_DATA` says; a folder; an
            `.npz` file), or a student that `dimdata train` stored (`.safetensors`); empty = none. Images of another
            size are resized to that of the run's.
        count: Networks trained, from which a random start draws; one more is held out and stored.
        epochs: Passes over the dataset.
        batch_size: Images a step.
        lr: Peak of the one-cycle learning rate of SGD.
    """

    on: str = ""
    count: int = 8
    epochs: int = 3
    batch_size: int = 64
    lr: float = 0.05

    @classmethod
    def label(cls) -> str:
        """The name of this record in messages."""
        return "config.pretrain"

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        for name in ("count", "epochs", "batch_size"):
            require(getattr(self, name) >= 1, f"config.pretrain.{name} must be 1 or more.")
        require(self.lr > 0, "config.pretrain.lr must be positive.")

    def networks(self, start: str) -> int:
        """Return how many networks are trained for a `fixed` or `random` start."""
        if not self.on or self.is_file:
            return 0
        return 1 if start == "fixed" else self.count + 1

    @property
    def is_file(self) -> bool:
        """Whether `on` is a stored student."""
        return self.on.endswith(".safetensors")


class Starts:
    """A supply of first weights: fixed or random, untrained or trained before.

    Those that take training are made one by one by `train_one`, or when they are first asked for, and are part of the
    state.

    Args:
        student: Name of the network.
        law: Initialisation law.
        start: `fixed` or `random`.
        pretrain: What they are trained on.
        real: What is distilled.
        engine: Device and precision.
        seed: Of all noise.
        earlier: The stages before, where this is a later stage: networks start as they do there, and are trained on
            those stages.

    Attributes:
        alike: Whether one network is stored with the result, from which all students start.

    Raises:
        ArgumentError: If the student has no registered name, or trained weights do not fit the images and classes.
        NotFoundError: If what is to be trained on, or the stored student, is not there.
    """

    def __init__(
        self,
        student: str,
        law: str,
        start: str,
        pretrain: Pretrain,
        real: RealData,
        engine: Engine,
        seed: int,
        earlier: Earlier | None = None,
    ) -> None:
        if ":" in student:
            raise ArgumentError(
                f"The result names its student as part of its start, and nothing is imported for a stored name such as "
                f"{student!r:.120}.",
                "Register the network under a name of its own (entry points of the group dimdata.students).",
            )
        self.student, self.law, self.settings, self.real, self.engine = student, law, pretrain, real, engine
        self.fixed = start == "fixed"
        self.alike = self.fixed or bool(pretrain.on)
        self.key = latents.fold(_NETWORKS, seed)
        self._plain = InitLaw(student, real.image_shape, real.num_classes, law, self.key)
        self._before = earlier.generator if earlier else None
        self._source: NetworkSource = self._plain
        if earlier:
            before = earlier.generator
            shape, classes, tensors = real.image_shape, real.num_classes, before.recipe_tensors
            first = source_of(before.recipe.start, shape, classes, tensors=tensors, seed=self.key)
            self._source = earlier.after(first)
        elif pretrain.is_file:
            self._source = self._load()
        self._lesson = self._other() if pretrain.on and not pretrain.is_file else None
        self._kept: dict[int, Weights] = {}

    def _load(self) -> NetworkSource:
        """Return the source of the stored student."""
        path, shape, classes = Path(self.settings.on), self.real.image_shape, self.real.num_classes
        if not self.fixed:
            raise ArgumentError("A stored student is one start, not a random one.", "Set start to fixed.")
        if not path.expanduser().is_file():
            raise NotFoundError(f"There is no stored student {path}.", "Give a file that dimdata train -o has written.")
        network, info = load_student(path.expanduser())
        if info.student != self.student or info.image_shape != shape or len(info.classes) != classes:
            raise ArgumentError(
                f"{path} holds a {info.student} for {len(info.classes)} classes of {info.image_shape}, not "
                f"a {self.student} for {classes} of {shape}.",
                f"Set student to {info.student}, or train another.",
            )
        if info.whitening is not None:
            raise ArgumentError(
                f"{path} holds a student of whitened images, and this method shows it images as they are.",
                "Train one on images that are not whitened.",
            )
        return StoredWeights(self.student, shape, classes, network.state_dict())

    def _other(self) -> RealData:
        """Return the dataset that networks are trained on first, in the size of the run's."""
        on, real = self.settings.on, self.real
        other = real if on == real.name else load_real(on, root=real.root)
        if other.image_shape[0] != real.image_shape[0] or other.num_classes != real.num_classes:
            raise ArgumentError(
                f"{other.name} has {other.num_classes} classes of images {other.image_shape}, {real.name} "
                f"{real.num_classes} of {real.image_shape}; one network cannot take both.",
                "Pretrain on images of as many channels and classes.",
            )
        if other.image_shape != real.image_shape:
            before, after = ("x".join(map(str, data.image_shape[1:])) for data in (other, real))
            log.warning("Networks are first trained on images of %s resized from %s to %s.", other.name, before, after)
            other = _resized(other, real.image_shape[1:])
        return other

    # --- networks that are trained first ------------------------------------------------------------------------

    @property
    def trainees(self) -> tuple[int, ...]:
        """The numbers of the networks that are trained first; that which is stored comes first."""
        if self._lesson is None:
            return ()
        return (0,) if self.fixed else (self.settings.count, *range(self.settings.count))

    @property
    def ready(self) -> int:
        """How many of them are trained."""
        return sum(number in self._kept for number in self.trainees)

    @property
    def images(self) -> int:
        """Real images that training one of them shows."""
        return 0 if self._lesson is None else self.settings.epochs * len(self._lesson.train)

    @functools.cached_property
    def _generator(self) -> Generator:
        assert self._lesson is not None
        settings = self.settings
        leg = Leg(
            epochs=settings.epochs, batch_size=settings.batch_size, lr=settings.lr, nesterov=True, schedule="onecycle"
        )
        return all_real(self._lesson, Recipe(legs=(leg,)))

    def _train(self, number: int, limit: int | None = None) -> tuple[nn.Module, float, int]:
        """Return a network that is trained for all or some steps, its last loss, and its steps."""
        network = self.engine.place(self._plain.network(number))
        seed = latents.fold(self.key, number)
        made = train(network, self._generator, seed=seed, engine=self.engine, limit_steps=limit)
        return network.train(), made.loss, made.steps

    def train_one(self, step: int) -> Losses:
        """Train the network whose turn it is, unless it is trained."""
        number, loss = self.trainees[step], 0.0
        if number not in self._kept:
            network, loss, _ = self._train(number)
            self._kept[number] = _weights_of(network)
        return {"pretrain": torch.tensor(loss)}

    def part(self) -> tuple[Losses, float]:
        """Train a network for some steps and forget it; return its loss, and which share of a training that was."""
        assert self._lesson is not None
        whole = self.settings.epochs * -(-len(self._lesson.train) // self.settings.batch_size)
        _, loss, taken = self._train(self.trainees[0], min(whole, max(PART, whole // 50)))
        return {"pretrain": torch.tensor(loss)}, taken / whole

    def missing_bytes(self) -> int:
        """Return the bytes of state that the networks will take which are not trained yet."""
        each = sum(tensor.numel() * tensor.element_size() for tensor in self.template().parameters())
        return each * (len(self.trainees) - self.ready)

    # --- weights ------------------------------------------------------------------------------------------------

    def template(self) -> nn.Module:
        """Return a network of the kind."""
        return self.engine.place(self._plain.network(0))

    def weights(self, step: int, count: int) -> list[Weights]:
        """Return the first weights of the networks of a step, on the device."""
        if self.fixed:
            return [self._keep(0)]
        if self._lesson is not None:
            return [self._keep(number) for number in self._drawn(step, count)]
        return [self.make(number) for number in range(step * count, (step + 1) * count)]

    def untrained(self, count: int) -> list[Weights]:
        """Return as many weights that took no training, by which to time a step before any did."""
        return [_weights_of(self.engine.place(self._plain.network(number))) for number in range(count)]

    def _drawn(self, step: int, count: int) -> list[int]:
        """Return which trained networks a step takes: none twice, while there are enough."""
        there = self.settings.count
        keys = [latents.fold(_CHOICE, self.key, step, turn) for turn in range(-(-count // there))]
        orders = [latents.permutation(key, there) for key in keys]
        drawn: list[int] = torch.cat(orders)[:count].tolist()
        return drawn

    def make(self, number: int) -> Weights:
        """Return the weights of a network of any number, trained first where that is asked for."""
        if self._lesson is not None:
            return _weights_of(self._train(number)[0])
        return _weights_of(self.engine.place(self._source.network(number)))

    def _keep(self, number: int) -> Weights:
        if number not in self._kept:
            self._kept[number] = self.make(number)
        return self._kept[number]

    def replace(self, weights: Weights, what: str) -> None:
        """Start from given weights of the student instead; only for a fixed start.

        Args:
            weights: By the names of the student's parameters.
            what: What they are, for messages.

        Raises:
            FormatError: If they are not those of the student.
        """
        template = self.template()
        load_weights(template, weights, what)
        self._kept[0] = _weights_of(template)

    def stored(self) -> tuple[Start, Weights]:
        """Return what a recipe says of the start, and the tensors it needs for that."""
        if self._before is not None:  # students go through the stages before themselves
            tensors = self._before.recipe_tensors
            return self._before.recipe.start, {n: t.clone() for n, t in tensors.items() if n.startswith(START)}
        if not self.alike:
            return Start(law=self.law, student=self.student), {}  # type: ignore[arg-type]
        # Of random trained starts, one that distillation never saw; until it is trained, as it begins.
        number = 0 if self.fixed else self.settings.count
        waiting = self._lesson is not None and number not in self._kept
        weights = _weights_of(self._plain.network(number)) if waiting else self._keep(number)
        plain = {START + name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        return Start(law="stored", student=self.student), plain

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights that took training, by number."""
        return {f"{_STATE}.{n}.{name}": t for n, weights in self._kept.items() for name, t in weights.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        # Files keep no order, and a recipe names its tensors in that of the network.
        names = [name for name, _ in self.template().named_parameters()]
        for number in {int(key.split(".", 2)[1]) for key in state if key.startswith(f"{_STATE}.")}:
            self._kept[number] = {name: state[f"{_STATE}.{number}.{name}"].clone() for name in names}


def _resized(real: RealData, size: tuple[int, int]) -> RealData:
    """Return the training images in another (height, width), by bilinear interpolation without aliasing."""
    parts = [
        F.interpolate(part.float(), size=size, mode="bilinear", antialias=True).round().clamp(0, 255).to(torch.uint8)
        for part in torch.split(real.train.images, _RESIZED)
    ]
    return RealData.from_arrays(torch.cat(parts), real.train.labels, classes=real.classes, name=real.name)


def _weights_of(network: nn.Module) -> Weights:
    """Return the weights of a network in one memory order, so that those of a checkpoint compute the same."""
    return {
        name: parameter.detach().clone(memory_format=torch.contiguous_format)
        for name, parameter in network.named_parameters()
    }
