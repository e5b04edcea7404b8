"""Small generators that work at low resolution and double it step by step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimdata.generators.layers import ClassAffine, ClassNorm, NoCondition, full, separable
from dimdata.generators.network import ARCHITECTURES, Architecture, require_room
from dimdata.spec import Record, Spec, require

MAX_LEVELS = 10  # from 8x8 to 4,096x4,096, the largest images that are read

CONVOLUTIONS: dict[str, Callable[[int, int], nn.Module]] = {"full": full, "separable": separable}
CONDITIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "affine": ClassAffine,
    "norm": ClassNorm,
    "concat": NoCondition,
}


def _subpixel(convolution: nn.Module, x: Tensor) -> Tensor:
    """Return `pixel_shuffle(convolution(x), 2)`, to the bit.

    The channels are computed in another order, those of each of the four new pixels side by side: where channels come
    last in memory, they are then moved as they lie. It takes two thirds of the time of a compiled draw on a CPU.
    """
    *before, last = convolution.children() if isinstance(convolution, nn.Sequential) else (convolution,)
    for layer in before:
        x = layer(x)
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    channels = last.out_channels // 4
    weight, bias = (
        t.reshape(channels, 4, *t.shape[1:]).transpose(0, 1).flatten(0, 1) for t in (last.weight, last.bias)
    )
    pixels = F.conv2d(x, weight, bias, padding=last.padding).permute(0, 2, 3, 1)
    batch, height, width, _ = pixels.shape
    pixels = pixels.reshape(batch, height, width, 2, 2, channels).transpose(2, 3)
    return pixels.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def _nearest(convolution: nn.Module, x: Tensor) -> Tensor:
    doubled: Tensor = convolution(F.interpolate(x, scale_factor=2, mode="nearest"))
    return doubled


# How a resolution is doubled, and how many times as many channels its convolution gives for that.
DOUBLINGS: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], int]] = {
    "subpixel": (_subpixel, 4),
    "nearest": (_nearest, 1),
}


@dataclass(frozen=True, kw_only=True)
class PyramidConfig(Record):
    """What a pyramid is built of.

    Attributes:
        widths: Channels at each resolution, the lowest first. Each has twice the sides of the one before, so three
            widths begin at 8x8 for images of 32x32, and four at 4x4.
        stem: Channels that the latent is projected to.
        refine: Where a second, residual convolution works: 0 is the lowest resolution; -1 leaves it out.
        upsampling: How the resolution is doubled: by a convolution to four times the channels and a pixel shuffle
            (`subpixel`: Shi et al., CVPR 2016), or by repeating pixels before a convolution (`nearest`). Both take
            the same products; `subpixel` keeps four times the weights.
        convolution: `full`, or `separable` into depthwise and pointwise ones. The one to the image is always full.
        condition: Where the label enters: a scale and shift of each channel for each class after every convolution
            (`affine`), the same after batch norm (`norm`), or nowhere but beside the latent (`concat`). It enters
            beside the latent in any case.
    """

    widths: tuple[int, ...] = (64, 48, 16)
    stem: int = 32
    refine: int = 1
    upsampling: Literal["subpixel", "nearest"] = "subpixel"
    convolution: Literal["full", "separable"] = "full"
    condition: Literal["affine", "norm", "concat"] = "affine"

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        levels = len(self.widths)
        require(1 <= levels <= MAX_LEVELS, f"generator.options.widths holds {levels} numbers; 1 to {MAX_LEVELS} fit.")
        for name, width in (("stem", self.stem), *(("widths", width) for width in self.widths)):
            require(1 <= width <= 1024, f"generator.options.{name} is {width}; 1 to 1024 is read.")
        fits = -1 <= self.refine < levels
        require(fits, f"generator.options.refine is {self.refine}; 0 to {levels - 1} are resolutions here, -1 is none.")


@ARCHITECTURES.register("pyramid")
class PyramidNet(Architecture):
    """A small generator that works at low resolution and doubles it.

    The latent becomes a low-resolution map, each doubling is one 3x3 convolution, and the largest resolution sees only
    a few channels. Sides that are no multiple of the map's are cropped from the centre.

    The projection of the latent and the embedding of the label are added, which is one linear layer on the latent and
    the one-hot label side by side.
    """

    Config: type[Record] = PyramidConfig

    def __init__(self, config: PyramidConfig, spec: Spec) -> None:
        super().__init__(config, spec)
        channels, *self.size = spec.image_shape
        n = spec.num_classes
        widths = config.widths
        self.base = tuple(math.ceil(side / 2 ** (len(widths) - 1)) for side in self.size)
        self.value_range = spec.value_range
        self.refined = config.refine
        self.doubled, more = DOUBLINGS[config.upsampling]
        convolution, condition = CONVOLUTIONS[config.convolution], CONDITIONS[config.condition]
        cells = self.base[0] * self.base[1]
        for level, channels_there in enumerate([max(config.stem, widths[0]), *map(max, itertools.pairwise(widths))]):
            require_room(channels_there, self.base[0] << level, self.base[1] << level)
        # Initial weights are drawn in the order of these lines: another order is another run.
        self.project = nn.Linear(spec.latent, config.stem * cells)
        self.label = nn.Embedding(n, config.stem * cells)
        self.stem_affine = condition(n, config.stem)
        self.body = convolution(config.stem, widths[0])
        self.body_affine = condition(n, widths[0])
        self.up = nn.ModuleList(convolution(a, more * b) for a, b in itertools.pairwise(widths))
        self.up_affine = nn.ModuleList(condition(n, b) for b in widths[1:])
        if config.refine >= 0:
            width = widths[config.refine]
            self.refine = convolution(width, width)
            self.refine_affine = condition(n, width)
        self.image = full(widths[-1], channels)
        if self.label.weight.device.type != "meta":
            nn.init.normal_(self.label.weight, std=0.1)

    def start_at(self, mean: Sequence[float]) -> None:
        """Shift the last map, so that the sigmoid begins at the mean; see `Architecture.start_at`."""
        low, high = self.value_range
        share = (torch.tensor(mean) - low) / (high - low)
        bias = self.image.get_parameter("bias")
        with torch.no_grad():
            bias.copy_(share.clamp(0.01, 0.99).logit())

    def start_varied(self) -> None:
        """Draw weights that keep the variance (He et al., ICCV 2015); see `Architecture.start_varied`."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
                followed = not depthwise and module is not self.project and module is not self.image  # by a ReLU
                deviation = math.sqrt((2 if followed else 1) / module.weight[0].numel())
                nn.init.normal_(module.weight, std=deviation)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """Map latents `[B, Z]` and labels int64 `[B]` to images `[B, C, H, W]`."""
        x = self.project(latent) + self.label(label)
        x = x.unflatten(1, (-1, *self.base)).contiguous(memory_format=torch.channels_last)
        x = F.relu(self.stem_affine(x, label))
        x = self._refine(0, F.relu(self.body_affine(self.body(x), label)), label)
        for level, (conv, affine) in enumerate(zip(self.up, self.up_affine, strict=True), 1):
            x = self._refine(level, F.relu(affine(self.doubled(conv, x), label)), label)
        x = self.image(x)
        top, left = (x.shape[2] - self.size[0]) // 2, (x.shape[3] - self.size[1]) // 2
        x = x[:, :, top : top + self.size[0], left : left + self.size[1]]
        low, high = self.value_range
        return (torch.sigmoid(x.float()) * (high - low) + low).contiguous()

    def _refine(self, level: int, x: Tensor, label: Tensor) -> Tensor:
        """Add the second convolution where there is one at this resolution."""
        if level != self.refined:
            return x
        return x + F.relu(self.refine_affine(self.refine(x), label))


