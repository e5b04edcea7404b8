"""MTT (Cazenavette et al., CVPR 2022): trajectory matching.

Phase 1 (`experts`) trains networks on real images and keeps their weights after each epoch. In phase 2 (`match`) a
student takes a place of a random expert's way, is trained a few steps on the learned images, and should arrive where
the expert was `expert_epochs` later. The student's step size is learned with the images, and becomes the learning rate
of the generator's recipe. (Progressive distillation gives the experts starts that were trained on the stages before.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from dimdata import latents
from dimdata.distill.buffers import Buffer, BufferInfo, Expert, flatten, named
from dimdata.distill.method import METHODS, Earlier, Losses, Phase
from dimdata.distill.state import pack_optimizer, unpack_optimizer
from dimdata.distill.tables import TableConfig, TableMethod
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, RunError
from dimdata.files import require_writable
from dimdata.real import RealData, Split
from dimdata.recipe import Recipe
from dimdata.spec import Record, canonical_json, require
from dimdata.students.own import identity, user_student

PART = 2  # steps of an expert, or of a student that is recomputed, that an estimate takes at a time

_STARTS = latents.stream("mtt.starts")
_ORDER = latents.stream("mtt.order")


def _distance(flat: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """Return how far weights are from where an expert went, as a share of its way (Cazenavette et al., equation 1)."""
    return (flat - target).square().sum() / (start - target).square().sum()


@dataclass(frozen=True, kw_only=True)
class MttConfig(TableConfig):
    """How MTT is run; the other settings are those of every table.

    Attributes:
        lr: Learning rate of the images, in normalised units.
        experts: Networks trained on real images.
        epochs: Passes of each; 0 = as many as are matched, `max_start - 1 + expert_epochs`.
        expert_lr: Their learning rate.
        expert_momentum: Of their SGD.
        expert_batch: Images a step of theirs.
        expert_augment: Augmentation of their images, in the dialect of `augment`.
        augment: Augmentation of learned images, with values of its own for each image.
        union: As in every table, but on unless it is turned off, as published.
        buffer: Folder of the trajectories, shared by runs that need the same; empty = one in the cache
            (`DIMDATA_BUFFERS`, or `~/.cache/dimdata/buffers`).
        max_start: A student starts after fewer than so many epochs of an expert's way; 0 = at its start, as 1.
        expert_epochs: Epochs that it is to catch up with.
        learned_steps: Steps it has on learned images.
        learned_batch: Images a step, in shuffled turn; 0 = as many as are learned: all of them, but for `union`.
        step_size: The student's step size at first.
        step_size_lr: Learning rate of the step size.
        recompute: Whether the student's steps are taken once more on the way back, one at a time, instead of being kept
            all at once: the memory of one step, whatever `learned_steps`, for about a third more time.
        expert_seed: Of the experts' starts and order; runs of other seeds share the experts.
    """

    union: bool = True
    lr: float = 1000.0
    experts: int = 20
    epochs: int = 0
    expert_lr: float = 0.01
    expert_momentum: float = 0.0
    expert_batch: int = 256
    expert_augment: str = ""
    buffer: str = ""
    max_start: int = 5
    expert_epochs: int = 2
    learned_steps: int = 50
    learned_batch: int = 0
    step_size: float = 0.01
    step_size_lr: float = 1e-5
    recompute: bool = False
    expert_seed: int = 0

    def check(self) -> None:
        """Refuse values out of range; see `Record.check`."""
        super().check()
        for name in ("experts", "expert_batch", "expert_epochs", "learned_steps"):
            require(getattr(self, name) >= 1, f"config.{name} is {getattr(self, name)}; 1 or more is needed.")
        for name in ("max_start", "learned_batch"):
            require(getattr(self, name) >= 0, f"config.{name} is {getattr(self, name)}; 0 or more is needed.")
        for name in ("expert_lr", "step_size", "step_size_lr"):
            require(getattr(self, name) > 0, f"config.{name} is {getattr(self, name)}; it must be positive.")
        momentum = self.expert_momentum
        require(0 <= momentum < 1, f"config.expert_momentum is {momentum}; it must be in [0, 1).")
        need = self.starts() - 1 + self.expert_epochs
        enough = self.epochs == 0 or self.epochs >= need
        require(enough, f"config.epochs is {self.epochs}; max_start and expert_epochs need {need}.")

    def starts(self) -> int:
        """Return how many places of an expert's way a student may start at."""
        return max(1, self.max_start)

    def passes(self) -> int:
        """Return the passes of an expert."""
        return self.epochs or self.starts() - 1 + self.expert_epochs


