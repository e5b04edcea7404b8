"""DiM: distil a dataset into a generator (arXiv 2303.04707), by default in a configuration that finishes on a CPU.

Phase 1 (`gan`) trains a class-conditional GAN. Phase 2 (`match`) goes on with it and adds a matching loss: a pool of
networks, trained on real images meanwhile, should answer generated images as it answers real ones of the same label.

The published recipe is the preset `paper`: other values of the same settings.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dimdata import latents
from dimdata.distill.critics import CRITICS
from dimdata.distill.game import Extra, Game
from dimdata.distill.losses import MATCHING
from dimdata.distill.method import METHODS, Earlier, Losses, Method, Phase
from dimdata.distill.pool import POOLS, SPACES, Member, pool_key
from dimdata.distill.state import pack_module, pack_optimizer, unpack_module, unpack_optimizer
from dimdata.engine import Engine
from dimdata.errors import ArgumentError
from dimdata.generators.base import Generator, shapes_only
from dimdata.generators.network import ARCHITECTURES, NetworkGenerator, build
from dimdata.real import Batches, RealData
from dimdata.recipe import Leg, Recipe
from dimdata.spec import Record, Spec, require
from dimdata.students.augment import parse
from dimdata.students.own import user_student
from dimdata.students.source import InitLaw, NetworkSource

ALIKE = 0.1  # of the variety of real images; healthy runs have more than half of it when the calm start is over
_LOOKED_AT = 16  # images of a class, and classes, to tell

_TEACHING = latents.stream("pool.teaching")
_GROWING = latents.stream("pool.growing")


def _default_recipe() -> Recipe:
    return Recipe(legs=(Leg(epochs=1000, batch_size=50, lr=0.05, nesterov=True, schedule="onecycle"),))


@dataclass(frozen=True, kw_only=True)
class DimConfig(Record):
    """How DiM is run.

    Attributes:
        network: Name and widths of the generator network.
        latent: Values of a latent.
        start: What the untrained network draws: `grey` images, all but alike (torch's initial weights); as bright as
            the real ones are on average (`mean`); or that, and different from latent to latent (`varied`). Where it
            begins grey and the real ones are dark, it may turn all its images black in the first steps, and stay so.
        calm: Steps of a calm start, at most a quarter of all: the learning rate rises from nothing to `lr`, the penalty
            falls from `calm_flatness` to `flatness`, and `calm_anchor` to nothing. Without it, the critic of some seeds
            wins outright before the images of a class begin to differ, and the generator learns nothing for hundreds
            of steps, or for ever.
        calm_flatness: The penalty's weight in the first of these steps, unless `flatness` is greater, or nothing.
        calm_anchor: Weight, in the first of these steps, of the squared distance of the generated batch's mean and
            deviation from the real one's, pixel by pixel, averaged over pixels and channels.
        storage: Type of the stored weights.
        critic: Channels of the critic's first layer.
        critic_name: Which critic it is: `projection`, `spatial`, `spatial-scaled` or `acgan`; see `critics`.
        batch_size: Real images a step.
        lr: Adam's learning rate of both networks; falls linearly to a twentieth over the last `decay` of the run.
        decay: That share of the steps; 0 keeps the learning rate.
        betas: Adam's decay rates.
        adversarial: `hinge`, `relativistic` or `wasserstein`.
        round: Who moves when, on which images: `shared` or `alternate`; see `game`.
        class_weight: Weight of the classification loss (AC-GAN) of both networks.
        fake_class_weight: Weight of the classification of generated images in the critic's loss.
        class_fade: Share of the steps over which the generator's weight of it falls linearly to nothing; 0 keeps it.
            A generator that is asked to the end to be recognised shuns the images that are hard to tell apart, and
            these are what a student learns most from. Later stages of a progressive distillation begin without it.
        penalty: Penalty on the critic's slope: `flatness` (zero-centred, by finite differences) or `gradient` (WGAN).
        flatness: Its weight.
        flatness_every: It is applied every so many steps, that many times as strong.
        augment: Differentiable augmentation before the discriminator (Zhao et al., NeurIPS 2020).
        ema: Decay of the average of the generator's weights that is kept; less over the first steps.
        match_share: Share of the steps given to the second phase, unless epochs are given.
        gan_epochs: Epochs (whole batches only) of the first phase, in a run that names no budget.
        match_epochs: Those of the second. If either is given, another budget is shared out in the same proportion.
        match_batch_size: Real images a step of the second phase; `batch_size` unless given.
        match_lr: Adam's learning rate of the second phase; `lr` unless given.
        matching: Matching loss.
        match_weight: Its weight.
        match_augment: Siamese augmentation of real and generated images before the pool.
        match_augment_alike: Whether all images of a batch are augmented alike, not only the two of a pair.
        augment_space: Where images of the pool are augmented: in [0, 1] (`unit`), or `normalized` as students' are.
        pool: The networks of the pool: names of students, or `package.module:factory`, which is imported.
        pool_policy: How they are kept: `staggered` (several at a time), `grown` (the same, of different ages from the
            start) or `fresh` (one at a time); see `pool`.
        pool_lr: Their learning rate.
        pool_age: Turns of its own after which one is replaced; 0 means as many as an epoch of the second phase has
            steps.
        pool_batches: Real batches of its own that a network is trained on before each step; 0 means the batch at hand,
            augmented for matching.
        pool_augment: Augmentation of those batches, image by image.
        default_steps: Steps of a run that names neither a budget nor epochs.
        recipe: How students are trained on the result.
    """

    network: Mapping[str, Any] = field(
        default_factory=lambda: {"name": "subpixel"}, metadata={"options": ARCHITECTURES}
    )
    latent: int = 64
    start: Literal["grey", "mean", "varied"] = "varied"
    calm: int = 500
    calm_flatness: float = 0.3
    calm_anchor: float = 250.0
    storage: str = "float16"
    critic: int = 48
    critic_name: str = "projection"
    batch_size: int = 64
    lr: float = 2e-3
    decay: float = 0.5
    betas: tuple[float, float] = (0.0, 0.99)
    adversarial: str = "relativistic"
    round: str = "shared"
    class_weight: float = 0.3
    fake_class_weight: float = 0.0
    class_fade: float = 0.0
    penalty: str = "flatness"
    flatness: float = 0.05
    flatness_every: int = 8
    augment: str = ""
    ema: float = 0.999
    match_share: float = 0.3
    gan_epochs: int = 0
    match_epochs: int = 0
    match_batch_size: int | None = None
    match_lr: float | None = None
    matching: str = "logit"
    match_weight: float = 0.05
    match_augment: str = "crop"
    match_augment_alike: bool = False
    augment_space: str = "unit"
    pool: tuple[str, ...] = ("convnet3-w32", "resnet10-w16", "resnetap10-w16", "convnet2-w64")
    pool_policy: str = "staggered"
    pool_lr: float = 0.01
    pool_age: int = 2000
    pool_batches: int = 0
    pool_augment: str = ""
    default_steps: int = 20_000
    recipe: Recipe = field(default_factory=_default_recipe)

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        for name in ("batch_size", "match_batch_size"):
            size = getattr(self, name)
            require(size is None or size >= 2, f"config.{name} is {size}; 2 or more is needed.")
        for name in ("lr", "match_lr", "pool_lr"):
            rate = getattr(self, name)
            require(rate is None or rate > 0, f"config.{name} is {rate}; it must be positive.")
        counts = ("gan_epochs", "match_epochs", "pool_age", "pool_batches", "calm")
        weights = ("class_weight", "fake_class_weight", "flatness", "calm_flatness", "calm_anchor", "match_weight")
        for name in counts + weights:
            require(getattr(self, name) >= 0, f"config.{name} is {getattr(self, name)}; it must not be negative.")
        require(all(0 <= beta < 1 for beta in self.betas), f"config.betas are {self.betas}; they must be in [0, 1).")
        require(0 <= self.match_share <= 1, f"config.match_share is {self.match_share}; it must be in [0, 1].")
        require(0 <= self.class_fade <= 1, f"config.class_fade is {self.class_fade}; it must be in [0, 1].")
        require(0 <= self.decay <= 1, f"config.decay is {self.decay}; it must be in [0, 1].")
        require(0 <= self.ema < 1, f"config.ema is {self.ema}; it must be in [0, 1).")
        require(self.flatness_every >= 1, "config.flatness_every must be 1 or more.")
        match = self.match_epochs if self.gan_epochs or self.match_epochs else self.match_share
        require(len(self.pool) >= 1 or match == 0, "config.pool must name a network.")
        known = ", ".join(SPACES)
        require(self.augment_space in SPACES, f"config.augment_space is {self.augment_space!r}, not one of {known}.")
        require(self.critic >= 1, "config.critic must be 1 or more.")


def moments(real: Tensor, fake: Tensor) -> Tensor:
    """Return how far two batches `[B, C, H, W]` lie apart in the mean and the deviation of each pixel, squared."""

    def deviation(images: Tensor) -> Tensor:
        return (images.var(0) + 1e-6).sqrt()  # whose slope is finite where a pixel never changes

    distance = (fake.mean(0) - real.mean(0)).square() + (deviation(fake) - deviation(real)).square()
    return distance.mean()


def variety(images: Tensor) -> float:
    """Return the deviation of a pixel over images `[B, C, H, W]` of one class, averaged over pixels."""
    return float(images.std(0).mean())


def _epoch(real: RealData, batch_size: int) -> int:
    """How many whole batches the training images make, 1 at least."""
    return max(1, len(real.train) // batch_size)


class MovingAverage(AveragedModel):
    """An exponential moving average of a network's weights that spans at most half of the steps so far.

    A plain one would keep the untrained weights in the average of a short run.

    Args:
        network: What is averaged; the average is a copy.
        decay: The greatest weight of the old average.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights of a network into the average, and its buffers as they are.

        PyTorch's own would copy the count of steps to the device, and wait for it at every step.
        """
        averages: list[Tensor] = list(self.module.parameters())
        values: list[Tensor] = list(model.parameters())
        steps = int(self.n_averaged)  # which lies on the CPU
        if steps:
            get_ema_multi_avg_fn(min(self.decay, (steps + 1) / (steps + 3)))(averages, values, None)  # type: ignore[no-untyped-call]
        else:
            torch._foreach_copy_(averages, values)
        for kept, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)
        self.n_averaged += 1


def spec_of(config: DimConfig, real: RealData) -> Spec:
    """Return what the generator of a run is, before there is one."""
    return Spec(
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


@METHODS.register("dim")
class DiM(Method):
    """Distillation into a generator; see the module's docstring."""

    Config = DimConfig
    config: DimConfig

    def __init__(
        self,
        config: DimConfig,
        real: RealData,
        engine: Engine,
        seed: int,
        steps: int,
        earlier: Earlier | None = None,
    ) -> None:
        super().__init__(config, real, engine, seed, steps, earlier)
        self.config = config
        self.spec = spec_of(config, real)
        with shapes_only():
            NetworkGenerator(self.spec, config.recipe)  # what could not be stored is refused now
        sizes = (config.batch_size, config.match_batch_size or config.batch_size)
        made = {size: Batches(real.train, engine.device, seed, size) for size in sizes}
        self.gan_batches, self.match_batches = (made[size] for size in sizes)
        # On the CPU and in full precision, whatever torch's defaults are: equal seeds give equal generators.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            # Not `torch.manual_seed`, which would seed every CUDA device as well.
            torch.default_generator.manual_seed(latents.fold(latents.stream("dim.init"), seed) >> 1)
            network = build(self.spec)
            if config.start == "varied":
                network.start_varied()
            if config.start != "grey":
                network.start_at(real.mean)
            critic = CRITICS[config.critic_name](real.image_shape, real.num_classes, config.critic)
            self.network, self.critic = engine.place(network.float()), engine.place(critic.float())
            self.average = MovingAverage(self.network, config.ema)
        self.game = Game(config, self.network, self.critic, real.num_classes, engine, seed)
        self._require_pairs()
        self.match_augment = parse(config.match_augment)
        self.pool_augment = parse(config.pool_augment)
        sources: tuple[NetworkSource, ...] = tuple(
            InitLaw(user_student(name), real.image_shape, real.num_classes, seed=latents.fold(seed, place))
            for place, name in enumerate(config.pool)
        )
        if earlier:
            sources = tuple(earlier.after(source) for source in sources)
        self.pool = (
            POOLS[config.pool_policy](
                sources,
                config.matching,
                real.mean,
                real.std,
                engine,
                lr=config.pool_lr,
                age=config.pool_age or _epoch(real, self.match_batches.batch_size),
                space=config.augment_space,
                seed=seed,
            )
            if self._match_share()
            else None
        )
        self.shared = network.shared() if earlier else ()
        if earlier and earlier.state:
            self._go_on(earlier.state)
        for parameter in self.shared:
            parameter.requires_grad_(False)

    def _require_pairs(self) -> None:
        """Raise `ArgumentError` if matching would compare nothing: pairs, where a batch has one image of each class."""
        of_pairs = getattr(MATCHING[self.config.matching], "of_pairs", False)
        size, classes = self.match_batches.batch_size, self.real.num_classes
        if of_pairs and size <= classes and self._match_share():
            raise ArgumentError(
                f"The matching loss {self.config.matching} compares pairs of images of a class, and a batch of {size} "
                f"has one of each of {classes} classes at most.",
                f"Use larger batches (--set match_batch_size={2 * classes}), or another loss (--set matching=logit); "
                "over pdd these are settings.match_batch_size and settings.matching.",
            )

    def _go_on(self, state: Mapping[str, Tensor]) -> None:
        """Begin with the networks of the stage before; optimisers and the average begin anew.

        What the stages share stands still, as it is in the images of the stages before: averaged.
        """
        unpack_module("average.module" if self.shared else "network", self.network, state)
        unpack_module("critic", self.critic, state)
        unpack_module("average.module", self.average.module, state)

    @classmethod
    def for_stages(cls, config: Record, stages: int) -> Record:
        """Share steps and epochs out among the stages; there are no images to share: all draw without limit."""
        assert isinstance(config, DimConfig)
        names = ("default_steps", "gan_epochs", "match_epochs")
        return replace(config, **{name: math.ceil(getattr(config, name) / stages) for name in names})

    @classmethod
    def default_steps(cls, config: Record) -> int:
        """Return the configured number."""
        assert isinstance(config, DimConfig)
        return config.default_steps

    @classmethod
    def budget(cls, config: Record, real: RealData) -> int:
        """Return the steps of the configured epochs, or the configured number."""
        assert isinstance(config, DimConfig)
        return sum(cls._epochs(config, real)) or config.default_steps

    @staticmethod
    def _epochs(config: DimConfig, real: RealData) -> tuple[int, int]:
        """The steps of both phases as counted in epochs."""
        sizes = (config.batch_size, config.match_batch_size or config.batch_size)
        gan, match = (_epoch(real, size) for size in sizes)
        return config.gan_epochs * gan, config.match_epochs * match

    def _match_share(self) -> float:
        """The share of the steps that the second phase gets."""
        # In stages, as in the first of them, which has all images.
        gan, match = self._epochs(self.config, self.earlier.real if self.earlier else self.real)
        return match / (gan + match) if gan + match else self.config.match_share

    def phases(self) -> tuple[Phase, ...]:
        """Return the GAN phase and the matching phase."""
        match = round(self.steps * self._match_share())
        gan = self.steps - match
        every = self.config.flatness_every
        turns = math.lcm(every, self.pool.period if self.pool else 1)
        consumed = self.match_batches.batch_size * (1 + self.config.pool_batches)
        tried = itertools.count(gan)

        def part() -> tuple[Losses, float]:
            assert self.pool is not None
            self.pool.try_next()
            return self._match_step(next(tried)), 1.0

        phases = (
            Phase("gan", gan, self._gan_step, self.gan_batches.batch_size, every),
            Phase("match", match, lambda step: self._match_step(gan + step), consumed, turns, part=part),
        )
        return tuple(phase for phase in phases if phase.steps)

    def _rate(self, base: float, step: int) -> float:
        """The learning rate of a step."""
        calm = self._calm()
        base *= min(1.0, (step + 1) / calm) if calm else 1.0
        if not self.config.decay:
            return base
        left = (self.steps - step) / (self.steps * self.config.decay)
        return base * max(0.05, min(1.0, left))

    def _calm(self) -> int:
        """How many steps the calm start takes."""
        return min(self.config.calm, self.steps // 4)

    def _flatness(self, step: int) -> float:
        """The penalty's weight at a step: it falls geometrically while the start is calm."""
        last, calm = self.config.flatness, self._calm()
        first = max(last, self.config.calm_flatness)
        if not last or step >= calm or self._trained():
            return last
        return float(first * (last / first) ** (step / calm))

    def _anchor(self, step: int) -> float:
        """The weight of the anchor at a step: it falls linearly to nothing while the start is calm."""
        calm = self._calm()
        return self.config.calm_anchor * (1 - step / calm) if step < calm and not self._trained() else 0.0

    def _trained(self) -> bool:
        """Whether the networks go on from those of a stage before, which need neither an anchor nor a class loss.

        The state they went on from does not tell: a resumed run has none, for its own is loaded instead.
        """
        return self.earlier is not None

    def _class_weight(self, step: int) -> float:
        """The generator's weight of the classification loss at a step."""
        fade = self.config.class_fade
        if not fade:
            return self.config.class_weight
        if self._trained():
            return 0.0  # it has faded in the first stage
        return self.config.class_weight * max(0.0, 1 - step / (self.steps * fade))

    def _gan_step(self, step: int) -> Losses:
        real, labels = self.gan_batches.at(step)
        weight = self._anchor(step)

        def anchoring(fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            loss = moments(real, fake)
            return weight * loss, {"anchor": loss.detach()}

        return self._play(step, real, labels, self.config.lr, anchoring if weight else None)

    def _match_step(self, step: int) -> Losses:
        real, labels = self.match_batches.at(step)

        def matching(fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            losses = self._matching(step, real, fake, labels)
            return self.config.match_weight * losses["match"], {name: t.detach() for name, t in losses.items()}

        return self._play(step, real, labels, self.config.match_lr or self.config.lr, matching)

    def _play(self, step: int, real: Tensor, labels: Tensor, lr: float, extra: Extra | None = None) -> Losses:
        """Play a round of the game, and take its result into the average."""
        losses = self.game.play(
            step,
            real,
            labels,
            lr=self._rate(lr, step),
            class_weight=self._class_weight(step),
            flatness=self._flatness(step),
            extra=extra,
        )
        self.average.update_parameters(self.network)
        return losses

    def _matching(self, step: int, real: Tensor, fake: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Train the network of the pool whose turn it is, then compare both batches through it."""
        assert self.pool is not None
        self.pool.span = max(1, round(self.steps * self._match_share()) // self.pool.period)
        member = self.pool.member(step)
        self._grow(member, step)
        key = pool_key(self.seed, step)
        alike = torch.zeros_like(labels) if self.config.match_augment_alike else None
        seen = self.match_augment(self.pool.prepare(real), key, alike)
        taught = self._teach(member, step) if self.config.pool_batches else member.train(seen, labels)
        shown = self.match_augment(self.pool.prepare(fake), key, alike)
        return {"pool": taught, "match": member.match(seen, shown, labels)}

    def _grow(self, member: Member, step: int) -> None:
        """Train a network up to the age that the pool has given it, on real batches of its own."""
        assert self.pool is not None
        batches = self.match_batches
        for turn in range(self.pool.owed(member)):
            key = latents.fold(_GROWING, self.seed, step, turn)
            number = turn * self.pool.period + step % self.pool.period
            images, labels = batches.matched(batches.labels_at(number), number, "grown pool")
            member.train(self.match_augment(self.pool.prepare(images), key), labels)

    def images_beside(self) -> int:
        """Return those that networks of the pool saw before their first turn; see `Method.images_beside`."""
        return self.pool.beforehand() * self.match_batches.batch_size if self.pool else 0

    def _teach(self, member: Member, step: int) -> Tensor:
        """Train a network on real batches of its own; return the last loss."""
        assert self.pool is not None
        count, batches = self.config.pool_batches, self.match_batches
        for turn in range(step * count, (step + 1) * count):
            images, labels = batches.matched(batches.labels_at(turn), turn, "pool")
            key = latents.fold(_TEACHING, self.seed, turn)
            loss = member.train(self.pool_augment(self.pool.prepare(images), key), labels)
        return loss

    def ailing(self, inside: str = "") -> str:
        """Tell of images that are all but alike, which a critic that wins too early leaves behind; see `Method`."""
        split, generator = self.real.train, self.generator().to(self.engine.device)
        shares = []
        for label in range(min(self.real.num_classes, _LOOKED_AT)):
            real = split.images[split.labels == label][:_LOOKED_AT].to(torch.float32) / 255
            index = torch.arange(len(real), device=generator.device) * self.real.num_classes + label
            with torch.no_grad():
                drawn, _ = generator.draw(latents.latents(0, 0, index, self.spec.latent), index)
            if len(real) > 1:
                shares.append(variety(drawn) / max(variety(real), 1e-6))
        share = sum(shares) / len(shares) if shares else 1.0
        if share >= ALIKE:
            return ""
        return (
            f"the images of a class are all but alike ({share:.1%} of the variety of real ones): look at the grids, "
            f"and if that stays, begin again with another --seed or a longer calm start (--set {inside}calm=2000)."
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return networks, averages, optimisers and pool."""
        state = pack_module("network", self.network) | pack_module("critic", self.critic)
        state |= pack_module("average", self.average)
        for name, optimizer in self.game.optimizers.items():
            state |= pack_optimizer(f"adam.{name}", optimizer)
        return state | (self.pool.state_dict() if self.pool else {})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        unpack_module("network", self.network, state)
        unpack_module("critic", self.critic, state)
        unpack_module("average", self.average, state)
        for name, optimizer in self.game.optimizers.items():
            unpack_optimizer(f"adam.{name}", optimizer, state)
        if self.pool:
            self.pool.load_state_dict(state)

    def generator(self) -> Generator:
        """Return the generator with the average of its weights."""
        with shapes_only():
            generator = NetworkGenerator(self.spec, self.config.recipe)
        tensors = pack_module("network", self.average.module)
        return generator.restore({name: tensor.clone().contiguous() for name, tensor in tensors.items()})
