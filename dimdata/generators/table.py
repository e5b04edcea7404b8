"""Generators that are tables of images: distilled sets, published sets, and real-image baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from dimdata.errors import ArgumentError, FormatError
from dimdata.generators.base import GENERATORS, STORAGE, Generator
from dimdata.recipe import Recipe
from dimdata.spec import Record, Spec, require


@dataclass(frozen=True, kw_only=True)
class TableConfig(Record):
    """Options of a table.

    Attributes:
        stages: Rows of each stage, in order; empty = one stage of all rows.
        labels: Whether a label is stored for each row; without, row i has label i mod num_classes.
    """

    stages: tuple[int, ...] = ()
    labels: bool = False

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        require(len(self.stages) <= 10_000, "generator.options.stages holds over 10,000 stages.")
        require(all(rows > 0 for rows in self.stages), "generator.options.stages must be positive.")


@GENERATORS.register("table")
class TableGenerator(Generator):
    """A table of images; the row is the index, and stages lie one after another, so a prefix is a prefix of rows."""

    kind = "table"
    table: Tensor
    row_labels: Tensor | None
    row_targets: Tensor | None

    def __init__(self, spec: Spec, recipe: Recipe, recipe_tensors: dict[str, Tensor] | None = None) -> None:
        super().__init__(spec, recipe, recipe_tensors)
        if spec.images is None:
            raise FormatError("generator.images is null; a table says how many rows it has.")
        require(spec.latent == 0, "generator.latent must be 0: a table draws without noise.")
        self.config = TableConfig.from_json(spec.options, "generator.options (table)")
        require(
            not self.config.stages or sum(self.config.stages) == spec.images,
            f"generator.options.stages add up to {sum(self.config.stages)}, not to {spec.images} images.",
        )
        if spec.storage == "uint8":
            require(spec.value_range == (0.0, 1.0), "generator.value_range of a table stored as uint8 is [0, 1].")
        self.register_buffer("table", torch.empty(spec.images, *spec.image_shape, dtype=STORAGE[spec.storage]))
        self.register_buffer("row_labels", None)
        self.register_buffer("row_targets", None)
        if spec.targets == "soft":
            self.row_targets = torch.empty(spec.images, spec.num_classes)
        elif self.config.labels:
            self.row_labels = torch.empty(spec.images, dtype=torch.int64)

    def _draw(self, latent: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        images = self.table[index].to(torch.float32)
        if self.table.dtype == torch.uint8:
            images = images / 255
        return images, self.row_targets[index] if self.row_targets is not None else self.labels(index)

    def labels(self, index: Tensor) -> Tensor:
        """Return the labels of rows; see `Generator.labels`."""
        if self.row_targets is not None:
            return self.row_targets[index].argmax(1)
        if self.row_labels is not None:
            return self.row_labels[index]
        return super().labels(index)

    @property
    def stages(self) -> int:
        """How many stages there are."""
        return max(1, len(self.config.stages))

    def view(self, *, stage: int | None = None, draw: str = "fresh") -> Generator:
        """Return the table seen through a prefix of its stages; see `Generator.view`."""
        super().view(stage=stage, draw=draw)
        return self if stage is None or stage == self.stages else self.prefix(sum(self.config.stages[:stage]))

    def prefix(self, rows: int) -> TableGenerator:
        """Return the first `rows` rows as a table of its own that shares their memory."""
        stages, left = [], rows
        for size in self.config.stages:
            if left:
                stages.append(min(size, left))
                left -= stages[-1]
        values = self.spec.to_json() | {
            "images": rows,
            "options": {"stages": stages, "labels": self.config.labels},
        }
        spec = Spec.from_json(values, keep_unknown=True)
        with torch.device("meta"):
            part = TableGenerator(spec, self.recipe, self.recipe_tensors)
        part.load_state_dict({name: tensor[:rows] for name, tensor in self.state_dict().items()}, assign=True)
        part.name, part.revision = self.name, self.revision
        return part

    def _sample_index(self, labels: Tensor, slot: Tensor) -> Tensor:
        rows = self.labels(torch.arange(int(self.spec.images or 0), device=self.device)).cpu()
        index = torch.empty_like(labels)
        for label in set(labels.tolist()):
            own = (rows == label).nonzero().flatten()
            if not len(own):
                raise ArgumentError(f"There is no image of class {label} ({self.spec.classes[label]}).")
            chosen = labels == label
            index[chosen] = own[slot[chosen] % len(own)]
        return index

    def stored(self) -> dict[str, Tensor]:
        """Return the table and its labels or targets."""
        return dict(self.state_dict())

    def restore(self, tensors: dict[str, Tensor]) -> Self:
        """Assign stored tensors; a table keeps its storage type in memory."""
        self.load_state_dict(tensors, assign=True)
        if self.row_labels is not None:
            ok = bool((self.row_labels >= 0).all()) and bool((self.row_labels < self.spec.num_classes).all())
            require(ok, "row_labels of the table name a class that does not exist.")
        return self.requires_grad_(False).eval()


def table_generator(
    images: Tensor,
    *,
    labels: Tensor | None = None,
    targets: Tensor | None = None,
    classes: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    recipe: Recipe,
    dataset: str = "",
    method: str = "wrapped",
    stages: tuple[int, ...] = (),
    value_range: tuple[float, float] | None = None,
) -> TableGenerator:
    """Make a table generator of images.

    Args:
        images: `[N, C, H, W]`, uint8 in 0..255 or floating (stored as float32).
        labels: int64 `[N]`; left out where row i has label i mod num_classes.
        targets: float `[N, num_classes]` distributions, instead of labels.
        classes: Class names.
        mean: Per-channel mean for normalisation.
        std: Per-channel standard deviation.
        recipe: How to train on it.
        dataset: The real dataset it stands for.
        method: What made it.
        stages: Rows of each stage.
        value_range: Least and greatest value; [0, 1], or what the images reach beyond it.
    """
    count = len(images)
    if labels is not None and torch.equal(labels.cpu(), torch.arange(count) % len(classes)):
        labels = None
    if images.dtype != torch.uint8:
        images = images.to(torch.float32)
        if value_range is None:
            value_range = (min(0.0, float(images.min())), max(1.0, float(images.max())))
    options: dict[str, Any] = {"stages": list(stages), "labels": labels is not None}
    spec = Spec(
        kind="table",
        method=method,
        dataset=dataset,
        classes=classes,
        image_shape=(images.shape[1], images.shape[2], images.shape[3]),
        mean=mean,
        std=std,
        value_range=value_range or (0.0, 1.0),
        latent=0,
        images=count,
        targets="soft" if targets is not None else "hard",
        storage="uint8" if images.dtype == torch.uint8 else "float32",
        options=options,
    )
    with torch.device("meta"):
        generator = TableGenerator(spec, recipe)
    tensors = {"table": images}
    if targets is not None:
        tensors["row_targets"] = targets.to(torch.float32)
    elif labels is not None:
        tensors["row_labels"] = labels.to(torch.int64)
    return generator.restore(tensors)
