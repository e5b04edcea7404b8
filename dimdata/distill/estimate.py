"""What a run will take: time, memory and disk, told from a few real steps of each phase before the run begins."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from dimdata import preview
from dimdata.distill.method import Losses, Method, Phase
from dimdata.engine import Engine
from dimdata.errors import ArgumentError

PLANNED_STEPS = 10_000  # from which the shares of the phases are told
TIMED_SECONDS = 3.0  # of each phase, at least one step
TIMED_STEPS = 12  # at most
LONG_SECONDS = 10.0  # a first step of more is not repeated, unless it may have been compiled on the way
LONGEST_SECONDS = 120.0  # nor is one of more then, unless its last step shows that compiling took most of it


@dataclass(frozen=True)
class PhaseEstimate:
    """What a phase will take.

    Attributes:
        steps: Its steps; those of a budget in minutes that fit into it.
        ready: Steps of these whose results are there already.
        seconds_per_step: As measured.
        seconds: Of all steps that are left.
    """

    steps: int
    ready: int
    seconds_per_step: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        phases: The phases by name.
        seconds: Of all of them; without starting, sample grids, probes, and what a method does between its steps. Later
            stages count like the first, though batches that hold the images before (`union`) may be larger.
        memory_bytes: The greatest memory in use until now: of the process, or on a GPU of the tensors there; none
            where the system does not tell.
        memory_of: What that is of.
        checkpoint_bytes: The largest checkpoint.
        folder_bytes: The run's folder at its fullest: two checkpoints, while one replaces the other, the generator
            and its grids.
        outside_bytes: What else is written, such as expert trajectories.
    """

    phases: Mapping[str, PhaseEstimate]
    seconds: float
    memory_bytes: int | None
    memory_of: str
    checkpoint_bytes: int
    folder_bytes: int
    outside_bytes: int


def estimate(
    method: Method, minutes: float | None = None, grids: int = 10, on_phase: Callable[[str], None] | None = None
) -> Estimate:
    """Take a few steps of each phase and tell what all will take; nothing is written.

    Args:
        method: Freshly made; it is of no use for distilling afterwards.
        minutes: A time budget that decides on the steps.
        grids: Sample grids of the run.
        on_phase: Called with the name of each phase before it is timed.

    Raises:
        ArgumentError: If the budget in minutes is too short; see `steps_within`.
    """
    outside = method.disk()
    if method.engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(method.engine.device)
    phases = method.phases() if minutes is None else planned(method)
    costs: dict[str, float] = {}
    for phase in phases:
        if phase.like in costs:
            costs[phase.name] = costs[phase.like]
            continue
        if on_phase is not None:
            on_phase(phase.name)
        costs[phase.name] = _seconds(phase, method.engine)
    if minutes is not None:
        method.steps = steps_within(minutes, phases, costs)
        phases = method.phases()
    found = {}
    for phase in phases:
        left = max(0, phase.steps - phase.ready)
        found[phase.name] = PhaseEstimate(phase.steps, phase.ready, costs[phase.name], left * costs[phase.name])
    memory, of = _memory(method.engine)
    checkpoint = method.checkpoint_bytes()  # now that the optimisers hold what they will
    generator = method.outline()
    grid = len(preview.png(generator))
    return Estimate(
        phases=found,
        seconds=sum(phase.seconds for phase in found.values()),
        memory_bytes=memory,
        memory_of=of,
        checkpoint_bytes=checkpoint,
        folder_bytes=2 * checkpoint + generator.nbytes + (grids + 1) * grid,
        outside_bytes=outside,
    )


def planned(method: Method) -> tuple[Phase, ...]:
    """Give a method a long budget, and return the phases by which `steps_within` shares out another."""
    method.steps = PLANNED_STEPS
    method.steps += sum(phase.steps for phase in method.phases() if phase.fixed)
    return method.phases()


