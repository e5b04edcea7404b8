"""What can go wrong, in words a user can act on.

Every failure that dimdata foresees is a `DimdataError`: one sentence that names the thing at fault, a hint that says
what to do, and the exit code the command line ends with.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable
from typing import Any

USER = 2  # the user can mend it
WORLD = 1  # disk, network, or hardware failed
INTERRUPTED = 130  # Ctrl-C


class DimdataError(Exception):
    """A foreseen failure.

    Args:
        message: One sentence that names what was given and what was expected.
        hint: What to do about it; may be empty.
        exit_code: What the command line exits with; the class's own code unless given.
    """

    exit_code = USER

    def __init__(self, message: str, hint: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def __reduce__(self) -> tuple[type, tuple[str, str, int]]:
        return type(self), (self.message, self.hint, self.exit_code)


class ArgumentError(DimdataError, ValueError):
    """A value out of range or of the wrong kind."""


class OutOfRangeError(DimdataError, IndexError):
    """An index beyond the images there are."""


class NotFoundError(DimdataError, LookupError):
    """No generator, dataset, student or file of that name."""


class AccessError(DimdataError, PermissionError):
    """A repository that must be asked for, or a token that is absent, invalid, or may not do this."""


class ConflictError(DimdataError):
    """Someone else changed a repository meanwhile; nothing was overwritten."""


class FormatError(DimdataError, ValueError):
    """A generator folder that is incomplete, damaged, hostile, or newer than this version reads."""


class DataError(DimdataError, ValueError):
    """Real data that cannot be used as given."""


class RunError(DimdataError):
    """A distillation run that cannot start or go on as asked."""


class DeviceError(DimdataError, RuntimeError):
    """A device that is absent, or used where it cannot work."""


class WorldError(DimdataError, OSError):
    """The disk, the network or the machine failed."""

    exit_code = WORLD


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest known names, or all of them where none is close.

    >>> nearest("dim-mnits", ["dim-mnist", "dim-cifar10"])
    'Did you mean dim-mnist?'
    >>> nearest("DIM-MNIST", ["dim-mnist", "dim-cifar10"])
    'Did you mean dim-mnist?'
    """
    names = sorted(known)
    as_written = {name.lower(): name for name in names}
    close = [as_written[found] for found in difflib.get_close_matches(name[:80].lower(), as_written, n=3, cutoff=0.6)]
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"Known: {', '.join(names)}." if names else ""


def whole(name: str, value: Any) -> int:
    """Return a whole number, or refuse what is none; `True` is none either.

    Raises:
        ArgumentError: If it is none; the message calls it by its name.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ArgumentError(f"{name} is {value!r:.80}; it must be a whole number.") from None
