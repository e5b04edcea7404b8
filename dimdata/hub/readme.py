"""`README.md` of generators in local folders: written with a generator, and made anew when scores are added."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dimdata import artifact
from dimdata.artifact import read_config, update_scores
from dimdata.errors import ArgumentError, DimdataError, FormatError
from dimdata.files import CARD, HOLDOUT, PREVIEW, read_bytes, write_atomic
from dimdata.generators.base import Generator
from dimdata.hub.card import card, stored_scores
from dimdata.hub.kept import kept
from dimdata.names import generator_folder
from dimdata.scores import Score

MAX_CARD = 2**20  # bytes

# What differs between two measurements of one thing; all else tells scores apart.
_MEASURED = (
    *("mean", "std", "seeds", "accuracies", "stages", "seconds", "baselines", "name", "stored_bytes"),
    *("parameters", "diverged", "failed"),
    *("distinct", "ipc_claim"),  # what the draw and the recipe come to, as it was counted
)


def read_card(folder: str | os.PathLike[str]) -> str | None:
    """Return the text of `README.md`; none where there is none.

    Raises:
        FormatError: If it is longer than 1 MiB, or no text.
        WorldError: If it cannot be read.
    """
    path = Path(folder) / CARD
    if not path.exists():
        return None
    try:
        return read_bytes(path, MAX_CARD).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 text.", "Mend it, or remove it.") from error


def render_card(folder: str | os.PathLike[str], *, name: str | None = None, previous: str | None = None) -> str:
    """Return the card of a generator's folder, made anew; what a person added to the old one stays.

    Args:
        folder: The folder.
        name: As in `card`; that of the old card unless given.
        previous: The old card; the folder's own unless given.

    Raises:
        FormatError: If `config.json` or the old card cannot be read; see `card`.
    """
    path = generator_folder(Path(folder))
    previous = read_card(path) if previous is None else previous
    return card(
        read_config(path),
        name=kept(previous).name if name is None else name,
        preview=(path / PREVIEW).is_file(),
        holdout=(path / HOLDOUT).is_file(),
        previous=previous,
    )


def write_card(folder: str | os.PathLike[str], *, name: str | None = None) -> Path:
    """Write `README.md` anew; arguments and errors as in `render_card`, and `WorldError` if it cannot be written."""
    path = generator_folder(Path(folder)) / CARD
    write_atomic(path, render_card(folder, name=name).encode("utf-8"))
    return path


def save_with_card(
    generator: Generator, folder: str | os.PathLike[str], *, name: str | None = None, **facts: Any
) -> Path:
    """Write a generator's folder with a card; what a person added to an older one in its place stays.

    Scores and test images of the older one stay too, where it is the same generator to the bit.

    Args:
        generator: What to write.
        folder: Where.
        name: As in `card`; that of an older card in its place, if any, unless given.
        facts: As in `artifact.save`; errors, too.
    """
    place = Path(folder).expanduser()
    previous = read_card(place)
    kept(previous)  # what cannot be carried over is told before anything is replaced
    made = artifact.save(generator, place, card=previous, **{**_measured(generator, place), **facts})
    write_card(made, name=name)
    return made


def _measured(generator: Generator, folder: Path) -> dict[str, Any]:
    """Return the scores and test images of a generator that lies in a folder already; nothing where another does."""
    try:
        old = artifact.load(generator_folder(folder.expanduser()))
        scores, test = read_config(folder).scores, artifact.holdout(folder)
    except DimdataError:  # nothing there, or nothing that can be read
        return {}
    pairs = ((old.stored(), generator.stored()), (old.recipe_tensors, generator.recipe_tensors))
    same = (old.spec, old.recipe) == (generator.spec, generator.recipe) and all(
        mine.keys() == yours.keys() and all(torch.equal(mine[key].cpu(), yours[key].cpu()) for key in mine)
        for mine, yours in pairs
    )
    if not same:
        return {}
    return {"scores": scores, "holdout": None if test is None else dict(zip(("images", "labels"), test, strict=True))}


def require_refreshable(source: str | os.PathLike[str]) -> str:
    """Find out before a long evaluation whether its scores could be added to a folder.

    Args:
        source: What the generator is loaded by; a local folder, for only these can be changed.

    Returns:
        The digest of the weights, for `add_scores`.

    Raises:
        FormatError: If `config.json`, its scores or the card cannot be read.
        ArgumentError: If `source` is the name of a generator, or the folder cannot be written.
    """
    if isinstance(source, str) and source[:1] not in (".", "/", "~"):
        raise ArgumentError(
            f"{source!r:.120} is not a local folder, and only the card of one can be updated.",
            "Give the path of a copy, such as ./mine.",
        )
    path = generator_folder(Path(source))
    config = read_config(path)
    stored_scores(config)
    kept(read_card(path))
    if not os.access(path, os.W_OK):
        raise ArgumentError(f"{path} cannot be written.", "Copy the generator to a folder of your own.")
    return config.weights.sha256


def add_scores(folder: str | os.PathLike[str], scores: Sequence[Score], sha256: str) -> Path:
    """Put scores into `config.json`, and make the card anew.

    A score takes the place of an older one of the same student, budget, draw, protocol, recipe and test images, whose
    baselines it keeps where it has none of its own.

    Args:
        folder: The generator's folder.
        scores: What was measured.
        sha256: The digest of the weights that were measured.

    Returns:
        The path of the card.

    Raises:
        FormatError: If the folder has other weights by now, or cannot be read.
        WorldError: If it cannot be written.
    """
    path = generator_folder(Path(folder))
    config = read_config(path)
    if config.weights.sha256 != sha256:
        raise FormatError(f"The generator in {path} was replaced while it was evaluated.", "Evaluate the new one.")
    spec = config.generator
    name = f"{spec.method}-{spec.dataset or 'generator'}"  # not the path it was loaded from
    named = [dataclasses.replace(s, name=name) if s.what == "generator" else s for s in scores]
    update_scores(path, [score.to_json() for score in merge(stored_scores(config), named)])
    return write_card(path)


def merge(old: Sequence[Score], new: Sequence[Score]) -> list[Score]:
    """Return old scores with new ones in the places of those that they repeat, the rest at the end."""
    merged = {_identity(score): score for score in old}
    for score in new:
        before = merged.get(_identity(score))
        bounds: Mapping[str, float] = before.baselines if before is not None else {}
        merged[_identity(score)] = dataclasses.replace(score, baselines={**bounds, **score.baselines})
    return list(merged.values())


def _identity(score: Score) -> tuple[tuple[str, str], ...]:
    known = {field.name for field in dataclasses.fields(Score)} - {"unknown", *_MEASURED}
    return tuple((name, repr(getattr(score, name))) for name in sorted(known))
