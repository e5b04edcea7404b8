"""Training a student by a recipe; nothing here knows a method's name."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from dimdata import latents
from dimdata.cells import require_whole_stages, with_epochs
from dimdata.dataset import GeneratedDataset
from dimdata.engine import Engine
from dimdata.errors import ArgumentError
from dimdata.generators.base import Generator
from dimdata.outputs import Normalize
from dimdata.recipe import Recipe
from dimdata.spec import Spec
from dimdata.students import Factory, compiling, find_student
from dimdata.students.augment import parse
from dimdata.students.feed import Feed, Source
from dimdata.students.legs import lr_at, optimizer_of, rates_of
from dimdata.students.own import student_name
from dimdata.students.score import accuracy
from dimdata.students.source import START, source_of
from dimdata.students.store import StudentInfo, load_student, save_student
from dimdata.whitening import Whitening

__all__ = ["StudentInfo", "TrainResult", "accuracy", "load_student", "lr_at", "save_student", "train"]

log = logging.getLogger("dimdata")

OnStep = Callable[[int, int, Tensor], None]
OnLeg = Callable[[int, nn.Module], None]

_AUGMENT = latents.stream("augment of training")
_DROPOUT = latents.stream("dropout of training")


@dataclass(frozen=True)
class TrainResult:
    """What a training did.

    Attributes:
        network: The student, in `eval()` mode on the engine's device.
        steps: Optimiser steps.
        images_drawn: Images shown, repeated ones counted each time.
        distinct_images: Different images shown.
        seconds: Wall time.
        loss: The loss of the last step; not finite where the student diverged, or where no step was taken.
        info: What the student is, as `save_student` stores it.
    """

    network: nn.Module
    steps: int
    images_drawn: int
    distinct_images: int
    seconds: float
    loss: float
    info: StudentInfo

    @property
    def diverged(self) -> bool:
        """Whether steps were taken and the last loss is no finite number."""
        return self.steps > 0 and not math.isfinite(self.loss)


def train(
    network: str | Factory | nn.Module,
    generator: Generator | GeneratedDataset | str | Path,
    *,
    ipc: int | None = None,
    epochs: int | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    draw: str = "fresh",
    stage: int | None = None,
    engine: Engine | str | torch.device | None = None,
    on_step: OnStep | None = None,
    on_leg: OnLeg | None = None,
    limit_steps: int | None = None,
    alike: int = 1,
    whole_batches: bool = False,
) -> TrainResult:
    """Train a student on a generator's images, leg by leg as the recipe says.

    Epochs count on over the legs, and so does the state of the optimiser while its kind stays the same. Everything is
    a pure function of the seed and the starting weights, at equal precision and number of threads on an equal CPU
    (kernels of a GPU may add up in another order). A loss that is no finite number at the end is warned of in the log
    `dimdata`.

    Args:
        network: A student's name or factory, started as the recipe says; or a network, trained in place as it is.
        generator: What to train on; a dataset's images per class, seed and draw hold.
        ipc: Images per class; see `GeneratedDataset`.
        epochs: Passes instead of the recipe's, shared among its legs as before.
        recipe: The generator's own unless given.
        seed: Of the starting weights, latents, order and augmentation.
        draw: `fresh` or `fixed`.
        stage: Use this prefix of the stages: later legs are left out.
        engine: Where to compute: an engine, or a device such as `cpu` or `cuda:1`; the best there is unless given.
        on_step: Called after each step with its number from 1, how many there are, and the loss, a tensor on the
            device.
        on_leg: Called after each leg with its number from 1 and the network.
        limit_steps: Stop after so many steps; schedules do not change.
        alike: How many trainings of this length one process will do, this one included: what is not worth compiling for
            one may be worth it for all.
        whole_batches: Let batches of stored images run over the end of an epoch, so that none is smaller than the
            others, and go on where the leg before ended, in legs that count steps.

    Returns:
        The result; its `network` is in `eval()` mode.

    Raises:
        ArgumentError: If an argument is out of range, or the network does not fit the images or classes.
        FormatError: If the recipe names tensors that are missing or do not fit.
        DimdataError: If the generator cannot be found or read.
    """
    if not isinstance(network, nn.Module):
        find_student(network)
    if limit_steps is not None and limit_steps < 0:
        raise ArgumentError(f"limit_steps is {limit_steps}; it must not be negative.")
    engine = Engine.given(engine)
    started = time.perf_counter()
    source = Source(generator, ipc, seed, draw, stage, engine.device)
    recipe = recipe or source.generator.recipe
    if stage is not None and any((leg.stage or 0) <= stage for leg in recipe.legs):  # `_plan` refuses the rest
        recipe = recipe.upto(stage)  # so that all epochs are of its legs
    if epochs is not None:
        recipe = with_epochs(recipe, epochs, source.generator.name)
    whole = source.generator.view(stage=stage)
    if whole.images is not None:  # unlimited images of the first stages alone are warned of
        require_whole_stages(whole, recipe, source.ipc)
    # Learned step sizes belong to the exact training they were learned in; in lower precision it is another.
    learned = recipe.learned_steps
    if learned:
        engine = replace(engine, bf16=False)
    spec, tensors = source.generator.spec, source.generator.recipe_tensors
    name = student_name(network)
    if not isinstance(network, nn.Module):
        start = source_of(recipe.start, spec.image_shape, spec.num_classes, student=network, tensors=tensors)
        network = start.network(seed)
    engine.place(network)
    check_fit(network, spec, engine.device)
    whitening = Whitening.of(recipe, tensors)
    feeds = _plan(recipe, source, engine, seed, Normalize(spec.mean, spec.std, whitening), alike, whole_batches)
    run = _Run(network, engine, seed, feeds, tensors, limit_steps, on_step, alike)
    run.check_batches_of_one(name)
    with (
        engine.seeded(latents.fold(_DROPOUT, seed)),
        compiling.room_for_shapes(engine),
        engine.exact() if learned else contextlib.nullcontext(),
    ):
        network.train()
        for number in range(len(run.feeds)):
            run.leg(number)
            if on_leg is not None:
                on_leg(number + 1, network)
        network.eval()
    info = StudentInfo(
        student=name,
        image_shape=spec.image_shape,
        classes=spec.classes,
        mean=spec.mean,
        std=spec.std,
        generator=" ".join(filter(None, (source.generator.title, source.generator.levers))),
        recipe=recipe,
        seed=seed,
        whitening=whitening,
    )
    loss = float(run.loss)  # waits for the device, before the clock is read
    seconds = time.perf_counter() - started
    result = TrainResult(network, run.done, run.drawn, run.distinct(), seconds, loss, info)
    if result.diverged:
        log.warning("%s diverged: the loss of its last step, of %d, is %s.", name, result.steps, result.loss)
    return result


def _loss(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy; targets int64 `[B]` or distributions `[B, K]`.

    The network is an argument, so that networks of one class share one compiled function.
    """
    return F.cross_entropy(network(images).float(), targets)


