"""DM, distribution matching (Zhao and Bilen, WACV 2023): learned images have the mean features of real ones.

Each step asks for a new network, and moves the images of every class so that the mean of what enters the network's
last layer is the real images' mean. No network is trained here, which makes this the cheapest of the table methods.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dimdata import latents
from dimdata.distill.method import METHODS, Earlier, Losses, Phase
from dimdata.distill.pool import Watched
from dimdata.distill.tables import TableConfig, TableMethod
from dimdata.engine import Engine
from dimdata.real import Batches, RealData
from dimdata.spec import require


@dataclass(frozen=True, kw_only=True)
class DmConfig(TableConfig):
    """How DM is run; the other settings are those of every table.

    Attributes:
        real_batch: Real images of each class a step.
        learned_batch: Learned images of each class a step, in turn; 0 = all of them. With `union`, all images of the
            stages before come on top.
    """

    real_batch: int = 128
    learned_batch: int = 0

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        super().check()
        require(self.real_batch >= 1, f"config.real_batch is {self.real_batch}; 1 or more is needed.")
        require(self.learned_batch >= 0, f"config.learned_batch is {self.learned_batch}; 0 or more is needed.")


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
        self.batches = Batches(real.train, engine.device, seed, config.real_batch * real.num_classes)
        self._distance = engine.compile(self._distance_)

    def phases(self) -> tuple[Phase, ...]:
        """Return the one phase."""
        return (Phase("match", self.steps, self._step, self.batches.batch_size),)

    def _means(self, images: Tensor) -> Tensor:
        """Return mean features `[num_classes, D]` of images `[slots * num_classes, C, H, W]`."""
        with self.engine.autocast():
            _, features = self.network(images.contiguous(memory_format=torch.channels_last))
        means: Tensor = features.view(-1, self.real.num_classes, features.shape[1]).mean(0)
        return means

    def _distance_(self, real: Tensor, learned: Tensor) -> Tensor:
        """Return the squared distance of the mean features, summed over classes and features."""
        with torch.no_grad():
            wanted = self._means(real)
        return (self._means(learned) - wanted).square().sum()

    def _chosen(self, step: int) -> Tensor:
        """Return the learned images whose turn it is, with those of the stages before where these are matched too."""
        slots, count = self.config.ipc, self.config.learned_batch
        if not count or count >= slots:
            return torch.cat([self.table, self.before])
        turn = torch.arange(step * count, (step + 1) * count, device=self.table.device) % slots
        return torch.cat([self.table.view(slots, -1, *self.real.image_shape)[turn].flatten(0, 1), self.before])

    def _step(self, step: int) -> Losses:
        self.network.renew(self.source.network(step))
        real, _ = self.batches.at(step)
        learned = self._chosen(step)
        key = latents.fold(latents.stream("dm.augment"), self.seed, step)
        same = torch.zeros(max(len(real), len(learned)), dtype=torch.int64, device=real.device)  # for all images alike
        real = self.augment(self.normalize(real), key, same[: len(real)])
        learned = self.augment(learned, key, same[: len(learned)])
        loss = self._distance(real, learned)
        self.apply(loss)
        return {"match": loss.detach()}
