"""Where does a step of DiM go, and what bounds it? Shares of time, and arithmetic against a matrix product.

    python tests/benchmarks/profile_distill.py cifar10 --config dim-cifar10 --steps 20
    python tests/benchmarks/profile_distill.py cifar10 --config dim-cifar10-gpu --device cuda --compile on

Each phase is profiled by torch.profiler in its steady state, on random images of the dataset's shape and number, since
time does not depend on what they show. Time is counted to what it is spent for: an operation of a backward pass counts
to the part whose forward pass made it. On CUDA it is time of the device's kernels, and what is left of the elapsed time
is the host's; on a CPU it is processor time, so that other programs disturb little.

Operations are counted exactly, on tensors without memory. Beside them stands the rate of a large matrix product in the
same precision, measured in the same run: a part near it is bound by arithmetic; a part far below it is bound by memory,
or by starting many small operations; a part without arithmetic is nothing else.
"""

import argparse
import functools
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from paper_rate import SHAPES, random_real
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from dimdata.distill.config import make_config
from dimdata.distill.dim import DiM, DimConfig
from dimdata.distill.method import Phase
from dimdata.distill.pool import Member
from dimdata.engine import Engine, keep_freed_memory
from dimdata.real import RealData
from dimdata.report import markdown_table
from dimdata.students.compiling import room_for_shapes

PLANNED_STEPS = 10_000
LARGEST = 3
LEAST_FLOP = 1e8  # a step; less is no arithmetic to speak of
SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrix product
PRODUCT_SECONDS = 1.0  # at least
TIMED_SECONDS = 2.0

STEP = "step"
PREFIX = "part: "
PARTS = ("generator", "critic", "pool", "images and noise", "optimiser", "rest")
BACKWARD = 1  # the scope of what the autograd engine calls


