"""A generator as a map-style dataset."""

from __future__ import annotations

import copy
import operator
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, SupportsIndex

import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
    get_worker_info,
)

from dimdata import latents
from dimdata.clock import MAX_EPOCH, EpochClock
from dimdata.errors import ArgumentError, DeviceError, OutOfRangeError, nearest, whole
from dimdata.generators.base import Generator
from dimdata.outputs import Normalize, Output, converter, to_pil
from dimdata.recipe import Recipe
from dimdata.spec import MAX_IMAGES, Spec

if TYPE_CHECKING:
    from dimdata.levers import Levers

MAX_TARGETS = 2**31

_ORDER = latents.stream("order")


class GeneratedDataset(Dataset[tuple[Any, Any]]):
    """Labelled images drawn from a generator, as a map-style dataset.

    `dataset[i]` is `(image, target)`: float32 `[C, H, W]` in `spec.value_range` and an `int`, or a float32
    `[num_classes]` distribution where targets are soft. Index i is `slot * num_classes + label`, so that any prefix
    is balanced, and IPC 5 is a prefix of IPC 10.

    **Every image is a pure function of (seed, epoch, index).** Latents and labels are bit-identical whatever the
    batch size, number of workers, start method, order, rank or device; images agree within 1e-5. Between devices they
    do so in full float32: on CUDA PyTorch lets convolutions run in TF32, which is coarser, unless
    `torch.backends.cudnn.allow_tf32` is off. No global random state is read or touched.

    **A fresh draw is new in every pass.** Whole passes over the dataset, or over a part of it, are epochs 0, 1, 2 and
    on, for any settings of a `DataLoader`: a batch that holds an index already read at this epoch opens the next one.
    `set_epoch(e)` makes the next pass epoch e. Single looks such as `dataset[0]` count for themselves: the k-th look at
    an index shows epoch k, and training does not move.

    These passes are fresh too, but which epoch a batch belongs to can depend on timing or order, unless `set_epoch` is
    called before each pass:

    - the pass after one that was left by `break`, with workers: they have read ahead (workers that persist may still
      do so when `set_epoch` is called);
    - two loaders at once on one dataset: give each its own `clone()`;
    - sampling with replacement: an epoch ends as soon as an index returns in a later batch, so that an image repeats
      only within a batch; with workers, rarely also in batches that are read at the same moment;
    - a shuffling `DistributedSampler`: a rank's first batch may hold no index that this rank has read before, and then
      belongs to the epoch before; its padding repeats up to world - 1 samples;
    - wrappers without `__getitems__` (`ConcatDataset`) read image by image: in workers each read counts as a batch of
      one, which is exact for whole passes, but not with `drop_last`; without workers the reads are single looks, so
      that each index counts its own passes;
    - above 2^20 images one index of each block is tracked, and the first one read: the first reads of a pass, about
      `len / 2**20` of them, may belong to the epoch before.

    Args:
        source: A name (`dim-mnist`, `owner/name`), the path of a folder, or a generator.
        ipc: Images per class: an epoch's under a fresh draw, all there are under a fixed one. None is all there are.
        seed: Any whole number; another seed gives other images.
        draw: `fresh` (new noise every epoch) or `fixed` (one noise per index for ever).
        stage: Use this prefix of the generator's stages; none = all.
        levers: What to do to the draw: candidates chosen by a teacher, another spread of the noise, soft labels.
        transform: Applied to each image, as torchvision's datasets do.
        target_transform: Applied to each target.
        batch_transform: Applied to a whole batch of tensors `[B, C, H, W]`, in the output form, before `transform`.
        output: `tensor` (float32 in the value range), `normalized` (by `normalize`), `uint8`, or `pil`.
        device: Where images are drawn and handed out.
        revision: Branch, tag or commit on the Hub.
        token: Hub token.
        cache_dir: Hub cache.
        local_files_only: Ask no server.

    Attributes:
        generator: What is drawn from: in `eval()` mode on the device, sharing the source's weights where it can.
        spec: What the generator is.
        recipe: How to train on it.
        classes: Class names.
        class_to_idx: Label of each class name.
        num_classes: How many classes there are.
        image_shape: (channels, height, width).
        mean: Mean of each channel of the real images in [0, 1].
        std: Standard deviation, likewise.
        normalize: A transform by these, or a whitening where the recipe asks for one; use it on real test images too.
        ipc: As given.
        seed: As given.
        draw: As given.
        stage: As given.
        output: As given.
        device: As given.

    Raises:
        ArgumentError: If an argument is out of range; the message names the range.
        DeviceError: If the device is absent.
        DimdataError: If the source cannot be found or read.

    Example:
        >>> train = GeneratedDataset("dim-mnist", ipc=10)  # doctest: +SKIP
        >>> for epoch in range(1000):  # doctest: +SKIP
        ...     for images, labels in DataLoader(train, batch_size=50, shuffle=True):
        ...         ...
    """

    def __init__(
        self,
        source: str | Path | Generator,
        ipc: int | None = None,
        *,
        seed: int = 0,
        draw: Literal["fresh", "fixed"] = "fresh",
        stage: int | None = None,
        levers: Levers | None = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        batch_transform: Callable[[Tensor], Tensor] | None = None,
        output: Output = "tensor",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> None:
        if draw not in ("fresh", "fixed"):
            raise ArgumentError(f"draw is {draw!r}.", nearest(str(draw), ("fresh", "fixed")))
        if output == "pil" and batch_transform is not None:
            raise ArgumentError(
                'batch_transform works on tensors, and output="pil" makes none.', "Use transform, or another output."
            )
        self.seed = whole("seed", seed)
        self.device = _device(device)
        if not isinstance(source, Generator):
            from dimdata import artifact

            source = artifact.load(
                source, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
            )
        if levers is not None:
            from dimdata.levers import apply

            source = apply(source, levers)
        self.generator = _place(source.view(stage=stage, draw=draw), self.device)
        spec = self.generator.spec
        self.normalize = Normalize.of(self.generator)
        self._convert = converter(output, spec, self.normalize)
        self._length = images_of(self.generator, ipc)
        self._own_clock, self._owner = EpochClock(self._length), os.getpid()
        _LIVE.add(self)
        self.ipc = None if ipc is None else operator.index(ipc)
        self.draw, self.stage, self.output = draw, stage, output
        self.transform, self.target_transform, self.batch_transform = transform, target_transform, batch_transform
        self.classes = list(spec.classes)
        self.class_to_idx = {name: label for label, name in enumerate(spec.classes)}
        self.num_classes = spec.num_classes
        self.image_shape = spec.image_shape
        self.mean, self.std = spec.mean, spec.std
        self._ordered = self.recipe.learned_steps
        self._last: dict[bool, int] = {}  # the index last read, by whether it was asked for by itself
        self._warn(source.stages)

    @property
    def _clock(self) -> EpochClock:
        """The clock, which workers share with the process that has the loader.

        Any other process that was started with the dataset is a rank, and the passes of ranks are their own.
        """
        if self._owner != os.getpid() and get_worker_info() is None:
            self._own_clock, self._owner = self._own_clock.copy(), os.getpid()
        return self._own_clock

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: for workers of a rank, the clock of that rank."""
        return {**self.__dict__, "_own_clock": self._clock}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what was pickled."""
        self.__dict__.update(state)
        _LIVE.add(self)

    def _tell_of_order(self, index: Tensor, epoch: int, single: bool) -> None:
        """Say once, at the first read out of the stored order, what learned step sizes need.

        A batch shows its order, and an image that is read alone by what was read before. A worker reads but a part,
        so that it may skip; and a pass may begin after any image. Where a student goes through stages several times
        each, one after the other, passes over all of them are out of order however they are read.
        """
        worker = get_worker_info()
        first, before = int(index[0]), self._last.get(single)
        self._last[single] = int(index[-1])
        if len(index) > 1:
            in_order = torch.equal(index, torch.arange(len(index), device="cpu") + first)
        elif before is None or first == 0:
            in_order = True
        else:
            in_order = first > before if worker is not None else first == before + 1
        stages = self.recipe.one_by_one
        if in_order and not stages:
            return
        self._ordered = False
        if worker is not None and (worker.id or epoch):  # workers are born anew each epoch, and forget
            return
        order = "stage by stage, several times each" if stages else "in its stored order"
        wrong = "in passes over all stages" if stages else "shuffled"
        warnings.warn(
            f"{self.generator.name or 'This generator'} is for training {order}, by learned step sizes "
            f"and from a declared start; {wrong}, or with another optimiser, its images teach far less. "
            "dimdata.train(student, generator) follows its recipe.",
            stacklevel=4,
        )

    def _warn(self, stages: int) -> None:
        name = self.generator.name or "This generator"
        if self.ipc is not None and self.generator.images is None and self.ipc < self.generator.stages:
            some, drawn = ("image", "first") if self.ipc == 1 else ("images", f"first {self.ipc}")
            warnings.warn(
                f"An epoch of {self.ipc} {some} per class draws from the {drawn} of {stages} stages alone; ask for "
                f"{stages} or more, or stage={self.ipc}.",
                stacklevel=3,
            )
        if "poisoned" in self.spec.flags:
            warnings.warn(f"{name} is poisoned: its images were made to mislead what trains on them.", stacklevel=3)
        low, high = self.spec.value_range
        if self.output in ("uint8", "pil") and (low < 0 or high > 1):
            warnings.warn(
                f'{name} holds values from {low:g} to {high:g}; output="{self.output}" clips them to [0, 1].',
                stacklevel=3,
            )

    @property
    def spec(self) -> Spec:
        """What the generator is."""
        return self.generator.spec

    @property
    def recipe(self) -> Recipe:
        """How to train on it."""
        return self.generator.recipe

    @property
    def targets(self) -> Tensor:
        """The label of every index, int64 `[len]` on the CPU, made on request.

        Raises:
            ArgumentError: If there are over 2^31.
        """
        if self._length > MAX_TARGETS:
            raise ArgumentError(
                f"targets of {self._length:,} images would not fit into memory.",
                "Ask for those you need: dataset.generator.labels(index).",
            )
        return self.generator.labels(torch.arange(self._length, device=self.device)).cpu()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: SupportsIndex | list[int] | Tensor) -> tuple[Any, Any]:
        """Return one image and its target; or, for a list or tensor of indices, a batch of them.

        A batch is images `[B, C, H, W]` and targets `[B]` (soft ones `[B, num_classes]`) on the device, after the
        transforms. It is a batched read: it moves the epoch as a batch of a `DataLoader` does.

        Raises:
            OutOfRangeError: If an index is out of range; it is an `IndexError`.
            ArgumentError: If the index is no whole number.
            DeviceError: If the dataset is on a GPU and this is a worker process.
        """
        if isinstance(index, list) or getattr(index, "ndim", 0) == 1:
            images, targets = self._read(self._indices(index))
            if self.transform is not None or self.output == "pil":
                images = _stack(self._each_image(images))
            if self.target_transform is not None:
                targets = _stack(self._each_target(targets))
            return images, targets
        position = self._position(index)
        images, targets = self._read(torch.tensor([position], device="cpu"), single=True)
        return self._each_image(images)[0], self._each_target(targets)[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, Any]]:
        """Return the images and targets of a batch, drawn at once; what a `DataLoader` calls."""
        if not len(indices):
            return []
        images, targets = self._read(self._indices(indices))
        return list(zip(self._each_image(images), self._each_target(targets), strict=True))

    def _read(self, index: Tensor, single: bool = False) -> tuple[Tensor, Tensor]:
        """Draw indices int64 `[B]` in range at the epoch that this read belongs to."""
        in_worker = get_worker_info() is not None
        if in_worker and self.device.type != "cpu":
            raise DeviceError(f"A dataset on {self.device} was read in a worker process.", _TWO_WAYS)
        if self.draw == "fixed":
            epoch = 0
        elif single and not in_worker:
            epoch = self._clock.look(int(index))
        else:
            epoch = self._clock.read(index)
        if self._ordered and len(index):
            self._tell_of_order(index, epoch, single)
        index = index.to(self.device)
        latent = latents.latents(self.seed, epoch, index, self.spec.latent)
        with torch.autocast(self.device.type, enabled=False):  # a loop under autocast must not change the images
            images, targets = self.generator.draw(latent, index)
        if self._convert is not None:
            images = self._convert(images)
        images = images.contiguous()
        if self.batch_transform is not None:
            images = self.batch_transform(images)
        return images, targets

    def _each_image(self, images: Tensor) -> list[Any]:
        """Return the images `[B, ...]` of a batch one by one, transformed."""
        items: list[Any] = list(images.unbind())
        if self.output == "pil":
            items = [to_pil(item) for item in items]
        return items if self.transform is None else [self.transform(item) for item in items]

    def _each_target(self, targets: Tensor) -> list[Any]:
        """Return the targets of a batch one by one, transformed: whole numbers, or distributions."""
        items: list[Any] = targets.tolist() if targets.ndim == 1 else list(targets.unbind())
        return items if self.target_transform is None else [self.target_transform(item) for item in items]

    def _position(self, index: Any) -> int:
        try:
            position = operator.index(index)
        except TypeError:
            raise ArgumentError(
                f"The index is {index!r:.80}, not a whole number.", "Use one, or a list of them."
            ) from None
        if not -self._length <= position < self._length:
            raise self._out_of_range(position)
        return position % self._length

    def _indices(self, indices: Any) -> Tensor:
        """Return a list or tensor of indices as int64 `[B]` in range."""
        try:
            index = torch.as_tensor(indices, device="cpu")
        except (TypeError, ValueError, RuntimeError, OverflowError):
            index = torch.empty(0, 0, device="cpu")
        if not len(indices):
            return index.to(torch.int64)
        if index.ndim != 1 or index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise ArgumentError(f"The indices are {indices!r:.80}, not a list of whole numbers.")
        index = index.to(torch.int64)
        low, high = (int(bound) for bound in index.aminmax())
        if low < -self._length or high >= self._length:
            raise self._out_of_range(low if low < -self._length else high)
        return index % self._length if low < 0 else index

    def _out_of_range(self, index: int) -> OutOfRangeError:
        return OutOfRangeError(f"Index {index} is out of range: there are {self._length:,} images.")

    def loader(
        self,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        num_workers: int = 0,
        seed: int | None = None,
        sampler: Iterable[int] | None = None,
        **dataloader_kwargs: Any,
    ) -> DataLoader[Any]:
        """Return a `DataLoader` of whole batches, the fast path: nothing is cut into images and stacked again.

        It yields images `[B, C, H, W]` and targets on the dataset's device.

        Args:
            batch_size: Images a batch.
            shuffle: Draw the order anew in each pass.
            drop_last: Leave out a last batch that is not full.
            num_workers: Worker processes; 0 on a GPU.
            seed: Fixes the order of all passes of this loader, and no global random state is touched; none = torch's
                own behaviour.
            sampler: Draws the order instead of `shuffle`, such as a `DistributedSampler`.
            dataloader_kwargs: Any other argument of `DataLoader`.

        Raises:
            ArgumentError: If the batch size or the seed is no whole number in range.
            DeviceError: If workers are asked for and the dataset is on a GPU.
        """
        size = whole("batch_size", batch_size)
        if size < 1:
            raise ArgumentError(f"batch_size is {batch_size}; it must be 1 or more.")
        if num_workers and self.device.type != "cpu":
            raise DeviceError(f"A dataset on {self.device} cannot be read in worker processes.", _TWO_WAYS)
        order = dataloader_kwargs.get("generator")
        if seed is not None:
            # Two, for how often the workers' seeds are drawn depends on the workers, and the order must not.
            key = latents.fold(_ORDER, whole("seed", seed))
            order, dataloader_kwargs["generator"] = (torch.Generator("cpu").manual_seed(key) for _ in range(2))
        if sampler is None:
            sampler = RandomSampler(self, generator=order) if shuffle else SequentialSampler(self)
        return DataLoader(
            self,
            batch_size=None,
            sampler=BatchSampler(sampler, size, drop_last),
            num_workers=num_workers,
            **dataloader_kwargs,
        )

    @property
    def epoch(self) -> int:
        """The epoch of the pass under way; 0 for ever under a fixed draw."""
        return 0 if self.draw == "fixed" else self._clock.epoch

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass epoch `epoch`, from 0; later ones count on. It reaches live workers."""
        value = whole("epoch", epoch)
        if not 0 <= value <= MAX_EPOCH:
            raise ArgumentError(f"epoch is {value}; epochs count from 0 to 2^62.")
        self._clock.set(value)

    def state_dict(self) -> dict[str, Any]:
        """Return where the dataset stands: numbers for JSON or a checkpoint. A pass under way counts as done."""
        return {"seed": self.seed, **self._clock.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: the next pass is the one that would have followed.

        Raises:
            ArgumentError: If the state is not of a dataset with this seed, or holds something else than epochs and
                looks; the dataset stays where it is.
        """
        missing = {"seed", "epoch", "base", "looks"} - set(state)
        if missing:
            raise ArgumentError(f"The state lacks {', '.join(sorted(missing))}.", "Give what state_dict() returned.")
        if state["seed"] != self.seed:
            raise ArgumentError(
                f"The state is of seed {state['seed']}, and this dataset has seed {self.seed}.",
                f"Construct it with seed={state['seed']}.",
            )
        for name in ("epoch", "base"):
            if not 0 <= whole(f"{name} of the state", state[name]) <= MAX_EPOCH:
                raise ArgumentError(f"{name} of the state is {state[name]!r:.80}; epochs count from 0 to 2^62.")
        looks = state["looks"]
        if not isinstance(looks, Mapping) or not all(_is_count(one) for pair in looks.items() for one in pair):
            raise ArgumentError(
                f"looks of the state is {looks!r:.80}, not numbers of looks by index.",
                "Give what state_dict() returned.",
            )
        self._clock.load_state_dict(state)

    def clone(self) -> Self:
        """Return the same dataset with an epoch of its own, from 0; weights are shared."""
        twin = copy.copy(self)
        twin._own_clock, twin._owner = EpochClock(self._length), os.getpid()
        twin._last = {}
        return twin

    def __repr__(self) -> str:
        generator = self.generator
        facts = {
            "name": generator.name or None,
            "revision": generator.revision,
            "method": self.spec.method,
            "classes": self.num_classes,
            "shape": self.image_shape,
            "ipc": self.ipc,
            "images": self._length,
            "draw": self.draw if generator.images is None else "fixed",  # what is stored is the same throughout
            "stage": self.stage,
            "levers": self.generator.levers or None,
            "seed": self.seed,
        }
        shown = (f"{key}={value!r}" for key, value in facts.items() if value is not None or key == "ipc")
        return f"{type(self).__name__}({', '.join(shown)})"


