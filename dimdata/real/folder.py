"""Images in folders, one folder a class."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dimdata.errors import ArgumentError, DataError
from dimdata.spec import MAX_SIDE

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
_TRAIN_NAMES = ("train", "training")
_TEST_NAMES = ("test", "testing", "val", "valid", "validation")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height

log = logging.getLogger("dimdata")


class Part(NamedTuple):
    """The images of one folder of classes: uint8 `[N, C, H, W]`, and their labels int64 `[N]`."""

    images: Tensor
    labels: Tensor


class Listing(NamedTuple):
    """The image files of one folder of classes, in order, and the label of each."""

    files: list[Path]
    labels: list[int]


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def find_parts(root: Path) -> tuple[Path, Path | None]:
    """Return the folders of the training and the test classes of `root`.

    They are `root/train` (or `training`) and `root/test` (or `testing`, `val`, `valid`, `validation`, the first there
    is), in capitals or not, or `root` itself and none where its subfolders are the classes.
    """
    inside = {p.name.lower(): p for p in _folders(root)}
    train = next((inside[name] for name in _TRAIN_NAMES if name in inside), None)
    if train is None or not (_folders(train) or inside.keys() <= {*_TRAIN_NAMES, *_TEST_NAMES}):
        return root, None
    return train, next((inside[name] for name in _TEST_NAMES if name in inside), None)


def list_classes(root: Path) -> tuple[str, ...]:
    """Return the class names of a folder: those of its subfolders, sorted.

    Raises:
        DataError: If there are none.
    """
    classes = tuple(p.name for p in _folders(root))
    if not classes:
        flat = any(p.suffix.lower() in EXTENSIONS for p in root.iterdir())
        raise DataError(
            f"{root} holds images but no folders of classes." if flat else f"There are no images in {root}.",
            f"Put the images of each class into a folder of their own, such as {root / 'cat'} and {root / 'dog'}.",
        )
    return classes


def list_files(root: Path, classes: Sequence[str], every_class: bool) -> Listing:
    """List the images of a folder; what has no image extension is passed over, which a warning counts.

    Args:
        root: The folder.
        classes: Class names; label k is `classes[k]`.
        every_class: Whether a class without images is an error.

    Raises:
        DataError: If a class is unknown or empty.
    """
    unknown = set(list_classes(root)) - set(classes)
    if unknown:
        raise DataError(
            f"{root} has a class {min(unknown)!r}, which the training images have not.",
            f"The classes are {', '.join(classes[:10])}{' ...' if len(classes) > 10 else ''}.",
        )
    files: list[Path] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    for label, name in enumerate(classes):
        visible = [
            Path(place) / file for place, _, here in os.walk(root / name) for file in here if not file.startswith(".")
        ]
        found = sorted(file for file in visible if file.name.lower().endswith(EXTENSIONS))
        others.update(file.suffix.lower() or "no ending" for file in visible if file.suffix.lower() not in EXTENSIONS)
        if not found and every_class:
            raise DataError(
                f"The class folder {root / name} holds no images.",
                f"Put images ({', '.join(EXTENSIONS)}) into it, or remove it.",
            )
        files += found
        labels += [label] * len(found)
    if others:
        kinds = ", ".join(f"{count:,} of {kind}" for kind, count in others.most_common(5))
        log.warning("Passed over %s: no images by their ending (%s).", f"{others.total():,} files in {root}", kinds)
    return Listing(files, labels)


class _Broken:
    """Collects the files that cannot be read, so that all of them are told at once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.found: list[tuple[Path, Exception]] = []

    @contextmanager
    def note(self, file: Path) -> Iterator[None]:
        """Take up what reading a file raises."""
        try:
            yield
        except DataError:
            raise
        except Exception as error:  # Pillow's readers raise nearly anything on damaged files
            self.found.append((file, error))

    def tell(self) -> None:
        """Raise `DataError` if there are any."""
        if not self.found:
            return
        (file, error), more = self.found[0], len(self.found) - 1
        if not more:
            raise DataError(f"The image {file} cannot be read: {error}.", "Repair it or remove it.") from error
        names = ", ".join(str(file) for file, _ in self.found[:20]) + (" ..." if more >= 20 else "")
        raise DataError(
            f"{more + 1:,} of {self.count:,} images cannot be read: {names}. The first: {error}.",
            "Repair or remove them.",
        ) from error


