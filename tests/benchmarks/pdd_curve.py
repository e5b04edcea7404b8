"""Larger sets: accuracy over the number of stages, at fixed images a stage, against one stage of equal total.

    python tests/benchmarks/pdd_curve.py fashion-mnist --preset dm-fashion-mnist --per-stage 10 --out curve.json
    python tests/benchmarks/pdd_curve.py cifar10 --base dd --amount inner_steps --per-stage 2 --each --out curve.json

One progressive run of all stages gives every shorter one, for its first k stages are what a run of k stages makes. The
base is distilled anew for each total, in as many steps as the stages took together, or with --each in those of one
stage, which fits `dd`: there a step on all images at once costs as much as one in every stage. Steps of fixed length,
those of MTT's experts, come on top, once for each distillation and each stage. Where a base's learning rate in a stage
depends on how many there are (DM's), that of the single stages is such that k stages of it would be the first k of the
run. Students take as many steps on k stages as on the one of equal total, each stage by what was learned with it.

Settings are chosen by --validation, which distils without a tenth of the training images and scores on it. Finished
runs and scores stay in the working folder, so a stopped call goes on; a plot lies beside the results where matplotlib
is installed.
"""

import argparse
import dataclasses
import importlib.util
import json
import statistics
from pathlib import Path

from pdd_gain import fixed_steps

from dimdata import artifact
from dimdata.distill.config import make_config, merge, parse_setting
from dimdata.distill.method import METHODS
from dimdata.distill.run import distill
from dimdata.distill.staging import walk
from dimdata.engine import Engine, keep_freed_memory
from dimdata.evaluate import evaluate
from dimdata.files import write_atomic
from dimdata.generators.base import Generator
from dimdata.generators.table import TableGenerator
from dimdata.real import load_real, validation_split
from dimdata.recipe import Leg
from dimdata.scores import Score, digest


def first_stages(whole: TableGenerator, count: int, leg: Leg) -> Generator:
    """Return the first stages, with the recipe that a run of so many makes: `leg`, at what each stage has learned."""
    part = whole.view(stage=count)
    assert isinstance(part, TableGenerator)
    if whole.recipe.learned_steps:
        return part
    alone = [dataclasses.replace(whole.recipe, legs=(dataclasses.replace(leg, lr=own.lr),)) for own in part.recipe.legs]
    part.recipe = walk(alone, whole.config.stages[:count])
    return part


