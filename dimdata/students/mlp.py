"""A multi-layer perceptron, the student without convolutions of the field (Zhao et al., ICLR 2021)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from dimdata.students import STUDENTS, ImageShape

_WIDTH = 128


@STUDENTS.register("mlp")
class MLP(nn.Module):
    """Three linear layers, two of them hidden with 128 units and ReLU; 118,282 parameters on 1x28x28 images."""

    def __init__(self, image_shape: ImageShape, num_classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(math.prod(image_shape), _WIDTH)
        self.fc2 = nn.Linear(_WIDTH, _WIDTH)
        self.fc3 = nn.Linear(_WIDTH, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to logits `[B, num_classes]`."""
        x = self.fc1(images.flatten(1)).relu()
        logits: Tensor = self.fc3(self.fc2(x).relu())
        return logits
