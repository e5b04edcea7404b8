"""Students on their way through the stages of a generator: the accuracy after each, over seeds, as tables show it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dimdata.errors import ArgumentError
from dimdata.generators.base import Generator
from dimdata.protocols import Protocol
from dimdata.report import percent, size
from dimdata.scores import Row


@dataclass(frozen=True)
class Walk:
    """What students reach after each stage; the k-th entry of a list is of the first k stages.

    Attributes:
        name: The generator.
        student: Name of the student.
        budget: The images, in words.
        draw: `fresh` or `fixed`.
        levers: What was done to the draw, in words; empty for the plain draw.
        test: The test images and their number.
        steps: Optimiser steps so far.
        stored: Bytes of the first stages: the smaller generator that they are.
        accuracies: Percent right, by seed.
    """

    name: str
    student: str
    budget: str
    draw: str
    levers: str
    test: str
    steps: tuple[int, ...]
    stored: tuple[int, ...]
    accuracies: tuple[dict[int, float], ...]

    @property
    def means(self) -> list[float]:
        """Mean accuracies."""
        return [round(statistics.fmean(each.values()), 2) for each in self.accuracies]

    @property
    def stds(self) -> list[float | None]:
        """Sample standard deviations; none for one seed."""
        return [round(statistics.stdev(each.values()), 2) if len(each) > 1 else None for each in self.accuracies]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the stages for machines."""
        figures = zip(self.steps, self.stored, self.means, self.stds, self.accuracies, strict=True)
        return [
            {
                "stage": stage,
                "steps": steps,
                "stored_bytes": stored,
                "mean": mean,
                "std": std,
                "accuracies": list(by_seed.values()),
                "seeds": list(by_seed),
            }
            for stage, (steps, stored, mean, std, by_seed) in enumerate(figures, 1)
        ]


def require_stages(generator: Generator, protocol: Protocol) -> None:
    """Raise `ArgumentError` unless a generator has several stages, and students walk them by this protocol."""
    name = generator.name or "This generator"
    if generator.stages < 2:
        raise ArgumentError(f"{name} has no stages to score one after another.", "Evaluate it as a whole.")
    recipe = protocol.recipe(generator.recipe, None, generator.spec.num_classes)
    if not any(leg.stage is not None for leg in recipe.legs):
        raise ArgumentError(
            f"By the protocol {protocol.name}, students of {name} are trained on all stages at once.",
            "Use the protocol dimdata, whose recipe walks them.",
        )


def walks(rows: Iterable[Row]) -> list[Walk]:
    """Take rows of generators with stages together over their seeds, in order of appearance; others are left out."""
    groups: dict[tuple[str, ...], dict[int, Row]] = {}
    for row in rows:
        if row.what == "generator" and row.stages:
            group = (row.source, row.student, row.draw, row.budget, row.test)
            groups.setdefault(group, {})[row.seed] = row
    return [_walk([group[seed] for seed in sorted(group)]) for group in groups.values()]


def _walk(rows: Sequence[Row]) -> Walk:
    first = rows[0]
    return Walk(
        name=first.name,
        student=first.student,
        budget=first.budget_text,
        draw=first.draw,
        levers=first.levers,
        test=first.test,
        steps=first.stage_steps,
        stored=first.stage_bytes,
        accuracies=tuple({row.seed: row.stages[stage] for row in rows} for stage in range(len(first.stages))),
    )


def stage_grid(found: Sequence[Walk]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of a table: a line for each stage of each walk, a column for each seed."""
    seeds = sorted({seed for walk in found for by_seed in walk.accuracies for seed in by_seed})
    facts = {
        "name": [walk.name for walk in found],
        "student": [walk.student for walk in found],
        "budget": [walk.budget for walk in found],
        "draw": [walk.draw for walk in found],
        "levers": [walk.levers or "-" for walk in found],
    }
    always = ("student", "budget", "draw")
    shown = {name: values for name, values in facts.items() if name in always or len(set(values)) > 1}
    header = [*shown, "stages", "student steps", "stored", *(f"seed {seed}" for seed in seeds), "accuracy %"]
    lines = []
    for number, walk in enumerate(found):
        figures = zip(walk.steps, walk.stored, walk.accuracies, walk.means, walk.stds, strict=True)
        for stage, (steps, stored, by_seed, mean, std) in enumerate(figures, 1):
            each = [f"{by_seed[seed]:.2f}" if seed in by_seed else "-" for seed in seeds]
            of = "1" if stage == 1 else f"1-{stage}"
            named = [values[number] for values in shown.values()]
            lines.append([*named, of, f"{steps:,}", size(stored), *each, percent(mean, std)])
    return header, lines
