"""Where the networks of an unrolled training start, and how a recipe says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dimdata import latents
from dimdata.engine import Engine
from dimdata.errors import ArgumentError
from dimdata.real import RealData, all_real, load_real
from dimdata.recipe import Leg, Recipe, Start
from dimdata.spec import Record, require
from dimdata.students.source import START, InitLaw, NetworkSource, StoredWeights, TrainedOn
from dimdata.students.store import load_student

_NETWORKS = latents.stream("dd.networks")
_CHOICE = latents.stream("dd.choice")
_STATE = "pretrained"

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Pretrain(Record):
    """Weights that are trained before distillation begins.

    Attributes:
        on: A real dataset (a name, which lies where `DIMDATA_DATA` says; a folder; an `.npz` file), or a student that
            `dimdata train` stored (`.safetensors`); empty = none.
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

    @property
    def is_file(self) -> bool:
        """Whether `on` is a stored student."""
        return self.on.endswith(".safetensors")


class Starts:
    """A supply of first weights: fixed or random, untrained or trained before.

    Trained ones are made when they are first asked for, and are part of the state.

    Args:
        student: Name of the network.
        law: Initialisation law.
        start: `fixed` or `random`.
        pretrain: What they are trained on.
        real: What is distilled.
        engine: Device and precision.
        seed: Of all noise.

    Attributes:
        alike: Whether one network is stored with the result, from which all students start.

    Raises:
        ArgumentError: If trained weights do not fit the images and classes.
    """

    def __init__(
        self, student: str, law: str, start: str, pretrain: Pretrain, real: RealData, engine: Engine, seed: int
    ) -> None:
        self.student, self.law, self.pretrain, self.real, self.engine = student, law, pretrain, real, engine
        self.fixed = start == "fixed"
        self.alike = self.fixed or bool(pretrain.on)
        self.key = latents.fold(_NETWORKS, seed)
        shape, classes = real.image_shape, real.num_classes
        self.source: NetworkSource = InitLaw(student, shape, classes, law, self.key)
        self._kept: dict[int, Weights] = {}
        if pretrain.is_file:
            if not self.fixed:
                raise ArgumentError("A stored student is one start, not a random one.", "Set start to fixed.")
            network, info = load_student(Path(pretrain.on))
            if info.student != student or info.image_shape != shape or len(info.classes) != classes:
                raise ArgumentError(
                    f"{pretrain.on} holds a {info.student} for {len(info.classes)} classes of {info.image_shape}, not "
                    f"a {student} for {classes} of {shape}.",
                    f"Set student to {info.student}, or train another.",
                )
            self.source = StoredWeights(student, shape, classes, network.state_dict())
        elif pretrain.on:
            self.source = self._trained()

    def _trained(self) -> NetworkSource:
        """Return the source of networks that are trained on the dataset named."""
        settings, real = self.pretrain, self.real
        other = real if settings.on == real.name else load_real(settings.on)
        if other.image_shape != real.image_shape or other.num_classes != real.num_classes:
            raise ArgumentError(
                f"{other.name} has {other.num_classes} classes of images {other.image_shape}, {real.name} "
                f"{real.num_classes} of {real.image_shape}; one network cannot take both.",
                "Pretrain on images of the same shape and number of classes.",
            )
        leg = Leg(
            epochs=settings.epochs, batch_size=settings.batch_size, lr=settings.lr, nesterov=True, schedule="onecycle"
        )
        return TrainedOn(all_real(other, Recipe(legs=(leg,))), self.source, seed=self.key, engine=self.engine)

    def template(self) -> nn.Module:
        """Return a network of the kind."""
        plain = InitLaw(self.student, self.real.image_shape, self.real.num_classes, self.law, self.key)
        return self.engine.place(plain.network(0))

    def weights(self, step: int, count: int) -> list[Weights]:
        """Return the first weights of the networks of a step, on the device."""
        if self.fixed:
            return [self._keep(0)]
        numbers = range(step * count, (step + 1) * count)
        if self.pretrain.on:
            return [self._keep(latents.fold(_CHOICE, self.key, n) % self.pretrain.count) for n in numbers]
        return [self._make(number) for number in numbers]

    def _make(self, number: int) -> Weights:
        network = self.engine.place(self.source.network(number))
        return _plain(network)

    def _keep(self, number: int) -> Weights:
        if number not in self._kept:
            self._kept[number] = self._make(number)
        return self._kept[number]

    def replace(self, weights: Weights) -> None:
        """Start from given weights of the student instead; only for a fixed start."""
        template = self.template()
        template.load_state_dict(weights)
        self._kept[0] = _plain(template)

    def stored(self) -> tuple[Start, Weights]:
        """Return what a recipe says of the start, and the tensors it needs for that."""
        if not self.alike:
            return Start(law=self.law, student=self.student), {}  # type: ignore[arg-type]
        # Of random trained starts, one that distillation never saw.
        weights = self._keep(0 if self.fixed else self.pretrain.count)
        plain = {START + name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        return Start(law="stored", student=self.student), plain

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights that took training, by number."""
        return {f"{_STATE}.{n}.{name}": t for n, weights in self._kept.items() for name, t in weights.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for key, tensor in state.items():
            if key.startswith(f"{_STATE}."):
                _, number, name = key.split(".", 2)
                self._kept.setdefault(int(number), {})[name] = tensor.clone()


def _plain(network: nn.Module) -> Weights:
    """Return the weights of a network in one memory order, so that those of a checkpoint compute the same."""
    return {
        name: parameter.detach().clone(memory_format=torch.contiguous_format)
        for name, parameter in network.named_parameters()
    }
