"""The adversarial game of a generator network and a critic: who moves when, on whose images, and for what loss.

The functions with a trailing underscore hold the arithmetic and are compiled; all noise comes in as arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimdata import latents
from dimdata.distill.losses import ADVERSARIAL
from dimdata.distill.penalties import PENALTIES
from dimdata.engine import Engine
from dimdata.registry import Registry
from dimdata.students.augment import parse

if TYPE_CHECKING:
    from dimdata.distill.dim import DimConfig

Extra = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
"""From generated images `[B, C, H, W]` to a term of the generator's loss, and values to show."""


class Game:
    """Two networks and their optimisers.

    Args:
        config: How the game is played; see `DimConfig`.
        network: The generator network.
        critic: See `critics.Critic`.
        num_classes: Classes, K.
        engine: Device and precision.
        seed: Of all noise.
    """

    def __init__(
        self, config: DimConfig, network: nn.Module, critic: nn.Module, num_classes: int, engine: Engine, seed: int
    ) -> None:
        self.config, self.network, self.critic = config, network, critic
        self.num_classes, self.engine, self.seed = num_classes, engine, seed
        self.optimizers = {
            name: torch.optim.Adam(module.parameters(), lr=config.lr, betas=config.betas, fused=engine.fused)
            for name, module in (("network", network), ("critic", critic))
        }
        self.adversarial = ADVERSARIAL[config.adversarial]
        self.penalty = PENALTIES[config.penalty]
        self.round = ROUNDS[config.round]
        self.augment = parse(config.augment)
        self.lr, self.flatness = config.lr, config.flatness
        self.class_weight = torch.tensor(config.class_weight, device=engine.device)  # so that no value is compiled in
        self.fake = engine.compile(self._fake_)
        self.critic_loss = engine.compile(self._critic_loss_)
        self.slope = engine.compile(self._slope_) if self.penalty.compiles else self._slope_
        self.fool_loss = engine.compile(self._fool_loss_)

    def _fake_(self, latent: Tensor, labels: Tensor) -> Tensor:
        with self.engine.autocast():
            images: Tensor = self.network(latent, labels)
        return images

    def _critic_loss_(self, real: Tensor, fake: Tensor, labels: Tensor, fake_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the critic's loss, and its scores of the real images."""
        with self.engine.autocast():
            scores, classes = self.critic(torch.cat([real, fake]), torch.cat([labels, fake_labels]))
        count = len(real)
        loss = self.adversarial.discriminator(scores[:count], scores[count:])
        loss = loss + self.config.class_weight * F.cross_entropy(classes[:count], labels)
        if self.config.fake_class_weight:
            loss = loss + self.config.fake_class_weight * F.cross_entropy(classes[count:], fake_labels)
        return loss, scores[:count]

    def score(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the critic's scores `[B]` of images `[B, C, H, W]` in [0, 1] under labels int64 `[B]`."""
        with self.engine.autocast():
            scores: Tensor = self.critic(images, labels)[0]
        return scores

    def _slope_(self, images: Tensor, direction: Tensor, labels: Tensor) -> Tensor:
        return self.penalty.measure(self.score, images, direction, labels)

    def _fool_loss_(self, real_scores: Tensor, fake: Tensor, labels: Tensor, class_weight: Tensor) -> Tensor:
        with self.engine.autocast():
            scores, classes = self.critic(fake, labels)
        adversarial = self.adversarial.generator(real_scores, scores)
        return adversarial + class_weight * F.cross_entropy(classes, labels)

    def key(self, purpose: str, step: int) -> int:
        """Return the key of the noise for a purpose at a step."""
        return latents.fold(latents.stream(f"dim.{purpose}"), self.seed, step)

    def latent(self, purpose: str, step: int, count: int) -> Tensor:
        """Return latents `[count, Z]` for a purpose at a step."""
        index = torch.arange(count, device=self.engine.device)
        return latents.normal(self.key(purpose, step), index, self.config.latent)

    def critic_move(
        self, step: int, real: Tensor, fake: Tensor, labels: Tensor, fake_labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Let the critic learn to tell real images from generated ones.

        Args:
            step: Step of the run.
            real: As the critic shall see them, `[B, C, H, W]`.
            fake: Generated ones, likewise, detached.
            labels: Of the real images, int64 `[B]`.
            fake_labels: Of the generated ones, int64 `[B]`.

        Returns:
            Its loss, and its scores `[B]` of the real images before the move, both detached.
        """
        loss, real_scores = self.critic_loss(real, fake, labels, fake_labels)
        weight, every = self.flatness, self.config.flatness_every
        if weight and step % every == 0:
            key = self.key(self.config.penalty, step)
            loss = loss + weight * every * self.slope(*self.penalty.place(real, fake, labels, fake_labels, key))
        self._apply("critic", loss)
        return loss.detach(), real_scores.detach()

    def network_move(
        self, real_scores: Tensor, fake: Tensor, shown: Tensor, labels: Tensor, extra: Extra | None
    ) -> dict[str, Tensor]:
        """Let the generator learn to fool the critic, and whatever else is asked of it.

        Args:
            real_scores: The critic's scores `[B]` of real images of the same labels, for losses that look at them.
            fake: Its images `[B, C, H, W]`.
            shown: The same as the critic sees them.
            labels: int64 `[B]`.
            extra: Another term of its loss.

        Returns:
            Losses to show.
        """
        learns = [weight for weight in self.critic.parameters() if weight.requires_grad]
        for weight in learns:  # its gradients are not wanted while it judges for the generator
            weight.requires_grad_(False)
        loss = self.fool_loss(real_scores, shown, labels, self.class_weight)
        for weight in learns:
            weight.requires_grad_(True)
        losses = {"network": loss.detach()}
        if extra is not None:
            term, more = extra(fake)
            losses |= more
            loss = loss + term
        self._apply("network", loss)
        return losses

    def _apply(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = self.lr
        optimizer.step()

    def play(
        self,
        step: int,
        real: Tensor,
        labels: Tensor,
        *,
        lr: float,
        class_weight: float,
        flatness: float,
        extra: Extra | None = None,
    ) -> dict[str, Tensor]:
        """Play one round: a move of each network.

        Args:
            step: Step of the run.
            real: Real images `[B, C, H, W]` in [0, 1].
            labels: Theirs, int64 `[B]`.
            lr: Learning rate of both networks.
            class_weight: The generator's weight of the classification loss.
            flatness: Weight of the penalty on the critic's slope.
            extra: Another term of the generator's loss.

        Returns:
            Losses to show, the critic's first.
        """
        self.lr, self.flatness = lr, flatness
        self.class_weight.fill_(class_weight)
        return self.round(self, step, real, labels, extra)


Round = Callable[[Game, int, Tensor, Tensor, "Extra | None"], dict[str, Tensor]]

ROUNDS: Registry[Round] = Registry("round of the adversarial game", "dimdata.rounds")


@ROUNDS.register("shared")
def shared(game: Game, step: int, real: Tensor, labels: Tensor, extra: Extra | None) -> dict[str, Tensor]:
    """The critic moves first, then the generator, both on one batch of generated images with the real labels."""
    key = game.key("augment", step)
    seen = game.augment(real, key)
    fake = game.fake(game.latent("latent", step, len(labels)), labels)
    shown = game.augment(fake, key)
    critic_loss, real_scores = game.critic_move(step, seen, shown.detach(), labels, labels)
    return {"critic": critic_loss, **game.network_move(real_scores, fake, shown, labels, extra)}


@ROUNDS.register("alternate")
def alternate(game: Game, step: int, real: Tensor, labels: Tensor, extra: Extra | None) -> dict[str, Tensor]:
    """The generator moves first, with the real labels; then the critic, on new images of random labels.

    This is the published DiM's; it costs a forward pass of the generator more than `shared`.
    """
    key = game.key("augment", step)
    seen = game.augment(real, key)
    real_scores = seen.new_empty(0)
    if game.adversarial.relative:
        with torch.no_grad():
            real_scores = game.score(seen, labels)
    fake = game.fake(game.latent("latent", step, len(labels)), labels)
    losses = game.network_move(real_scores, fake, game.augment(fake, key), labels, extra)

    place = torch.arange(len(labels), device=labels.device)
    fake_labels = latents.integers(game.key("critic labels", step), place, game.num_classes)
    with torch.no_grad():
        fake = game.fake(game.latent("critic latent", step, len(labels)), fake_labels)
    critic_loss, _ = game.critic_move(step, seen, game.augment(fake, key), labels, fake_labels)
    return {"critic": critic_loss, **losses}
