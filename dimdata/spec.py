"""What `config.json` says: typed, bounded and checked before anything is built from it."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from dimdata.errors import FormatError, nearest

FORMAT_MAJOR = 1
FORMAT_MINOR = 0

MAX_CLASSES = 100_000
MAX_SIDE = 4_096
MAX_LATENT = 65_536
MAX_IMAGES = 2**40
MAX_ENTRIES = 100_000  # of any list; a field's metadata may set `most` lower


def canonical_json(data: Any) -> str:
    """Return the one JSON text of `data`: sorted keys, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def jsonable(value: Any) -> Any:
    """Turn dataclasses and tuples into what JSON knows."""
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


def _describe(kind: Any) -> str:
    return getattr(kind, "__name__", None) or str(kind)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(value: Any, kind: Any, where: str, keep_unknown: bool = False) -> Any:
    """Return `value` as the annotated type `kind`, or say where it does not fit."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), where, keep_unknown)
    if origin is typing.Literal:
        if not isinstance(value, str) or value not in arguments:
            raise FormatError(f"{where} is {value!r:.80}, not one of {', '.join(map(str, arguments))}.")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise FormatError(f"{where} is {value!r:.80}, not a list.")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise FormatError(f"{where} has {len(value)} entries, not {len(arguments)}.")
        return tuple(_convert(item, arguments[0], f"{where}[{i}]", keep_unknown) for i, item in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise FormatError(f"{where} is not an object.")
        return dict(value)
    if isinstance(kind, type) and issubclass(kind, Record):
        return value if isinstance(value, kind) else kind.from_json(value, where, keep_unknown)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    elif kind in (int, str, bool) and type(value) is kind:
        return value
    raise FormatError(f"{where} is {value!r:.80}, not a valid {_describe(kind)}.")


@dataclass(frozen=True, kw_only=True)
class Record:
    """A frozen dataclass that reads and writes JSON strictly.

    Fields that a newer minor version of the format added are kept in `unknown` and written back.
    """

    unknown: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, kind in _hints(type(self)).items():  # type: ignore[arg-type]
            if name != "unknown":
                object.__setattr__(self, name, _convert(getattr(self, name), kind, f"{self.label()}.{name}"))
        self.check()

    @classmethod
    def label(cls) -> str:
        """The name of this record in messages."""
        return cls.__name__.lower()

    def check(self) -> None:
        """Raise `FormatError` where the fields contradict one another or leave their range."""

    @classmethod
    def from_json(cls, data: Any, where: str | None = None, keep_unknown: bool = False) -> Self:
        """Read a record; unknown fields are refused unless `keep_unknown`."""
        where = where or cls.label()
        if not isinstance(data, Mapping):
            raise FormatError(f"{where} is not an object.")
        fields = {f.name: f for f in dataclasses.fields(cls) if f.name != "unknown"}
        unknown = {key: value for key, value in data.items() if key not in fields}
        if unknown and not keep_unknown:
            name = str(next(iter(unknown)))
            raise FormatError(f"{where} has an unknown field {name!r:.80}.", nearest(name, fields))
        for name, f in fields.items():
            entries, most = data.get(name), f.metadata.get("most", MAX_ENTRIES)
            if isinstance(entries, list) and len(entries) > most:
                raise FormatError(f"{where}.{name} has {len(entries):,} entries; {most:,} at most are read.")
            required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            if required and name not in data:
                raise FormatError(f"{where} lacks the field {name!r}.")
        kinds = _hints(cls)  # type: ignore[arg-type]
        known = {
            name: _convert(data[name], kinds[name], f"{where}.{name}", keep_unknown) for name in fields if name in data
        }
        return cls(**known, unknown=unknown)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        known = {f.name: jsonable(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "unknown"}
        return {**self.unknown, **known}


def require(condition: bool, message: str) -> None:
    """Raise `FormatError(message)` unless `condition`."""
    if not condition:
        raise FormatError(message)


@dataclass(frozen=True, kw_only=True)
class Spec(Record):
    """All that determines a draw.

    Attributes:
        kind: Which generator class reads the weights.
        method: The method that distilled it (`real` for baselines, `wrapped` for published sets).
        dataset: The real dataset it stands for.
        classes: Class names; label k is `classes[k]`.
        image_shape: (channels, height, width).
        mean: Per-channel mean of the real training images in [0, 1], for normalisation.
        std: Per-channel standard deviation, likewise.
        value_range: Least and greatest value of an image; learned tables may leave [0, 1].
        latent: Values of a latent, Z; 0 where images are stored.
        images: How many images exist; none where they are unlimited.
        targets: `hard` (class numbers) or `soft` (distributions over the classes).
        storage: Type of the stored weights; images are float32 in any case.
        options: What the generator class needs beyond this.
        flags: Machine-readable warnings, such as `poisoned`.
    """

    kind: str
    method: str
    dataset: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float] = (0.0, 1.0)
    latent: int
    images: int | None = None
    targets: typing.Literal["hard", "soft"] = "hard"
    storage: typing.Literal["float32", "float16", "uint8"] = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    @classmethod
    def label(cls) -> str:
        """The name of this record in messages."""
        return "generator"

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        channels, height, width = self.image_shape
        require(1 <= self.num_classes <= MAX_CLASSES, f"generator.classes must hold 1 to {MAX_CLASSES:,} names.")
        require(len(set(self.classes)) == self.num_classes, "generator.classes names a class twice.")
        require(1 <= channels <= 64, f"generator.image_shape has {channels} channels; 1 to 64 are read.")
        require(
            1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE,
            f"generator.image_shape is {self.image_shape}; sides of 1 to {MAX_SIDE} are read.",
        )
        require(len(self.mean) == len(self.std) == channels, f"generator.mean and .std must hold {channels} values.")
        require(all(s > 0 for s in self.std), "generator.std must be positive.")
        require(self.value_range[0] < self.value_range[1], "generator.value_range must rise.")
        require(0 <= self.latent <= MAX_LATENT, f"generator.latent is {self.latent}; 0 to {MAX_LATENT} is read.")
        if self.images is not None:
            require(1 <= self.images <= MAX_IMAGES, f"generator.images is {self.images}; 1 or more must exist.")


@dataclass(frozen=True, kw_only=True)
class Weights(Record):
    """The digest of `model.safetensors`."""

    sha256: str
    bytes: int

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        ok = len(self.sha256) == 64 and set(self.sha256) <= set("0123456789abcdef")
        require(ok, "weights.sha256 is not 64 hexadecimal digits.")
        require(self.bytes > 0, "weights.bytes must be positive.")
