"""DiM: distil a dataset into a generator (arXiv 2303.04707), in a configuration that finishes on a CPU.

Phase 1 (`gan`) trains a class-conditional GAN. Phase 2 (`match`) goes on with it and adds a matching loss: a pool of
networks, trained on real images meanwhile, should answer generated images as it answers real ones of the same label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dimdata import latents
from dimdata.distill.losses import ADVERSARIAL, flatness
from dimdata.distill.method import METHODS, Losses, Method, Phase
from dimdata.distill.pool import Pool, pool_key
from dimdata.distill.state import pack_module, pack_optimizer, unpack_module, unpack_optimizer
from dimdata.engine import Engine
from dimdata.generators.base import Generator, shapes_only
from dimdata.generators.network import NetworkGenerator, build
from dimdata.real import Batches, RealData
from dimdata.recipe import Leg, Recipe
from dimdata.spec import Record, Spec, require
from dimdata.students.augment import parse
from dimdata.students.source import InitLaw


def _default_recipe() -> Recipe:
    return Recipe(legs=(Leg(epochs=1000, batch_size=50, lr=0.05, nesterov=True, schedule="onecycle"),))


@dataclass(frozen=True, kw_only=True)
class DimConfig(Record):
    """How DiM is run.

    Attributes:
        network: Name and widths of the generator network.
        latent: Values of a latent.
        storage: Type of the stored weights.
        critic: Channels of the discriminator's first layer.
        batch_size: Real images a step.
        lr: Adam's learning rate of both networks; falls linearly to a twentieth over the last `decay` of the run.
        decay: That share of the steps.
        adversarial: `hinge` or `relativistic`.
        class_weight: Weight of the classification loss (AC-GAN) of both networks.
        flatness: Weight of the discriminator's gradient penalty by finite differences.
        flatness_every: It is applied every so many steps, that many times as strong.
        augment: Differentiable augmentation before the discriminator (Zhao et al., NeurIPS 2020).
        ema: Decay of the average of the generator's weights that is kept; less over the first steps.
        match_share: Share of the steps given to the second phase.
        matching: Matching loss.
        match_weight: Its weight.
        match_augment: Siamese augmentation of real and generated images before the pool.
        pool: The networks of the pool.
        pool_lr: Their learning rate.
        pool_age: Steps after which one is replaced.
        default_steps: Steps of a run that names no budget.
        recipe: How students are trained on the result.
    """

    network: Mapping[str, Any] = field(default_factory=lambda: {"name": "subpixel"})
    latent: int = 64
    storage: str = "float16"
    critic: int = 48
    batch_size: int = 64
    lr: float = 2e-3
    decay: float = 0.5
    adversarial: str = "relativistic"
    class_weight: float = 0.3
    flatness: float = 0.05
    flatness_every: int = 8
    augment: str = ""
    ema: float = 0.999
    match_share: float = 0.3
    matching: str = "logit"
    match_weight: float = 0.05
    match_augment: str = "crop"
    pool: tuple[str, ...] = ("convnet3-w32", "resnet10-w16", "resnetap10-w16", "convnet2-w64")
    pool_lr: float = 0.01
    pool_age: int = 2000
    default_steps: int = 20_000
    recipe: Recipe = field(default_factory=_default_recipe)

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        require(self.batch_size >= 2, f"config.batch_size is {self.batch_size}; 2 or more is needed.")
        require(self.lr > 0 and self.pool_lr > 0, "config.lr and config.pool_lr must be positive.")
        require(0 <= self.match_share <= 1, f"config.match_share is {self.match_share}; it must be in [0, 1].")
        require(0 < self.decay <= 1, f"config.decay is {self.decay}; it must be in (0, 1].")
        require(0 <= self.ema < 1, f"config.ema is {self.ema}; it must be in [0, 1).")
        require(self.flatness_every >= 1, "config.flatness_every must be 1 or more.")
        require(len(self.pool) >= 1 or self.match_share == 0, "config.pool must name a network.")
        require(self.pool_age >= 1, "config.pool_age must be 1 or more.")
        require(self.critic >= 1, "config.critic must be 1 or more.")


class Discriminator(nn.Module):
    """Strided convolutions, a projection of the class (Miyato and Koyama, ICLR 2018) and a class head (AC-GAN)."""

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(channels, width, 4, 2, 1)
        self.down2 = nn.Conv2d(width, 2 * width, 4, 2, 1)
        self.same = nn.Conv2d(2 * width, 2 * width, 3, 1, 1)
        self.down3 = nn.Conv2d(2 * width, 4 * width, 4, 2, 1)
        self.score = nn.Linear(4 * width, 1)
        self.project = nn.Linear(4 * width, num_classes)
        self.classify = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores `[B]` of images `[B, C, H, W]` in [0, 1] under labels `[B]`, and class logits `[B, K]`."""
        x = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        x = F.leaky_relu(self.down1(x), 0.2)
        x = F.leaky_relu(self.down2(x), 0.2)
        x = x + F.leaky_relu(self.same(x), 0.2)
        x = F.leaky_relu(self.down3(x), 0.2)
        x = x.float().mean((2, 3))
        score = self.score(x).squeeze(1) + self.project(x).gather(1, labels[:, None]).squeeze(1)
        return score.float(), self.classify(x).float()


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """Return the update of an exponential moving average that spans at most half of the steps so far.

    A plain one would keep the untrained weights in the average of a short run.
    """

    def update(averages: Any, values: Any, count: Any) -> None:
        steps = int(count)
        get_ema_multi_avg_fn(min(decay, (steps + 1) / (steps + 3)))(averages, values, count)  # type: ignore[no-untyped-call]

    return update


