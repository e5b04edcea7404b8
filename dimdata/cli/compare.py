"""`dimdata compare`: whether generators serve every student alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dimdata.cli import against, options, output
from dimdata.cli.evaluate import images_per_class, tell, words
from dimdata.errors import ArgumentError, FormatError

if TYPE_CHECKING:
    from dimdata.generators.base import Generator
    from dimdata.protocols import Protocol
    from dimdata.students import Factory


def run(
    names: options.Names = None,
    student: Annotated[
        str, typer.Option("--student", help="Networks, see `list --students`, or your own: package.module:factory.")
    ] = "convnet3,resnet18-thin,vgg11,alexnet",
    ipc: Annotated[
        str, typer.Option("--ipc", help="Images per class: 10, or 1,10. Where fewer are stored, all there are.")
    ] = "10",
    draw: options.Draws = "fresh",
    seeds: options.Students = 3,
    baselines: Annotated[
        str, typer.Option("--baselines", help="Of real images: distinct (the practical ceiling), or none.")
    ] = "none",
    protocol: options.Protocol = "dimdata",
    epochs: options.Epochs = None,
    levers: options.Levers = "",
    teacher: options.Teacher = None,
    real: options.Real = None,
    root: options.Root = None,
    out: options.Rows = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw it, as .png, .svg or .pdf (needs matplotlib).")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table in markdown.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    compile: options.Compile = "auto",
    json: options.Json = False,
) -> None:
    """Train several kinds of students on each generator, or one kind on several: one table, one plot.

    Below the students stand the spread (highest less lowest mean), what the best larger network gains over ConvNet-3,
    and what the figures cost. With --output, the same command goes on after an interruption, student by student, and
    takes up rows of `dimdata evaluate` in the same file.

    Example: dimdata compare dim-mnist dim-fashion-mnist -o rows.jsonl --plot cross.png
    """
    images, wanted = images_per_class(ipc), words(student)
    real_images = [] if baselines == "none" else words(baselines)
    if real_images not in ([], ["distinct"]) or not baselines.strip(", "):
        raise ArgumentError(
            f"--baselines is {baselines!r:.80}; a comparison shows the ceiling `distinct` alone, or none.",
            "Use `dimdata evaluate` for the others.",
        )
    if not wanted:
        raise ArgumentError("--student names no network.", "Name one or more: convnet3,resnet18-thin.")
    if len(set(wanted)) == len(set(names or "ab")) == 1:  # without names there are all that are bundled
        raise ArgumentError(
            f"{wanted[0]} alone on {names[0] if names else ''} alone is no comparison.",
            "Name another network (--student convnet3,resnet18-thin) or generator, or use `dimdata evaluate`.",
        )
    if plot is not None:
        output.require_place(plot, "cross.png")
    if out is not None:
        output.require_place(out, "scores.jsonl")
    from dimdata import load
    from dimdata.artifact import bundled
    from dimdata.cells import check_draws, check_plan
    from dimdata.cross import columns, cross_architecture, cross_notes, grid
    from dimdata.engine import Engine, keep_freed_memory
    from dimdata.evaluate import prepare
    from dimdata.plots import cross_plot, require_plots
    from dimdata.protocols import protocol as find_protocol
    from dimdata.report import drawn, notes
    from dimdata.students.own import student_name, user_student

    if plot is not None:
        require_plots(plot)
    rule = find_protocol(protocol)
    students, draws = [user_student(word) for word in dict.fromkeys(wanted)], check_draws(words(draw))
    engine = Engine.of(device, precision, compile)
    keep_freed_memory()
    # All that can be refused is refused before the first student is trained.
    jobs = []
    for name in dict.fromkeys(names or bundled()):
        generator = options.levered(load(name), levers, teacher)
        if not names and generator.recipe.start.student:  # nothing to compare
            output.note(f"{name} was made for {generator.recipe.start.student} alone, and is left out.")
            continue
        budgets = _budgets(generator, images, rule)
        recipe = rule.recipe(generator.recipe, budgets[0] if budgets else None, generator.spec.num_classes)
        if not names and epochs is not None and any(leg.epochs is None for leg in recipe.legs):
            output.note(f"{name} is trained on in counted steps, which --epochs does not change, and is left out.")
            continue
        check_plan(generator, budgets, draws, seeds, epochs, rule)
        jobs.append((name, generator, budgets, _fitting(name, generator, students, budgets, rule)))
    against_what = [against.real_data(generator, real, root) for _, generator, _, _ in jobs]
    for (name, *_), data in zip(jobs, against_what, strict=True):
        if real_images and data is None:
            raise ArgumentError(
                f"--baselines needs real training images, and {name} is tested on its hold-out alone.",
                "Leave --baselines out, or name the dataset with --real.",
            )
    if plot is not None and not any(len(fitting) > 1 for *_, fitting in jobs):
        raise ArgumentError(
            "No generator takes two of the students, so there is nothing to compare in a plot.",
            "Name students that fit, or leave out --plot.",
        )
    ready = [
        prepare(
            generator,
            ipc=budgets,
            students=fitting,
            draws=draws,
            seeds=seeds,
            real=data,
            epochs=epochs,
            protocol=protocol,
            baselines=real_images,
            engine=engine,
        )
        for (_, generator, budgets, fitting), data in zip(jobs, against_what, strict=True)
    ]
    scores = []
    for (name, _, _, fitting), evaluation in zip(jobs, ready, strict=True):
        output.note(f"{name}: {', '.join(map(student_name, fitting))}")
        scores += evaluation.run(out, tell)
    if json:
        output.emit_json(
            [
                {
                    "name": column.score.name,
                    "budget": column.score.budget_text,
                    "draw": column.score.draw,
                    "levers": column.score.levers,
                    "protocol": column.score.protocol,
                    "test": column.score.test,
                    "trained_on": "distinct real" if column.real else "generator",
                    "accuracy": {student: figure.mean for student, figure in column.figures.items()},
                    "std": {student: figure.std for student, figure in column.figures.items()},
                    "remarks": {s: figure.remark.strip("()") for s, figure in column.figures.items() if figure.remark},
                    "seeds": column.seeds,
                    "spread": column.spread,
                    "gain": None if column.gain is None else {"points": column.gain[0], "student": column.gain[1]},
                    "steps": column.score.steps,
                    "distinct": column.distinct,
                    "drawn": None if column.real else drawn(column.score),
                    "stored_bytes": None if column.real else column.score.stored_bytes,
                }
                for column in columns(scores)
            ]
        )
    elif markdown:
        output.line(cross_architecture(scores, least=1))
    else:
        output.table(*grid(columns(scores)))
    if not json:
        for text in (*notes(scores), *cross_notes(scores)):
            output.note(text)
    if plot is not None:
        output.note(f"plot: {cross_plot(scores, plot)}")


def _budgets(generator: Generator, images: list[int], rule: Protocol) -> list[int] | None:
    """Return the images per class that a generator has of those asked for; none, for all there are, if it has none.

    Of stored stages that students walk it has all or none, and of unlimited ones no fewer than there are stages.
    """
    from dimdata.cells import cuts_stages

    classes = generator.spec.num_classes
    found = [
        count
        for count in images
        if (generator.images is None or count * classes <= generator.images)
        and generator.balanced(count * classes)
        and not cuts_stages(generator, rule.recipe(generator.recipe, count, classes), count)
    ]
    return found or (None if generator.images is not None else [generator.stages])


def _fitting(
    name: str, generator: Generator, students: list[str | Factory], budgets: list[int] | None, rule: Protocol
) -> list[str | Factory]:
    """Return the students that the generator's images and recipe take; say which it does not take, and why.

    Each is made, and shown two images, on the CPU.

    Raises:
        ArgumentError: If none of them fits.
    """
    import torch

    from dimdata.students.own import student_name
    from dimdata.students.source import source_of
    from dimdata.students.train import check_fit

    spec = generator.spec
    recipe = rule.recipe(generator.recipe, budgets[0] if budgets else None, spec.num_classes)
    fitting = []
    for student in students:
        try:
            source = source_of(
                recipe.start,
                spec.image_shape,
                spec.num_classes,
                student=student,
                tensors=generator.recipe_tensors,
            )
            check_fit(source.network(0), spec, torch.device("cpu"))
        except (ArgumentError, FormatError) as error:
            output.note(f"warning: {student_name(student)} is left out for {name}: {error.message}")
        else:
            fitting.append(student)
    if not fitting:
        raise ArgumentError(
            f"{name} takes none of the students {', '.join(map(student_name, students))}.", "Leave it out."
        )
    return fitting
