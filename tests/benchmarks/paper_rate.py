"""How long would the published recipe of DiM take here? Measured seconds per step, times the steps of each phase.

    python tests/benchmarks/paper_rate.py mnist
    python tests/benchmarks/paper_rate.py cifar10 --batch 16 --steps 1     # quicker on a CPU, and cruder

The images are random ones of the dataset's shape and number, since time does not depend on what they show: nothing is
downloaded. The second phase is timed with each network of the pool, as one is drawn uniformly for each epoch, and
their mean counts. With `--batch` steps are timed at a smaller batch and taken to be proportional to it; smaller
batches are somewhat slower for each image, so the estimate is then on the high side. `--config` times another preset.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dimdata.distill.config import make_config
from dimdata.distill.dim import DiM, DimConfig
from dimdata.distill.method import Phase
from dimdata.engine import Engine, keep_freed_memory
from dimdata.real import RealData

SHAPES = {
    "mnist": (60_000, (1, 28, 28)),
    "fashion-mnist": (60_000, (1, 28, 28)),
    "cifar10": (50_000, (3, 32, 32)),
    "svhn": (73_257, (3, 32, 32)),
}


def random_real(name: str) -> RealData:
    """Random images in the shape and number of a dataset."""
    count, shape = SHAPES[name]
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *shape), generator=random, dtype=torch.uint8)
    return RealData.from_arrays(images, torch.arange(count) % 10, name=name)


def seconds(phase: Phase, begin: int, count: int, clock: Callable[[], float]) -> float:
    """Seconds of a step, of `count` or more whose work makes whole periods, after one that is not timed.

    They begin at step `begin`, behind a calm start.
    """
    timed = math.ceil(count / phase.period) * phase.period
    for number in range(1 + timed):
        if number == 1:
            started = clock()
        losses = phase.step(begin + number)
        for value in losses.values():
            value.item()  # waits for the device
    return (clock() - started) / timed


def by_name(method: DiM) -> dict[str, Phase]:
    return {phase.name: phase for phase in method.phases()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=SHAPES)
    parser.add_argument("--config", default="paper")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each kind")
    parser.add_argument("--batch", type=int, help="time at this batch size")
    parser.add_argument("--busy", action="store_true", help="time one thread by its processor time, on a busy CPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", default="off")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.busy:
        torch.set_num_threads(1)
    clock = time.process_time if arguments.busy else time.perf_counter
    engine = Engine.of(arguments.device, arguments.precision, arguments.compile)
    real = random_real(arguments.data)
    config = make_config(DimConfig, arguments.config)
    assert isinstance(config, DimConfig)
    total = DiM.budget(config, real)

    def made(**settings: Any) -> DiM:
        if arguments.batch:
            settings |= {"batch_size": arguments.batch, "match_batch_size": arguments.batch}
        changed = make_config(DimConfig, arguments.config, settings)
        assert isinstance(changed, DimConfig)
        return DiM(changed, real, engine, 0, total)

    sizes = {"gan": config.batch_size, "match": config.match_batch_size or config.batch_size}
    scale = {name: size / (arguments.batch or size) for name, size in sizes.items()}
    planned = {name: phase.steps for name, phase in by_name(DiM(config, real, engine, 0, total)).items()}
    gan = seconds(by_name(made())["gan"], config.calm, arguments.steps, clock) * scale["gan"]
    print(f"gan: {gan:.2f} s a step of {sizes['gan']} images", flush=True)
    pool: dict[str, float] = {}
    if "match" in planned:
        for name in config.pool:
            phase = by_name(made(pool=[name]))["match"]
            pool[name] = seconds(phase, 0, arguments.steps, clock) * scale["match"]
            print(f"match, {name}: {pool[name]:.2f} s a step of {sizes['match']} images", flush=True)
    match = sum(pool.values()) / len(pool) if pool else 0.0
    hours = {"gan": planned.get("gan", 0) * gan / 3600, "match": planned.get("match", 0) * match / 3600}
    result = {
        "config": arguments.config,
        "data": real.name,
        "steps": planned,
        "seconds_per_step": {"gan": gan, "match": match, "match_by_network": pool},
        "hours": hours,
        "total_hours": sum(hours.values()),
        "processor_time": arguments.busy,
        "timed_at_batch": arguments.batch or sizes,
        "machine": engine.describe(),
    }
    for name, value in hours.items():
        print(f"{name}: {planned.get(name, 0):,} steps, {value:,.1f} hours")
    print(f"the whole of {arguments.config} on {real.name}: {sum(hours.values()):,.1f} hours")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
