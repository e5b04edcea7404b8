"""What dimdata finds on this machine, and what of it would stop a user.

Nothing here talks to a network, and no token is read. Every part is looked at by itself, so that a broken installation
is described and not only met: torch is imported only where its absence is told in words.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import dimdata
from dimdata.errors import ArgumentError, DimdataError, WorldError

PACKAGES = ("torch", "torchvision", "huggingface_hub", "safetensors", "typer")
OLDEST_PYTHON = (3, 11)
LITTLE_DISK = 10**9  # bytes free, below which a warning is given
MAX_FILES = 200_000  # counted in the cache
SETTINGS = ("DIMDATA_DATA", "DIMDATA_MAX_BYTES", "DIMDATA_NAMESPACE", "HF_HOME", "HF_HUB_CACHE", "OMP_NUM_THREADS")


@dataclass
class Report:
    """What was found.

    Attributes:
        facts: By section, then by name; values fit into JSON.
        problems: What stops a user, as the errors they would meet.
        warnings: What is worth knowing, one sentence each.
    """

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[DimdataError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return this for machines."""
        problems = [{"message": error.message, "hint": error.hint} for error in self.problems]
        return {"usable": not problems, **self.facts, "problems": problems, "warnings": self.warnings}


def examine() -> Report:
    """Look at everything; takes a few seconds, most of them for importing torch."""
    report = Report()
    for name, look in _SECTIONS.items():
        report.facts[name] = {}
        try:
            look(report, report.facts[name])
        except DimdataError as error:
            report.problems.append(error)
        except Exception as error:  # a broken installation may raise anything, which is then the finding
            if isinstance(error, ImportError) and report.problems:  # told under versions
                report.facts[name]["not looked at"] = _first_line(error)
            else:
                report.problems.append(DimdataError(f"Looking at {name} failed: {_first_line(error)}"))
    return report


def _first_line(error: BaseException) -> str:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"{text:.200}."


# --- versions --------------------------------------------------------------------------------------------------------


def _versions(report: Report, facts: dict[str, Any]) -> None:
    facts["dimdata"] = dimdata.__version__
    facts["python"] = platform.python_version()
    facts["system"] = platform.platform()
    if sys.version_info < OLDEST_PYTHON:
        report.problems.append(DimdataError(f"Python {facts['python']} is too old.", "Install Python 3.11 or newer."))
    wanted = _requirements()
    for name in PACKAGES:
        try:
            facts[name] = str(importlib.import_module(name).__version__)
        except Exception as error:  # see above
            facts[name] = None
            report.problems.append(_broken(name, error))
            continue
        least, below = wanted.get(name, ((), ()))
        found = _release(facts[name])
        if found < least:
            needed = ".".join(map(str, least))
            report.problems.append(
                DimdataError(
                    f"{name} {facts[name]} is too old: {needed} or newer is needed.",
                    f"Run: pip install --upgrade '{name.replace('_', '-')}>={needed}'",
                )
            )
        elif below and found >= below:
            report.warnings.append(f"{name} {facts[name]} is newer than any that was tried.")


def _broken(name: str, error: Exception) -> DimdataError:
    if isinstance(error, ModuleNotFoundError) and error.name == name:
        return DimdataError(f"{name} is not installed.", f"Run: pip install {name.replace('_', '-')}")
    hint = f"Install it again: pip install --force-reinstall {name.replace('_', '-')}"
    if name == "torchvision":
        hint = "torch and torchvision must come from one place: pip install --force-reinstall torch torchvision"
    return DimdataError(f"{name} is installed, but cannot be imported: {_first_line(error)}", hint)


