"""Residual networks for small images (He et al., CVPR 2016), also with average pooling (Kim et al., ICML 2022).

A 3x3 stem without pooling, four stages of basic blocks, batch norm unless the name ends in another. Names say the
widths of the stages, because papers call all of these "ResNet-18":

- `-thin`: 32, 64, 128, 256 (2.80 million parameters for 18 layers): DiM's and IDC's on CIFAR;
- `-full`: 64, 128, 256, 512 (11.17 million): that of most other papers, often with instance norm (`-full-in`);
- `-w16`: 16, 32, 64, 128: cheap enough for a pool of networks on a CPU.

`resnetap` halves the sides by averaging instead of by a stride.
"""

from __future__ import annotations

import functools

from torch import Tensor, nn
from torch.nn import functional as F

from dimdata.students import STUDENTS, ImageShape, require_side
from dimdata.students.norms import norm_of


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; `pool` halves the sides by averaging instead of by a stride."""

    def __init__(self, inside: int, outside: int, stride: int, pool: bool, norm: str = "bn") -> None:
        super().__init__()
        step = 1 if pool else stride
        halve = nn.AvgPool2d(2) if pool and stride == 2 else nn.Identity()
        self.conv1 = nn.Conv2d(inside, outside, 3, step, padding=1, bias=False)
        self.norm1 = norm_of(norm)(outside)
        self.halve = halve
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm2 = norm_of(norm)(outside)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, step, bias=False), halve, norm_of(norm)(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, outside, H / stride, W / stride]`."""
        y = self.halve(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, four stages of `blocks` basic blocks, the mean over the image, and a linear layer.

    Args:
        image_shape: (channels, height, width).
        num_classes: Outputs.
        blocks: Basic blocks of each stage: 1 for 10 layers, 2 for 18.
        pool: Whether averaging takes the place of strides.
        width: Channels of the first stage; each later one has twice as many.
        norm: See `dimdata.students.norms`.

    Raises:
        ArgumentError: If a side is below 8 pixels, or 16 with instance norm, which leaves nothing of a single pixel.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: int,
        *,
        blocks: int,
        pool: bool = False,
        width: int = 32,
        norm: str = "bn",
    ) -> None:
        super().__init__()
        require_side("A residual student", image_shape, 16 if norm == "in" else 8)
        self.stem = nn.Sequential(
            nn.Conv2d(image_shape[0], width, 3, padding=1, bias=False), norm_of(norm)(width), nn.ReLU()
        )
        stages: list[nn.Module] = []
        inside = width
        for stage in range(4):
            for block in range(blocks):
                outside = width * 2**stage
                stages.append(Block(inside, outside, 2 if stage and block == 0 else 1, pool, norm))
                inside = outside
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(inside, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to logits `[B, num_classes]`."""
        logits: Tensor = self.classifier(self.stages(self.stem(images)).mean((2, 3)))
        return logits


for _depth, _blocks in ((10, 1), (18, 2)):
    for _suffix, _width in (("thin", 32), ("w16", 16), ("full", 64)):
        STUDENTS.register(f"resnet{_depth}-{_suffix}")(functools.partial(ResNet, blocks=_blocks, width=_width))
        STUDENTS.register(f"resnetap{_depth}-{_suffix}")(
            functools.partial(ResNet, blocks=_blocks, pool=True, width=_width)
        )