def labelled(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose operations are counted to a part."""

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        with record_function(PREFIX + part):
            return function(*arguments, **named)

    return run


def label(method: DiM) -> None:
    """Have the parts of a method's steps counted; inner labels win over outer ones."""
    game, noise = method.game, "images and noise"
    for batches in {id(each): each for each in (method.gan_batches, method.match_batches)}.values():
        batches.at = labelled(noise, batches.at)
    game.latent, game.augment = labelled(noise, game.latent), labelled(noise, game.augment)
    game.fake = labelled("generator", game.fake)
    game.critic_move, game.fool_loss = labelled("critic", game.critic_move), labelled("critic", game.fool_loss)
    method.average.update_parameters = labelled("optimiser", method.average.update_parameters)
    method.match_augment = labelled(noise, method.match_augment)
    if method.pool is not None:
        method.pool.member = labelled("pool", method.pool.member)


@contextmanager
def labelled_pool() -> Iterator[None]:
    """Have what members of pools do counted to the pool."""
    own = {name: getattr(Member, name) for name in ("train", "match")}
    for name, function in own.items():
        setattr(Member, name, labelled("pool", function))
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(Member, name, function)


def part_of(name: str) -> str | None:
    """Return the part that an event's name stands for; none where it stands for no part."""
    if name.startswith(PREFIX):
        return name.removeprefix(PREFIX)
    return "optimiser" if name.startswith(("Optimizer.step#", "Optimizer.zero_grad#")) else None


def shares(events: list[Any], of_device: bool) -> dict[str, float]:
    """Return microseconds of each part: of the kernels that events started, or own time of the events.

    Args:
        events: Of `torch.profiler`.
        of_device: Whether to count kernels.
    """

    def around(event: Any) -> Iterator[Any]:
        while event is not None:
            yield event
            event = event.cpu_parent

    def first(event: Any) -> str | None:
        return next((part for each in around(event) if (part := part_of(each.name))), None)

    made: dict[int, str] = {}  # the part whose forward pass made a node of the graph, by the node's number
    for event in events:
        if event.scope != BACKWARD and event.sequence_nr >= 0 and (part := first(event)):
            made[event.sequence_nr] = part
    labels = {event.name for event in events if event.device_type != DeviceType.CPU and event.is_user_annotation}
    found: dict[str, float] = defaultdict(float)
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue  # a kernel is counted where it was started, and a label lasts from its first kernel to its last
        part = None
        for each in around(event):
            part = made.get(each.sequence_nr) if each.scope == BACKWARD else part_of(each.name)
            if part:
                break
        kernels = sum(kernel.duration for kernel in event.kernels if kernel.name not in labels)
        found[part or "rest"] += kernels if of_device else event.self_cpu_time_total
    return found


def operations(config: DimConfig, real: RealData, name: str, steps: int) -> dict[str, float]:
    """Return floating-point operations of a step of a phase, by part, on average; nothing is computed."""
    method = DiM(config, real, Engine(torch.device("meta")), 0, PLANNED_STEPS)
    (phase,) = (phase for phase in method.phases() if phase.name == name)
    roots = {"generator": method.network, "critic": method.critic}
    names = {type(module).__name__: part for part, module in roots.items()} | {"Watched": "pool"}
    with FlopCounterMode(display=False) as counter:
        for step in range(steps):
            phase.step(step)
    counted = {key: sum(values.values()) / steps for key, values in counter.get_flop_counts().items()}
    found = {part: counted.get(key, 0.0) for key, part in names.items()}
    return found | {"rest": counted["Global"] - sum(found.values())}


def product_rate(engine: Engine, clock: Callable[[], float]) -> float:
    """Return operations a second of a large matrix product in the engine's precision: the best of many."""
    side = SIDE.get(engine.device.type, 4096)
    kind = torch.bfloat16 if engine.bf16 else torch.float32
    a = torch.randn(side, side, device=engine.device, dtype=kind)
    best, begun, count = 0.0, clock(), 0
    while count < 4 or clock() - begun < PRODUCT_SECONDS:  # a device that was idle is not at its full clock at once
        started = clock()
        (a @ a)[0, 0].item()  # waits for the device
        best = max(best, 2 * side**3 / (clock() - started))
        count += 1
    return best


def measure(phase: Phase, engine: Engine, steps: int, clock: Callable[[], float]) -> tuple[dict[str, float], float]:
    """Return seconds of a step by part, and in all."""

    def run(begin: int, count: int) -> float:
        started = clock()
        for step in range(begin, begin + count):
            with record_function(STEP):
                losses = phase.step(step)
        for loss in losses.values():
            loss.item()  # waits for the device
        return (clock() - started) / count

    done = max(3, phase.period)
    run(0, done)
    taken, seconds = 0, 0.0
    while seconds < TIMED_SECONDS:
        seconds += steps * run(done + taken, steps)
        taken += steps
    whole, done = seconds / taken, done + taken
    of_device = engine.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if of_device else [])]
    with profile(activities=activities, acc_events=True) as found:
        run(done, steps)
    by_part = shares(list(found.events()), of_device)
    if of_device:  # the kernels' own time; the host has the rest
        parts = {part: value / 1e6 / steps for part, value in by_part.items()}
        parts["rest"] = parts.get("rest", 0.0) + max(0.0, whole - sum(parts.values()))
        return parts, whole
    total = sum(by_part.values())
    return {part: whole * value / total for part, value in by_part.items()}, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=SHAPES)
    parser.add_argument("--config", default="dim-cifar10")
    parser.add_argument("--steps", type=int, default=20, help="profiled in each phase")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    engine = Engine.of(arguments.device, arguments.precision, arguments.compile)
    clock = time.process_time if engine.device.type == "cpu" else time.perf_counter
    real = random_real(arguments.data)
    config = make_config(DimConfig, arguments.config)
    assert isinstance(config, DimConfig)
    print(", ".join(f"{key} {value}" for key, value in engine.describe().items()))
    result: dict[str, Any] = {"data": real.name, "config": arguments.config, "machine": engine.describe(), "phases": {}}
    peak = product_rate(engine, clock)
    with labelled_pool(), room_for_shapes(engine):
        method = DiM(config, real, engine, 0, PLANNED_STEPS)
        label(method)
        for phase in method.phases():
            steps = math.ceil(arguments.steps / phase.period) * phase.period  # within a period, steps are not alike
            parts, whole = measure(phase, engine, steps, clock)
            peak = max(peak, product_rate(engine, clock))  # other programs slow it, too
            counted = operations(config, real, phase.name, steps)
            batches = method.gan_batches if phase.name == "gan" else method.match_batches
            made = {
                part: {"seconds": parts.get(part, 0.0), "flop": counted.get(part, 0.0)}
                for part in sorted(PARTS, key=lambda part: -parts.get(part, 0.0))
            }
            result["phases"][phase.name] = {"seconds": whole, "images": batches.batch_size, "parts": made}
    result["product"] = peak
    for name, phase in result["phases"].items():
        show(name, phase, peak)
    print(f"A large matrix product: {peak / 1e9:,.0f} GFLOP/s.")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def show(name: str, phase: dict[str, Any], peak: float) -> None:
    """Print a phase: what it takes, its largest costs, and a table of all."""
    whole, images = phase["seconds"], phase["images"]
    lines = []
    for part, values in phase["parts"].items():
        reached = values["flop"] / values["seconds"] if values["seconds"] else 0.0
        counted = [f"{values['flop'] / 1e9:,.2f}", f"{reached / 1e9:,.0f}", f"{100 * reached / peak:.0f} %"]
        uncounted = values["flop"] < LEAST_FLOP
        lines.append([part, f"{100 * values['seconds'] / whole:.1f} %", *(["-"] * 3 if uncounted else counted)])
    print(f"\n{name}: {1e3 * whole:,.1f} ms a step of {images} images, {images / whole:,.0f} images/s")
    print(f"The {LARGEST} largest: {', '.join(f'{line[0]} {line[1]}' for line in lines[:LARGEST])}.\n")
    print(markdown_table(("part", "share of time", "GFLOP a step", "GFLOP/s", "of a matrix product"), lines), "\n")


if __name__ == "__main__":
    main()
