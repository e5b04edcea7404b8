"""How students are trained on a generator, and how it was made: sections of its card."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping
from typing import Any

from dimdata.artifact import ArtifactConfig
from dimdata.hub.markdown import fact, fenced, shown, table
from dimdata.nearest import NearestCheck
from dimdata.real import names
from dimdata.recipe import Recipe

MAX_LINES = 20  # of any list
MAX_SETTINGS = 6_000  # characters of the settings of a run

_APART = ("command", "plan", "nearest", "matching_gain")  # what has a place of its own


def recipe(recipe: Recipe) -> str:
    """Return the section on training students."""
    start = recipe.start
    begin = {
        "default": "Students start as their networks are initialised by default.",
        "stored": f"Students start from weights that are stored with the generator, those of a {shown(start.student)}.",
    }.get(start.law, f"Students start from {start.law} initialisation.")
    groups = [(text, len(list(same))) for text, same in itertools.groupby(leg.describe() for leg in recipe.legs)]
    lines, first = [], 1
    for text, count in groups:
        last = first + count - 1
        legs = f"leg {first}" if count == 1 else f"legs {first} to {last}"
        lines.append(f"- {legs}: {shown(text)}" if len(recipe.legs) > 1 else f"- {shown(text)}")
        first = last + 1
    if recipe.tensors:
        stored = ", ".join(shown(name, 60) for name in recipe.tensors[:MAX_LINES])
        lines.append(f"- stored with the weights: {stored}{', ...' if len(recipe.tensors) > MAX_LINES else ''}")
    follow = "They follow the recipe in `config.json`, which `dimdata train` reads:"
    return f"## Recipe\n\n{begin} {follow}\n\n{_few(lines)}"


def _few(lines: list[str]) -> str:
    more = len(lines) - MAX_LINES
    return "\n".join([*lines[:MAX_LINES], *([f"- and {more:,} more, in `config.json`"] if more > 0 else [])])


def nearest(data: Any) -> str:
    """Return the section on the distance to training images; empty where that was not measured.

    Raises:
        FormatError: If `data` is something else.
    """
    if data is None:
        return ""
    check = NearestCheck.from_json(data, keep_unknown=True)
    rows = [
        f"| {what} | {count:,} | " + " | ".join(f"{value:.4f}" for value in values) + " |"
        for what, count, values in (
            ("draws", check.draws, check.generated),
            ("held-out real images", check.held_out, check.real),
        )
    ]
    return f"""## Are training images stored?

Distance to the nearest of {check.train:,} training images (root mean square per pixel, values in 0 to 1):

{table("| | images | least | 1 % quantile | median |", rows)}

{check.closer:,} of {check.draws:,} draws are nearer to a training image than 99 % of held-out images are; about
{max(1, round(check.draws / 100)):,} would be if draws were like new real images. Shifted or recoloured copies are not
seen by this check."""


def making(config: ArtifactConfig, load: str, seal: str) -> str:
    """Return the section on provenance: facts, settings, how to repeat it, and the digest of the weights.

    Args:
        config: The generator's `config.json`.
        load: What loads the generator, as Python writes it: its name, or `"."`.
        seal: How the line of the digest begins.
    """
    provenance = config.provenance
    plan = provenance.get("plan")
    plan = plan if isinstance(plan, Mapping) else {}
    command = provenance.get("command")
    lines = [
        f"- {shown(key.replace('_', ' '), 80)}: {shown(fact(value))}"
        for key, value in provenance.items()
        if key not in _APART and fact(value)
    ]
    budget = {key: plan[key] for key in ("steps", "minutes", "seed", "probes") if plan.get(key) is not None}
    if budget:
        lines.insert(0, f"- run: {shown(fact(budget))}")
    if _text(command) and not _is_ours(command):
        lines.append(f"- command: {shown(command)}")
    parts = ["## How it was made", *([_few(lines)] if lines else []), _settings(plan.get("config"))]
    parts.append(_again(command, plan, provenance.get("machine"), load))
    parts.append(f"{seal}{config.weights.sha256}`, {config.weights.bytes:,} bytes.")
    return "\n\n".join(part for part in parts if part)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_ours(command: Any) -> bool:
    """Whether a text is one plain call of `dimdata`, with nothing in it that a shell would act on."""
    if not _text(command) or len(command) > 2_000 or not command.isprintable():
        return False
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    return words[:1] == ["dimdata"] and shlex.join(words) == command


def _settings(settings: Any) -> str:
    if not isinstance(settings, Mapping) or not settings:
        return ""
    text = json.dumps(settings, indent=1, sort_keys=True, ensure_ascii=True)
    if len(text) > MAX_SETTINGS:
        return "All settings of the run are in `config.json`, under `provenance.plan.config`."
    return f"<details><summary>All settings of the run</summary>\n\n{fenced(text, 'json')}\n\n</details>"


def _again(command: Any, plan: Mapping[str, Any], machine: Any, load: str) -> str:
    """Return how to make the generator once more."""
    if _is_ours(command):
        text = f"To make it again:\n\n{fenced(command, 'bash')}"
        if "--minutes" in command.split() and plan.get("minutes") is not None and isinstance(plan.get("steps"), int):
            text += (
                f"\n\nWith `--steps {plan['steps']}` in place of `--minutes` it takes as many steps as this run did."
            )
        return text
    if not all(name in plan for name in ("data", "method", "config", "steps", "seed", "probes")):
        return ""
    known = plan["data"] in names()
    data = 'plan["data"]' if known else '"path/of/the/images"'
    engine = ""
    if isinstance(machine, Mapping) and machine.get("precision") in ("fp32", "bf16"):
        engine = f', precision="{machine["precision"]}", compile="{"on" if machine.get("compiled") is True else "off"}"'
    code = f"""from dimdata import distill
from dimdata.artifact import read_config, resolve

plan = read_config(resolve({load})).provenance["plan"]
budget = {{name: plan[name] for name in ("steps", "seed", "probes")}}
distill({data}, out="runs/again", method=plan["method"], config=plan["config"], **budget{engine})"""
    return f"To make it again:\n\n{fenced(code, 'python')}"


def gain(data: Any) -> str:
    """Return the section on what the matching phase added over giving its time to the first; empty if not measured."""
    if not isinstance(data, Mapping) or not data:
        return ""
    rows = [  # lists, those of single runs, are in `config.json` alone
        f"| {shown(str(key).replace('_', ' '))} | {shown(fact(value))} |"
        for key, value in data.items()
        if not isinstance(value, list)
    ]
    return (
        "## Gain of the matching phase\n\nAgainst the same time given to the first phase alone:\n\n"
        f"{table('| | |', rows[:MAX_LINES])}"
    )
