"""Dataset Distillation (Wang et al., arXiv 1811.10959): learned images with learned step sizes.

A network takes a few steps of plain gradient descent on the learned images, always in the same order, and should then
classify real images well. The images and one positive step size for each step taken are learned by gradient descent
through that whole training (`unroll`). With soft labels (Sucholutsky and Schonlau, IJCNN 2021) the images' class
distributions are learned too, and there may be fewer images than classes.

The result belongs to the order, the step sizes and the start it was learned for; its recipe carries all three.

Otherwise than published: the learning rates fall by a cosine (`lr_end`; there to a half every 40 epochs); the networks
of a step share the `batch_size` real images out, and the mean of their gradients counts (there each sees all of them,
and the sum counts); gradients are cut (`clip`, `network_clip`); and where networks are trained first, `pretrain.count`
of them are (8 unless it is set; there 2,000).

As a later stage of a progressive distillation it learns more images, and their step sizes, for networks at the end of
the stages before. Unrolling goes through the stage's own part of a student's training alone, so a step of learning
costs less by the number of stages: each stage takes as many of them as the method takes without stages.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dimdata import latents
from dimdata.distill.beginnings import BEGINNINGS, Beginning, Origin, Setting, begin, origin_of
from dimdata.distill.method import METHODS, Earlier, Losses, Method, Phase, Probe
from dimdata.distill.objectives import objective_of
from dimdata.distill.starts import Pretrain, Starts
from dimdata.distill.state import pack_optimizer, unpack_optimizer
from dimdata.distill.unroll import Unroll, Weights
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, FormatError
from dimdata.files import shareable
from dimdata.generators.base import Generator
from dimdata.generators.table import table_generator
from dimdata.real import Batches, RealData
from dimdata.recipe import Leg, Recipe
from dimdata.spec import Record, canonical_json, require

SIZES = "step_sizes"  # the recipe tensor of the learned step sizes

_BATCHES = latents.stream("dd.batches")
_ENDS = latents.stream("dd.ends")
_JUDGES = 8  # steps' worth of networks and real images that a scale of the step sizes is tried on
_PROBED = 8  # random starts
_LEAST = 1e-4  # of a class's share of a soft label that learning goes on from
_ROUNDING = 1e-5  # of images in [0, 1] that were normalised and back
_TRIED = (1, 4, 16, 64)  # times the first step size, at which a choice of real images is scored

log = logging.getLogger("dimdata")


@dataclass(frozen=True, kw_only=True)
class DDConfig(Record):
    """How Dataset Distillation is run.

    Attributes:
        student: The network that is trained on the images; without batch normalisation and dropout.
        law: Initialisation law of its weights; see `students.source.InitLaw`.
        start: `fixed` (one draw of weights, stored with the result) or `random` (new weights each step).
        pretrain: Weights that are trained first: for adaptation, and for poisoning.
        networks: Networks trained in each step; they differ only under a random start.
        inner_steps: Different batches of learned images.
        epochs: How often a training goes through them.
        per_class: Images of each class in a batch.
        images: Images in a batch, whatever the classes; 0 = by `per_class`.
        soft: Whether the images' class distributions are learned.
        smoothing: What soft labels begin with: this share is spread over all classes.
        begin: What the images begin as: `noise`, real ones (`random`, `selected`, `kmeans`, `mean`), or the name or
            folder of a stored result, whose images, soft labels and flags are taken on. So are its start, where start
            is `fixed` and the student the same, and its step sizes, where the batches are the same; epochs that it did
            not have begin with half the mean of those of its last.
        learn_images: Whether the images are learned; without, real images get step sizes (the paper's baselines).
        step_size: What the step sizes begin as.
        objective: What the trained network should do; `distill`, or `poison` with `victim` and `taken_for`.
        batch_size: Real images that judge the networks of a step, which share them out.
        lr: Adam's learning rate of the images, which are in normalised units.
        lr_targets: Of the soft labels' logits.
        lr_sizes: Of the step sizes, behind a softplus: nearly the relative change of a small one.
        lr_end: The share of the learning rates that a cosine falls to.
        warmup: Steps in which the learning rates rise from nothing; 0 = none. Adam knows no usual gradient at first
            and takes steps of the full rate, by which a stored result that is begun with may first get worse.
        betas: Adam's decay of its first and second moments.
        window: Unroll to a random end of the training, at this step or later, and go back through so many steps from
            there (RaT-BPTT: Feng et al., ICLR 2024); 0 = always to the last step, and through all. A long training
            that is unrolled whole has gradients of any size, and one of its windows costs less.
        network_clip: The gradient of one network is cut to so many times the median norm of a step's networks; 0 =
            never.
        clip: A gradient is cut to so many times its usual norm, as Adam's second moments tell it; 0 = never.
        calibrate: Scales of all step sizes, tried once on new networks and real training images when all else is
            learned; the one of the least loss is kept. Learned in windows, or by gradients that are cut, step sizes may
            stand too near to divergence for some networks. Empty = as learned.
        default_steps: Steps of a run that names no budget.
    """

    student: str = "lenet"
    law: Literal["default", "xavier", "kaiming", "orthogonal", "normal"] = "xavier"
    start: Literal["fixed", "random"] = "fixed"
    pretrain: Pretrain = field(default_factory=Pretrain)
    networks: int = 1
    inner_steps: int = 10
    epochs: int = 3
    per_class: int = 1
    images: int = 0
    soft: bool = False
    smoothing: float = 0.1
    begin: str = "noise"
    learn_images: bool = True
    step_size: float = 0.02
    objective: Mapping[str, Any] = field(default_factory=lambda: {"name": "distill"})
    batch_size: int = 1024
    lr: float = 0.01
    lr_targets: float = 0.01
    lr_sizes: float = 0.01
    lr_end: float = 0.01
    warmup: int = 0
    betas: tuple[float, float] = (0.5, 0.999)
    window: int = 0
    network_clip: float = 1.0
    clip: float = 3.0
    calibrate: tuple[float, ...] = ()
    default_steps: int = 5_000

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        for name in ("networks", "inner_steps", "epochs", "per_class", "batch_size", "default_steps"):
            require(getattr(self, name) >= 1, f"config.{name} is {getattr(self, name)}; 1 or more is needed.")
        require(self.batch_size >= self.networks, "config.batch_size must be one image a network or more.")
        require(self.images >= 0, f"config.images is {self.images}; 0 or more is needed.")
        for name in ("step_size", "lr", "lr_targets", "lr_sizes"):
            require(getattr(self, name) > 0, f"config.{name} is {getattr(self, name)}; it must be positive.")
        require(0 < self.smoothing < 1, f"config.smoothing is {self.smoothing}; it must be in (0, 1).")
        require(0 <= self.lr_end <= 1, f"config.lr_end is {self.lr_end}; it must be in [0, 1].")
        require(self.warmup >= 0, f"config.warmup is {self.warmup}; it must not be negative.")
        require(all(0 <= beta < 1 for beta in self.betas), f"config.betas are {self.betas}; they must be in [0, 1).")
        steps = self.inner_steps * self.epochs
        require(0 <= self.window <= steps, f"config.window is {self.window}; 0 to {steps} are steps of the training.")
        require(self.network_clip >= 0, f"config.network_clip is {self.network_clip}; it must not be negative.")
        scales = self.calibrate
        require(all(0 < scale <= 10 for scale in scales), f"config.calibrate is {scales}; scales are in (0, 10].")
        require(self.clip >= 0, f"config.clip is {self.clip}; it must not be negative.")
        require(
            self.start == "random" or self.networks == 1,
            f"config.networks is {self.networks}; from a fixed start all networks are the same one.",
        )


@METHODS.register("dd")
class DD(Method):
    """Dataset Distillation; see the module's docstring."""

    Config = DDConfig
    config: DDConfig

    def __init__(
        self,
        config: DDConfig,
        real: RealData,
        engine: Engine,
        seed: int,
        steps: int,
        earlier: Earlier | None = None,
    ) -> None:
        # Training by unrounded step sizes is what is learned: half precision would be another training.
        engine = dataclasses.replace(engine, bf16=False)
        super().__init__(config, real, engine, seed, steps, earlier)
        self.config = config
        classes = real.num_classes
        self.per_step = config.images or config.per_class * classes
        rows = config.inner_steps * self.per_step
        require(
            config.soft or rows >= classes,
            f"{rows} images ({config.inner_steps} batches of {self.per_step}, those of a stage where there are stages) "
            f"are fewer than the {classes} classes, which takes soft labels (soft=true).",
        )
        self.objective = objective_of(config.objective)
        self.objective.fit(real.classes)
        self.mean = torch.tensor(real.mean, device=engine.device)[:, None, None]
        self.std = torch.tensor(real.std, device=engine.device)[:, None, None]
        self.batches = Batches(real.train, engine.device, latents.fold(_BATCHES, seed), config.batch_size)
        self._ends = latents.fold(_ENDS, seed)
        self.starts = Starts(config.student, config.law, config.start, config.pretrain, real, engine, seed, earlier)
        self.unroll = Unroll(self.starts.template(), engine)
        self.first_row = (earlier.generator.images or 0) if earlier else 0
        self.hard = (
            _by_row(rows, classes, self.first_row).view(config.inner_steps, self.per_step, classes).to(engine.device)
        )
        self.origin = Origin()
        self._has_begun = self._told = False
        self._learned = {"images": self.hard.new_zeros(*self.hard.shape[:2], *real.image_shape)}
        if config.soft:
            self._learned["logits"] = torch.zeros_like(self.hard)
        self._learned["sizes"] = self.hard.new_zeros(config.inner_steps * config.epochs)
        groups = {"images": config.lr, "logits": config.lr_targets, "sizes": config.lr_sizes}
        self.rates = {name: groups[name] for name in self._learned if name != "images" or config.learn_images}
        for name in self.rates:
            self._learned[name].requires_grad_()
        self.optimizer = torch.optim.Adam(
            [{"params": [self._learned[name]], "lr": rate} for name, rate in self.rates.items()], betas=config.betas
        )
        before, after = len(self.starts.trainees), bool(config.calibrate)
        if steps <= before + after:
            parts = [f"{before} networks are trained first, one a step"] * (before > 0)
            parts += ["the last step calibrates"] * after
            raise ArgumentError(
                f"{steps} steps are too few: {', and '.join(parts)}.",
                "Ask for more steps" + (", or fewer networks (pretrain.count)." if before else "."),
            )
        self.settles = after  # its step is the last of those that were planned

    @classmethod
    def for_stages(cls, config: Record, stages: int) -> Record:
        """Share the batches out among the stages, but not the steps; see `Method.for_stages`."""
        assert isinstance(config, DDConfig)
        if stages == 1:
            return config
        if config.begin not in BEGINNINGS:
            raise ArgumentError(f"Stages cannot begin as {config.begin!r:.80}.", f"Use {', '.join(BEGINNINGS)}.")
        if config.pretrain.networks(config.start):
            raise ArgumentError(
                "Stages cannot be learned for networks that the run trains first (pretrain.on).",
                "Leave it out" + (", or give one that dimdata train -o has stored." * (config.start == "fixed") or "."),
            )
        inner = config.inner_steps
        if inner % stages:
            fit = [str(n) for n in range(2, inner + 1) if inner % n == 0]
            raise ArgumentError(
                f"{inner} batches (inner_steps) cannot be shared equally among {stages} stages.",
                f"Use {', '.join(fit[:12])} stages, or other inner_steps." if fit else "Ask for more inner_steps.",
            )
        window = min(config.window, inner // stages * config.epochs)
        return dataclasses.replace(config, inner_steps=inner // stages, window=window)

    def require_recipe(self) -> None:
        """Do nothing: no part of the recipe is given, and to look at it would begin the images; see `Method`."""

    @property
    def learned(self) -> Mapping[str, Tensor]:
        """What is learned: `images` `[S, B, C, H, W]` in normalised units, `logits` `[S, B, K]` of the soft labels,
        and `sizes` `[T]`, the step sizes before the softplus.

        It is made when it is first asked for, so that a run that goes on needs nothing of what it began with.
        """
        self._begin()
        return self._learned

    def _begin(self) -> None:
        """Make the beginning, unless there is one."""
        if self._has_begun:
            return
        config = self.config
        own = self.hard[..., 0].numel()
        real, seed = (self.earlier.real, self.earlier.seed) if self.earlier else (self.real, self.seed)
        # A stage begins with the last rows of what so many images without stages begin with. Where there are too few
        # real ones for that it begins with the last there are, rows being of the same classes.
        rows, most = self.first_row + own, int(real.train.counts.min()) * real.num_classes
        if rows > most >= own:
            rows = most - (most - rows) % real.num_classes
        begun = begin(config.begin, Setting(real, rows, seed, lambda images: self._score(images[-own:])))
        if begun.targets is not None and not config.soft:
            raise ArgumentError(f"The images of {config.begin} have soft labels.", "Learn them on: --set soft=true.")
        if begun.start is not None and self.starts.fixed and begun.student == config.student:
            if config.pretrain.on:
                raise ArgumentError(
                    f"{config.begin} stores the start that its images belong to, and pretrain asks for another.",
                    "Leave out pretrain.on, or begin otherwise.",
                )
            self.starts.replace(begun.start, f"The start stored in {config.begin}")
        first = self._first(begun)
        with torch.no_grad():
            for name, tensor in self._learned.items():
                tensor.copy_(first[name])
        self.origin, self._has_begun = begun.origin, True

    def _first(self, begun: Beginning) -> dict[str, Tensor]:
        """Return what is learned as it begins; see `learned`."""
        config, device = self.config, self.engine.device
        own = begun.images[-self.hard[..., 0].numel() :].to(device)
        images = self.normalise(own).view(*self.hard.shape[:2], *self.real.image_shape)
        first = {"images": images.contiguous()}
        if config.soft:
            blunt = torch.lerp(self.hard, self.hard.new_full((), 1 / self.real.num_classes), config.smoothing)
            targets = blunt if begun.targets is None else begun.targets.to(device).view_as(blunt).clamp_min(_LEAST)
            first["logits"] = targets.log()
        steps = config.inner_steps * config.epochs
        sizes = torch.full((steps,), self._usual_size())
        if begun.sizes is not None and begun.batch == self.per_step:
            sizes = _of_length(begun.sizes, steps, config.inner_steps)
        elif begun.sizes is not None:
            log.warning(
                "The step sizes of %s are for batches of %d images, not %d: they begin anew.",
                *(config.begin, begun.batch, self.per_step),
            )
        return first | {"sizes": _before_softplus(sizes.to(device))}

    def _usual_size(self) -> float:
        """Return what step sizes begin as: as configured, or half the mean of the last of the stage before, if greater.

        Its first ones, from untrained weights, are by far the greatest. Where its last are small, images would hardly
        be learned by smaller ones, and stages after it less and less.
        """
        if self.earlier is None:
            return self.config.step_size
        before = self.earlier.generator
        sizes = before.recipe_tensors[before.recipe.legs[-1].step_sizes or ""]
        half = float(_of_length(sizes, len(sizes) + 1, self.config.inner_steps)[-1])
        return max(half, self.config.step_size)

    def least_per_class(self) -> int:
        """Return the real images of each class that it begins with."""
        few = self.config.begin in ("noise", "mean") or self.config.begin not in BEGINNINGS
        return 1 if few else -(-self.hard[..., 0].numel() // self.real.num_classes)

    @classmethod
    def default_steps(cls, config: Record) -> int:
        """Return the configured number of steps of the unrolled training, and those of the phases around it."""
        assert isinstance(config, DDConfig)
        return config.default_steps + config.pretrain.networks(config.start) + bool(config.calibrate)

    def phases(self) -> tuple[Phase, ...]:
        """Return the training of networks that are trained first, one a step, the unrolled training, and calibration.

        Raises:
            DimdataError: If there is nothing of what the images are to begin as, or it does not fit.
        """
        self._begin()
        starts, images = self.starts, self.config.batch_size
        first = len(starts.trainees)
        part = self._part if first else None
        found = [Phase("unroll", self._unrolled(), self._take_step, images, part=part)]
        if first:
            ready = starts.ready
            train = Phase("pretrain", first, starts.train_one, starts.images, part=starts.part, ready=ready, fixed=True)
            found.insert(0, train)
        if self.config.calibrate:
            each = _JUDGES * images
            found.append(Phase("calibrate", 1, self._calibrate, each, part=self._calibrate_part, fixed=True))
        return tuple(found)

    def enter(self, phase: Phase) -> Phase:
        """Return the phase as if nothing were ready: networks that `begin` has trained are of this run, too."""
        return dataclasses.replace(phase, ready=0)

    def _unrolled(self) -> int:
        """Return how many of the steps unroll a training."""
        return max(1, self.steps - len(self.starts.trainees) - bool(self.config.calibrate))

    def normalise(self, images: Tensor) -> Tensor:
        """Bring images `[N, C, H, W]` from [0, 1] to zero mean and unit deviation."""
        return (images - self.mean) / self.std

    def targets(self) -> Tensor:
        """Return the targets as they stand, `[S, B, K]`."""
        return self.learned["logits"].softmax(-1) if self.config.soft else self.hard

    def sizes(self) -> Tensor:
        """Return the step sizes as they stand, `[T]`."""
        return F.softplus(self.learned["sizes"])

    def _score(self, images: Tensor) -> float:
        """Return the loss after training on images `[N, C, H, W]` in [0, 1], at the best of a few equal step sizes."""
        config = self.config
        batches = self.normalise(images.to(self.engine.device)).view(*self.hard.shape[:2], *self.real.image_shape)
        steps = config.inner_steps * config.epochs
        sizes = torch.full((steps,), self._usual_size(), device=self.engine.device)
        weights = self.starts.weights(0, config.networks)
        real, labels = self.batches.at(0)
        real, labels = self.normalise(real), self.objective.labels(labels)
        losses = []
        for factor in _TRIED:
            with self.engine.exact():
                last = self.unroll.trajectory(weights, batches, self.hard, factor * sizes)[-1]
                loss = float(self.unroll.losses(last, real, labels).mean())
            losses.append(loss if math.isfinite(loss) else math.inf)
        return min(losses)

    def _take_step(self, step: int) -> Losses:
        return self._step(step, self.starts.weights(step, self.config.networks))

    def _part(self) -> tuple[Losses, float]:
        """Take a whole step from weights that took no training, which takes as long and needs no phase before."""
        return self._step(0, self.starts.untrained(self.config.networks)), 1.0

    def _step(self, step: int, weights: list[Weights]) -> Losses:
        real, labels = self.batches.at(step)
        targets, sizes = self.targets(), self.sizes()
        taken = sizes[: self._end(step)]
        with self.engine.exact():
            found = self.unroll.gradients(
                weights,
                self.learned["images"].detach(),
                targets.detach(),
                taken.detach(),
                self.normalise(real),
                self.objective.labels(labels),
                window=self.config.window,
                limit=self.config.network_clip,
            )
        self.optimizer.zero_grad(set_to_none=True)
        if self.config.learn_images:
            self.learned["images"].grad = found.images
        if self.config.soft:
            targets.backward(found.targets)  # type: ignore[no-untyped-call]
        taken.backward(found.sizes)  # type: ignore[no-untyped-call]
        share = (1 + math.cos(math.pi * min(1.0, step / self._unrolled()))) / 2
        share = self.config.lr_end + (1 - self.config.lr_end) * share
        if step < self.config.warmup:
            share *= (step + 1) / self.config.warmup
        for group, rate in zip(self.optimizer.param_groups, self.rates.values(), strict=True):
            group["lr"] = rate * share
            if self.config.clip:
                self._cut(group["params"][0], group["betas"][1])
        self.optimizer.step()
        return {"loss": found.loss, "step size": sizes.detach().mean()}

    def _calibrate(self, step: int) -> Losses:
        """Keep the scale of the step sizes after which new networks have the least loss; see `DDConfig.calibrate`."""
        images, targets, sizes = self.learned["images"].detach(), self.targets().detach(), self.sizes().detach()
        lots = range(self._unrolled(), self._unrolled() + _JUDGES)
        count = self.config.networks
        losses = []
        with self.engine.exact():
            for scale in self.config.calibrate:
                scaled = (images, targets, scale * sizes)
                each = [self._judged(lot, self.starts.weights(lot, count), *scaled) for lot in lots]
                found = torch.cat(each)
                losses.append(torch.where(found.isfinite(), found, found.new_full((), math.inf)).mean())
        best = int(torch.stack(losses).argmin())
        with torch.no_grad():
            self.learned["sizes"].copy_(_before_softplus(self.config.calibrate[best] * sizes))
        least = losses[best].nan_to_num(posinf=torch.finfo(torch.float32).max)
        return {"loss": least, "scale": torch.tensor(self.config.calibrate[best])}

    def _judged(self, lot: int, weights: list[Weights], images: Tensor, targets: Tensor, sizes: Tensor) -> Tensor:
        """Return the losses `[N]` of networks after training, on the real images of a step."""
        real, labels = self.batches.at(lot)
        last = self.unroll.trajectory(weights, images, targets, sizes)[-1]
        return self.unroll.losses(last, self.normalise(real), self.objective.labels(labels))

    def _calibrate_part(self) -> tuple[Losses, float]:
        """Try one scale on one lot, from weights that took no training; change nothing."""
        images, targets, sizes = self.learned["images"].detach(), self.targets().detach(), self.sizes().detach()
        with self.engine.exact():
            losses = self._judged(0, self.starts.untrained(self.config.networks), images, targets, sizes)
        return {"loss": losses.mean()}, 1 / (_JUDGES * len(self.config.calibrate))

    def _end(self, step: int) -> int:
        """Return how many steps of the training are taken before it is judged."""
        steps, window = self.config.inner_steps * self.config.epochs, self.config.window
        if not window:
            return steps
        return window + int(latents.integers(self._ends, torch.tensor([step]), steps - window + 1))

    def _cut(self, tensor: Tensor, decay: float) -> None:
        """Shorten a gradient that is much longer than usual: a training on the edge of divergence says little."""
        state = self.optimizer.state.get(tensor)
        if state and tensor.grad is not None:
            usual = (state["exp_avg_sq"].sum() / (1 - decay ** state["step"])).sqrt()
            tensor.grad.mul_((self.config.clip * usual / tensor.grad.norm().clamp_min(1e-30)).clamp(max=1.0))

    def state_dict(self) -> dict[str, Tensor]:
        """Return images, targets, step sizes, their moments, where they come from, and the weights of fixed starts."""
        learned = {f"learned.{name}": tensor.detach() for name, tensor in self.learned.items()}
        if self.config.begin not in BEGINNINGS:
            text = canonical_json(self.origin.to_json()).encode()
            learned["origin"] = torch.tensor(list(text), dtype=torch.uint8)
        return learned | pack_optimizer("adam", self.optimizer) | self.starts.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        with torch.no_grad():
            for name, tensor in self._learned.items():
                tensor.copy_(state[f"learned.{name}"])
        self._has_begun = True
        if "origin" in state:
            try:
                self.origin = Origin.from_json(json.loads(bytes(state["origin"].tolist())))
            except FormatError as error:
                raise ValueError(str(error)) from error  # it is the checkpoint that is damaged
        elif self.config.begin in BEGINNINGS:
            self.origin = origin_of(self.config.begin)
        unpack_optimizer("adam", self.optimizer, state)
        self.starts.load_state_dict(state)

    def checkpoint_bytes(self, anew: bool = False) -> int:
        """Return the bytes of a checkpoint once all networks are trained; see `Method.checkpoint_bytes`."""
        return super().checkpoint_bytes(anew) + self.starts.missing_bytes()

    def provenance(self) -> Mapping[str, str]:
        """Return the stored result that the images began as, if they did."""
        if not self.origin.sha256:
            return {}
        return {"began_as": f"{shareable(self.config.begin)}, weights of sha256 {self.origin.sha256}"}

    def probe(self) -> Probe:
        """Score the student itself, trained on all images: the figure that the stored recipe gives again."""
        if self.objective.flags and not self._told:
            self._told = True
            log.warning("Probes judge by the true labels: what the objective wants mistaken counts as wrong.")
        return Probe(self.config.student, None, 1 if self.starts.alike else _PROBED, steps=None)

    def generator(self) -> Generator:
        """Return the images as a table, with a recipe of their order, step sizes and start."""
        real, config = self.real, self.config
        start, tensors = self.starts.stored()
        order = {"epochs": config.epochs, "batch_size": self.per_step, "shuffle": False}
        name = f"{SIZES}.{self.earlier.generator.stages + 1}" if self.earlier else SIZES
        leg = Leg(**order, step_sizes=name, momentum=0.0, weight_decay=0.0)  # type: ignore[arg-type]
        tensors = {name: self.sizes().detach().cpu(), **tensors}
        images = (self.learned["images"].detach().flatten(0, 1) * self.std + self.mean).cpu()
        targets = self.targets().detach().flatten(0, 1).cpu() if config.soft else None
        if not config.learn_images and images.min() > -_ROUNDING and images.max() < 1 + _ROUNDING:
            images = images.clamp(0, 1)
        row = torch.arange(self.first_row, self.first_row + len(images))
        made = table_generator(
            images,
            targets=targets,
            labels=None if config.soft else row % real.num_classes,
            classes=real.classes,
            mean=real.mean,
            std=real.std,
            recipe=Recipe(legs=(leg,), start=start, tensors=tuple(tensors)),
            dataset=real.name,
            # Images that nothing was learned of remain what they were.
            method="dd" if config.learn_images or config.soft else self.origin.method,
            flags=tuple(dict.fromkeys((*self.origin.flags, *self.objective.flags))),
        )
        made.recipe_tensors = tensors
        return made


def _by_row(rows: int, classes: int, first: int = 0) -> Tensor:
    """Return the class of each row from a first one on as a distribution `[rows, classes]`.

    Where rows are fewer than classes, a row has several.
    """
    if rows >= classes:
        return F.one_hot(torch.arange(first, first + rows) % classes, classes).to(torch.float32)
    shares = F.one_hot((torch.arange(classes) - first) % classes % rows, rows).T.to(torch.float32)
    return shares / shares.sum(1, keepdim=True)


def _of_length(sizes: Tensor, steps: int, batches: int) -> Tensor:
    """Return step sizes for a longer or shorter training: more steps begin with half the mean of the last epoch's."""
    more = max(0, steps - len(sizes))
    return torch.cat([sizes[:steps], sizes[-batches:].mean().div(2).expand(more)])


def _before_softplus(sizes: Tensor) -> Tensor:
    """Return what a softplus maps to positive sizes."""
    return sizes + (-torch.expm1(-sizes)).log()
