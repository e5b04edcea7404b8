"""Which generator is worth its cost? Variants of the network, each distilled for equal time and scored alike.

    python tests/benchmarks/generator_ablation.py --real cifar10 --out ablation.jsonl --plot ablation.png
    python tests/benchmarks/generator_ablation.py --only full --only nearest --seeds 3 --out ablation.jsonl

`generator_ablation.toml` holds the variants: width, where the resolution is raised and how, full or separable
convolutions, and where the label enters. Each costs at most 60 MFLOP an image and 4 MB, or is refused. Accuracy is
that of a student at IPC 10 on a tenth of the training images set aside, never the test images. See `trials.py` for
budgets and for going on after a stop. It prints a markdown table; `--plot` draws accuracy against MFLOP, bytes and
images drawn per second.
"""

from pathlib import Path

from trials import Bench, Trial, options, plot, summaries, table, variants

MOST_MFLOP, MOST_BYTES = 60.0, 4_000_000

COLUMNS = ("question", "variant", "MFLOP", "MB", "drawn images/s", "steps", "accuracy %", "seeds")


def main() -> None:
    arguments = options(__doc__).parse_args()
    bench = Bench(arguments)
    found = variants(arguments.variants or Path(__file__).with_suffix(".toml"), arguments.only)
    for name, (_, settings) in found.items():
        spent = bench.cost(bench.config(settings))
        print(f"{name}: {spent.flop / 1e6:.1f} MFLOP an image, {spent.nbytes / 1e6:.2f} MB")
        if spent.flop / 1e6 > MOST_MFLOP or spent.nbytes > MOST_BYTES:
            raise SystemExit(f"{name} costs more than {MOST_MFLOP:g} MFLOP or {MOST_BYTES / 1e6:g} MB.")
    trials = [
        Trial(name, axis, settings, arguments.minutes, seed)
        for seed in range(arguments.seeds)
        for name, (axis, settings) in found.items()
    ]
    made = summaries(bench.run(trials))
    print(f"\n{table(made, COLUMNS, base=made[0])}")
    if arguments.plot:
        plot(made, arguments.plot)


if __name__ == "__main__":
    main()
