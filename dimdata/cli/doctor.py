"""`dimdata doctor`: what dimdata finds on this machine, and what is wrong with it."""

from __future__ import annotations

from typing import Any

from dimdata.cli import options, output


def run(json: options.Json = False) -> None:
    """Show versions, devices, the Hub's settings, the cache and the bundled generators, and what is wrong with them.

    Nothing is downloaded, and no token is shown. The exit code is 0 where dimdata can be used.
    """
    from dimdata.doctor import examine

    report = examine()
    if json:
        output.emit_json(report.to_json())
    else:
        output.facts({name: value for section in report.facts.items() for name, value in _lines(*section).items()})
        for warning in report.warnings:
            output.note(f"warning: {warning}")
        if not report.problems:
            output.line("\nAll is well.")
    for problem in report.problems[1:]:
        output.note(f"error: {' '.join(problem.message.split())}")
        output.note(f"hint: {' '.join(problem.hint.split())}")
    if report.problems:
        raise report.problems[0]


def _lines(section: str, facts: dict[str, Any]) -> dict[str, object]:
    """Return the facts of a section under names that are unique."""
    alone = section in ("versions", "environment", "computing")
    names = {name: {"cache bytes": "cache size", "free bytes": "free"}.get(name, name) for name in facts}
    return {names[name] if alone else f"{section}: {names[name]}": _value(name, value) for name, value in facts.items()}


def _value(name: str, value: Any) -> object:
    if name.endswith("bytes"):
        return _size(value)
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return value


def _size(count: float) -> str:
    """Return a number of bytes in words; `dimdata.report` has such a function too, but imports torch."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}"
