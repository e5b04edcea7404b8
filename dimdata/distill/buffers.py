"""Expert trajectories: how a network's weights move while it is trained on real images, one file a network.

A buffer is a folder: `buffer.json` says what it is of, `expert-0000.safetensors` and on hold one training each, the
weights at its start and after each epoch, as flat vectors. A file is there whole or not at all, so a buffer that was
cut short goes on with the next expert; what a killed process left half written is removed when the next one is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from dimdata import latents
from dimdata.engine import Engine
from dimdata.errors import FormatError, WorldError
from dimdata.files import free_bytes, locked, require_writable, world_error, write_atomic
from dimdata.real import Split
from dimdata.report import size
from dimdata.spec import Record, canonical_json, require
from dimdata.students.augment import parse
from dimdata.students.source import NetworkSource

log = logging.getLogger("dimdata")

_ORDER = latents.stream("expert.order")
_AUGMENT = latents.stream("expert.augment")

STALE_SECONDS = 3600.0  # a file half written that nobody touched for so long is of a process that is dead


@dataclass(frozen=True, kw_only=True)
class BufferInfo(Record):
    """What a buffer is of; another one is refused.

    Attributes:
        student: The network.
        images: Digest of the training images and labels, and of what normalises them.
        before: Digest of the generator that the networks had been trained on before; empty = untrained ones.
        epochs: Passes of each expert over the training images.
        batch_size: Images a step.
        lr: Learning rate.
        momentum: Of SGD.
        seed: Of starting weights and order.
        parameters: Weights of the network.
        augment: Augmentation of the images.
        dialect: Of the augmentation.
        zca: What the whitening of the images adds to each variance; 0 = they are not whitened.
        code: Digest of what is known of a network of the user's own; empty for one with a name.
        precision: What the experts are trained in; empty where nobody knows.
    """

    student: str
    images: str
    before: str = ""
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    seed: int
    parameters: int
    augment: str = ""
    dialect: Literal["one", "each", "idc"] = "one"
    zca: float = 0.0
    code: str = ""
    precision: Literal["", "fp32", "bf16"] = ""

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads; what is not done is left out, as in buffers from before it could be."""
        data = super().to_json()
        left_out = [*([] if self.augment else ["augment", "dialect"])]
        left_out += [name for name in ("zca", "code", "precision") if not data[name]]
        return {name: value for name, value in data.items() if name not in left_out}

    @classmethod
    def label(cls) -> str:
        """The name of this record in messages."""
        return "buffer"

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        require(self.epochs >= 1, f"buffer.epochs is {self.epochs}; 1 or more is needed.")

    @property
    def bytes(self) -> int:
        """Bytes of one expert."""
        return (self.epochs + 1) * self.parameters * 4

    def digest(self) -> str:
        """Return 64 bits of a hash, to name a folder by."""
        return hashlib.blake2b(canonical_json(self.to_json()).encode(), digest_size=8).hexdigest()


