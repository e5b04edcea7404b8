"""Text of others in markdown: shown as it is, in bounds, and never as markup."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dimdata.report import escape

LONG = 400  # characters of one fact
DEEP = 8  # levels of one fact


def printable(text: object, most: int = LONG) -> str:
    """Return a text in one line without what cannot be seen (controls, marks of direction), cut to `most` characters.

    >>> printable("a\\nb\\x1b[31m")
    'a b\ufffd[31m'
    """
    line = " ".join(str(text)[: 4 * most].split())
    line = "".join(c if c.isprintable() else "\ufffd" for c in line)
    return line if len(line) <= most else f"{line[: most - 3]}..."


def shown(value: object, most: int = LONG) -> str:
    """Return a text that markdown and HTML show as it is, in one line, wherever a line or a cell begins."""
    text = escape(printable(value, most))
    text = re.sub(r"\A([-+=])(?=[-=\s]|\Z)", r"\\\1", text)
    return re.sub(r"\A([0-9]+)([.)])(?=\s|\Z)", r"\1\\\2", text)


def fact(value: Any, deep: int = DEEP) -> str:
    """Return a value of JSON in words, of its first `deep` levels; empty where it says nothing."""
    if isinstance(value, Mapping | list | tuple) and not deep:
        return "..."
    if isinstance(value, Mapping):
        parts = [(key, fact(item, deep - 1)) for key, item in value.items()]
        return ", ".join(f"{key} {part}" for key, part in parts if part)
    if isinstance(value, list | tuple):
        return ", ".join(fact(item, deep - 1) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return "" if value is None else str(value)


def fenced(code: str, language: str) -> str:
    """Return a code block that its text cannot end, and in which no mark of kept text can hide."""
    code = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in code).replace("<!--", "<! --")
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def table(header: str, rows: list[str]) -> str:
    """Return a table of lines `| a | b |`, of which the first column is text and the others are numbers."""
    columns = header.count("|") - 2
    return "\n".join([header, "| --- |" + " ---: |" * columns, *rows])
