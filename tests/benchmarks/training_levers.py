"""What does each lever of DiM's training do? Every variant against one base, distilled for equal time.

    python tests/benchmarks/training_levers.py --real cifar10 --seeds 3 --out levers-of-training.jsonl --plot levers.png
    python tests/benchmarks/training_levers.py --set network.condition=concat --only as-it-is --only one-network \\
        --out some.jsonl

`training_levers.toml` holds the variants, made for runs of about eight minutes: the average of the weights,
differentiable augmentation, projection conditioning, lazy regularisation, the matching loss, the pool's size and
refresh, the share of time that matching gets, and the precision of the critic's heads. The base is the configuration as
it is, with what `--set` changes for all. The effect is the mean difference of accuracies at equal seeds, with its
deviation. Time is equal, not steps, unless `--steps` says how many: a lever that costs time takes fewer. Accuracy is
that of a student at IPC 10 on a tenth of the training images set aside, never the test images; see `trials.py`.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from trials import Bench, Trial, options, plot, summaries, table, variants

from dimdata.distill.critics import CRITICS, ScaledSpatialCritic
from dimdata.students import ImageShape

COLUMNS = ("question", "variant", "steps", "accuracy %", "seeds")


class Nothing(nn.Module):
    """A linear layer to so many zeros."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), self.outputs)


@CRITICS.register("no-projection")
class UnconditionedCritic(ScaledSpatialCritic):
    """`spatial-scaled`, which `dim-cifar10` has, without the projection of the class.

    The label enters through the class head's loss alone.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int, width: int) -> None:
        super().__init__(image_shape, num_classes, width)
        self.project = Nothing(num_classes)


@CRITICS.register("exact-heads")
class ExactHeadsCritic(ScaledSpatialCritic):
    """`spatial-scaled` with heads in float32, where autocast takes them to bf16: a score of 2 to 4 in steps of 1/64."""

    def heads(self, seen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See `ProjectionCritic.heads`."""
        with torch.autocast(seen.device.type, enabled=False):
            return super().heads(seen, labels)


def main() -> None:
    arguments = options(__doc__).parse_args()
    bench = Bench(arguments)
    found = variants(arguments.variants or Path(__file__).with_suffix(".toml"), arguments.only)
    trials = [
        Trial(name, axis, settings, arguments.minutes, seed)
        for seed in range(arguments.seeds)
        for name, (axis, settings) in found.items()
    ]
    made = summaries(bench.run(trials))
    print(f"\n{table(made, COLUMNS, base=made[0])}")
    if arguments.plot:
        plot(made, arguments.plot, {"steps": "steps in equal time"})


if __name__ == "__main__":
    main()
