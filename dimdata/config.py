"""`config.json`: read, checked, and written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dimdata.errors import ArgumentError, FormatError
from dimdata.files import CONFIG, MAX_JSON, read_bytes, strict_json, write_atomic
from dimdata.names import generator_folder
from dimdata.recipe import Recipe
from dimdata.spec import FORMAT_MAJOR, FORMAT_MINOR, Record, Spec, Weights, jsonable


@dataclass(frozen=True, kw_only=True)
class ArtifactConfig(Record):
    """What `config.json` holds.

    Attributes:
        format: Version of the format, `major.minor`.
        generator: All that determines the draw.
        recipe: How a student is trained on it.
        weights: Digest and size of `model.safetensors`.
        scores: Measured results, one object each.
        provenance: How it was made.
    """

    format: str
    generator: Spec
    recipe: Recipe
    weights: Weights
    scores: tuple[Mapping[str, Any], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def label(cls) -> str:
        """The name of this record in messages."""
        return "config.json"


def read_config(folder: str | os.PathLike[str]) -> ArtifactConfig:
    """Read and check the `config.json` of a local folder, without its weights; errors as in `load`."""
    return parse_config(raw_config(generator_folder(Path(folder))))


def raw_config(folder: Path) -> dict[str, Any]:
    """Read `config.json` as JSON alone."""
    return strict_json(read_bytes(folder / CONFIG, MAX_JSON), str(folder / CONFIG))


def parse_config(raw: dict[str, Any]) -> ArtifactConfig:
    """Check what `config.json` says; fields of a newer minor version are kept in `unknown`."""
    version = raw.get("format")
    if not isinstance(version, str) or not re.fullmatch(r"[0-9]{1,4}\.[0-9]{1,4}", version):
        raise FormatError(
            f"config.json.format is {version!r:.80}, not a version such as {FORMAT_MAJOR}.{FORMAT_MINOR}."
        )
    major, minor = map(int, version.split("."))
    if major != FORMAT_MAJOR:
        problem = "needs a newer dimdata" if major > FORMAT_MAJOR else "is of a format that was never released"
        raise FormatError(
            f"This generator {problem}: its format is {version}, this version reads {FORMAT_MAJOR}.x.",
            "Run: pip install --upgrade dimdata" if major > FORMAT_MAJOR else "",
        )
    newer = minor > FORMAT_MINOR
    parts = {
        "generator": Spec.from_json(raw.get("generator"), keep_unknown=newer),
        "recipe": Recipe.from_json(raw.get("recipe"), keep_unknown=newer),
        "weights": Weights.from_json(raw.get("weights"), keep_unknown=newer),
    }
    return ArtifactConfig.from_json({**raw, **parts}, keep_unknown=newer)


def update_scores(folder: str | os.PathLike[str], scores: Sequence[Mapping[str, Any]]) -> None:
    """Replace the scores in `config.json` and touch nothing else; errors as in `load` and `save`."""
    path = generator_folder(Path(folder))
    raw = raw_config(path)
    parse_config(raw)
    write_atomic(path / CONFIG, config_bytes({**raw, "scores": jsonable(list(scores))}))


def config_bytes(data: Mapping[str, Any]) -> bytes:
    """Return the text of `config.json`.

    Raises:
        ArgumentError: If `data` does not fit into JSON, or is too long to be read back.
    """
    try:
        text = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        encoded = text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"What is to be saved does not fit into JSON: {error!s:.120}.") from error
    if len(encoded) > MAX_JSON:
        raise ArgumentError(f"config.json would have {len(encoded):,} bytes; {MAX_JSON:,} at most are read.")
    return encoded
