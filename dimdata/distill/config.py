"""From a preset, a TOML file and single settings to a method's config."""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dimdata.errors import ArgumentError, FormatError, NotFoundError, nearest
from dimdata.spec import Record

PRESETS = Path(__file__).parent / "presets"

_ABOUT = re.compile(r"# ([^\n]+?):(?:\n#)? (dimdata distill [^\n]+)\n")


def presets() -> dict[str, Path]:
    """Return the packaged configurations by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}


def about(name: str) -> tuple[str, str]:
    """Return what a packaged configuration is, and its command: what the comment that it begins with says."""
    found = _ABOUT.match(presets()[name].read_text(encoding="utf-8"))
    return (found[1], found[2]) if found else ("", "")


def read_settings(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a preset by name, or a TOML file by path.

    Raises:
        NotFoundError: If it is neither.
        FormatError: If the file is no TOML.
    """
    path = presets().get(str(source), Path(source))
    if not path.is_file():
        hint = f"{nearest(str(source), presets())} Or give the path of a TOML file."
        raise NotFoundError(f"There is no configuration {str(source)!r:.80}.", hint)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is not valid TOML: {error}.", "Mend the file.") from None


def parse_setting(text: str) -> dict[str, Any]:
    """Turn `a.b=value` into nested settings; the value is TOML, or text where it is not.

    >>> parse_setting("network.width=48")
    {'network': {'width': 48}}
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ArgumentError(f"{text!r:.80} is no setting.", "Write it as name=value, such as lr=0.001.")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    for part in reversed(key.strip().split(".")):
        parsed = {part.strip(): parsed}
    return dict(parsed)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the entries of `over`, objects merged entry by entry."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def make_config(
    kind: type[Record], *sources: Mapping[str, Any] | Record | str | os.PathLike[str] | None, where: str = "config"
) -> Record:
    """Build a config of `kind`; later sources win over earlier ones, and all over the defaults.

    Args:
        kind: The method's `Config`.
        sources: Configs, mappings, preset names, paths of TOML files, or none.
        where: What it is called in messages.

    Raises:
        FormatError: If a setting is unknown or out of range. One of another method, or of a method's base, is told so.
    """
    settings: dict[str, Any] = {}
    for source in sources:
        if source is None:
            continue
        if isinstance(source, Record):
            source = source.to_json()
        elif not isinstance(source, Mapping):
            source = read_settings(source)
        settings = merge(_kept(kind, settings, source), source)
    known = {field.name for field in dataclasses.fields(kind)}
    commands = [about(str(source))[1] for source in sources if str(source) in presets()]
    for name in settings:
        place = "" if name in known else _belongs(name, kind, settings)
        if name not in known and commands:
            place = f"The preset is for: {commands[0]}"
        if place:
            raise FormatError(f"{where} has an unknown field {name!r:.80}.", place)
    return kind.from_json(merge(kind().to_json(), settings), where)


def _kept(kind: type[Record], settings: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of settings beside `over`: of options, where these name another thing, those that it has.

    A field of options says by its metadata `options` in which registry of things with a `Config` its name is.
    """
    kept = dict(settings)
    for field in dataclasses.fields(kind):
        old, new = settings.get(field.name), over.get(field.name)
        registry = field.metadata.get("options")
        if registry is None or not isinstance(old, Mapping) or not isinstance(new, Mapping):
            continue
        name = new.get("name", old.get("name"))
        if name != old.get("name") and name in registry:
            known = {option.name for option in dataclasses.fields(registry[name].Config)}
            kept[field.name] = {key: value for key, value in old.items() if key in known}
    return kept


def _belongs(name: str, kind: type[Record], settings: Mapping[str, Any]) -> str:
    """Return where a setting belongs that `kind` does not know, if another method does: a hint."""
    from dimdata.distill.method import METHODS  # methods make their configs here

    def knows(method: str) -> bool:
        return method in METHODS and name in {field.name for field in dataclasses.fields(METHODS[method].Config)}

    base = str(settings.get("base", kind.base)) if hasattr(kind, "base") else ""
    if knows(base):
        return f"It is a setting of the base {base}: --set settings.{name}=..."
    ours = next((method for method in METHODS if METHODS[method].Config is kind), "")
    near = nearest(name, [field.name for field in dataclasses.fields(kind) if field.name != "unknown"])
    able = [f"--method {method}" for method in METHODS if method != ours and knows(method)]
    return f"It belongs to {' or '.join(able)}." if able and not base else near
