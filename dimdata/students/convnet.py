"""ConvNet-D, the field's standard student (Gidaris and Komodakis, CVPR 2018; as in Zhao et al., ICLR 2021)."""

from __future__ import annotations

import functools
import re

from torch import Tensor, nn

from dimdata.students import STUDENTS, Factory, ImageShape, pad_to, require_side
from dimdata.students.norms import norm_of

_NAME = re.compile(r"convnet([1-9])(?:-w([1-9]\d{0,3}))?(?:-(in|bn|gn|none))?")


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, norm, ReLU and 2x2 average pooling, then a linear layer.

    Sides that are no multiple of 8 (of 2^depth for deeper ones) are padded to the next one, which makes 28x28 images
    32x32, as the field does.

    Args:
        image_shape: (channels, height, width).
        num_classes: Outputs.
        depth: Number of blocks.
        width: Channels of each block.
        norm: `in` (instance norm with scale and shift), `bn` (batch), `gn` (up to 8 groups) or `none`.

    Raises:
        ArgumentError: If a side is below 2^depth pixels.
    """

    def __init__(
        self, image_shape: ImageShape, num_classes: int, *, depth: int = 3, width: int = 128, norm: str = "in"
    ) -> None:
        super().__init__()
        require_side(f"convnet{depth}", image_shape, 2**depth)
        channels = image_shape[0]
        self.pad, sides = pad_to(image_shape, max(8, 2**depth))
        layers: list[nn.Module] = []
        for block in range(depth):
            layers += [
                nn.Conv2d(channels if block == 0 else width, width, 3, padding=1),
                norm_of(norm)(width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        self.features = nn.Sequential(*layers)
        height, length = (side // 2**depth for side in sides)
        self.classifier = nn.Linear(width * height * length, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to logits `[B, num_classes]`."""
        logits: Tensor = self.classifier(self.features(self.pad(images)).flatten(1))
        return logits


def parse(name: str) -> Factory | None:
    """Return the factory of `convnet{depth}[-w{width}][-{in|bn|gn|none}]`, or none if the name is of another form."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    depth, width, norm = match.groups()
    return functools.partial(ConvNet, depth=int(depth), width=int(width or 128), norm=norm or "in")


for _name in ("convnet2", "convnet3", "convnet3-bn", "convnet3-w32", "convnet4"):
    _factory = parse(_name)
    assert _factory is not None
    STUDENTS.register(_name)(_factory)
