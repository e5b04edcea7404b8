"""Levers: what can be done to a draw at deployment, without distilling again.

A classifier chooses among several candidates, the latents are narrowed or widened (both after GaFi: Lampis, Lomurno
and Matteucci 2023, arXiv 2305.10118), and a teacher's distribution replaces the label. A levered generator is a
generator: images stay a pure function of (seed, epoch, index), and whatever trains, scores or exports needs no branch.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimdata.errors import ArgumentError, NotFoundError, nearest
from dimdata.generators.base import Generator
from dimdata.spec import MAX_LATENT, Spec
from dimdata.students.store import StudentInfo, load_student

MAX_CANDIDATES = 256
MAX_SPREAD = 10.0
MAX_TEMPERATURE = 1000.0

_AT_ONCE = 1024  # candidates drawn and judged together, which bounds the memory of a large batch


class Teacher(nn.Module):
    """A trained student that judges images; always in `eval()` mode.

    Args:
        network: From normalised images `[B, C, H, W]` to logits `[B, K]`; copied.
        info: What it is; a training's `TrainResult.info`.

    Attributes:
        info: As given.
        digest: Eight hexadecimal digits that tell its weights from others.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, info: StudentInfo) -> None:
        super().__init__()
        self.info = info
        self.network = copy.deepcopy(network).cpu().to(memory_format=torch.channels_last).requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(info.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(info.std)[:, None, None], persistent=False)
        found = hashlib.blake2b(digest_size=4)
        for tensor in self.network.state_dict().values():
            found.update(tensor.detach().contiguous().numpy().tobytes())
        self.digest = found.hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load a student's file, as `dimdata train -o` writes it.

        Raises:
            NotFoundError: If there is no such file.
            FormatError: If it is damaged, or not of a student.
            ArgumentError: If its network is not known by name; load it with `load_student(path, student=...)`.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise NotFoundError(
                f"There is no teacher {str(path)!r:.200}.",
                "Train one on real images: dimdata train --real mnist -o teacher.safetensors",
            )
        return cls(*load_student(path))

    def train(self, mode: bool = True) -> Self:
        """Stay in `eval()` mode: a teacher's judgement must not depend on the batch."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits float32 `[B, K]` of images `[B, C, H, W]` in [0, 1]."""
        whitening = self.info.whitening
        images = (images - self.mean) / self.std if whitening is None else whitening(images)
        logits: Tensor = self.network(images.contiguous(memory_format=torch.channels_last))
        return logits.float()

    def require_fit(self, spec: Spec) -> None:
        """Raise `ArgumentError` unless it knows the generator's classes, in their order, and takes its images."""
        if self.info.image_shape != spec.image_shape:
            raise ArgumentError(
                f"The teacher takes images of shape {self.info.image_shape}; the generator draws {spec.image_shape}.",
                "Use a teacher that was trained on images of the same size.",
            )
        if self.info.classes != spec.classes:
            pairs = zip(self.info.classes, spec.classes, strict=False)
            where = next((f"{own!r:.40} where it has {wanted!r:.40}" for own, wanted in pairs if own != wanted), "")
            raise ArgumentError(
                f"The teacher knows {len(self.info.classes)} classes and the generator has {spec.num_classes}"
                + (f"; it knows {where}." if where else "."),
                "Use a teacher of the same classes in the same order.",
            )

    def describe(self) -> str:
        """Return what it is in a few words."""
        generator = self.info.generator
        # Files of old named a folder by its path, which is for nobody else to read.
        of = f" of {generator}" if generator and generator[0] not in "./~" else ""
        return f"{self.info.student}{of} ({self.digest})"


