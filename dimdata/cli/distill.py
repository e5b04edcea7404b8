"""`dimdata distill`: real images to a generator."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimdata.cli import options, output
from dimdata.errors import INTERRUPTED, ArgumentError, RunError

if TYPE_CHECKING:
    from dimdata.distill.estimate import PhaseEstimate
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
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Take a few steps of each phase to tell time, memory and disk of the whole run; write nothing.",
        ),
    ] = False,
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
    from dimdata.distill.config import merge, parse_setting, presets
    from dimdata.distill.plan import existing
    from dimdata.distill.run import asked_for, check_budget, distill
    from dimdata.distill.tensorboard import TensorBoard, require_tensorboard
    from dimdata.engine import keep_freed_memory
    from dimdata.real import load_real, validation_split

    if minutes is not None and steps is not None:
        raise ArgumentError("Both --minutes and --steps were given.", "Give one of them.")
    check_budget(minutes, steps, probes)
    if tensorboard:
        require_tensorboard()
    keep_freed_memory()
    given: dict[str, Any] = {name: value for name, value in (("base", base), ("stages", stages)) if value is not None}
    for text in settings or ():
        given = merge(given, parse_setting(text))
    if config is None and not resume and f"{method}-{data}" in presets():
        output.note(f"hint: --config {method}-{data} has settings made for this data; `dimdata list --presets` tells.")
    folder = (out or Path("runs") / f"{method}-{Path(data).stem.lower()}").expanduser()
    # What can be refused is refused before a dataset is downloaded.
    asked_for(method, config, given, device, precision, compile)
    old = None if dry_run else existing(folder, resume)
    real = load_real(data, root=root, test=test, size=size)
    if dry_run:
        real = validation_split(real) if probes else real
        _plan(real, folder, method, config, given, seed, steps, minutes, (device, precision, compile), json)
        return
    words = context.find_root().obj or ["distill", data]
    again = _again(context, data, folder, old.minutes if old else None, old.steps if old else None)
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
                command=again,
            )
    except RunError as error:
        if error.exit_code == INTERRUPTED:
            on = [*words, *([] if resume else ["--resume"])]
            error.hint = f"Go on with: {shlex.join(['dimdata', *on])}"
        raise
    if json:
        output.emit_json({"generator": str(made), **read_config(made).to_json()})
        return
    output.line(made)
    shown = str(folder / "generator") if folder.is_absolute() else f"./{folder / 'generator'}"
    if real.test is not None and test is None:
        ipc = "--ipc 10 " if read_config(made).generator.images is None else ""  # of stored images, all there are
        where = f" --root {shlex.quote(str(root))}" if root else ""
        output.note(f"Next: dimdata evaluate {shlex.quote(shown)} {ipc}--real {shlex.quote(data)}{where}")


def _again(context: typer.Context, data: str, folder: Path, minutes: float | None, steps: int | None) -> str:
    """Return the command that makes the generator once more, as its card tells it to others.

    It names nothing by where it lies on this machine, and is that of a run in one sitting.

    Args:
        context: What was typed.
        data: The real dataset.
        folder: The run's.
        minutes: The budget of the run that goes on, if one does and none was typed.
        steps: Its steps, likewise.
    """
    from dimdata.files import shareable

    typed = {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and (source := context.get_parameter_source(parameter.name)) and source.name == "COMMANDLINE"
    }
    words = ["dimdata", "distill", shareable(data)]
    if "minutes" not in typed and "steps" not in typed and steps is not None:
        words += ["--steps", str(steps)] if minutes is None else ["--minutes", f"{minutes:g}"]
    for name, option in typed.items():
        if name in ("data", "out", "resume", "root", "json", "tensorboard"):
            continue
        value = context.params[name]
        for each in value if isinstance(value, list | tuple) else [value]:
            text = f"{each:g}" if isinstance(each, float) else str(each)
            key = text[: text.index("=") + 1] if name == "settings" else ""
            bare = text[len(key) :].strip().strip("'\"")
            words += [option, text if shareable(bare) == bare else f"{key}{shareable(bare)}"]
    out = shareable(str(folder))
    return shlex.join([*words, "-o", out if out == str(folder) else f"runs/{folder.name}"])


def _tell_all(hearers: Iterable[output.Report], event: Mapping[str, Any]) -> None:
    for hear in hearers:
        hear(event)


def _plan(
    real: RealData,
    folder: Path,
    method: str,
    config: str | None,
    given: dict[str, Any],
    seed: int,
    steps: int | None,
    minutes: float | None,
    compute: tuple[str, str, str],
    json: bool,
) -> None:
    """Print what a run would do, and what it would take."""
    from dimdata.distill.config import make_config
    from dimdata.distill.estimate import estimate
    from dimdata.distill.method import METHODS
    from dimdata.distill.run import compiling
    from dimdata.engine import Engine
    from dimdata.files import free_bytes
    from dimdata.report import size

    kind = METHODS[method]
    chosen = kind.resolve(make_config(kind.Config, config, given))
    device, precision, compile = compute
    total = steps or kind.budget(chosen, real)
    engine = Engine.of(device, precision, compiling(compile, minutes, total))
    made = kind(chosen, real, engine, seed, total)
    made.require_recipe()
    generator = made.outline()
    phases = made.phases()
    found = estimate(made, minutes, on_phase=lambda name: output.note(f"Timing a few steps of the phase {name} ..."))
    free = free_bytes(folder)
    plan: dict[str, Any] = {
        "data": {"name": real.name, "images": len(real.train), "classes": real.num_classes, "shape": real.image_shape},
        "method": method,
        "steps": sum(phase.steps for phase in found.phases.values()),
        "minutes": minutes,
        "phases": {p.name: {"images": p.images, **dataclasses.asdict(found.phases[p.name])} for p in phases},
        "seconds": found.seconds,
        "beside": made.beside(),
        "generator": {"parameters": sum(p.numel() for p in generator.parameters()), "bytes": generator.nbytes},
        "memory": {
            "peak_bytes": found.memory_bytes,
            "of": found.memory_of,
            "images_bytes": real.train.images.numel(),
        },
        "disk": {
            "folder": str(folder),
            "folder_bytes": found.folder_bytes,
            "checkpoint_bytes": found.checkpoint_bytes,
            "outside_bytes": found.outside_bytes,
            "free_bytes": free,
        },
        "machine": engine.describe(),
        "config": chosen.to_json(),
    }
    if json:
        output.emit_json(plan)
        return
    steps_of = {name: f"{phase.steps:,}" for name, phase in found.phases.items()}
    budget = f"as many steps as fit in {minutes:g} minutes: about" if minutes is not None else ""
    real_images = {p.name: f" of {p.images:,} real images" if p.images else "" for p in phases}
    each = ", ".join(f"{name} {steps_of[name]}{text}" for name, text in real_images.items())
    shape = "x".join(map(str, real.image_shape))
    taken = found.memory_bytes
    peak = "use not told by this system" if taken is None else f"{size(taken)} of {found.memory_of} at most so far"
    outside = f", {size(found.outside_bytes)} outside it" if found.outside_bytes else ""
    output.facts(
        {
            "data": f"{real.name}: {len(real.train):,} images {shape} of {real.num_classes} classes",
            "method": method,
            "budget": f"{budget} {plan['steps']:,} steps ({each})".strip(),
            "generator": f"{plan['generator']['parameters']:,} parameters, {size(generator.nbytes)} stored",
            **({"beside": made.beside()} if made.beside() else {}),
            "time": f"about {output.duration(found.seconds)} on this machine ({_times(found.phases)})",
            "memory": f"{peak}; real images are {size(real.train.images.numel())}",
            "disk": f"{size(found.folder_bytes)} in {folder}, a checkpoint having {size(found.checkpoint_bytes)}"
            f"{outside}; {size(free)} free",
            "machine": ", ".join(f"{key} {value}" for key, value in plan["machine"].items()),
            "config": "\n".join(f"{key} = {value}" for key, value in plan["config"].items() if key != "recipe"),
        }
    )
    if free < found.folder_bytes + found.outside_bytes:
        output.note("hint: The disk has too little room; choose another folder (--out), or make some.")


def _times(phases: Mapping[str, PhaseEstimate]) -> str:
    """Return what each phase takes in a few words."""
    return "; ".join(
        f"{name} {output.duration(phase.seconds)}, {phase.seconds_per_step:.3g} s a step"
        + (f", {phase.ready:,} steps ready" if phase.ready else "")
        for name, phase in phases.items()
    )
