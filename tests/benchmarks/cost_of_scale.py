"""What does scale buy? Accuracy against minutes of distillation, and against the bytes of the generator.

    python tests/benchmarks/cost_of_scale.py --real cifar10 --out scale.jsonl --plot scale.png
    python tests/benchmarks/cost_of_scale.py --marks 5,10 --only "0.6 MB" --out scale.jsonl

One generator is distilled for each of `--marks` minutes, on a schedule of that length, with the configuration as it
is; and one of each width of `cost_of_scale.toml` for `--minutes`. Accuracy is that of a student at IPC 10 on a tenth of
the training images set aside, never the test images; see `trials.py`. The picture has a panel for minutes and one for
bytes.
"""

from pathlib import Path

from trials import Bench, Summary, Trial, options, plot, summaries, table, variants

MARKS = "5,10,20,40,80"
MINUTES, BYTES = "minutes", "bytes"  # the two questions

COLUMNS = ("question", "variant", "minutes", "MFLOP", "MB", "drawn images/s", "steps", "accuracy %", "seeds")


def numbers(text: str) -> list[float]:
    """Read numbers joined by commas."""
    return [float(word) for word in text.split(",")]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--marks", type=numbers, default=numbers(MARKS), help=f"minutes [default: {MARKS}]")
    arguments = parser.parse_args()
    if arguments.steps:
        parser.error("time is what is compared here: --steps has no meaning.")
    bench = Bench(arguments)
    sizes = variants(arguments.variants or Path(__file__).with_suffix(".toml"), arguments.only)
    trials = [
        trial
        for seed in range(arguments.seeds)
        for trial in (
            *(Trial(f"{mark:g} minutes", MINUTES, {}, mark, seed) for mark in arguments.marks),
            *(Trial(name, BYTES, settings, arguments.minutes, seed) for name, (_, settings) in sizes.items()),
        )
    ]
    made: list[Summary] = summaries(bench.run(trials))
    print(f"\n{table(made, COLUMNS)}")
    if arguments.plot:
        plot(made, arguments.plot, {"minutes": "minutes of distillation", "bytes": "bytes stored"}, lines=True)


if __name__ == "__main__":
    main()
