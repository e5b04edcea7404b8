"""What a student's training step costs through `train`, on fresh images, against the bare step on images in memory.

Run `python tests/benchmarks/student_step.py` (`--generator NAME` for a bundled one); it prints a table and one JSON
line, and exits with 1 if the target is missed. The bare step is the compiled forward and loss, backward, and the fused
optimiser, on one batch that never changes. Both run in turns, in the same precision, and the least of each is kept. On
a CPU processor time counts, so that other programs on the machine disturb little; elsewhere elapsed time, to the end of
the device's work (`--device cuda --steps 200`: a launch is no step).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import torch

from dimdata import artifact
from dimdata.engine import Engine, keep_freed_memory
from dimdata.generators.base import Generator
from dimdata.generators.network import NetworkGenerator
from dimdata.generators.table import table_generator
from dimdata.recipe import Leg, Recipe
from dimdata.spec import Spec
from dimdata.students import compiling, make_student
from dimdata.students.train import _loss, train

TARGET = 1.15
CLASSES = tuple("0123456789")


def network_generator(shape: tuple[int, int, int], recipe: Recipe) -> Generator:
    """Make an untrained generator of the usual size."""
    spec = Spec(
        kind="network",
        method="dim",
        dataset="",
        classes=CLASSES,
        image_shape=shape,
        mean=(0.3,) * shape[0],
        std=(0.3,) * shape[0],
        latent=64,
        options={"name": "subpixel"},
    )
    return NetworkGenerator(spec, recipe).eval()


def clock(engine: Engine) -> Callable[[], float]:
    """Return the clock of a device."""
    return time.process_time if engine.device.type == "cpu" else time.perf_counter


def bare(student: str, shape: tuple[int, int, int], batch: int, engine: Engine) -> Callable[[int], float]:
    """Return a function from a number of steps to seconds a step, with nothing around them."""
    now = clock(engine)
    network = engine.place(make_student(student, shape, len(CLASSES))).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
    images = torch.rand(batch, *shape, device=engine.device).contiguous(memory_format=torch.channels_last)
    targets = torch.arange(batch, device=engine.device) % len(CLASSES)
    loss_of = engine.compile(_loss)

    def run(steps: int) -> float:
        times: list[float] = []
        for step in range(steps + 1):  # the first starts the clock
            with engine.autocast():
                loss = loss_of(network, images, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if step in (0, steps):
                loss.item()  # waits for the device
                times.append(now())
        return (times[1] - times[0]) / steps

    return run


def trained(student: str, generator: Generator, batch: int, engine: Engine) -> Callable[[int], float]:
    """Return a function from a number of steps to seconds a step, through `train`; its set-up does not count."""
    ipc = None if generator.images is not None else max(1, 4 * batch // len(CLASSES))
    recipe = Recipe(legs=(Leg(epochs=1_000, batch_size=batch, lr=0.01, schedule="onecycle"),))
    now = clock(engine)

    def run(steps: int) -> float:
        times: list[float] = []

        def note(step: int, total: int, loss: torch.Tensor) -> None:
            if step in (1, total):
                loss.item()  # waits for the device
                times.append(now())

        train(
            student,
            generator,
            ipc=ipc,
            recipe=recipe,
            engine=engine,
            limit_steps=steps + 1,
            on_step=note,
        )
        return (times[-1] - times[0]) / steps

    return run


def main() -> None:
    """Measure, print, and fail where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", default="convnet3")
    parser.add_argument("--generator", help="a name or folder; an untrained network of the usual size unless given")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=8, help="in each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", default="auto")
    options = parser.parse_args()
    keep_freed_memory()
    engine = Engine.of(options.device, options.precision, options.compile)
    compiling.COMPILE_FROM = compiling.COMPILE_FROM_CALLS = 0
    shape = (options.channels, options.side, options.side)
    recipe = Recipe(legs=(Leg(epochs=1, batch_size=options.batch),))
    generator = artifact.load(options.generator) if options.generator else network_generator(shape, recipe)
    shape = generator.spec.image_shape
    images = torch.randint(0, 256, (4 * options.batch, *shape), dtype=torch.uint8)
    table = table_generator(
        images, classes=CLASSES, mean=generator.spec.mean, std=generator.spec.std, recipe=generator.recipe
    )
    runs = {
        "bare": bare(options.student, shape, options.batch, engine),
        "table": trained(options.student, table, options.batch, engine),
        "fresh": trained(options.student, generator, options.batch, engine),
    }
    for run in runs.values():
        run(1)
    turns = [{name: run(options.steps) for name, run in runs.items()} for _ in range(options.turns)]
    seconds = {name: min(turn[name] for turn in turns) for name in runs}
    for name, value in seconds.items():
        print(
            f"{name:6} {1e3 * value:8.1f} ms a step  {options.batch / value:8.0f} images/s  "
            f"{value / seconds['bare']:5.3f} of bare"
        )
    ratio = seconds["fresh"] / seconds["bare"]
    print(
        json.dumps(
            {
                "student": options.student,
                "shape": shape,
                "batch": options.batch,
                **engine.describe(),
                "seconds": seconds,
                "ratio": ratio,
                "target": TARGET,
            }
        )
    )
    sys.exit(ratio > TARGET)


if __name__ == "__main__":
    main()