@dataclass(frozen=True, kw_only=True)
class Levers:
    """What to do to a draw; nothing by default, and all of it can be combined.

    Attributes:
        best_of: Candidates drawn for each image, of which the teacher's favourite for its label is taken: the one of
            the highest probability. A latent is as many times as long.
        keep: Take any of so many best candidates, each as likely, instead of the best: the worst are left out and
            what remains is as varied as it was.
        spread: What latents are multiplied by: under 1 images are more typical and less varied, over 1 the reverse.
        soft_labels: Whether targets are the teacher's distributions over the classes, float32 `[B, num_classes]`,
            instead of labels.
        temperature: What the teacher's logits are divided by for these; higher is softer.
        teacher: A file of `dimdata train -o`, or a `Teacher`; needed by `best_of` and `soft_labels`.

    Raises:
        ArgumentError: If a value is out of range, lacks the teacher, or would have no effect.
    """

    best_of: int = 1
    keep: int = 1
    spread: float = 1.0
    soft_labels: bool = False
    temperature: float = 1.0
    teacher: str | Path | Teacher | None = None

    def __post_init__(self) -> None:
        _whole("best_of", self.best_of, MAX_CANDIDATES)
        _whole("keep", self.keep, MAX_CANDIDATES)
        _positive("spread", self.spread, MAX_SPREAD)
        _positive("temperature", self.temperature, MAX_TEMPERATURE)
        if self.keep > 1 and self.keep >= self.best_of:
            raise ArgumentError(
                f"keep is {self.keep}, of {self.best_of} candidates.", "Keep fewer than best_of, such as 2 of 4."
            )
        if self.temperature != 1 and not self.soft_labels:
            raise ArgumentError("temperature is given without soft_labels.", "Ask for soft_labels, too.")
        if self.judged and self.teacher is None:
            what = "best_of" if self.best_of > 1 else "soft_labels"
            raise ArgumentError(
                f"{what} needs a teacher.",
                "Train one on real images (dimdata train --real mnist -o teacher.safetensors) and name its file.",
            )
        if self.teacher is not None and not self.judged:
            raise ArgumentError("A teacher is given, but nothing asks for it.", "Ask for best_of or soft_labels.")

    @property
    def judged(self) -> bool:
        """Whether a teacher looks at the images."""
        return self.best_of > 1 or self.soft_labels

    @classmethod
    def parse(cls, text: str, teacher: str | Path | Teacher | None = None) -> Self:
        """Read levers as the command line writes them, such as `best-of=4,spread=0.9,soft-labels`.

        Raises:
            ArgumentError: If a word is unknown, or a value is no number or out of range.
        """
        values: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            word, equals, value = part.partition("=")
            if word not in _WORDS:
                raise ArgumentError(f"There is no lever called {word!r:.40}.", nearest(word, _WORDS))
            kind = _WORDS[word]
            if bool(equals) != (kind is not bool):
                raise ArgumentError(f"The lever {part!r:.40} is not {_usage(word)}.", f"Write {_usage(word)}.")
            try:
                values[word.replace("-", "_")] = True if kind is bool else kind(value)
            except ValueError:
                raise ArgumentError(f"The lever {part!r:.40} has no number.", f"Write {_usage(word)}.") from None
        return cls(**values, teacher=teacher)

    def describe(self) -> str:
        """Return the levers as `parse` reads them; empty where nothing is done."""
        parts = []
        for word, kind in _WORDS.items():
            value = getattr(self, word.replace("-", "_"))
            if value != getattr(Levers, word.replace("-", "_")):
                parts.append(word if kind is bool else f"{word}={_shortest(value)}")
        return ",".join(parts)


_WORDS: dict[str, type] = {"best-of": int, "keep": int, "spread": float, "soft-labels": bool, "temperature": float}


def _usage(word: str) -> str:
    return word if _WORDS[word] is bool else f"{word}={'4' if _WORDS[word] is int else '0.9'}"


