"""What do stages gain? Progressive distillation against its own base, at equal images and equal student steps.

    python tests/benchmarks/pdd_gain.py fashion-mnist --base dm --preset dm-fashion-mnist --ipc 10 --out gain.json
    python tests/benchmarks/pdd_gain.py fashion-mnist --base dim --preset dim-fashion-mnist --stages 3 --out gain.json
    python tests/benchmarks/pdd_gain.py cifar10 --base dd --preset dd-cifar10-lenet --stages 2 --each --out gain.json

For each seed the base is distilled once as it is and once in stages, in as many steps altogether; with --each, every
stage takes as many steps as the base, as published, and the seconds tell what that costs. Steps of fixed length, those
of MTT's experts, come on top: once for the base, and once for each stage. Seconds are those of the distillations, the
networks that are trained for later stages included.

Students are trained on the images of either in both ways: in one leg on all images, and in a walk, leg by leg on the
growing union of the stages (the base's images being shared out in their order; where they are unlimited, all legs draw
from all of them). So what the images gain is told from what the walk does. All four take as many steps; they do not
see as many images, since a leg on few images has small batches: both numbers are recorded. Where the steps themselves
are learned (`dd`), each is trained in its own way alone.

Settings are chosen by --validation, which distils without a tenth of the training images and scores on it; the test set
is for what was chosen. Finished runs and scores stay in the working folder, so a stopped call goes on.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

from dimdata import artifact
from dimdata.cells import with_epochs
from dimdata.distill.config import make_config, merge, parse_setting
from dimdata.distill.method import METHODS, Method
from dimdata.distill.run import distill
from dimdata.distill.staging import walk
from dimdata.engine import Engine, keep_freed_memory
from dimdata.evaluate import evaluate
from dimdata.files import write_atomic
from dimdata.generators.base import Generator
from dimdata.generators.table import TableGenerator
from dimdata.real import RealData, load_real, validation_split
from dimdata.recipe import Recipe
from dimdata.scores import Row, digest
from dimdata.spec import Record, Spec

WAYS = ("one_leg", "walked")
ARMS = ("single", "progressive")


def fixed_steps(kind: type[Method], config: Record, real: RealData) -> int:
    """Return the steps that a method takes whatever its budget; a stage takes as many as the whole."""
    method = kind(config, real, Engine.of(), 0, kind.default_steps(config))
    return sum(phase.steps for phase in method.phases() if phase.fixed)


def one_leg(single: Recipe, staged: Recipe) -> Recipe:
    """Return the recipe of the base on all stages at once, at the learning rate of the last stage."""
    (leg,) = single.legs
    return dataclasses.replace(staged, legs=(dataclasses.replace(leg, lr=staged.legs[-1].lr),))


def walked(single: Generator, stages: int, last_share: float | None) -> Generator:
    """Return what the base made as if in stages, with the recipe that walks them."""
    if not isinstance(single, TableGenerator):
        recipe = walk([single.recipe] * stages, [None] * stages, last_share)
        single.recipe = dataclasses.replace(
            recipe, legs=tuple(dataclasses.replace(leg, stage=None) for leg in recipe.legs)
        )
        return single
    rows = [(single.images or 0) // stages] * stages
    spec = single.spec.to_json()
    spec["options"] = spec["options"] | {"stages": rows}
    recipe = walk([single.recipe] * stages, rows, last_share)
    made = TableGenerator(Spec.from_json(spec), recipe, single.recipe_tensors)
    return made.restore(single.stored())


def mean(values: list[float]) -> float:
    return round(statistics.mean(values), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--root")
    parser.add_argument("--base", default="dm")
    parser.add_argument("--preset", default="", help="of the base")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="a setting of the base, both arms")
    parser.add_argument("--pdd", action="append", default=[], help="a setting of progressive distillation")
    parser.add_argument("--stages", type=int, default=5)
    parser.add_argument("--ipc", type=int, default=10, help="of a table: stored; of a network: an epoch's")
    parser.add_argument("--steps", type=int, help="of a whole distillation, but for those of fixed length")
    parser.add_argument("--each", action="store_true", help="give every stage as many steps as the base")
    parser.add_argument("--epochs", type=int, help="of a student under a fresh draw")
    parser.add_argument("--student", help="[default: the one that the recipe was made for, or convnet3]")
    parser.add_argument("--students", type=int, default=1, help="trained on each generator in each way")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--validation", action="store_true", help="score on held-out training images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/pdd-gain"))
    arguments = parser.parse_args()
    keep_freed_memory()
    real = load_real(arguments.data, root=arguments.root)
    if arguments.validation:
        real = validation_split(real)
    scored_on = "validation" if arguments.validation else "test"
    settings, staged = {}, {}
    for text in arguments.settings:
        settings = merge(settings, parse_setting(text))
    for text in arguments.pdd:
        staged = merge(staged, parse_setting(text))
    kind = METHODS[arguments.base]
    if hasattr(kind.Config(), "ipc"):
        settings["ipc"] = arguments.ipc
    config = make_config(kind.Config, arguments.preset or None, settings)
    fixed = fixed_steps(kind, config, real)
    steps = arguments.steps or kind.default_steps(config) - fixed
    progressive = merge(
        {"base": arguments.base, "stages": arguments.stages, "preset": arguments.preset, "settings": settings}, staged
    )
    if progressive["stages"] != arguments.stages:
        parser.error("the stages are set by --stages")
    in_all = steps * (arguments.stages if arguments.each else 1) + fixed * arguments.stages
    kind_of_stages = METHODS["pdd"]
    # What stages refuse is told before the base is distilled.
    kind_of_stages(make_config(kind_of_stages.Config, None, progressive), real, Engine.of(), 0, in_all)

    def made(name: str, method: str, values: dict, steps: int, seed: int) -> Path:
        """Return the folder of a finished run."""
        of = digest([method, values, steps, scored_on])[:8]  # another setting, or other images, are another run
        run = arguments.work / f"{real.name}-{arguments.base}-ipc{arguments.ipc}-{name}-{of}-{seed}"
        if not (run / "generator").exists():
            start = time.perf_counter()
            resumed = (run / "run.json").exists()
            distill(real, out=run, method=method, settings=values, steps=steps, seed=seed, resume=resumed)
            if not resumed:
                write_atomic(run / "seconds.json", json.dumps(time.perf_counter() - start).encode())
        return run

    def score(generator: Generator, recipe: Recipe, run: Path, seed: int) -> dict:
        """Return how students of a recipe fare."""
        unlimited = generator.images is None
        if unlimited and arguments.epochs:
            recipe = with_epochs(recipe, arguments.epochs)
        rows: list[Row] = []
        evaluate(
            generator,
            ipc=arguments.ipc if unlimited else None,
            recipe=recipe,
            students=arguments.student,
            seeds=range(seed * arguments.students, (seed + 1) * arguments.students),
            real=real,
            baselines=(),
            output=run / "scores.jsonl",
            on_row=rows.append,
        )
        return {
            "accuracy": mean([row.accuracy for row in rows]),
            "accuracies": [row.accuracy for row in rows],
            "after_each_stage": [mean(list(each)) for each in zip(*(row.stages for row in rows), strict=True)],
            "student_steps": rows[0].steps,
            "images_seen": rows[0].images_seen,
            "images": generator.images,
        }

    def arm(run: Path, generator: Generator, recipes: dict[str, tuple[Generator, Recipe]], seed: int) -> dict:
        seconds = run / "seconds.json"
        taken = round(json.loads(seconds.read_text()), 1) if seconds.exists() else None
        found = {way: score(*plan, run, seed) for way, plan in recipes.items()}
        return found | {"images": generator.images, "seconds": taken}

    rows = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        alone = made("single", arguments.base, config.to_json(), steps + fixed, seed)
        whole = made(f"{arguments.stages}-stages", "pdd", progressive, in_all, seed)
        base, stages = (artifact.load(run / "generator") for run in (alone, whole))
        recipe = base.recipe
        plans: dict[str, tuple[Path, dict[str, tuple[Generator, Recipe]]]] = {
            "single": (alone, {"one_leg": (base, recipe)}),
            "progressive": (whole, {"walked": (stages, stages.recipe)}),
        }
        if not recipe.learned_steps:
            as_if = walked(artifact.load(alone / "generator"), arguments.stages, progressive.get("last_share"))
            plans["single"][1]["walked"] = (as_if, as_if.recipe)
            plans["progressive"][1]["one_leg"] = (stages, one_leg(recipe, stages.recipe))
        row = {"seed": seed} | {name: arm(run, base, recipes, seed) for name, (run, recipes) in plans.items()}
        ways = {name: tuple(plans[name][1]) for name in ARMS}
        alike = {(row[name][way]["student_steps"], row[name][way]["images"]) for name in ARMS for way in ways[name]}
        if len(alike) > 1:
            raise SystemExit(f"Not all are trained alike: {row}.")
        rows.append(row)
        print(json.dumps(row), flush=True)
        gains = {
            way: [row["progressive"][way]["accuracy"] - row["single"][way]["accuracy"] for row in rows]
            for way in WAYS
            if all(way in ways[name] for name in ARMS)
        }
        walks = {
            name: [row[name]["walked"]["accuracy"] - row[name]["one_leg"]["accuracy"] for row in rows]
            for name in ARMS
            if len(ways[name]) > 1
        }
        both = [row["progressive"]["walked"]["accuracy"] - row["single"]["one_leg"]["accuracy"] for row in rows]
        summary = {
            "dataset": real.name,
            "scored_on": scored_on,
            "base": arguments.base,
            "ipc": arguments.ipc,
            "stages": arguments.stages,
            "steps": steps,
            "steps_in_stages": in_all - fixed * arguments.stages,
            "seconds": {name: [row[name]["seconds"] for row in rows] for name in ARMS},
            "fixed_steps": fixed,
            "student": arguments.student or recipe.student,
            "students": arguments.students,
            "accuracy": {
                name: {way: mean([row[name][way]["accuracy"] for row in rows]) for way in ways[name]} for name in ARMS
            },
            "images_seen": {name: {way: rows[0][name][way]["images_seen"] for way in ways[name]} for name in ARMS},
            "gain": mean(both),
            "std": round(statistics.stdev(both), 2) if len(both) > 1 else None,
            "gain_of_images": {way: mean(values) for way, values in gains.items()},
            "gain_of_walk": {name: mean(values) for name, values in walks.items()},
            "seeds": len(rows),
            "rows": rows,
            "settings": {"base": config.to_json(), "pdd": progressive},
            "machine": Engine.of().describe(),
        }
        write_atomic(arguments.out, (json.dumps(summary, indent=1) + "\n").encode())
    shown = (
        "scored_on",
        "accuracy",
        "images_seen",
        "seconds",
        "gain",
        "std",
        "gain_of_images",
        "gain_of_walk",
        "seeds",
    )
    print(json.dumps({key: summary[key] for key in shown}, indent=1))


if __name__ == "__main__":
    main()
