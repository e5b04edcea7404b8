"""How a student is trained on a generator: data that the trainer follows."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dimdata.spec import Record, require

MAX_LEGS = 1_000
MAX_LENGTH = 10**9
MAX_COMPONENTS = 65_536

WHITENING = "whitening."  # what the names of its tensors begin with


@dataclass(frozen=True, kw_only=True)
class Leg(Record):
    """One stretch of training.

    Attributes:
        stage: Train on this prefix of the stages; none = all.
        alone: Train on the images of that stage alone, without those of the stages before.
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
        augment: Operations joined by `+`, such as `flip+crop:0.25`; empty = none. See `dimdata.students.augment`.
        dialect: `each` (every operation on every image), `one` (one operation of the list a batch) or `idc` (colour,
            flip and cutout on every image, and one of the others a batch).
    """

    stage: int | None = None
    alone: bool = False
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
    dialect: Literal["each", "one", "idc"] = "each"

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        require((self.epochs is None) != (self.steps is None), "leg: exactly one of epochs and steps must be given.")
        length = self.epochs if self.epochs is not None else self.steps
        require(length is not None and 1 <= length <= MAX_LENGTH, f"leg: {length} epochs or steps; 1 or more.")
        require(1 <= self.batch_size <= MAX_LENGTH, f"leg.batch_size is {self.batch_size}; 1 or more is needed.")
        require(self.stage is None or self.stage >= 1, f"leg.stage is {self.stage}; stages count from 1.")
        require(self.stage is not None or not self.alone, "leg.alone needs leg.stage.")
        require(self.lr > 0, f"leg.lr is {self.lr}; it must be positive.")
        require(0 <= self.momentum < 1, f"leg.momentum is {self.momentum}; it must be in [0, 1).")
        require(0 <= self.warmup < 1, f"leg.warmup is {self.warmup}; it must be in [0, 1).")
        require(all(0 < drop < 1 for drop in self.lr_drops), f"leg.lr_drops are {self.lr_drops}; shares in (0, 1).")
        require(bool(self.lr_drops) or self.schedule != "step", "leg.lr_drops: a step schedule needs at least one.")
        require(self.lr_factor > 0, f"leg.lr_factor is {self.lr_factor}; it must be positive.")
        require(self.weight_decay >= 0, f"leg.weight_decay is {self.weight_decay}; it must not be negative.")

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads; legs on whole prefixes say nothing of `alone`, as they did before it was."""
        data = super().to_json()
        if not self.alone:
            del data["alone"]
        return data

    def describe(self) -> str:
        """Return the leg in one line, for tables and cards."""
        count, unit = (self.epochs, "epoch") if self.epochs is not None else (self.steps, "step")
        length = f"{count} {unit}{'s' * (count != 1)}"
        if self.step_sizes:
            how = "learned step sizes"
        else:
            how = f"{self.optimizer} lr {self.lr:g} {self._schedule()}"
            if self.optimizer == "sgd":
                how += f", momentum {self.momentum:g}{' (nesterov)' if self.nesterov else ''}"
            how += f", weight decay {self.weight_decay:g}"
        augment = f"augment {self.augment} ({self.dialect})" if self.augment else "no augmentation"
        stage = f"stage {self.stage}{' alone' * self.alone}, " if self.stage else ""
        order = "" if self.shuffle else ", stored order"
        return f"{stage}{length}, batch {self.batch_size}{order}, {how}, {augment}"

    def _schedule(self) -> str:
        """Return the schedule with what its name leaves open."""
        if self.schedule == "step":
            return f"step (x{self.lr_factor:g} at {', '.join(f'{100 * drop:.3g} %' for drop in self.lr_drops)})"
        if self.schedule == "onecycle" and self.warmup != type(self).warmup:
            return f"onecycle (rising for {100 * self.warmup:.3g} %)"
        return self.schedule


@dataclass(frozen=True, kw_only=True)
class Start(Record):
    """Where a student's weights come from.

    Attributes:
        law: Initialisation law: the network's own `default`, or `xavier`, `kaiming`, `orthogonal`, `normal`; `stored`
            takes the tensors `recipe.start.*`.
        student: The network the recipe was made for: the only one that stored weights fit.
    """

    law: Literal["default", "xavier", "kaiming", "orthogonal", "normal", "stored"] = "default"
    student: str | None = None

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        require((self.law == "stored") <= bool(self.student), "start: stored weights must name their student.")