_LIVE: weakref.WeakSet[GeneratedDataset] = weakref.WeakSet()


def _claim() -> None:
    """Let this process have clocks of its own before it forks workers, which then share them."""
    for dataset in list(_LIVE):
        _ = dataset._clock


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_claim)

_TWO_WAYS = (
    "Use num_workers=0 (dataset.loader(batch_size) draws whole batches on the device), or a dataset with "
    'device="cpu" in the workers.'
)


def _is_count(value: Any) -> bool:
    """Return whether a value is a whole number from 0 on, or in JSON the text of one."""
    if isinstance(value, str):
        return value.isascii() and value.isdigit() and len(value) <= 19
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_EPOCH


def images_of(generator: Generator, ipc: Any) -> int:
    """Return how many images of a generator so many per class are; all that are stored, where it is none.

    Raises:
        ArgumentError: If there are not so many, or not of each class.
    """
    name, classes, images = generator.name or "This generator", generator.spec.num_classes, generator.images
    if ipc is None:
        if images is None:
            raise ArgumentError(f"{name} draws without limit.", "Say how many images per class an epoch: ipc=10.")
        return images
    most = (MAX_IMAGES if images is None else images) // classes
    try:
        value = whole("ipc", ipc)
    except ArgumentError:
        value = 0
    if 1 <= value <= most:
        if not generator.balanced(value * classes):
            raise ArgumentError(
                f"The first {value * classes:,} images of {name} are not {value} of each class.",
                "Leave ipc out to use all.",
            )
        return value * classes
    if images is None:
        raise ArgumentError(
            f"ipc is {ipc!r:.80}; images per class must be a whole number from 1 to {most:,}.", "Use ipc=10, say."
        )
    there = f"{name} has {images:,} image{'s' * (images > 1)} of {classes} class{'es' * (classes > 1)}"
    if most == 0:
        raise ArgumentError(f"ipc is {ipc!r:.80}, but {there}.", "Leave ipc out to use all.")
    raise ArgumentError(
        f"ipc is {ipc!r:.80}, but {there}: images per class must be a whole number from 1 to {most:,}.",
        "Leave ipc out to use all.",
    )


