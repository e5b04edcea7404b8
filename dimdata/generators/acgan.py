"""The generator network of the published DiM (arXiv 2303.04707): transposed convolutions with batch norm, one width.

It is the network of its AC-GAN (Odena et al., ICML 2017), and costs over ten times the arithmetic of `subpixel`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimdata.generators.layers import RunningNorm
from dimdata.generators.network import ARCHITECTURES, Architecture, require_room
from dimdata.spec import Record, Spec, require


@dataclass(frozen=True, kw_only=True)
class AcganConfig(Record):
    """Width of the AC-GAN's generator.

    Attributes:
        width: Channels of every layer.
    """

    width: int = 196

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        require(1 <= self.width <= 1024, f"generator.options.width is {self.width}; 1 to 1024 is read.")


@ARCHITECTURES.register("acgan")
class AcganNet(Architecture):
    """A linear layer, three doublings by transposed convolutions, 3x3 convolutions between them, tanh.

    Latent and one-hot label enter side by side. The published network overwrites the first ten of its 100 latent values
    with the label, which is the same with a latent of 90, and fixes the number of classes at ten.

    The map of the linear layer has an eighth of the sides, rounded up (4x4 for 32x32 and for 28x28); where twice a map
    would be one pixel too many (4 to 7), the transposed convolution has a kernel of 3 instead of 4.
    """

    Config = AcganConfig

    def __init__(self, config: AcganConfig, spec: Spec) -> None:
        super().__init__(config, spec)
        channels, *sides = spec.image_shape
        width = config.width
        self.value_range = spec.value_range
        self.num_classes = spec.num_classes
        maps = [tuple(-(-side // 2**halvings) for side in sides) for halvings in (3, 2, 1, 0)]
        self.base = maps[0]
        require_room(width, *maps[-1])
        flat = width * self.base[0] * self.base[1]
        self.project = nn.Linear(spec.num_classes + spec.latent, flat)
        self.project_norm = RunningNorm(flat)
        layers: list[nn.Module] = []
        for (smaller, larger), convolutions in zip(itertools.pairwise(maps), (3, 1, 0), strict=True):
            kernel = tuple(4 - (2 * a - b) for a, b in zip(smaller, larger, strict=True))
            layers += [nn.ConvTranspose2d(width, width, kernel, 2, 1), RunningNorm(width), nn.ReLU()]  # type: ignore[arg-type]
            for _ in range(convolutions):
                layers += [nn.Conv2d(width, width, 3, padding=1), RunningNorm(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.image = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """Map latents `[B, Z]` and labels int64 `[B]` to images `[B, C, H, W]`."""
        classes = F.one_hot(label, self.num_classes).to(latent.dtype)
        x = F.relu(self.project_norm(self.project(torch.cat([classes, latent], 1))))
        x = x.view(len(x), -1, *self.base).contiguous(memory_format=torch.channels_last)
        x = self.image(self.layers(x))
        low, high = self.value_range
        return ((torch.tanh(x.float()) + 1) / 2 * (high - low) + low).contiguous()
