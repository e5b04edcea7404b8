"""`dimdata distill`: real images to a generator."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimdata.cli import options, output
from dimdata.errors import INTERRUPTED, ArgumentError, RunError

if TYPE_CHECKING:
    from dimdata.real import RealData


def run(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A dataset (mnist, fashion-mnist, svhn, cifar10, cifar100, digits), a folder with one subfolder of "
            "images for each class, or an .npz file.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="The run's folder. [default: runs/METHOD-DATA]")
    ] = None,
    method: Annotated[str, typer.Option("--method", help="See `dimdata list --methods`.")] = "dim",
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="A TOML file, or a name of `dimdata list --presets`.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="One setting, such as lr=0.001; repeatable.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="METHOD", help="The setting `base`: the method of each stage.")
    ] = None,
    stages: Annotated[int | None, typer.Option("--stages", help="The setting `stages`: how many.")] = None,
    seed: options.Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and write nothing.")] = False,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="As many steps as fit in this time, measured first."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Exactly so many steps.")] = None,
    probes: Annotated[
        int,
        typer.Option(
            "--probes", help="Score a student so many times on the way, on a tenth of the training images set aside."
        ),
    ] = 0,
    size: Annotated[
        int | None,
        typer.Option("--size", help="Side that the images of a folder are resized to."),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option("--test", metavar="PATH", help="Folder or .npz file of the test images."),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write curves and sample grids for TensorBoard, too.")
    ] = False,
    root: options.Root = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    compile: options.Compile = "auto",
    json: options.Json = False,
) -> None:
    """Distil real images into a generator.

    The run's folder holds metrics, sample grids, a checkpoint, and at the end the generator. Ctrl-C writes a
    checkpoint first; the same command with --resume goes on.

    Example: dimdata distill digits --minutes 1 -o runs/digits
    """
    from dimdata.artifact import read_config
    from dimdata.distill.config import merge, parse_setting
    from dimdata.distill.run import distill
    from dimdata.distill.tensorboard import TensorBoard, require_tensorboard
    from dimdata.engine import keep_freed_memory
    from dimdata.real import load_real

    if minutes is not None and steps is not None:
        raise ArgumentError("Both --minutes and --steps were given.", "Give one of them.")
    if tensorboard:
        require_tensorboard()
    keep_freed_memory()
    given: dict[str, Any] = {name: value for name, value in (("base", base), ("stages", stages)) if value is not None}
    for text in settings or ():
        given = merge(given, parse_setting(text))
    real = load_real(data, root=root, test=test, size=size)
    folder = out or Path("runs") / f"{method}-{Path(data).stem.lower()}"
    if dry_run:
        _plan(real, method, config, given, seed, steps, minutes, (device, precision, compile), json)
        return
    words = context.find_root().obj or ["distill", data]
    try:
        with contextlib.ExitStack() as opened:
            hearers: list[output.Report] = [opened.enter_context(output.progress())]
            if tensorboard:
                hearers.append(opened.enter_context(TensorBoard(folder)))
            made = distill(
                real,
                out=folder,
                method=method,
                config=config,
                settings=given,
                minutes=minutes,
                steps=steps,
                seed=seed,
                device=device,
                precision=precision,
                compile=compile,
                resume=resume,
                probes=probes,
                progress=lambda event: _tell_all(hearers, event),
                command=shlex.join(["dimdata", *words]),
            )
    except RunError as error:
        if error.exit_code == INTERRUPTED:
            again = [*words, *([] if resume else ["--resume"])]
            error.hint = f"Go on with: {shlex.join(['dimdata', *again])}"
        raise
    if json:
        output.emit_json({"generator": str(made), **read_config(made).to_json()})
        return
    output.line(made)
    shown = str(folder / "generator") if folder.is_absolute() else f"./{folder / 'generator'}"
    if real.test is not None and test is None:
        ipc = "--ipc 10 " if read_config(made).generator.images is None else ""  # of stored images, all there are
        output.note(f"Next: dimdata evaluate {shlex.quote(shown)} {ipc}--real {shlex.quote(data)}")


def _tell_all(hearers: Iterable[output.Report], event: Mapping[str, Any]) -> None:
    for hear in hearers:
        hear(event)


def _plan(
    real: RealData,
    method: str,
    config: str | None,
    given: dict[str, Any],
    seed: int,
    steps: int | None,
    minutes: float | None,
    compute: tuple[str, str, str],
    json: bool,
) -> None:
    """Print what a run would do."""
    from dimdata.distill.config import make_config
    from dimdata.distill.method import METHODS
    from dimdata.engine import Engine
    from dimdata.report import size

    kind = METHODS[method]
    chosen = make_config(kind.Config, config, given)
    engine = Engine.of(*compute)
    total = steps or kind.budget(chosen, real)
    made = kind(chosen, real, engine, seed, total)
    generator = made.generator()
    state = made.state_dict()
    plan: dict[str, Any] = {
        "data": {"name": real.name, "images": len(real.train), "classes": real.num_classes, "shape": real.image_shape},
        "method": method,
        "steps": None if minutes is not None else total,
        "minutes": minutes,
        "phases": {
            p.name: {"steps": None if minutes is not None else p.steps, "images": p.images} for p in made.phases()
        },
        "generator": {"parameters": sum(p.numel() for p in generator.parameters()), "bytes": generator.nbytes},
        "memory": {
            "state_bytes": sum(t.numel() * t.element_size() for t in state.values()),
            "images_bytes": real.train.images.numel(),
        },
        "disk_bytes": made.disk(),
        "machine": engine.describe(),
        "config": chosen.to_json(),
    }
    if json:
        output.emit_json(plan)
        return
    budget = f"as many steps as fit in {minutes:g} minutes" if minutes is not None else f"{total:,} steps"
    each = "; ".join(
        f"{p.name} {f'{p.steps:,} steps' if minutes is None else ''} of {p.images} real images".replace("  ", " ")
        for p in made.phases()
    )
    shape = "x".join(map(str, real.image_shape))
    memory = plan["memory"]
    output.facts(
        {
            "data": f"{real.name}: {len(real.train):,} images {shape} of {real.num_classes} classes",
            "method": method,
            "budget": f"{budget} ({each})",
            "generator": f"{plan['generator']['parameters']:,} parameters, {size(generator.nbytes)} stored",
            "memory": f"{size(memory['images_bytes'])} of real images, {size(memory['state_bytes'])} of "
            "networks and optimisers, and the activations of a step",
            **({"disk": f"{size(plan['disk_bytes'])} outside the run's folder"} if plan["disk_bytes"] else {}),
            "machine": ", ".join(f"{key} {value}" for key, value in plan["machine"].items()),
            "config": "\n".join(f"{key} = {value}" for key, value in plan["config"].items() if key != "recipe"),
        }
    )
