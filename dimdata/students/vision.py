"""Networks of torchvision, made to fit small images: their stems keep the resolution, and take any channels.

- `densenet121` (growth 32) and `densenet121-g12` (growth 12, that of IDC and DiM): Huang et al., CVPR 2017;
- `mobilenet-v2`: Sandler et al., CVPR 2018, with strides of 1 in the first two places, and batch norm unless the name
  ends in another;
- `resnet10-imagenet` and `resnet18-imagenet`: full width and the unchanged 7x7 stem of stride 2 with max-pooling, in
  which DiM's published code scores MNIST, Fashion-MNIST and SVHN. Kept for comparison: it sees 28x28 images as 7x7.

torchvision is imported only when one of these is built.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from dimdata.students import STUDENTS, ImageShape, require_side
from dimdata.students.norms import norm_of


def _densenet121(image_shape: ImageShape, num_classes: int, *, growth: int) -> nn.Module:
    """Build a DenseNet of 121 layers; as in the paper's networks for CIFAR, one 3x3 convolution is all of its stem.

    Raises:
        ArgumentError: If a side is below 8 pixels.
    """
    from torchvision.models import DenseNet

    require_side("densenet121", image_shape, 8)
    stem = 2 * growth
    network: nn.Module = DenseNet(growth, (6, 12, 24, 16), stem, num_classes=num_classes)
    features: Any = network.features
    features.conv0 = nn.Conv2d(image_shape[0], stem, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(features.conv0.weight)  # as torchvision draws the others
    features.norm0 = features.relu0 = features.pool0 = nn.Identity()
    return network


STUDENTS.register("densenet121")(functools.partial(_densenet121, growth=32))
STUDENTS.register("densenet121-g12")(functools.partial(_densenet121, growth=12))

# Expansion, channels, blocks and stride; strides are the paper's but for the second, which is 2 there.
_MOBILE = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]


@STUDENTS.register("mobilenet-v2")
def _mobilenet(image_shape: ImageShape, num_classes: int, *, norm: str = "bn") -> nn.Module:
    """Build a MobileNetV2 of width 1.

    Raises:
        ArgumentError: If a side is below 8 pixels, or 16 with instance norm, which leaves nothing of a single pixel.
    """
    from torchvision.models import MobileNetV2

    require_side("mobilenet-v2", image_shape, 16 if norm == "in" else 8)
    network: nn.Module = MobileNetV2(num_classes, inverted_residual_setting=_MOBILE, norm_layer=norm_of(norm))
    stem: Any = network.features[0]  # type: ignore[index]
    stem[0] = nn.Conv2d(image_shape[0], stem[0].out_channels, 3, padding=1, bias=False)
    _like_torchvision(stem[0])
    return network


def _resnet_imagenet(image_shape: ImageShape, num_classes: int, *, blocks: int) -> nn.Module:
    """Build a ResNet for ImageNet, with another number of channels and classes only.

    Raises:
        ArgumentError: If a side is below 8 pixels.
    """
    from torchvision.models.resnet import BasicBlock, ResNet

    require_side("resnet-imagenet", image_shape, 8)
    network: Any = ResNet(BasicBlock, [blocks] * 4, num_classes)
    network.conv1 = nn.Conv2d(image_shape[0], 64, 7, 2, padding=3, bias=False)
    _like_torchvision(network.conv1)
    built: nn.Module = network
    return built


def _like_torchvision(convolution: nn.Conv2d) -> None:
    """Draw the weights of a new stem by the law that torchvision gives the other convolutions."""
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")


STUDENTS.register("resnet10-imagenet")(functools.partial(_resnet_imagenet, blocks=1))
STUDENTS.register("resnet18-imagenet")(functools.partial(_resnet_imagenet, blocks=2))