def flatten(network: nn.Module) -> Tensor:
    """Return the weights of a network as one float32 vector."""
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def named(network: nn.Module, flat: Tensor) -> dict[str, Tensor]:
    """Return a vector of weights as named tensors of a network's shapes; gradients flow back into the vector."""
    shapes = {name: weight.shape for name, weight in network.named_parameters()}
    parts = torch.split(flat, [shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


class Buffer:
    """The experts of a folder; they are trained when first asked for.

    Args:
        folder: Where they are, or are to be.
        info: What they must be.
        count: How many there are to be.

    Raises:
        FormatError: If the folder holds the buffer of another network, dataset or setting.
        WorldError: If experts are missing, and the folder cannot be written to or the disk has no room for them.
    """

    def __init__(self, folder: Path, info: BufferInfo, count: int) -> None:
        self.folder, self.info, self.count = folder, info, count
        self.check_identity()
        missing = sum(not self.path(number).is_file() for number in range(count))
        self.missing_bytes = missing * info.bytes
        if missing:
            require_writable(folder)
        self.check_room(self.missing_bytes)
        if missing:
            log.warning(
                "%d expert trajectories of %s will take %s in %s.",
                missing,
                info.student,
                size(self.missing_bytes),
                folder,
            )

    def path(self, number: int) -> Path:
        """Return where an expert lies."""
        return self.folder / f"expert-{number:04d}.safetensors"

    def check_identity(self) -> None:
        """Refuse the experts of another training, whoever has put them there and when.

        Raises:
            FormatError: If they are, or nothing says what they are.
        """
        path = self.folder / "buffer.json"
        if not path.is_file():
            if any(self.folder.glob("expert-*.safetensors")):
                raise FormatError(
                    f"The expert buffer {self.folder} lacks {path.name}, which says what its experts are.",
                    "Delete the folder, or name another for the experts.",
                )
            return
        try:
            there = BufferInfo.from_json(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise world_error(error, f"Reading {path}") from error
        except ValueError as error:
            reason = str(error).rstrip(".")
            raise FormatError(
                f"{path} cannot be read: {reason:.120}.", "Delete the folder, or name another for the experts."
            ) from None
        ours, theirs = self.info.to_json(), there.to_json()
        changed = [
            f"{name} is {theirs.get(name)!r:.40}, not {ours.get(name)!r:.40}"
            for name in {**ours, **theirs}
            if ours.get(name) != theirs.get(name)
        ]
        if changed:
            raise FormatError(
                f"The expert buffer {self.folder} is of another training: {'; '.join(changed[:4])}.",
                "Name another folder, or leave it out.",
            )

    def check_room(self, needed: int) -> None:
        """Refuse a disk that has less room than so many bytes.

        Raises:
            WorldError: If it has.
        """
        free = free_bytes(self.folder)
        if free < needed:
            raise WorldError(
                f"The expert trajectories need {size(needed)}, and {self.folder} has {size(free)} free.",
                "Use fewer experts or epochs, or another folder.",
            )

    def _remove_stale(self) -> None:
        """Remove what killed processes left half written; other runs may be writing to the folder now."""
        before = time.time() - STALE_SECONDS
        for path in (*self.folder.glob(".expert-*.part"), *self.folder.glob(".buffer.json.*.part")):
            with contextlib.suppress(OSError):  # gone already, or not ours to remove
                if path.stat().st_mtime < before:
                    path.unlink()

    def write(self, number: int, trajectory: list[Tensor]) -> None:
        """Keep an expert's weights at its start and after each epoch.

        Raises:
            WorldError: If the disk is full; what was there before stays, and so do the other experts.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise world_error(error, f"Making the folder {self.folder}") from error
        self._remove_stale()
        self._claim()
        write_atomic(
            self.path(number), save({f"{k:04d}": flat.cpu().contiguous() for k, flat in enumerate(trajectory)})
        )

    def _claim(self) -> None:
        """Say what the buffer is of, unless another run has said so since."""
        path, lock = self.folder / "buffer.json", locked(self.folder / ".buffer.lock")
        try:
            if not path.is_file():
                write_atomic(path, json.dumps(self.info.to_json(), indent=1).encode() + b"\n")
        finally:
            lock.release()
        self.check_identity()

    def weights(self, number: int, *epochs: int) -> list[Tensor]:
        """Return the weights of an expert after each of some epochs, float32 `[parameters]` on the CPU.

        Raises:
            FormatError: If the file is damaged or of another network.
        """
        path = self.path(number)
        try:
            with safe_open(path, "pt") as file:
                found = [file.get_tensor(f"{epoch:04d}") for epoch in epochs]
        except (SafetensorError, OSError) as error:
            reason = str(error).splitlines()[0][:120]
            raise FormatError(f"{path} cannot be read: {reason}.", "Delete it; it is trained anew.") from None
        for flat in found:
            if flat.shape != (self.info.parameters,) or flat.dtype != torch.float32:
                raise FormatError(f"{path} is of another network.", "Delete it; it is trained anew.")
            if not bool(flat.isfinite().all()):
                raise FormatError(f"{path} holds weights that are not finite.", "Delete it; it is trained anew.")
        return found


class Expert:
    """A network on its way through real images: SGD, with data and order on the device.

    Args:
        info: How it is trained.
        split: The real images.
        normalize: From images float32 `[B, C, H, W]` in [0, 1] to what the network sees.
        source: Where the networks come from.
        engine: Device and precision.
    """

    def __init__(
        self,
        info: BufferInfo,
        split: Split,
        normalize: Callable[[Tensor], Tensor],
        source: NetworkSource,
        engine: Engine,
    ) -> None:
        self.info, self.source, self.engine = info, source, engine
        self.images, self.labels = split.images.to(engine.device), split.labels.to(engine.device)
        self.normalize, self.augment = normalize, parse(info.augment, info.dialect)
        self.network = engine.place(source.network(0)).train()
        self._loss = engine.compile(self._loss_)
        self.begin(0)

    def begin(self, number: int) -> None:
        """Take up expert `number`, at its start."""
        self.number = number
        self.network.load_state_dict(self.source.network(number).state_dict())
        info = self.info
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=info.lr, momentum=info.momentum, fused=True)
        self.trajectory = [flatten(self.network)]

    def _loss_(self, images: Tensor, labels: Tensor) -> Tensor:
        with self.engine.autocast():
            logits: Tensor = self.network(images.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), labels)

    def epoch(self) -> Tensor:
        """Take one pass over the images; return the loss of its last step."""
        loss = torch.zeros(())
        for turn, rows in enumerate(self._batches()):
            loss = self._step(rows, turn)
        self.trajectory.append(flatten(self.network))
        return loss

    def part(self, steps: int) -> tuple[Tensor, float]:
        """Take the first steps of a pass, to see how long they take; the expert is of no use afterwards.

        Returns:
            The loss of the last one, and which share of a pass they are.
        """
        batches = self._batches()
        loss = torch.zeros(())
        for turn, rows in enumerate(batches[:steps]):
            loss = self._step(rows, turn)
        return loss, min(steps, len(batches)) / len(batches)

    def _batches(self) -> tuple[Tensor, ...]:
        """Return the rows of each step of the pass that is next."""
        key = latents.fold(_ORDER, self.info.seed, self.number, len(self.trajectory))
        order = latents.permutation(key, len(self.labels)).to(self.engine.device)
        return torch.split(order, self.info.batch_size)

    def _step(self, rows: Tensor, turn: int) -> Tensor:
        key = latents.fold(_AUGMENT, self.info.seed, self.number, len(self.trajectory), turn)
        images = self.augment(self.normalize(self.images[rows].to(torch.float32) / 255), key)
        plain = len(rows) < self.info.batch_size  # a last, smaller batch is not worth compiling
        loss = (self._loss_ if plain else self._loss)(images, self.labels[rows])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    @property
    def done(self) -> bool:
        """Whether all epochs are taken."""
        return len(self.trajectory) > self.info.epochs

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is needed to go on from here."""
        state = {"number": torch.tensor([self.number])}
        state |= {f"trajectory.{k:04d}": flat for k, flat in enumerate(self.trajectory)}
        moments = self.optimizer.state_dict()["state"]
        for number, values in moments.items():
            if values.get("momentum_buffer") is not None:
                state[f"momentum.{number}"] = values["momentum_buffer"]
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.begin(int(state["number"]))
        names = sorted(name for name in state if name.startswith("trajectory."))
        self.trajectory = [state[name].clone() for name in names]
        with torch.no_grad():
            for name, value in named(self.network, self.trajectory[-1]).items():
                self.network.get_parameter(name).copy_(value)
        weights = list(self.network.parameters())
        for number, weight in enumerate(weights):
            if f"momentum.{number}" in state:
                moment = torch.empty_like(weight).copy_(state[f"momentum.{number}"])
                self.optimizer.state[weight]["momentum_buffer"] = moment
