"""Network sources: where a method's or a student's networks come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from dimdata import latents
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, FormatError
from dimdata.recipe import Recipe, Start
from dimdata.students import Factory, ImageShape, make_student
from dimdata.students.own import student_name

if TYPE_CHECKING:
    from dimdata.dataset import GeneratedDataset
    from dimdata.generators.base import Generator

START = "start."  # recipe tensors of this prefix are a student's first weights

_LAW = latents.stream("init law")


class NetworkSource(Protocol):
    """A numbered supply of networks."""

    def network(self, number: int) -> nn.Module:
        """Return network `number`; equal numbers give equal weights, and no global random state is changed."""
        ...


@dataclass(frozen=True)
class InitLaw:
    """Untrained networks.

    Attributes:
        student: A student's name or factory.
        image_shape: (channels, height, width).
        num_classes: Outputs.
        law: `default` (the network's own), or `xavier`, `kaiming`, `orthogonal` or `normal` (deviation 0.02) for the
            weights of convolutions and linear layers, with biases at zero.
        seed: Any integer; other seeds give other networks.
    """

    student: str | Factory
    image_shape: ImageShape
    num_classes: int
    law: str = "default"
    seed: int = 0

    def network(self, number: int) -> nn.Module:
        """Return network `number`; see `NetworkSource`."""
        key = latents.fold(self.seed, number)
        network = make_student(self.student, self.image_shape, self.num_classes, key)
        if self.law != "default":
            initialise(network, self.law, key)
        return network


def initialise(network: nn.Module, law: str, seed: int) -> None:
    """Draw the weights of convolutions and linear layers by a law, in place.

    Raises:
        ArgumentError: If there is no such law.
    """
    # A generator of its own, so that no global random state is touched.
    random = torch.Generator().manual_seed(latents.fold(_LAW, seed))
    for module in network.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if law == "xavier":
            nn.init.xavier_normal_(module.weight, generator=random)
        elif law == "kaiming":
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=random)
        elif law == "orthogonal":
            nn.init.orthogonal_(module.weight, generator=random)
        elif law == "normal":
            nn.init.normal_(module.weight, std=0.02, generator=random)
        else:
            raise ArgumentError(
                f"There is no initialisation law called {law!r}.", "Use default, xavier, kaiming, orthogonal or normal."
            )
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@dataclass(frozen=True)
class StoredWeights:
    """One network with stored weights, whatever its number.

    Attributes:
        student: The student the weights belong to.
        image_shape: (channels, height, width).
        num_classes: Outputs.
        tensors: Its state dict.
    """

    student: str | Factory
    image_shape: ImageShape
    num_classes: int
    tensors: Mapping[str, Tensor]

    def network(self, number: int) -> nn.Module:
        """Return a new copy of the network.

        Raises:
            FormatError: If the weights do not fit the student.
        """
        network = make_student(self.student, self.image_shape, self.num_classes)
        load_weights(network, self.tensors, f"The stored start of {student_name(self.student)}")
        return network


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy a state dict into a network; names and shapes must be exactly its own.

    Raises:
        FormatError: If a tensor is missing, left over, or of another shape.
    """
    wanted = network.state_dict()
    for name in sorted(wanted.keys() ^ tensors.keys()):
        raise FormatError(f"{what} {'lacks' if name in wanted else 'has a surplus'} tensor {name!r:.80}.")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise FormatError(f"{what} has {name} of shape {list(tensor.shape)}, not {list(wanted[name].shape)}.")
    network.load_state_dict(dict(tensors))


@dataclass(frozen=True)
class TrainedOn:
    """The networks of another source, trained on a generator to some age.

    Attributes:
        generator: What they are trained on.
        source: The networks before training.
        steps: Optimiser steps of training; none = the whole recipe.
        recipe: How; the generator's own recipe unless given.
        ipc: Images per class; see `GeneratedDataset`.
        draw: `fresh` or `fixed`.
        seed: Any integer; with a network's number it gives the seed of its training.
        engine: Device and precision.
        alike: How many of these networks will be asked for, which decides what is worth compiling; see `train`.
    """

    generator: Generator | GeneratedDataset | str
    source: NetworkSource
    steps: int | None = None
    recipe: Recipe | None = None
    ipc: int | None = None
    draw: str = "fresh"
    seed: int = 0
    engine: Engine | None = None
    alike: int = 1

    def network(self, number: int) -> nn.Module:
        """Return network `number`, trained and on the engine's device, in training mode."""
        from dimdata.students.train import train  # training itself starts from a source

        network = self.source.network(number)
        train(
            network,
            self.generator,
            ipc=self.ipc,
            recipe=self.recipe,
            seed=latents.fold(self.seed, number),
            draw=self.draw,
            engine=self.engine,
            limit_steps=self.steps,
            alike=self.alike,
        )
        return network.train()


def source_of(
    start: Start,
    image_shape: ImageShape,
    num_classes: int,
    *,
    student: str | Factory | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> NetworkSource:
    """Return the source that a recipe starts from.

    Args:
        start: The recipe's start.
        image_shape: (channels, height, width).
        num_classes: Outputs.
        student: The student to train; the one the start names unless given.
        tensors: The recipe's tensors; stored weights are those called `start.*`.
        seed: Any integer.

    Raises:
        ArgumentError: If there is no student to train, or stored weights belong to another.
        FormatError: If the stored weights are missing.
    """
    student = student if student is not None else start.student
    if student is None:
        raise ArgumentError("No student was given and the recipe names none.", "Name one, such as convnet3.")
    if start.law != "stored":
        return InitLaw(student, image_shape, num_classes, start.law, seed)
    if isinstance(student, str) and student != start.student:
        raise ArgumentError(
            f"The recipe starts from stored weights of {start.student}, which {student} cannot take.",
            f"Train {start.student}, or give a recipe with another start.",
        )
    weights = {name.removeprefix(START): t for name, t in (tensors or {}).items() if name.startswith(START)}
    if not weights:
        raise FormatError(f"The recipe starts from stored weights, but stores no tensor called {START}*.")
    return StoredWeights(student, image_shape, num_classes, weights)
