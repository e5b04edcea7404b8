"""One loop for every method: budget, progress, metrics, grids, probes, checkpoints, resume."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

import dimdata
from dimdata import latents, preview
from dimdata.distill.config import make_config
from dimdata.distill.estimate import planned, steps_within
from dimdata.distill.method import METHODS, Losses, Method, Phase
from dimdata.distill.plan import Plan, alone_in, compare, config_of, existing
from dimdata.engine import Engine
from dimdata.errors import INTERRUPTED, ArgumentError, DimdataError, FormatError, RunError, WorldError, whole
from dimdata.files import shareable, world_error, write_atomic
from dimdata.hub.readme import save_with_card
from dimdata.real import RealData, load_real, validation_split
from dimdata.spec import Record
from dimdata.students.compiling import room_for_shapes
from dimdata.students.train import accuracy, train

Progress = Callable[[dict[str, Any]], None]

log = logging.getLogger("dimdata")

_STEP = latents.stream("step of a run")

WARM_UP_STEPS = 3
TIMED_STEPS = 12
LOG_SECONDS = 2.0
CHECKPOINT_SECONDS = 60.0
TIMED_SECONDS = 2.0  # at least, or a hundredth of the budget: a device that was idle is not at its full clock at once
COMPILE_FROM_MINUTES = 10.0  # below, compiling would take a good part of the budget
COMPILE_FROM_STEPS = 100  # likewise; a step of some methods is long
GRIDS = 10
EARLY = 0.02  # share of a phase's steps that say little of the others


def distill(
    data: str | Path | RealData,
    *,
    out: str | os.PathLike[str],
    method: str = "dim",
    config: Mapping[str, Any] | Record | str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "auto",
    resume: bool = False,
    root: str | Path | None = None,
    probes: int = 0,
    progress: Progress | None = None,
    command: str = "",
) -> Path:
    """Distil real images into a generator.

    Args:
        data: A dataset's name, an image folder, an `.npz` file, or `RealData`.
        out: The run's folder; the finished generator lies in its `generator/`.
        method: Name of the method.
        config: A preset, a TOML file, or values; see the method's `Config`.
        settings: Values that win over `config`.
        minutes: Time budget, compiling and measuring included; the number of steps that fits is measured after a
            warm-up and recorded.
        steps: Step budget, instead.
        seed: Equal seeds give equal generators on an equal CPU; kernels of a GPU may add up in another order.
        device: See `Engine.of`.
        precision: See `Engine.of`.
        compile: See `Engine.of`; `auto` is off where `minutes` is below 10, or `steps` below 100.
        resume: Go on with the run in `out`.
        root: Where real datasets are stored.
        probes: Score a student on held-out training images that many times on the way.
        progress: Called with {phase, step, steps, images_per_second, eta_seconds, losses} every two seconds; without
            the two where they are not known: while the first steps are compiled, and `eta_seconds` as long as it
            depends on a phase of another kind that has not begun. Before what takes long and is no step, with {phase,
            note}: a sentence.
        command: What makes the generator once more, for its provenance, which others read.

    Returns:
        The folder of the finished generator.

    Raises:
        ArgumentError: If phases of fixed length, such as the training of experts, take all of `minutes`.
        RunError: If `out` holds another run, there is none to resume, or the run was interrupted (exit code 130; a
            checkpoint has then been written).
        DimdataError: Whatever is wrong with the data, the config, the device or the disk.
    """
    check_budget(minutes, steps, probes)
    kind, chosen = asked_for(method, config, settings, device, precision, compile)
    folder = Path(out).expanduser()
    existing(folder, resume)  # told before data is read
    with alone_in(folder):
        old = existing(folder, resume)  # another process may have been at work since
        kept = old.minutes if old and steps is None else None  # the time budget of the run that goes on
        budget = minutes if minutes is not None else kept
        real = load_real(data, root=root)
        if probes:
            real = validation_split(real)
        by_settings = kind.budget(chosen, real)
        of_steps = steps or (old.steps if old else by_settings)
        engine = Engine.of(device, precision, compiling(compile, budget, of_steps))
        plan = Plan(
            method=method,
            data=real.name,
            fingerprint=real.fingerprint,
            config=chosen.to_json(),
            seed=seed,
            steps=of_steps,
            minutes=budget,
            probes=probes,
        )
        if old:
            compare(old, plan)
            if steps is None and budget is None:
                _require_same_default(old, kind.budget(config_of(old), real), by_settings)
        made = kind(chosen, real, engine, seed, plan.steps)
        made.require_recipe()
        run = Run(folder, plan, made, progress, command)
        done = run.restore() if old else 0
        with room_for_shapes(engine):  # each network of a pool is compiled by itself
            if minutes is not None and minutes != kept:
                run.plan_minutes(minutes, done)
            elif done > plan.steps:
                raise RunError(
                    f"The run has taken {done} steps, more than the {plan.steps} asked for.", "Ask for more."
                )
            if old and done:
                run.change_budget(old.steps, done)
            return run.go(done)


def _require_same_default(old: Plan, before: int, now: int) -> None:
    """Refuse to go on with as many steps as settings said, where they say another number now."""
    if old.steps == before != now:
        raise RunError(
            f"The run was begun with the {before:,} steps of its settings, which say {now:,} now.",
            f"Give --steps {now} to take so many in all, or --steps {before} to go on as it was begun.",
        )


def asked_for(
    method: str,
    config: Mapping[str, Any] | Record | str | os.PathLike[str] | None,
    settings: Mapping[str, Any] | None,
    device: str,
    precision: str,
    compile: str,
) -> tuple[type[Method], Any]:
    """Return the method and its configuration, and refuse what can be refused before data is read; see `distill`."""
    kind = METHODS[method]
    Engine.of(device, precision, "off" if compile == "auto" else compile)
    chosen = kind.resolve(make_config(kind.Config, config, settings))
    kind.default_steps(chosen)  # which stages must fit
    return kind, chosen


def compiling(asked: str, minutes: float | None, steps: int) -> str:
    """Return whether a run compiles, as `Engine.of` is told: `auto` is off where it would not pay.

    Args:
        asked: `auto`, `on` or `off`.
        minutes: The budget, where it is one of time.
        steps: The budget where it is none of time; the same in every sitting of a run.
    """
    short = steps < COMPILE_FROM_STEPS if minutes is None else minutes < COMPILE_FROM_MINUTES
    return "off" if asked == "auto" and short else asked


def check_budget(minutes: float | None, steps: int | None, probes: int) -> None:
    """Refuse a budget that no run can have.

    Raises:
        ArgumentError: If it is not positive, given twice, or asks for too many probes.
    """
    if minutes is not None and steps is not None:
        raise ArgumentError("Both minutes and steps were given.", "Give one of them.")
    if minutes is not None and (isinstance(minutes, bool) or not isinstance(minutes, int | float)):
        raise ArgumentError(f"minutes is {minutes!r:.80}.", "Give a positive number.")
    if minutes is not None and not 0 < minutes < math.inf:
        raise ArgumentError(f"minutes is {minutes}.", "Give a positive number.")
    if steps is not None and whole("steps", steps) < 1:
        raise ArgumentError(f"steps is {steps}.", "Give 1 or more.")
    if not 0 <= whole("probes", probes) <= 1000:
        raise ArgumentError(f"probes is {probes}.", "Give 0 to 1000.")


class Run:
    """A distillation in a folder.

    Args:
        folder: Where everything is written.
        plan: What the run is.
        method: The algorithm, freshly made.
        progress: See `distill`.
        command: See `distill`.
    """

    def __init__(self, folder: Path, plan: Plan, method: Method, progress: Progress | None, command: str) -> None:
        self.folder, self.plan, self.method = folder, plan, method
        self.progress = progress or (lambda event: None)
        self.command = command
        self.seconds = 0.0  # of training and of planning it, over all sittings
        self.taken: dict[str, int] = {}  # steps of each phase
        self.ready: dict[str, int] = {}  # steps of these whose results were there when the phase began
        self.images: dict[str, int] = {}  # real images of a step of each phase, as it was when the phase began
        self.costs: dict[str, float] = {}  # seconds of a step of each phase, once it is measured
        self.history: list[str] = []  # what the command alone would not repeat
        self.stop = self.warned = False

    # --- what lies in the folder -------------------------------------------------------------------------------

    def checkpoint(self, done: int) -> None:
        """Write everything needed to go on from step `done`, atomically."""
        tensors = {
            # Copies, because layers of a network may share one tensor.
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in self.method.state_dict().items()
        }
        seconds = round(self.seconds, 1)
        facts = {"taken": self.taken, "ready": self.ready, "images": self.images, "history": self.history}
        meta = json.dumps({"done": done, "seconds": seconds} | facts)
        write_atomic(self.folder / "run.json", json.dumps(self.plan.to_json(), indent=1).encode() + b"\n")
        write_atomic(self.folder / "checkpoint.safetensors", save(tensors, {"dimdata": meta}))

    def restore(self) -> int:
        """Load the checkpoint; return how many steps are done: none, if the run was stopped before the first."""
        path = self.folder / "checkpoint.safetensors"
        if not path.is_file():
            self._forget_metrics(0)
            return 0
        try:
            with safe_open(path, "pt") as file:
                meta = json.loads((file.metadata() or {})["dimdata"])
            seconds, done = float(meta["seconds"]), int(meta["done"])
            taken = dict(meta.get("taken") or self._due(done))
            ready, images = dict(meta.get("ready", {})), dict(meta.get("images", {}))
            history = list(meta.get("history", []))
            self.method.load_state_dict(load_file(path, device=str(self.method.engine.device)))
        except torch.OutOfMemoryError:
            raise WorldError(
                f"{self.method.engine.device} has too little free memory to go on from {path}.",
                "Stop what else uses it, or choose another device: --device cpu.",
            ) from None
        except DimdataError:
            raise  # what the method refuses is not the checkpoint's fault
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0][:200].rstrip(".")
            raise RunError(f"{path} cannot be read: {reason}.", "Start the run again in another folder.") from None
        self.seconds, self.taken, self.ready, self.images, self.history = seconds, taken, ready, images, history
        self._forget_metrics(done)
        return done

    def _due(self, done: int) -> dict[str, int]:
        """Return how many steps of each phase lie in the first `done` of the method's budget, in order."""
        due = {}
        for phase in self.method.phases():
            due[phase.name] = min(done, phase.steps)
            done -= due[phase.name]
        return due

    def change_budget(self, before: int, done: int) -> None:
        """Note that a run which has begun goes on with another number of steps than `before`.

        Raises:
            RunError: If it then stood elsewhere in stages that are finished.
        """
        after = self.plan.steps
        if after == before:
            return
        self.method.steps = before
        stood = self._due(done)
        self.method.steps = after
        if self.method.settles and stood != self._due(done):
            raise RunError(
                f"The run has taken {done} of {before} steps; in a run of {after}, what is finished by now would "
                "have had another share.",
                f"Go on with --steps {before}, or begin another run.",
            )
        self.history.append(f"After step {done:,} the budget was changed from {before:,} to {after:,} steps.")

    def _forget_metrics(self, done: int) -> None:
        """Drop metrics of steps after the checkpoint, which will be taken again."""
        path = self.folder / "metrics.jsonl"
        if path.is_file():
            kept = []
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= done:
                        kept.append(line)
                except (ValueError, KeyError):
                    continue  # cut off in the middle when the process died
            write_atomic(path, "".join(f"{line}\n" for line in kept).encode())

    def _record(self, event: dict[str, Any]) -> None:
        path = self.folder / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            raise world_error(error, f"Writing {path}") from error

    # --- time ---------------------------------------------------------------------------------------------------

    def plan_minutes(self, minutes: float, done: int) -> None:
        """Find the number of steps that fits the time left, and leave the method as it was.

        The time that this takes, and with it compiling, is part of the budget.
        """
        begun = time.perf_counter()
        before = {name: tensor.detach().clone() for name, tensor in self.method.state_dict().items()}
        taken = self._due(done)
        phases = planned(self.method)
        costs: dict[str, float] = {}  # seconds a step
        for phase in phases:
            if phase.like in costs:
                costs[phase.name] = costs[phase.like]
                continue
            first = "Compiling, then timing" if self.method.engine.compiled else "Timing"
            self.progress({"phase": phase.name, "note": f"{first} a few steps of the phase {phase.name} ..."})
            warm_up = max(WARM_UP_STEPS, phase.period)  # every function that is compiled is so by then
            timed = math.ceil(TIMED_STEPS / phase.period) * phase.period
            with self._seeded(0):
                for step in range(warm_up):
                    losses, _ = _take(phase, step)
            _synchronize(losses)
            start, shares, taken_so_far = time.perf_counter(), 0.0, warm_up
            while not shares or time.perf_counter() - start < min(TIMED_SECONDS, 0.6 * minutes):
                for step in range(taken_so_far, taken_so_far + timed):
                    with self._seeded(step):
                        losses, share = _take(phase, step)
                    shares += share
                taken_so_far += timed
                _synchronize(losses)
            costs[phase.name] = (time.perf_counter() - start) / shares
        self.method.load_state_dict(before)
        self.seconds += time.perf_counter() - begun
        self.costs = costs
        steps = steps_within(minutes, phases, costs, self.seconds, taken)
        if self.method.beside():
            log.warning("%s", self.method.beside())
        self.plan = Plan.from_json(self.plan.to_json() | {"steps": steps, "minutes": minutes})
        self.method.steps = steps

    def _seeded(self, done: int) -> AbstractContextManager[None]:
        """Return the context of a step: dropout of the networks in it is a function of the seed and the step."""
        return self.method.engine.seeded(latents.fold(_STEP, self.plan.seed, done))

    # --- the loop -----------------------------------------------------------------------------------------------

    def go(self, done: int) -> Path:
        """Take the steps that are left and write the generator."""
        phases = self.method.phases()  # what cannot begin is told before anything is written
        self.folder.mkdir(parents=True, exist_ok=True)
        if not done:
            write_atomic(self.folder / "run.json", json.dumps(self.plan.to_json(), indent=1).encode() + b"\n")
        with self._interruptible():
            if done:
                self._catch_up(done)
            first = 0
            for number, phase in enumerate(phases):
                if done < first + phase.steps:
                    self._phase(phase, first, done - first if done > first else 0, phases[number + 1 :])
                    done = first + phase.steps
                first += phase.steps
            self.checkpoint(done)
        return self._finish()

    def _marks(self, count: int) -> set[int]:
        """Return `count` steps at equal distances, the last step among them."""
        return {round(k * self.plan.steps / count) for k in range(1, count + 1)}

    def _catch_up(self, done: int) -> None:
        """Make the grid and the probe of the last step, if the run was stopped between it and them."""
        if done in self._marks(GRIDS) and not self._grid_of(done).exists():
            self._grid(done)
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        probed = {event["step"] for event in map(json.loads, lines) if event.get("phase") == "probe"}
        if done in self._marks(self.plan.probes) - probed:
            self._probe(done)

    def _seconds_left(self, phase: Phase, steps: int, rate: float, later: Sequence[Phase]) -> float | None:
        """Return the seconds that a run has left, as far as can be told.

        A phase not measured yet is taken to be as fast as the one under way, unless that is of fixed length: its steps
        are another matter altogether, such as the training of a whole network. So are the first steps of a phase like
        an earlier one, which may train what the stages before it left to be trained.

        Args:
            phase: The phase under way.
            steps: Its steps that are left.
            rate: Steps a second.
            later: The phases to come.
        """
        early = phase.steps - steps <= EARLY * phase.steps
        cost = self.costs.get(phase.like, 1 / rate) if early else 1 / rate
        self.costs[phase.name] = cost
        left = steps * cost
        for other in later:
            known = self.costs.get(other.name) or self.costs.get(other.like)
            if known is None and phase.fixed and not other.fixed:
                return None
            left += other.steps * (known or cost)
        return left

    def _phase(self, phase: Phase, first: int, begin: int, later: Sequence[Phase] = ()) -> None:
        clock = saved = logged = time.perf_counter()
        logged_step = begin
        marks, probes = self._marks(GRIDS), self._marks(self.plan.probes)
        if not begin:
            phase = self.method.enter(phase)
            self.ready[phase.name], self.images[phase.name] = phase.ready, phase.images
        if self.method.engine.compiled and phase.like not in self.costs:
            note = f"Compiling: the first steps of the phase {phase.name} take longest ..."
            self.progress({"phase": phase.name, "note": note})
        for step in range(begin, phase.steps):
            with self._seeded(first + step):
                losses = phase.step(step)
            self.taken[phase.name] = self.taken.get(phase.name, 0) + 1
            done = first + step + 1
            now = time.perf_counter()
            checked = (
                now - logged >= LOG_SECONDS or step + 1 == phase.steps or self.stop or done in marks or done in probes
            )
            if checked:
                values = {name: round(float(value), 5) for name, value in losses.items()}
                now = time.perf_counter()
                self.seconds += now - clock
                clock = now
                rate = (step + 1 - logged_step) / max(now - logged, 1e-9)
                logged, logged_step = now, step + 1
                event = {
                    "phase": phase.name,
                    "step": done,
                    "steps": self.plan.steps,
                    "seconds": round(self.seconds, 1),
                    "losses": values,
                }
                # The first steps compile, one for each network of a pool, and say nothing of the others.
                if step - begin >= phase.period or step + 1 == phase.steps:
                    event["images_per_second"] = round(rate * phase.images, 1)
                    left = self._seconds_left(phase, phase.steps - step - 1, rate, later)
                    event |= {} if left is None else {"eta_seconds": round(left, 1)}
                self._check_finite(values, done)
                self._record(event)
                self.progress(event)
            if self.stop:
                self.checkpoint(done)
                raise RunError(
                    f"Stopped at step {done} of {self.plan.steps}; the checkpoint is in {self.folder}.",
                    "Go on with the same command and --resume.",
                    INTERRUPTED,
                )
            now = time.perf_counter()
            if done in marks:
                self._grid(done)
                self._warn(done)
            if done in probes:
                self._probe(done)
            if checked and now - saved >= CHECKPOINT_SECONDS:  # only what is known to be finite is kept
                self.checkpoint(done)
                saved = time.perf_counter()
            aside = time.perf_counter() - now  # what was not training counts neither as time nor in the rate
            clock += aside
            logged += aside

    def _grid_of(self, done: int) -> Path:
        return self.folder / "grids" / f"step-{done:07d}.png"

    def _grid(self, done: int) -> None:
        """Write a sample grid."""
        path = self._grid_of(done)
        path.parent.mkdir(exist_ok=True)
        try:
            picture = preview.png(self.method.generator())
        except FormatError as error:  # also where values are finite, and too large to be stored
            raise RunError(f"The generator draws values that are not finite at step {done}.", self._calmer()) from error
        write_atomic(path, picture)

    def _warn(self, done: int) -> None:
        """Tell what looks wrong with the images, once in a sitting."""
        wrong = "" if self.warned else self.method.ailing()
        if wrong:
            self.warned = True
            log.warning("At step %s %s", f"{done:,}", wrong)

    def _check_finite(self, values: Mapping[str, float], done: int) -> None:
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            raise RunError(f"The loss {broken[0]!r} is not finite at step {done}.", self._calmer())

    def _calmer(self) -> str:
        """Return what to do about values that are not finite."""
        return f"Begin another run (--out DIR) with a lower learning rate (--set {self.method.rate_setting}=...)."

    def _probe(self, done: int) -> None:
        """Score a student on the held-out part of the training images."""
        real = self.method.real
        assert real.test is not None
        probe, engine, generator = self.method.probe(), self.method.engine, self.method.generator()
        recipe, scores = probe.recipe(generator), []
        for seed in range(probe.students):
            made = train(probe.student, generator, ipc=probe.ipc, recipe=recipe, seed=seed, engine=engine)
            test = (real.test.images, real.test.labels, real.mean, real.std)
            scores.append(accuracy(made.network, *test, engine=engine, whitening=made.info.whitening))
        score = sum(scores) / len(scores)
        event = {"phase": "probe", "step": done, "validation_accuracy": round(100 * score, 2)}
        self._record(event)
        self.progress(event)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM end the run after the step under way; a second Ctrl-C ends it at once.

        A second SIGTERM does not: `timeout` and job schedulers send it to the process and again to its group.
        """
        asked: set[int] = set()

        def ask(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and number in asked:
                raise KeyboardInterrupt
            if not self.stop:  # written past Python's own buffers, which a handler must not enter
                os.write(2, b"Stopping after the step under way; Ctrl-C again ends at once, without a checkpoint.\n")
            asked.add(number)
            self.stop = True

        try:
            old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread, which alone may set handlers
            yield
            return
        try:
            yield
        except KeyboardInterrupt:
            kept = (self.folder / "checkpoint.safetensors").is_file()
            place = "at its last checkpoint" if kept else "from the beginning"
            message = f"Stopped in the middle of a step; the run in {self.folder} goes on {place}."
            raise RunError(message, "Go on with the same command and --resume.", INTERRUPTED) from None
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _finish(self) -> Path:
        generator = self.method.generator()
        real, images = self.method.real, {phase.name: phase.images for phase in self.method.phases()} | self.images
        provenance = {
            "dimdata": dimdata.__version__,
            "command": self.command,
            "plan": shareable(self.plan.to_json()),
            "data": {"name": real.name, "images": len(real.train.labels), "fingerprint": real.fingerprint},
            "minutes": round(self.seconds / 60, 1),
            "real_images_consumed": self.method.images_beside()
            + sum(
                max(0, steps - self.ready.get(name, 0)) * images[name]
                for name, steps in self.taken.items()
                if name in images
            ),
            "phases": self.taken,
            "machine": self.method.engine.describe(),
        }
        provenance |= self.method.provenance()
        if self.history:
            provenance["history"] = " ".join(self.history)
        return save_with_card(
            generator, self.folder / "generator", provenance=provenance, preview=preview.png(generator)
        )


def _take(phase: Phase, step: int) -> tuple[Losses, float]:
    """Take a step to time it, or a part where there is one; return the losses and which share of a step it was."""
    return phase.part() if phase.part else (phase.step(step), 1.0)


def _synchronize(losses: Mapping[str, Tensor]) -> None:
    """Wait until the device has computed what was asked of it."""
    for value in losses.values():
        value.item()
