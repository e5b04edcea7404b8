"""Students that users bring: a factory of their own, named as `package.module:factory`."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from typing import Any

from torch import nn

from dimdata.errors import ArgumentError, NotFoundError, nearest
from dimdata.students import Factory, ImageShape, find_student, make_student

_HINT = "Write package.module:factory; a factory takes (image_shape, num_classes) and returns a network."


def user_student(student: str | Factory) -> str | Factory:
    """Return a student that the user has asked for by hand; `package.module:factory` is imported.

    For the command line and the configuration of a run only. Importing a module runs its code, so a name found in a
    generator, a recipe or a stored student never comes here: those are looked up by `find_student`.

    Args:
        student: A name that `find_student` knows, returned as it is; `package.module:factory`; or a factory.

    Raises:
        NotFoundError: If nothing is called so, or the module cannot be imported.
        ArgumentError: If it is no factory.
    """
    if isinstance(student, str) and ":" not in student:
        find_student(student)
        return student
    factory = _import(student) if isinstance(student, str) else student
    said = f"The student {student_name(factory)}"
    if not callable(factory) or isinstance(factory, nn.Module):
        raise ArgumentError(f"{said} is a {type(factory).__name__}, not a factory.", _HINT)
    try:
        inspect.signature(factory).bind((1, 1, 1), 1)
    except TypeError as error:
        raise ArgumentError(f"{said} cannot be called with (image_shape, num_classes): {error}.", _HINT) from None
    except ValueError:  # a callable without a signature
        pass
    return factory


def _import(text: str) -> Any:
    """Import what `package.module:name` names."""
    module_name, _, path = text.partition(":")
    words = [*module_name.split("."), *path.split(".")]
    if not all(word.isidentifier() for word in words):
        raise ArgumentError(f"The student {text!r:.120} is not of the form package.module:factory.", _HINT)
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise NotFoundError(
            f"The module of the student {text!r:.120} cannot be imported: {error}.",
            "Install it, or name its folder: PYTHONPATH=. dimdata ...",
        ) from error
    except Exception as error:  # whatever the user's module raises
        raise ArgumentError(
            f"Importing {module_name} for the student {text!r:.120} failed: {type(error).__name__}: {error!s:.200}."
        ) from error
    for word in path.split("."):
        if not hasattr(found, word):
            known = [name for name in vars(found) if not name.startswith("_")] if hasattr(found, "__dict__") else []
            raise NotFoundError(f"{module_name} has no {path!r}.", nearest(word, known))
        found = getattr(found, word)
    return found


def student_name(student: str | Factory | nn.Module) -> str:
    """Return what results and files call a student: its name, or `package.module:qualified.name` of what built it."""
    if isinstance(student, str):
        return student
    if isinstance(student, nn.Module):
        student = type(student)
    while isinstance(student, functools.partial):
        student = student.func
    named = student if hasattr(student, "__qualname__") else type(student)
    return f"{named.__module__}:{named.__qualname__}"


def identity(student: str | Factory, image_shape: ImageShape, num_classes: int) -> str | list[str]:
    """Return what tells a student from all others, so that results can be kept: a name, or what is known of a factory.

    For a factory that is its name, the network it builds, and the source of the factory and of every layer that is not
    torch's: after any change there, results are computed anew.
    """
    if isinstance(student, str):
        return student
    network = make_student(student, image_shape, num_classes)
    shapes = [f"{name} {tuple(tensor.shape)}" for name, tensor in network.state_dict().items()]
    layers = {type(module) for module in network.modules()}
    foreign = [kind for kind in layers if kind.__module__.partition(".")[0] not in ("torch", "torchvision", "dimdata")]
    sources = sorted(_source(thing) for thing in (*foreign, student))
    text = re.sub("0x[0-9a-fA-F]+", "", repr(network))  # addresses differ from one process to the next
    return [student_name(student), text, *shapes, *sources]


def _source(thing: Any) -> str:
    """Return the source of a class or function, as far as there is one."""
    if isinstance(thing, functools.partial):
        arguments = re.sub("0x[0-9a-fA-F]+", "", f"{thing.args} {thing.keywords}")
        return f"{_source(thing.func)} {arguments}"
    if not inspect.isclass(thing) and not inspect.isroutine(thing):
        thing = type(thing)
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):  # built in, or typed into a shell
        return ""