def _is_grey(mode: str) -> bool:
    return mode in ("1", "L", "LA", "I") or mode.startswith("I;16")


def survey(files: Sequence[Path], size: tuple[int, int] | None) -> tuple[int, int, int]:
    """Read the headers of image files and return what all of them become: (channels, height, width).

    Args:
        files: The files.
        size: (height, width) that the images will be brought to; none = they must agree.

    Raises:
        DataError: If sizes differ or are beyond bounds, or a file is no image.
    """
    from PIL import Image as Pillow

    first: tuple[int, int] | None = size
    grey, broken = True, _Broken(len(files))
    for file in files:
        width = height = 0
        with broken.note(file), Pillow.open(file) as image:
            width, height = _upright(image)
            grey = grey and _is_grey(image.mode)
        if not width:
            continue
        first = first or (height, width)
        if size is None and (height, width) != first:
            raise DataError(
                f"Images differ in size: {file} is {height}x{width}, {files[0]} is {first[0]}x{first[1]}.",
                "Choose one size for all, such as size=32: images are resized and cropped from the centre.",
            )
        if size is None and max(height, width) > MAX_SIDE:
            raise DataError(
                f"The image {file} is {height}x{width}; sides of up to {MAX_SIDE} are read.",
                "Choose a size, such as size=64; images are then resized and cropped from the centre.",
            )
    broken.tell()
    assert first is not None
    shape = (1 if grey else 3, *first)
    needed = len(files) * shape[0] * shape[1] * shape[2]
    if needed > _memory():
        raise DataError(
            f"{len(files):,} images of {shape[1]}x{shape[2]} take {needed / 2**30:,.0f} GiB; "
            f"this machine has {_memory() / 2**30:,.0f} GiB of memory.",
            "Choose a smaller size, such as size=64.",
        )
    return shape


def _upright(image: Image) -> tuple[int, int]:
    """Return (width, height) of an image as a camera held it, from its header alone."""
    turned = image.format in ("JPEG", "MPO") and image.getexif().get(0x0112) in _TURNED
    return (image.size[1], image.size[0]) if turned else image.size


def _memory() -> float:
    """Return the bytes of main memory, or infinity where the system does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def read_part(listing: Listing, shape: tuple[int, int, int]) -> Part:
    """Read image files into memory.

    Args:
        listing: The files and labels.
        shape: What `survey` returned. Images of another size are resized and cropped from the centre.

    Raises:
        DataError: If a file cannot be read.
    """
    from PIL import Image as Pillow

    images = torch.empty(len(listing.files), *shape, dtype=torch.uint8, device="cpu")
    broken = _Broken(len(listing.files))
    for row, file in zip(images, listing.files, strict=True):
        with broken.note(file), Pillow.open(file) as image:
            row.copy_(_pixels(image, shape))
    broken.tell()
    return Part(images, torch.tensor(listing.labels, dtype=torch.int64, device="cpu"))


def _pixels(image: Image, shape: tuple[int, int, int]) -> Tensor:
    """Decode an image to uint8 `[C, H, W]`."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    channels, height, width = shape
    if image.format in ("JPEG", "MPO"):
        image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16 bits a value, which Pillow would clip
        values = np.asarray(image).astype(np.float64).clip(0, 65535) / 257
        image = Pillow.fromarray(values.round().astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("it holds floating-point values, of unknown range")
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Pillow.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).view(height, width, channels).permute(2, 0, 1)


def parse_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return (height, width) of a side or a pair.

    Raises:
        ArgumentError: If a side is out of range.
    """
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(s, int) and 1 <= s <= MAX_SIDE for s in pair):
        raise ArgumentError(f"The image size is {size!r}.", f"Give one or two sides of 1 to {MAX_SIDE} pixels.")
    return pair[0], pair[1]
