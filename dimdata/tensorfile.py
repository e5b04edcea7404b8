"""Reading safetensors files without trusting what they say of themselves.

The header must describe the data exactly, byte by byte, before memory is taken for it; then one read through one open
file gives the digest and the tensors, so that what was checked is what is used.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from dimdata.errors import FormatError, WorldError
from dimdata.files import MAX_JSON, require_file, strict_json, world_error

MAX_RANK = 8
MAX_TENSORS = 10_000

AGAIN = "Download it again (dimdata pull OWNER/NAME), or restore it from a copy."

DTYPES = {"F32": torch.float32, "F16": torch.float16, "U8": torch.uint8, "I64": torch.int64}


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file: where it lies in the data, in bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _entry(name: str, value: Any) -> Entry:
    where = f"The tensor {name!r:.80}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where} is not described by dtype, shape and data_offsets.")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"{where} has the type {dtype!r:.40}; {', '.join(DTYPES)} are read.")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(_count(n) and n for n in shape):
        raise FormatError(f"{where} has the shape {shape!r:.80}.")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_count(n) for n in offsets):
        raise FormatError(f"{where} has the offsets {offsets!r:.80}.")
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise FormatError(f"{where} has {offsets[1] - offsets[0]} bytes, which its shape and type do not fill.")
    if offsets[0] % DTYPES[dtype].itemsize:
        raise FormatError(f"{where} is not aligned.")
    return Entry(DTYPES[dtype], tuple(shape), *offsets)


class TensorFile:
    """A safetensors file: its header is checked on opening, its data is read when asked for, through one open file.

    Args:
        path: The file.
        limit: The most bytes it may have.

    Attributes:
        size: Bytes of the file.
        metadata: The header's `__metadata__`.
        entries: The tensors, by name.

    Raises:
        FormatError: If the header does not describe the data exactly.
        WorldError: If it cannot be read.
    """

    def __init__(self, path: Path, limit: int) -> None:
        require_file(path)
        self.path = path
        try:
            self._file = path.open("rb")
            self.size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise world_error(error, f"Reading {path}") from error
        try:
            if self.size > limit:
                raise FormatError(
                    f"{path} has {self.size:,} bytes; {limit:,} at most are read.",
                    "Set DIMDATA_MAX_BYTES higher if you trust it.",
                )
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def _read_header(self) -> None:
        self._head = self._read(8)
        length = int.from_bytes(self._head, "little")
        if len(self._head) < 8 or not 2 <= length <= min(MAX_JSON, self.size - 8):
            raise FormatError(f"{self.path} is truncated, or not a safetensors file.", AGAIN)
        self._head += self._read(length)
        header = strict_json(self._head[8:], f"The header of {self.path}")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise FormatError(f"The metadata of {self.path} is not a map of texts.")
        self.metadata: dict[str, str] = metadata
        if len(header) > MAX_TENSORS:
            raise FormatError(f"{self.path} has {len(header):,} tensors; {MAX_TENSORS:,} at most are read.")
        self.entries = {name: _entry(name, value) for name, value in header.items()}
        end = 0
        for entry in sorted(self.entries.values(), key=lambda entry: entry.begin):
            if entry.begin != end:
                raise FormatError(f"The tensors of {self.path} overlap, or leave a gap.")
            end = entry.end
        if len(self._head) + end != self.size:
            told = f"{self.path} has {self.size:,} bytes; its header describes {len(self._head) + end:,}."
            raise FormatError(told, AGAIN)

    def _read(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except OSError as error:
            raise world_error(error, f"Reading {self.path}") from error

    def read(self, sha256: str | None = None) -> dict[str, Tensor]:
        """Read all tensors.

        Args:
            sha256: The digest the whole file must have.

        Raises:
            FormatError: If the digest differs, or a floating value is not finite.
            WorldError: If the disk or the memory fails.
        """
        try:
            data = bytearray(self.size - len(self._head))
            got = self._file.readinto(data)
        except OSError as error:
            raise world_error(error, f"Reading {self.path}") from error
        except MemoryError as error:
            raise WorldError(f"There is no memory for the {self.size:,} bytes of {self.path}.") from error
        digest = hashlib.sha256(self._head)
        digest.update(data)
        if got != len(data) or sha256 not in (None, digest.hexdigest()):
            raise FormatError(
                f"{self.path} is damaged: its sha256 is {digest.hexdigest()}, not {sha256}.",
                AGAIN,
            )
        tensors = {}
        for name, entry in self.entries.items():
            flat = torch.frombuffer(data, dtype=entry.dtype, count=math.prod(entry.shape), offset=entry.begin)
            if not finite(flat):
                raise FormatError(f"The tensor {name!r:.80} of {self.path} has values that are not finite.")
            tensors[name] = flat.view(entry.shape)
        return tensors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def finite(tensor: Tensor) -> bool:
    """Whether a tensor has no NaN and no infinity, found without a mask of its size."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(math.isfinite(float(bound)) for bound in torch.aminmax(tensor))
