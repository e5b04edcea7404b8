"""Thin residual networks for small images (He et al., CVPR 2016), also with average pooling (Kim et al., ICML 2022).

DiM's evaluation uses `-thin`: widths 32, 64, 128 and 256, a 3x3 stem without pooling, basic blocks, batch norm. The
`-w16` forms have half those widths, cheap enough for a pool of networks on a CPU.
"""

from __future__ import annotations

import functools

from torch import Tensor, nn
from torch.nn import functional as F

from dimdata.students import STUDENTS, ImageShape, require_side


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; `pool` halves the sides by averaging instead of by a stride."""

    def __init__(self, inside: int, outside: int, stride: int, pool: bool) -> None:
        super().__init__()
        step = 1 if pool else stride
        halve = nn.AvgPool2d(2) if pool and stride == 2 else nn.Identity()
        self.conv1 = nn.Conv2d(inside, outside, 3, step, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.halve = halve
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, step, bias=False), halve, nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, outside, H / stride, W / stride]`."""
        y = self.halve(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, four stages of `blocks` basic blocks, the mean over the image, and a linear layer.

    Raises:
        ArgumentError: If a side is below 8 pixels.
    """

    def __init__(
        self, image_shape: ImageShape, num_classes: int, *, blocks: int, pool: bool = False, width: int = 32
    ) -> None:
        super().__init__()
        require_side("A residual student", image_shape, 8)
        self.stem = nn.Sequential(
            nn.Conv2d(image_shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        stages: list[nn.Module] = []
        inside = width
        for stage in range(4):
            for block in range(blocks):
                outside = width * 2**stage
                stages.append(Block(inside, outside, 2 if stage and block == 0 else 1, pool))
                inside = outside
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(inside, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to logits `[B, num_classes]`."""
        logits: Tensor = self.classifier(self.stages(self.stem(images)).mean((2, 3)))
        return logits


for _depth, _blocks in ((10, 1), (18, 2)):
    for _suffix, _width in (("thin", 32), ("w16", 16)):
        STUDENTS.register(f"resnet{_depth}-{_suffix}")(functools.partial(ResNet, blocks=_blocks, width=_width))
        STUDENTS.register(f"resnetap{_depth}-{_suffix}")(
            functools.partial(ResNet, blocks=_blocks, pool=True, width=_width)
        )
