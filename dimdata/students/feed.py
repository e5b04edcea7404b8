"""Batches for training: those of a `GeneratedDataset`, drawn many at a time and in the engine's precision."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from dimdata import latents
from dimdata.dataset import GeneratedDataset, images_of
from dimdata.engine import Engine
from dimdata.errors import ArgumentError
from dimdata.generators.base import Generator
from dimdata.outputs import Normalize
from dimdata.recipe import Leg
from dimdata.students.compiling import worth

_ORDER = latents.stream("order of training")

# Values drawn at once: on a CPU what fits its caches, elsewhere enough to hide the cost of launching.
_CHUNK = {"cpu": 2**17}
_CHUNK_ELSEWHERE = 2**22


class Feed:
    """The batches of one leg: normalised images `[B, C, H, W]` and targets, on the engine's device.

    The images are those of the dataset at epochs `first_epoch`, `first_epoch + 1` and on, up to the engine's
    precision; the order is a pure function of (seed, epoch).

    Args:
        dataset: What is drawn from.
        leg: Batch size, order and length.
        engine: Device and precision.
        seed: Of the order.
        first_epoch: The epoch of the first pass.
        normalize: From images in the value range to what the student sees.
        first_row: The row of its first image among all that are stored.
        alike: See `train`.
        whole_batches: See `train`.
        begun: Where `whole_batches` holds, the images that legs before have shown of the same ones.
    """

    def __init__(
        self,
        dataset: GeneratedDataset,
        leg: Leg,
        engine: Engine,
        seed: int,
        first_epoch: int,
        normalize: Normalize,
        first_row: int = 0,
        alike: int = 1,
        whole_batches: bool = False,
        begun: int = 0,
    ) -> None:
        self.normalize, self.first_row, self.alike = normalize, first_row, alike
        self.dataset, self.leg, self.engine, self.seed, self.first_epoch = dataset, leg, engine, seed, first_epoch
        self.images = len(dataset)
        self.batch_size = min(leg.batch_size, self.images)
        self.per_epoch = -(-self.images // self.batch_size)
        self.steps = leg.steps if leg.steps is not None else (leg.epochs or 0) * self.per_epoch
        self.whole_batches = whole_batches and dataset.generator.images is not None
        self.epochs = -(-self.steps // self.per_epoch)
        self.skipped = 0  # images of the first epoch
        if self.whole_batches:
            self.first_epoch, self.skipped = divmod(begun, self.images)
        self.ragged = 0 if self.whole_batches else self.images % self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        spec, device = self.dataset.spec, self.engine.device
        values = _CHUNK.get(device.type, _CHUNK_ELSEWHERE)
        at_once = max(1, values // (self.batch_size * spec.image_shape[0] * spec.image_shape[1] * spec.image_shape[2]))
        # Stored images are only gathered; what a network draws is worth compiling.
        generator = self.dataset.generator
        compiles = generator.images is None and generator.compiles
        if compiles and worth(self.engine, self.alike * self.steps * self.batch_size, at_once * self.batch_size):
            compiled = self.engine.compile(_draw)
        else:
            compiled = _draw
        indices = itertools.islice(self._indices(), self.steps)
        while batches := list(itertools.islice(indices, at_once)):
            latent = torch.cat(
                [latents.latents(self.dataset.seed, epoch, index, spec.latent) for epoch, index in batches]
            )
            index = torch.cat([index for _, index in batches])
            with self.engine.autocast():
                draw = compiled if len(index) == at_once * self.batch_size else _draw
                images, targets = draw(self.dataset.generator, latent, index)
            images = self.normalize(images)
            sizes = [len(index) for _, index in batches]
            yield from zip(torch.split(images, sizes), torch.split(targets, sizes), strict=True)

    def first(self, shown: int) -> Tensor:
        """Return the indices int64 `[N]` that so many images show, from the first on."""
        order = self._order(self.first_epoch)[self.skipped :]
        if shown > len(order) < self.images:
            order = torch.cat([order, self._order(self.first_epoch + 1)])
        return order[:shown]

    def _order(self, epoch: int) -> Tensor:
        """Return the order of an epoch, int64 `[images]`."""
        if not self.leg.shuffle:
            return torch.arange(self.images, device=self.engine.device)
        return latents.permutation(latents.fold(_ORDER, self.seed, epoch), self.images, self.engine.device)

    def _indices(self) -> Iterator[tuple[int, Tensor]]:
        """Yield epochs and the indices int64 `[B]` of their batches, without end."""
        left = torch.empty(0, dtype=torch.int64, device=self.engine.device)
        for epoch in itertools.count(self.first_epoch):
            order = self._order(epoch)[self.skipped if epoch == self.first_epoch else 0 :]
            drawn = 0 if self.dataset.draw == "fixed" else epoch
            batches = torch.split(torch.cat([left, order]), self.batch_size)
            if self.whole_batches and len(batches[-1]) < self.batch_size:
                left, batches = batches[-1], batches[:-1]
            else:
                left = order[:0]
            for index in batches:
                yield drawn, index


def _draw(generator: Generator, latent: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from a generator; it is an argument, so that generators of one class share one compiled function."""
    return generator.draw(latent, index)


