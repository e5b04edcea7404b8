"""What an expert's trajectory costs beside the training itself: a buffer against a bare loop over tensors in memory.

Run `python tests/benchmarks/expert_rate.py`; it prints a table and one JSON line, and exits with 1 if the target is
missed. Both train the same network by the same SGD on the same random images, in the same precision, compiled or not.
The bare loop finds its images normalised in float32; an expert keeps them as bytes, normalises each batch, draws its
order from a hash, and keeps the weights after each epoch, which are written to the disk at the end. They take turns on
one thread; processor time is kept, so that other programs on the machine disturb little, and the least of each.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from dimdata.distill.buffers import Buffer, BufferInfo, Expert, flatten
from dimdata.engine import Engine, keep_freed_memory
from dimdata.real import Split
from dimdata.students.source import InitLaw

TARGET = 1.2
SHAPE, CLASSES = (3, 32, 32), 10


class Bare:
    """The loop that a researcher writes: tensors in memory, and nothing kept."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, source: InitLaw, batch: int, engine: Engine) -> None:
        self.images, self.labels, self.batch = images, labels, batch
        self.network = engine.place(source.network(0)).train()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, fused=True)

        def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            with engine.autocast():
                logits = self.network(images.contiguous(memory_format=torch.channels_last))
            return F.cross_entropy(logits.float(), labels)

        self.loss = engine.compile(loss)

    def epoch(self) -> None:
        for rows in torch.randperm(len(self.labels)).split(self.batch):
            loss = self.loss(self.images[rows], self.labels[rows])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="convnet3")
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=6, help="of an expert; the preset's of CIFAR-10 at IPC 10")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", default="auto")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    engine = Engine.of("cpu", "auto", args.compile)
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (args.images, *SHAPE), generator=random, dtype=torch.uint8)
    labels = torch.arange(args.images) % CLASSES
    source = InitLaw(args.student, SHAPE, CLASSES)
    info = BufferInfo(
        student=args.student,
        images="random",
        epochs=args.epochs,
        batch_size=args.batch,
        lr=0.01,
        momentum=0.0,
        seed=0,
        parameters=len(flatten(source.network(0))),
    )
    bare = Bare((images.float() / 255 - 0.5) / 0.25, labels, source, args.batch, engine)
    expert = Expert(info, Split(images, labels), lambda x: (x - 0.5) / 0.25, source, engine)
    bare.epoch()  # both compile
    expert.epoch()
    least = {"bare": float("inf"), "expert": float("inf"), "written": float("inf")}
    with tempfile.TemporaryDirectory() as folder:
        buffer = Buffer(Path(folder), info, args.repeats)
        for number in range(args.repeats):
            start = time.process_time()
            for _ in range(args.epochs):
                bare.epoch()
            least["bare"] = min(least["bare"], time.process_time() - start)
            start = time.process_time()
            expert.begin(number)
            for _ in range(args.epochs):
                expert.epoch()
            least["expert"] = min(least["expert"], time.process_time() - start)
            start = time.process_time()
            buffer.write(number, expert.trajectory)
            least["written"] = min(least["written"], time.process_time() - start)
    seen = args.images * args.epochs
    ratio = (least["expert"] + least["written"]) / least["bare"]
    for kind, seconds in least.items():
        rate = f"{seen / seconds:,.0f} images a second" if kind != "written" else f"{info.bytes / 1e6:.1f} MB"
        print(f"{kind:>8}  {seconds:8.2f} s  {rate}")
    print(f"an expert in its buffer over the bare loop {ratio:.3f} (target {TARGET})")
    found = {"seconds": least, "ratio": ratio, "images": seen, "bytes": info.bytes, "engine": engine.describe()}
    found |= {"student": args.student, "compile": args.compile, "torch": torch.__version__, "ok": ratio <= TARGET}
    print(json.dumps({"benchmark": "expert_rate", **found}))
    return 0 if ratio <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
