"""`dimdata train`: one student on a generator's images, or on real ones."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimdata.cli import against, options, output
from dimdata.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dimdata.generators.base import Generator
    from dimdata.stages import Walk

    Test = tuple[Tensor, Tensor, str]


def run(
    name: options.OptionalName = None,
    student: Annotated[
        str | None,
        typer.Option(
            "--student",
            help="Network to train: a name of `dimdata list --students`, or your own: package.module:factory. "
            "[default: what the recipe was made for, or convnet3]",
        ),
    ] = None,
    ipc: Annotated[
        int | None, typer.Option("--ipc", help="Images per class an epoch. [default: 10, or all there are]")
    ] = None,
    stage: Annotated[
        int | None, typer.Option("--stage", help="Train on the first stages of the generator only.")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            help="Instead of the recipe's (mostly 1,000; 30 on real images); not where it counts steps.",
        ),
    ] = None,
    augment: Annotated[
        str | None, typer.Option("--augment", help="Instead of the recipe's: flip+crop, or none.")
    ] = None,
    draw: Annotated[str, typer.Option("--draw", help="fresh (new images every epoch) or fixed.")] = "fresh",
    seed: options.Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Save the student here (.safetensors).")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the accuracy after each stage, as .png, .svg or .pdf."),
    ] = None,
    levers: options.Levers = "",
    teacher: options.Teacher = None,
    real: options.RealOrHoldout = None,
    root: options.Root = None,
    size: Annotated[
        int | None, typer.Option("--size", help="Side that a folder's images are resized to, to train on them.")
    ] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    compile: options.Compile = "auto",
    json: options.Json = False,
) -> None:
    """Train a student by the generator's recipe, and test it on real images.

    The real images are those that come with the generator, unless --real names a dataset. Without NAME, the student is
    trained on the training images of --real: a teacher, for --levers. On a generator with stages the student walks
    them, and its accuracy after each is printed, and drawn into a file by --plot.

    \b
    dimdata train dim-mnist --ipc 10 --epochs 100 -o digits.safetensors
    dimdata train --real mnist -o teacher.safetensors
    dimdata train dim-mnist --ipc 10 --levers best-of=4 --teacher teacher.safetensors
    dimdata train pdd-mnist --real mnist --plot stages.png
    """
    if out is not None:
        output.require_place(out, "student.safetensors", ".safetensors")
    from dimdata.cells import with_epochs
    from dimdata.engine import Engine, keep_freed_memory
    from dimdata.plots import require_plots, stage_plot
    from dimdata.stages import stage_grid
    from dimdata.students import make_student
    from dimdata.students.own import user_student
    from dimdata.students.store import require_storable
    from dimdata.students.train import accuracy, save_student, train
    from dimdata.whitening import Whitening

    if plot is not None:
        output.require_place(plot, "stages.png")
        require_plots(plot)
    given = None if student is None else user_student(student)  # before a dataset is downloaded
    keep_freed_memory()
    engine = Engine.of(device, precision, compile)
    if name is None:
        if stage is not None:
            raise ArgumentError("--stage is for generators; real images have no stages.", "Leave it out.")
        generator, test = _real(real, root, size, ipc, seed)
    elif size is not None:
        raise ArgumentError("--size is for training on real images; a generator has its own size.", "Leave it out.")
    else:
        generator, test = _generated(name, stage, real, root)
    generator = options.levered(generator, levers, teacher)
    walked_legs = [leg for leg in generator.recipe.legs if leg.stage is not None]
    if plot is not None and (generator.stages < 2 or test is None or not walked_legs):
        lacks = "has no stages" if generator.stages < 2 else "comes without test images"
        if generator.stages > 1 and test is not None:
            lacks = "has a recipe that does not walk its stages"
        raise ArgumentError(f"{generator.name} {lacks}, so there is nothing to plot.", "Leave out --plot.")
    recipe = generator.recipe if epochs is None else with_epochs(generator.recipe, epochs, generator.name or "")
    if augment is not None:
        augment = "" if augment == "none" else augment
        recipe = replace(recipe, legs=tuple(replace(leg, augment=augment) for leg in recipe.legs))
    if ipc is None and generator.images is None:
        ipc = max(10, generator.stages)
    if out is not None and given is not None and not isinstance(given, str):  # what cannot be kept is told now
        require_storable(make_student(given, generator.spec.image_shape, generator.spec.num_classes))
    walked: list[dict[str, Any]] = []

    def right(network: nn.Module) -> float:
        assert test is not None
        spec = generator.spec
        whitening = Whitening.of(recipe, generator.recipe_tensors)
        share = accuracy(network, test[0], test[1], spec.mean, spec.std, engine, whitening=whitening)
        return round(100 * share, 2)

    def on_leg(number: int, network: nn.Module) -> None:
        walking = recipe.legs[number - 1].stage
        if walking is not None and test is not None:
            walked.append({"stage": walking, "steps": watch.done, "accuracy": right(network)})

    with output.progress() as report:
        watch = _Watch(report)
        result = train(
            given or recipe.student,
            generator,
            ipc=ipc,
            recipe=recipe,
            seed=seed,
            draw=draw,
            engine=engine,
            on_step=watch,
            on_leg=on_leg,
        )
    facts: dict[str, Any] = {
        "name": generator.name,
        "student": student or recipe.student,
        "ipc": ipc,
        "draw": draw if generator.images is None else "fixed",
        "seed": seed,
        "recipe": recipe.describe(),
        "steps": result.steps,
        "images_seen": result.images_drawn,
        "distinct": result.distinct_images,
        "levers": generator.levers,
        "drawn": result.images_drawn * generator.candidates,
        "seconds": round(result.seconds, 1),
    }
    if test is not None:
        facts["test"] = test[2]
        facts["accuracy"] = right(result.network)
    if walked:
        facts["stages"] = walked
    if out is not None:
        facts["saved"] = str(save_student(result.network, out, result.info))
    if plot is not None:
        facts["plot"] = str(stage_plot([_walk(facts, generator)], plot))
    if json:
        output.emit_json(facts)
        return
    drawn = f", chosen from {facts['drawn']:,} drawn" if generator.candidates > 1 else ""
    output.line(
        f"{facts['student']} saw {result.images_drawn:,} {'real' if name is None else 'generated'} images "
        f"({result.distinct_images:,} distinct{drawn}) in {result.steps:,} steps, {output.duration(result.seconds)}."
    )
    if len(walked) > 1:
        output.table(*stage_grid([_walk(facts, generator)]))
    if test is not None:
        output.line(f"{facts['accuracy']:.2f} % right on real images: {facts['test']}.")
    elif name is None:
        output.note(f"hint: {generator.name} has no test images; put some into a subfolder test/ beside train/.")
    else:
        output.note("hint: This generator comes without test images; score the student with --real NAME.")
    if out is not None:
        output.line(f"Saved to {facts['saved']}.")
    if plot is not None:
        output.note(f"plot: {facts['plot']}")


def _walk(facts: dict[str, Any], generator: Generator) -> Walk:
    """Return a student's way through the stages, of the facts that are told of its training."""
    from dimdata.stages import Walk

    stages = facts["stages"]
    return Walk(
        name=generator.name,
        student=facts["student"],
        budget=f"{generator.images:,} images" if facts["ipc"] is None else f"IPC {facts['ipc']}",
        draw=facts["draw"],
        levers=generator.levers,
        test=facts["test"],
        steps=tuple(each["steps"] for each in stages),
        stored=tuple(generator.view(stage=each["stage"]).nbytes for each in stages),
        accuracies=tuple({facts["seed"]: each["accuracy"]} for each in stages),
    )


