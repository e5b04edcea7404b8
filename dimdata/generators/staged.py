"""Generators of several networks, one a stage: progressive distillation (arXiv 2310.06982) of generators."""

from __future__ import annotations

import dataclasses
import operator
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dimdata.generators.base import GENERATORS, Generator, shapes_only
from dimdata.generators.network import NetworkGenerator, build
from dimdata.recipe import MAX_LEGS, Recipe
from dimdata.spec import Record, Spec, require


@dataclass(frozen=True, kw_only=True)
class StagedConfig(Record):
    """Options of a staged generator.

    Attributes:
        stages: How many stages there are.
        network: The options of each stage's network, as those of a generator of one network.
    """

    stages: int
    network: Mapping[str, object]

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        fits = 1 <= self.stages <= MAX_LEGS
        require(fits, f"generator.options.stages is {self.stages}; 1 to {MAX_LEGS:,} are read.")


class NetworkStages(Generator):
    """Stages of class-conditional networks: the stage of an image is its slot modulo the stages.

    A prefix of k stages draws from the first k in turn, so that it too gives unlimited, balanced images. Subclasses
    say how the networks of the stages are held.
    """

    def __init__(self, spec: Spec, recipe: Recipe, recipe_tensors: dict[str, Tensor] | None = None) -> None:
        super().__init__(spec, recipe, recipe_tensors)
        require(spec.images is None, "generator.images must be null: networks draw without limit.")
        require(spec.latent > 0, "generator.latent must be positive: networks draw from noise.")
        require(spec.storage != "uint8", "generator.storage of networks is float32 or float16.")
        require(spec.targets == "hard", "generator.targets of networks are hard.")
        self.config = StagedConfig.from_json(spec.options, f"generator.options ({self.kind})")
        self._hold(dataclasses.replace(spec, kind=NetworkGenerator.kind, options=dict(self.config.network)))

    @abstractmethod
    def _hold(self, each: Spec) -> None:
        """Build the network of all stages; `each` is what a single stage is."""

    @abstractmethod
    def _prefix(self, stages: int) -> dict[str, Tensor]:
        """Return the tensors of the first stages, in the memory of all."""

    @property
    def stages(self) -> int:
        """How many stages there are."""
        return self.config.stages

    def stage_of(self, index: Tensor) -> Tensor:
        """Return the stage int64 `[B]`, counted from 0, that indices int64 `[B]` are drawn from."""
        return (index // self.spec.num_classes) % self.stages

    def view(self, *, stage: int | None = None, draw: str = "fresh", alone: bool = False) -> Generator:
        """Return the generator of the first stages, which shares their weights; see `Generator.view`."""
        super().view(stage=stage, draw=draw, alone=alone)
        stage = None if stage is None else operator.index(stage)  # one of numpy's becomes a plain one
        if stage is None or stage == self.stages:
            return self
        spec = dataclasses.replace(self.spec, options={**self.spec.options, "stages": stage})
        with shapes_only():
            recipe = self.recipe.upto(stage)
            part = type(self)(spec, recipe, {n: t for n, t in self.recipe_tensors.items() if n in recipe.tensors})
        part.load_state_dict(self._prefix(stage), assign=True)
        part.take_after(self)
        return part.requires_grad_(False).train(self.training)


@GENERATORS.register("staged")
class StagedGenerator(NetworkStages):
    """A whole network for each stage."""

    kind = "staged"

    def _hold(self, each: Spec) -> None:
        self.networks = nn.ModuleList(build(each) for _ in range(self.config.stages))

    # Which images belong to which network depends on the indices: a compiler would make a function of every split.
    compiles = False

    def _draw(self, latent: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        labels, stage = self.labels(index), self.stage_of(index)
        images = torch.empty(len(index), *self.spec.image_shape, dtype=torch.float32, device=index.device)
        for number, network in enumerate(self.networks):
            rows = (stage == number).nonzero().flatten()
            if len(rows):
                images[rows] = network(latent[rows], labels[rows]).float()
        return images, labels

    def _prefix(self, stages: int) -> dict[str, Tensor]:
        first = tuple(f"networks.{number}." for number in range(stages))
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(first)}


def join(parts: Sequence[Generator], recipe: Recipe, method: str) -> StagedGenerator:
    """Return generators of one network each as the stages of one, a whole network a stage; see `Generator.joined`."""
    first = parts[0].spec
    options = {"stages": len(parts), "network": dict(first.options)}
    spec = dataclasses.replace(first, kind=StagedGenerator.kind, method=method, options=options)
    with shapes_only():
        whole = StagedGenerator(spec, recipe)
    tensors = {
        name.replace("network.", f"networks.{number}.", 1): tensor
        for number, part in enumerate(parts)
        for name, tensor in part.state_dict().items()
    }
    return whole.restore(tensors)
