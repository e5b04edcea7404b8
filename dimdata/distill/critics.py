"""Critics: the networks that tell real images from generated ones, and name their class.

Register another with `CRITICS.register(name)`, from any package through the entry-point group `dimdata.critics`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimdata.registry import Registry
from dimdata.students import ImageShape


class Critic(nn.Module, ABC):
    """A network that scores images.

    Args:
        image_shape: (channels, height, width).
        num_classes: Classes, K.
        width: Channels of its first layer.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int, width: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Judge images.

        Args:
            images: `[B, C, H, W]` in [0, 1].
            labels: int64 `[B]`.

        Returns:
            Scores float32 `[B]`, higher for real images, and class logits float32 `[B, K]`.
        """


CRITICS: Registry[type[Critic]] = Registry("critic", "dimdata.critics")


@CRITICS.register("projection")
class ProjectionCritic(Critic):
    """Strided convolutions, a projection of the class (Miyato and Koyama, ICLR 2018) and a class head (AC-GAN)."""

    def __init__(self, image_shape: ImageShape, num_classes: int, width: int) -> None:
        super().__init__(image_shape, num_classes, width)
        self.down1 = nn.Conv2d(image_shape[0], width, 4, 2, 1)
        self.down2 = nn.Conv2d(width, 2 * width, 4, 2, 1)
        self.same = nn.Conv2d(2 * width, 2 * width, 3, 1, 1)
        self.down3 = nn.Conv2d(2 * width, 4 * width, 4, 2, 1)
        seen = self.seen(4 * width, image_shape[1] // 8, image_shape[2] // 8)
        self.score = nn.Linear(seen, 1)
        self.project = nn.Linear(seen, num_classes)
        self.classify = nn.Linear(seen, num_classes)

    def seen(self, channels: int, height: int, width: int) -> int:
        """Return how many values of the last map, which has these sizes, the heads see."""
        return channels

    def pool(self, x: Tensor) -> Tensor:
        """Return what the heads see `[B, seen]` of the last map `[B, channels, height, width]`."""
        return x.mean((2, 3))

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and class logits; see `Critic.forward`."""
        x = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        # In place, so that the backward pass reads the output, which the next convolution keeps anyway. Compiled steps
        # store a mask of bools otherwise, and on a CPU that takes longer than the convolution.
        x = F.leaky_relu(self.down1(x), 0.2, inplace=True)
        x = F.leaky_relu(self.down2(x), 0.2, inplace=True)
        x = x + F.leaky_relu(self.same(x), 0.2, inplace=True)
        return self.heads(self.pool(F.leaky_relu(self.down3(x), 0.2, inplace=True).float()), labels)

    def heads(self, seen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and class logits of what the heads see `[B, seen]`."""
        score = self.score(seen).squeeze(1) + self.project(seen).gather(1, labels[:, None]).squeeze(1)
        return score.float(), self.classify(seen).float()


@CRITICS.register("spatial")
class SpatialCritic(ProjectionCritic):
    """As `projection`, but the heads see *where* in the image a feature is: the last map is flattened, not averaged.

    It costs nothing beside the convolutions, and what it asks of the generator is the arrangement of an image's parts.
    """

    def seen(self, channels: int, height: int, width: int) -> int:
        """Return all values of the last map."""
        return channels * height * width

    def pool(self, x: Tensor) -> Tensor:
        """Return the map, flattened."""
        return x.flatten(1)


@CRITICS.register("spatial-scaled")
class ScaledSpatialCritic(SpatialCritic):
    """As `spatial`, with the flattened map divided by the root of its places.

    A head over so many values moves its score far in one step of Adam. On images that fill their frame, those of CIFAR
    say, `spatial` overshoots so for hundreds of steps that the generator learns nothing; divided, the score moves less.
    """

    def pool(self, x: Tensor) -> Tensor:
        """Return the map, flattened and divided."""
        return x.flatten(1) / math.sqrt(x.shape[2] * x.shape[3])


@CRITICS.register("acgan")
class AcganCritic(Critic):
    """The published DiM's: eight 3x3 convolutions of one width, layer norm after each, the maximum over the last map.

    The norm is over channels and places, with a scale and a shift for each of them, so that images are judged one by
    one, as a gradient penalty wants. The score does not depend on the label: an auxiliary classifier (Odena et al.,
    ICML 2017) carries the condition.
    """

    _STRIDES = (1, 2, 1, 2, 1, 1, 1, 2)

    def __init__(self, image_shape: ImageShape, num_classes: int, width: int) -> None:
        super().__init__(image_shape, num_classes, width)
        channels, *sides = image_shape
        layers: list[nn.Module] = []
        for stride in self._STRIDES:
            sides = [-(-side // stride) for side in sides]
            layers += [
                nn.Conv2d(channels, width, 3, stride, 1),
                nn.LayerNorm([width, *sides]),
                nn.LeakyReLU(0.01, inplace=True),
            ]
            channels = width
        self.layers = nn.Sequential(*layers)
        self.score = nn.Linear(width, 1)
        self.classify = nn.Linear(width, num_classes)

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and class logits; see `Critic.forward`."""
        x = self.layers((images * 2 - 1).contiguous(memory_format=torch.channels_last))
        x = x.float().amax((2, 3))
        return self.score(x).squeeze(1).float(), self.classify(x).float()
