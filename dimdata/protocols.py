"""Protocols: which recipe a student is trained by when it is scored, and what to know of the result. Data only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dimdata.errors import NotFoundError, nearest
from dimdata.recipe import Leg, Recipe

RecipeRule = Callable[[Recipe, int | None, int], Recipe]

CLAIM_EPOCHS = 1_000  # what "IPC n under a fresh draw" means: this many epochs of n images per class


@dataclass(frozen=True)
class Protocol:
    """How to score.

    Attributes:
        name: What rows call it.
        recipe: From (the generator's own recipe, images per class or none for all, classes) to the recipe to follow.
        text: What a reader of the figures must know.
    """

    name: str
    recipe: RecipeRule
    text: str


def _own(recipe: Recipe, ipc: int | None, num_classes: int) -> Recipe:
    return recipe


def _dim_paper(recipe: Recipe, ipc: int | None, num_classes: int) -> Recipe:
    small = ipc is not None and ipc < 50
    leg = Leg(
        epochs=CLAIM_EPOCHS,
        # The stored order in batches of one image per class is the published balanced permutation.
        batch_size=num_classes if small else 64,
        shuffle=not small,
        optimizer="sgd",
        lr=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="constant",
        augment="color+crop",
        dialect="each",
    )
    return Recipe(legs=(leg,))


_PROTOCOLS = {
    "dimdata": Protocol(
        "dimdata",
        _own,
        "The generator's own recipe; last epoch, eval mode, real test images normalised as the training images.",
    ),
    "dim-paper": Protocol(
        "dim-paper",
        _dim_paper,
        "The conventions of DiM's published code (arXiv 2303.04707): SGD at a constant 0.01, momentum 0.9, weight "
        "decay 5e-4, 1,000 epochs, batches of one image per class (64 from IPC 50 on), colour and crop augmentation, "
        "new noise each epoch. Mended: the last epoch is scored, not the best of five looks at the test set; the "
        "student is in eval mode; test images are normalised as training images are; every batch of an epoch is used "
        "(published: none at IPC 1 and 10 with the default batch of 128). Otherwise than published: CIFAR-10 is "
        "normalised by its channels' deviation over all pixels (there by the mean deviation of an image, which makes "
        "varied colours a fifth weaker); labels are "
        "balanced (there uniform random, unless a batch holds one image per class). The published ResNets are thin "
        "on CIFAR (resnet18-thin here) and of full width with the ImageNet stem on MNIST, Fashion-MNIST and SVHN "
        "(resnet18-imagenet here).",
    ),
}


def names() -> list[str]:
    """Return the names of the protocols."""
    return list(_PROTOCOLS)


def protocol(name: str) -> Protocol:
    """Return the protocol called `name`.

    Raises:
        NotFoundError: If there is none.
    """
    if name not in _PROTOCOLS:
        raise NotFoundError(f"There is no protocol called {name!r:.80}.", nearest(name, _PROTOCOLS))
    return _PROTOCOLS[name]
