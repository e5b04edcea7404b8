"""VGG-11 for small images (Simonyan and Zisserman, ICLR 2015), with batch norm unless its name ends in another."""

from __future__ import annotations

from torch import Tensor, nn

from dimdata.students import STUDENTS, ImageShape, pad_to, require_side
from dimdata.students.norms import norm_of

_WIDTHS = ((64,), (128,), (256, 256), (512, 512), (512, 512))


@STUDENTS.register("vgg11")
class VGG(nn.Module):
    """Eight 3x3 convolutions in five groups with max-pooling between, the mean over what is left, one linear layer.

    9,231,114 parameters on 3x32x32 images. Sides that are no multiple of 8 are padded, which makes 28x28 images 32x32,
    as the field does. Pooling stops at 2 pixels: of a single one, instance norm would leave nothing.

    Args:
        image_shape: (channels, height, width).
        num_classes: Outputs.
        norm: After each convolution; see `dimdata.students.norms`.

    Raises:
        ArgumentError: If a side is below 8 pixels.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int, *, norm: str = "bn") -> None:
        super().__init__()
        require_side("vgg11", image_shape, 8)
        self.pad, sides = pad_to(image_shape, 8)
        channels, side = image_shape[0], min(sides)
        layers: list[nn.Module] = []
        for number, group in enumerate(_WIDTHS):
            if number and side >= 4:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            for wide in group:
                layers += [nn.Conv2d(channels, wide, 3, padding=1), norm_of(norm)(wide), nn.ReLU()]
                channels = wide
        layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to logits `[B, num_classes]`."""
        logits: Tensor = self.classifier(self.features(self.pad(images)).mean((2, 3)))
        return logits
