"""VGG-11 with batch norm for small images (Simonyan and Zisserman, ICLR 2015)."""

from __future__ import annotations

from torch import Tensor, nn

from dimdata.students import STUDENTS, ImageShape, require_side

_WIDTHS = ((64,), (128,), (256, 256), (512, 512), (512, 512))


@STUDENTS.register("vgg11")
class VGG(nn.Module):
    """Eight 3x3 convolutions with max-pooling between, the mean over what is left, and one linear layer.

    Images of under 32 pixels are pooled as often as their sides allow.

    Raises:
        ArgumentError: If a side is below 8 pixels.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int) -> None:
        super().__init__()
        require_side("vgg11", image_shape, 8)
        channels, height, width = image_shape
        side = min(height, width)
        layers: list[nn.Module] = []
        for group in _WIDTHS:
            for wide in group:
                layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
                channels = wide
            if side >= 2:
                layers.append(nn.MaxPool2d(2))
                side //= 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to logits `[B, num_classes]`."""
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits
