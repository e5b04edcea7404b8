"""`dimdata evaluate`: how good a generator is, beside real images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimdata.cli import against, options, output
from dimdata.errors import ArgumentError

if TYPE_CHECKING:
    from dimdata.scores import Row


def run(
    name: options.Name,
    ipc: Annotated[
        str | None, typer.Option("--ipc", help="Images per class: 1,10,50. [default: 1,10,50, or all there are]")
    ] = None,
    stage: Annotated[
        int | None, typer.Option("--stage", help="Evaluate the first stages alone: a smaller generator.")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            "--student",
            help="Networks: convnet3,resnet18-thin, or your own: package.module:factory. "
            "[default: what the recipe was made for, or convnet3]",
        ),
    ] = None,
    draw: options.Draws = "fresh",
    seeds: options.Students = 3,
    baselines: Annotated[
        str | None,
        typer.Option("--baselines", help="Of real images: random,distinct,all, or none. [default: all three]"),
    ] = None,
    protocol: options.Protocol = "dimdata",
    epochs: options.Epochs = None,
    by_stage: Annotated[
        bool, typer.Option("--by-stage", help="Print the accuracy after each stage, for each seed and on average.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw the accuracy over images per class, or with --by-stage over student steps, as .png, .svg or "
            ".pdf (needs matplotlib).",
        ),
    ] = None,
    levers: options.Levers = "",
    teacher: options.Teacher = None,
    real: options.Real = None,
    root: options.Root = None,
    out: options.Rows = None,
    update_card: Annotated[
        bool, typer.Option("--update-card", help="Write the scores into config.json and README.md of a local folder.")
    ] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    compile: options.Compile = "auto",
    json: options.Json = False,
) -> None:
    """Train students on a generator and on real images, and score them on real test images.

    A figure at IPC n under a fresh draw means 1,000 epochs of n new images per class. The `distinct` baseline saw as
    many distinct real images as often: the practical ceiling.

    \b
    dimdata evaluate dim-mnist --ipc 1,10,50 --draw fresh,fixed --seeds 3 -o scores.jsonl
    dimdata evaluate ./runs/pdd/generator --ipc 10 --by-stage --plot stages.png
    """
    if plot is not None:
        output.require_place(plot, "scores.png")
    if out is not None:
        output.require_place(out, "scores.jsonl")
    if update_card and stage is not None:
        raise ArgumentError(
            "A card holds scores of the whole generator, not of its first stages.", "Leave out --stage."
        )
    counts, students = None if ipc is None else images_per_class(ipc), words(student or "")
    from dimdata import load
    from dimdata.cells import budgets, check_baselines, check_draws, check_plan, is_figure
    from dimdata.engine import Engine, keep_freed_memory
    from dimdata.evaluate import evaluate
    from dimdata.hub.readme import add_scores, require_refreshable
    from dimdata.plots import plot as draw_scores
    from dimdata.plots import require_plots, stage_plot
    from dimdata.protocols import protocol as find_protocol
    from dimdata.report import notes, table
    from dimdata.stages import require_stages, stage_grid, walks
    from dimdata.students.own import user_student

    if plot is not None:
        require_plots(plot)
    # What can be refused is refused before a dataset is downloaded.
    chosen, draws = [user_student(word) for word in students], check_draws(words(draw))
    against_real = check_baselines([] if baselines == "none" else words(baselines or "random,distinct,all"))
    engine = Engine.of(device, precision, compile)
    weights = require_refreshable(name) if update_card else ""
    keep_freed_memory()
    generator = options.levered(load(name), levers, teacher)
    figures = budgets(generator.view(stage=stage), counts)
    if by_stage:
        require_stages(generator.view(stage=stage), find_protocol(protocol))
    elif plot is not None and figures == [None]:
        raise ArgumentError(
            f"{generator.name or 'This generator'} stores unequal numbers of images of its classes, so there are no "
            "figures at a number of images per class to plot.",
            "Leave out --plot.",
        )
    cells = check_plan(generator.view(stage=stage), counts, draws, seeds, epochs, find_protocol(protocol))
    if plot is not None and not by_stage and not any(is_figure(generator, cell) for cell in cells):
        raise ArgumentError(
            "There would be no figure at a number of images per class to plot: a fresh draw has one after 1,000 epochs "
            "alone.",
            "Leave out --plot, and read the scores in the table.",
        )
    data = against.real_data(generator, real, root)
    if data is None and baselines is not None and against_real:
        raise ArgumentError(
            f"--baselines needs real training images, and {name} is tested on its hold-out alone.",
            "Leave --baselines out, or name the dataset with --real.",
        )
    rows: list[Row] = []

    def on_row(row: Row) -> None:
        rows.append(row)
        tell(row)

    scores = evaluate(
        generator,
        ipc=counts,
        stage=stage,
        students=chosen or None,
        draws=draws,
        seeds=seeds,
        real=data,
        epochs=epochs,
        protocol=protocol,
        baselines=against_real,
        engine=engine,
        output=out,
        on_row=on_row,
    )
    found = walks(rows) if by_stage else []
    if json:
        listed: list[Any] = [score.to_json() | {"share": score.share} for score in scores]
        output.emit_json({"scores": listed, "by_stage": [walk.to_json() for walk in found]} if by_stage else listed)
    else:
        output.show(table(scores), keep=3)
        if by_stage:
            output.line()
            output.table(*stage_grid(found))
        for text in notes(scores):
            output.note(text)
        if by_stage:
            output.note("Stages 1-k: what a student reaches that was trained on the first k stages, leg by leg.")
    if update_card:  # before the plot, which may find nothing to draw
        output.note(f"Updated {add_scores(name, scores, weights)}")
    if plot is not None:
        output.note(f"plot: {stage_plot(found, plot) if by_stage else draw_scores(scores, plot)}")


def words(text: str) -> list[str]:
    """Return what an option lists with commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def images_per_class(text: str) -> list[int]:
    """Return the numbers of `--ipc`.

    Raises:
        ArgumentError: If one is no whole number from 1.
    """
    listed = words(text)
    if not listed or not all(word.isascii() and word.isdigit() and len(word) < 16 and int(word) for word in listed):
        raise ArgumentError(
            f"--ipc is {text!r:.80}; images per class are whole numbers from 1.", "Write --ipc 1,10,50."
        )
    return [int(word) for word in listed]


def tell(row: Row) -> None:
    """Print a row as it is known."""
    what = row.levers or "generator" if row.what == "generator" else f"{row.what} real"
    output.note(
        f"{what}, {row.student}, {row.budget_text} {row.draw}, seed {row.seed}: {row.accuracy:.2f} % "
        f"({'diverged, ' if row.diverged else 'did not learn, ' if row.failed else ''}"
        f"{row.images_seen:,} images seen, {output.duration(row.seconds)})"
    )
