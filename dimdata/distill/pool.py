"""The pool of networks through whose eyes generated images are matched with real ones (DiM, arXiv 2303.04707)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimdata import latents
from dimdata.distill.losses import MATCHING, View
from dimdata.distill.state import pack_module, pack_optimizer, unpack_module, unpack_optimizer
from dimdata.engine import Engine
from dimdata.errors import ArgumentError
from dimdata.students.source import NetworkSource


class Watched(nn.Module):
    """A network that also returns what enters its last linear layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: nn.Module = network
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ArgumentError("A network without a linear layer cannot be in the pool.", "Choose another student.")
        self.seen: list[Tensor] = []
        linear[-1].register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.seen.append(inputs[0])

    def renew(self, network: nn.Module) -> None:
        """Take over the weights of another network of the same kind."""
        self.network.load_state_dict(network.state_dict())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `[B, K]` and features `[B, D]`, both float32."""
        self.seen.clear()
        logits = self.network(images)
        features = self.seen.pop()
        return logits.float(), features.flatten(1).float()


class Member:
    """One place in the pool: a network that is trained, retired at its age limit, and born again from its source."""

    def __init__(self, place: int, source: NetworkSource, pool: Pool) -> None:
        self.place, self.source, self.pool = place, source, pool
        self.births, self.age = 0, 0
        self.network = Watched(source.network(self._number()))
        pool.engine.place(self.network).train()
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=pool.lr, momentum=0.9, weight_decay=5e-4, fused=True
        )
        self.train_loss = pool.engine.compile(self._train_loss)
        self.match_loss = pool.engine.compile(self._match_loss)

    def _number(self) -> int:
        return self.place + self.births * self.pool.size

    def _view(self, images: Tensor, labels: Tensor) -> View:
        with self.pool.engine.autocast():
            logits, features = self.network(self.pool.normalize(images))
        return View(logits, features, labels)

    def _train_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self._view(images, labels).logits, labels)

    def _match_loss(self, real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = self._view(real, labels)
        return MATCHING[self.pool.matching](target, self._view(fake, labels))

    def match(self, real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
        """Return the matching loss of generated images `[B, C, H, W]`, paired with real ones of the same labels."""
        self.network.requires_grad_(False)
        loss: Tensor = self.match_loss(real, fake, labels)
        self.network.requires_grad_(True)
        return loss

    def limit(self) -> int:
        """Steps this network lives; first lives are shorter the lower the place, so that ages stay staggered."""
        cap = self.pool.age
        return cap if self.births else max(1, cap * (self.place + 1) // self.pool.size)

    def train(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take one step on real images; a network at its limit is born again first."""
        if self.age >= self.limit():
            self.births += 1
            self.age = 0
            self.network.renew(self.source.network(self._number()))
            self.optimizer.state.clear()
        loss: Tensor = self.train_loss(images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.age += 1
        return loss.detach()


class Pool:
    """Networks of staggered age and several families; each step belongs to one of them in turn.

    The published pool is one fresh network at a time, rebuilt every epoch and trained 16 steps for each step of the
    generator. Keeping several alive gives more diversity for a sixteenth of the work.

    Args:
        sources: Where each place gets its networks from.
        matching: Name of a matching loss.
        mean: Per-channel mean of the real images.
        std: Their standard deviation.
        engine: Device and precision.
        lr: Learning rate of the networks.
        age: Steps after which a network is replaced.
    """

    def __init__(
        self,
        sources: tuple[NetworkSource, ...],
        matching: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        engine: Engine,
        lr: float,
        age: int,
    ) -> None:
        MATCHING[matching]  # an unknown name is refused here, not in the middle of a run
        self.matching, self.engine, self.lr, self.age, self.size = matching, engine, lr, age, len(sources)
        self.mean = torch.tensor(mean, device=engine.device)[:, None, None]
        self.std = torch.tensor(std, device=engine.device)[:, None, None]
        self.members = [Member(place, source, self) for place, source in enumerate(sources)]

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images in [0, 1], in the memory order of the networks."""
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def member(self, step: int) -> Member:
        """Return the network whose turn it is."""
        return self.members[step % self.size]

    def state_dict(self) -> dict[str, Tensor]:
        """Return networks, optimisers and ages."""
        state: dict[str, Tensor] = {}
        for member in self.members:
            prefix = f"pool.{member.place}"
            state |= pack_module(f"{prefix}.network", member.network)
            state |= pack_optimizer(f"{prefix}.optimizer", member.optimizer)
            state[f"{prefix}.life"] = torch.tensor([member.births, member.age])
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for member in self.members:
            prefix = f"pool.{member.place}"
            unpack_module(f"{prefix}.network", member.network, state)
            unpack_optimizer(f"{prefix}.optimizer", member.optimizer, state)
            member.births, member.age = state[f"{prefix}.life"].tolist()


def pool_key(seed: int, step: int) -> int:
    """The key of the augmentation of one step, shared by real and generated images (siamese)."""
    return latents.fold(latents.stream("pool.augment"), seed, step)
