"""Which real images are easy: those a network never forgets once it has learned them (Toneva et al., ICLR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dimdata import latents
from dimdata.engine import Engine
from dimdata.real import RealData, Split
from dimdata.students import make_student

_ORDER = latents.stream("forgetting.order")
_TIES = latents.stream("forgetting.ties")
_DROPOUT = latents.stream("forgetting.dropout")
_BATCH = 128


def forgetting_counts(real: RealData, student: str, epochs: int, engine: Engine, seed: int) -> Tensor:
    """Train a network on the training images and count how often each is forgotten.

    An image is forgotten when it is classified wrongly in an epoch after one in which it was classified rightly; as in
    the paper, it is judged whenever it is trained on. An image that is never classified rightly counts as forgotten
    once more than any other can be.

    Args:
        real: The dataset.
        student: Name of the network.
        epochs: Passes over the training images.
        engine: Device and precision.
        seed: Equal seeds give equal counts on an equal machine.

    Returns:
        int64 `[N]` on the CPU, 0 to `epochs`; 0 = easy.
    """
    with engine.seeded(latents.fold(_DROPOUT, seed)):
        return _counts(real, student, epochs, engine, seed)


def _counts(real: RealData, student: str, epochs: int, engine: Engine, seed: int) -> Tensor:
    device, count = engine.device, len(real.train)
    network = engine.place(make_student(student, real.image_shape, real.num_classes, seed)).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    mean = torch.tensor(real.mean, device=device)[:, None, None]
    std = torch.tensor(real.std, device=device)[:, None, None]
    images, labels = real.train.images.to(device), real.train.labels.to(device)
    right = torch.zeros(count, dtype=torch.bool, device=device)
    ever = torch.zeros(count, dtype=torch.bool, device=device)
    forgotten = torch.zeros(count, dtype=torch.int64, device=device)

    def logits_of(batch: Tensor) -> Tensor:
        with engine.autocast():
            logits: Tensor = network(batch)
        return logits.float()

    compiled = engine.compile(logits_of)
    for epoch in range(epochs):
        for rows in torch.split(latents.permutation(latents.fold(_ORDER, seed, epoch), count).to(device), _BATCH):
            batch = ((images[rows].to(torch.float32) / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
            logits = (compiled if len(rows) == _BATCH else logits_of)(batch)
            now = logits.detach().argmax(1) == labels[rows]
            forgotten[rows] += right[rows] & ~now
            right[rows] = now
            ever[rows] |= now
            loss = F.cross_entropy(logits, labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return torch.where(ever, forgotten, epochs).cpu()


def hardest(split: Split, counts: Tensor, share: float, seed: int) -> Split:
    """Return the images forgotten most often: this share of each class, at least one image, ties at random.

    Args:
        split: The images.
        counts: Their forgetting counts, int64 `[N]`.
        share: In (0, 1].
        seed: Of the ties.
    """
    order = latents.permutation(latents.fold(_TIES, seed), len(split))
    order = order[counts[order].argsort(descending=True, stable=True)]
    kept = torch.zeros(len(split), dtype=torch.bool)
    for label in range(split.num_classes):
        own = order[split.labels[order] == label]
        kept[own[: max(1, round(share * len(own)))]] = True
    return split.select(kept.nonzero().flatten())