@dataclass(frozen=True, kw_only=True)
class SubpixelConfig(Record):
    """What a subpixel network is built of.

    Attributes:
        width: Channels at the lowest resolution.
        mid: Channels after the first doubling; later ones have a third of it, 16 at least.
        stem: Channels that the latent is projected to.
        condition: Where the label enters; see `PyramidConfig`.
    """

    width: int = 64
    mid: int = 48
    stem: int = 32
    condition: Literal["affine", "norm", "concat"] = "affine"

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        for name in ("width", "mid", "stem"):
            value = getattr(self, name)
            require(1 <= value <= 1024, f"generator.options.{name} is {value}; 1 to 1024 is read.")


@ARCHITECTURES.register("subpixel")
class SubpixelNet(PyramidNet):
    """The pyramid of the bundled generators, for images of any size: from a map of at most 8x8, twice doubled or more.

    Each doubling is a sub-pixel convolution (Shi et al., CVPR 2016).
    """

    Config = SubpixelConfig

    def __init__(self, config: SubpixelConfig, spec: Spec) -> None:
        doublings = max(2, math.ceil(math.log2(max(spec.image_shape[1:]) / 8)))
        widths = [config.width, config.mid]
        while len(widths) <= doublings:
            widths.append(max(16, widths[-1] // 3))
        super().__init__(PyramidConfig(widths=tuple(widths), stem=config.stem, condition=config.condition), spec)
