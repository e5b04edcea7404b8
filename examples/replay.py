"""Class-incremental learning without keeping old images: a generator replays the first task while the second is learnt.

Task 1 is the classes 0 to 4, task 2 the classes 5 to 9, and one network with ten outputs learns them one after the
other. While it learns task 2, each batch is half images of task 2 and half replayed ones of task 1: none, drawn from a
generator, or real ones without limit, which is the most that replay can give.

python examples/replay.py                                                   # digits; distils task 1 first
python examples/replay.py --data mnist --root ~/data --generator dim-mnist  # with a bundled generator
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimdata import distill, load
from dimdata.engine import Engine, keep_freed_memory
from dimdata.errors import DimdataError, RunError
from dimdata.real import RealData, Split, load_real
from dimdata.students import make_student
from dimdata.students.train import accuracy

OLD = 5  # classes of task 1

Batch = tuple[Tensor, Tensor]  # images float32 in [0, 1], labels; on any device
Replay = Callable[[int, int], Batch]  # from the step and a number of images to images of task 1


def task(split: Split, first: bool) -> Split:
    """Return the images of one task; labels stay as they are."""
    return split.select((split.labels < OLD).eq(first).nonzero().flatten())


def draw(split: Split, step: int, count: int) -> Batch:
    """Return real images at random."""
    rows = torch.randint(len(split), (count,), generator=torch.Generator().manual_seed(step))
    return split.images[rows] / 255, split.labels[rows]


def learn(
    network: nn.Module,
    real: RealData,
    new: Split,
    options: argparse.Namespace,
    engine: Engine,
    replay: Replay | None = None,
) -> None:
    """Train on a task, with as many replayed images in each batch as new ones; all on the engine's device."""
    engine.place(network)
    mean, std = (torch.tensor(values, device=engine.device)[:, None, None] for values in (real.mean, real.std))
    optimizer = torch.optim.SGD(network.parameters(), lr=options.lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.steps)
    network.train()
    for step in range(options.steps):
        images, labels = draw(new, step, options.batch)
        if replay is not None:
            old_images, old_labels = replay(step, options.batch)
            images, labels = torch.cat([images, old_images]), torch.cat([labels, old_labels])
        images, labels = images.to(engine.device), labels.to(engine.device)
        loss = F.cross_entropy(network((images - mean) / std), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def make_generator(old: Split, real: RealData, options: argparse.Namespace) -> Path:
    """Distil the images of task 1 alone: those of task 2 are not known yet."""
    data = RealData.from_arrays(old.images, old.labels, classes=real.classes[:OLD], name=f"{real.name}-task1")
    compile = "off" if options.distil_steps else "auto"  # it would take longer than a few steps
    return distill(
        data,
        out=options.out,
        minutes=options.minutes,
        steps=options.distil_steps,
        device=options.device,
        compile=compile,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="a dataset of ten classes that `dimdata distill` knows")
    parser.add_argument("--root", type=Path, help="where torchvision keeps it")
    parser.add_argument("--generator", help="a generator whose classes 0 to 4 are task 1, instead of distilling one")
    parser.add_argument("--out", type=Path, default=Path("runs/replay"), help="folder of the distillation")
    parser.add_argument("--minutes", type=float, help="time to distil (1 unless steps are given)")
    parser.add_argument("--distil-steps", type=int, help="steps to distil, instead of minutes")
    parser.add_argument("--student", default="convnet2-w32")
    parser.add_argument("--steps", type=int, default=300, help="training steps of each task")
    parser.add_argument("--batch", type=int, default=64, help="new images in a batch")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps, for all that is trained")
    options = parser.parse_args()
    if options.minutes is None and options.distil_steps is None:
        options.minutes = 1.0
    keep_freed_memory()  # eager training on CPUs is faster so

    engine = Engine.of(options.device, "fp32", "off")
    real = load_real(options.data, root=options.root)
    if real.test is None or real.num_classes != 2 * OLD:
        parser.error(f"{options.data} has {real.num_classes} classes; this example needs {2 * OLD}, and test images")
    old, new = task(real.train, first=True), task(real.train, first=False)
    generator = load(options.generator or make_generator(old, real, options))
    print(f"The generator stores {generator.nbytes / 1e6:.2f} MB; task 1 has {len(old):,} images.")

    def generated(step: int, count: int) -> Batch:
        labels = torch.randint(OLD, (count,), generator=torch.Generator().manual_seed(step))
        return generator.sample(labels, seed=step)  # another seed, other images

    def stored(step: int, count: int) -> Batch:
        return draw(old, step + options.steps, count)

    first = make_student(options.student, real.image_shape, real.num_classes)
    learn(first, real, old, options, engine)
    replays: dict[str, Replay | None] = {"none": None, "generated": generated, "real, without limit": stored}
    tests = [task(real.test, first=True), task(real.test, first=False)]
    right = accuracy(first, tests[0].images, tests[0].labels, real.mean, real.std, engine)
    print(f"After task 1 the network is right on {right:.1%} of its test images.")
    print(f"{'replay':22}{'task 1':>8}{'task 2':>8}  after task 2")
    kept = {}
    for name, replay in replays.items():
        network = copy.deepcopy(first)
        learn(network, real, new, options, engine, replay)
        one, two = (accuracy(network, part.images, part.labels, real.mean, real.std, engine) for part in tests)
        kept[name] = one
        print(f"{name:22}{one:8.1%}{two:8.1%}")
    share = kept["generated"] / kept["real, without limit"]
    print(f"Generated replay keeps {share:.1%} of the accuracy on task 1 that real replay keeps.")


if __name__ == "__main__":
    try:
        main()
    except RunError as error:
        hint = "Name another folder with --out, or take the generator that is there: --generator ./FOLDER/generator."
        raise SystemExit(f"{error.message} {hint}") from None
    except DimdataError as error:
        raise SystemExit(str(error)) from None