def _shortest(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _whole(name: str, value: Any, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ArgumentError(f"{name} is {value!r:.40}; it must be a whole number from 1 to {most}.")


def _positive(name: str, value: Any, most: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 < value <= most:
        raise ArgumentError(f"{name} is {value!r:.40}; it must be a number above 0, up to {most:g}.")


def apply(generator: Generator, levers: Levers) -> Generator:
    """Return a generator whose draws go through the levers; the one given is left as it is.

    Images stay pure in (seed, epoch, index): with `best_of` 1 they are those of the plain draw (for `spread` 1), and
    the candidates of `best_of` 4 are the first four of `best_of` 8. Images agree within 1e-5 as they do without
    levers, except where two candidates please the teacher equally up to rounding: then another device, precision or
    batch size may take the other one.

    Args:
        generator: What is drawn from; weights are shared.
        levers: What to do.

    Returns:
        A generator, or the same one if the levers do nothing. It draws, and is not stored: keep the plain one.

    Raises:
        ArgumentError: If `levers` are none, the teacher does not fit the generator, or a lever works on noise and
            images are stored.
        NotFoundError: If there is no file of the teacher.
        FormatError: If that file is damaged.
    """
    if not isinstance(levers, Levers):
        raise ArgumentError(
            f"levers is a {type(levers).__name__}, not Levers.", "Read a text with Levers.parse('best-of=4', teacher)."
        )
    if not levers.describe():
        return generator
    teacher = levers.teacher
    if teacher is not None and not isinstance(teacher, Teacher):
        teacher = Teacher.load(teacher)
    if teacher is not None and teacher.mean.device != generator.device:
        teacher = copy.deepcopy(teacher).to(generator.device)
    return LeveredGenerator(generator, levers, teacher)


class LeveredGenerator(Generator):
    """A generator whose draws go through levers; made by `apply`.

    Attributes:
        plain: The generator without the levers.
        teacher: What judges its images, if anything does.
    """

    kind = "levered"
    teacher: Teacher | None

    def __init__(self, plain: Generator, levers: Levers, teacher: Teacher | None) -> None:
        _require_noise(plain, levers)
        spec = plain.spec
        if teacher is not None:
            teacher.require_fit(spec)
        longer = {"levers": levers.describe(), "kind": spec.kind, "latent": spec.latent, "options": spec.options}
        spec = dataclasses.replace(
            spec,
            kind=self.kind,
            latent=_latent(spec.latent, levers),
            targets="soft" if levers.soft_labels else spec.targets,
            options=longer,
        )
        super().__init__(spec, plain.recipe, plain.recipe_tensors)
        self.plain, self.teacher, self._levers = plain, teacher, levers
        self.compiles = plain.compiles
        self.take_after(plain)

    def balanced(self, images: int) -> bool:
        """Return whether its first so many images are as many of each class, whatever the teacher says of them."""
        return self.plain.balanced(images)

    def _draw(self, latent: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        levers = self._levers
        size = self.plain.spec.latent
        noise = latent[:, : levers.best_of * size] * levers.spread
        if levers.best_of > 1:
            images, targets, logits = self._chosen(
                noise.reshape(len(index), levers.best_of, size), latent[:, -1], index
            )
        else:
            images, targets = self.plain.draw(noise, index)
            logits = self._judge(images) if levers.soft_labels else targets
        return images, F.softmax(logits / levers.temperature, dim=1) if levers.soft_labels else targets

    def _chosen(self, noise: Tensor, chance: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the image, target and logits of the candidate chosen for each index.

        Args:
            noise: Latents of the candidates, `[B, best_of, Z]`.
            chance: A standard normal value for each index, `[B]`: which of those kept is taken.
            index: int64 `[B]`.
        """
        drawn: list[tuple[Tensor, ...]] = []
        for part in torch.split(noise, max(1, _AT_ONCE // max(1, len(index))), dim=1):
            many = part.shape[1]
            images, targets = self.plain.draw(part.flatten(0, 1), index.repeat_interleave(many))
            found = (images, targets, self._judge(images))
            drawn.append(tuple(tensor.reshape(len(index), many, *tensor.shape[1:]) for tensor in found))
        images, targets, logits = (torch.cat(parts, dim=1) for parts in zip(*drawn, strict=True))
        ranked = _odds(logits, self.labels(index)).argsort(dim=1, descending=True, stable=True)
        keep = self._levers.keep
        rank = (torch.special.ndtr(chance) * keep).long().clamp_(max=keep - 1) if keep > 1 else torch.zeros_like(index)
        rows = torch.arange(len(index), device=index.device)
        choice = ranked[rows, rank]
        return images[rows, choice], targets[rows, choice], logits[rows, choice]

    def _judge(self, images: Tensor) -> Tensor:
        assert self.teacher is not None
        with torch.autocast(images.device.type, enabled=False):  # the choice must not hang on a loop's precision
            judged: Tensor = self.teacher(images)
        return judged

    def labels(self, index: Tensor) -> Tensor:
        """Return the labels that images are asked for, int64 `[B]`; a teacher's soft target may prefer another."""
        return self.plain.labels(index)

    @property
    def stages(self) -> int:
        """How many stages there are."""
        return self.plain.stages

    @property
    def levers(self) -> str:
        """What is done to the draw, and by whose judgement; see `Generator.levers`."""
        text = self._levers.describe()
        if self.teacher is not None:
            text += f" by {self.teacher.describe()}"
        return f"{self.plain.levers}; {text}" if self.plain.levers else text

    @property
    def candidates(self) -> int:
        """Images drawn for each one handed out."""
        return self._levers.best_of * self.plain.candidates

    def view(self, *, stage: int | None = None, draw: str = "fresh", alone: bool = False) -> Generator:
        """Return the levered view of the plain generator; see `Generator.view`."""
        seen = self.plain.view(stage=stage, draw=draw, alone=alone)
        return self if seen is self.plain else LeveredGenerator(seen, self._levers, self.teacher)

    def _sample_index(self, labels: Tensor, slot: Tensor) -> Tensor:
        return self.plain._sample_index(labels, slot)

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors that a draw needs: the generator's as they are stored, and the teacher's."""
        tensors = {f"plain.{name}": tensor for name, tensor in self.plain.stored().items()}
        if self.teacher is not None:
            tensors |= {f"teacher.{name}": tensor for name, tensor in self.teacher.state_dict().items()}
        return tensors


def _require_noise(generator: Generator, levers: Levers) -> None:
    """Refuse levers that work on noise where there is none."""
    if generator.spec.latent:
        return
    name = generator.name or "This generator"
    if levers.best_of > 1:
        raise ArgumentError(
            f"{name} stores its images, so that there is one candidate for each index.", "Leave best_of out."
        )
    if levers.spread != 1:
        raise ArgumentError(f"{name} stores its images; there is no noise to spread.", "Leave spread out.")


def _latent(size: int, levers: Levers) -> int:
    """Return the length of a latent: one for each candidate, and a value that chooses among those kept."""
    needed = size * levers.best_of + (levers.keep > 1)
    if needed > MAX_LATENT:
        most = (MAX_LATENT - 1) // size
        raise ArgumentError(
            f"{levers.best_of} candidates of {size} values each are over {MAX_LATENT:,}.", f"Use best_of up to {most}."
        )
    return needed


def _odds(logits: Tensor, label: Tensor) -> Tensor:
    """Return the log-odds `[B, n]` of labels int64 `[B]` in logits `[B, n, K]`.

    They order candidates as the log-probability does, but do not round to equal values where a teacher is certain.
    """
    at = label[:, None, None].expand(-1, logits.shape[1], 1)
    others = logits.scatter(2, at, -math.inf).logsumexp(2)
    return logits.gather(2, at)[:, :, 0] - others
