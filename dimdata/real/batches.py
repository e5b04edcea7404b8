"""Balanced batches of real images on the device, as pure functions of (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dimdata.errors import ArgumentError, DataError
from dimdata.latents import fold, permutation, stream
from dimdata.real.data import Split

_BATCHES = stream("real.batches")


class _Walk:
    """Every class walked through in shuffled passes: the slot-th image of a class, for any slot, without a history.

    Pass p over the n images of a class has an order of its own, a pure function of (key, class, p), and slot s is the
    image at s mod n of pass s div n. The orders of the passes in use are kept in one ring of rows for each class, long
    enough for `most` consecutive slots, so that looking images up is one gather.
    """

    def __init__(self, members: Sequence[Tensor], key: int, most: int) -> None:
        self.most = most
        self._members = members
        self._key = key
        self._counts = torch.tensor([len(rows) for rows in members], device="cpu")
        self._turns = (most + self._counts - 2).div(self._counts, rounding_mode="floor") + 1
        self._length = self._turns * self._counts
        self._start = self._length.cumsum(0) - self._length
        self._ring = torch.empty(int(self._length.sum()), dtype=torch.int64, device="cpu")
        self._held: dict[tuple[int, int], int] = {}
        self._span: tuple[Tensor, Tensor] | None = None

    def rows(self, label: Tensor, slot: Tensor, low: int, high: int) -> Tensor:
        """Return rows int64 `[B]` of labels and slots int64 `[B]`; slots lie in `low` to `high`, at most `most`."""
        self._fill(low, high)
        return self._ring[self._start[label] + slot % self._length[label]]

    def _fill(self, low: int, high: int) -> None:
        """Shuffle the passes that the slots `low` to `high` lie in, unless they are held."""
        span = (torch.full_like(self._counts, low) // self._counts, high // self._counts)
        if self._span and torch.equal(span[0], self._span[0]) and torch.equal(span[1], self._span[1]):
            return
        per_class = (t.tolist() for t in (*span, self._turns, self._start))
        for label, (first, last, turns, start) in enumerate(zip(*per_class, strict=True)):
            rows = self._members[label]
            for turn in range(first, last + 1):
                place = turn % turns
                if self._held.get((label, place)) != turn:
                    begin = start + place * len(rows)
                    order = permutation(fold(self._key, label, turn), len(rows))
                    self._ring[begin : begin + len(rows)] = rows[order]
                    self._held[label, place] = turn
        self._span = span


class Batches:
    """Class-balanced batches of real images, kept on the device as uint8.

    A batch is a pure function of (seed, step): nothing is stored between steps but a cache, so a run resumes at any
    step and several ranks agree without talking.

    Args:
        split: The images; every class must have one.
        device: Where they are kept and returned.
        seed: Equal seeds give equal batches.
        batch_size: Images a batch, B.

    Raises:
        ArgumentError: If `batch_size` is not positive.
        DataError: If a class has no image.
    """

    def __init__(self, split: Split, device: torch.device | str, seed: int, batch_size: int) -> None:
        if batch_size < 1:
            raise ArgumentError(f"The batch size is {batch_size}.", "Choose 1 or more.")
        counts = split.counts.cpu()
        if not bool((counts > 0).all()):
            raise DataError(f"Class {int(counts.argmin())} has no image to make batches of.", "Add images of it.")
        self.batch_size = batch_size
        self.num_classes = split.num_classes
        self.images = split.images.to(device)
        self.labels = split.labels.to(device)
        self._seed = seed
        self._members = torch.split(split.labels.cpu().argsort(stable=True), counts.tolist())
        self._walks: dict[str | None, _Walk] = {}

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Return batch `step`.

        Labels run on from batch to batch through all classes in turn, and every image of a class is seen once before
        any is seen again.

        Returns:
            Images float32 `[B, C, H, W]` in [0, 1] and labels int64 `[B]`, on the device.
        """
        begin, n = step * self.batch_size, self.num_classes
        place = torch.arange(begin, begin + self.batch_size, device="cpu")
        low, high = begin // n, (begin + self.batch_size - 1) // n
        return self._gather(self._walk(None, high - low + 1).rows(place % n, place // n, low, high))

    def labels_at(self, step: int) -> Tensor:
        """Return the labels int64 `[B]` of batch `step` on the CPU, without waiting for the device."""
        begin = step * self.batch_size
        return torch.arange(begin, begin + self.batch_size, device="cpu") % self.num_classes

    def matched(self, labels: Tensor, step: int, stream: str) -> tuple[Tensor, Tensor]:
        """Return other images with exactly the given labels, for terms that pair real images by label.

        They do not depend on `at`, nor on the other streams. While the labels are balanced, images of a class do not
        repeat within a pass over it; within a batch they repeat only where a class is smaller than its share.

        Args:
            labels: int64 `[M]`, any classes in any order; best on the CPU (`labels_at`).
            step: The step.
            stream: Equal streams, steps and labels give equal images.

        Returns:
            Images float32 `[M, C, H, W]` in [0, 1] and the labels int64 `[M]`, on the device.
        """
        label = labels.cpu()
        counts = torch.bincount(label, minlength=self.num_classes)
        order = torch.argsort(label, stable=True)
        slot = torch.empty_like(label)
        slot[order] = torch.arange(len(label), device="cpu") - (counts.cumsum(0) - counts)[label[order]]
        most = int(counts.max())
        low = step * -(-len(label) // self.num_classes)
        return self._gather(self._walk(stream, most).rows(label, low + slot, low, low + most - 1))

    def _walk(self, name: str | None, most: int) -> _Walk:
        walk = self._walks.get(name)
        if walk is None or walk.most < most:
            key = fold(_BATCHES, self._seed, *((stream(name),) if name is not None else ()))
            self._walks[name] = walk = _Walk(self._members, key, most)
        return walk

    def _gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.to(self.images.device, non_blocking=True)
        return self.images[rows].to(torch.float32).div_(255), self.labels[rows]
