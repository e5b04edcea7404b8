"""The generator seam: a source of labelled images, whatever lies behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dimdata import latents
from dimdata.errors import ArgumentError, whole
from dimdata.recipe import Recipe
from dimdata.registry import Registry
from dimdata.spec import FORMAT_MINOR, Spec

GENERATORS: Registry[type[Generator]] = Registry(
    "kind of generator",
    "dimdata.generators",
    tuple(f"dimdata.generators.{name}" for name in ("coded", "network", "staged", "table")),
)

_SAMPLE = latents.stream("sample")

STORAGE = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}


class _NoInitialValues(TorchFunctionMode):
    """Leaves tensors as they are where a layer would draw initial values."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func is torch.Tensor.normal_:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build modules without memory and without randomness: names, types and shapes alone.

    The meta device would do, but the first normal law drawn on it imports a compiler (0.8 s).
    """
    with _NoInitialValues(), torch.device("meta"):
        yield


class Generator(nn.Module, ABC):
    """A source of labelled images that carries the recipe to train on it.

    Subclasses build all their tensors in `__init__` (they are built on the meta device first, so that a stored file
    can be checked before anything is allocated) and implement `_draw`.

    Args:
        spec: All that determines the draw.
        recipe: How a student is trained on it.
        recipe_tensors: Tensors that the recipe names.

    Attributes:
        name: What it was loaded as; empty for one made in memory.
        revision: The commit it was loaded from, if any.
        folder: Where its files lie; none for one made in memory.
        format_minor: The minor version of the format it was read in, which it is stored in again: it may have fields
            that only that version knows.
    """

    kind: ClassVar[str]
    compiles: bool = True  # whether drawing is one graph, whatever the indices

    def __init__(self, spec: Spec, recipe: Recipe, recipe_tensors: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.recipe = recipe
        self.recipe_tensors = dict(recipe_tensors or {})
        self.name = ""
        self.revision: str | None = None
        self.folder: Path | None = None
        self.format_minor = FORMAT_MINOR

    def take_after(self, whole: Generator) -> None:
        """Be known as the generator that this one is a part or a use of."""
        self.name, self.revision, self.folder, self.format_minor = (
            whole.name,
            whole.revision,
            whole.folder,
            whole.format_minor,
        )

    @abstractmethod
    def _draw(self, latent: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and targets; see `draw`."""

    def draw(self, latent: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Draw images.

        Args:
            latent: float32 `[B, Z]`; Z is `spec.latent`.
            index: int64 `[B]`, `slot * num_classes + label`.

        Returns:
            Images float32 `[B, C, H, W]` in `spec.value_range`, and targets: int64 `[B]`, or float32
            `[B, num_classes]` where they are soft.
        """
        with torch.no_grad():
            return self._draw(latent, index)

    def labels(self, index: Tensor) -> Tensor:
        """Return the labels int64 `[B]` of indices int64 `[B]` without drawing; the argmax where targets are soft."""
        return index.remainder(self.spec.num_classes)

    @property
    def images(self) -> int | None:
        """How many images exist; none where they are unlimited."""
        return self.spec.images

    def balanced(self, images: int) -> bool:
        """Return whether its first so many images are as many of each class.

        Of soft labels nobody can say; the images are then taken to be in the usual order.
        """
        classes = self.spec.num_classes
        if images % classes:
            return False
        if self.images is None or self.spec.targets == "soft":
            return True
        labels = self.labels(torch.arange(images, device=self.device)).cpu()
        return bool((torch.bincount(labels, minlength=classes) == images // classes).all())

    @property
    def stages(self) -> int:
        """How many stages there are; 1 for a generator without stages."""
        return 1

    @classmethod
    def joined(cls, parts: Sequence[Generator], recipe: Recipe, method: str) -> Generator:
        """Return generators of this kind as the stages of one; any prefix of its stages is a generator too.

        Args:
            parts: The stages, in order; they share classes, image shape and storage.
            recipe: How a student is trained on all; each tensor that it names is that of the first part that has it.
            method: What made them.

        Raises:
            ArgumentError: If generators of this kind cannot be stages.
        """
        raise ArgumentError(f"Generators of the kind {cls.kind!r} cannot be stages.", "Use another method.")

    @property
    def title(self) -> str:
        """What to call it where others read it: its name, or what it is if that says where it lies on this machine."""
        is_folder = not self.name or self.name[0] in "./~"
        return f"{self.spec.method}-{self.spec.dataset or 'generator'}" if is_folder else self.name

    @property
    def levers(self) -> str:
        """What is done to the draw at deployment, in words; empty for the plain draw."""
        return ""

    @property
    def candidates(self) -> int:
        """Images drawn for each one handed out: what a chosen draw costs."""
        return 1

    def view(self, *, stage: int | None = None, draw: str = "fresh", alone: bool = False) -> Generator:
        """Return the generator seen through a prefix of its stages, or through its stored latents.

        Args:
            stage: The last stage of the prefix, from 1; none = all.
            alone: That stage by itself, without those before; of stored images alone.
            draw: `fresh` or `fixed`; generators that store latents use them under `fixed`.

        Raises:
            ArgumentError: If there is no such stage, none is named that is to be alone, or its images are without
                limit.
        """
        if alone and stage is None:
            raise ArgumentError("A stage by itself was asked for, but not which.", "Give stage, too.")
        if alone and self.images is None:
            raise ArgumentError(
                f"{self.name or 'This generator'} draws without limit; its stages are not seen one by one.",
                "Use a prefix of the stages.",
            )
        if stage is not None and not 1 <= whole("stage", stage) <= self.stages:
            raise ArgumentError(
                f"{self.name or 'This generator'} has {self.stages} stage{'s' * (self.stages > 1)}, not {stage}.",
                f"Use stage=1 to {self.stages}, or leave it out." if self.stages > 1 else "Leave stage out.",
            )
        return self

    def sample(self, labels: Sequence[int] | Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Draw images of chosen classes, for replay and other unbalanced needs.

        Args:
            labels: `[B]` class numbers in any order and number.
            seed: Equal seeds and labels give equal images.

        Returns:
            Images float32 `[B, C, H, W]` and targets as `draw` gives them. The k-th image of a class does not depend
            on the other labels asked for. Where images are stored, they are walked through from the first.

        Raises:
            ArgumentError: If a label is no class, a class has no stored image, or the seed is no whole number.
        """
        try:
            on = labels if isinstance(labels, Tensor) else torch.as_tensor(labels, device="cpu")
            wanted = on.detach().cpu().flatten()
        except (TypeError, ValueError, RuntimeError):
            wanted = torch.zeros(1, device="cpu")
        if len(wanted) and (wanted.is_floating_point() or wanted.is_complex() or wanted.dtype == torch.bool):
            raise ArgumentError(f"The labels are {labels!r:.80}, not whole numbers.", "Use a list of class numbers.")
        wanted = wanted.to(torch.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < self.spec.num_classes):
            raise ArgumentError(
                f"Labels run from {int(wanted.min())} to {int(wanted.max())}.",
                f"Use 0 to {self.spec.num_classes - 1}.",
            )
        order = torch.argsort(wanted, stable=True)
        counts = torch.bincount(wanted, minlength=self.spec.num_classes)
        starts = counts.cumsum(0) - counts
        slot = torch.empty_like(wanted)
        slot[order] = torch.arange(len(wanted), device="cpu") - starts[wanted[order]]
        index = self._sample_index(wanted, slot).to(self.device)
        return self.draw(latents.normal(latents.fold(_SAMPLE, whole("seed", seed)), index, self.spec.latent), index)

    def _sample_index(self, labels: Tensor, slot: Tensor) -> Tensor:
        """Return the index of the slot-th image of each label."""
        return slot * self.spec.num_classes + labels

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next((t.device for t in self.state_dict().values()), torch.device("cpu"))

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors to store, by name, in the storage type; what `restore` takes back."""
        return {name: tensor.to(STORAGE[self.spec.storage]) for name, tensor in self.state_dict().items()}

    def restore(self, tensors: dict[str, Tensor]) -> Self:
        """Assign stored tensors to a generator built on the meta device."""
        self.load_state_dict({name: tensor.to(torch.float32) for name, tensor in tensors.items()}, assign=True)
        return self.requires_grad_(False).eval()

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensors, those of the recipe included."""
        tensors = [*self.stored().values(), *self.recipe_tensors.values()]
        return sum(t.numel() * t.element_size() for t in tensors)
