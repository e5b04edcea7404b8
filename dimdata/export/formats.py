"""The export formats: image folder, safetensors, `.npz`, WebDataset shards."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from dimdata.export.writer import FORMATS, Batch, Plan, Writer, folder_names
from dimdata.outputs import to_pil
from dimdata.real import names
from dimdata.spec import canonical_json

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the time of every entry: the earliest that a zip file can say


def _png(image: Tensor) -> bytes:
    """Return a uint8 image `[C, H, W]` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "PNG")
    return buffer.getvalue()


@FORMATS.register("folder")
class Folder(Writer):
    """PNG files, one folder a class, as torchvision's `ImageFolder` and `dimdata distill` read them."""

    channels = (1, 3)
    folders = True

    def __init__(self, folder: Path, plan: Plan) -> None:
        super().__init__(folder, plan)
        self.places = [folder / name for name in folder_names(plan.classes)]
        for each in self.places:
            each.mkdir()
        self.table: IO[str] | None = None
        if plan.soft:
            self.table = (folder / "targets.csv").open("w", encoding="utf-8", newline="\n")
            self._row("file", plan.classes)

    def add(self, batch: Batch) -> None:
        """See `Writer.add`."""
        for offset, (image, label) in enumerate(zip(batch.images, batch.labels.tolist(), strict=True)):
            file = self.places[label] / f"{batch.first + offset:0{self.plan.digits}}.png"
            file.write_bytes(_png(image))
            if batch.targets is not None:
                name = file.relative_to(self.folder).as_posix()
                self._row(name, [f"{value:.9g}" for value in batch.targets[offset].tolist()])

    def _row(self, first: str, rest: Any) -> None:
        assert self.table is not None
        self.table.write(",".join(_cell(text) for text in (first, *rest)) + "\n")

    def finish(self) -> None:
        """See `Writer.finish`."""
        if self.table is not None:
            self.table.close()

    def close(self) -> None:
        """See `Writer.close`."""
        _let_go(self.table)

    @classmethod
    def usage(cls, plan: Plan) -> str:
        """See `Writer.usage`."""
        grey = "transforms.Grayscale(), " if plan.image_shape[0] == 1 else ""
        return f"""from torchvision import datasets, transforms

normalize = transforms.Normalize({_numbers(plan, "mean")}, {_numbers(plan, "std")})  # real test images, too
transform = transforms.Compose([{grey}transforms.ToTensor(), normalize])
dataset = datasets.ImageFolder("FOLDER", transform)"""

    @classmethod
    def notes(cls, plan: Plan) -> list[str]:
        """See `Writer.notes`."""
        if not plan.soft:
            return []
        return ["Targets are distributions over the classes: targets.csv has them, one row a file."]


def _cell(text: str) -> str:
    """Return a cell of a comma-separated file."""
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text