def _device(device: str | torch.device) -> torch.device:
    """Return a device that works."""
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise DeviceError(f"There is no device called {device!r:.80}.", 'Use "cpu", "cuda" or "cuda:0".') from None
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise DeviceError(
            f"{place} was asked for, but torch cannot use it here ({reason}).", 'Use device="cpu", the default.'
        ) from None
    return place


def _place(generator: Generator, device: torch.device) -> Generator:
    """Return the generator on a device and in `eval()` mode; the one given keeps its mode, device and gradients."""
    nested = [module for module in generator.modules() if isinstance(module, Generator)]
    same: dict[int, Any] = {id(part): part for each in nested for part in (each.spec, each.recipe)}
    same |= {id(tensor): tensor for each in nested for tensor in each.recipe_tensors.values()}
    for tensor in (*generator.parameters(), *generator.buffers()):
        placed = tensor.detach().to(device)
        same[id(tensor)] = nn.Parameter(placed, requires_grad=False) if isinstance(tensor, nn.Parameter) else placed
    return copy.deepcopy(generator, same).eval()


def _stack(items: list[Any]) -> Any:
    """Return transformed images or targets as a batch."""
    try:
        return default_collate(items)
    except (TypeError, RuntimeError) as error:
        raise ArgumentError(
            f"Items of type {type(items[0]).__name__} cannot be stacked into a batch ({str(error).partition(':')[0]}).",
            "Let the transform return tensors of one shape, or use a plain DataLoader with a collate_fn.",
        ) from None
