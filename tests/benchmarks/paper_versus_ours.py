"""The published recipe of DiM against a preset of ours: real images per second, and accuracy after equal time.

    python tests/benchmarks/paper_versus_ours.py mnist --ours dim-mnist --minutes 30 --out versus.json
    python tests/benchmarks/paper_versus_ours.py digits --toy --minutes 0.5 --marks 3 --out toy.json   # a minute or two

On one machine, one after the other, each configuration is distilled for `--minutes` of training (its own schedule
fitted to that time, as `dimdata distill --minutes` does). The generator is kept at `--marks` equal marks of that time,
and a student is trained on each and scored on the test set: the curves, drawn beside the report as a PNG.

The rate counts the real images of the batches that the generator itself is updated with, not those that networks of
the pool are trained on. The target is a rate at least 20 times the published recipe's, at an accuracy not lower at the
last mark; the exit code is 1 where it is missed (never with --toy). Everything finished is kept in the working folder,
so that a stopped call goes on; one with other settings is refused there.
"""

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch

from dimdata import artifact
from dimdata.distill.config import make_config, merge, parse_setting
from dimdata.distill.dim import DiM, DimConfig
from dimdata.distill.plan import Plan, compare
from dimdata.distill.run import Run, compiling
from dimdata.engine import Engine, keep_freed_memory
from dimdata.errors import INTERRUPTED, DimdataError, RunError
from dimdata.evaluate import evaluate
from dimdata.files import write_atomic
from dimdata.real import RealData, load_real
from dimdata.students.compiling import room_for_shapes

TARGET = 20.0

TOY: dict[str, dict[str, Any]] = {
    "ours": {"network": {"width": 16, "mid": 16, "stem": 8}, "critic": 8, "pool": ["convnet1-w8"]},
    "paper": {
        "network": {"width": 24},
        "critic": 24,
        "pool": ["convnet1-w8", "resnet10-w16"],
        "pool_batches": 4,
        "batch_size": 32,
        "match_batch_size": 32,
    },
}