def _requirements() -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return (least version, first version that is too new) by package, as dimdata's own metadata says."""
    try:
        lines = importlib.metadata.requires("dimdata") or []
    except importlib.metadata.PackageNotFoundError:  # run from its source
        return {}
    found = {}
    for line in lines:
        name = re.match(r"[\w.-]+", line)
        if name is not None and ";" not in line:
            least, below = (re.search(rf"{sign}\s*([\d.]+)", line) for sign in (">=", "<(?!=)"))
            ends = tuple(_release(bound[1]) if bound else () for bound in (least, below))
            found[name[0].replace("-", "_").lower()] = (ends[0], ends[1])
    return found


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with.

    >>> _release("2.15.0+cu132")
    (2, 15, 0)
    """
    return tuple(int(number) for number in re.findall(r"\d+", re.match(r"[\d.]*", version)[0]))  # type: ignore[index]


# --- computing -------------------------------------------------------------------------------------------------------


def _computing(report: Report, facts: dict[str, Any]) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts["cores"] = cores
    import torch

    from dimdata.engine import Engine

    facts["threads"] = torch.get_num_threads()
    facts["devices"] = ["cpu", *_gpus()]
    engine = Engine.of()
    facts["auto device"] = str(engine.device)
    facts["auto precision"] = f"{'bf16' if engine.bf16 else 'fp32'}: {_why_precision(engine)}"
    facts["auto compile"] = f"{'on' if engine.compiled else 'off'}: {_why_compile(engine)}"
    if facts["threads"] > cores:
        report.warnings.append(
            f"torch uses {facts['threads']} threads on {cores} cores, which is slow: set OMP_NUM_THREADS={cores}."
        )


def _gpus() -> list[str]:
    import torch

    found = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            found.append(f"cuda:{number} {facts.name}, {facts.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _why_precision(engine: Any) -> str:
    if engine.device.type == "cpu":
        if engine.bf16:
            return "the processor has bfloat16 instructions, and compiled code uses them well"
        return "faster on a processor without bfloat16 instructions, or without compiling"
    return "this GPU computes it fast" if engine.bf16 else "this GPU gains nothing from bfloat16"


def _why_compile(engine: Any) -> str:
    if engine.device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        return "Triton supports this GPU" if engine.compiled else "this GPU is too old for Triton"
    if engine.device.type != "cpu":
        return f"not done on {engine.device.type}"
    if engine.compiled:
        return f"a C++ compiler is there ({shutil.which('g++')})"
    return "no C++ compiler (g++) is on the path" if platform.system() == "Linux" else "on processors only under Linux"


# --- Hub -------------------------------------------------------------------------------------------------------------


def _hub(report: Report, facts: dict[str, Any]) -> None:
    from huggingface_hub import constants

    facts["endpoint"] = _without_password(constants.ENDPOINT)
    facts["offline"] = bool(constants.HF_HUB_OFFLINE)
    facts["token"] = _token(constants.HF_TOKEN_PATH)
    if not re.match(r"https?://[^/\s]+", constants.ENDPOINT):
        report.problems.append(
            ArgumentError(f"HF_ENDPOINT is {facts['endpoint']!r:.120}, no address.", "Write https://... or unset it.")
        )
    cache = Path(constants.HF_HUB_CACHE)
    facts["cache"] = str(cache)
    facts["cache bytes"], whole = _size(cache)
    if not whole:
        report.warnings.append(f"The cache {cache} holds over {MAX_FILES:,} files; its size is that of the first ones.")
    facts["cache writable"] = _writable(cache)
    facts["free bytes"] = _free(cache)
    if not facts["cache writable"]:
        message = f"The cache {cache} cannot be written, so nothing can be downloaded from the Hub."
        if facts["offline"]:
            report.warnings.append(message)
        else:
            report.problems.append(WorldError(message, "Mend its permissions, or set HF_HOME to another folder."))
    if facts["free bytes"] < LITTLE_DISK:
        report.warnings.append(f"The disk of {cache} has only {facts['free bytes'] / 1e6:,.0f} MB left.")


def _without_password(address: str) -> str:
    """Return an address without what may be secret in it."""
    try:
        parts = urlsplit(address)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        return "unreadable"


def _token(path: str) -> str:
    """Say where a token would come from; `huggingface_hub.get_token` could ask the network to renew it."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return f"present, from {name}"
    if os.environ.get("HF_OIDC_RESOURCE"):
        return "exchanged when needed, for HF_OIDC_RESOURCE"
    try:
        return "present, from a file" if Path(path).stat().st_size else "absent"
    except OSError:
        return "absent"


def _size(folder: Path) -> tuple[int, bool]:
    """Return the bytes of all files below a folder, each counted once, and whether none was left out."""
    total, left = 0, MAX_FILES
    for here, _, names in os.walk(folder):
        for name in names:
            left -= 1
            if left < 0:
                return total, False
            try:
                found = os.lstat(Path(here) / name)
            except OSError:
                continue
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0  # links in a cache lead to files in it
    return total, True


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _writable(folder: Path) -> bool:
    """Whether a file can be made in a folder, or in the one that it would be made in; none is left there."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return True
    except OSError:
        return False


def _free(folder: Path) -> int:
    return shutil.disk_usage(_existing(folder)).free


# --- data and generators ---------------------------------------------------------------------------------------------


def _environment(report: Report, facts: dict[str, Any]) -> None:
    facts |= {name: _short(os.environ[name]) for name in SETTINGS if os.environ.get(name)}


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


def _data(report: Report, facts: dict[str, Any]) -> None:
    from dimdata.real.known import data_root

    root = data_root()
    facts["folder"] = str(root)
    facts["writable"] = _writable(root)
    facts["free bytes"] = _free(root)
    if not facts["writable"]:
        report.warnings.append(f"The folder for real datasets, {root}, cannot be written: none can be downloaded.")


def _generators(report: Report, facts: dict[str, Any]) -> None:
    from dimdata.artifact import holdout, load
    from dimdata.names import bundled

    for name, folder in bundled().items():
        try:
            load(folder)
            holdout(folder)
            facts[name] = "whole"
        except DimdataError as error:
            facts[name] = "damaged"
            error.hint = "Install dimdata again: pip install --force-reinstall --no-deps dimdata"
            report.problems.append(error)


_SECTIONS: Mapping[str, Callable[[Report, dict[str, Any]], None]] = {
    "versions": _versions,
    "environment": _environment,
    "computing": _computing,
    "hub": _hub,
    "real data": _data,
    "bundled generators": _generators,
}
