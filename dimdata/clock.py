"""Which epoch a read belongs to, told from the indices alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor

from dimdata import latents

MAX_MARKS = 2**20  # of 16 bits each: 2 MiB
MAX_EPOCH = 2**62

_HEAD = 12  # places of 16 bits before the marks: three numbers of 64

_PLACES = latents.fold(latents.stream("clock"))


class EpochClock:
    """The epoch of a dataset, in memory that worker processes share.

    No hook of a `DataLoader` marks a pass: persistent workers never touch the dataset between two of them. So each
    index is marked with the epoch it was last read at, and a read that holds an index already marked with this epoch
    opens the next one. Whole passes are then epochs 0, 1, 2 and on, whichever process reads which batch. All writes
    are idempotent (two workers that open an epoch write the same number), so there is no lock.

    Above 2^20 indices only one index of each block is marked, at a scrambled place, so that no stride misses them all;
    and the first index of the epoch is remembered, for parts in which none is marked.

    Forked, spawned and forkserver workers share the memory; a plain pickle or a deep copy is a clock of its own that
    goes on with the next epoch.

    Args:
        length: How many indices there are.
        memory: The memory of a clock of that length in another process, to share it.
    """

    def __init__(self, length: int, memory: Tensor | None = None) -> None:
        self.length = length
        self._block = -(-length // MAX_MARKS)
        if memory is None:
            marks = -(-length // self._block)
            with torch.inference_mode(False):  # or nothing could be written outside of it
                memory = torch.zeros(_HEAD + marks, dtype=torch.int16, device="cpu")
            memory[8:_HEAD].fill_(-1)
            memory.share_memory_()  # type: ignore[no-untyped-call]
        self._memory = memory
        with torch.inference_mode(False):
            self._epoch, self._base, self._first = torch.split(memory[:_HEAD].view(torch.int64), 1)
            self._marks = memory[_HEAD:]
        self._looks: dict[int, int] = {}

    @property
    def epoch(self) -> int:
        """The epoch of the pass under way."""
        return int(self._epoch.item())

    @property
    def next_epoch(self) -> int:
        """The epoch a new pass is: this one if nothing is marked with it, else the one after."""
        epoch = self.epoch
        begun = self._block > 1 and self._first.item() >= 0
        return epoch + bool(begun or (self._marks == _mark(epoch)).any())

    def read(self, index: Tensor) -> int:
        """Mark the indices int64 `[B]` of one batch as read, and return their epoch; an index may occur twice."""
        epoch = self.epoch
        places = self._places(index)
        again = bool((self._marks[places] == _mark(epoch)).any())
        if self._block > 1 and len(index):
            first = int(self._first.item())
            again = again or bool((index == first).any())
            if again or first < 0:
                self._first.fill_(int(index[0]))
        if again:
            epoch += 1
            if self.epoch < epoch:  # another process may be further already
                self._epoch.fill_(epoch)
        self._marks.index_fill_(0, places, _mark(epoch))
        return epoch

    def look(self, index: int) -> int:
        """Return the epoch of a single look at an index: the k-th look is k epochs on. The shared epoch stays."""
        looks = self._looks.get(index, 0)
        self._looks[index] = looks + 1
        return int(self._base.item()) + looks

    def set(self, epoch: int) -> None:
        """Make `epoch` that of the next pass and of the next look at every index, in all processes."""
        self._marks.zero_()
        self._first.fill_(-1)
        self._epoch.fill_(epoch)
        self._base.fill_(epoch)
        self._looks.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` reads: numbers only."""
        looks = {str(index): count for index, count in self._looks.items()}
        return {"epoch": self.next_epoch, "base": int(self._base.item()), "looks": looks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the epoch that followed when the state was taken."""
        self.set(int(state["epoch"]))
        self._base.fill_(int(state["base"]))
        self._looks = {int(index): int(count) for index, count in state["looks"].items()}

    def copy(self) -> EpochClock:
        """Return a clock of its own memory that goes on with the next epoch."""
        return _copy(self.length, self.state_dict())

    def _places(self, index: Tensor) -> Tensor:
        """Return where the marks of indices are, int64; fewer than indices where only one of a block is marked."""
        if self._block == 1:
            return index
        block = index // self._block
        return block[latents.integers(_PLACES, block, self._block) == index - block * self._block]

    def __reduce__(self) -> tuple[Callable[..., EpochClock], tuple[int, dict[str, Any]]]:
        return _copy, (self.length, self.state_dict())


def _mark(epoch: int) -> int:
    """The mark of an epoch: 16 bits as an int16, never 0, which means unread."""
    mark = epoch % 65535 + 1
    return mark - 65536 if mark > 32767 else mark


def _copy(length: int, state: dict[str, Any]) -> EpochClock:
    clock = EpochClock(length)
    clock.load_state_dict(state)
    return clock


def _share(clock: EpochClock) -> tuple[type[EpochClock], tuple[int, Tensor]]:
    return EpochClock, (clock.length, clock._memory)


# What multiprocessing hands to a child is attached to the same memory; any other pickle is a copy.
ForkingPickler.register(EpochClock, _share)
