"""DM, distribution matching (Zhao and Bilen, WACV 2023): learned images have the mean features of real ones.

Each step asks for a new network, and moves the images of every class so that the mean of what enters the network's
last layer is the real images' mean. No network is trained here, which makes this the cheapest of the table methods.

As a stage of a progressive distillation it may ask for what the networks trained on the stages before still get wrong:
with `focus`, each real image of the mean is weighted by how wrong the network is about it. To the first power, that
mean is, but for length and sign, the gradient of their loss by the weights of their own class in the last layer.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dimdata import latents
from dimdata.distill.method import METHODS, Earlier, Losses, Phase
from dimdata.distill.pool import Watched
from dimdata.distill.tables import TableConfig, TableMethod
from dimdata.engine import Engine
from dimdata.real import Batches, RealData
from dimdata.spec import Record, require

_LEAST = 1e-3  # the weight of a real image that the network is sure of, so that a class never has none


@dataclass(frozen=True, kw_only=True)
class DmConfig(TableConfig):
    """How DM is run; the other settings are those of every table.

    Attributes:
        lr: Learning rate of the images, in normalised units. The mean over a class's images makes each one's gradient
            smaller, so those of one of K stages, which has fewer, are larger. There the rate is divided by the square
            root of K (less where `learned_batch` keeps them smaller): the noise that an image takes up in all of its
            steps then has the variance that it has without stages. With `union`, it is multiplied by as much as the
            images before make the gradients of a stage's own smaller.
        real_batch: Real images of each class a step.
        learned_batch: Learned images of each class a step, in turn; 0 = all of them. With `union`, all images of the
            stages before come on top.
        focus: In later stages of a progressive distillation, the power of `1 - p` by which real images are weighted
            in the mean of their class; p is what the network gives their class. 0 = all alike, as in a first stage.
        augment: Augmentation of real and learned images, drawn anew for each class, and the same for all images of one.
    """

    real_batch: int = 128
    learned_batch: int = 0
    focus: float = 0.0

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        super().check()
        require(self.real_batch >= 1, f"config.real_batch is {self.real_batch}; 1 or more is needed.")
        require(self.learned_batch >= 0, f"config.learned_batch is {self.learned_batch}; 0 or more is needed.")
        require(0 <= self.focus <= 10, f"config.focus is {self.focus}; it must be in [0, 10].")

    def turn(self) -> int:
        """Return the learned images of each class in a step."""
        return min(self.learned_batch or self.ipc, self.ipc)


@METHODS.register("dm")
class DM(TableMethod):
    """Distribution matching; see the module's docstring."""

    Config = DmConfig
    name = "dm"
    config: DmConfig

    def __init__(
        self,
        config: DmConfig,
        real: RealData,
        engine: Engine,
        seed: int,
        steps: int,
        earlier: Earlier | None = None,
    ) -> None:
        super().__init__(config, real, engine, seed, steps, earlier)
        self.source = self.networks(config.student, seed)
        self.network = Watched(self.source.network(0))
        engine.place(self.network).train().requires_grad_(False)
        self.focus = config.focus if earlier else 0.0
        self.lr = config.lr * (1 + len(self.before) / (config.turn() * real.num_classes))
        self.batches = Batches(real.train, engine.device, seed, config.real_batch * real.num_classes)
        self._distance = engine.compile(self._distance_)

    @classmethod
    def for_stages(cls, config: Record, stages: int) -> Record:
        """Share the images out among the stages, at a learning rate of equal noise; see `DmConfig.lr`."""
        assert isinstance(config, DmConfig)
        share = super().for_stages(config, stages)
        assert isinstance(share, DmConfig)
        return dataclasses.replace(share, lr=config.lr * math.sqrt(share.turn() / config.turn()))

    def phases(self) -> tuple[Phase, ...]:
        """Return the one phase."""
        return (Phase("match", self.steps, self._step, self.batches.batch_size),)

    def _means(self, images: Tensor, focus: float = 0.0) -> Tensor:
        """Return mean features `[num_classes, D]` of images `[slots * num_classes, C, H, W]`; see `DmConfig.focus`."""
        with self.engine.autocast():
            logits, features = self.network(images.contiguous(memory_format=torch.channels_last))
        classes = self.real.num_classes
        by_slot: Tensor = features.view(-1, classes, features.shape[1])
        if not focus:
            return by_slot.mean(0)
        # logits[slot, class, class]: what an image's own class is given
        own = logits.softmax(1).view(-1, classes, classes).diagonal(dim1=1, dim2=2)
        weight = (1 - own).clamp_min(_LEAST).pow(focus)
        return torch.einsum("sk,skd->kd", weight / weight.sum(0), by_slot)

    def _distance_(self, real: Tensor, learned: Tensor) -> Tensor:
        """Return the squared distance of the mean features, summed over classes and features."""
        with torch.no_grad():
            wanted = self._means(real, self.focus)
        return (self._means(learned) - wanted).square().sum()

    def _chosen(self, step: int) -> Tensor:
        """Return the learned images whose turn it is, with those of the stages before where these are matched too."""
        slots, count = self.config.ipc, self.config.learned_batch
        if not count or count >= slots:
            return torch.cat([self.table, self.before])
        turn = torch.arange(step * count, (step + 1) * count, device=self.table.device) % slots
        return torch.cat([self.table.view(slots, -1, *self.real.image_shape)[turn].flatten(0, 1), self.before])

    def _augmented(self, images: Tensor, step: int) -> Tensor:
        """Augment images `[slots * num_classes, C, H, W]`, all those of a class alike.

        Real and learned images of a step are treated alike, too.
        """
        classes, key = self.real.num_classes, latents.fold(latents.stream("dm.augment"), self.seed, step)
        if not self.augment.steps:
            return images
        same = torch.zeros(len(images) // classes, dtype=torch.int64, device=images.device)
        seen = [self.augment(images[label::classes], latents.fold(key, label), same) for label in range(classes)]
        return torch.stack(seen, 1).flatten(0, 1)

    def _step(self, step: int) -> Losses:
        self.network.renew(self.source.network(step))
        real, _ = self.batches.at(step)
        loss = self._distance(self._augmented(self.normalize(real), step), self._augmented(self._chosen(step), step))
        self.apply(loss, 1 - step / self.steps)
        return {"match": loss.detach()}
