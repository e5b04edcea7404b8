"""Which real images a generator is tested on: those asked for, those it was distilled from, or those it comes with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dimdata.errors import DataError, WorldError

if TYPE_CHECKING:
    from torch import Tensor

    from dimdata.generators.base import Generator
    from dimdata.real import RealData

HOLDOUT = "holdout"


def real_data(generator: Generator, real: str | None, root: Path | None) -> RealData | None:
    """Return the real dataset to evaluate against, by default the one distilled; none means the hold-out."""
    from dimdata.real import load_real, names

    own = generator.spec.dataset if generator.spec.dataset in names() else HOLDOUT
    if (real or own) == HOLDOUT:
        return None
    try:
        return load_real(real or own, root=root, size=_size(generator, real))
    except WorldError as error:
        error.hint += " Or test on the images that come with the generator, if any: --real holdout."
        raise


def _size(generator: Generator, real: str | None) -> tuple[int, int] | None:
    """Return what images of a folder are resized to: the size of the generator's; a dataset's name is no folder."""
    from dimdata.real import names

    if real is None or real.lower() in names() or not Path(real).expanduser().is_dir():
        return None
    _, height, width = generator.spec.image_shape
    return height, width


def test_images(
    name: str, generator: Generator, real: str | None, root: Path | None
) -> tuple[Tensor, Tensor, str] | None:
    """Return test images, their labels and what they are: by default the hold-out, or none where there is none.

    Raises:
        DataError: If they do not fit the generator.
    """
    from dimdata.artifact import holdout, resolve
    from dimdata.real import load_real, require_classes

    if real in (None, HOLDOUT):
        found = holdout(resolve(name))
        if found is None and real == HOLDOUT:
            known = generator.spec.dataset or "mnist"
            raise DataError(f"{name} comes without test images.", f"Name the real dataset, such as --real {known}.")
        return None if found is None else (*found, f"{len(found[1]):,} held-out images of {generator.spec.dataset}")
    data = load_real(str(real), root=root, size=_size(generator, real))
    spec = generator.spec
    if data.test is None:
        raise DataError(f"{data.name} has no test images.", "Put them into a subfolder test/ beside train/.")
    if data.num_classes != spec.num_classes or data.image_shape != tuple(spec.image_shape):
        raise DataError(
            f"{data.name} has {data.num_classes} classes of images {data.image_shape}; the generator has "
            f"{spec.num_classes} of {tuple(spec.image_shape)}.",
            f"Test on {spec.dataset or 'the dataset it was distilled from'}.",
        )
    require_classes(spec, data)
    return data.test.images, data.test.labels, f"{len(data.test):,} test images of {data.name}"
