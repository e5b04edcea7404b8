"""A bundled generator gets the rows that are its own, whatever else lies in the file."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_network

from dimdata.distill.staging import walk
from dimdata.engine import Engine
from dimdata.evaluate import evaluate
from dimdata.generators.base import Generator
from dimdata.generators.table import TableGenerator
from dimdata.levers import Levers, apply
from dimdata.real import RealData, distinct_real, load_real
from dimdata.recipe import Leg, Recipe
from dimdata.scores import Row, read_rows

BENCHMARKS = Path(__file__).parent / "benchmarks"
FEW = Recipe(legs=(Leg(epochs=1, batch_size=20, lr=0.05),))


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "build_zoo", raising=False)
    import build_zoo

    return build_zoo


@pytest.fixture
def rows_of(zoo: Any) -> Any:
    return zoo.rows_of


@pytest.fixture(scope="module")
def real() -> RealData:
    return load_real("digits")


def score(source: Generator, real: RealData, output: Path, **arguments: Any) -> None:
    common: dict[str, Any] = {"students": "mlp", "seeds": 1, "baselines": (), "engine": Engine(torch.device("cpu"))}
    evaluate(source, real=real, output=output, **common | arguments)


def test_rows_of_other_generators_and_data_are_left_out(rows_of: Any, real: RealData, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    own, other = (make_network(image_shape=(1, 8, 8), seed=seed) for seed in range(2))
    own.recipe = other.recipe = FEW
    for generator in (own, other):
        score(generator, real, path, ipc=1, baselines=("random", "distinct"))
        score(apply(generator, Levers(spread=0.5)), real, path, ipc=1)
    renamed = dataclasses.replace(real, name="numbers", train=real.train.select(torch.arange(100)))
    score(own, renamed, path, ipc=2, baselines=("random",))

    rows = read_rows(path)
    kept: list[Row] = rows_of(own, real, rows)
    assert len(rows) == 8
    assert [(row.what, bool(row.levers)) for row in kept] == [
        ("generator", False),
        ("random", False),
        ("distinct", False),
        ("generator", True),
    ]
    assert rows_of(other, real, rows)[-1].levers
    assert not {row.key for row in kept if row.what == "generator"} & {row.key for row in rows_of(other, real, rows)}


def test_rows_of_the_first_stages_are_none_of_the_whole(rows_of: Any, real: RealData, tmp_path: Path) -> None:
    path, legs = tmp_path / "rows.jsonl", Recipe(legs=(Leg(epochs=2, batch_size=20),))
    staged = TableGenerator.joined(
        [distinct_real(real, 10, n, legs) for n in range(2)], walk([legs] * 2, [10] * 2), "pdd"
    )
    score(staged, real, path)
    score(staged, real, path, stage=1)
    assert len(read_rows(path)) == 2
    (row,) = rows_of(staged, real, read_rows(path))
    assert row.images == 20


def test_the_readme_says_what_the_zoo_scored(zoo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme, picture = tmp_path / "README.md", tmp_path / "compare.png"
    text = zoo.README.read_text(encoding="utf-8")
    readme.write_text(zoo.filled(zoo.filled(text, "generators", "| old |"), "compare", "| older |"), encoding="utf-8")
    assert readme.read_text(encoding="utf-8") != text
    monkeypatch.setattr(zoo, "README", readme)
    monkeypatch.setattr(zoo, "PICTURE", picture)
    zoo.refresh_readme()
    assert readme.read_text(encoding="utf-8") == text, "run tests/benchmarks/build_zoo.py --cards"
    assert picture.stat().st_size > 1000
