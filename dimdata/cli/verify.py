"""`dimdata verify`: is a generator what it says it is?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimdata.cli import against, options, output
from dimdata.errors import WORLD, ArgumentError, DimdataError, FormatError

if TYPE_CHECKING:
    from dimdata.claims import Training
    from dimdata.verify import Files, Trial


def run(
    name: options.Name,
    quick: Annotated[bool, typer.Option("--quick", help="Check the files alone, and train nothing.")] = False,
    budget: Annotated[
        int, typer.Option("--budget", metavar="IMAGES", help="Images that a student may see at most.")
    ] = 20_000,
    seeds: Annotated[int, typer.Option("--seeds", help="Students trained.")] = 1,
    real: options.RealOrHoldout = None,
    root: options.Root = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    compile: options.Compile = "auto",
    json: options.Json = False,
) -> None:
    """Check the files of a generator, and one score of its card.

    The files must have their digests and belong together. Then a student is trained as the largest score within
    --budget says, and tested on the real images that come with the generator, or on those of --real. Seeds and few
    test images leave an error, which is printed; a student that is below the score by more than three such errors
    refutes it. A student whose training had to be cut to the budget can confirm a score, and not refute it.

    The exit code is 0 where all agrees, 1 where a file or the score does not, and 2 where nothing could be decided.

    Example: dimdata verify dim-mnist
    """
    facts: dict[str, Any] = {"name": name, "ok": False}
    try:
        _verify(facts, quick, budget, seeds, (real, root), revision, (device, precision, compile), json)
    except DimdataError as error:
        if json:
            output.emit_json(facts | {"problem": error.message})
        raise
    if json:
        output.emit_json(facts | {"ok": True})


def _verify(
    facts: dict[str, Any],
    quick: bool,
    budget: int,
    seeds: int,
    tested_on: tuple[Any, Any],
    revision: str | None,
    compute: tuple[str, str, str],
    json: bool,
) -> None:
    """Fill `facts` and print them as they are found, unless they are printed as JSON at the end."""
    from dimdata.artifact import read_config
    from dimdata.claims import find_training
    from dimdata.engine import Engine, keep_freed_memory
    from dimdata.verify import require_triable, try_claim, verify_files

    engine = Engine.of(*compute)
    for option, value in (("--budget", budget), ("--seeds", seeds)):
        if value < 1 and not quick:
            raise ArgumentError(f"{option} is {value}.", "Give 1 or more, or check the files alone with --quick.")
    try:
        generator, files = verify_files(facts["name"], revision=revision)
    except FormatError as error:
        raise FormatError(error.message, error.hint, WORLD) from error
    facts["files"] = vars(files)
    if not json:
        output.facts(_files(files))
    if quick:
        return
    named, root = tested_on
    data = None if named in (None, against.HOLDOUT) else against.real_data(generator, named, root)
    training = find_training(generator, read_config(files.folder), budget, None if data is None else data.name)
    require_triable(files, training, data, seeds)
    output.note(_intent(training, seeds))
    keep_freed_memory()
    trial = try_claim(
        generator,
        files,
        training,
        real=data,
        seeds=seeds,
        engine=engine,
        on_student=lambda seed, accuracy: output.note(f"seed {seed}: {accuracy:.2f} %"),
    )
    facts["trial"] = trial.to_json()
    if not json:
        output.line()
        output.facts(_trial(trial))
    _judge(trial, files.name)


def _files(files: Files) -> dict[str, object]:
    shows = {
        "absent": "none here",
        "as drawn": "shows what the generator draws",
        "other": "is not the grid of `dimdata preview`; look at it yourself",
        "not compared": "was not compared, for the images are large",
    }
    return {
        "name": files.name,
        "folder": files.folder,
        **({"commit": files.revision} if files.revision else {}),
        "weights": f"{files.bytes:,} bytes, as config.json says: sha256 {files.sha256}",
        "config": "describes these weights",
        "hold-out": f"{files.holdout:,} real test images" if files.holdout else "none here",
        "preview": shows[files.preview],
    }


def _intent(training: Training, seeds: int) -> str:
    claim = training.claim
    students = "a student" if seeds == 1 else f"{seeds} students"
    cut = "" if training.full else f", cut from {claim.images_seen:,}"
    return (
        f"Training {students} ({claim.student}) on {training.images:,} images{cut}, for the claim at "
        f"{claim.budget_text}, {claim.draw} draw, protocol {claim.protocol}."
    )


def _trial(trial: Trial) -> dict[str, object]:
    from dimdata.report import percent

    claim = trial.claim
    made = f"{claim.student}, {claim.budget_text}, {claim.draw} draw, protocol {claim.protocol}"
    whole = "" if trial.full else f", of the {claim.images_seen:,} images of the claim"
    return {
        "claim": f"{percent(claim.mean, claim.std)} % ({made}, {_seeds(len(claim.seeds))}, {claim.test})",
        "found": f"{trial.mean:.2f} % ({_seeds(len(trial.seeds))} not among those, {trial.test})",
        "budget": f"{trial.images:,} images in {trial.steps:,} steps for each student{whole}",
        "tolerance": f"{trial.tolerance:.2f} points: 3 standard errors, of {trial.from_seeds:.2f} points from seeds "
        f"and {trial.from_test:.2f} from the choice of test images",
        **({} if trial.alike else {"recipe": "reads otherwise than that of the claim"}),
        "verdict": trial.verdict,
    }


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _judge(trial: Trial, name: str) -> None:
    """Raise unless the claim was confirmed."""
    claim = trial.claim
    below = f"{claim.mean - trial.mean:.2f} points below the {claim.mean:.2f} % that {name} claims"
    if trial.verdict == "refuted":
        raise DimdataError(
            f"The student is {below}, which is more than the {trial.tolerance:.2f} that chance explains.",
            "Try more --seeds, or do not rely on its scores.",
            WORLD,
        )
    if trial.verdict == "open":
        raise DimdataError(
            f"The student is {below}, but it was not trained as the claim says, so nothing is decided.",
            f"Use --budget {claim.images_seen}."
            if not trial.full
            else "The generator's recipe is not that of the claim.",
        )
