"""Students: the networks that are trained on a generator's images, by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from dimdata import latents
from dimdata.errors import ArgumentError, DimdataError, NotFoundError
from dimdata.registry import Registry

ImageShape = tuple[int, int, int]
Factory = Callable[[ImageShape, int], nn.Module]
"""What makes a student: (channels, height, width) and the number of classes to a network `[B, C, H, W] -> [B, K]`."""

STUDENTS: Registry[Factory] = Registry(
    "student",
    "dimdata.students",
    (
        "dimdata.students.alexnet",
        "dimdata.students.convnet",
        "dimdata.students.lenet",
        "dimdata.students.mlp",
        "dimdata.students.resnet",
        "dimdata.students.vgg",
        "dimdata.students.vision",
    ),
)

_INIT = latents.stream("student")


def find_student(student: str | Factory) -> Factory:
    """Return the factory of a student.

    Nothing but registered names is looked up, and no code is imported for a name: names may come out of a downloaded
    generator. What users type themselves goes through `dimdata.students.own.user_student` first.

    Args:
        student: A registered name, a ConvNet of any size (`convnet4-w64-bn`; see `convnet.parse`), a name with another
            norm (`resnet18-thin-in`; see `dimdata.students.norms`), or a factory, which is returned as it is.

    Raises:
        NotFoundError: If nothing is called so.
        ArgumentError: If it is neither a name nor a factory.
    """
    if isinstance(student, nn.Module) or not (isinstance(student, str) or callable(student)):
        what = "a network" if isinstance(student, nn.Module) else repr(student)[:40]
        raise ArgumentError(
            f"The student is {what}, neither a name nor a factory.",
            "A factory takes (image_shape, num_classes) and returns a new network; see `dimdata list --students`.",
        )
    if not isinstance(student, str):
        return student
    from dimdata.students import convnet

    if student in STUDENTS:
        return STUDENTS[student]
    if ":" in student:
        raise NotFoundError(
            f"There is no student called {student!r:.120}.",
            "Pass the factory itself. Only the command line and the configuration of a run import one by its name.",
        )
    return convnet.parse(student) or _with_norm(student) or STUDENTS[student]


def _with_norm(name: str) -> Factory | None:
    """Return the factory of `{student}-{norm}`, for a student with a choice of norms that its name leaves open."""
    from dimdata.students.norms import NORMS

    base, _, norm = name.rpartition("-")
    if norm not in NORMS or base not in STUDENTS or default_norm(STUDENTS[base]) is None:
        return None
    return functools.partial(STUDENTS[base], norm=norm)  # type: ignore[call-arg]


def default_norm(factory: Factory) -> str | None:
    """Return the norm of a student that can have others, chosen by its keyword `norm`; none where there is no choice.

    A factory whose `norm` has been set (a name that ends in one) has no choice left.
    """
    if isinstance(factory, functools.partial) and "norm" in factory.keywords:
        return None
    parameter = inspect.signature(factory).parameters.get("norm")
    return None if parameter is None else parameter.default


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
        ArgumentError: If the images are too small for it, or a factory fails or returns something else.
    """
    factory = find_student(student)
    try:
        return _made(factory, image_shape, num_classes, seed).train()
    except DimdataError:
        raise
    except Exception as error:  # whatever a factory raises
        from dimdata.students.own import student_name  # which imports this module

        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.200}"
        raise ArgumentError(
            f"{student_name(student)} cannot make a student for images {tuple(image_shape)} of {num_classes} classes "
            f"({reason}).",
            "Give another student, or mend its factory.",
        ) from error


def _made(factory: Factory, image_shape: ImageShape, num_classes: int, seed: int) -> nn.Module:
    """Return what a factory makes, with weights drawn from the seed alone."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not `torch.manual_seed`, which would seed every CUDA device as well.
        torch.default_generator.manual_seed(latents.fold(_INIT, seed))
        network = factory(image_shape, num_classes)
        if not isinstance(network, nn.Module):
            raise ArgumentError(
                f"The student's factory returned a {type(network).__name__}, not an nn.Module.",
                "A factory takes (image_shape, num_classes) and returns a network.",
            )
        if any(is_lazy(parameter) for parameter in network.parameters()):
            with torch.no_grad():  # a lazy layer draws its weights when it first sees images: from this seed too
                network.eval()(torch.zeros(2, *image_shape))
    return network


def require_side(name: str, image_shape: ImageShape, least: int) -> None:
    """Raise `ArgumentError` if a side of the images is below `least` pixels."""
    _, height, width = image_shape
    if min(height, width) < least:
        raise ArgumentError(
            f"{name} needs images of {least}x{least} pixels or more, not {height}x{width}.",
            "Use a shallower student, such as convnet2, or larger images.",
        )


def pad_to(image_shape: ImageShape, multiple: int) -> tuple[nn.Module, tuple[int, int]]:
    """Return the layer that pads images with blanks to sides of a multiple, and these sides.

    The field pads 28x28 images to 32x32. Not by the padding of the first convolution, whose backward pass then takes
    longer than all the rest on a CPU.
    """
    _, *sides = image_shape
    rows, columns = ((-side % multiple + 1) // 2 for side in sides)
    layer = nn.ZeroPad2d((columns, columns, rows, rows)) if rows or columns else nn.Identity()
    return layer, (sides[0] + 2 * rows, sides[1] + 2 * columns)
