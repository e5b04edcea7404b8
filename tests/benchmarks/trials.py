"""What benchmarks share that distil variants of one configuration of DiM for equal time and score them.

A trial is a variant, a budget and a seed. Its generator is distilled from nine tenths of the training images, and a
student trained on it is scored on the tenth set aside, so that choices never look at the test images. A finished trial
is a row of JSON; a stopped call goes on where it was, in the middle of a distillation too.

The budget is processor time on a CPU (`--clock wall` counts elapsed time), so that variants stay comparable while other
programs run: seconds a step are measured first, and as many steps are taken as fit. Measuring and compiling are no
part of the budget. A distillation that fails is a row without an accuracy, and the others go on.

All trials begin calmly (`--set`), otherwise than the commands of the bundled generators: without it some seeds, and
some networks, fail in their first steps, and one of these outweighs every effect.
"""

import argparse
import dataclasses
import json
import math
import statistics
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dimdata import artifact, latents
from dimdata.distill.config import make_config, merge, parse_setting
from dimdata.distill.dim import DiM, DimConfig, spec_of
from dimdata.distill.method import Phase
from dimdata.distill.run import distill
from dimdata.engine import Engine, keep_freed_memory
from dimdata.errors import INTERRUPTED, RunError
from dimdata.evaluate import evaluate
from dimdata.files import write_atomic
from dimdata.generators.base import Generator
from dimdata.generators.cost import Cost, cost
from dimdata.real import RealData, load_real, validation_split
from dimdata.report import markdown_table, percent
from dimdata.scores import digest
from dimdata.students.compiling import room_for_shapes