class _Run:
    """One student on its way through the legs."""

    def __init__(
        self,
        network: nn.Module,
        engine: Engine,
        seed: int,
        feeds: list[Feed],
        tensors: dict[str, Tensor],
        limit: int | None,
        on_step: OnStep | None,
        alike: int,
    ) -> None:
        self.network, self.engine, self.seed, self.feeds = network, engine, seed, feeds
        self.tensors, self.on_step = tensors, on_step
        self.total = sum(feed.steps for feed in feeds)
        self.total = self.total if limit is None else min(self.total, limit)
        self.done, self.drawn = 0, 0
        self.shown = [0] * len(feeds)  # images of each leg
        self.loss = torch.full((), math.nan, device="cpu")
        self.optimizer: torch.optim.Optimizer | None = None
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.rates = [rates_of(feed.leg, feed.steps, tensors) for feed in feeds]
        self.augments = [parse(feed.leg.augment, feed.leg.dialect, mixing=True) for feed in feeds]
        compiled = engine.compile(_loss)
        shown = _images_by_size(feeds, self.total)
        self.losses = {
            size: compiled if compiling.worth(engine, alike * count, size) else _loss for size, count in shown.items()
        }
        shape = feeds[0].dataset.image_shape
        # Every step reads its images from here: one address and one memory order for each batch size.
        self.buffers = {
            size: torch.empty(size, *shape, device=engine.device, memory_format=torch.channels_last) for size in shown
        }

    def check_batches_of_one(self, name: str) -> None:
        """Raise `ArgumentError` if a batch will be of one image, which the network cannot be trained on.

        Batch norm asks for two values of each channel at least; after pooling to one pixel an image has but one.
        """
        if 1 not in self.buffers or not any(isinstance(layer, _BatchNorm) for layer in self.network.modules()):
            return
        kept = {key: tensor.detach().clone() for key, tensor in self.network.named_buffers()}  # running statistics
        mode = self.network.training
        try:
            with self.engine.seeded(0), torch.no_grad():
                functional_call(self.network.train(), kept, (torch.zeros_like(self.buffers[1]),))
        except ValueError as error:
            images, size = next((f.images, f.batch_size) for f in self.feeds if 1 in (f.ragged, f.batch_size))
            raise ArgumentError(
                f"{name} cannot be trained on a batch of one image, which {images:,} images in batches of {size} leave "
                f"({str(error).partition(chr(10))[0]:.80}).",
                "Use another number of images per class, another batch size, or a student without batch norm.",
            ) from error
        finally:
            self.network.train(mode)

    def leg(self, number: int) -> None:
        """Follow one leg, or what the limit leaves of it."""
        feed, rate_at, augment = self.feeds[number], self.rates[number], self.augments[number]
        leg = feed.leg
        classes = feed.dataset.spec.num_classes
        self.optimizer = optimizer = optimizer_of(leg, self.parameters, self.engine.device, self.optimizer)
        (group,) = optimizer.param_groups
        steps = min(feed.steps, self.total - self.done)
        for step, (images, targets) in zip(range(steps), feed, strict=False):
            key = latents.fold(_AUGMENT, self.seed, number, step)
            images, targets = augment.mix(augment(images, key), targets, classes, key)
            size = len(images)
            batch = self.buffers[size].copy_(images)
            with self.engine.autocast():
                loss: Tensor = self.losses[size](self.network, batch, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            group["lr"] = rate_at(step)
            optimizer.step()
            self.loss = loss.detach()
            self.done += 1
            self.drawn += size
            self.shown[number] += size
            if self.on_step is not None:
                self.on_step(self.done, self.total, self.loss)

    def distinct(self) -> int:
        """Return how many different images were shown."""
        datasets = list(dict.fromkeys(feed.dataset for feed in self.feeds))
        if any(dataset.generator.images is not None for dataset in datasets):
            return self._rows()
        if datasets[0].draw == "fresh":
            return self.drawn
        return min(self.drawn, _drawn_once(datasets))

    def _rows(self) -> int:
        """Return how many of the stored images were shown."""
        seen = torch.zeros(
            max(feed.first_row + len(feed.dataset) for feed in self.feeds), dtype=torch.bool, device="cpu"
        )
        for feed, shown in zip(self.feeds, self.shown, strict=True):
            seen[feed.first_row + feed.first(shown).cpu()] = True
        return int(seen.sum())


def _drawn_once(datasets: list[GeneratedDataset]) -> int:
    """Return how many different images unlimited generators give under a fixed draw, legs taken together.

    Seen through its first k stages, a generator draws an index from the stage of its slot modulo k: one index gives
    different images in different legs.
    """
    most = max(dataset.generator.stages for dataset in datasets)
    slots = [torch.arange(len(dataset) // dataset.num_classes, device="cpu") for dataset in datasets]
    pairs = [slot * most + slot % dataset.generator.stages for slot, dataset in zip(slots, datasets, strict=True)]
    return int(torch.bincount(torch.cat(pairs)).count_nonzero()) * datasets[0].num_classes


def _plan(
    recipe: Recipe,
    source: Source,
    engine: Engine,
    seed: int,
    normalize: Normalize,
    alike: int,
    whole_batches: bool,
) -> list[Feed]:
    """Return the feeds of the legs that belong to the chosen prefix of the stages."""
    feeds: list[Feed] = []
    epoch, begun = 0, dict[GeneratedDataset, int]()
    for leg in recipe.legs:
        if source.stage is not None and leg.stage is not None and leg.stage > source.stage:
            continue
        first = source.first_row(leg.stage, leg.alone)
        whole = whole_batches and leg.steps is not None
        dataset = source.dataset(leg.stage, leg.alone)
        shown = begun.get(dataset, 0)
        feed = Feed(dataset, leg, engine, seed, epoch, normalize, first, alike, whole, shown)
        feeds.append(feed)
        epoch += feed.epochs
        begun[dataset] = shown + feed.steps * feed.batch_size
    if not feeds:
        raise ArgumentError(f"The recipe has no leg for stage {source.stage}.", "Use a later stage, or leave it out.")
    return feeds


def _images_by_size(feeds: list[Feed], total: int) -> dict[int, int]:
    """Return how many images training shows in batches of each size."""
    shown: dict[int, int] = {}
    for feed in feeds:
        steps = min(feed.steps, total)
        total -= steps
        ragged = steps // feed.per_epoch if feed.ragged else 0
        for size, count in ((feed.batch_size, steps - ragged), (feed.ragged, ragged)):
            if count:
                shown[size] = shown.get(size, 0) + size * count
    return shown


def require_recipe(generator: Generator) -> None:
    """Find out before a distillation whether students can be trained by the recipe of what it will make.

    Args:
        generator: Like the finished one in all but its values.

    Raises:
        ArgumentError: If the recipe names tensors or stages that there will not be.
        NotFoundError: If it names a student or an augmentation that there is not.
    """
    recipe, stages = generator.recipe, generator.stages
    missing = [name for name in recipe.tensors if name not in generator.recipe_tensors]
    if missing:
        raise ArgumentError(
            f"The recipe names the tensor {missing[0]!r:.80}, which this method does not make.",
            "Take it out of the recipe.",
        )
    if recipe.start.student:
        find_student(recipe.start.student)
    if recipe.start.law == "stored" and not any(name.startswith(START) for name in generator.recipe_tensors):
        raise ArgumentError(
            "The recipe starts from stored weights, which this method does not make.",
            "Choose another law of the start.",
        )
    for number, leg in enumerate(recipe.legs, 1):
        parse(leg.augment, leg.dialect, mixing=True)
        if (leg.stage or 1) > stages:
            raise ArgumentError(
                f"Leg {number} of the recipe is of stage {leg.stage}, and there will be {stages}.",
                "Leave its stage out, or distil in stages (--method pdd).",
            )
        generator.view(stage=leg.stage, alone=leg.alone)


def check_fit(network: nn.Module, spec: Spec, device: torch.device) -> None:
    """Raise `ArgumentError` unless a network on the device maps images of the generator to one logit for each class."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            logits = network(torch.zeros(2, *spec.image_shape, device=device))
    except Exception as error:  # whatever a network of the user's own raises
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ArgumentError(
            f"The network cannot take images of shape {spec.image_shape} ({reason:.120}).", "Use one that can."
        ) from error
    finally:
        network.train(training)
    if not isinstance(logits, Tensor):
        raise ArgumentError(
            f"The network maps images to a {type(logits).__name__}, not to a tensor of logits.",
            f"Let it return a tensor [B, {spec.num_classes}].",
        )
    if tuple(logits.shape) != (2, spec.num_classes):
        raise ArgumentError(
            f"The network maps two images to shape {tuple(logits.shape)}, and the generator has {spec.num_classes} "
            "classes.",
            f"Give it {spec.num_classes} outputs.",
        )