@METHODS.register("dim")
class DiM(Method):
    """Distillation into a generator; see the module's docstring."""

    Config = DimConfig
    config: DimConfig

    def __init__(self, config: DimConfig, real: RealData, engine: Engine, seed: int, steps: int) -> None:
        super().__init__(config, real, engine, seed, steps)
        self.config = config
        self.spec = Spec(
            kind="network",
            method="dim",
            dataset=real.name,
            classes=real.classes,
            image_shape=real.image_shape,
            mean=real.mean,
            std=real.std,
            latent=config.latent,
            storage=config.storage,  # type: ignore[arg-type]
            options=config.network,
        )
        self.batches = Batches(real.train, engine.device, seed, config.batch_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(latents.fold(latents.stream("dim.init"), seed) >> 1)
            network = build(self.spec)
            critic = Discriminator(real.image_shape[0], config.critic, real.num_classes)
        self.network, self.critic = engine.place(network), engine.place(critic)
        self.average = AveragedModel(self.network, multi_avg_fn=_moving_average(config.ema))
        self.optimizers = {
            name: torch.optim.Adam(module.parameters(), lr=config.lr, betas=(0.0, 0.99), fused=True)
            for name, module in (("network", self.network), ("critic", self.critic))
        }
        self._lr = config.lr
        self.game = ADVERSARIAL[config.adversarial]
        self.augment = parse(config.augment)
        self.match_augment = parse(config.match_augment)
        self._fake = engine.compile(self._fake_)
        self._critic_loss = engine.compile(self._critic_loss_)
        self._flatness = engine.compile(self._flatness_)
        self._fool_loss = engine.compile(self._fool_loss_)
        sources = tuple(
            InitLaw(name, real.image_shape, real.num_classes, seed=latents.fold(seed, place))
            for place, name in enumerate(config.pool)
        )
        self.pool = (
            Pool(sources, config.matching, real.mean, real.std, engine, lr=config.pool_lr, age=config.pool_age)
            if config.match_share
            else None
        )

    @classmethod
    def default_steps(cls, config: Record) -> int:
        """Return the configured number."""
        assert isinstance(config, DimConfig)
        return config.default_steps

    def phases(self) -> tuple[Phase, ...]:
        """Return the GAN phase and the matching phase."""
        match = round(self.steps * self.config.match_share)
        gan = self.steps - match
        size, every = self.config.batch_size, self.config.flatness_every
        turns = math.lcm(every, len(self.config.pool) or 1)
        phases = (
            Phase("gan", gan, self._gan_step, size, every),
            Phase("match", match, lambda step: self._match_step(gan + step), size, turns),
        )
        return tuple(phase for phase in phases if phase.steps)

    # The functions with a trailing underscore hold the arithmetic and are compiled; all noise comes in as arguments.

    def _fake_(self, latent: Tensor, labels: Tensor) -> Tensor:
        with self.engine.autocast():
            images: Tensor = self.network(latent, labels)
        return images

    def _critic_loss_(self, real: Tensor, fake: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the critic's loss, and its scores of the real images."""
        with self.engine.autocast():
            scores, classes = self.critic(torch.cat([real, fake]), torch.cat([labels, labels]))
        count = len(real)
        loss = self.game.discriminator(scores[:count], scores[count:])
        return loss + self.config.class_weight * F.cross_entropy(classes[:count], labels), scores[:count]

    def _flatness_(self, images: Tensor, direction: Tensor, labels: Tensor) -> Tensor:
        with self.engine.autocast():
            scores, _ = self.critic(torch.cat([images, images + direction]), torch.cat([labels, labels]))
        count = len(images)
        return flatness(scores[:count], scores[count:], self._distance)

    def _fool_loss_(self, real_scores: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
        with self.engine.autocast():
            scores, classes = self.critic(fake, labels)
        adversarial = self.game.generator(real_scores, scores)
        return adversarial + self.config.class_weight * F.cross_entropy(classes, labels)

    _distance = 0.05  # of the finite difference, in image units: a few grey levels

    def _noise(self, purpose: str, step: int, count: int, size: int) -> Tensor:
        key = latents.fold(latents.stream(f"dim.{purpose}"), self.seed, step)
        return latents.normal(key, torch.arange(count, device=self.engine.device), size)

    def _apply(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = self._lr
        optimizer.step()

    def _gan_step(self, step: int, match: bool = False) -> Losses:
        left = (self.steps - step) / (self.steps * self.config.decay)
        self._lr = self.config.lr * max(0.05, min(1.0, left))
        real, labels = self.batches.at(step)
        key = latents.fold(latents.stream("dim.augment"), self.seed, step)
        seen = self.augment(real, key)

        fake = self._fake(self._noise("latent", step, len(labels), self.config.latent), labels)
        shown = self.augment(fake, key)
        critic_loss, real_scores = self._critic_loss(seen, shown.detach(), labels)
        if self.config.flatness and step % self.config.flatness_every == 0:
            images = torch.cat([seen, shown.detach()])
            noise = self._noise("flatness", step, len(images), images[0].numel()).view_as(images)
            slope = self._flatness(images, noise * self._distance, torch.cat([labels, labels]))
            critic_loss = critic_loss + self.config.flatness * self.config.flatness_every * slope
        self._apply("critic", critic_loss)

        self.critic.requires_grad_(False)  # its gradients are not wanted while it judges for the generator
        loss = self._fool_loss(real_scores.detach(), shown, labels)
        self.critic.requires_grad_(True)
        losses = {"critic": critic_loss.detach(), "network": loss.detach()}
        if match:
            matching = self._matching(step, real, fake, labels, losses)
            loss = loss + self.config.match_weight * matching
        self._apply("network", loss)
        self.average.update_parameters(self.network)
        return losses

    def _matching(self, step: int, real: Tensor, fake: Tensor, labels: Tensor, losses: dict[str, Tensor]) -> Tensor:
        """Train one network of the pool on the real batch, then compare both batches through it."""
        assert self.pool is not None
        member = self.pool.member(step)
        key = pool_key(self.seed, step)
        seen = self.match_augment(real, key)
        losses["pool"] = member.train(seen, labels)
        matching = member.match(seen, self.match_augment(fake, key), labels)
        losses["match"] = matching.detach()
        return matching

    def _match_step(self, step: int) -> Losses:
        return self._gan_step(step, match=True)

    def state_dict(self) -> dict[str, Tensor]:
        """Return networks, averages, optimisers and pool."""
        state = pack_module("network", self.network) | pack_module("critic", self.critic)
        state |= pack_module("average", self.average)
        for name, optimizer in self.optimizers.items():
            state |= pack_optimizer(f"adam.{name}", optimizer)
        return state | (self.pool.state_dict() if self.pool else {})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        unpack_module("network", self.network, state)
        unpack_module("critic", self.critic, state)
        unpack_module("average", self.average, state)
        for name, optimizer in self.optimizers.items():
            unpack_optimizer(f"adam.{name}", optimizer, state)
        if self.pool:
            self.pool.load_state_dict(state)

    def generator(self) -> Generator:
        """Return the generator with the average of its weights."""
        with shapes_only():
            generator = NetworkGenerator(self.spec, self.config.recipe)
        tensors = pack_module("network", self.average.module)
        return generator.restore({name: tensor.clone().contiguous() for name, tensor in tensors.items()})
