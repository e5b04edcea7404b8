"""Two forms of a progressive generator: a whole network a stage, or one network with a code for each stage.

    python tests/benchmarks/pdd_forms.py mnist --preset dim-mnist --steps 20000 --out forms.json
    python tests/benchmarks/pdd_forms.py fashion-mnist --preset dim-fashion-mnist --stages 3 --seeds 2 --out forms.json

For each seed every form is distilled in as many steps, and by the same settings of the base; `single` is the base
without stages. A student walks the stages of each in as many steps as it takes on `single`, and is scored on the test
set after each stage, or with --validation on a tenth of the training images, of which none is distilled. The table
shows means over seeds, and the bytes of every prefix. Finished runs and scores stay in the working folder, and a
stopped run goes on from its checkpoint, so the same command goes on where it was stopped.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

from dimdata import artifact
from dimdata.distill.config import make_config, merge, parse_setting
from dimdata.distill.method import METHODS
from dimdata.distill.run import distill
from dimdata.engine import Engine, keep_freed_memory
from dimdata.evaluate import evaluate
from dimdata.files import write_atomic
from dimdata.plots import stage_plot
from dimdata.real import load_real, validation_split
from dimdata.report import markdown_table, percent, size
from dimdata.scores import Row, digest
from dimdata.stages import Walk, walks

FORMS: dict[str, dict[str, Any]] = {
    "networks": {},
    "code": {"settings": {"network": {"name": "subpixel-coded"}}},
}
SINGLE = "single"
SECONDS = "seconds.json"


def spent(run: Path, more: float = 0.0) -> float:
    """Return the seconds that a distillation took so far, over all calls, after `more` are added to them."""
    path = run / SECONDS
    total = (json.loads(path.read_text()) if path.exists() else 0.0) + more
    if more:
        write_atomic(path, json.dumps(round(total, 1)).encode())
    return total


def table(made: dict[str, list[tuple[int, Row, float]]], stages: int) -> str:
    """Return mean accuracies after each stage, bytes and costs, a line for each form, in markdown."""
    header = [
        "form",
        *(f"after stage {k}" for k in range(1, stages + 1)),
        "stored",
        "seeds",
        "student steps",
        "minutes",
    ]
    lines = []
    for form, rows in made.items():
        if not rows:
            continue
        (walk,) = walks(_alike([row for _, row, _ in rows]))
        cells = [
            f"{percent(mean, std)} ({size(stored)})"
            for mean, std, stored in zip(walk.means, walk.stds, walk.stored, strict=True)
        ]
        minutes = sum(seconds for _, _, seconds in rows) / len(rows) / 60
        lines.append(
            [
                form,
                *([""] * (stages - len(cells))),
                *cells,
                size(walk.stored[-1]),
                str(len(rows)),
                f"{walk.steps[-1]:,}",
                f"{minutes:.1f}",
            ]
        )
    return markdown_table(header, lines)


def _alike(rows: list[Row]) -> list[Row]:
    """Return rows of several seeds of a form as if they were of one generator; one leg counts as one stage."""
    first = rows[0].to_json()
    same = {key: first[key] for key in ("source", "budget", "name")}
    return [
        Row.from_json(
            row.to_json()
            | same
            | {
                "stages": row.stages or (row.accuracy,),
                "stage_steps": row.stage_steps or (row.steps,),
                "stage_bytes": row.stage_bytes or (row.stored_bytes,),
            }
        )
        for row in rows
    ]


def _named(form: str, rows: list[tuple[int, Row, float]]) -> Walk:
    """Return the walk of a form under the form's name."""
    (walk,) = walks(_alike([row for _, row, _ in rows]))
    return dataclasses.replace(walk, name=form)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--root")
    parser.add_argument("--preset", default="", help="of the base, dim")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="a setting of the base")
    parser.add_argument("--pdd", action="append", default=[], help="a setting of progressive distillation, both forms")
    parser.add_argument("--code", action="append", default=[], help="the same, of the form `code` alone")
    parser.add_argument("--forms", default=",".join((SINGLE, *FORMS)))
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--ipc", type=int, default=10, help="of an epoch of a student")
    parser.add_argument("--steps", type=int, help="of a whole distillation")
    parser.add_argument("--epochs", type=int, help="of a student, instead of the recipe's")
    parser.add_argument("--student", default="convnet3")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--validation", action="store_true", help="score on held-out training images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/pdd-forms"))
    arguments = parser.parse_args()
    forms = arguments.forms.split(",")
    if set(forms) - {SINGLE, *FORMS}:
        parser.error(f"--forms names {arguments.forms}; there are {', '.join((SINGLE, *FORMS))}")
    keep_freed_memory()
    real = load_real(arguments.data, root=arguments.root)
    if arguments.validation:
        real = validation_split(real)
    scored_on = "validation" if arguments.validation else "test"
    settings, staged, coded = ({} for _ in range(3))
    for texts, into in ((arguments.settings, settings), (arguments.pdd, staged), (arguments.code, coded)):
        for text in texts:
            into.update(merge(into, parse_setting(text)))
    base = METHODS["dim"]
    config = make_config(base.Config, arguments.preset or None, settings)
    steps = arguments.steps or base.default_steps(config)
    common = {"base": "dim", "stages": arguments.stages, "preset": arguments.preset, "settings": settings}
    plans = {SINGLE: ("dim", config.to_json())}
    for form, change in FORMS.items():
        own = merge(merge(common, staged), change)
        plans[form] = ("pdd", merge(own, coded) if form == "code" else own)

    def score(form: str, seed: int) -> tuple[Row, float]:
        method, values = plans[form]
        of = digest([method, values, steps, scored_on])[:8]  # another setting, or other images, are another run
        run = arguments.work / f"{real.name}-{form}-{of}-{seed}"
        if not (run / "generator").exists():
            resume = (run / "run.json").exists()
            start = time.perf_counter()
            try:
                distill(real, out=run, method=method, settings=values, steps=steps, seed=seed, resume=resume)
            finally:
                if run.exists():
                    spent(run, time.perf_counter() - start)
        rows: list[Row] = []
        evaluate(
            artifact.load(run / "generator"),
            ipc=arguments.ipc,
            epochs=arguments.epochs,
            students=arguments.student,
            seeds=[seed],
            real=real,
            baselines=(),
            output=run / "scores.jsonl",
            on_row=rows.append,
        )
        return rows[0], spent(run)

    made: dict[str, list[tuple[int, Row, float]]] = {form: [] for form in forms}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for form in forms:
            row, seconds = score(form, seed)
            made[form].append((seed, row, seconds))
            print(json.dumps({"form": form, "seed": seed, "accuracy": row.accuracy, "stages": row.stages}), flush=True)
            text = table(made, arguments.stages)
            summary = {
                "dataset": real.name,
                "scored_on": scored_on,
                "stages": arguments.stages,
                "ipc": arguments.ipc,
                "steps": steps,
                "student": arguments.student,
                "table": text.split("\n"),
                "rows": {
                    form: [{**row.to_json(), "distilled_seconds": s} for _, row, s in made[form]] for form in made
                },
                "settings": {form: plans[form] for form in forms},
                "machine": {**Engine.of().describe(), "cores": os.cpu_count()},
            }
            write_atomic(arguments.out, (json.dumps(summary, indent=1) + "\n").encode())
        if len({row.steps for rows in made.values() for _, row, _ in rows}) > 1:
            raise SystemExit("The students of the forms took different numbers of steps.")
    print(text)
    if importlib.util.find_spec("matplotlib"):
        stage_plot([_named(form, rows) for form, rows in made.items()], arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
