"""Layers that generator networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RunningNorm(nn.Module):
    """Batch norm whose statistics all lie in tensors of floats: torch's own also counts batches, in an integer.

    Args:
        features: Channels.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[B, C, ...]`: by its batch in training, by the running statistics (momentum 0.1) in `eval()`."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1)


class ClassAffine(nn.Module):
    """A learned scale and shift of each channel for each class.

    There is no normalisation: it costs more than the convolutions beside it, makes images depend on their batch, and
    generators trained with it were the worse ones (tests/benchmarks/EXPERIMENTS.md).

    Args:
        num_classes: Classes, K.
        channels: Channels, C.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_classes, channels))
        self.shift = nn.Parameter(torch.zeros(num_classes, channels))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Scale and shift `[B, C, H, W]` by the rows of labels `[B]`."""
        # Not `self.scale[label]`, the backward pass of which sorts the labels on a GPU.
        scale, shift = (F.embedding(label, rows).to(x.dtype) for rows in (self.scale, self.shift))
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])


class ClassNorm(ClassAffine):
    """Class-conditional batch norm (de Vries et al., NeurIPS 2017): normalised as by `RunningNorm`, then by class.

    Args:
        num_classes: Classes, K.
        channels: Channels, C.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__(num_classes, channels)
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Normalise `[B, C, H, W]` as `RunningNorm` does, then scale and shift by the rows of labels `[B]`."""
        x = F.batch_norm(x, self.running_mean, self.running_var, None, None, self.training, 0.1)
        return super().forward(x, label)


class NoCondition(nn.Module):
    """Nothing, where the label enters beside the latent alone; takes what `ClassAffine` takes."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Return `[B, C, H, W]` as it is."""
        return x


def full(channels: int, out: int) -> nn.Module:
    """Return a 3x3 convolution that keeps the sides."""
    return nn.Conv2d(channels, out, 3, padding=1)


def separable(channels: int, out: int) -> nn.Module:
    """Return its depthwise-separable form (Howard et al., arXiv 1704.04861): 3x3 in each channel, then 1x1 across them.

    It takes `9 C + C D` products a place, where the full one takes `9 C D`.
    """
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, out, 1),
    )