WARM_UP_STEPS = 3
TIMED_STEPS = 24
TIMED_SECONDS = 3.0  # at least; a device that was idle is not at its full clock at once
CALM = ("start=varied", "calm=500")
PLANNED_STEPS = 10_000  # of which the phases are shares, while their seconds a step are measured
DRAWN_AT_ONCE = {"cuda": 8192}  # enough to hide the cost of launching
DRAWN_AT_ONCE_ELSEWHERE = 256

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One variant, distilled once.

    Attributes:
        name: Of the variant.
        axis: The question it belongs to.
        settings: What it changes; a `network` with a name replaces the whole network.
        minutes: Of distillation.
        seed: Of distillation and student.
    """

    name: str
    axis: str
    settings: Mapping[str, Any]
    minutes: float
    seed: int


def options(description: str | None, minutes: float = 8.0) -> argparse.ArgumentParser:
    """Return a parser of the options that all of these benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", default="cifar10")
    parser.add_argument("--root")
    parser.add_argument("--config", default="dim-cifar10", help="the preset or TOML file that variants change")
    parser.add_argument(
        "--set", dest="settings", action="append", default=list(CALM), help=f"of all trials [default: {' '.join(CALM)}]"
    )
    parser.add_argument("--variants", type=Path, help="a TOML file of variants, instead of the one beside the program")
    parser.add_argument("--only", action="append", metavar="NAME", help="of these variants alone")
    parser.add_argument("--minutes", type=float, default=minutes, help="of each distillation [default: %(default)g]")
    parser.add_argument("--clock", choices=("cpu", "wall"), help="what they are measured by [default: cpu on a CPU]")
    parser.add_argument("--steps", type=int, help="steps instead of minutes")
    parser.add_argument("--student", default="convnet3")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--epochs", type=int, help="of the student [default: its recipe's]")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="rows, as JSON lines")
    parser.add_argument("--work", type=Path, help="folder of the runs [default: beside OUT]")
    parser.add_argument("--plot", type=Path, help="a picture to draw; needs matplotlib")
    for name in ("device", "precision", "compile"):
        parser.add_argument(f"--{name}", default="auto")
    return parser


def variants(path: Path, only: Sequence[str] | None = None) -> dict[str, tuple[str, dict[str, Any]]]:
    """Read variants: of each its question and its settings. A TOML table is a question, a table in it a variant."""
    found = {
        name: (axis, settings)
        for axis, members in tomllib.loads(path.read_text(encoding="utf-8")).items()
        for name, settings in members.items()
    }
    unknown = set(only or ()) - found.keys()
    if unknown:
        raise SystemExit(f"{path.name} has no variant {', '.join(sorted(unknown))}; it has {', '.join(found)}.")
    return {name: found[name] for name in found if not only or name in only}


class Bench:
    """Distils and scores trials, and keeps their rows.

    Args:
        arguments: Of a parser that `options` made.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        keep_freed_memory()
        self.arguments = arguments
        self.engine = Engine.of(arguments.device, arguments.precision, arguments.compile)
        self.wall = arguments.clock == "wall" or (arguments.clock is None and self.engine.device.type != "cpu")
        self.clock = time.perf_counter if self.wall else time.process_time
        self.real: RealData = validation_split(load_real(arguments.real, root=arguments.root))
        self.work: Path = arguments.work or arguments.out.with_suffix("")
        self.rows: dict[str, Row] = {}
        if arguments.out.is_file():
            text = arguments.out.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]  # the last line may have been cut off
            if whole != text:
                write_atomic(arguments.out, whole.encode())
            self.rows = {row["key"]: row for row in map(json.loads, whole.splitlines())}

    def config(self, settings: Mapping[str, Any]) -> DimConfig:
        """Return the configuration with the settings of a variant."""
        base = make_config(DimConfig, self.arguments.config).to_json()
        for text in self.arguments.settings:
            base = merge(base, parse_setting(text))
        if "name" in settings.get("network", {}):
            base["network"] = {}
        made = make_config(DimConfig, merge(base, settings))
        assert isinstance(made, DimConfig)
        return made

    def cost(self, config: DimConfig) -> Cost:
        """Return what the generator of a configuration costs, before it is distilled."""
        return cost(spec_of(config, self.real))

    def run(self, trials: Iterable[Trial]) -> list[Row]:
        """Return the rows of trials, in order; those that are not there yet are made, and kept as soon as they are."""
        wanted = list(trials)
        configs = [self.config(trial.settings) for trial in wanted]  # a mistake is found before the first run
        found = []
        for trial, config in zip(wanted, configs, strict=True):
            key = self._key(trial, config)
            if key not in self.rows:
                if self.engine.compiled:
                    torch.compiler.reset()  # the trials before have used up what is compiled of a function at most
                # A trial measures, distils and trains: more than the usual limit, beyond which later ones would run
                # uncompiled, and be worse for it in equal time.
                with room_for_shapes(self.engine):
                    made = self._make(trial, config, key)
                self.rows[key] = {"key": key, **made}
                self.arguments.out.parent.mkdir(parents=True, exist_ok=True)
                with self.arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(self.rows[key]) + "\n")
            row = self.rows[key]
            shown = f"{row['steps']:,} steps, {row['mflop']:.1f} MFLOP, {row['bytes'] / 1e6:.2f} MB"
            result = f"failed: {row['failed']}" if row["accuracy"] is None else f"{row['accuracy']:.2f} %"
            print(f"{trial.name}, seed {trial.seed}: {result} ({shown})", flush=True)
            found.append({**row, "name": trial.name, "axis": trial.axis})  # a variant may be called anew
        return found

    def _key(self, trial: Trial, config: DimConfig) -> str:
        """Return the digest of all that determines a row, but for the machine."""
        given = self.arguments
        budget = given.steps or [trial.minutes, "wall" if self.wall else "cpu"]
        return digest(
            [config.to_json(), self.real.fingerprint, budget, trial.seed, given.student, given.ipc, given.epochs]
        )

    def _make(self, trial: Trial, config: DimConfig, key: str) -> Row:
        """Distil a trial, train its student, score it."""
        given, folder = self.arguments, self.work / f"{trial.name}-{trial.seed}-{key[:8]}"
        spent = self.cost(config)
        row = {
            "name": trial.name,
            "axis": trial.axis,
            "settings": dict(trial.settings),
            "minutes": None if given.steps else trial.minutes,
            "clock": "wall" if self.wall else "cpu",
            "seed": trial.seed,
            "mflop": spent.flop / 1e6,
            "bytes": spent.nbytes,
            "scored_on": f"{self.real.name}: {len(self.real.test or ()):,} training images set aside",
            "machine": self.engine.describe(),
        }
        try:
            self._distill(trial, config, folder)
        except RunError as error:
            if error.exit_code == INTERRUPTED:
                raise
            nothing = {"images_per_second": None, "steps": 0, "phases": {}, "real_images": 0}
            return row | nothing | {"student": given.student, "budget": "", "accuracy": None, "failed": str(error)}
        (score,) = evaluate(
            folder / "generator",
            ipc=given.ipc,
            epochs=given.epochs,
            students=given.student,
            seeds=[trial.seed],
            real=self.real,
            baselines=(),
            engine=self.engine,
            output=folder / "scores.jsonl",
        )
        generator = artifact.load(folder / "generator")
        made = artifact.read_config(folder / "generator").provenance
        return row | {
            "accuracy": score.mean,
            "student_failed": bool(score.failed),
            "images_per_second": round(self.rate(generator), 1),
            "steps": sum(made["phases"].values()),
            "phases": made["phases"],
            "minutes_elapsed": made["minutes"],
            "real_images": made["real_images_consumed"],
            "student": score.student,
            "budget": score.budget_text,
        }

    def _distill(self, trial: Trial, config: DimConfig, folder: Path) -> None:
        """Distil a trial, or go on with it, unless it is done."""
        if (folder / "generator").exists():
            return
        given, begun = self.arguments, (folder / "run.json").is_file()
        distill(
            self.real,
            out=folder,
            config=config,
            steps=None if begun else given.steps or self.steps(config, 60 * trial.minutes),
            seed=trial.seed,
            device=given.device,
            precision=given.precision,
            compile=given.compile,
            resume=begun,
        )

    def steps(self, config: DimConfig, seconds: float) -> int:
        """Return how many steps of a configuration fit in so many seconds of the clock."""
        method = DiM(config, self.real, self.engine, 0, PLANNED_STEPS)
        costs = step_seconds(method, self.clock)
        phases = method.phases()
        cost_of_all = sum(phase.steps * costs[phase.name] for phase in phases)
        return max(len(phases), int(seconds * PLANNED_STEPS / cost_of_all))

    def rate(self, generator: Generator) -> float:
        """Return images drawn per second of the clock, not compiled: the best of three turns."""
        generator = generator.to(self.engine.device)
        count = DRAWN_AT_ONCE.get(self.engine.device.type, DRAWN_AT_ONCE_ELSEWHERE)
        index = torch.arange(count, device=self.engine.device)
        latent = latents.latents(0, 0, index, generator.spec.latent)

        def seconds(times: int) -> float:
            started = self.clock()
            for _ in range(times):
                images, _ = generator.draw(latent, index)
            images[0, 0, 0, 0].item()  # waits for the device
            return self.clock() - started

        seconds(1)
        times = max(1, min(64, int(0.2 / max(seconds(1), 1e-6))))
        return count * times / min(seconds(times) for _ in range(3))


def step_seconds(method: DiM, clock: Callable[[], float]) -> dict[str, float]:
    """Return seconds a step of each phase of a method freshly made, which is of no use for distilling afterwards.

    Steps of the calm start are left out: they cost more, and there are few of them.
    """
    begin = min(method.config.calm, method.steps // 4)
    found = {}
    for phase in method.phases():
        warm_up = max(WARM_UP_STEPS, phase.period)
        timed = math.ceil(TIMED_STEPS / phase.period) * phase.period
        _take(phase, begin, warm_up)
        taken, started = 0, clock()
        while not taken or clock() - started < TIMED_SECONDS:
            _take(phase, begin + warm_up + taken, timed)
            taken += timed
        found[phase.name] = (clock() - started) / taken
    return found


def _take(phase: Phase, begin: int, count: int) -> None:
    """Take steps as a run does, and wait for the device at their end alone."""
    for step in range(begin, begin + count):
        losses = phase.part()[0] if phase.part else phase.step(step)
    for loss in losses.values():
        loss.item()


@dataclasses.dataclass(frozen=True)
class Summary:
    """The rows of one variant that differ by their seed only.

    Attributes:
        row: The first of them.
        accuracies: Percent, by seed; those whose distillation failed are missing.
        failed: Seeds whose distillation failed, or whose student did not learn.
    """

    row: Row
    accuracies: Mapping[int, float]
    failed: Sequence[int] = ()

    @property
    def mean(self) -> float:
        """The mean accuracy; not a number where all failed."""
        return statistics.mean(self.accuracies.values()) if self.accuracies else math.nan

    @property
    def std(self) -> float | None:
        """The sample deviation; none for one seed."""
        return statistics.stdev(self.accuracies.values()) if len(self.accuracies) > 1 else None

    def over(self, base: "Summary") -> str:
        """Return what is gained over another variant, by the seeds that both have: the mean, and its deviation."""
        gains = [value - base.accuracies[seed] for seed, value in self.accuracies.items() if seed in base.accuracies]
        deviation = f" ± {statistics.stdev(gains):.2f}" if len(gains) > 1 else ""
        return f"{statistics.mean(gains):+.2f}{deviation}" if gains and self is not base else ""


def summaries(rows: Iterable[Row]) -> list[Summary]:
    """Take rows together by name, in order."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row["name"], []).append(row)
    found = []
    for group in grouped.values():
        made = [row for row in group if row["accuracy"] is not None]
        failed = [row["seed"] for row in group if row["accuracy"] is None or row.get("student_failed")]
        found.append(Summary((made or group)[0], {row["seed"]: row["accuracy"] for row in made}, failed))
    return found


COLUMNS: dict[str, Callable[[Summary], str]] = {
    "question": lambda s: s.row["axis"],
    "variant": lambda s: s.row["name"],
    "MFLOP": lambda s: f"{s.row['mflop']:.1f}",
    "MB": lambda s: f"{s.row['bytes'] / 1e6:.2f}",
    "drawn images/s": lambda s: f"{s.row['images_per_second']:,.0f}" if s.accuracies else "-",
    "minutes": lambda s: "-" if s.row["minutes"] is None else f"{s.row['minutes']:g}",
    "steps": lambda s: f"{s.row['steps']:,}",
    "accuracy %": lambda s: percent(s.mean, s.std) if s.accuracies else "-",
    "seeds": lambda s: str(len(s.accuracies)) + (f" (failed: {', '.join(map(str, s.failed))})" if s.failed else ""),
}


def table(found: Sequence[Summary], columns: Sequence[str], base: Summary | None = None) -> str:
    """Return a markdown table, with the effect over `base` where there is one, and what it was measured by below."""
    header, cells = list(columns), [[COLUMNS[name](each) for name in columns] for each in found]
    if base is not None:
        header.append(f"over {base.row['name']}")
        cells = [[*line, each.over(base)] for line, each in zip(cells, found, strict=True)]
    first = next((each.row for each in found if each.accuracies), found[0].row)
    machine = ", ".join(f"{key} {value}" for key, value in first["machine"].items())
    notes = f"{first['student']}, {first['budget']}; {first['scored_on']}; {first['clock']} time; {machine}."
    return f"{markdown_table(header, cells)}\n\n{notes}"


PANELS = {"mflop": "MFLOP an image", "bytes": "bytes stored", "images_per_second": "images drawn per second"}


def plot(found: Sequence[Summary], path: Path, panels: Mapping[str, str] = PANELS, lines: bool = False) -> None:
    """Draw accuracy against fields of the rows, a panel each; a colour for each question.

    Args:
        found: What to draw.
        path: Its ending says the format.
        panels: Fields and their names in print; axes are logarithmic.
        lines: Whether each panel shows the question of its field alone, as a line.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    found = [each for each in found if each.accuracies]
    if not found:
        return
    figure = Figure(figsize=(1.8 + 4.2 * len(panels), 4.0), layout="constrained")
    places = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    questions = list(dict.fromkeys(each.row["axis"] for each in found))
    for axes, (field, label) in zip(places, panels.items(), strict=True):
        for number, question in enumerate(questions):
            members = sorted((each for each in found if each.row["axis"] == question), key=lambda s: s.row[field])
            if lines and question != field:
                continue
            x, y = [each.row[field] for each in members], [each.mean for each in members]
            style = {"color": f"C{number}", "marker": "o", "capsize": 3, "linestyle": "-" if lines else "none"}
            axes.errorbar(x, y, [each.std or 0 for each in members], label=question, **style)
            for each, place in zip(members, zip(x, y, strict=True), strict=True):
                axes.annotate(each.row["name"], place, (4, 4), textcoords="offset points", fontsize="x-small")
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        ticks = [m * 10**e for e in range(-3, 12) for m in (1, 2, 5) if low <= m * 10**e <= high]
        axes.set_xticks(ticks, [f"{tick:,.0f}" if tick >= 1 else f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.15)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    places[0].set_ylabel(f"{found[0].row['student']}: accuracy on\ntraining images set aside, %")
    if len(questions) > 1 and not lines:
        handles, labels = places[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(path, dpi=150, facecolor="white")