class Side:
    """One configuration in its folder: its run, its generators at the marks, its scores."""

    def __init__(self, name: str, preset: str, settings: dict[str, Any], real: RealData, work: Path) -> None:
        self.name, self.preset, self.settings, self.real = name, preset, settings, real
        self.folder = work / name
        config = make_config(DimConfig, preset, settings)
        assert isinstance(config, DimConfig)
        self.config = config

    def distill(self, minutes: float, marks: int, engine: Engine) -> None:
        """Train until the last mark, keeping the generator at each."""
        path = self.folder / "run.json"
        old = Plan.from_json(json.loads(path.read_text())) if path.is_file() else None
        asked = Plan(
            method="dim",
            data=self.real.name,
            fingerprint=self.real.fingerprint,
            config=self.config.to_json(),
            seed=0,
            steps=DiM.budget(self.config, self.real),
            minutes=minutes,
        )
        self._refuse_another(old, asked, marks)
        wanted = [(k, minutes * 60 * k / marks) for k in range(1, marks + 1) if not self.mark(k).exists()]
        if not wanted:
            return
        plan = old or asked
        method = DiM(self.config, self.real, engine, 0, plan.steps)

        def progress(event: dict[str, Any]) -> None:
            if "note" in event:
                print(event["note"], file=sys.stderr, flush=True)
                return
            while wanted and event["seconds"] >= wanted[0][1]:
                number, _ = wanted.pop(0)
                facts = {"seconds": event["seconds"], "step": event["step"]}
                artifact.save(method.generator(), self.mark(number), provenance=facts)
            if not wanted:
                run.stop = True
            print(
                f"{self.name}: {event['phase']} step {event['step']} of {event['steps']}, {event['seconds']:.0f} s",
                file=sys.stderr,
                flush=True,
            )

        run = Run(self.folder, plan, method, progress, "")
        done = run.restore() if old else 0
        if engine.compiled:
            torch.compiler.reset()  # the other side has used up what is compiled of a function at most
        with room_for_shapes(engine):
            if not old:
                run.plan_minutes(minutes, 0)
            try:
                run.go(done)
            except RunError as error:
                if error.exit_code != INTERRUPTED or wanted:
                    raise
        for number, _ in wanted:  # the schedule ended before the time did
            artifact.save(method.generator(), self.mark(number), provenance={"seconds": run.seconds})

    def _refuse_another(self, old: Plan | None, asked: Plan, marks: int) -> None:
        """Raise `RunError` if the folder holds a run of other data, settings, minutes or marks; else note the marks."""
        path = self.folder / "marks.json"
        times = {"minutes": asked.minutes, "marks": marks}
        if old is None and not self.mark(1).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(times).encode())
            return
        kept = json.loads(path.read_text()) if path.is_file() else None
        if old is None or kept != times:
            was = "unknown settings" if kept is None else f"--minutes {kept['minutes']:g} --marks {kept['marks']}"
            raise RunError(f"{self.folder} holds a run of {was}.", "Choose another folder with --work.")
        try:
            compare(old, asked)
        except RunError as error:
            raise RunError(f"{self.folder}: {error.message}", "Choose another folder with --work.") from None

    def mark(self, number: int) -> Path:
        return self.folder / "marks" / str(number)

    def pool_note(self) -> str:
        """Say so where the pool was a single family: one network at a time, and fewer turns than it lives; else ''."""
        if self.config.pool_policy != "fresh" or len(self.config.pool) < 2:
            return ""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        ends = {event["phase"]: event["step"] for event in lines}
        turns = ends.get("match", 0) - ends.get("gan", 0) if "match" in ends else 0
        size = self.config.match_batch_size or self.config.batch_size
        life = self.config.pool_age or max(1, len(self.real.train) // size)
        if turns > life:
            return ""
        return (
            f"{self.name}: {turns:,} steps of matching, no more than the {life:,} that a network of the pool lives: "
            f"of its {len(self.config.pool)} families {'one' if turns else 'none'} was seen."
        )

    def rates(self) -> dict[str, float]:
        """Real images of the generator's own batches per second, by phase and over the run."""
        sizes = {"gan": self.config.batch_size, "match": self.config.match_batch_size or self.config.batch_size}
        images: dict[str, float] = dict.fromkeys(sizes, 0.0)
        seconds: dict[str, float] = dict.fromkeys(sizes, 0.0)
        step, clock = 0, 0.0
        for line in (self.folder / "metrics.jsonl").read_text().splitlines():
            event = json.loads(line)
            images[event["phase"]] += (event["step"] - step) * sizes[event["phase"]]
            seconds[event["phase"]] += event["seconds"] - clock
            step, clock = event["step"], event["seconds"]
        rates = {name: images[name] / seconds[name] for name in sizes if seconds[name]}
        return {**rates, "whole": sum(images.values()) / sum(seconds.values())}

    def score(self, marks: int, arguments: argparse.Namespace, engine: Engine) -> list[dict[str, float]]:
        """Train and score a student on the generator of each mark."""
        curve = []
        for number in range(1, marks + 1):
            (result,) = evaluate(
                self.mark(number),
                ipc=arguments.ipc,
                epochs=arguments.epochs,
                students=arguments.student,
                seeds=arguments.seeds,
                recipe=self.recipe(arguments.recipe),
                real=self.real,
                baselines=(),
                engine=engine,
                output=self.folder / "scores.jsonl",
            )
            minutes = round(arguments.minutes * number / marks, 2)
            trained = artifact.read_config(self.mark(number)).provenance["seconds"] / 60  # less: the schedule was over
            curve.append(
                {
                    "minutes": minutes,
                    "trained_minutes": round(trained, 2),
                    "accuracy": result.mean,
                    "deviation": result.std or 0.0,
                }
            )
            print(f"{self.name} after {minutes:g} minutes: {result.mean:.2f}", file=sys.stderr, flush=True)
        return curve

    def recipe(self, preset: str) -> Any:
        """One recipe for both sides, so that generators are compared and not recipes."""
        config = make_config(DimConfig, preset)
        assert isinstance(config, DimConfig)
        return config.recipe


def draw(report: dict[str, Any], path: Path) -> None:
    """Plot the curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, side in report["sides"].items():
        curve = side["curve"]
        label = f"{name}: {side['preset']}, {side['real_images_per_second']['whole']:,.1f} real images/s"
        axes.errorbar(
            [point["minutes"] for point in curve],
            [point["accuracy"] for point in curve],
            [point["deviation"] for point in curve],
            marker="o",
            capsize=3,
            label=label,
        )
    axes.set_xlim(left=0)
    axes.set_xlabel("minutes of distillation")
    axes.set_ylabel(f"accuracy of {report['student']} on real test images (%)")
    axes.set_title(f"{report['data']}: {report['images']:,} generated images a student")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--root")
    parser.add_argument("--ours", help="our preset [default: dim-DATA]")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="a setting of ours, NAME=VALUE")
    parser.add_argument("--recipe", help="preset whose recipe trains the students of both [default: ours]")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--marks", type=int, default=6)
    parser.add_argument("--student", default="convnet3")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--epochs", type=int, help="[default: 1000, or 40 with --toy]")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--toy", action="store_true", help="narrow networks: a proof of the program, not a measurement")
    parser.add_argument("--work", type=Path, default=Path("runs/paper-versus-ours"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    keep_freed_memory()
    arguments.epochs = arguments.epochs or (40 if arguments.toy else 1000)
    engine = Engine.of(arguments.device, arguments.precision, compiling(arguments.compile, arguments.minutes, 0))
    real = load_real(arguments.data, root=arguments.root)
    ours = arguments.ours or ("dim-mnist" if arguments.toy else f"dim-{real.name}")
    arguments.recipe = arguments.recipe or ours
    settings = copy.deepcopy(TOY) if arguments.toy else {"ours": {}, "paper": {}}
    for text in arguments.settings:
        settings["ours"] = merge(settings["ours"], parse_setting(text))
    sides = [
        Side(name, preset, settings[name], real, arguments.work)
        for name, preset in (("ours", ours), ("paper", "paper"))
    ]
    for side in sides:
        side.distill(arguments.minutes, arguments.marks, engine)
    found = {
        side.name: {
            "preset": side.preset,
            "settings": side.settings,
            "real_images_per_second": side.rates(),
            "curve": side.score(arguments.marks, arguments, engine),
        }
        for side in sides
    }
    ratio = found["ours"]["real_images_per_second"]["whole"] / found["paper"]["real_images_per_second"]["whole"]
    last = {name: side["curve"][-1]["accuracy"] for name, side in found.items()}
    met = ratio >= TARGET and last["ours"] >= last["paper"]
    report = {
        "data": real.name,
        "student": arguments.student,
        "recipe": arguments.recipe,
        "images": arguments.ipc * real.num_classes * arguments.epochs,
        "seeds": arguments.seeds,
        "minutes": arguments.minutes,
        "toy": arguments.toy,
        "sides": found,
        "notes": [note for side in sides if (note := side.pool_note())],
        "ratio_of_rates": round(ratio, 2),
        "target": TARGET,
        "met": met,
        "machine": engine.describe(),
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    draw(report, arguments.out.with_suffix(".png"))
    print(f"rate: {ratio:.1f} times the published recipe's (target {TARGET:g})")
    print(f"accuracy after {arguments.minutes:g} minutes: ours {last['ours']:.2f}, published {last['paper']:.2f}")
    for note in report["notes"]:
        print(note)
    sys.exit(0 if met or arguments.toy else 1)


if __name__ == "__main__":
    try:
        main()
    except DimdataError as error:
        sys.exit(str(error))
