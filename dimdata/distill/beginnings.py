"""What learned images begin as: noise, real images and averages of them, or an earlier result."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dimdata import latents
from dimdata.errors import ArgumentError, FormatError, NotFoundError, nearest
from dimdata.generators.table import TableGenerator
from dimdata.real import RealData, class_mean, kmeans_real, random_real, selected_real
from dimdata.recipe import Leg, Recipe
from dimdata.registry import Registry
from dimdata.spec import Record
from dimdata.students.source import START

CANDIDATES = 20  # random choices that `selected` picks the best of

_NOISE = latents.stream("dd.images")
_CHOICE = latents.stream("dd.real images")

Score = Callable[[Tensor], float]

log = logging.getLogger("dimdata")


@dataclass(frozen=True)
class Setting:
    """What a beginning is made for.

    Attributes:
        real: What is distilled.
        rows: Images needed; row i is of class i mod num_classes.
        seed: Of the choice.
        score: The loss on real images after training on images `[N, C, H, W]` in [0, 1]: lower is better.
    """

    real: RealData
    rows: int
    seed: int
    score: Score

    @property
    def per_class(self) -> int:
        """Images of each class, rounded up."""
        return -(-self.rows // self.real.num_classes)

    @property
    def choice(self) -> int:
        """The seed of a choice among real images."""
        return latents.fold(_CHOICE, self.seed)


@dataclass(frozen=True, kw_only=True)
class Origin(Record):
    """What the images were before they were learned on; it goes with them.

    Attributes:
        method: What made them.
        flags: What they are marked with; see `Spec.flags`.
        sha256: Digest of the weights of the stored result they were taken from.
    """

    method: str = "dd"
    flags: tuple[str, ...] = ()
    sha256: str = ""


@dataclass(frozen=True)
class Beginning:
    """Where learning begins.

    Attributes:
        images: `[N, C, H, W]`, in units in which real images lie in [0, 1].
        origin: What they were.
        targets: Distributions `[N, K]`; none = by row.
        sizes: Step sizes `[T]`; none = as configured.
        batch: Images of each batch that the step sizes belong to.
        student: Whose first weights are given, if they are.
        start: The first weights.
    """

    images: Tensor
    origin: Origin
    targets: Tensor | None = None
    sizes: Tensor | None = None
    batch: int = 0
    student: str | None = None
    start: dict[str, Tensor] | None = None


BEGINNINGS: Registry[Callable[[Setting], Tensor]] = Registry("beginning", "dimdata.beginnings")

_RECIPE = Recipe(legs=(Leg(steps=1, batch_size=1),))  # the tables made here are only looked at


def _pixels(table: TableGenerator, rows: int) -> Tensor:
    index = torch.arange(rows)
    return table.draw(torch.empty(rows, 0), index)[0]


@BEGINNINGS.register("noise")
def noise(setting: Setting) -> Tensor:
    """Standard normal values in normalised units."""
    real = setting.real
    key = latents.fold(_NOISE, setting.seed)
    size = real.train.images[0].numel()
    values = latents.normal(key, torch.arange(setting.rows), size).view(setting.rows, *real.image_shape)
    return values * torch.tensor(real.std)[:, None, None] + torch.tensor(real.mean)[:, None, None]


@BEGINNINGS.register("random")
def random(setting: Setting) -> Tensor:
    """Random real images."""
    return _pixels(random_real(setting.real, setting.per_class, setting.choice, _RECIPE), setting.rows)


@BEGINNINGS.register("selected")
def selected(setting: Setting) -> Tensor:
    """The best of several random choices of real images."""
    table = selected_real(
        setting.real,
        setting.per_class,
        [latents.fold(setting.choice, number) for number in range(CANDIDATES)],
        lambda table: setting.score(_pixels(table, setting.rows)),
        _RECIPE,
    )
    return _pixels(table, setting.rows)


@BEGINNINGS.register("kmeans")
def kmeans(setting: Setting) -> Tensor:
    """Centres of clusters of each class."""
    return _pixels(kmeans_real(setting.real, setting.per_class, setting.choice, _RECIPE), setting.rows)


@BEGINNINGS.register("mean")
def mean(setting: Setting) -> Tensor:
    """The average image of each class, as often as needed."""
    images = _pixels(class_mean(setting.real, _RECIPE), setting.real.num_classes)
    return images.repeat(setting.per_class, 1, 1, 1)[: setting.rows]


def origin_of(name: str) -> Origin:
    """Return what the images of a registered beginning are."""
    return Origin(method="dd" if BEGINNINGS[name] is noise else "real")


def begin(name: str, setting: Setting) -> Beginning:
    """Return a beginning by its name, or what an earlier result ended with.

    Args:
        name: A registered name, or the name, folder or Hub repo of a table.
        setting: What it is made for.

    Raises:
        NotFoundError: If there is neither.
        ArgumentError: If the stored result has other images, or another number of them, in all or of a class.
        FormatError: If it cannot be read, or has step sizes that are not positive.
    """
    if name in BEGINNINGS:
        return Beginning(BEGINNINGS[name](setting), origin_of(name))
    from dimdata import artifact

    try:
        folder = artifact.resolve(name)
    except NotFoundError as error:
        raise NotFoundError(
            f"Images can begin neither as {name!r:.80} nor from a generator of that name.", nearest(name, BEGINNINGS)
        ) from error
    earlier, digest = artifact.load(folder), artifact.read_config(folder).weights.sha256
    spec, real = earlier.spec, setting.real
    if (spec.image_shape, spec.images, spec.num_classes) != (real.image_shape, setting.rows, real.num_classes):
        raise ArgumentError(
            f"{name} holds {spec.images or 'any number of'} images {spec.image_shape} of {spec.num_classes} classes; "
            f"{setting.rows} images {real.image_shape} of {real.num_classes} are to be learned.",
            "Set inner_steps, per_class and images as they were, or begin otherwise.",
        )
    index = torch.arange(setting.rows)
    order = index if spec.targets == "soft" else _in_turn(earlier.labels(index), spec.num_classes, name)
    images, targets = earlier.draw(torch.empty(setting.rows, spec.latent), order)
    legs, start = earlier.recipe.legs, earlier.recipe.start
    # Step sizes belong to an order.
    known = len(legs) == 1 and torch.equal(order, index)
    if earlier.recipe.learned_steps and not known:
        log.warning("The step sizes of %s are for another order of its images, or for stages: they begin anew.", name)
    sizes = earlier.recipe_tensors.get(legs[0].step_sizes or "") if known else None
    if sizes is not None and not (sizes.isfinite() & (sizes > 0)).all():
        raise FormatError(f"{name} has step sizes that are not positive.", "Begin from another result.")
    weights = {k.removeprefix(START): t for k, t in earlier.recipe_tensors.items() if k.startswith(START)}
    return Beginning(
        images,
        Origin(method=spec.method, flags=spec.flags, sha256=digest),
        targets if spec.targets == "soft" else None,
        sizes,
        legs[0].batch_size,
        start.student if weights else None,
        weights or None,
    )


def _in_turn(labels: Tensor, classes: int, name: str) -> Tensor:
    """Return the order of rows in which image i is of class i mod `classes`.

    Raises:
        ArgumentError: If there is none.
    """
    index = torch.arange(len(labels))
    if torch.equal(labels, index % classes):
        return index
    counts = torch.bincount(labels, minlength=classes)
    if counts.min() < counts.max():
        label = int(counts.argmin())
        raise ArgumentError(
            f"{name} holds {int(counts[label])} images of class {label} and {int(counts.max())} of another; as many of "
            "each are to be learned.",
            "Begin from a balanced set.",
        )
    return labels.argsort(stable=True).view(classes, -1).T.flatten()
