"""IDC (Kim et al., ICML 2022): gradient matching, on sheets of several smaller images.

Each step asks how a network that is being trained would be moved by real images of a class, and changes the learned
images so that they would move it alike; then the network takes its steps on real images. After `inner` steps another
network takes its place. A stored image is a sheet of `factor` x `factor` smaller ones, which are drawn enlarged
(multi-formation), so that a class has `ipc * factor**2` images in the bytes of `ipc`. Otherwise than published, the
images of all classes move in one step, not one class after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dimdata import latents
from dimdata.distill.method import METHODS, Earlier, Losses, Phase
from dimdata.distill.state import pack_module, pack_optimizer, unpack_module, unpack_optimizer
from dimdata.distill.tables import TableConfig, TableMethod
from dimdata.engine import Engine
from dimdata.errors import ArgumentError
from dimdata.generators.table import enlarged
from dimdata.real import Batches, RealData
from dimdata.spec import require
from dimdata.students.augment import parse


@dataclass(frozen=True, kw_only=True)
class IdcConfig(TableConfig):
    """How IDC is run; the other settings are those of every table.

    Attributes:
        factor: Tiles a side of a sheet; `ipc` counts sheets.
        union: As in every table, but on unless it is turned off, as published.
        matched: Gradients of which weights are matched: of `all`, or of `convolutions` alone, as published.
        lr: Learning rate of the sheets, in normalised units, at 10 of a class; it is scaled by `ipc / 10`, since the
            mean over a class's images makes each one's gradient smaller (with `union`, those before count too). The
            published 0.005 is for values in [0, 1]: here it is divided by their variance, about 0.05 for MNIST and 0.08
            for CIFAR-10.
        real_batch: Real images of each class a step.
        learned_batch: Learned images of each class a step, in turn; 0 = all of them. With `union`, those of the stages
            before have their share of it.
        inner: Steps after which another network takes its place.
        net_steps: Steps of the network on real images after each step of the images.
        net_batch: Real images of such a step.
        net_lr: Learning rate of the network.
        net_augment: Augmentation of its images.
        net_dialect: Of this augmentation.
    """

    union: bool = True
    factor: int = 2
    matched: Literal["all", "convolutions"] = "all"
    lr: float = 0.05
    real_batch: int = 64
    learned_batch: int = 128
    inner: int = 100
    net_steps: int = 8
    net_batch: int = 256
    net_lr: float = 0.01
    net_augment: str = "color+crop"
    net_dialect: Literal["one", "each", "idc"] = "each"

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        super().check()
        for name in ("factor", "real_batch", "inner", "net_batch"):
            require(getattr(self, name) >= 1, f"config.{name} is {getattr(self, name)}; 1 or more is needed.")
        for name in ("learned_batch", "net_steps"):
            require(getattr(self, name) >= 0, f"config.{name} is {getattr(self, name)}; 0 or more is needed.")
        require(self.net_lr > 0, f"config.net_lr is {self.net_lr}; it must be positive.")


@METHODS.register("idc")
class IDC(TableMethod):
    """Gradient matching with multi-formation; see the module's docstring."""

    Config = IdcConfig
    name = "idc"
    config: IdcConfig

    def __init__(
        self,
        config: IdcConfig,
        real: RealData,
        engine: Engine,
        seed: int,
        steps: int,
        earlier: Earlier | None = None,
    ) -> None:
        _, height, width = real.image_shape
        if height % config.factor or width % config.factor:
            raise ArgumentError(
                f"Images of {height}x{width} cannot be divided into {config.factor} tiles a side.",
                "Choose a factor that divides both sides; 1 stores every image by itself.",
            )
        if config.zca and config.factor > 1:
            raise ArgumentError(
                "Sheets of several images cannot be whitened, since whitening mixes all pixels of an image.",
                "Choose factor=1 with zca, or leave zca out.",
            )
        super().__init__(config, real, engine, seed, steps, earlier)
        seen = config.ipc + len(self.before) // (real.num_classes * config.factor**2)  # sheets of a class
        self.lr = config.lr * seen / 10
        self.source = self.networks(config.student, seed)
        self.network = engine.place(self.source.network(0)).train()
        self.net_optimizer = torch.optim.SGD(
            self.network.parameters(), lr=config.net_lr, momentum=0.9, weight_decay=5e-4
        )
        self.held = 0  # the number of the network in place
        self.net_augment = parse(config.net_augment, config.net_dialect, mixing=True)
        self.matched = [w for w in self.network.parameters() if w.ndim == 4 or config.matched == "all"]
        if not self.matched:
            raise ArgumentError(f"{config.student} has no convolutions to match.", "Use matched=all, or convnet3.")
        self.batches = Batches(real.train, engine.device, seed, config.real_batch * real.num_classes)
        self.net_batches = Batches(
            real.train, engine.device, latents.fold(latents.stream("idc.network"), seed), config.net_batch
        )
        self._train_loss = engine.compile(self._train_loss_)

    def start(self) -> Tensor:
        """Return sheets of real images, each made smaller by the mean of its squares of pixels."""
        factor, classes = self.config.factor, self.real.num_classes
        small = F.avg_pool2d(self.chosen(self.least_per_class()), factor)
        # Image slot * classes + label, slot = sheet * tiles + tile, as the table's own order is.
        tiles = small.view(self.config.ipc, factor, factor, classes, *small.shape[1:])
        return tiles.permute(0, 3, 4, 1, 5, 2, 6).reshape(-1, *self.real.image_shape)

    def least_per_class(self) -> int:
        """Return the real images of each class that its sheets start from."""
        return self.config.ipc * self.config.factor**2

    def phases(self) -> tuple[Phase, ...]:
        """Return the one phase."""
        consumed = self.batches.batch_size + self.config.net_steps * self.config.net_batch
        return (Phase("match", self.steps, self._step, consumed),)

    def _train_loss_(self, images: Tensor, labels: Tensor) -> Tensor:
        with self.engine.autocast():
            logits: Tensor = self.network(images.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), labels)

    def _gradients(self, images: Tensor, label: int, graph: bool) -> tuple[Tensor, ...]:
        """Return the gradient of the loss on images of one class with respect to each weight that is matched."""
        labels = torch.full((len(images),), label, device=images.device)
        loss = self._train_loss_(images, labels)  # not the compiled one, of which no second derivative can be had
        return torch.autograd.grad(loss, self.matched, create_graph=graph)

    def _learned(self, step: int, label: int) -> Tensor:
        """Return the learned images of a class whose turn it is, and with them those of the stages before."""
        tiles, classes = self.config.factor**2, self.real.num_classes
        own, before = self.config.ipc * tiles, len(self.before) // classes
        count = min(self.config.learned_batch or own + before, own + before)
        share = max(1, round(count * own / (own + before)))
        slots = self._turn(step, share, own)
        sheets = self.table[slots // tiles * classes + label]
        learned = enlarged(sheets, slots % tiles, self.config.factor) if tiles > 1 else sheets
        return torch.cat([learned, self.before[self._turn(step, count - share, before) * classes + label]])

    def _turn(self, step: int, count: int, there: int) -> Tensor:
        """Return the `count` places of a step, of `there`, in turn."""
        first = step * count if count < there else 0
        return torch.arange(first, first + count, device=self.table.device) % max(1, there)

    def _place(self, number: int) -> None:
        """Put network `number` in place, new from its source."""
        if number == self.held:
            return
        self.network.load_state_dict(self.source.network(number).state_dict())
        self.net_optimizer.state.clear()
        self.held = number

    def _step(self, step: int) -> Losses:
        self._place(step // self.config.inner)
        real, _ = self.batches.at(step)
        real = self.normalize(real)
        classes = self.real.num_classes
        total = torch.zeros((), device=real.device)
        self.optimizer.zero_grad(set_to_none=True)
        for label in range(classes):
            key = latents.fold(latents.stream("idc.augment"), self.seed, step, label)
            given, learned = real[label::classes], self._learned(step, label)
            same = torch.zeros(max(len(given), len(learned)), dtype=torch.int64, device=real.device)
            wanted = self._gradients(self.augment(given, key, same[: len(given)]), label, graph=False)
            found = self._gradients(self.augment(learned, key, same[: len(learned)]), label, graph=True)
            loss = torch.stack([(a - b).square().sum() for a, b in zip(found, wanted, strict=True)]).sum()
            (moved,) = torch.autograd.grad(loss, self.table)
            self.table.grad = moved if self.table.grad is None else self.table.grad + moved
            total += loss.detach()
        self.update(1 - step / self.steps)
        losses = {"match": total / classes}
        for turn in range(self.config.net_steps):
            losses["network"] = self._train(step * self.config.net_steps + turn)
        return losses

    def _train(self, number: int) -> Tensor:
        """Take one step of the network on real images."""
        images, labels = self.net_batches.at(number)
        key = latents.fold(latents.stream("idc.network.augment"), self.seed, number)
        images = self.net_augment(self.normalize(images), key)
        images, targets = self.net_augment.mix(images, labels, self.real.num_classes, key)
        loss: Tensor = self._train_loss(images, targets)
        self.net_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.net_optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sheets and the network in place."""
        state = super().state_dict() | pack_module("network", self.network)
        return state | pack_optimizer("net_sgd", self.net_optimizer) | {"held": torch.tensor([self.held])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        unpack_module("network", self.network, state)
        unpack_optimizer("net_sgd", self.net_optimizer, state)
        self.held = int(state["held"])

    def factor(self) -> int:
        """Return the tiles a side of a sheet."""
        return self.config.factor