@FORMATS.register("safetensors")
class Safetensors(Writer):
    """One file of `images`, `labels`, and `targets` where they are soft.

    The library's own writer wants all tensors at once, so the header is written here. Labels and targets come before
    the images, where eight and four bytes are aligned, and are filled in as the images come.
    """

    floats = True

    def __init__(self, folder: Path, plan: Plan) -> None:
        super().__init__(folder, plan)
        count, end = plan.images, 0
        shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"labels": (torch.int64, (count,))}
        if plan.soft:
            shapes["targets"] = (torch.float32, (count, len(plan.classes)))
        shapes["images"] = (plan.dtype, (count, *plan.image_shape))
        header: dict[str, Any] = {"__metadata__": {"dimdata.export": canonical_json(plan.facts)}}
        self.at: dict[str, int] = {}
        self.row: dict[str, int] = {}
        for name, (dtype, shape) in shapes.items():
            self.at[name] = end
            self.row[name] = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
            end += count * self.row[name]
            header[name] = {
                "dtype": {torch.int64: "I64", torch.float32: "F32", torch.uint8: "U8"}[dtype],
                "shape": list(shape),
                "data_offsets": [self.at[name], end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.head = 8 + len(text)
        self.file = (folder / "images.safetensors").open("wb")
        self.file.write(len(text).to_bytes(8, "little") + text)

    def add(self, batch: Batch) -> None:
        """See `Writer.add`."""
        for name in self.at:
            self.file.seek(self.head + self.at[name] + batch.first * self.row[name])
            self.file.write(_bytes(getattr(batch, name)))

    def finish(self) -> None:
        """See `Writer.finish`."""
        self.file.close()

    def close(self) -> None:
        """See `Writer.close`."""
        _let_go(self.file)

    @classmethod
    def usage(cls, plan: Plan) -> str:
        """See `Writer.usage`."""
        return f"""import torch
from safetensors.torch import load_file

tensors = load_file("FOLDER/images.safetensors")
images = tensors["images"]{_unit(plan)}
mean, std = (torch.tensor(values)[:, None, None] for values in ({_numbers(plan, "mean")}, {_numbers(plan, "std")}))
dataset = torch.utils.data.TensorDataset((images - mean) / std, tensors["{_target(plan)}"])"""


@FORMATS.register("npz")
class Npz(Writer):
    """One file of the arrays `images`, `labels` (`targets` where they are soft) and `classes`: what `wrap` reads."""

    floats = True

    def __init__(self, folder: Path, plan: Plan) -> None:
        super().__init__(folder, plan)
        self.kept: list[Tensor] = []  # a zip file is written entry by entry; the labels are small and wait
        self.archive = zipfile.ZipFile(folder / "images.npz", "w")
        self.entry: IO[bytes] | None = self._open("images", (plan.images, *plan.image_shape), plan.dtype)

    def _open(self, name: str, shape: tuple[int, ...], dtype: Any) -> IO[bytes]:
        info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
        info.create_system = 3  # as on Unix, wherever it is written
        info.external_attr = 0o644 << 16
        entry = self.archive.open(info, "w", force_zip64=True)
        kind = torch.empty(0, dtype=dtype).numpy().dtype if isinstance(dtype, torch.dtype) else dtype
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(entry, header)
        return entry

    def add(self, batch: Batch) -> None:
        """See `Writer.add`."""
        assert self.entry is not None
        self.entry.write(_bytes(batch.images))
        self.kept.append(batch.labels if batch.targets is None else batch.targets)

    def finish(self) -> None:
        """See `Writer.finish`."""
        assert self.entry is not None
        self.entry.close()
        targets = torch.cat(self.kept)
        with self._open(_target(self.plan), tuple(targets.shape), targets.dtype) as entry:
            entry.write(_bytes(targets))
        classes = np.array(self.plan.classes)
        classes = classes.astype(classes.dtype.newbyteorder("<"))
        with self._open("classes", classes.shape, classes.dtype) as entry:
            entry.write(classes.tobytes())
        self.archive.close()

    def close(self) -> None:
        """See `Writer.close`."""
        _let_go(self.entry)
        _let_go(self.archive)

    @classmethod
    def usage(cls, plan: Plan) -> str:
        """See `Writer.usage`."""
        # Any text may stand for a dataset in a generator of others; names are plain words.
        known = f" --dataset {plan.dataset}" if plan.dataset in names() else ""
        return f"""# As a generator again: dimdata wrap FOLDER/images.npz ./wrapped{known}
import numpy
import torch

with numpy.load("FOLDER/images.npz") as arrays:
    images, targets = (torch.from_numpy(arrays[name]) for name in ("images", "{_target(plan)}"))
images = images{_unit(plan)}
mean, std = (torch.tensor(values)[:, None, None] for values in ({_numbers(plan, "mean")}, {_numbers(plan, "std")}))
dataset = torch.utils.data.TensorDataset((images - mean) / std, targets)"""


@FORMATS.register("webdataset")
class WebDataset(Writer):
    """Shards of `.png` and `.cls` files, and `.json` files of soft targets, in the order of the draw.

    Any run of `num_classes` images holds each class once, so that shards are balanced.
    """

    channels = (1, 3)

    def __init__(self, folder: Path, plan: Plan) -> None:
        super().__init__(folder, plan)
        self.tar: tarfile.TarFile | None = None

    def add(self, batch: Batch) -> None:
        """See `Writer.add`."""
        for offset, (image, label) in enumerate(zip(batch.images, batch.labels.tolist(), strict=True)):
            number = batch.first + offset
            if number % self.plan.shard_size == 0:
                self.finish()
                path = self.folder / f"shard-{number // self.plan.shard_size:06}.tar"
                self.tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
            key = f"{number:0{self.plan.digits}}"
            self._member(f"{key}.png", _png(image))
            self._member(f"{key}.cls", str(label).encode())
            if batch.targets is not None:
                values = [float(f"{value:.9g}") for value in batch.targets[offset].tolist()]
                self._member(f"{key}.json", json.dumps({"targets": values}).encode())

    def _member(self, name: str, data: bytes) -> None:
        assert self.tar is not None
        info = tarfile.TarInfo(name)  # owner and time are zero
        info.size = len(data)
        self.tar.addfile(info, io.BytesIO(data))

    def finish(self) -> None:
        """See `Writer.finish`."""
        if self.tar is not None:
            self.tar.close()

    def close(self) -> None:
        """See `Writer.close`."""
        _let_go(self.tar)

    @classmethod
    def usage(cls, plan: Plan) -> str:
        """See `Writer.usage`."""
        last = (plan.images - 1) // plan.shard_size
        shards = f"shard-{{000000..{last:06}}}.tar" if last else "shard-000000.tar"
        grey = "transforms.Grayscale(), " if plan.image_shape[0] == 1 else ""
        target, read = ("json", ', itemgetter("targets")') if plan.soft else ("cls", "")
        needed = "from operator import itemgetter\n\n" if plan.soft else ""
        return f"""{needed}import webdataset
from torchvision import transforms

normalize = transforms.Normalize({_numbers(plan, "mean")}, {_numbers(plan, "std")})  # real test images, too
transform = transforms.Compose([{grey}transforms.ToTensor(), normalize])
dataset = webdataset.WebDataset("FOLDER/{shards}", shardshuffle=False).decode("pil")
dataset = dataset.to_tuple("png", "{target}").map_tuple(transform{read})"""

    @classmethod
    def notes(cls, plan: Plan) -> list[str]:
        """See `Writer.notes`."""
        if not plan.soft:
            return []
        return ["Targets are distributions over the classes: each image's .json file has them; .cls has the label."]


def _bytes(tensor: Tensor) -> bytes:
    """Return a tensor's values, row by row."""
    return tensor.numpy().tobytes()


def _let_go(file: Any) -> None:
    """Close a file whose writing may have failed already."""
    if file is not None:
        with contextlib.suppress(OSError, ValueError):
            file.close()


def _target(plan: Plan) -> str:
    return "targets" if plan.soft else "labels"


def _unit(plan: Plan) -> str:
    return ".float() / 255" if plan.dtype == torch.uint8 else ""


def _numbers(plan: Plan, name: str) -> str:
    """Return the mean or the deviation of the channels, as code."""
    return repr(list(plan.facts[name]))
