"""`dimdata train`: one student on a generator's images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimdata.cli import against, options, output

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def run(
    name: options.Name,
    student: Annotated[str, typer.Option("--student", help="Network to train; see `dimdata list --students`.")] = (
        "convnet3"
    ),
    ipc: Annotated[
        int | None, typer.Option("--ipc", help="Images per class an epoch. [default: 10, or all there are]")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Instead of the recipe's (1,000).")] = None,
    draw: Annotated[str, typer.Option("--draw", help="fresh (new images every epoch) or fixed.")] = "fresh",
    seed: options.Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Save the student here (.safetensors).")
    ] = None,
    real: options.Real = None,
    root: options.Root = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    compile: options.Compile = "auto",
    json: options.Json = False,
) -> None:
    """Train a student by the generator's recipe, and test it on real images.

    The real images are those that come with the generator, unless --real names a dataset.

    Example: dimdata train dim-mnist --ipc 10 --epochs 100 -o digits.safetensors
    """
    if out is not None:
        output.require_parent(out)
    from dimdata import load
    from dimdata.cells import with_epochs
    from dimdata.engine import Engine, keep_freed_memory
    from dimdata.students.train import accuracy, save_student, train

    keep_freed_memory()
    engine = Engine.of(device, precision, compile)
    generator = load(name)
    test = against.test_images(name, generator, real, root)
    recipe = generator.recipe if epochs is None else with_epochs(generator.recipe, epochs)
    if ipc is None and generator.images is None:
        ipc = 10
    with output.progress() as report:
        result = train(
            student, generator, ipc=ipc, recipe=recipe, seed=seed, draw=draw, engine=engine, on_step=_watch(report)
        )
    facts: dict[str, Any] = {
        "name": name,
        "student": student,
        "ipc": ipc,
        "draw": draw,
        "seed": seed,
        "recipe": recipe.describe(),
        "steps": result.steps,
        "images_seen": result.images_drawn,
        "distinct": result.distinct_images,
        "seconds": round(result.seconds, 1),
    }
    if test is not None:
        images, labels, facts["test"] = test
        spec = generator.spec
        facts["accuracy"] = round(100 * accuracy(result.network, images, labels, spec.mean, spec.std, engine), 2)
    if out is not None:
        facts["saved"] = str(save_student(result.network, out, result.info))
    if json:
        output.emit_json(facts)
        return
    output.line(
        f"{student} saw {result.images_drawn:,} generated images ({result.distinct_images:,} distinct) in "
        f"{result.steps:,} steps, {output.duration(result.seconds)}."
    )
    if test is not None:
        output.line(f"{facts['accuracy']:.2f} % right on real images: {facts['test']}.")
    else:
        output.note("hint: This generator comes without test images; score the student with --real NAME.")
    if out is not None:
        output.line(f"Saved to {facts['saved']}.")


def _watch(report: output.Report) -> Callable[[int, int, Tensor], None]:
    """Return what shows the steps of a training about once a second; asking for every loss would slow it down."""
    start = shown = time.monotonic()

    def on_step(done: int, total: int, loss: Tensor) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= 1 or done == total:
            shown = now
            left = (now - start) / done * (total - done)
            report(
                {"phase": "train", "step": done, "steps": total, "eta_seconds": left, "losses": {"loss": float(loss)}}
            )

    return on_step
