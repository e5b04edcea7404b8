"""Recipes that walk the stages of a generator, at the student steps of a recipe without stages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from dimdata.errors import ArgumentError
from dimdata.recipe import WHITENING, Leg, Recipe
from dimdata.students.source import START


def shares(total: int, weights: Sequence[float]) -> list[int]:
    """Share `total` out by weights in whole numbers that add up to it."""
    ends = [round(total * sum(weights[: i + 1]) / sum(weights)) for i in range(len(weights))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def walk(recipes: Sequence[Recipe], images: Sequence[int | None], last_share: float | None = None) -> Recipe:
    """Return the recipe that trains on the union of the first stages, one leg a stage, weights carried on.

    All legs together take as many steps as the last recipe takes on all images at once, and each has an equal share of
    the epochs. (The published evaluation of progressive distillation gives every stage half of the epochs of the
    method without stages, which is 1.5 times the steps at five stages.)

    Learned step sizes belong to the very batches that they were learned with: legs of these are walked as they are, on
    the images of each stage alone.

    Args:
        recipes: The recipe of each stage for itself, of one leg. They share their start and its tensors.
        images: Images of each stage; none where they are unlimited.
        last_share: Share of the steps (of the epochs, where images are unlimited) in the last leg, on all images; the
            others share the rest as they otherwise share all. A prefix of the stages is then trained on for fewer.

    Raises:
        ArgumentError: If a recipe has several legs, or fewer epochs or steps than there are stages.
    """
    for recipe in recipes:
        sizes = {leg.step_sizes for leg in recipe.legs}
        known = (WHITENING, START) if recipe.learned_steps else (WHITENING,)
        if len(recipe.legs) != 1 or not all(name in sizes or name.startswith(known) for name in recipe.tensors):
            raise ArgumentError(
                "Stages need a recipe of one leg, and no tensors but those that whiten, learned step sizes and a "
                "start; their own are made of it.",
                "Leave out legs and tensors of the base's recipe.",
            )
    if len(recipes) == 1:
        return recipes[0]
    last = recipes[-1].legs[0]
    tensors = tuple(dict.fromkeys(name for recipe in recipes for name in recipe.tensors))
    if last.step_sizes is not None:
        alone = [dataclasses.replace(recipe.legs[0], stage=k, alone=True) for k, recipe in enumerate(recipes, 1)]
        return dataclasses.replace(recipes[-1], legs=tuple(alone), tensors=tensors)
    unions = [None if None in images else sum(n or 0 for n in images[: k + 1]) for k in range(len(images))]
    if unions[-1] is None:
        total, weights = last.epochs or last.steps or 0, [1.0] * len(recipes)
        counted = "epochs" if last.epochs is not None else "steps"
    else:
        passes = [math.ceil((union or 0) / last.batch_size) for union in unions]
        total, weights = last.steps or (last.epochs or 0) * passes[-1], [float(n) for n in passes]
        counted = "steps"
    if last_share is not None:
        weights[-1] = sum(weights[:-1]) * last_share / (1 - last_share)
    lengths = shares(total, weights)
    if min(lengths) < 1:
        raise ArgumentError(
            f"The recipe has {sum(lengths)} {counted} for {len(recipes)} stages.", "Use fewer stages or more epochs."
        )
    legs = tuple(
        dataclasses.replace(
            recipe.legs[0],
            stage=stage,
            epochs=length if counted == "epochs" else None,
            steps=length if counted == "steps" else None,
        )
        for stage, (recipe, length) in enumerate(zip(recipes, lengths, strict=True), 1)
    )
    return dataclasses.replace(recipes[-1], legs=legs, tensors=tensors)


def steps_of(leg: Leg, images: int) -> int:
    """Return the steps of a leg on so many images."""
    return leg.steps or (leg.epochs or 0) * math.ceil(images / leg.batch_size)


def shortened(recipe: Recipe, steps: int, weights: Sequence[float] | None = None) -> Recipe:
    """Return the recipe in `steps` steps in all; legs left without any are dropped.

    Args:
        recipe: The recipe.
        steps: At least one.
        weights: By which the legs share them; their epochs or steps unless given.
    """
    lengths = shares(steps, weights or [float(leg.epochs or leg.steps or 0) for leg in recipe.legs])
    legs = tuple(
        dataclasses.replace(leg, epochs=None, steps=length)
        for leg, length in zip(recipe.legs, lengths, strict=True)
        if length
    )
    return dataclasses.replace(recipe, legs=legs)