def _images_digest(split: Split, *normalised: tuple[float, ...]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for tensor in (split.images, split.labels):
        found.update(tensor.cpu().contiguous().numpy().data)
    found.update(canonical_json(normalised).encode())
    return found.hexdigest()


def _code(student: str, real: RealData) -> str:
    """Return a digest of what is known of a network of the user's own; none of one with a name."""
    factory = user_student(student)
    if isinstance(factory, str):
        return ""
    text = canonical_json(identity(factory, real.image_shape, real.num_classes))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@METHODS.register("mtt")
class MTT(TableMethod):
    """Trajectory matching; see the module's docstring."""

    Config = MttConfig
    name = "mtt"
    config: MttConfig

    def __init__(
        self,
        config: MttConfig,
        real: RealData,
        engine: Engine,
        seed: int,
        steps: int,
        earlier: Earlier | None = None,
    ) -> None:
        super().__init__(config, real, engine, seed, steps, earlier)
        least = config.experts * config.passes()
        if steps <= least:
            raise ArgumentError(
                f"{steps} steps are too few: {config.experts} experts take {least}, one for each epoch.",
                "Ask for more steps, or fewer experts.",
            )
        self.source = self.networks(config.student, config.expert_seed)
        self.network: nn.Module = engine.place(self.source.network(0)).train().requires_grad_(False)
        if any(True for _ in self.network.buffers()):
            raise ArgumentError(
                f"{config.student} keeps statistics beside its weights, which trajectories do not hold.",
                "Use a network with instance norm, such as convnet3.",
            )
        if any(isinstance(layer, _DropoutNd) and layer.p > 0 for layer in self.network.modules()):
            raise ArgumentError(
                f"{config.student} has dropout, by which a student's steps are more than a function of its weights.",
                "Use a network without, such as convnet3.",
            )
        info = BufferInfo(
            student=config.student,
            images=_images_digest(real.train, *(() if config.zca else (real.mean, real.std))),
            before=earlier.key if earlier else "",
            epochs=config.passes(),
            batch_size=config.expert_batch,
            lr=config.expert_lr,
            momentum=config.expert_momentum,
            seed=latents.fold(latents.stream("mtt.experts"), config.expert_seed),
            parameters=len(flatten(self.network)),
            augment=config.expert_augment,
            dialect=config.dialect,
            zca=config.zca,
            code=_code(config.student, real),
            precision="bf16" if engine.bf16 else "fp32",
        )
        self.buffer = Buffer(self._folder(info), info, config.experts)
        self.expert: Expert | None = None
        self.step_size = nn.Parameter(torch.tensor(config.step_size, device=engine.device))
        self.step_size_optimizer = torch.optim.SGD([self.step_size], lr=config.step_size_lr, momentum=0.5)

    def _folder(self, info: BufferInfo) -> Path:
        if self.config.buffer:
            folder = Path(self.config.buffer).expanduser()
            return folder / info.digest() if self.earlier else folder  # every stage has experts of its own
        cache = os.environ.get("DIMDATA_BUFFERS") or "~/.cache/dimdata/buffers"
        return Path(cache).expanduser() / info.digest()

    @classmethod
    def default_steps(cls, config: Record) -> int:
        """Return the configured number of matching steps, and those of the experts."""
        assert isinstance(config, MttConfig)
        return config.default_steps + config.experts * config.passes()

    def phases(self) -> tuple[Phase, ...]:
        """Return the experts, one epoch a step, and the matching."""
        passes = self.config.passes()
        experts = self.config.experts * passes
        ready = sum(self.buffer.path(number).is_file() for number in range(self.config.experts)) * passes
        images = len(self.real.train)
        return (
            Phase("experts", experts, self._expert_step, images, part=self._expert_part, ready=ready, fixed=True),
            Phase("match", self._matches(), self._match_step, 0, part=self._match_part),
        )

    def _matches(self) -> int:
        """Return the steps that move the images."""
        return max(1, self.steps - self.config.experts * self.config.passes())

    def disk(self, anew: bool = False) -> int:
        """Return the bytes of the trajectories that are missing, or of all; see `Method.disk`."""
        return self.config.experts * self.buffer.info.bytes if anew else self.buffer.missing_bytes

    def check_room(self, needed: int) -> None:
        """Refuse a disk without room for the trajectories; see `Method.check_room`."""
        self.buffer.check_room(needed)
        if needed:
            require_writable(self.buffer.folder)

    def checkpoint_bytes(self, anew: bool = False) -> int:
        """Return the bytes of the largest checkpoint: one with an expert about to be finished, if any is missing."""
        state = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("expert.")}
        held = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        momenta = self.buffer.info.parameters * 4 if self.config.expert_momentum else 0
        return held + (self.buffer.info.bytes + momenta if self.disk(anew) else 0)

    # --- experts ------------------------------------------------------------------------------------------------

    def _expert_step(self, step: int) -> Losses:
        """Take one epoch of an expert, unless the buffer has it."""
        number = step // self.config.passes()
        if self.buffer.path(number).is_file():
            self.buffer.check_identity()  # another run may have put it there since this one began
            return {"expert": torch.zeros(())}
        return {"expert": self._advance(number)}

    def _new_expert(self) -> Expert:
        return Expert(self.buffer.info, self.real.train, self.normalize, self.source, self.engine)

    def _expert_part(self) -> tuple[Losses, float]:
        """Take a few steps of an expert, which is not kept."""
        if self.expert is None:
            self.expert = self._new_expert()
        loss, share = self.expert.part(PART)
        return {"expert": loss}, share

    def _advance(self, number: int) -> Tensor:
        if self.expert is None:
            self.expert = self._new_expert()
        if self.expert.number != number or self.expert.done:
            self.expert.begin(number)
        loss = self.expert.epoch()
        if not bool(self.expert.trajectory[-1].isfinite().all()):  # a buffer is shared, and would keep it
            epoch = len(self.expert.trajectory) - 1
            self.expert = None
            raise RunError(
                f"The weights of expert {number} are not finite after epoch {epoch}.",
                "Begin another run (--out DIR) with a lower learning rate of experts (--set expert_lr=..., or "
                "settings.expert_lr over pdd).",
            )
        if self.expert.done:
            self.buffer.write(number, self.expert.trajectory)
        return loss

    def _weights(self, number: int, *epochs: int) -> list[Tensor]:
        """Return weights of an expert, which is trained if it is missing."""
        while not self.buffer.path(number).is_file():
            self._advance(number)
        return [flat.to(self.engine.device) for flat in self.buffer.weights(number, *epochs)]

    # --- matching -----------------------------------------------------------------------------------------------

    def _turns(self, step: int) -> list[Tensor]:
        """Return the rows of each of the student's steps, shuffled pass by pass; those before follow the table's."""
        rows, count = len(self.table) + len(self.before), self.config.learned_batch or len(self.table)
        turns: list[Tensor] = []
        turn = 0
        while len(turns) < self.config.learned_steps:
            order = latents.permutation(latents.fold(_ORDER, self.seed, step, turn), rows)
            turns += torch.split(order.to(self.engine.device), count)
            turn += 1
        return turns[: self.config.learned_steps]

    def _loss(self, flat: Tensor, seen: Tensor, rows: Tensor, key: int) -> Tensor:
        images = self.augment(seen[rows], key).contiguous(memory_format=torch.channels_last)
        with self.engine.autocast():
            logits: Tensor = functional_call(self.network, named(self.network, flat), (images,))
        return F.cross_entropy(logits.float(), rows % self.real.num_classes)

    def _match_step(self, step: int) -> Losses:
        config = self.config
        key = latents.fold(_STARTS, self.seed)
        draw = torch.tensor([2 * step, 2 * step + 1])
        number = int(latents.integers(key, draw[:1], config.experts))
        begin = int(latents.integers(key, draw[1:], config.starts()))
        start, target = self._weights(number, begin, begin + config.expert_epochs)
        return self._match(step, start, target, 1 - step / self._matches())

    def _match_part(self) -> tuple[Losses, float]:
        """Take a step along a way that no expert went, which takes as long and needs no expert.

        What is recomputed takes as much memory in a few of its student's steps, so that they are enough.
        """
        start = flatten(self.source.network(0)).to(self.engine.device)
        turns = self._turns(0)[: PART if self.config.recompute else None]
        return self._match(0, start, 0.9 * start, 1.0, turns), len(turns) / self.config.learned_steps

    def _match(
        self, step: int, start: Tensor, target: Tensor, left: float, turns: Sequence[Tensor] | None = None
    ) -> Losses:
        turns = self._turns(step) if turns is None else turns
        way = self._recomputed if self.config.recompute else self._kept
        self.step_size_optimizer.zero_grad(set_to_none=True)
        loss, to_descend = way(step, start, target, turns)
        self.apply(to_descend, left)
        self.step_size_optimizer.step()
        with torch.no_grad():
            self.step_size.clamp_(min=1e-6)
        return {"match": loss.detach(), "step_size": self.step_size.detach()}

    def _student_step(self, flat: Tensor, step: int, turn: int, rows: Tensor, keep: bool) -> Tensor:
        """Return a student's weights after a step; `keep` says whether a gradient can be taken through it."""
        augment = latents.fold(latents.stream("mtt.augment"), self.seed, step, turn)
        seen = torch.cat([self.table, self.before])
        (slope,) = torch.autograd.grad(self._loss(flat, seen, rows, augment), flat, create_graph=keep)
        return flat - self.step_size * slope

    def _kept(self, step: int, start: Tensor, target: Tensor, turns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the loss at the end of a student's way, twice: as what it is and as what to descend."""
        flat = start.clone().requires_grad_()
        for turn, rows in enumerate(turns):
            flat = self._student_step(flat, step, turn, rows, keep=True)
        loss = _distance(flat, start, target)
        return loss, loss

    def _recomputed(self, step: int, start: Tensor, target: Tensor, turns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the loss, and something of the same slopes by images and step size, in the memory of one step."""
        way = [start]
        for turn, rows in enumerate(turns):
            flat = way[-1].detach().requires_grad_()
            way.append(self._student_step(flat, step, turn, rows, keep=False).detach())
        end = way.pop().requires_grad_()
        loss = _distance(end, start, target)
        (slope,) = torch.autograd.grad(loss, end)
        learned = (self.table, self.step_size)
        slopes = [torch.zeros_like(each) for each in learned]
        for turn in reversed(range(len(turns))):
            flat = way[turn].detach().requires_grad_()
            after = self._student_step(flat, step, turn, turns[turn], keep=True)
            slope, *of_learned = torch.autograd.grad(after, (flat, *learned), slope)
            for total, more in zip(slopes, of_learned, strict=True):
                total += more
        pairs = zip(learned, slopes, strict=True)
        return loss, torch.stack([(each * slope).sum() for each, slope in pairs]).sum()

    def recipe(self) -> Recipe:
        """Return the configured recipe at the learned step size."""
        rate = float(self.step_size.detach())
        legs = tuple(dataclasses.replace(leg, lr=rate) for leg in self.config.recipe.legs)
        return dataclasses.replace(self.config.recipe, legs=legs)

    def state_dict(self) -> dict[str, Tensor]:
        """Return images, step size, and the expert under way."""
        state = super().state_dict() | {"step_size": self.step_size.detach().view(1)}
        state |= pack_optimizer("step_size_sgd", self.step_size_optimizer)
        if self.expert is not None and not self.expert.done:
            state |= {f"expert.{name}": tensor for name, tensor in self.expert.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        with torch.no_grad():
            self.step_size.copy_(state["step_size"][0])
        unpack_optimizer("step_size_sgd", self.step_size_optimizer, state)
        held = {name.removeprefix("expert."): t for name, t in state.items() if name.startswith("expert.")}
        self.expert = None
        if held:
            self.expert = self._new_expert()
            self.expert.load_state_dict(held)
