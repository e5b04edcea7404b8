"""Claims of a card that can be tried: which score a student can repeat within a budget, and how it is trained then."""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass
from typing import Any

from dimdata.artifact import ArtifactConfig
from dimdata.cells import with_epochs
from dimdata.errors import ArgumentError, DimdataError, NotFoundError
from dimdata.generators.base import Generator, shapes_only
from dimdata.protocols import protocol
from dimdata.recipe import Recipe
from dimdata.scores import Score
from dimdata.spec import Spec
from dimdata.students import find_student

BUDGET = 20_000  # images shown to a student
MAX_PARAMETERS = 50_000_000  # of a student that a downloaded card may ask for


@dataclass(frozen=True)
class Training:
    """How the claim can be tried.

    Attributes:
        claim: The score.
        recipe: What is followed: that of the claim, or what the budget leaves of it.
        images: Images that each student sees.
        full: Whether that is all of the claimed training.
        alike: Whether the recipe reads as that of the claim does.
    """

    claim: Score
    recipe: Recipe
    images: int
    full: bool
    alike: bool


def find_training(generator: Generator, config: ArtifactConfig, budget: int, dataset: str | None = None) -> Training:
    """Choose the claim to try: of those that fit the budget in full the largest, else the smallest, cut to fit.

    Of claims alike, `dimdata`'s own protocol goes first, then the one of more seeds. Scores with levers are left out:
    the generator alone does not say what they need.

    Args:
        generator: The generator.
        config: Its `config.json`.
        budget: Images that a student may see.
        dataset: The real dataset to test on; that of the generator unless given.

    Raises:
        ArgumentError: If the budget is not positive, or too small for any claim that can be tried.
        NotFoundError: If the card claims nothing that can be tried.
    """
    if budget < 1:
        raise ArgumentError(f"The budget is {budget} images.", "Give 1 or more.")
    name = generator.name or "The generator"
    dataset = dataset or generator.spec.dataset
    scores = [Score.from_json(score, keep_unknown=True) for score in config.scores]
    claims = [score for score in scores if score.what == "generator" and score.dataset == dataset]
    if not claims:
        raise NotFoundError(
            f"The card of {name} claims no accuracy{f' on {dataset}' * bool(dataset)}, so there is none to verify.",
            "Use --quick to check its files alone; `dimdata evaluate --update-card` measures scores.",
        )
    found = [training for claim in claims if (training := _training(generator, claim, budget)) is not None]
    if not found:
        raise NotFoundError(
            f"None of the {len(claims)} scores of {name} can be repeated: they name students, protocols or budgets "
            "that do not fit the generator.",
            "Use --quick to check its files alone.",
        )
    fitting = [training for training in found if training.images <= budget]
    if not fitting:
        least = min(training.images for training in found)
        raise ArgumentError(
            f"No claim of {name} can be tried with {budget:,} images for a student.", f"Use --budget {least}."
        )
    return max(fitting, key=_preference)


def _preference(training: Training) -> tuple[Any, ...]:
    claim = training.claim
    size = training.images if training.full else -claim.images_seen
    return (training.full, training.alike, size, claim.protocol == "dimdata", len(claim.seeds))


def _training(generator: Generator, claim: Score, budget: int) -> Training | None:
    """Return how a claim can be tried; none where it contradicts itself, or names what this generator cannot do.

    Everything is computed from the generator, for the card may come from a stranger.
    """
    spec, stored = generator.spec, generator.images
    images = claim.ipc * spec.num_classes if claim.ipc is not None else stored or 0
    told = bool(claim.accuracies) and abs(statistics.fmean(claim.accuracies) - claim.mean) < 0.01
    fits = images == claim.images and images > 0 and (stored is None or (images <= stored and claim.draw == "fixed"))
    if claim.levers or not (told and fits and 0 <= claim.mean <= 100):
        return None
    try:
        if _parameters(claim.student, spec) > MAX_PARAMETERS:
            return None
        own = protocol(claim.protocol).recipe(generator.recipe, claim.ipc, spec.num_classes)
        epochs = claim.epochs if claim.epochs != _epochs(own) else None
        recipe = own if epochs is None else with_epochs(own, epochs)
        shown = _shown(generator, recipe, images)
        if shown != claim.images_seen:
            return None
        alike = recipe.describe() == claim.recipe
        if shown <= budget or recipe.learned_steps:  # which are all taken or none
            return Training(claim, recipe, shown, True, alike)
        fewer = _cut(recipe, budget, shown)
        return Training(claim, fewer, _shown(generator, fewer, images), False, alike)
    except (DimdataError, RuntimeError, ValueError):
        return None


def _parameters(student: str, spec: Spec) -> int:
    """Return how many parameters a student has, without making it."""
    with shapes_only():
        network = find_student(student)(spec.image_shape, spec.num_classes)
    return sum(parameter.numel() for parameter in network.parameters())


def _cut(recipe: Recipe, budget: int, shown: int) -> Recipe:
    """Return a recipe that shows so many images in the share of a budget, at least an epoch or a step of each leg."""
    total = _epochs(recipe)
    if total is not None:
        return with_epochs(recipe, max(len(recipe.legs), total * budget // shown))

    def part(length: int | None) -> int | None:
        return None if length is None else max(1, length * budget // shown)

    legs = tuple(dataclasses.replace(leg, epochs=part(leg.epochs), steps=part(leg.steps)) for leg in recipe.legs)
    return dataclasses.replace(recipe, legs=legs)


def _epochs(recipe: Recipe) -> int | None:
    """Return the epochs of all legs; none where one counts steps."""
    counted = [leg.epochs for leg in recipe.legs if leg.epochs is not None]
    return sum(counted) if len(counted) == len(recipe.legs) else None


def _shown(generator: Generator, recipe: Recipe, images: int) -> int:
    """Return how many images a student is shown in a recipe at so many images an epoch."""
    total = 0
    for leg in recipe.legs:
        there = generator.view(stage=leg.stage, alone=leg.alone).images
        here = images if there is None else min(images, there)
        batch = min(leg.batch_size, here)
        whole, rest = divmod(leg.steps or 0, math.ceil(here / batch))
        total += (leg.epochs or whole) * here + rest * batch
    return total
