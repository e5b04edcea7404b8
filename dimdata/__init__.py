"""dimdata: distilled datasets as drop-in torch datasets."""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dimdata.artifact import load, save
    from dimdata.dataset import GeneratedDataset
    from dimdata.distill.run import distill
    from dimdata.evaluate import evaluate
    from dimdata.export.run import export
    from dimdata.generators.base import Generator
    from dimdata.hub.pull import pull
    from dimdata.hub.push import push
    from dimdata.levers import Levers, Teacher
    from dimdata.students.train import train

__version__ = "0.1.0"

_PUBLIC = {
    "GeneratedDataset": "dimdata.dataset",
    "Generator": "dimdata.generators.base",
    "load": "dimdata.artifact",
    "save": "dimdata.artifact",
    "distill": "dimdata.distill.run",
    "train": "dimdata.students.train",
    "evaluate": "dimdata.evaluate",
    "export": "dimdata.export.run",
    "Levers": "dimdata.levers",
    "Teacher": "dimdata.levers",
    "push": "dimdata.hub.push",
    "pull": "dimdata.hub.pull",
}

__all__ = [
    "GeneratedDataset",
    "Generator",
    "Levers",
    "Teacher",
    "distill",
    "evaluate",
    "export",
    "load",
    "pull",
    "push",
    "save",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import dimdata` stays cheap."""
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'dimdata' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """Keeps submodules, once imported, from hiding the public functions of their names (`distill`, `evaluate`)."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _PUBLIC or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
