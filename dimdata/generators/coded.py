"""One generator network with a code for each stage: progressive distillation whose stages share their convolutions.

What a stage has of its own is its code: the rows of every table that is looked up by the class (a learned first map,
and scales and shifts of channels), and a matrix that mixes the latent. All else is trained in the first stage and then
stands still. So later stages change no image of earlier ones, and add only their codes to the bytes: a twelfth of the
network's own in the default widths at 28x28, where a whole network for each stage adds all of it.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dimdata.errors import ArgumentError, FormatError
from dimdata.generators.base import GENERATORS, Generator, shapes_only
from dimdata.generators.layers import ClassAffine
from dimdata.generators.network import ARCHITECTURES, Architecture, build
from dimdata.generators.pyramid import SubpixelConfig, SubpixelNet
from dimdata.generators.staged import NetworkStages
from dimdata.recipe import Recipe
from dimdata.spec import Spec, require


class CodedArchitecture(Architecture):
    """A network that is conditioned on class and stage by one number, `stage * num_classes + label`.

    It is built with the code of one stage, where that number is the label. It keeps no running statistics, which every
    stage would move for all.
    """

    @abstractmethod
    def codes(self) -> dict[str, nn.Parameter]:
        """Return the parameters that every stage has of its own, by name.

        Their first dimension runs over the stages, or over the classes of the first, those of the second, and so on.
        """

    def hold(self, stages: int) -> None:
        """Make room for so many stages; their codes are copies of those there are."""
        for name, code in self.codes().items():
            owner, _, own = name.rpartition(".")
            more = code.detach().repeat(stages, *(1 for _ in code.shape[1:]))
            setattr(self.get_submodule(owner), own, nn.Parameter(more))

    def shared(self) -> tuple[nn.Parameter, ...]:
        """Return all but the codes; see `Architecture.shared`."""
        codes = self.codes()
        return tuple(parameter for name, parameter in self.named_parameters() if name not in codes)

    @classmethod
    def joined(cls, parts: Sequence[Generator], recipe: Recipe, method: str) -> Generator:
        """Return stages as one network with their codes; see `Architecture.joined`."""
        return join(parts, recipe, method)


@ARCHITECTURES.register("subpixel-coded")
class CodedSubpixelNet(CodedArchitecture, SubpixelNet):
    """The `subpixel` network with a code for each stage, for progressive distillation.

    Alone it is `subpixel` after a linear map of the latent.
    """

    Config = SubpixelConfig

    def __init__(self, config: SubpixelConfig, spec: Spec) -> None:
        require(config.condition != "norm", "generator.options.condition is norm, whose statistics stages would move.")
        super().__init__(config, spec)
        self.num_classes = spec.num_classes
        self.mix = nn.Parameter(torch.eye(spec.latent)[None])

    def codes(self) -> dict[str, nn.Parameter]:
        """Return the mixing matrices and all tables by class; see `CodedArchitecture.codes`."""
        tables = [
            (name, module) for name, module in self.named_modules() if isinstance(module, ClassAffine | nn.Embedding)
        ]
        of_classes = {
            f"{name}.{own}": parameter
            for name, module in tables
            for own, parameter in module.named_parameters(recurse=False)
        }
        return {"mix": self.mix} | of_classes

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """Map latents `[B, Z]` and `stage * num_classes + label` int64 `[B]` to images `[B, C, H, W]`."""
        # All stages' mixtures of every latent, which costs less than a matrix for each image.
        mixed = latent @ self.mix
        stage = label // self.num_classes
        return super().forward(mixed[stage, torch.arange(len(stage), device=stage.device)], label)


@GENERATORS.register("coded")
class CodedGenerator(NetworkStages):
    """One network with a code for each stage; images of all stages are drawn at once."""

    kind = "coded"

    def _hold(self, each: Spec) -> None:
        network = build(each)
        if not isinstance(network, CodedArchitecture):
            raise FormatError(f"generator.options.network is {self.config.network}: that network knows no stages.")
        network.hold(self.config.stages)
        self.network = network

    def _draw(self, latent: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        labels = self.labels(index)
        return self.network(latent, self.stage_of(index) * self.spec.num_classes + labels).float(), labels

    def _prefix(self, stages: int) -> dict[str, Tensor]:
        codes = {f"network.{name}" for name in self.network.codes()}
        return {
            name: tensor[: len(tensor) // self.stages * stages] if name in codes else tensor
            for name, tensor in self.state_dict().items()
        }


def join(parts: Sequence[Generator], recipe: Recipe, method: str) -> CodedGenerator:
    """Return generators of one coded network each, equal but for their codes, as the stages of one.

    Raises:
        ArgumentError: If they differ in more than their codes.
    """
    first = parts[0].spec
    options = {"stages": len(parts), "network": dict(first.options)}
    spec = dataclasses.replace(first, kind=CodedGenerator.kind, method=method, options=options)
    with shapes_only():
        whole = CodedGenerator(spec, recipe)
    codes = {f"network.{name}" for name in whole.network.codes()}
    states = [part.state_dict() for part in parts]
    tensors = {}
    for name, tensor in states[0].items():
        of_stages = [state[name] for state in states]
        if name in codes:
            tensors[name] = torch.cat(of_stages)
        elif all(torch.equal(tensor, other) for other in of_stages):
            tensors[name] = tensor
        else:
            raise ArgumentError(
                f"The stages differ in {name}, which they must share.", "Distil them one after another."
            )
    return whole.restore(tensors)
