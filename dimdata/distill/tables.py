"""What methods that learn a table of images share: the images, their optimiser, and the generator they make."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from dimdata import latents
from dimdata.distill.method import Earlier, Method, Probe
from dimdata.distill.state import pack_optimizer, unpack_optimizer
from dimdata.engine import Engine
from dimdata.errors import ArgumentError
from dimdata.generators.base import Generator
from dimdata.generators.table import table_generator
from dimdata.real import RealData, kmeans_real, subset
from dimdata.recipe import Leg, Recipe
from dimdata.spec import Record, require
from dimdata.students.augment import parse
from dimdata.students.own import user_student
from dimdata.students.source import InitLaw, NetworkSource
from dimdata.whitening import Whitening

DSA = "color+crop+cutout+scale+rotate"  # Zhao and Bilen, ICML 2021, without the flip, which digits do not stand


def published_recipe() -> Recipe:
    """Return how the field trains on tables: 1,000 epochs of SGD, the rate cut at half, one DSA operation a batch."""
    leg = Leg(epochs=1000, batch_size=256, lr=0.01, schedule="step", lr_drops=(0.5,), augment=DSA, dialect="one")
    return Recipe(legs=(leg,))


@dataclass(frozen=True, kw_only=True)
class TableConfig(Record):
    """How a table of images is learned.

    Attributes:
        ipc: Images per class.
        storage: `uint8` keeps images within [0, 1] throughout; `float16` and `float32` let them leave it.
        student: The network whose eyes are used; `package.module:factory` is imported.
        begin: What the images are at first: `random` real ones, or the centres of `kmeans` clusters of each class in
            pixel space.
        lr: Learning rate of the images, which are in normalised units.
        momentum: Of the images' SGD.
        lr_decay: Share of the steps that move the images over which their learning rate falls linearly to nothing, at
            the end; 0 keeps it. Steps of a constant rate leave the images as noisy as the batches they were moved by.
        augment: Siamese augmentation of real and learned images, normalised.
        dialect: `one` operation of the list a batch, `each`, or `idc`; see `dimdata.students.augment`.
        union: Whether a later stage of a progressive distillation has the images of the stages before, which stand
            still, in its batches of learned images; otherwise it has its own alone there.
        zca: Whiten images by ZCA, with so much added to each variance (0.1 in MTT), instead of normalising them by mean
            and deviation; 0 = do not. Learning rates are then in whitened units, and so is the augmentation; what
            whitens is fitted to the training images and stored with the generator.
        default_steps: Steps of a run that names no budget.
        recipe: How students are trained on the result.
    """

    ipc: int = 10
    storage: Literal["uint8", "float16", "float32"] = "float16"
    student: str = "convnet3"
    begin: Literal["random", "kmeans"] = "random"
    lr: float = 1.0
    momentum: float = 0.5
    lr_decay: float = 0.0
    augment: str = DSA
    dialect: Literal["one", "each", "idc"] = "one"
    union: bool = False
    zca: float = 0.0
    default_steps: int = 5_000
    recipe: Recipe = field(default_factory=published_recipe)

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        require(self.ipc >= 1, f"config.ipc is {self.ipc}; 1 or more is needed.")
        require(self.default_steps >= 1, f"config.default_steps is {self.default_steps}; 1 or more is needed.")
        require(self.lr > 0, f"config.lr is {self.lr}; it must be positive.")
        require(0 <= self.momentum < 1, f"config.momentum is {self.momentum}; it must be in [0, 1).")
        require(0 <= self.lr_decay <= 1, f"config.lr_decay is {self.lr_decay}; it must be in [0, 1].")
        require(self.zca == 0 or 1e-6 <= self.zca <= 1e6, f"config.zca is {self.zca:g}; 0, or 1e-6 to 1e6 is possible.")
        require(self.recipe.whitening is None, "config.recipe.whitening is not set by hand; config.zca sets it.")


class TableMethod(Method):
    """A method that learns images; row = slot * num_classes + label, and which begin as real ones or means of them.

    All stages of a progressive distillation together start from the random images that one stage of their size starts
    from, in the same order, so that what the stages gain is not due to other images. (Where later stages are given the
    harder images alone, they start from those, and a few images may return.)

    Attributes:
        table: The images in normalised (or whitened) units, float32 `[N, C, H, W]`.
        before: Those of the stages before as students see them, in the same units, float32 `[M, C, H, W]` by index;
            none of them without `union`.
        whitening: What whitens images, if anything does.
        optimizer: Moves them.
        lr: Its learning rate, before it falls.
    """

    name: str
    config: TableConfig

    def __init__(
        self,
        config: TableConfig,
        real: RealData,
        engine: Engine,
        seed: int,
        steps: int,
        earlier: Earlier | None = None,
    ) -> None:
        super().__init__(config, real, engine, seed, steps, earlier)
        self.config = config
        user_student(config.student)
        self.augment = parse(config.augment, config.dialect)
        self.mean = torch.tensor(real.mean, device=engine.device)[:, None, None]
        self.std = torch.tensor(real.std, device=engine.device)[:, None, None]
        self.whitening = self._whitening()
        self.start_seed = latents.fold(latents.stream("table.start"), earlier.seed if earlier else seed)
        self.table = nn.Parameter(self.normalize(self.start().to(engine.device)))
        self.before = self._before() if config.union else self.table.new_empty(0, *real.image_shape)
        self.lr = config.lr
        self.optimizer = torch.optim.SGD([self.table], lr=self.lr, momentum=config.momentum)

    def _before(self) -> Tensor:
        """Return the images of the stages before, if there are any."""
        if self.earlier is None:
            return self.table.new_empty(0, *self.real.image_shape)
        generator = self.earlier.generator
        index = torch.arange(generator.images or 0, device=generator.device)
        return self.normalize(generator.draw(torch.empty(len(index), 0), index)[0].to(self.engine.device))

    def _whitening(self) -> Whitening | None:
        """Return what whitens images: fitted to the training images, or that of the stages before."""
        if not self.config.zca:
            return None
        if self.earlier is not None:
            generator = self.earlier.generator
            return Whitening.of(generator.recipe, generator.recipe_tensors)
        return Whitening.fit(self.real.train.images, self.config.zca, self.engine.device)

    def probe(self) -> Probe:
        """Score a student on all images."""
        return Probe(ipc=None)

    def start(self) -> Tensor:
        """Return the images to start from, float32 `[N, C, H, W]` in [0, 1]."""
        return self.chosen(self.least_per_class())

    def least_per_class(self) -> int:
        """Return the real images of each class that it starts from."""
        return self.config.ipc

    def chosen(self, per_class: int) -> Tensor:
        """Return what `begin` asks for, others in each stage, float32 `[per_class * num_classes, C, H, W]` in [0, 1].

        Stage k takes random images from where the stages before stopped in the one choice of the run; or the last of
        that choice, where the images that a stage is given are too few to go on. Its clusters start from a choice of
        its own; one cluster is the mean in every stage.
        """
        before = self.earlier.generator.stages * per_class if self.earlier else 0
        if self.config.begin == "kmeans":
            found = kmeans_real(self.real, per_class, latents.fold(self.start_seed, before), self.config.recipe)
            index = torch.arange(per_class * self.real.num_classes)
            return found.draw(torch.empty(len(index), 0), index)[0]
        there = int(self.real.train.counts.min())
        split = subset(self.real.train, max(per_class, min(before + per_class, there)), self.start_seed)
        return split.images[-per_class * self.real.num_classes :].to(torch.float32) / 255

    @classmethod
    def for_stages(cls, config: Record, stages: int) -> Record:
        """Share the images of each class out among the stages; see `Method.for_stages`."""
        assert isinstance(config, TableConfig)
        if config.ipc % stages:
            fit = [str(n) for n in range(2, config.ipc + 1) if config.ipc % n == 0]
            raise ArgumentError(
                f"{config.ipc} images per class cannot be shared equally among {stages} stages.",
                f"Use {', '.join(fit[:12])} stages, or another ipc." if fit else "Ask for more images per class.",
            )
        return dataclasses.replace(
            config, ipc=config.ipc // stages, default_steps=math.ceil(config.default_steps / stages)
        )

    @classmethod
    def default_steps(cls, config: Record) -> int:
        """Return the configured number."""
        assert isinstance(config, TableConfig)
        return config.default_steps

    def networks(self, student: str, seed: int) -> NetworkSource:
        """Return the supply of networks: untrained ones, or trained on the stages before.

        They start otherwise than students of small seeds, so that no generator is scored on a start that it has seen.
        """
        shape, classes = self.real.image_shape, self.real.num_classes
        own = latents.fold(latents.stream("table.networks"), seed)
        source: NetworkSource = InitLaw(user_student(student), shape, classes, seed=own)
        return self.earlier.after(source) if self.earlier else source

    def normalize(self, images: Tensor) -> Tensor:
        """Bring images `[B, C, H, W]` from [0, 1] to zero mean and unit deviation, or whiten them."""
        return (images - self.mean) / self.std if self.whitening is None else self.whitening(images)

    def denormalize(self, images: Tensor) -> Tensor:
        """Return the images `[B, C, H, W]` that `normalize` brings to the given ones."""
        return images * self.std + self.mean if self.whitening is None else self.whitening.inverse(images)

    def apply(self, loss: Tensor, left: float) -> None:
        """Move the images down the gradient of a loss; see `update`."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.update(left)

    def update(self, left: float) -> None:
        """Move the images by their gradients, and keep them storable.

        Args:
            left: Which share of the steps that move the images is left, this one included, in (0, 1].
        """
        decay = self.config.lr_decay
        self.optimizer.param_groups[0]["lr"] = self.lr * (max(0.0, min(1.0, left / decay)) if decay else 1.0)
        self.optimizer.step()
        if self.config.storage == "uint8":
            with torch.no_grad():
                if self.whitening is None:
                    self.table.clamp_(-self.mean / self.std, (1 - self.mean) / self.std)
                else:
                    self.table.copy_(self.normalize(self.denormalize(self.table).clamp(0, 1)))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the images and their momentum."""
        return {"table": self.table.detach(), **pack_optimizer("sgd", self.optimizer)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        with torch.no_grad():
            self.table.copy_(state["table"])
        unpack_optimizer("sgd", self.optimizer, state)

    def factor(self) -> int:
        """Return the tiles a side that a stored image is made of."""
        return 1

    def recipe(self) -> Recipe:
        """Return how students are trained on the images as they stand."""
        return self.config.recipe

    def generator(self) -> Generator:
        """Return the images as a table."""
        images = self.denormalize(self.table.detach()).cpu()
        if self.config.storage == "uint8":
            images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        elif self.config.storage == "float16":
            images = images.to(torch.float16)
        real, recipe, tensors = self.real, self.recipe(), {}
        if self.whitening is not None:
            tensors = self.whitening.tensors()
            recipe = dataclasses.replace(recipe, tensors=(*recipe.tensors, *tensors), whitening=self.whitening.spec)
        made = table_generator(
            images,
            classes=real.classes,
            mean=real.mean,
            std=real.std,
            recipe=recipe,
            dataset=real.name,
            method=self.name,
            factor=self.factor(),
        )
        made.recipe_tensors = tensors
        return made
