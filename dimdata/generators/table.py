"""Generators that are tables of images: distilled sets, published sets, and real-image baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

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
        factor: A row is a sheet of factor x factor smaller images, which are drawn enlarged (multi-formation, Kim et
            al., ICML 2022); 1 = every row is an image. Stages count images, not sheets.
    """

    stages: tuple[int, ...] = ()
    labels: bool = False
    factor: int = 1

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        require(len(self.stages) <= 10_000, "generator.options.stages holds over 10,000 stages.")
        require(all(rows > 0 for rows in self.stages), "generator.options.stages must be positive.")
        require(1 <= self.factor <= 64, f"generator.options.factor is {self.factor}; 1 to 64 are read.")
        require(self.factor == 1 or not self.labels, "generator.options.factor goes without stored labels.")


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
        factor, (_, height, width) = self.config.factor, spec.image_shape
        tiles = factor**2
        require(
            factor == 1 or (spec.targets == "hard" and not height % factor and not width % factor),
            f"generator.options.factor {factor} needs hard targets, and must divide both sides.",
        )
        whole = spec.images % (tiles * (spec.num_classes if tiles > 1 else 1)) == 0
        require(whole, f"generator.images is {spec.images}, which does not fill sheets of {tiles} images.")
        shape = (spec.images // tiles, *spec.image_shape)
        self.register_buffer("table", torch.empty(shape, dtype=STORAGE[spec.storage]))
        self.register_buffer("row_labels", None)
        self.register_buffer("row_targets", None)
        if spec.targets == "soft":
            self.row_targets = torch.empty(spec.images, spec.num_classes, dtype=torch.float32)
        elif self.config.labels:
            self.row_labels = torch.empty(spec.images, dtype=torch.int64)

    def _draw(self, latent: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        rows, tile = self._places(index)
        images = self.table[rows].to(torch.float32)
        if self.table.dtype == torch.uint8:
            images = images / 255
        if self.config.factor > 1:
            images = enlarged(images, tile, self.config.factor)
        return images, self.row_targets[index] if self.row_targets is not None else self.labels(index)

    def _places(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the row of each index and the tile of its sheet, both int64 `[B]`; a sheet's tiles have its label."""
        tiles, classes = self.config.factor**2, self.spec.num_classes
        if tiles == 1:
            return index, torch.zeros_like(index)
        slot, label = index // classes, index % classes
        return slot // tiles * classes + label, slot % tiles

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

    def view(self, *, stage: int | None = None, draw: str = "fresh", alone: bool = False) -> Generator:
        """Return the table seen through a prefix of its stages, or a stage of it; see `Generator.view`."""
        super().view(stage=stage, draw=draw, alone=alone)
        if stage is None or self.stages == 1 or (stage == self.stages and not alone):
            return self
        part = self._cut(self.config.stages[:stage], sum(self.config.stages[: stage - 1]) if alone else 0)
        part.recipe = self.recipe.only(stage) if alone else self.recipe.upto(stage)
        part.recipe_tensors = {name: t for name, t in self.recipe_tensors.items() if name in part.recipe.tensors}
        return part

    def prefix(self, rows: int) -> TableGenerator:
        """Return the first `rows` rows as a table of its own that shares their memory."""
        stages, left = [], rows
        for size in self.config.stages:
            if left:
                stages.append(min(size, left))
                left -= stages[-1]
        return self._cut(tuple(stages) or (rows,), 0, bool(stages))

    def _cut(self, stages: tuple[int, ...], first: int, staged: bool = True) -> TableGenerator:
        """Return the rows of the first stages, from a row on, as a table of its own that shares their memory."""
        rows = sum(stages) - first
        # Labels that go by the row go by another one where the first is not of class 0.
        shifted = first % self.spec.num_classes > 0 and self.row_targets is None
        values = self.spec.to_json() | {
            "images": rows,
            "options": {
                "stages": [] if first or not staged else list(stages),
                "labels": self.config.labels or shifted,
                "factor": self.config.factor,
            },
        }
        spec = Spec.from_json(values, keep_unknown=True)
        with torch.device("meta"):
            part = TableGenerator(spec, self.recipe, self.recipe_tensors)
        tiles = self.config.factor**2
        held = slice(first // tiles, (first + rows) // tiles)
        tensors = {name: tensor[held] for name, tensor in self.state_dict().items()}
        if shifted:
            tensors["row_labels"] = self.labels(torch.arange(first, first + rows, device=self.device))
        part.load_state_dict(tensors, assign=True)
        part.take_after(self)
        return part

    @classmethod
    def joined(cls, parts: Sequence[Generator], recipe: Recipe, method: str) -> TableGenerator:
        """Return tables as the stages of one, their rows one after another; see `Generator.joined`."""
        tables = [part for part in parts if isinstance(part, TableGenerator)]
        labels = any(part.row_labels is not None for part in tables)
        stages = [part.spec.images or 0 for part in tables]
        values = tables[0].spec.to_json() | {
            "method": method,
            "images": sum(stages),
            "value_range": [
                min(part.spec.value_range[0] for part in tables),
                max(part.spec.value_range[1] for part in tables),
            ],
            "options": {"stages": stages, "labels": labels, "factor": tables[0].config.factor},
            "flags": sorted({flag for part in tables for flag in part.spec.flags}),
        }
        with torch.device("meta"):
            whole = cls(Spec.from_json(values), recipe)
        held = {name: tensor for part in reversed(tables) for name, tensor in part.recipe_tensors.items()}
        whole.recipe_tensors = {name: held[name] for name in recipe.tensors}
        tensors = {"table": torch.cat([part.table for part in tables])}
        if whole.row_targets is not None:
            tensors["row_targets"] = torch.cat([part.row_targets for part in tables if part.row_targets is not None])
        if labels:
            rows = [torch.arange(count, device=part.device) for count, part in zip(stages, tables, strict=True)]
            own = zip(tables, rows, strict=True)
            tensors["row_labels"] = torch.cat([part.labels(index) for part, index in own])
            index = torch.arange(sum(stages), device=tensors["row_labels"].device)
            if torch.equal(tensors["row_labels"], index % whole.spec.num_classes):  # the row tells them
                values["options"]["labels"] = False
                with torch.device("meta"):
                    whole = cls(Spec.from_json(values), recipe, whole.recipe_tensors)
                del tensors["row_labels"]
        return whole.restore(tensors)

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


def enlarged(sheets: Tensor, tile: Tensor, factor: int) -> Tensor:
    """Return one tile of each sheet at the size of the sheet.

    Args:
        sheets: Floating `[B, C, H, W]`.
        tile: int64 `[B]`, row by row from 0 to factor^2 - 1.
        factor: Tiles a side.

    Returns:
        `[B, C, H, W]`, bilinearly enlarged, differentiable in the sheets.
    """
    batch, channels, height, width = sheets.shape
    parts = sheets.view(batch, channels, factor, height // factor, factor, width // factor)
    parts = parts.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    chosen = parts[torch.arange(batch, device=sheets.device), tile]
    return F.interpolate(chosen, size=(height, width), mode="bilinear", align_corners=False)


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
    flags: tuple[str, ...] = (),
    factor: int = 1,
) -> TableGenerator:
    """Make a table generator of images.

    Args:
        images: `[N, C, H, W]`, uint8 in 0..255 or floating (float16 is stored as it is, others as float32).
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
        flags: Warnings that go with it; see `Spec`.
        factor: Images are sheets of so many tiles a side; see `TableConfig`.
    """
    count = len(images) * factor**2
    if labels is not None and torch.equal(labels.cpu(), torch.arange(count, device="cpu") % len(classes)):
        labels = None
    if images.dtype != torch.uint8:
        images = images if images.dtype == torch.float16 else images.to(torch.float32)
        if value_range is None:
            value_range = (min(0.0, float(images.min())), max(1.0, float(images.max())))
    storage = next(name for name, dtype in STORAGE.items() if dtype == images.dtype)
    options: dict[str, Any] = {"stages": list(stages), "labels": labels is not None}
    if factor > 1:
        options["factor"] = factor
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
        storage=storage,  # type: ignore[arg-type]
        options=options,
        flags=flags,
    )
    with torch.device("meta"):
        generator = TableGenerator(spec, recipe)
    tensors = {"table": images}
    if targets is not None:
        tensors["row_targets"] = targets.to(torch.float32)
    elif labels is not None:
        tensors["row_labels"] = labels.to(torch.int64)
    return generator.restore(tensors)
