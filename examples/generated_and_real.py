"""Generated and real images in one DataLoader: a few real digits, and the generated ones that help them.

A network is trained on 20 real digits of each class, on generated digits, and on both together; all three take the same
number of steps. The real digits are a part of the hold-out of `dim-mnist`, the rest is the test, so nothing is
downloaded.

What to know of `ConcatDataset`: it reads image by image. Without workers each index of the generated part then counts
its own passes, so every pass brings new images of it, as it should; in workers whole passes are exact too, but not with
`drop_last=True`. For speed, or where that matters, draw the two parts from two loaders and join the batches.

python examples/generated_and_real.py
"""

import argparse

import torch
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from dimdata import GeneratedDataset
from dimdata.artifact import holdout, resolve
from dimdata.real import Split, balanced
from dimdata.students import make_student
from dimdata.students.train import accuracy

NAME = "dim-mnist"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="training steps of each network")
    parser.add_argument("--ipc", type=int, default=20, help="generated images per class and epoch")
    parser.add_argument("--student", default="convnet3-w32")
    options = parser.parse_args()

    found = holdout(resolve(NAME))
    assert found is not None
    images, labels = found  # 100 of each class: uint8 [1000, 1, 28, 28], int64 [1000]
    few = balanced(Split(torch.arange(len(labels))[:, None], labels, 10), 200).images.flatten()
    rest = torch.ones(len(labels), dtype=torch.bool).index_fill(0, few, False)

    generated = GeneratedDataset(NAME, ipc=options.ipc)  # float32 in [0, 1] and an int, as torchvision gives them
    real = list(zip(images[few] / 255, labels[few].tolist(), strict=True))  # a list is a dataset too
    parts: dict[str, Dataset | list] = {
        "real": real,
        "generated": generated,
        "both": ConcatDataset([generated.clone(), real]),  # a clone counts its own epochs
    }
    for name, part in parts.items():
        torch.manual_seed(0)  # of the order of the images
        loader = DataLoader(part, batch_size=40, shuffle=True)
        network = make_student(options.student, generated.image_shape, generated.num_classes)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=options.steps)
        step = 0
        while step < options.steps:
            for batch, targets in loader:
                loss = F.cross_entropy(network(generated.normalize(batch)), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                step += 1
                if step == options.steps:
                    break
        right = accuracy(network, images[rest], labels[rest], generated.mean, generated.std)
        print(f"{name:10} {right:6.1%} of {int(rest.sum())} real digits, after {step} steps", flush=True)


if __name__ == "__main__":
    main()
