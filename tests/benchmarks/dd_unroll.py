"""What the gradient through a whole training costs: `Unroll` against autograd through one graph of it.

Run `python tests/benchmarks/dd_unroll.py`; it prints a table and one JSON line, and exits with 1 if a target is missed.
A LeNet takes 10 steps x 3 epochs on 10 images each, and 1,024 images judge it; four networks share these out, 256 each.
All run in turns on one thread; processor time is kept, so that other programs on the machine disturb little, and the
least of each. Ours is compiled where a compiler is at hand, which autograd through a graph of gradients cannot be. Peak
memory is how far a process of its own grows, uncompiled, beyond what a single step needs to be loaded; 64 images judge
there, so that the training is seen and not the batch after it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dimdata.distill.unroll import Unroll
from dimdata.engine import Engine, keep_freed_memory
from dimdata.students.source import InitLaw

sys.path.insert(0, str(Path(__file__).parents[1]))
from plain_unroll import plain_gradients

OVER_PLAIN, OVER_ONE = 1.1, 3.0
NETWORKS = 4
FEW = 64
KINDS = ("plain", "ours", "several")


def programs(steps: int, epochs: int, batch: int, outer: int, compile: str) -> dict[str, Callable[[], object]]:
    """Return what is compared, by name."""
    shape, classes = (1, 28, 28), 10
    nets = [InitLaw("lenet", shape, classes, "xavier").network(number) for number in range(NETWORKS)]
    weights = [{name: p.detach() for name, p in net.named_parameters()} for net in nets]
    random = torch.Generator().manual_seed(0)
    given: dict[str, Tensor] = {
        "images": torch.randn(steps, batch, *shape, generator=random),
        "targets": torch.eye(classes)[torch.arange(batch) % classes].expand(steps, -1, -1).contiguous(),
        "sizes": torch.full((steps * epochs,), 0.02),
        "real": torch.randn(outer, *shape, generator=random),
        "labels": torch.randint(0, classes, (outer,), generator=random),
    }
    unroll = Unroll(nets[0], Engine.of("cpu", "fp32", compile))
    return {
        "plain": lambda: plain_gradients(nets[0], weights[0], **given),
        "ours": lambda: unroll.gradients(weights[:1], **given),
        "several": lambda: unroll.gradients(weights, **given),
    }


def peak() -> int:
    """Return the most bytes of memory this process has had (Linux)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def growth(kind: str, options: list[str]) -> int:
    """Return how many bytes a process grows by computing one kind of gradient."""
    command = [sys.executable, __file__, "--memory", kind, *options]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=10, help="learned images a step")
    parser.add_argument("--outer", type=int, default=1024, help="real images that judge")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--memory", choices=KINDS, help="print how far this process grows, and nothing else")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = (args.steps, args.epochs, args.batch, args.outer)
    if args.memory:
        programs(1, 1, args.batch, 1, "off")[args.memory]()  # loads what torch loads at first use
        run = programs(*sizes, "off")[args.memory]
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before = peak()
        run()
        print(peak() - before)
        return 0
    keep_freed_memory()
    runs = programs(*sizes, args.compile)
    for run in runs.values():  # compiles
        run()
        run()
    least = dict.fromkeys(KINDS, float("inf"))
    for _ in range(args.repeats):
        for kind, run in runs.items():
            start = time.process_time()
            run()
            least[kind] = min(least[kind], time.process_time() - start)
    options = [word for k in ("steps", "epochs", "batch") for word in (f"--{k}", str(getattr(args, k)))]
    options += ["--outer", str(FEW)]
    memory = {kind: growth(kind, options) for kind in KINDS}
    over_plain, over_one = least["ours"] / least["plain"], least["several"] / least["ours"]
    ok = over_plain <= OVER_PLAIN and over_one <= OVER_ONE
    for kind in KINDS:
        print(f"{kind:>8}  {1e3 * least[kind]:9.1f} ms  {memory[kind] / 2**20:8.1f} MiB")
    print(f"one network over the plain unroll {over_plain:.2f} (target {OVER_PLAIN}); ", end="")
    print(f"{NETWORKS} networks over one {over_one:.2f} (target {OVER_ONE})")
    found = {"seconds": least, "peak_bytes": memory, "over_plain": over_plain, "over_one": over_one, "ok": ok}
    print(json.dumps({"benchmark": "dd_unroll", **found, "compile": args.compile, "torch": torch.__version__}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
