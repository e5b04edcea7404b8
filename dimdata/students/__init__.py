"""Students: the networks that are trained on a generator's images, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dimdata import latents
from dimdata.errors import ArgumentError
from dimdata.registry import Registry

ImageShape = tuple[int, int, int]
Factory = Callable[[ImageShape, int], nn.Module]
"""What makes a student: (channels, height, width) and the number of classes to a network `[B, C, H, W] -> [B, K]`."""

STUDENTS: Registry[Factory] = Registry(
    "student",
    "dimdata.students",
    ("dimdata.students.convnet", "dimdata.students.lenet", "dimdata.students.resnet", "dimdata.students.vgg"),
)

_INIT = latents.stream("student")


def find_student(student: str | Factory) -> Factory:
    """Return the factory of a student.

    Args:
        student: A registered name, a ConvNet of any size (`convnet4-w64-bn`; see `convnet.parse`), or a factory,
            which is returned as it is.

    Raises:
        NotFoundError: If nothing is called so.
    """
    if not isinstance(student, str):
        return student
    from dimdata.students import convnet

    if student not in STUDENTS and (parsed := convnet.parse(student)) is not None:
        return parsed
    return STUDENTS[student]


def make_student(student: str | Factory, image_shape: ImageShape, num_classes: int, seed: int = 0) -> nn.Module:
    """Build a student with its own default initialisation; equal seeds give equal weights.

    Args:
        student: A name or a factory; see `find_student`.
        image_shape: (channels, height, width).
        num_classes: Outputs of the network.
        seed: Any integer.

    Returns:
        The network, on the CPU, in training mode. No global random state is changed.

    Raises:
        NotFoundError: If no student is called so.
        ArgumentError: If the images are too small for it.
    """
    factory = find_student(student)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not `torch.manual_seed`, which would seed every CUDA device as well.
        torch.default_generator.manual_seed(latents.fold(_INIT, seed))
        network = factory(image_shape, num_classes)
    if not isinstance(network, nn.Module):
        raise ArgumentError(
            f"The student's factory returned a {type(network).__name__}, not an nn.Module.",
            "A factory takes (image_shape, num_classes) and returns a network.",
        )
    return network


def require_side(name: str, image_shape: ImageShape, least: int) -> None:
    """Raise `ArgumentError` if a side of the images is below `least` pixels."""
    _, height, width = image_shape
    if min(height, width) < least:
        raise ArgumentError(
            f"{name} needs images of {least}x{least} pixels or more, not {height}x{width}.",
            "Use a shallower student, such as convnet2, or larger images.",
        )