def _generated(name: str, stage: int | None, real: str | None, root: Path | None) -> tuple[Generator, Test | None]:
    """Return a generator, or its first stages, and the images to test its student on."""
    from dimdata import load

    generator = load(name).view(stage=stage)
    return generator, against.test_images(name, generator, real, root)


def _real(
    real: str | None, root: Path | None, size: int | None, ipc: int | None, seed: int
) -> tuple[Generator, Test | None]:
    """Return real training images as a generator, all of them or `ipc` of each class, and the test images."""
    if real in (None, against.HOLDOUT):
        raise ArgumentError(
            "There is nothing to train on.",
            "Name a generator (dimdata train dim-mnist), or real images (dimdata train --real mnist).",
        )
    from dimdata.real import all_real, load_real, random_real
    from dimdata.recipe import Leg, Recipe

    data = load_real(str(real), root=root, size=size)
    # Shifts by a few pixels suit every kind of image; mirroring (--augment flip+crop) would spoil digits.
    leg = Leg(epochs=30, batch_size=128, lr=0.05, nesterov=True, schedule="onecycle", augment="crop")
    recipe = Recipe(legs=(leg,))
    generator = all_real(data, recipe) if ipc is None else random_real(data, ipc, seed, recipe)
    generator.name = f"real {data.name}"
    if data.test is None:
        return generator, None
    return generator, (data.test.images, data.test.labels, f"{len(data.test):,} test images of {data.name}")


class _Watch:
    """Shows the steps of a training about once a second; asking for every loss would slow it down."""

    def __init__(self, report: output.Report) -> None:
        self.report = report
        self.shown = time.monotonic()
        self.first: tuple[int, float] | None = None  # when which step was over; it may have compiled, and tells no rate
        self.done = 0

    def __call__(self, done: int, total: int, loss: Tensor) -> None:
        self.done = done
        now = time.monotonic()
        self.first = self.first or (done, now)
        if now - self.shown >= 1 or done == total:
            self.shown = now
            event = {"phase": "train", "step": done, "steps": total, "losses": {"loss": float(loss)}}
            first, since = self.first
            if done > first:
                event["eta_seconds"] = (now - since) / (done - first) * (total - done)
            self.report(event)
