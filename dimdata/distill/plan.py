"""What a run is, and whether a resumed one is the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dimdata.distill.config import make_config
from dimdata.distill.method import METHODS
from dimdata.errors import FormatError, RunError, WorldError
from dimdata.files import locked, world_error
from dimdata.spec import Record, require

LOCK = ".lock"  # of a run's folder, while a process is at work in it


@dataclass(frozen=True, kw_only=True)
class Plan(Record):
    """What a run is, kept as `run.json`; what `--resume` compares.

    Attributes:
        method: Name of the method.
        data: The real dataset.
        fingerprint: Digest of the training images and labels.
        config: The whole config.
        seed: Of all noise.
        steps: Steps of all phases.
        minutes: The time budget the steps were derived from, if any.
        probes: How often a student is scored on held-out training images; these are then not distilled.
    """

    method: str
    data: str
    fingerprint: str
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int
    steps: int
    minutes: float | None = None
    probes: int = 0

    @classmethod
    def label(cls) -> str:
        """The name of this record in messages."""
        return "run"

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        require(self.steps >= 1, f"run.steps is {self.steps}; 1 or more is needed.")


def existing(folder: Path, resume: bool) -> Plan | None:
    """Return the plan of the run to resume in `folder`; none where a new one begins.

    Raises:
        RunError: If the folder is in use and `resume` is not asked for, or there is nothing to resume.
    """
    path = folder / "run.json"
    if not resume:
        if folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
            if path.is_file():
                raise RunError(f"{folder} holds a run.", "Add --resume to go on with it, or choose another folder.")
            what = "is not empty" if folder.is_dir() else "is a file"
            raise RunError(f"{folder} {what}.", "Choose a folder that is absent or empty (--out).")
        return None
    if not path.is_file():
        raise RunError(f"There is no run to resume in {folder}.", "Leave out --resume, or name the run's folder.")
    try:
        return Plan.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise RunError(f"{path} cannot be read: {error}.", "Start the run again in another folder.") from None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from running in a folder, which is made if it is absent and removed if it stays empty.

    Raises:
        RunError: If a process is at work there.
        WorldError: If the folder cannot be made or written to.
    """
    from filelock import Timeout

    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = locked(folder / LOCK, timeout=0)
    except Timeout:
        raise RunError(
            f"Another process is at work in {folder}.", "Wait until it has ended, or choose another folder (--out)."
        ) from None
    except WorldError:
        raise
    except OSError as error:
        raise world_error(error, f"Making the folder {folder}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no file that is open
            (folder / LOCK).unlink()
        lock.release()
        for place in made:
            with suppress(OSError):  # it holds something
                place.rmdir()


def config_of(plan: Plan) -> Any:
    """Return the configuration of a run that was begun, as its method reads it now."""
    kind = METHODS[plan.method]
    return kind.resolve(make_config(kind.Config, plan.config))


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in _flat(f"{prefix}.{key}".strip("."), item).items()}
    return {prefix: value}


def compare(old: Plan, new: Plan) -> None:
    """Refuse a resumed run that differs in more than budget and machine.

    A setting that is newer than the old run had its default's meaning in it.
    """
    if old.method != new.method:
        raise RunError(
            f"The run was begun with the method {old.method}, not {new.method}.",
            f"Resume it with --method {old.method}, or start another.",
        )
    old = Plan.from_json(old.to_json() | {"config": config_of(old).to_json()})
    budget = ("steps", "minutes", "config.default_steps", "config.settings.default_steps")
    ours, theirs = (
        {key: value for key, value in _flat("", plan.to_json()).items() if key not in budget} for plan in (old, new)
    )
    differing = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    changed = [f"{key}: {ours.get(key)} -> {theirs.get(key)}" for key in differing]
    if changed:
        shown = "; ".join(changed[:8]) + (f"; and {len(changed) - 8} more" if len(changed) > 8 else "")
        raise RunError(f"The run was begun otherwise ({shown}).", "Resume it as it was begun, or start another.")
