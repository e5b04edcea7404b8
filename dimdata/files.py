"""Files and folders: whole or not at all when written, bounded when read; JSON by the letter."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from dimdata.errors import ArgumentError, FormatError, WorldError

if TYPE_CHECKING:
    from filelock import FileLock

CONFIG, MODEL, CARD, PREVIEW, HOLDOUT = FILES = (  # of a generator's folder
    "config.json",
    "model.safetensors",
    "README.md",
    "preview.png",
    "holdout.safetensors",
)

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}  # of a file system that has none

MAX_BYTES = 2**30  # of a generator's tensors in one file, unless DIMDATA_MAX_BYTES says otherwise
MAX_JSON = 4 * 2**20  # bytes of config.json, and of a safetensors header
MAX_DEPTH = 64
MAX_DIGITS = 20


def max_bytes() -> int:
    """Return how many bytes of tensors a generator's file may have: `DIMDATA_MAX_BYTES`, 1 GiB unless it is set.

    Raises:
        ArgumentError: If the variable holds no number.
    """
    text = os.environ.get("DIMDATA_MAX_BYTES", str(MAX_BYTES))
    if not re.fullmatch("[0-9]{1,18}", text):
        raise ArgumentError(f"DIMDATA_MAX_BYTES is {text!r:.80}, not a number of bytes.")
    return int(text)


def world_error(error: OSError, what: str) -> WorldError:
    """Return our error for one of the operating system; `what` says what was being done."""
    return WorldError(f"{what} failed: {error.strerror or error}.", "Check the disk's space and the permissions.")


def free_bytes(folder: Path) -> int:
    """Return the free space where a folder is or is to be made.

    Raises:
        WorldError: If the disk does not tell.
    """
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    try:
        return shutil.disk_usage(place).free
    except OSError as error:
        raise world_error(error, f"Asking for the free space of {place}") from error


def shareable(value: Any) -> Any:
    """Return a value of JSON as others may read it: paths that tell where things lie here are cut to their last part.

    >>> shareable({"begin": "/home/ada/secret/birds", "on": ["runs/one", "~/two.npz"], "lr": 0.1})
    {'begin': './birds', 'on': ['runs/one', './two.npz'], 'lr': 0.1}
    """
    if isinstance(value, Mapping):
        return {key: shareable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shareable(item) for item in value]
    if not isinstance(value, str):
        return value
    path = PureWindowsPath(value)  # which knows both separators
    tells = value.startswith(("/", "~")) or path.is_absolute() or ".." in path.parts
    return f"./{path.name}" if tells else value


def require_writable(folder: Path) -> None:
    """Refuse a folder that could not be made or written to; nothing is written.

    Raises:
        WorldError: If so.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise WorldError(f"{there} is no folder.", "Name another folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise WorldError(f"{there} cannot be written to.", "Name another folder, or ask for the right to write there.")


def locked(path: Path, timeout: float = -1) -> FileLock:
    """Return the lock of a file, which is made, held by this process; whoever asked for it releases it.

    Where the file system has no locks it is returned all the same, and keeps nobody out.

    Args:
        path: The file.
        timeout: Seconds to wait for another process; for ever if negative.

    Raises:
        filelock.Timeout: If another process holds it still.
        WorldError: If the file cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise
    except NotImplementedError:  # how older versions of filelock tell that the file system has no locks
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise world_error(error, f"Writing {path}") from error
    return lock


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a killed process leaves the old or the new content.

    Raises:
        WorldError: If the disk is full or the place cannot be written; the old content stays.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            _write(part, data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise world_error(error, f"Writing {path}") from error


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _displaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def settled(folder: Path) -> Path:
    """Return where the content of `folder` is: beside it, if a process was killed while it replaced the folder."""
    old = _displaced(folder)
    return old if not folder.exists() and old.is_dir() else folder


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files so that a killed process leaves the old or the new folder, as `settled` finds it.

    Raises:
        WorldError: If the disk is full or the place cannot be written; the old folder stays.
    """
    part, old = folder.with_name(f".{folder.name}.{os.getpid()}.part"), _displaced(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)  # of a dead process that had our number
        try:
            part.mkdir()
            for name, data in files.items():
                _write(part / name, data)
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)
            part.rename(folder)
        except BaseException:
            if old.is_dir() and not folder.exists():
                old.rename(folder)
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise world_error(error, f"Writing the folder {folder}") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        FormatError: If it is missing, no regular file, or longer.
        WorldError: If it cannot be read.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise world_error(error, f"Reading {path}") from error
    if len(data) > limit:
        raise FormatError(f"{path} is longer than {limit:,} bytes.")
    return data


def require_file(path: Path) -> None:
    """Raise `FormatError` unless `path` is a regular file; a pipe or a device would block or never end."""
    if not path.is_file():
        raise FormatError(f"{path.parent} has no file {path.name}.", "Load or download the whole generator again.")


def _strict_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _strict_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("a number is too long")
    return int(text)


def _strict_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def strict_json(data: bytes, where: str) -> dict[str, Any]:
    """Read a JSON object: no NaN, no infinity, no key twice, no lone surrogate, numbers and nesting bounded.

    Raises:
        FormatError: If `data` is anything else; `where` names it.
    """
    try:
        parsed = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_strict_object,
            parse_int=_strict_int,
            parse_float=_strict_float,
            parse_constant=_no_constant,
        )
        json.dumps(parsed, ensure_ascii=False).encode("utf-8")  # fails where a text holds half a character
        level: list[Any] = [parsed]
        for _ in range(MAX_DEPTH):
            level = [item for part in level for item in _items(part) if item and isinstance(item, dict | list)]
        if level:
            raise RecursionError
    except RecursionError as error:
        raise FormatError(f"{where} is nested too deeply.") from error
    except ValueError as error:  # decoding errors included
        raise FormatError(f"{where} is not valid JSON: {error!s:.80}.") from error
    if not isinstance(parsed, dict):
        raise FormatError(f"{where} is not a JSON object.")
    return parsed
