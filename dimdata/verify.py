"""Is a generator what it says it is? Its files against their digests, and one claim of its card against a student.

A claim is a score in `config.json`: the mean accuracy of students trained by a protocol at a budget. Another student is
trained the same way from a seed of its own, and tested on real images. If the claim is true, its accuracy differs from
the claimed mean by the chance of seeds and of test images alone, whose standard errors add up in squares:

- seeds: s² (1/m + 1/k), for m students here, k students of the claim and the deviation s between students: the claim's
  own from three seeds on, but never less than `LEAST_DEVIATION`, and `UNKNOWN_DEVIATION` for fewer seeds;
- test images: p (1 - p) (1/n + 1/c), for a claimed accuracy p, n test images here and c of the claim, if it says how
  many; nothing where the claim was measured on the same ones.

A student below the claim by more than `STANDARD_ERRORS` of these refutes it, but only where it was trained in full. One
whose training was cut to a budget can confirm a claim, and never refute it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dimdata import artifact, preview
from dimdata.claims import Training
from dimdata.config import read_config
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, DataError
from dimdata.evaluate import prepare
from dimdata.files import PREVIEW
from dimdata.generators.base import Generator
from dimdata.real import RealData
from dimdata.scores import Score

STANDARD_ERRORS = 3.0
LEAST_DEVIATION = 0.5  # points of accuracy between students of one training
UNKNOWN_DEVIATION = 1.0  # where fewer than three students tell it
MAX_PREVIEW = 20 * 2**20  # bytes

MAX_VALUES = 2**26  # of the images of a preview, beyond which it is not compared

_COUNT = re.compile(r"\(([0-9][0-9,]{0,18})\)\Z")  # how the test images of a score end, as in `mnist test (10,000)`

Preview = Literal["absent", "as drawn", "other", "not compared"]
Verdict = Literal["confirmed", "refuted", "open"]


@dataclass(frozen=True)
class Files:
    """Files that agree with one another and with their digests.

    Attributes:
        name: What was asked for.
        folder: Where the files lie.
        revision: The commit, if it came from the Hub.
        sha256: Digest of `model.safetensors`, as computed from its bytes.
        bytes: Its size.
        holdout: Real test images beside it.
        preview: `absent`, `as drawn` (it is the default grid of the generator's images), `other`, or `not compared`:
            the images are too large for that.
    """

    name: str
    folder: str
    revision: str | None
    sha256: str
    bytes: int
    holdout: int
    preview: Preview


@dataclass(frozen=True)
class Trial:
    """What came out of trying a claim.

    Attributes:
        claim: The score.
        seeds: Of the students trained here.
        accuracies: Of these students, in percent.
        mean: Their mean.
        test: The test images.
        images: Images that each student saw.
        steps: Optimiser steps that each took.
        full: Whether that was all of the claimed training.
        alike: Whether the recipe reads as that of the claim does.
        from_seeds: Standard error that the choice of seeds leaves, in points of accuracy.
        from_test: Standard error that the choice of test images, here and for the claim, leaves, likewise.
        tolerance: How far below the claim a true one may come out.
        verdict: `confirmed`, `refuted`, or `open`: below the claim, and not trained as the claim was.
    """

    claim: Score
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    mean: float
    test: str
    images: int
    steps: int
    full: bool
    alike: bool
    from_seeds: float
    from_test: float
    tolerance: float
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """Return this for machines."""
        return dataclasses.asdict(self) | {"claim": self.claim.to_json()}


def verify_files(source: str | Path, **options: Any) -> tuple[Generator, Files]:
    """Check the files of a generator: digests, sizes, and whether config and weights belong together.

    Args:
        source: A name, a folder, or a repository.
        options: `revision`, `token` and others of `artifact.load`.

    Returns:
        The generator, and what its files are.

    Raises:
        FormatError: If a file is missing, damaged, or belongs to another.
        DimdataError: If the generator cannot be found or reached.
    """
    generator = artifact.load(source, **options)
    folder = generator.folder
    assert folder is not None
    weights = read_config(folder).weights
    held_out = artifact.holdout(folder)
    count = 0 if held_out is None else len(held_out[1])
    name = generator.name or str(source)
    shown = _preview(folder / PREVIEW, generator)
    return generator, Files(name, str(folder), generator.revision, weights.sha256, weights.bytes, count, shown)


def _preview(path: Path, generator: Generator) -> Preview:
    """Say whether a picture is the default grid of a generator's images, but for rounding."""
    import numpy as np
    from PIL import Image

    if not path.is_file():
        return "absent"
    if path.stat().st_size > MAX_PREVIEW:
        return "other"
    if 10 * min(generator.spec.num_classes, preview.MAX_COLUMNS) * math.prod(generator.spec.image_shape) > MAX_VALUES:
        return "not compared"
    wanted = preview.grid(generator)
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.size != wanted.size:  # before anything is decoded
                return "other"
            found = np.asarray(picture.convert("RGB"), dtype=np.int16)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "other"
    apart = np.abs(found - np.asarray(wanted.convert("RGB"), dtype=np.int16)).mean()
    return "as drawn" if apart <= 1 else "other"


def try_claim(
    generator: Generator,
    files: Files,
    training: Training,
    *,
    real: RealData | None = None,
    seeds: int = 1,
    engine: Engine | None = None,
    on_student: Callable[[int, float], None] | None = None,
) -> Trial:
    """Train students as a claim says, and compare.

    Args:
        generator: The generator, as `verify_files` returned it.
        files: Its files, likewise.
        training: What to try; see `dimdata.claims.find_training`.
        real: Whose test images are used; those that come with the generator unless given.
        seeds: How many students; their seeds are not among those of the claim.
        engine: Where to compute.
        on_student: Called with each student's seed and accuracy.

    Raises:
        ArgumentError: If `seeds` is not positive.
        DataError: If there are no test images, or they do not fit.
    """
    tested = require_triable(files, training, real, seeds)
    claim = training.claim
    (score,) = prepare(
        generator,
        ipc=claim.ipc,
        students=claim.student,
        draws=claim.draw,
        seeds=_other_seeds(claim.seeds, seeds),
        real=real,
        recipe=training.recipe,
        protocol=claim.protocol,
        baselines=(),
        engine=engine,
    ).run(on_row=None if on_student is None else lambda row: on_student(row.seed, row.accuracy))
    from_seeds = _deviation(claim) * math.sqrt(1 / seeds + 1 / len(claim.accuracies))
    from_test = _test_error(claim, score.test, tested)
    tolerance = STANDARD_ERRORS * math.hypot(from_seeds, from_test)
    verdict: Verdict = "confirmed"
    if score.mean < claim.mean - tolerance:
        verdict = "refuted" if training.full and training.alike else "open"
    return Trial(
        claim=claim,
        seeds=score.seeds,
        accuracies=score.accuracies,
        mean=score.mean,
        test=score.test,
        images=score.images_seen,
        steps=score.steps,
        full=training.full,
        alike=training.alike,
        from_seeds=round(from_seeds, 3),
        from_test=round(from_test, 3),
        tolerance=round(tolerance, 2),
        verdict=verdict,
    )


def require_triable(files: Files, training: Training, real: RealData | None, seeds: int) -> int:
    """Find out before any training whether a claim can be tried; arguments and errors as in `try_claim`.

    Returns:
        How many test images there are.
    """
    if seeds < 1:
        raise ArgumentError(f"seeds is {seeds}; at least one student must be trained.", "Use 1 or more.")
    tested = files.holdout if real is None else len(real.test or ())
    if not tested:
        raise DataError(
            f"There are no real test images to try the claim of {files.name} on.",
            f"Name the real dataset (--real {training.claim.dataset or 'mnist'}), or check its files alone (--quick).",
        )
    return tested


def _test_error(claim: Score, test: str, tested: int) -> float:
    """Return the standard error, in points, that the choice of test images leaves in the difference from a claim."""
    if test == claim.test:
        return 0.0  # the same images are as easy or hard for both, which cancels; students' own errors come with seeds
    found = _COUNT.search(claim.test)
    claimed = int(found[1].replace(",", "")) if found else 0
    # Independent choices err independently. A hold-out is part of the test images, so the two err in part alike, and
    # this is more than need be: a true claim is not refuted for it.
    share = 1 / tested + (1 / claimed if claimed else 0)
    return math.sqrt(claim.mean * (100 - claim.mean) * share)


def _other_seeds(taken: Sequence[int], count: int) -> list[int]:
    """Return the least seeds that are not taken."""
    left = set(taken)
    return [*itertools.islice((seed for seed in itertools.count() if seed not in left), count)]


def _deviation(claim: Score) -> float:
    """Return the deviation between students, in points of accuracy."""
    if len(claim.accuracies) < 3:
        return UNKNOWN_DEVIATION
    return max(LEAST_DEVIATION, statistics.stdev(claim.accuracies))
