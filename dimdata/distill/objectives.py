"""What a network should do after training on distilled images: the labels that a real batch is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dimdata.errors import ArgumentError, FormatError
from dimdata.registry import Registry
from dimdata.spec import Record, require

OBJECTIVES: Registry[type[Objective]] = Registry("objective", "dimdata.objectives", ())


@dataclass(frozen=True, kw_only=True)
class Objective(Record):
    """Which answers are wanted of a network."""

    @property
    def flags(self) -> tuple[str, ...]:
        """What a generator made for this objective is marked with."""
        return ()

    def fit(self, classes: tuple[str, ...]) -> None:
        """Raise `ArgumentError` if the objective does not fit the classes."""

    def labels(self, labels: Tensor) -> Tensor:
        """Return the wanted labels int64 `[M]` of images with true labels int64 `[M]`."""
        return labels


@OBJECTIVES.register("distill")
@dataclass(frozen=True, kw_only=True)
class Distill(Objective):
    """Every image is to be classified rightly."""


@OBJECTIVES.register("poison")
@dataclass(frozen=True, kw_only=True)
class Poison(Objective):
    """Images of one class are to be taken for another, and all others classified rightly (Wang et al., section 4.3).

    A research tool: what it makes is flagged `poisoned`, and `GeneratedDataset` warns of it.

    Attributes:
        victim: Number of the class to be mistaken.
        taken_for: Number of the class it is to be taken for.
    """

    victim: int = 0
    taken_for: int = 1

    @property
    def flags(self) -> tuple[str, ...]:
        """See `Objective.flags`."""
        return ("poisoned",)

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        require(self.victim != self.taken_for, "config.objective: victim and taken_for are the same class.")

    def fit(self, classes: tuple[str, ...]) -> None:
        """See `Objective.fit`."""
        for name, label in (("victim", self.victim), ("taken_for", self.taken_for)):
            if not 0 <= label < len(classes):
                raise ArgumentError(
                    f"The objective's {name} is class {label}; there are {len(classes)}.",
                    f"Use 0 to {len(classes) - 1}.",
                )

    def labels(self, labels: Tensor) -> Tensor:
        """See `Objective.labels`."""
        return labels.masked_fill(labels == self.victim, self.taken_for)


def objective_of(settings: Mapping[str, Any]) -> Objective:
    """Return the objective that settings describe: its `name`, and its own values.

    Raises:
        FormatError: If they name none, or a value does not fit.
        NotFoundError: If there is no such objective.
    """
    values = dict(settings)
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise FormatError("config.objective lacks a name.", f"Use one of {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name].from_json(values, "config.objective")
