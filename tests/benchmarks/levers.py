"""What does each lever of the draw do to a student's accuracy?

    dimdata train --real fashion-mnist -o teacher.safetensors
    python tests/benchmarks/levers.py dim-fashion-mnist --real fashion-mnist --teacher teacher.safetensors \
        --out levers.jsonl

Students are trained on the plain draw and on each levered one, with the same seeds and recipe, and scored on the test
set. Rows are kept in OUT, so a stopped call goes on; the table is printed in markdown at the end. Stored are the
generator and, where a lever asks for one, its teacher. `--try` takes other levers than the usual ones, as
`dimdata train --levers` writes them.
"""

import argparse
from pathlib import Path

from dimdata import load
from dimdata.cli.output import duration
from dimdata.engine import Engine, keep_freed_memory
from dimdata.evaluate import evaluate
from dimdata.levers import Levers, Teacher, apply
from dimdata.real import load_real
from dimdata.report import drawn, markdown_table, percent, size
from dimdata.scores import Score

USUAL = (
    "best-of=2",
    "best-of=4",
    "best-of=8",
    "best-of=4,keep=3",
    "best-of=8,keep=4",
    "spread=0.7",
    "spread=0.85",
    "spread=1.15",
    "spread=1.3",
    "soft-labels",
    "soft-labels,temperature=2",
    "soft-labels,temperature=4",
    "best-of=4,spread=1.15",
    "best-of=4,keep=3,spread=1.15,soft-labels,temperature=2",
)


def levers_of(text: str, teacher: Teacher) -> Levers:
    """Read levers, with the teacher where they ask for one."""
    judged = {part.partition("=")[0] for part in text.split(",")} & {"best-of", "soft-labels"}
    return Levers.parse(text, teacher if judged else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--real", required=True)
    parser.add_argument("--root")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--student", default="convnet3")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--draw", default="fresh")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--try", dest="tried", action="append", metavar="LEVERS")
    parser.add_argument("--out", type=Path, required=True)
    for option in ("device", "precision", "compile"):
        parser.add_argument(f"--{option}", default="auto")
    arguments = parser.parse_args()
    keep_freed_memory()
    engine = Engine.of(arguments.device, arguments.precision, arguments.compile)
    teacher = Teacher.load(arguments.teacher)
    wanted = ["", *(arguments.tried or USUAL)]
    levers = [levers_of(text, teacher) for text in wanted]  # a mistake is found before the first student
    generator, real = load(arguments.name), load_real(arguments.real, root=arguments.root)
    found: list[Score] = []
    for each in levers:
        found += evaluate(
            apply(generator, each),
            ipc=arguments.ipc,
            students=arguments.student,
            draws=arguments.draw,
            seeds=arguments.seeds,
            real=real,
            epochs=arguments.epochs,
            baselines=(),
            engine=engine,
            output=arguments.out,
        )
        score = found[-1]
        print(f"{score.levers or 'plain'}: {percent(score.mean, score.std)} ({duration(score.seconds)} a student)")
    plain = found[0]
    print(f"\n{plain.name}, {plain.student}, {plain.budget_text}, {plain.draw} draw, {plain.test}")
    print(f"Recipe: {plain.recipe}. Teacher: {teacher.describe()}.\n")
    rows = [
        (
            text or "plain",
            percent(score.mean, score.std),
            f"{score.mean - plain.mean:+.2f}" if text else "",
            str(len(score.seeds)),
            f"{drawn(score):,}",
            size(score.stored_bytes),
            duration(score.seconds),
        )
        for text, score in zip(wanted, found, strict=True)
    ]
    header = ("levers", "accuracy %", "gain", "seeds", "images drawn", "stored", "training a student")
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