class Source:
    """What a student is trained on, seen through the stages that the legs of a recipe ask for.

    Args:
        source: A name, the path of a folder, a generator, or a dataset, whose images per class, seed and draw hold.
        ipc: Images per class; none for a dataset.
        seed: Of the latents.
        draw: `fresh` or `fixed`.
        stage: The last stage to use.
        device: Where images are drawn.

    Raises:
        ArgumentError: If a dataset comes with images per class or transforms, or there is no such stage.
        DimdataError: If the source cannot be found or read.
    """

    def __init__(
        self,
        source: Generator | GeneratedDataset | str | Path,
        ipc: int | None,
        seed: int,
        draw: str,
        stage: int | None,
        device: torch.device,
    ) -> None:
        if isinstance(source, GeneratedDataset):
            if ipc is not None:
                raise ArgumentError("ipc was given, but the dataset has its own.", "Leave it out, or give a generator.")
            changed = (source.transform, source.target_transform, source.batch_transform)
            if any(transform is not None for transform in changed):
                raise ArgumentError(
                    "The dataset has transforms, which training by a recipe would leave out.",
                    "Augment by the recipe, or write a loop over dataset.loader(batch_size).",
                )
            ipc, seed, draw = source.ipc, source.seed, source.draw
            source = source.generator
        elif not isinstance(source, Generator):
            from dimdata import artifact

            source = artifact.load(source)
        whole = source.view(stage=stage, draw=draw)  # an unknown stage is refused before anything is drawn
        if ipc is not None and whole.images is not None:
            images_of(whole, ipc)
        self.generator: Generator = source
        self.ipc, self.seed, self.draw, self.stage, self.device = ipc, seed, draw, stage, device
        self._datasets: dict[tuple[int | None, bool], GeneratedDataset] = {}

    def dataset(self, stage: int | None, alone: bool = False) -> GeneratedDataset:
        """Return the images of a leg that asks for this prefix of the stages (none = all there are), or one `alone`."""
        if stage is None:
            stage = self.stage
        if (stage, alone) not in self._datasets:
            view = self.generator.view(stage=stage, draw=self.draw, alone=alone)
            # A prefix may have fewer images per class than the whole was asked for; then it gives all it has.
            short = stage is not None and self.ipc is not None and view.images is not None
            asked = (self.ipc or 0) * view.spec.num_classes
            fits = not short or (asked <= (view.images or 0) and view.balanced(asked))
            self._datasets[stage, alone] = GeneratedDataset(
                view if alone else self.generator,
                self.ipc if fits else None,
                seed=self.seed,
                draw=self.draw,  # type: ignore[arg-type]
                stage=None if alone else stage,
                device=self.device,
            )
        return self._datasets[stage, alone]

    def first_row(self, stage: int | None, alone: bool) -> int:
        """Return the row of a leg's first image among all that are stored."""
        if not alone or stage in (None, 1):
            return 0
        return self.generator.view(stage=(stage or 1) - 1).images or 0
