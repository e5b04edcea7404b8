"""A grid of draws, one column a class: what a generator looks like at a glance."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from dimdata import latents
from dimdata.errors import ArgumentError, FormatError
from dimdata.generators.base import Generator
from dimdata.tensorfile import finite

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_COLUMNS = 20
MAX_VALUES = 2**28  # of all images of a grid of more than ten rows: 1 GiB
AT_ONCE = 2**20  # values of images drawn at once
WIDTH = 600  # pixels that small images are enlarged to, about
_GAP = 2


def grid(generator: Generator, rows: int = 10, columns: int | None = None, seed: int = 0) -> Image:
    """Draw a grid: column k shows class k.

    Args:
        generator: What to draw from. Stored images are shown from the first; classes with fewer leave cells blank.
        rows: Images of each class.
        columns: Classes shown, from the first; all of them, 20 at most, unless given.
        seed: Of the draw.

    Returns:
        An RGB or grey PIL image. Where values leave [0, 1], as learned images may, one straight line for all images
        brings them back; only the outermost hundredth is clipped.

    Raises:
        ArgumentError: If there would be nothing to show, more than the classes there are, or more than a picture holds.
        FormatError: If the generator draws what is not finite.
    """
    from torchvision.utils import make_grid

    classes = generator.spec.num_classes
    columns = min(classes, MAX_COLUMNS) if columns is None else columns
    if not 1 <= columns <= classes:
        raise ArgumentError(f"{columns} classes were asked for; there are {classes}.", f"Use 1 to {classes} columns.")
    most = max(10, MAX_VALUES // (columns * math.prod(generator.spec.image_shape)))
    if not 1 <= rows <= most:
        raise ArgumentError(f"{rows} rows were asked for.", f"Use 1 to {most:,}.")
    index = _cells(generator, rows, columns)
    rows = len(index) // columns
    shown = index >= 0
    images = _draw(generator, index[shown].to(generator.device), seed)
    if not finite(images):
        raise FormatError(
            f"{generator.name or 'The generator'} draws values that are not finite.",
            "Its weights are damaged or too large: download it again, or distil it with a lower learning rate.",
        )
    images = _visible(images)
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
    cells = torch.ones(len(index), *images.shape[1:], dtype=images.dtype, device="cpu")
    cells[shown] = images
    factor = max(1, round((WIDTH / columns - _GAP) / cells.shape[3]))
    cells = F.interpolate(cells, scale_factor=factor, mode="nearest")
    return _image(make_grid(cells, nrow=columns, padding=_GAP, pad_value=1.0), grey=images.shape[1] == 1)


def _draw(generator: Generator, index: Tensor, seed: int) -> Tensor:
    """Return the images of indices on the CPU; large ones are drawn a few at a time."""
    spec = generator.spec
    parts = torch.split(index, max(1, AT_ONCE // math.prod(spec.image_shape)))
    return torch.cat([generator.draw(latents.latents(seed, 0, part, spec.latent), part)[0].cpu() for part in parts])


def _visible(images: Tensor) -> Tensor:
    """Bring images to [0, 1]: what lies within is left as it is."""
    values = images.flatten().sort().values
    edge = len(values) // 200
    low, high = min(0.0, values[edge].item()), max(1.0, values[-1 - edge].item())
    return ((images - low) / (high - low)).clamp(0, 1)


def png(generator: Generator, rows: int = 10, columns: int | None = None, seed: int = 0) -> bytes:
    """Return `grid` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    grid(generator, rows, columns, seed).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _cells(generator: Generator, rows: int, columns: int) -> Tensor:
    """Return the index shown in each cell, row by row, int64 `[rows * columns]`; -1 for a blank one."""
    classes = generator.spec.num_classes
    if generator.images is None:
        return torch.arange(rows * classes, device="cpu").view(rows, classes)[:, :columns].flatten()
    labels = generator.labels(torch.arange(generator.images, device=generator.device)).cpu()
    own = [(labels == label).nonzero().flatten()[:rows] for label in range(columns)]
    cells = torch.full((max(1, *(len(index) for index in own)), columns), -1, device="cpu")
    for column, index in enumerate(own):
        cells[: len(index), column] = index
    return cells.flatten()


def _image(picture: Tensor, grey: bool) -> Image:
    from torchvision.transforms.functional import to_pil_image

    made: Image = to_pil_image(picture[:1] if grey else picture)
    return made
