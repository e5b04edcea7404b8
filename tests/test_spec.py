"""Records: strict reading, bounds, and errors that name the field."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import pytest
from conftest import make_network, recipe

from dimdata.errors import ArgumentError, DimdataError, FormatError, NotFoundError, nearest
from dimdata.recipe import MAX_LEGS, Leg, Recipe, Start
from dimdata.registry import Registry
from dimdata.spec import Record, Spec, Weights, canonical_json


@dataclass(frozen=True, kw_only=True)
class Inner(Record):
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Outer(Record):
    name: str
    share: float = 0.5
    mode: Literal["a", "b"] = "a"
    inner: Inner = field(default_factory=Inner)
    several: tuple[Inner, ...] = ()
    pair: tuple[int, int] = (1, 2)
    maybe: int | None = None


def spec(**changes: Any) -> dict[str, Any]:
    return make_network().spec.to_json() | changes


def test_round_trip() -> None:
    for record in (make_network().spec, recipe(), Leg(steps=3, batch_size=1, stage=2, lr_drops=(0.5, 0.75))):
        assert type(record).from_json(record.to_json()) == record
    assert Outer.from_json({"name": "x", "share": 1}).share == 1.0
    assert isinstance(Outer.from_json({"name": "x", "share": 1}).share, float)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "lacks the field 'name'"),
        ([], "not an object"),
        ({"name": 3}, r"outer\.name is 3"),
        ({"name": "x", "nmae": 1}, "unknown field 'nmae'. Did you mean name"),
        ({"name": "x", "share": "0.5"}, r"outer\.share"),
        ({"name": "x", "share": True}, r"outer\.share"),
        ({"name": "x", "share": math.nan}, r"outer\.share"),
        ({"name": "x", "share": 10**400}, r"outer\.share"),
        ({"name": "x", "mode": "c"}, "not one of a, b"),
        ({"name": "x", "mode": ["a"]}, "not one of a, b"),
        ({"name": "x", "inner": 3}, r"outer\.inner is not an object"),
        ({"name": "x", "inner": {"size": 1.0}}, "size"),
        ({"name": "x", "several": [{}, {"size": "1"}]}, "size"),
        ({"name": "x", "several": [{}, {"sise": 1}]}, r"outer\.several\[1\] has an unknown field 'sise'"),
        ({"name": "x", "several": [{}] * 100_001}, "100,001 entries"),
        ({"name": "x", "pair": [1]}, "1 entries, not 2"),
        ({"name": "x", "pair": "12"}, "not a list"),
        ({"name": "x", "maybe": False}, r"outer\.maybe"),
    ],
)
def test_what_does_not_fit_is_named(data: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Outer.from_json(data)


def test_unknown_fields_are_kept_at_every_level_and_written_back() -> None:
    data = {"name": "x", "new": 1, "inner": {"size": 2, "newer": [2]}, "several": [{"size": 3, "newest": None}]}
    record = Outer.from_json(data, keep_unknown=True)
    assert record.unknown == {"new": 1}
    assert record.inner.unknown == {"newer": [2]}
    written = record.to_json()
    assert {key: written[key] for key in data} == data


def test_messages_are_short_whatever_is_given() -> None:
    long = "A" * 10**6
    for data in ({"name": "x", "mode": long}, {"name": "x", long: 1}, {"name": "x", "pair": long}, {"name": [long]}):
        with pytest.raises(FormatError) as caught:
            Outer.from_json(data)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": []},
        {"classes": ["a", "a"]},
        {"image_shape": [0, 28, 28]},
        {"image_shape": [65, 28, 28]},
        {"image_shape": [1, 28, 4097]},
        {"mean": [0.1, 0.2]},
        {"std": [0.0]},
        {"std": [-1.0]},
        {"value_range": [1.0, 0.0]},
        {"value_range": [0.0, 0.0]},
        {"latent": -1},
        {"latent": 10**6},
        {"images": 0},
        {"images": 2**41},
        {"storage": "bfloat16"},
        {"targets": "medium"},
    ],
)
def test_spec_bounds(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="generator"):
        Spec.from_json(spec(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": None},
        {"steps": 3},
        {"epochs": 0},
        {"epochs": 10**10},
        {"batch_size": 0},
        {"stage": 0},
        {"lr": 0.0},
        {"momentum": 1.0},
        {"warmup": 1.0},
        {"weight_decay": -1e-9},
        {"optimizer": "lion"},
        {"schedule": "linear"},
        {"dialect": "two"},
    ],
)
def test_leg_bounds(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="leg"):
        Leg(**{"epochs": 1, "batch_size": 1} | changes)


def test_recipe_bounds() -> None:
    leg = {"epochs": 1, "batch_size": 1}
    with pytest.raises(FormatError, match="legs"):
        Recipe.from_json({"legs": []})
    with pytest.raises(FormatError, match="1,001 entries"):
        Recipe.from_json({"legs": [leg] * (MAX_LEGS + 1)})
    with pytest.raises(FormatError, match="'lr'"):
        Recipe.from_json({"legs": [leg | {"step_sizes": "lr"}]})
    with pytest.raises(FormatError, match="student"):
        Start(law="stored")
    assert (
        "learned step sizes" in Recipe.from_json({"legs": [leg | {"step_sizes": "lr"}], "tensors": ["lr"]}).describe()
    )


@pytest.mark.parametrize("digest", ["", "a" * 63, "A" * 64, "g" * 64, "a" * 65])
def test_weights_digest(digest: str) -> None:
    with pytest.raises(FormatError, match="sha256"):
        Weights(sha256=digest, bytes=1)
    with pytest.raises(FormatError, match="bytes"):
        Weights(sha256="a" * 64, bytes=0)


def test_canonical_json_is_one_text() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"\\u00e9","b":[1,2.5]}'
    with pytest.raises(ValueError):
        canonical_json(math.inf)


def test_registry() -> None:
    table: Registry[int] = Registry("thing", "dimdata.no-such-group")
    table.register("one")(1)
    table.register("one")(1)
    assert "one" in table
    assert list(table) == ["one"]
    with pytest.raises(ArgumentError, match="already"):
        table.register("one")(2)
    with pytest.raises(NotFoundError, match="Did you mean one"):
        table["onne"]
    with pytest.raises(NotFoundError) as caught:
        table["x" * 10**6]
    assert len(str(caught.value)) < 200


def test_a_registry_is_full_for_every_thread_that_asks_first() -> None:
    code = (
        "import threading; from dimdata import load\n"
        "together, failed = threading.Barrier(8), []\n"
        "def ask():\n"
        "    together.wait()\n"
        "    try: load('dim-mnist')\n"
        "    except Exception as error: failed.append(error)\n"
        "threads = [threading.Thread(target=ask) for _ in range(8)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "assert not failed, failed\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


TABLES: list[Registry[Any]] = []


def test_a_registry_that_could_not_be_filled_says_so_each_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table: Registry[int] = Registry("thing", "dimdata.no-such-group", ("no_such_module_of_ours", "json"))
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError):
            table["one"]
    # A package that registers something before it fails does so again the next time.
    (tmp_path / "halfway_of_theirs.py").write_text(
        "import test_spec\ntest_spec.TABLES[0].register('thing')(object())\nraise ValueError('really wrong')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        "dimdata.registry.entry_points", lambda group: [EntryPoint("half", "halfway_of_theirs", "dimdata.things")]
    )
    TABLES[:] = [Registry("thing", "dimdata.things")]
    for _ in range(2):
        with pytest.raises(DimdataError, match="really wrong"):
            TABLES[0]["one"]
    broken = EntryPoint("mine", "no_such_module_of_theirs", "dimdata.things")
    monkeypatch.setattr("dimdata.registry.entry_points", lambda group: [broken] if group == "dimdata.things" else [])
    table = Registry("thing", "dimdata.things")
    for _ in range(2):
        with pytest.raises(DimdataError, match="no_such_module_of_theirs adds the thing 'mine'"):
            table["one"]


def test_nearest() -> None:
    assert nearest("cifar", ["cifar10", "mnist"]) == "Did you mean cifar10?"
    assert nearest("zzz", ["b", "a"]) == "Known: a, b."
    assert nearest("zzz", []) == ""