@dataclass(frozen=True, kw_only=True)
class WhiteningSpec(Record):
    """ZCA whitening, in which students see images; see `dimdata.whitening`.

    Attributes:
        eps: What is added to each variance, in squares of pixel values in [0, 1].
        components: Principal components that are stored, K.
    """

    eps: float
    components: int

    @classmethod
    def label(cls) -> str:
        """The name of this record in messages."""
        return "whitening"

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        require(1e-6 <= self.eps <= 1e6, f"whitening.eps is {self.eps:g}; 1e-6 to 1e6 is read.")
        fits = 1 <= self.components <= MAX_COMPONENTS
        require(fits, f"whitening.components is {self.components}; 1 to {MAX_COMPONENTS:,} are read.")

    def shapes(self, image_shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return type and shape of each tensor for images of a shape.

        Raises:
            FormatError: If there are more components than values of an image.
        """
        values = math.prod(image_shape)
        require(
            self.components <= values,
            f"whitening.components is {self.components}; images of {values} values have no more.",
        )
        return {
            "mean": (torch.float32, image_shape),
            "components": (torch.float16, (self.components, *image_shape)),
            "variances": (torch.float32, (self.components,)),
        }

    def nbytes(self, image_shape: tuple[int, ...]) -> int:
        """Return the bytes of the tensors for images of a shape."""
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.shapes(image_shape).values())


@dataclass(frozen=True, kw_only=True)
class Recipe(Record):
    """The legs a student walks, and where it starts.

    Attributes:
        legs: In order; weights carry on from leg to leg.
        start: The network source of the students.
        tensors: What the recipe needs in numbers, by name; stored as `recipe.NAME` in `model.safetensors`.
        whitening: How students see images, instead of by mean and deviation: whitened, by the tensors `whitening.mean`,
            `whitening.components` and `whitening.variances`.
    """

    legs: tuple[Leg, ...] = field(metadata={"most": MAX_LEGS})
    start: Start = field(default_factory=Start)
    tensors: tuple[str, ...] = ()
    whitening: WhiteningSpec | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads; recipes without whitening say nothing of it, as they did before it was."""
        data = super().to_json()
        if self.whitening is None:
            del data["whitening"]
        return data

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        require(1 <= len(self.legs) <= MAX_LEGS, f"recipe.legs must hold 1 to {MAX_LEGS} legs.")
        for leg in self.legs:
            known = leg.step_sizes is None or leg.step_sizes in self.tensors
            require(known, f"leg.step_sizes names {leg.step_sizes!r:.80}, which recipe.tensors does not list.")
        listed = {name for name in self.tensors if name.startswith(WHITENING)}
        wanted = {f"{WHITENING}{name}" for name in ("mean", "components", "variances")} if self.whitening else set()
        require(
            listed == wanted,
            f"recipe.tensors and recipe.whitening contradict each other: {min(listed ^ wanted, default='')!r:.80}.",
        )

    def upto(self, stage: int) -> Recipe:
        """Return the recipe for a prefix of the stages: without the legs of later ones, and their step sizes."""
        legs = tuple(leg for leg in self.legs if leg.stage is None or leg.stage <= stage)
        require(bool(legs), f"The recipe has no leg for stage {stage}.")
        return self._on(legs)

    def only(self, stage: int) -> Recipe:
        """Return the recipe for one stage by itself: its legs, or those of no stage where it has none."""
        legs = [leg for leg in self.upto(stage).legs if leg.stage == stage] or [x for x in self.legs if x.stage is None]
        require(bool(legs), f"The recipe has no leg for stage {stage}.")
        return self._on(tuple(dataclasses.replace(leg, stage=None, alone=False) for leg in legs))

    def _on(self, legs: tuple[Leg, ...]) -> Recipe:
        """Return the recipe on some of its legs, without the step sizes of others."""
        unused = {leg.step_sizes for leg in self.legs} - {leg.step_sizes for leg in legs}
        return dataclasses.replace(self, legs=legs, tensors=tuple(name for name in self.tensors if name not in unused))

    @property
    def learned_steps(self) -> bool:
        """Whether steps were learned one by one, so that the recipe is followed as it is or not at all."""
        return any(leg.step_sizes is not None for leg in self.legs)

    @property
    def one_by_one(self) -> bool:
        """Whether stages are walked one by one, some more than once: other than by passes over all of their images."""
        alone = [leg for leg in self.legs if leg.alone]
        return len(alone) > 1 and any(leg.epochs != 1 for leg in alone)

    @property
    def student(self) -> str:
        """The student the recipe was made for; convnet3, the field's yardstick, where it names none."""
        return self.start.student or "convnet3"

    def describe(self) -> str:
        """Return the recipe in one line."""
        legs = "; then ".join(leg.describe() for leg in self.legs)
        if self.whitening is not None:
            legs = f"on whitened images (ZCA, eps {self.whitening.eps:g}): {legs}"
        if self.start.law == "stored":
            return f"from stored weights of {self.start.student}: {legs}"
        return legs if self.start.law == "default" else f"from {self.start.law} weights: {legs}"


RecipeTensors = dict[str, Tensor]
