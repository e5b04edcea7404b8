"""The real datasets known by name: five that torchvision reads, and `digits`, which comes with the package."""

from __future__ import annotations

import importlib.resources
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dimdata.errors import DataError, NotFoundError, WorldError
from dimdata.real.data import RealData


@dataclass(frozen=True, kw_only=True)
class Known:
    """What torchvision does not say about a dataset.

    Attributes:
        title: The name in print, which is also torchvision's name for it.
        mean: The published per-channel mean, which everybody normalises with.
        std: The published per-channel standard deviation of the pixels.
        licence: A licence identifier of the Hub.
        url: Its home.
        citation: BibTeX.
        files: Where its files lie below the root.
        classes: Class names; torchvision's own unless given.
    """

    title: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    url: str
    citation: str
    files: str
    classes: tuple[str, ...] | None = None


_TEN = tuple("0123456789")
_CIFAR = """@techreport{krizhevsky2009learning,
  title = {Learning Multiple Layers of Features from Tiny Images},
  author = {Krizhevsky, Alex},
  institution = {University of Toronto},
  year = {2009}
}"""

KNOWN = {
    "mnist": Known(
        title="MNIST",
        mean=(0.1307,),
        std=(0.3081,),
        licence="cc-by-sa-3.0",
        url="http://yann.lecun.com/exdb/mnist/",
        citation="""@article{lecun1998gradient,
  title = {Gradient-Based Learning Applied to Document Recognition},
  author = {LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},
  journal = {Proceedings of the IEEE},
  volume = {86},
  number = {11},
  pages = {2278--2324},
  year = {1998}
}""",
        files="MNIST/raw/train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "
        "t10k-labels-idx1-ubyte",
        classes=_TEN,
    ),
    "fashion-mnist": Known(
        title="FashionMNIST",
        mean=(0.2861,),
        std=(0.3530,),
        licence="mit",
        url="https://github.com/zalandoresearch/fashion-mnist",
        citation="""@article{xiao2017fashion,
  title = {{Fashion-MNIST}: a Novel Image Dataset for Benchmarking Machine Learning Algorithms},
  author = {Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  journal = {arXiv preprint arXiv:1708.07747},
  year = {2017}
}""",
        files="FashionMNIST/raw/train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "
        "t10k-labels-idx1-ubyte",
    ),
    "svhn": Known(
        title="SVHN",
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        licence="other",
        url="http://ufldl.stanford.edu/housenumbers/",
        citation="""@inproceedings{netzer2011reading,
  title = {Reading Digits in Natural Images with Unsupervised Feature Learning},
  author = {Netzer, Yuval and Wang, Tao and Coates, Adam and Bissacco, Alessandro and Wu, Bo and Ng, Andrew Y.},
  booktitle = {NIPS Workshop on Deep Learning and Unsupervised Feature Learning},
  year = {2011}
}""",
        files="train_32x32.mat, test_32x32.mat",
        classes=_TEN,
    ),
    "cifar10": Known(
        title="CIFAR10",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        licence="other",
        url="https://www.cs.toronto.edu/~kriz/cifar.html",
        citation=_CIFAR,
        files="cifar-10-batches-py/data_batch_1 to data_batch_5, test_batch, batches.meta",
    ),
    "cifar100": Known(
        title="CIFAR100",
        mean=(0.5071, 0.4866, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        licence="other",
        url="https://www.cs.toronto.edu/~kriz/cifar.html",
        citation=_CIFAR,
        files="cifar-100-python/train, test, meta",
    ),
}


def data_root(root: str | Path | None = None) -> Path:
    """Return where datasets lie: `root`, `DIMDATA_DATA`, or `~/.cache/dimdata/data`."""
    return Path(root or os.environ.get("DIMDATA_DATA") or "~/.cache/dimdata/data").expanduser()


def load_known(name: str, root: Path, download: bool) -> RealData:
    """Read a dataset of `KNOWN`, from its files below `root`; those that are absent are downloaded.

    Raises:
        NotFoundError: If they are absent and `download` is false.
        WorldError: If the download failed.
        DataError: If they are damaged.
    """
    known = KNOWN[name]
    train, test = (_open(known, root, part == "train", download) for part in ("train", "test"))
    return RealData.from_arrays(
        train.data,
        _labels(train),
        test_images=test.data,
        test_labels=_labels(test),
        classes=known.classes or tuple(train.classes),
        mean=known.mean,
        std=known.std,
        name=name,
        title=known.title,
        licence=known.licence,
        url=known.url,
        citation=known.citation,
    )


def _labels(dataset: Any) -> Any:
    return dataset.labels if hasattr(dataset, "labels") else dataset.targets


def _open(known: Known, root: Path, train: bool, download: bool) -> Any:
    """Return torchvision's dataset of one part, downloaded where it is absent and may be."""
    from torchvision import datasets

    kind = getattr(datasets, known.title)
    part: dict[str, Any] = {"split": "train" if train else "test"} if known.title == "SVHN" else {"train": train}
    if known.title == "SVHN" and importlib.util.find_spec("scipy") is None:
        raise DataError("SVHN comes as MATLAB files, which torchvision reads with scipy.", "pip install scipy")
    place = f"put the files there yourself: {root}/{known.files}."
    try:
        return kind(root, download=False, **part)
    except Exception as error:
        # torchvision says "not found" of absent files and of files with a wrong MD5, and nothing foreseeable of others.
        if "not found" not in str(error):
            raise _damaged(known, root, error) from error
        if not download:
            raise NotFoundError(f"{known.title} is not below {root}.", f"Allow its download, or {place}") from error
    try:
        root.mkdir(parents=True, exist_ok=True)
        return kind(root, download=True, **part)
    except Exception as error:  # the servers, the line and the disk fail in many ways
        raise WorldError(
            f"{known.title} could not be downloaded to {root}: {error}.", f"Try again later, or {place}"
        ) from error


def _damaged(known: Known, root: Path, error: Exception) -> DataError:
    what = str(error) or type(error).__name__
    return DataError(
        f"The files of {known.title} below {root} are damaged: {what}.",
        f"Remove {known.files} there, and they are downloaded anew.",
    )


def load_digits() -> RealData:
    """Return 1,797 handwritten digits, 8x8 grey, which need no download: 1,297 to train on, 500 to test.

    They are the test part of the Optical Recognition of Handwritten Digits set (Alpaydin and Kaynak, 1998), with the
    values 0..16 scaled to 0..255.
    """
    from safetensors.torch import load

    tensors = load(importlib.resources.files("dimdata").joinpath("data/digits.safetensors").read_bytes())
    is_test = torch.zeros(len(tensors["labels"]), dtype=torch.bool, device="cpu")
    is_test[tensors["test"]] = True
    return RealData.from_arrays(
        tensors["images"][~is_test],
        tensors["labels"][~is_test],
        test_images=tensors["images"][is_test],
        test_labels=tensors["labels"][is_test],
        classes=_TEN,
        name="digits",
        title="Optical Recognition of Handwritten Digits",
        licence="cc-by-4.0",
        url="https://archive.ics.uci.edu/dataset/80",
        citation="""@misc{alpaydin1998optical,
  title = {Optical Recognition of Handwritten Digits},
  author = {Alpaydin, E. and Kaynak, C.},
  howpublished = {UCI Machine Learning Repository},
  year = {1998},
  doi = {10.24432/C50P49}
}""",
    )