def steps_within(
    minutes: float,
    phases: Sequence[Phase],
    costs: Mapping[str, float],
    spent: float = 0.0,
    taken: Mapping[str, int] | None = None,
) -> int:
    """Return the steps of all phases together that fit into a time.

    Phases of fixed length come first; what they leave is for the others, in the proportions that they have here.

    Args:
        minutes: The time.
        phases: As `planned` returns them.
        costs: Seconds a step of each, by name.
        spent: Seconds of the time that are over.
        taken: Steps that are taken by then, by phase.

    Raises:
        ArgumentError: If phases of fixed length leave no time for one step of each other phase.
    """
    taken = {phase.name: 0 for phase in phases} | dict(taken or {})
    fixed = [phase for phase in phases if phase.fixed]
    others = [phase for phase in phases if not phase.fixed]
    before = sum(costs[p.name] * max(0, p.steps - max(p.ready, taken[p.name])) for p in fixed)
    todo = before + sum(costs[phase.name] for phase in others if not taken[phase.name])
    least = spent + todo
    if fixed and todo and minutes * 60 < least:
        raise ArgumentError(
            f"All of {_names(fixed)} and a step of {_names(others)} take about {least / 60:.2g} minutes, "
            f"and {minutes:g} were given.",
            f"Give {_rounded_up(least / 60)} minutes or more.",
        )
    cost = sum(costs[phase.name] * phase.steps for phase in others) / sum(phase.steps for phase in others)
    # As if all of the others' steps were still to be taken, in a time that is longer by what those taken would need.
    back = sum(costs[phase.name] * taken[phase.name] for phase in others)
    fitting = int((minutes * 60 - spent - before + back) / max(cost, 1e-9))
    least_of_all = sum(phase.steps for phase in fixed) + len(others)
    return max(sum(taken.values()), least_of_all, sum(phase.steps for phase in fixed) + fitting)


def _names(phases: Sequence[Phase]) -> str:
    return ", ".join(phase.name for phase in phases)


def _rounded_up(minutes: float) -> str:
    """Return minutes in two digits, not less, and with a tenth to spare, since no two measurements agree."""
    unit = 10.0 ** (math.floor(math.log10(1.1 * minutes)) - 1)
    return f"{math.ceil(1.1 * minutes / unit) * unit:.10g}"


def _seconds(phase: Phase, engine: Engine) -> float:
    """Return the seconds of a step, measured on steps that follow a first one, or on the first where it is long."""
    number = 0

    def take() -> float:
        """Take what is measured of a step; return which share of a step it was."""
        nonlocal number
        losses, share = phase.part() if phase.part else (phase.step(number % max(1, phase.steps)), 1.0)
        number += 1
        _wait(losses)
        return share

    begun = last = time.perf_counter()
    share = 0.0
    for _ in range(phase.period):
        last = time.perf_counter()
        share += take()
    spent, last = time.perf_counter() - begun, time.perf_counter() - last
    # A step that was compiled before it, in the same period, is as long as it will be.
    compiled = engine.compiled and phase.period > 1 and last < LONG_SECONDS
    if spent > (LONGEST_SECONDS if engine.compiled else LONG_SECONDS) and not compiled:
        return spent / share
    share, taken = 0.0, 0
    begun = time.perf_counter()
    while not taken or (taken < TIMED_STEPS and time.perf_counter() - begun < TIMED_SECONDS):
        for _ in range(phase.period):  # whole periods, within which steps are not alike
            share += take()
            taken += 1
    return (time.perf_counter() - begun) / share


def _wait(losses: Losses) -> None:
    """Wait until the device has computed what was asked of it."""
    for value in losses.values():
        value.item()


def _memory(engine: Engine) -> tuple[int | None, str]:
    """Return the greatest memory in use until now, and what it is of."""
    if engine.device.type == "cuda":
        return torch.cuda.max_memory_allocated(engine.device), "tensors on the GPU"
    try:
        import resource
    except ImportError:  # Windows
        return None, ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024), "the process"
