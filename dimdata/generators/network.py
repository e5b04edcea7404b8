"""Generators that are networks: unlimited images from noise (DiM, arXiv 2303.04707)."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimdata.errors import FormatError
from dimdata.generators.base import GENERATORS, Generator
from dimdata.recipe import Recipe
from dimdata.registry import Registry
from dimdata.spec import Record, Spec, require

ARCHITECTURES: Registry[type[Architecture]] = Registry(
    "generator network", "dimdata.architectures", ("dimdata.generators.acgan",)
)


class Architecture(nn.Module, ABC):
    """A network from latents and labels to images; a subclass registers itself and declares its `Config`."""

    Config: type[Record]

    def __init__(self, config: Record, spec: Spec) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """Map latents `[B, Z]` and labels int64 `[B]` to images `[B, C, H, W]` in the value range."""


@GENERATORS.register("network")
class NetworkGenerator(Generator):
    """A class-conditional network; `spec.options` is {"name": architecture, ...its config}."""

    kind = "network"

    def __init__(
        self,
        spec: Spec,
        recipe: Recipe,
        recipe_tensors: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__(spec, recipe, recipe_tensors)
        require(spec.images is None, "generator.images must be null: a network draws without limit.")
        require(spec.latent > 0, "generator.latent must be positive: a network draws from noise.")
        require(spec.storage != "uint8", "generator.storage of a network is float32 or float16.")
        require(spec.targets == "hard", "generator.targets of a network are hard.")
        self.network = build(spec)

    def _draw(self, latent: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        labels = self.labels(index)
        return self.network(latent, labels).float(), labels

    @classmethod
    def joined(cls, parts: Sequence[Generator], recipe: Recipe, method: str) -> Generator:
        """Return networks as the stages of one generator, which draws from them in turn; see `Generator.joined`."""
        from dimdata.generators.staged import join  # which builds on this module

        return join(parts, recipe, method)


def build(spec: Spec) -> Architecture:
    """Build the network that `spec.options` names."""
    options = dict(spec.options)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise FormatError("generator.options lacks the name of the network.")
    architecture = ARCHITECTURES[name]
    config = architecture.Config.from_json(options, f"generator.options ({name})")
    return architecture(config, spec)


class ClassAffine(nn.Module):
    """A learned scale and shift of each channel for each class.

    There is no normalisation: it costs more than the convolutions beside it, makes images depend on their batch, and
    generators trained with it were the worse ones (tests/benchmarks/EXPERIMENTS.md).
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_classes, channels))
        self.shift = nn.Parameter(torch.zeros(num_classes, channels))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Scale and shift `[B, C, H, W]` by the rows of labels `[B]`."""
        scale, shift = self.scale[label].to(x.dtype), self.shift[label].to(x.dtype)
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])


@dataclass(frozen=True, kw_only=True)
class SubpixelConfig(Record):
    """Width of the subpixel network.

    Attributes:
        width: Channels at the lowest resolution.
        mid: Channels after the first doubling; later ones have a third of it, 16 at least.
        stem: Channels that the latent is projected to.
    """

    width: int = 64
    mid: int = 48
    stem: int = 32

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        for name in ("width", "mid", "stem"):
            value = getattr(self, name)
            require(1 <= value <= 1024, f"generator.options.{name} is {value}; 1 to 1024 is read.")


@ARCHITECTURES.register("subpixel")
class SubpixelNet(Architecture):
    """A small generator that works at low resolution and doubles it by sub-pixel convolutions (Shi et al., CVPR 2016).

    The latent becomes a map of at most 8x8, each doubling is one 3x3 convolution and a pixel shuffle, and the largest
    resolution sees only a few channels. Sides that are no multiple of the map's are cropped from the centre.
    """

    Config = SubpixelConfig

    def __init__(self, config: SubpixelConfig, spec: Spec) -> None:
        super().__init__(config, spec)
        channels, height, width = spec.image_shape
        n = spec.num_classes
        doublings = max(2, math.ceil(math.log2(max(height, width) / 8)))
        self.size = (height, width)
        self.base = (math.ceil(height / 2**doublings), math.ceil(width / 2**doublings))
        self.value_range = spec.value_range
        cells = self.base[0] * self.base[1]
        self.project = nn.Linear(spec.latent, config.stem * cells)
        self.label = nn.Embedding(n, config.stem * cells)
        self.stem_affine = ClassAffine(n, config.stem)
        self.body = nn.Conv2d(config.stem, config.width, 3, padding=1)
        self.body_affine = ClassAffine(n, config.width)
        widths = [config.width, config.mid]
        while len(widths) <= doublings:
            widths.append(max(16, widths[-1] // 3))
        self.up = nn.ModuleList(nn.Conv2d(a, 4 * b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.up_affine = nn.ModuleList(ClassAffine(n, b) for b in widths[1:])
        self.refine = nn.Conv2d(config.mid, config.mid, 3, padding=1)
        self.refine_affine = ClassAffine(n, config.mid)
        self.image = nn.Conv2d(widths[-1], channels, 3, padding=1)
        if self.label.weight.device.type != "meta":
            nn.init.normal_(self.label.weight, std=0.1)

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """Map latents `[B, Z]` and labels int64 `[B]` to images `[B, C, H, W]`."""
        x = self.project(latent) + self.label(label)
        x = x.unflatten(1, (-1, *self.base)).contiguous(memory_format=torch.channels_last)
        x = F.relu(self.stem_affine(x, label))
        x = F.relu(self.body_affine(self.body(x), label))
        for step, (conv, affine) in enumerate(zip(self.up, self.up_affine, strict=True)):
            x = F.relu(affine(F.pixel_shuffle(conv(x), 2), label))
            if step == 0:
                x = x + F.relu(self.refine_affine(self.refine(x), label))
        x = self.image(x)
        top, left = (x.shape[2] - self.size[0]) // 2, (x.shape[3] - self.size[1]) // 2
        x = x[:, :, top : top + self.size[0], left : left + self.size[1]]
        low, high = self.value_range
        return (torch.sigmoid(x.float()) * (high - low) + low).contiguous()