def draw(points: list[dict], scored_on: str, path: Path) -> None:
    """Plot mean accuracies of both kinds over images per class."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, label in (("progressive", "in stages"), ("single", "one stage of equal total")):
        shown = [point for point in points if point[name]]
        x = [point["images"] for point in shown]
        y = [statistics.mean(point[name]) for point in shown]
        error = [statistics.stdev(point[name]) if len(point[name]) > 1 else 0 for point in shown]
        axes.errorbar(x, y, error, marker="o", capsize=3, label=label)
    axes.set_xlabel("distilled images")
    axes.set_ylabel(f"{scored_on} accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--root")
    parser.add_argument("--base", default="dm", help="a method that learns tables")
    parser.add_argument("--preset", default="", help="of the base")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="a setting of the base")
    parser.add_argument("--pdd", action="append", default=[], help="a setting of progressive distillation")
    parser.add_argument("--per-stage", type=int, default=10, help="of a stage: images per class, or `--amount`")
    parser.add_argument("--amount", default="ipc", help="the base's setting that says how many there are in all")
    parser.add_argument("--stages", type=int, default=10)
    parser.add_argument("--points", help="numbers of stages to score, such as 1,2,5,10 [default: all]")
    parser.add_argument("--steps", type=int, default=1000, help="of a stage, but for those of fixed length")
    parser.add_argument("--each", action="store_true", help="give the base the steps of one stage, whatever the total")
    parser.add_argument("--student", help="[default: the one that the recipe was made for, or convnet3]")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--validation", action="store_true", help="score on held-out training images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/pdd-curve"))
    arguments = parser.parse_args()
    keep_freed_memory()
    real = load_real(arguments.data, root=arguments.root)
    if arguments.validation:
        real = validation_split(real)
    scored_on = "validation" if arguments.validation else "test"
    settings: dict = {}
    staged: dict = {}
    for text in arguments.settings:
        settings = merge(settings, parse_setting(text))
    for text in arguments.pdd:
        staged = merge(staged, parse_setting(text))
    wanted = [int(word) for word in arguments.points.split(",")] if arguments.points else None
    counts = wanted or list(range(1, arguments.stages + 1))
    kind = METHODS[arguments.base]
    one = make_config(kind.Config, arguments.preset or None, settings | {arguments.amount: arguments.per_stage})
    fixed = fixed_steps(kind, one, real)
    total = make_config(kind.Config, one, {arguments.amount: arguments.stages * arguments.per_stage})
    stage_lr = kind.for_stages(total, arguments.stages).lr

    def run(name: str, method: str, values: dict, steps: int, seed: int) -> Path:
        of = digest([method, values, steps, scored_on])[:8]  # another setting, or other images, are another run
        out = arguments.work / f"{real.name}-{arguments.base}-{arguments.per_stage}-{name}-{of}-{seed}"
        if not (out / "generator").exists():
            resume = (out / "run.json").exists()
            distill(real, out=out, method=method, settings=values, steps=steps, seed=seed, resume=resume)
        return out

    def score(generator: Generator, out: Path, seed: int) -> Score:
        (result,) = evaluate(
            generator,
            students=arguments.student,
            seeds=[seed],
            real=real,
            baselines=(),
            output=out / "scores.jsonl",
        )
        return result

    points: list[dict] = [{"stages": k, "images": 0, "progressive": [], "single": []} for k in counts]
    for seed in range(arguments.seeds):
        stages = {
            "base": arguments.base,
            "stages": arguments.stages,
            "preset": arguments.preset,
            "settings": settings | {arguments.amount: arguments.stages * arguments.per_stage},
        }
        stages = merge(stages, staged)
        if stages["stages"] != arguments.stages:
            parser.error("the stages are set by --stages")
        out = run(f"{arguments.stages}-stages", "pdd", stages, (arguments.steps + fixed) * arguments.stages, seed)
        whole = artifact.load(out / "generator")
        if not isinstance(whole, TableGenerator):
            raise SystemExit(f"The stages of {arguments.base} are no tables.")
        for point in points:
            k = point["stages"]
            config = make_config(
                kind.Config, arguments.preset or None, settings | {arguments.amount: k * arguments.per_stage}
            )
            config = dataclasses.replace(config, lr=config.lr * stage_lr / kind.for_stages(config, k).lr)
            alone = run(
                f"single-{k}",
                arguments.base,
                config.to_json(),
                arguments.steps * (1 if arguments.each else k) + fixed,
                seed,
            )
            in_stages = score(first_stages(whole, k, artifact.load(alone / "generator").recipe.legs[0]), out, seed)
            point["images"] = whole.view(stage=k).images
            scores = in_stages, score(artifact.load(alone / "generator"), alone, seed)
            if len({(each.steps, each.images) for each in scores}) > 1:
                raise SystemExit(f"The two are not trained alike: {scores}.")
            for name, each in zip(("progressive", "single"), scores, strict=True):
                point[name].append(each.mean)
            point["student_steps"] = scores[0].steps
            print(json.dumps({"seed": seed, **point}), flush=True)
            summary = {
                "dataset": real.name,
                "scored_on": scored_on,
                "base": arguments.base,
                "per_stage": arguments.per_stage,
                "steps_per_stage": arguments.steps,
                "steps_of_single": "those of one stage" if arguments.each else "as many as the stages together",
                "fixed_steps": fixed,
                "student": arguments.student or whole.recipe.student,
                "points": points,
                "settings": stages,
                "machine": Engine.of().describe(),
            }
            write_atomic(arguments.out, (json.dumps(summary, indent=1) + "\n").encode())
    if importlib.util.find_spec("matplotlib"):
        draw(points, scored_on, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
