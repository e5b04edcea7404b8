"""`load_real`: real images by name, from folders, or from an `.npz` file."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dimdata.errors import ArgumentError, DataError, NotFoundError, nearest
from dimdata.files import world_error
from dimdata.real import folder
from dimdata.real.data import RealData
from dimdata.real.known import KNOWN, data_root, load_digits, load_known
from dimdata.spec import Spec

# Names under which published files keep images and labels, of the training and of the test part.
_TRAIN_KEYS = (("train_images", "train_labels"), ("x_train", "y_train"), ("images", "labels"))
_TEST_KEYS = (("test_images", "test_labels"), ("x_test", "y_test"))


def names() -> tuple[str, ...]:
    """Return the names that `load_real` knows, sorted."""
    return tuple(sorted([*KNOWN, "digits"]))


def load_real(
    source: str | Path | RealData,
    *,
    root: str | Path | None = None,
    download: bool = True,
    test: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
) -> RealData:
    """Load a real dataset into memory.

    Args:
        source: A name (`mnist`, `fashion-mnist`, `svhn`, `cifar10`, `cifar100`, `digits`), a folder with one subfolder
            for each class, a folder with `train/` and `test/` (or `val/`) of that kind, an `.npz` file with
            `train_images` and `train_labels` (also `x_train`/`y_train` or `images`/`labels`; the test part likewise,
            and names as `classes`), or a dataset already in memory.
        root: Where named datasets lie; `DIMDATA_DATA` or `~/.cache/dimdata/data` unless given. It is kept as `root`.
        download: Whether a named dataset that is absent is downloaded.
        test: Another folder or `.npz` file that holds the test part.
        size: Side, or (height, width), that images in folders are resized and centre-cropped to.

    Raises:
        NotFoundError: If there is no such name, folder or file.
        DataError: If the images cannot be used as they are.
        WorldError: If a download failed.
    """
    found = source if isinstance(source, RealData) else _load(source, root, download, test, size)
    return found if root is None else dataclasses.replace(found, root=root)


def _load(
    source: str | Path,
    root: str | Path | None,
    download: bool,
    test: str | Path | None,
    size: int | tuple[int, int] | None,
) -> RealData:
    """Load what is not in memory; see `load_real`."""
    if not isinstance(source, str | os.PathLike):
        raise ArgumentError(
            f"A {type(source).__name__} is no dataset's name, folder or file.", "For arrays, use RealData.from_arrays."
        )
    path = None if isinstance(source, str) and source.lower() in names() else _path(source)
    if path is None:
        if test is not None or size is not None:
            what = "a test part" if test is not None else "a size"
            raise ArgumentError(f"{source} has {what} of its own.", "Leave the argument out for datasets by name.")
        name = str(source).lower()
        return load_digits() if name == "digits" else load_known(name, data_root(root), download)
    test_path = None if test is None else _path(test)
    if path.is_dir():
        return _load_folders(path, test_path, folder.parse_size(size))
    if size is not None:
        raise ArgumentError(f"size= is for folders of images; {path} holds arrays.", "Resize the arrays first.")
    return _load_npz(path, test_path)


def _path(source: str | Path) -> Path:
    """Return the folder or `.npz` file that `source` names."""
    path = Path(source).expanduser()
    looks_like_path = isinstance(source, Path) or source.startswith((".", "~")) or os.sep in source
    if not path.exists() or source == "":
        if looks_like_path or path.suffix:
            raise NotFoundError(f"There is no folder or file {path}.", "Check the path.")
        raise NotFoundError(f"There is no dataset called {source!r}.", nearest(str(source).lower(), names()))
    if not path.is_dir() and path.suffix != ".npz":
        raise DataError(f"{path} is neither a folder of images nor an .npz file.", "Give one of these, or a name.")
    return path


def _load_folders(path: Path, test_path: Path | None, size: tuple[int, int] | None) -> RealData:
    train_root, test_root = folder.find_parts(path)
    if test_path is not None:
        if not test_path.is_dir():
            raise DataError(f"The training images lie in folders, but {test_path} is a file.", "Give a folder.")
        test_root = test_path
    classes = folder.list_classes(train_root)
    train = folder.list_files(train_root, classes, every_class=True)
    test = None if test_root is None else folder.list_files(test_root, classes, every_class=False)
    files = train.files + (test.files if test else [])
    shape = folder.survey(files, size)
    read = folder.read_part(train, shape)
    read_test = folder.read_part(test, shape) if test else None
    return RealData.from_arrays(
        read.images,
        read.labels,
        test_images=read_test.images if read_test else None,
        test_labels=read_test.labels if read_test else None,
        classes=classes,
        name=_own_name(path.resolve().name, "folder"),
    )


def _load_npz(path: Path, test_path: Path | None) -> RealData:
    arrays = _read_npz(path)
    train = _pick(arrays, _TRAIN_KEYS, path)
    if train is None:
        known = "; ".join(" and ".join(pair) for pair in _TRAIN_KEYS)
        raise DataError(f"{path} holds {', '.join(arrays) or 'no arrays'}.", f"Name the arrays {known}.")
    if test_path is None:
        test = _pick(arrays, _TEST_KEYS, path)
    elif test_path.is_dir():
        raise DataError(f"The training images lie in an .npz file, but {test_path} is a folder.", "Give an .npz file.")
    else:
        others = _read_npz(test_path)
        test = _pick(others, (*_TEST_KEYS, *_TRAIN_KEYS), test_path)
        if test is None:
            raise DataError(f"{test_path} holds no test images.", "Name the arrays test_images and test_labels.")
    classes = [str(name) for name in arrays["classes"].ravel()] if "classes" in arrays else None
    images, labels = test or (None, None)
    return RealData.from_arrays(
        *train,
        test_images=images,
        test_labels=labels,
        classes=classes,
        name=_own_name(path.name.removesuffix(".npz"), "npz"),
    )


def _own_name(name: str, kind: str) -> str:
    """Return what data of the user's own are called: never as a known dataset, whose licence and test images are its.

    >>> _own_name("birds", "folder"), _own_name("mnist", "npz")
    ('birds', 'mnist-npz')
    """
    return f"{name}-{kind}" if name.lower() in names() else name


def require_archive(path: Path) -> None:
    """Raise `DataError` where a file is no `.npz` archive; NumPy would say that it holds pickled objects."""
    try:
        with path.open("rb") as file:
            single = file.read(6) == b"\x93NUMPY"
    except OSError as error:
        raise world_error(error, f"Reading {path}") from error
    if not single and not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} is no .npz file: it is damaged, or something else, such as a web page, under that name.",
            "Get it again, or save images and labels with numpy.savez.",
        )


def require_classes(spec: Spec, real: RealData) -> None:
    """Refuse real data whose classes are called otherwise than a generator's: its labels mean something else.

    Names that only count (0, 1, ...) say nothing, unless both are datasets that are known by name.

    Raises:
        DataError: If they differ.
    """
    ours, theirs = ([name.casefold() for name in classes] for classes in (spec.classes, real.classes))
    counted = [str(label) for label in range(len(ours))]
    known = spec.dataset in names() and real.name in names()
    if ours == theirs or (not known and counted in (ours, theirs)):
        return
    some = " ..." if len(ours) > 5 else ""
    raise DataError(
        f"The classes of {real.name} are {', '.join(real.classes[:5])}{some}; the generator's are "
        f"{', '.join(spec.classes[:5])}{some}.",
        f"Test on {spec.dataset or 'the dataset it was distilled from'}, or name and order the classes alike.",
    )


def _read_npz(path: Path) -> dict[str, Any]:
    require_archive(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise DataError(f"{path} is a single array.", "Save images and labels with numpy.savez.")
        with loaded:
            return {key: loaded[key] for key in loaded.files}
    except DataError:
        raise
    except Exception as error:  # a damaged archive fails in whatever part first stumbles: zip, zlib, struct, numpy
        if "allow_pickle" in str(error):
            message = f"{path} holds an array of Python objects, which could run code."
            raise DataError(message, "Save numbers: images as uint8, labels as int64.") from error
        raise DataError(f"{path} cannot be read: {error}.", "Save it again with numpy.savez.") from error


def _pick(arrays: Mapping[str, Any], pairs: tuple[tuple[str, str], ...], path: Path) -> tuple[Any, Any] | None:
    """Return the first pair of images and labels that is there."""
    for images, labels in pairs:
        if (images in arrays) != (labels in arrays):
            there, lacking = (images, labels) if images in arrays else (labels, images)
            raise DataError(f"{path} holds {there} but not {lacking}.", "Save both, or neither.")
        if images in arrays:
            return arrays[images], arrays[labels]
    return None
