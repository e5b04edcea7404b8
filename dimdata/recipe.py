"""How a student is trained on a generator: data that the trainer follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from dimdata.spec import Record, require

MAX_LEGS = 1_000
MAX_LENGTH = 10**9


@dataclass(frozen=True, kw_only=True)
class Leg(Record):
    """One stretch of training.

    Attributes:
        stage: Train on this prefix of the stages; none = all.
        epochs: Passes over the draw; exactly one of `epochs` and `steps` is given.
        steps: Optimiser steps.
        batch_size: Images a step; a smaller draw makes smaller batches.
        shuffle: Whether the order is drawn anew each epoch.
        optimizer: `sgd` or `adamw`.
        lr: Peak learning rate.
        momentum: SGD momentum, in [0, 1).
        nesterov: Nesterov's form of momentum.
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW).
        schedule: `constant`, `onecycle` (cosine up for `warmup`, cosine down), `cosine`, or `step` (`lr_drops`).
        warmup: Share of the steps in which a one-cycle schedule rises, in [0, 1).
        lr_drops: Shares of the steps at which a `step` schedule multiplies the rate by `lr_factor`.
        lr_factor: The factor of those drops.
        step_sizes: Name of a stored tensor `[steps]` of learned step sizes; these replace the optimiser and schedule.
        augment: Operations joined by `+`, such as `flip+crop`; empty = none.
        dialect: `each` (every operation on every image) or `one` (one operation of the list a batch).
    """

    stage: int | None = None
    epochs: int | None = None
    steps: int | None = None
    batch_size: int
    shuffle: bool = True
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Literal["constant", "onecycle", "cosine", "step"] = "constant"
    warmup: float = 0.2
    lr_drops: tuple[float, ...] = ()
    lr_factor: float = 0.1
    step_sizes: str | None = None
    augment: str = ""
    dialect: Literal["each", "one"] = "each"

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        require((self.epochs is None) != (self.steps is None), "leg: exactly one of epochs and steps must be given.")
        length = self.epochs if self.epochs is not None else self.steps
        require(length is not None and 1 <= length <= MAX_LENGTH, f"leg: {length} epochs or steps; 1 or more.")
        require(1 <= self.batch_size <= MAX_LENGTH, f"leg.batch_size is {self.batch_size}; 1 or more is needed.")
        require(self.stage is None or self.stage >= 1, f"leg.stage is {self.stage}; stages count from 1.")
        require(self.lr > 0, f"leg.lr is {self.lr}; it must be positive.")
        require(0 <= self.momentum < 1, f"leg.momentum is {self.momentum}; it must be in [0, 1).")
        require(0 <= self.warmup < 1, f"leg.warmup is {self.warmup}; it must be in [0, 1).")
        require(self.weight_decay >= 0, f"leg.weight_decay is {self.weight_decay}; it must not be negative.")

    def describe(self) -> str:
        """Return the leg in one line, for tables and cards."""
        length = f"{self.epochs} epochs" if self.epochs is not None else f"{self.steps} steps"
        if self.step_sizes:
            how = "learned step sizes"
        else:
            how = f"{self.optimizer} lr {self.lr:g} {self.schedule}"
            if self.optimizer == "sgd":
                how += f", momentum {self.momentum:g}{' (nesterov)' if self.nesterov else ''}"
            how += f", weight decay {self.weight_decay:g}"
        augment = f"augment {self.augment} ({self.dialect})" if self.augment else "no augmentation"
        stage = f"stage {self.stage}, " if self.stage else ""
        order = "" if self.shuffle else ", stored order"
        return f"{stage}{length}, batch {self.batch_size}{order}, {how}, {augment}"


@dataclass(frozen=True, kw_only=True)
class Start(Record):
    """Where a student's weights come from.

    Attributes:
        law: Initialisation law: the network's own `default`, or `xavier`, `kaiming`, `orthogonal`, `normal`; `stored`
            takes the tensors `recipe.start.*`.
        student: The network the stored weights belong to.
    """

    law: Literal["default", "xavier", "kaiming", "orthogonal", "normal", "stored"] = "default"
    student: str | None = None

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        require((self.law == "stored") <= bool(self.student), "start: stored weights must name their student.")


@dataclass(frozen=True, kw_only=True)
class Recipe(Record):
    """The legs a student walks, and where it starts.

    Attributes:
        legs: In order; weights carry on from leg to leg.
        start: The network source of the students.
        tensors: What the recipe needs in numbers, by name; stored as `recipe.NAME` in `model.safetensors`.
    """

    legs: tuple[Leg, ...] = field(metadata={"most": MAX_LEGS})
    start: Start = field(default_factory=Start)
    tensors: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        require(1 <= len(self.legs) <= MAX_LEGS, f"recipe.legs must hold 1 to {MAX_LEGS} legs.")
        for leg in self.legs:
            known = leg.step_sizes is None or leg.step_sizes in self.tensors
            require(known, f"leg.step_sizes names {leg.step_sizes!r:.80}, which recipe.tensors does not list.")

    def describe(self) -> str:
        """Return the recipe in one line."""
        return "; then ".join(leg.describe() for leg in self.legs)


RecipeTensors = dict[str, Tensor]
