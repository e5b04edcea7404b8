"""Trained students as files: one safetensors file that says what network it is and how it came about."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from dimdata.errors import ArgumentError, FormatError, NotFoundError
from dimdata.files import strict_json, write_atomic
from dimdata.generators.base import shapes_only
from dimdata.outputs import Normalize
from dimdata.recipe import WHITENING, Recipe
from dimdata.spec import MAX_CLASSES, MAX_SIDE, Record, canonical_json, require
from dimdata.students import Factory, find_student, make_student
from dimdata.students.source import load_weights
from dimdata.tensorfile import DTYPES, TensorFile, finite
from dimdata.whitening import Whitening

_KEY = "dimdata.student"
MAX_BYTES = 2**33


@dataclass(frozen=True, kw_only=True)
class StudentInfo(Record):
    """What a stored student is.

    Attributes:
        student: Its name; `package.module:qualified.name` of what built it for a network of the user's own, which is
            for people to read and never imported.
        image_shape: (channels, height, width).
        classes: Class names.
        mean: Per-channel mean that images in [0, 1] are normalised by.
        std: Standard deviation, likewise.
        generator: What it was trained on.
        recipe: How.
        seed: Of the training.
        whitening: The `Whitening` of the images it was trained on, where the recipe asks for one; stored as tensors.
    """

    student: str
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    generator: str = ""
    recipe: Recipe | None = None
    seed: int = 0
    whitening: Any = None

    @property
    def normalize(self) -> Normalize:
        """The transform from images in [0, 1] to what the student sees."""
        return Normalize(self.mean, self.std, self.whitening)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads, and `load_student` completes by the tensors."""
        data = super().to_json()
        del data["whitening"]
        return data

    @classmethod
    def label(cls) -> str:
        """The name of this record in messages."""
        return "student"

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        channels, height, width = self.image_shape
        require(1 <= len(self.classes) <= MAX_CLASSES, f"student.classes must hold 1 to {MAX_CLASSES:,} names.")
        fits = 1 <= channels <= 64 and 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE
        require(fits, f"student.image_shape is {self.image_shape}.")
        require(len(self.mean) == len(self.std) == channels, f"student.mean and .std must hold {channels} values.")
        require(all(value > 0 for value in self.std), "student.std must be positive.")
        require(self.whitening is None or isinstance(self.whitening, Whitening), "student.whitening is no field.")


def require_storable(network: nn.Module) -> None:
    """Refuse a network whose tensors could be written to a file that `load_student` would then refuse to read.

    Raises:
        ArgumentError: If one is empty or of another type than float32, float16, uint8 or int64.
    """
    for name, tensor in network.state_dict().items():
        if tensor.dtype not in DTYPES.values() or not tensor.numel():
            what = str(tensor.dtype).removeprefix("torch.") if tensor.numel() else "empty"
            raise ArgumentError(
                f"The network's {name!r:.80} is {what}, and files of students hold float32, float16, uint8 and int64.",
                "Cast it, or leave it out of the state: register_buffer(..., persistent=False).",
            )


def save_student(network: nn.Module, path: str | Path, info: StudentInfo) -> Path:
    """Store a student in one file; a killed process leaves the old file or the new one.

    Args:
        network: The network, on any device.
        path: Where to; folders are made.
        info: What it is; a training's `TrainResult.info`.

    Returns:
        The path.

    Raises:
        ArgumentError: If the network has tensors that such a file does not hold; see `require_storable`.
        FormatError: If a weight is not finite: the network diverged.
        WorldError: If the disk is full or the place cannot be written.
    """
    path = Path(path).expanduser()
    require_storable(network)
    broken = [name for name, tensor in network.state_dict().items() if not finite(tensor)]
    if broken:
        raise FormatError(
            f"The student's {broken[0]!r:.80} is not finite, so it is not stored.", "Train it at a lower learning rate."
        )
    tensors = {
        # Copies, because layers may share one tensor.
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }
    if info.whitening is not None:
        tensors |= info.whitening.tensors()
    data = save(tensors, {_KEY: canonical_json(info.to_json())})
    write_atomic(path, data)
    return path


def load_student(path: str | Path, student: Factory | None = None) -> tuple[nn.Module, StudentInfo]:
    """Load a stored student, in `eval()` mode on the CPU.

    Args:
        path: The file.
        student: The factory of the network, for one that no registered name builds. The file holds tensors alone,
            and no code is imported for what it says.

    Returns:
        The network, and what it is.

    Raises:
        FormatError: If the file is missing, damaged, or not of a student.
        ArgumentError: If its network is not known by name and no factory is given.
    """
    path = Path(path).expanduser()
    with TensorFile(path, MAX_BYTES) as file:
        if _KEY not in file.metadata:
            raise FormatError(f"{path} is not a stored student.", "Give a file that `dimdata train` has written.")
        info = StudentInfo.from_json(strict_json(file.metadata[_KEY].encode(), f"The metadata of {path}"))
        try:
            factory = student or find_student(info.student)
        except NotFoundError as error:
            raise ArgumentError(
                f"{path} holds a network called {info.student!r:.120}, which is not registered.",
                "Pass its factory: load_student(path, student=...).",
            ) from error
        if student is None:
            with shapes_only():  # what the file says is checked before anything is allocated
                wanted = factory(info.image_shape, len(info.classes)).state_dict()
        else:
            wanted = make_student(student, info.image_shape, len(info.classes)).state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
        if info.recipe is not None and info.recipe.whitening is not None:
            implied = info.recipe.whitening.shapes(info.image_shape)
            shapes |= {f"{WHITENING}{name}": shape for name, (_, shape) in implied.items()}
        if {name: entry.shape for name, entry in file.entries.items()} != shapes:
            raise FormatError(f"The tensors of {path} are not those of {info.student}.")
        tensors = file.read()
    if info.recipe is not None and info.recipe.whitening is not None:
        whitening = Whitening.of(info.recipe, tensors)
        info = dataclasses.replace(info, whitening=whitening)
        tensors = {name: tensor for name, tensor in tensors.items() if name in wanted}
    network = make_student(factory, info.image_shape, len(info.classes))
    load_weights(network, tensors, str(path))
    return network.eval(), info
