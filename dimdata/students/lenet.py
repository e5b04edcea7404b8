"""LeNet-5, the student of Dataset Distillation (LeCun et al., 1998; Wang et al., arXiv 1811.10959)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dimdata.students import STUDENTS, ImageShape

_SIDE = 32


@STUDENTS.register("lenet")
class LeNet(nn.Module):
    """Two 5x5 convolutions with max-pooling and three linear layers; 61,706 parameters on one channel.

    On 28x28 and 32x32 images this is the network of Dataset Distillation's published code, layer by layer, but for two
    classes, where that has a single output; and that of Dataset Condensation's. Images of under 32x32 pixels are
    padded to that by the first convolution.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int) -> None:
        super().__init__()
        channels, *sides = image_shape
        padding = [max(0, _SIDE - side + 1) // 2 for side in sides]
        height, width = (((side + 2 * more - 4) // 2 - 4) // 2 for side, more in zip(sides, padding, strict=True))
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=(padding[0], padding[1]))
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * height * width, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to logits `[B, num_classes]`."""
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
        logits: Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))
        return logits
