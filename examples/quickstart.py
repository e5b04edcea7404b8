"""Train a network on generated digits with an ordinary loop, and test it on real ones. About a minute on two cores.

python examples/quickstart.py
"""

import argparse
import time

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from dimdata import GeneratedDataset
from dimdata.artifact import holdout, resolve
from dimdata.students import make_student


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a ConvNet-3 on generated digits; test it on real ones.")
    parser.add_argument("--epochs", type=int, default=150, help="passes over 100 generated digits")
    epochs = parser.parse_args().epochs
    dataset = GeneratedDataset("dim-mnist", ipc=10, output="normalized")  # 100 images, new ones in every epoch
    torch.manual_seed(0)  # of the order of the images
    loader = DataLoader(dataset, batch_size=50, shuffle=True)
    network = make_student("convnet3", dataset.image_shape, dataset.num_classes)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=epochs * len(loader), pct_start=0.2)

    start = time.perf_counter()
    for epoch in range(epochs):
        for images, labels in loader:
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if (epoch + 1) % 25 == 0:
            seconds = time.perf_counter() - start
            print(f"epoch {epoch + 1:3}/{epochs}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)
    seconds = time.perf_counter() - start

    images, labels = holdout(resolve("dim-mnist"))  # real digits that no network here has seen
    network.eval()
    with torch.no_grad():
        right = (network(dataset.normalize(images / 255)).argmax(1) == labels).float().mean().item()
    print(
        f"ConvNet-3 saw {epochs * len(dataset):,} generated digits ({epochs} epochs of {len(dataset)}) in "
        f"{seconds:.0f} s and reads {right:.1%} of {len(labels):,} real held-out digits."
    )
    print("Figures at IPC 10 are those of 1,000 epochs:  dimdata train dim-mnist --ipc 10")


if __name__ == "__main__":
    main()
