"""Turn a finished run into a bundled generator: scores, nearest-image check, hold-out, card.

    python tests/benchmarks/build_zoo.py dim-mnist runs/dim-mnist/generator --real mnist --rows mnist.jsonl
    python tests/benchmarks/build_zoo.py --cards  # render the cards of all of them anew, and nothing else
    python tests/benchmarks/build_zoo.py dim-mnist --cards --gain gain.json  # put a measured gain on a card first

ROWS is what `dimdata evaluate` or `compare` wrote with --output. Of its rows those are taken that are of this very
generator, with levers or without, and those of the baselines on the same real data; rows of other generators, and of
its first stages alone, are left out. Nothing is computed that a row does not hold, except the distance of draws to
their nearest training images.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

import dimdata.artifact as artifact
from dimdata import latents, preview
from dimdata.config import config_bytes, raw_config
from dimdata.cross import by_size, cross_architecture
from dimdata.evaluate import fingerprint, fingerprint_of_real
from dimdata.files import CONFIG, write_atomic
from dimdata.generators.base import Generator
from dimdata.hub.readme import save_with_card, write_card
from dimdata.nearest import nearest_check
from dimdata.plots import cross_plot
from dimdata.real import RealData, load_real, subset
from dimdata.report import markdown
from dimdata.scores import SHIPPED, Results, Row, Score, aggregate, read_rows

ZOO = Path(artifact.__file__).parent / "zoo"
README = Path(__file__).parents[2] / "README.md"
PICTURE = README.parent / "examples" / "compare.png"
HOLDOUT_PER_CLASS = 100


def refresh_readme() -> None:
    """Rewrite what the README and its picture say of the bundled generators, from the scores in the zoo."""
    scores = []
    for name, folder in artifact.bundled().items():
        config = artifact.read_config(folder)
        scores += [Score.from_json(score, keep_unknown=True) for score in config.scores]
        print(f"{name}: {config.weights.bytes:,} bytes of weights")
    text = README.read_text(encoding="utf-8")
    own = [score for score in scores if score.what == "generator"]
    first = {score.name: score.student for score in reversed(own)}  # the others stand in the second table
    text = filled(text, "generators", markdown([score for score in own if score.student == first[score.name]]))
    compared = [score for score in scores if score.draw == "fresh" and score.ipc == 10 and not score.levers]
    text = filled(text, "compare", cross_architecture(compared))
    README.write_text(text, encoding="utf-8")
    cross_plot(compared, PICTURE)


def filled(text: str, block: str, table: str) -> str:
    """Return a text with a table in the place between two comments, `<!-- BLOCK: begin ... -->` and its end."""
    before, rest = text.split(f"<!-- {block}: begin", 1)
    head, after = rest.split(f"<!-- {block}: end -->", 1)
    comment = head.partition("\n")[0]
    return f"{before}<!-- {block}: begin{comment}\n{table.strip()}\n<!-- {block}: end -->{after}"


def refresh_cards() -> None:
    """Render the card of every bundled generator anew from its config; what a person added stays."""
    for name, folder in artifact.bundled().items():
        print(write_card(folder, name=name))


def note_gain(name: str, path: Path) -> None:
    """Put the measured gain of the matching phase into the config of a bundled generator."""
    raw = raw_config(ZOO / name)
    provenance = raw["provenance"] | {"matching_gain": json.loads(path.read_text())}
    write_atomic(ZOO / name / CONFIG, config_bytes(raw | {"provenance": provenance}))


def rows_of(generator: Generator, real: RealData, rows: Iterable[Row]) -> list[Row]:
    """Return the rows of a generator, with levers or without, and those of baselines on the same real data."""
    own, real_source = fingerprint(generator), fingerprint_of_real(real)

    def belongs(row: Row) -> bool:
        if row.dataset != real.name:
            return False
        return own in (row.source, row.plain) if row.what == "generator" else row.source == real_source

    return [row for row in rows if belongs(row)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--cards", action="store_true", help="only render the cards and the README's table anew")
    parser.add_argument("--real")
    parser.add_argument("--root")
    parser.add_argument("--rows", type=Path, nargs="*", default=[])
    parser.add_argument("--holdout", action="store_true", help="bundle 1,000 real test images")
    parser.add_argument("--gain", type=Path, help="JSON with the measured gain of the matching phase")
    parser.add_argument("--command", help="the command as anyone may type it: without the folders of this machine")
    parser.add_argument("--history", help="what happened on the way that the command would not repeat")
    arguments = parser.parse_args()
    if arguments.cards:
        if arguments.gain:
            note_gain(arguments.name, arguments.gain)
        refresh_cards()
        refresh_readme()
        return
    if None in (arguments.name, arguments.folder, arguments.real):
        parser.error("name, folder and --real are needed, or --cards")

    generator = artifact.load(arguments.folder)
    real = load_real(arguments.real, root=arguments.root)
    assert real.test is not None
    given = [row for path in arguments.rows for row in read_rows(path)]
    rows = rows_of(generator, real, given)
    if len(rows) < len(given):
        print(f"{len(given) - len(rows)} of {len(given)} rows are not of this generator or data, and are left out.")
    if given and not any(row.what == "generator" for row in rows):
        sys.exit(f"No row is of {arguments.folder} on {real.name}: evaluate it first, or name other --rows.")
    scores = [replace(s, name=arguments.name) if s.what == "generator" else s for s in aggregate(rows)]
    students = by_size(score.student for score in scores)
    scores.sort(
        key=lambda s: (s.what != "generator", s.protocol, students.index(s.student), s.draw != "fresh", s.ipc or 0)
    )
    provenance = dict(artifact.read_config(arguments.folder).provenance)
    order = latents.permutation(latents.stream("zoo.nearest"), len(real.test.labels))[:1000]
    held_out = real.test.images[order]
    provenance["nearest"] = nearest_check(generator, real.train.images, held_out, count=1000, seed=0).to_json()
    if arguments.command:
        provenance["command"] = arguments.command
    if arguments.history:
        provenance["history"] = arguments.history
    if arguments.gain:
        provenance["matching_gain"] = json.loads(arguments.gain.read_text())
    holdout = None
    if arguments.holdout:
        part = subset(real.test, HOLDOUT_PER_CLASS, seed=0)
        holdout = {"images": part.images, "labels": part.labels.to(torch.int64)}
    target = ZOO / arguments.name
    facts = {
        "provenance": provenance,
        "scores": [score.to_json() for score in scores],
        "preview": preview.png(generator),
        "holdout": holdout,
    }
    licences = {path.name: path.read_bytes() for path in target.glob("LICENSE*")}
    for name in licences:
        (target / name).unlink()  # a generator's folder is only replaced where nothing else would be lost
    save_with_card(generator, target, name=arguments.name, **facts)
    for name, data in licences.items():
        (target / name).write_bytes(data)
    shipped = Results(SHIPPED, shipped=Path())
    for row in rows:
        if row.what != "generator" and shipped.find(row.key) is None:
            shipped.add(row)
    refresh_readme()
    print(f"{target}: {sum(file.stat().st_size for file in target.iterdir()):,} bytes, {len(scores)} scores")


if __name__ == "__main__":
    main()
