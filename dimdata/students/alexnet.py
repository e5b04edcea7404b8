"""AlexNet for small images (after Krizhevsky et al., NeurIPS 2012), in the two forms that the field uses.

`alexnet` is that of the cross-architecture tables (Zhao et al., ICLR 2021, and all that follow), without norm unless
its name ends in one; `alexcifarnet` is that of Dataset Distillation (Wang et al., arXiv 1811.10959).
"""

from __future__ import annotations

from torch import Tensor, nn

from dimdata.students import STUDENTS, ImageShape, pad_to, require_side
from dimdata.students.norms import norm_of

# Channels, side of the kernel, and whether a pooling follows.
_LAYERS = ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))


@STUDENTS.register("alexnet")
class AlexNet(nn.Module):
    """Five convolutions, max-pooling after the first, second and last, and one linear layer.

    1,872,202 parameters on 3x32x32 images. Sides that are no multiple of 8 are padded, which makes 28x28 images 32x32.

    Args:
        image_shape: (channels, height, width).
        num_classes: Outputs.
        norm: After each convolution; see `dimdata.students.norms`.

    Raises:
        ArgumentError: If a side is below 8 pixels.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int, *, norm: str = "none") -> None:
        super().__init__()
        require_side("alexnet", image_shape, 8)
        self.pad, (height, length) = pad_to(image_shape, 8)
        layers: list[nn.Module] = []
        inside = image_shape[0]
        for width, kernel, pooled in _LAYERS:
            layers += [nn.Conv2d(inside, width, kernel, padding=kernel // 2), norm_of(norm)(width), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if pooled else []
            inside = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inside * (height // 8) * (length // 8), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to logits `[B, num_classes]`."""
        logits: Tensor = self.classifier(self.features(self.pad(images)).flatten(1))
        return logits


@STUDENTS.register("alexcifarnet")
class AlexCifarNet(nn.Module):
    """Two 5x5 convolutions with overlapping max-pooling and local response norm, and three linear layers.

    1,756,426 parameters on 3x32x32 images, the only shape of the published code.

    Raises:
        ArgumentError: If a side is below 4 pixels.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int) -> None:
        super().__init__()
        require_side("alexcifarnet", image_shape, 4)
        channels, *sides = image_shape
        self.conv1 = nn.Conv2d(channels, 64, 5, padding=2)
        self.conv2 = nn.Conv2d(64, 64, 5, padding=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.norm = nn.LocalResponseNorm(4, alpha=0.001 / 9, beta=0.75, k=1)
        height, length = ((side + 3) // 4 for side in sides)  # each pooling halves a side, rounding up
        self.fc1 = nn.Linear(64 * height * length, 384)
        self.fc2 = nn.Linear(384, 192)
        self.fc3 = nn.Linear(192, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to logits `[B, num_classes]`."""
        x = self.norm(self.pool(self.conv1(images).relu()))
        x = self.pool(self.norm(self.conv2(x).relu())).flatten(1)
        logits: Tensor = self.fc3(self.fc2(self.fc1(x).relu()).relu())
        return logits
