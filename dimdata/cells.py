"""Which students an evaluation trains, and on how many images, real or not, for how many steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dimdata.errors import ArgumentError, nearest
from dimdata.generators.base import Generator
from dimdata.protocols import CLAIM_EPOCHS, Protocol
from dimdata.recipe import Recipe
from dimdata.scores import What

BASELINES = ("random", "distinct", "all")
DRAWS = ("fresh", "fixed")
IPC = (1, 10, 50)
SEEDS = 3

Draw = Literal["fresh", "fixed"]
Seeds = int | Sequence[int]


@dataclass(frozen=True)
class Cell:
    """One student to train and score.

    Attributes:
        what: As in `Row`, and so are the others that are not named here.
        leg_images: Images of an epoch of the generator, leg by leg of the recipe.
        recipe: The generator's recipe at this budget; real images are trained on by `in_steps` of it.
    """

    what: What
    student: str
    ipc: int | None
    images: int
    leg_images: tuple[int, ...]
    draw: Draw
    seed: int
    recipe: Recipe


def check_plan(
    generator: Generator,
    ipc: int | Sequence[int] | None,
    draws: str | Sequence[str],
    seeds: Seeds,
    epochs: int | None,
    protocol: Protocol,
) -> list[Cell]:
    """Refuse what `plan` refuses, whoever the students are; return the cells of one without a name.

    Arguments and errors are those of `plan`.
    """
    return plan(
        generator,
        ipc=ipc,
        students=("",),
        draws=draws,
        seeds=seeds,
        recipe=None,
        epochs=epochs,
        protocol=protocol,
        baselines=(),
    )


def plan(
    generator: Generator,
    *,
    ipc: int | Sequence[int] | None,
    students: Sequence[str],
    draws: str | Sequence[str],
    seeds: Seeds | Mapping[int, Seeds],
    recipe: Recipe | None,
    epochs: int | None,
    protocol: Protocol,
    baselines: Sequence[str],
) -> list[Cell]:
    """Return the cells of an evaluation, small budgets first; arguments and errors as in `evaluate`."""
    names, chosen = check_baselines(baselines), _draws(generator, draws)
    cells = []
    for count in budgets(generator, ipc):
        images = count * generator.spec.num_classes if count is not None else generator.images or 0
        followed = recipe or protocol.recipe(generator.recipe, count, generator.spec.num_classes)
        if epochs is not None:
            followed = with_epochs(followed, epochs, generator.name)
        require_whole_stages(generator, followed, count)
        legs = _leg_images(generator, followed, images)
        for student in students:
            for draw in chosen:
                for seed in _seeds(seeds, count):
                    cell = Cell("generator", student, count, images, legs, draw, seed, followed)
                    cells += [cell, *_real_cells(cell, names)]
    return list(dict.fromkeys(cells))  # both draws have some baselines in common


def require_whole_stages(generator: Generator, recipe: Recipe, ipc: int | None) -> None:
    """Raise `ArgumentError` where `cuts_stages` holds."""
    if not cuts_stages(generator, recipe, ipc):
        return
    if generator.images is None:
        drawn = "first" if ipc == 1 else f"first {ipc}"
        raise ArgumentError(
            f"IPC {ipc} draws from the {drawn} of {generator.stages} stages alone, which the recipe walks one after "
            "another.",
            f"Use {generator.stages} images per class or more, or stage={ipc}.",
        )
    raise ArgumentError(
        f"IPC {ipc} is a part of the {generator.images:,} images of {generator.stages} stages, which the recipe walks "
        "one after another.",
        "Use stage=k, a prefix of the stages, or leave ipc out.",
    )


def cuts_stages(generator: Generator, recipe: Recipe, ipc: int | None) -> bool:
    """Return whether so few images per class would cut stages short that a recipe walks one by one.

    Later legs would then see images of the earlier stages alone, and their accuracies would be of no stage.
    """
    if ipc is None or not any(leg.stage is not None for leg in recipe.legs):
        return False
    if generator.images is None:
        return ipc < generator.stages
    return ipc * generator.spec.num_classes < generator.images


def _leg_images(generator: Generator, recipe: Recipe, images: int) -> tuple[int, ...]:
    """Return the images of an epoch of each leg; a prefix of the stages may hold fewer than `images`."""
    stored = [generator.view(stage=leg.stage, alone=leg.alone).images for leg in recipe.legs]
    return tuple(images if count is None else min(count, images) for count in stored)


def budgets(generator: Generator, ipc: int | Sequence[int] | None) -> list[int | None]:
    """Return images per class, rising; none for all stored images where classes are unequal.

    Raises:
        ArgumentError: If there are not so many, or not of each class.
    """
    classes, stored = generator.spec.num_classes, generator.images
    if ipc is None:
        if stored is None:
            return [count for count in IPC if count >= generator.stages] or [generator.stages]
        return [stored // classes if generator.balanced(stored) else None]
    counts: list[int] = list(ipc) if isinstance(ipc, Sequence) and not isinstance(ipc, str) else [ipc]
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ArgumentError(f"ipc is {count!r:.40}; images per class are whole numbers from 1.", "Use ipc=(1, 10).")
        if stored is not None and count * classes > stored:
            raise ArgumentError(
                f"IPC {count} of {classes} classes needs {count * classes:,} images; {stored:,} are stored.",
                f"Use ipc={stored // classes}, or leave it out for all there are.",
            )
        if not generator.balanced(count * classes):
            raise ArgumentError(
                f"The first {count * classes:,} images of {generator.name or 'this generator'} are not {count} of each "
                "class.",
                "Leave ipc out for all there are.",
            )
    if not counts:
        raise ArgumentError("No ipc is given.", "Name one or more, such as ipc=(1, 10).")
    return [*sorted(set(counts))]


def _seeds(seeds: Seeds | Mapping[int, Seeds], ipc: int | None) -> list[int]:
    chosen = seeds.get(ipc, SEEDS) if isinstance(seeds, Mapping) else seeds  # type: ignore[arg-type]
    hint = "Use seeds=3, say; in Python a list says which they are."
    listed: Sequence[object] = ()
    if isinstance(chosen, int) and not isinstance(chosen, bool):
        listed = range(chosen)
    elif isinstance(chosen, Sequence) and not isinstance(chosen, str):
        listed = chosen
    else:
        raise ArgumentError(f"seeds is {chosen!r:.40}, neither a number nor a list of numbers.", hint)
    if not listed:
        raise ArgumentError(f"seeds is {chosen!r:.40}; at least one is needed.", hint)
    if not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in listed):
        raise ArgumentError(f"seeds is {chosen!r:.40}; seeds are whole numbers.", hint)
    return list(dict.fromkeys(listed))


def _draws(generator: Generator, draws: str | Sequence[str]) -> list[Draw]:
    names = check_draws(draws)
    return names if generator.images is None else ["fixed"]


def check_draws(draws: str | Sequence[str]) -> list[Draw]:
    """Return the draws that are named, in the usual order.

    Raises:
        ArgumentError: If there are none, or others than `fresh` and `fixed`.
    """
    names = [draws] if isinstance(draws, str) else list(draws)
    if not names:
        raise ArgumentError("No draw is given.", "Use fresh, fixed, or both.")
    for name in names:
        if name not in DRAWS:
            raise ArgumentError(f"{name!r:.40} is no draw.", "Use fresh, fixed, or both.")
    return [draw for draw in DRAWS if draw in names]  # type: ignore[misc]


def check_baselines(baselines: Sequence[str]) -> list[What]:
    """Return the baselines in their usual order.

    Raises:
        ArgumentError: If one is unknown.
    """
    baselines = [baselines] if isinstance(baselines, str) else baselines
    for name in baselines:
        if name not in BASELINES:
            raise ArgumentError(f"There is no baseline called {name!r:.40}.", nearest(name, BASELINES))
    return [name for name in BASELINES if name in baselines]  # type: ignore[misc]


def _real_cells(cell: Cell, baselines: Sequence[What]) -> list[Cell]:
    """Return the baselines of a cell; a fixed draw shows no more images than `random`, so it has no other ceiling."""
    draws: dict[What, Draw] = {"random": "fixed", "distinct": "fresh", "all": "fixed"}
    return [
        dataclasses.replace(cell, what=what, draw=draws[what])
        for what in baselines
        if what != "distinct" or cell.draw == "fresh"
    ]


def with_epochs(recipe: Recipe, epochs: int, name: str = "") -> Recipe:
    """Return the recipe with `epochs` in all, shared among its legs as before.

    Args:
        recipe: The recipe.
        epochs: One or more for each leg.
        name: Of the generator that it belongs to, for messages.

    Raises:
        ArgumentError: If `epochs` is less than one a leg, or a leg counts steps.
    """
    old, of = [leg.epochs for leg in recipe.legs], f" of {name}" if name else ""
    if None in old:
        raise ArgumentError(f"The recipe{of} counts steps, so it has no epochs to change.", "Leave epochs out.")
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < len(old):
        raise ArgumentError(
            f"epochs is {epochs!r:.40}; the recipe{of} has {len(old)} leg{'s' * (len(old) > 1)}.",
            f"Use a whole number from {len(old)}.",
        )
    total = sum(count for count in old if count is not None)
    ends = [round(epochs * sum(old[: i + 1]) / total) for i in range(len(old))]  # type: ignore[arg-type]
    legs, start = [], 0
    for i, (leg, end) in enumerate(zip(recipe.legs, ends, strict=True)):
        end = min(max(end, start + 1), epochs - (len(old) - 1 - i))  # at least one for each leg
        legs.append(dataclasses.replace(leg, epochs=end - start))
        start = end
    return dataclasses.replace(recipe, legs=tuple(legs))


def in_steps(cell: Cell, shuffle: bool = False) -> Recipe:
    """Return the recipe of a cell with as many steps and images, however many images there are to train on.

    Several legs have batches of several sizes, which may not divide the images: `whole_batches`.

    Args:
        cell: The cell.
        shuffle: Whether to shuffle even where the recipe does not.
    """
    legs = []
    for leg, images in zip(cell.recipe.legs, cell.leg_images, strict=True):
        batches = math.ceil(images / leg.batch_size)
        steps = leg.steps if leg.epochs is None else leg.epochs * batches
        size = math.ceil(images / batches)  # an epoch's last batch may be smaller; here all are of one size
        # Each epoch would show the same images first, were these not in an order of its own.
        mixed = shuffle or leg.shuffle or len(cell.recipe.legs) > 1
        whole = dataclasses.replace(
            leg, stage=None, alone=False, epochs=None, steps=steps, batch_size=size, shuffle=mixed
        )
        legs.append(whole)
    return dataclasses.replace(cell.recipe, legs=tuple(legs))


def whole_batches(cell: Cell) -> bool:
    """Return whether the batches of a baseline must run over the ends of epochs and legs.

    It would not see as many images otherwise, nor as many distinct ones: each leg would begin with all of them again.
    """
    return cell.what != "generator" and len(cell.recipe.legs) > 1


def real_images(cell: Cell, there: int) -> int:
    """Return how many distinct real images the baseline of a cell takes, of those that are there."""
    if cell.what == "all":
        return there
    if cell.what == "random":
        return min(cell.images, there)
    return min(images_shown(cell), there)


def is_figure(generator: Generator, cell: Cell) -> bool:
    """Return whether a student's score is a figure at so many images per class, as `Row.ipc_claim` says afterwards."""
    if cell.what != "generator" or cell.ipc is None:
        return False
    if cell.draw == "fixed":  # stages of networks that are walked show an index anew in each leg
        return generator.images is not None or all(leg.stage is None for leg in cell.recipe.legs)
    return images_shown(cell) == CLAIM_EPOCHS * cell.images


def images_shown(cell: Cell) -> int:
    """Return how many images a student is shown in all, again and again or not."""
    return sum(
        images * leg.epochs if leg.epochs is not None else (leg.steps or 0) * min(leg.batch_size, images)
        for leg, images in zip(cell.recipe.legs, cell.leg_images, strict=True)
    )
