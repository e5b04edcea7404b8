"""The pool of networks through whose eyes generated images are matched with real ones (DiM, arXiv 2303.04707).

How the pool is kept is a policy with a name; register another with `POOLS.register(name)`, from any package through
the entry-point group `dimdata.pools`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimdata import latents
from dimdata.distill.losses import MATCHING, View
from dimdata.distill.state import pack_module, pack_optimizer, unpack_module, unpack_optimizer
from dimdata.engine import Engine
from dimdata.errors import ArgumentError
from dimdata.registry import Registry
from dimdata.students.source import NetworkSource

SPACES = ("unit", "normalized")

_DRAWN = latents.stream("pool.drawn")


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
    """A network of the pool and its optimiser.

    Args:
        network: Its first life.
        pool: The pool it is in.
    """

    def __init__(self, network: nn.Module, pool: Pool) -> None:
        self.pool = pool
        self.network = Watched(network)
        pool.engine.place(self.network).train()
        self.learns = [weight for weight in self.network.parameters() if weight.requires_grad]  # others stay frozen
        if not self.learns:
            raise ArgumentError(
                "A network of the pool has no weight that learns.", "Let some of its parameters require gradients."
            )
        self.optimizer = torch.optim.SGD(
            self.learns, lr=pool.lr, momentum=0.9, weight_decay=5e-4, fused=pool.engine.fused
        )
        self.train_loss = pool.engine.compile(self._train_loss)
        self.match_loss = pool.engine.compile(self._match_loss)

    def _view(self, images: Tensor, labels: Tensor) -> View:
        with self.pool.engine.autocast():
            logits, features = self.network(self.pool.enter(images))
        return View(logits, features, labels)

    def _train_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self._view(images, labels).logits, labels)

    def _match_loss(self, real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = self._view(real, labels)
        return MATCHING[self.pool.matching](target, self._view(fake, labels))

    def match(self, real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
        """Return the matching loss of generated images `[B, C, H, W]`, paired with real ones of the same labels.

        Both are as `Pool.prepare` returns them.
        """
        for weight in self.learns:
            weight.requires_grad_(False)
        loss: Tensor = self.match_loss(real, fake, labels)
        for weight in self.learns:
            weight.requires_grad_(True)
        return loss

    def renew(self, network: nn.Module) -> None:
        """Begin another life with the weights of a network of the same kind."""
        self.network.renew(network)
        self.optimizer.state.clear()

    def train(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take one step on real images, as `Pool.prepare` returns them; return the loss."""
        loss: Tensor = self.train_loss(images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()


class Pool(ABC):
    """Networks that are trained on real images while the generator is, and replaced from time to time.

    Args:
        sources: Where the networks come from, one source for each family.
        matching: Name of a matching loss.
        mean: Per-channel mean of the real images.
        std: Their standard deviation.
        engine: Device and precision.
        lr: Learning rate of the networks.
        age: Turns after which a network is replaced; it has a turn at each step that it is asked at.
        space: Where images are augmented: in the `unit` range [0, 1], or `normalized`, as students are trained.
        seed: Of all choices.

    Attributes:
        period: After so many turns the work of a turn repeats.
        span: Turns that each place of the pool will have in all, where that is known.
    """

    span: int | None = None

    def __init__(
        self,
        sources: tuple[NetworkSource, ...],
        matching: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        engine: Engine,
        lr: float,
        age: int,
        space: str = "unit",
        seed: int = 0,
    ) -> None:
        MATCHING[matching]  # an unknown name is refused here, not in the middle of a run
        self.sources, self.matching, self.engine, self.lr, self.age = sources, matching, engine, lr, age
        self.space, self.seed = space, seed
        self.mean = torch.tensor(mean, device=engine.device)[:, None, None]
        self.std = torch.tensor(std, device=engine.device)[:, None, None]
        self.period = 1
        self.begin()

    @abstractmethod
    def begin(self) -> None:
        """Make the first networks."""

    def prepare(self, images: Tensor) -> Tensor:
        """Bring images in [0, 1] to where they are augmented."""
        return images if self.space == "unit" else (images - self.mean) / self.std

    def enter(self, images: Tensor) -> Tensor:
        """Bring augmented images to what the networks expect: normalised, in the memory order of convolutions."""
        if self.space == "unit":
            images = (images - self.mean) / self.std
        return images.contiguous(memory_format=torch.channels_last)

    @abstractmethod
    def member(self, step: int) -> Member:
        """Return the network whose turn it is at a step, born again if its time is over; it ages by a turn."""

    def owed(self, member: Member) -> int:
        """Return the turns by which a network is older than it was trained for, and is to be trained now; once."""
        return 0

    def beforehand(self) -> int:
        """Return the turns of training that networks were found to be owed so far."""
        return 0

    def try_next(self) -> None:  # noqa: B027 - consecutive steps of most pools belong to all families
        """Give the next step to the next family, so that steps of all are timed; `load_state_dict` undoes it."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return networks, optimisers and ages."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""


POOLS: Registry[type[Pool]] = Registry("pool policy", "dimdata.pools")


class _Place(Member):
    """One place of a staggered pool: a network that is retired at its age limit, and born again from its source."""

    def __init__(self, place: int, source: NetworkSource, pool: StaggeredPool, size: int) -> None:
        self.place, self.source, self.size, self.limits = place, source, size, pool.limit
        self.births, self.age = 0, 0
        super().__init__(source.network(self._number()), pool)

    def _number(self) -> int:
        return self.place + self.births * self.size

    def turn(self) -> None:
        """Age by a turn; a network at its limit is born again first."""
        if self.age >= self.limits(self):
            self.births += 1
            self.age = 0
            self.renew(self.source.network(self._number()))
        self.age += 1


@POOLS.register("staggered")
class StaggeredPool(Pool):
    """Networks of several families, one for each source, in time of staggered age; each step belongs to one in turn.

    All are born untrained. Once the first of them have been replaced, the generator meets networks of every age at
    once; a phase of fewer turns than that meets all of them young. See `FreshPool` for the published way.
    """

    def begin(self) -> None:
        """Make the first networks."""
        self.period = len(self.sources)
        self.members = [_Place(place, source, self, self.period) for place, source in enumerate(self.sources)]

    def limit(self, member: _Place) -> int:
        """Turns a network lives; first lives are shorter the lower the place, which staggers the ages afterwards."""
        return self.age if member.births else max(1, self.age * (member.place + 1) // member.size)

    def member(self, step: int) -> Member:
        """Return the network whose turn it is; see `Pool.member`."""
        member = self.members[step % len(self.members)]
        member.turn()
        return member

    def state_dict(self) -> dict[str, Tensor]:
        """Return networks, optimisers and ages."""
        state: dict[str, Tensor] = {}
        for member in self.members:
            prefix = f"pool.{member.place}"
            state |= _pack(prefix, member)
            state[f"{prefix}.life"] = torch.tensor([member.births, member.age])
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for member in self.members:
            prefix = f"pool.{member.place}"
            _unpack(prefix, member, state)
            member.births, member.age = state[f"{prefix}.life"].tolist()


@POOLS.register("grown")
class GrownPool(StaggeredPool):
    """A staggered pool that has its ages from the start: each network is trained up to its own before its first turn.

    No network grows older than the turns that there are, so that the ages lie apart in a short phase too, and what is
    trained beforehand is never more than half of it.
    """

    def begin(self) -> None:
        """Make the first networks."""
        super().begin()
        self._trained = [0] * self.period

    def owed(self, member: Member) -> int:
        """See `Pool.owed`; a network whose training is asked for has its age from then on."""
        assert isinstance(member, _Place)
        if member.births or self._trained[member.place] or member.age > 1:
            return 0
        turns = self.limit(member) * member.place // self.period
        self._trained[member.place] = turns
        member.age += turns
        return turns

    def beforehand(self) -> int:
        """See `Pool.beforehand`."""
        return sum(self._trained)

    def limit(self, member: _Place) -> int:
        """Turns a network lives."""
        return max(1, self.age if self.span is None else min(self.age, self.span))

    def state_dict(self) -> dict[str, Tensor]:
        """Return networks, optimisers and ages, and what networks were trained beforehand."""
        return {**super().state_dict(), "pool.beforehand": torch.tensor(self._trained)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self._trained = state["pool.beforehand"].tolist()


@POOLS.register("fresh")
class FreshPool(Pool):
    """One network at a time, of a family drawn uniformly, from scratch (the published "models pool").

    Published, it lives for an epoch and is trained on 16 real batches before each step of the generator.
    """

    def begin(self) -> None:
        """Make the first networks."""
        self._kept: dict[int, Member] = {}  # one for each family, so that each is compiled once
        self.period = len(self.sources)  # of the steps that `try_next` makes, which alone are timed
        self._bear(0)

    def _bear(self, births: int) -> None:
        key = latents.fold(_DRAWN, self.seed)
        self._begin(births, int(latents.integers(key, torch.tensor([births]), len(self.sources))))

    def _begin(self, births: int, place: int) -> None:
        self.births, self.turns, self.place = births, 0, place
        network = self.sources[place].network(births)
        if place in self._kept:
            self._kept[place].renew(network)
        else:
            self._kept[place] = Member(network, self)

    def try_next(self) -> None:
        """See `Pool.try_next`."""
        self._begin(self.births, (self.place + 1) % len(self.sources))

    def member(self, step: int) -> Member:
        """Return the one network; see `Pool.member`."""
        if self.turns >= self.age:
            self._bear(self.births + 1)
        self.turns += 1
        return self._kept[self.place]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the network, its optimiser and its age."""
        return {**_pack("pool", self._kept[self.place]), "pool.life": torch.tensor([self.births, self.turns])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        births, turns = state["pool.life"].tolist()
        self._bear(births)
        self.turns = turns
        _unpack("pool", self._kept[self.place], state)


def _pack(prefix: str, member: Member) -> dict[str, Tensor]:
    return pack_module(f"{prefix}.network", member.network) | pack_optimizer(f"{prefix}.optimizer", member.optimizer)


def _unpack(prefix: str, member: Member, state: Mapping[str, Tensor]) -> None:
    unpack_module(f"{prefix}.network", member.network, state)
    unpack_optimizer(f"{prefix}.optimizer", member.optimizer, state)


def pool_key(seed: int, step: int) -> int:
    """The key of the augmentation of one step, shared by real and generated images (siamese)."""
    return latents.fold(latents.stream("pool.augment"), seed, step)
