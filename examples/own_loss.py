"""A matching loss of one's own, used by name in a distillation.

DiM's second phase asks that networks answer generated images as they answer real ones. What "as" means is a function of
two `View`s: what a network says of the real and of the generated batch. Registered, it is a setting like any other. A
package makes its losses known to `dimdata distill --set matching=NAME` by an entry point in its pyproject.toml:

[project.entry-points."dimdata.matching"]
my-losses = "my_package.losses"

python examples/own_loss.py
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dimdata import distill, evaluate
from dimdata.distill.losses import MATCHING, View
from dimdata.engine import Engine, keep_freed_memory
from dimdata.errors import DimdataError, RunError


@MATCHING.register("correlation")
def correlation(real: View, fake: View) -> Tensor:
    """Mean squared difference of the correlations between features, class by class apart from scale."""

    def between_images(view: View) -> Tensor:
        directions = F.normalize(view.features - view.features.mean(0), dim=1)
        return directions @ directions.T  # position i of both batches has one label, so these can be compared

    return F.mse_loss(between_images(fake), between_images(real))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="what `dimdata distill` takes")
    parser.add_argument("--steps", type=int, default=1500, help="steps of each distillation")
    parser.add_argument("--epochs", type=int, default=100, help="epochs of the students, at 10 images per class")
    parser.add_argument("--out", type=Path, default=Path("runs/own-loss"))
    options = parser.parse_args()
    keep_freed_memory()  # eager training on CPUs is faster so
    engine = Engine.of("cpu" if not torch.cuda.is_available() else "auto", "fp32", "off")

    for name in ("logit", "correlation"):  # DiM's own, and ours
        folder = distill(
            options.data, out=options.out / name, settings={"matching": name}, steps=options.steps, compile="off"
        )
        (score,) = evaluate(
            folder,
            ipc=10,
            students="convnet3-w32",
            seeds=1,
            epochs=options.epochs,
            real=options.data,
            baselines=(),
            engine=engine,
        )
        print(f"matching by {name}: {score.mean:.1f} % of {score.test}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except RunError as error:
        raise SystemExit(f"{error.message} Name another folder with --out, or remove this one.") from None
    except DimdataError as error:
        raise SystemExit(str(error)) from None
