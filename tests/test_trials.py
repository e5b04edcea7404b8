"""The benchmarks that distil variants for equal time: at toy size, from the command line to table and picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"

TOY = """
latent = 8
critic = 4
batch_size = 16
pool = ["convnet1-w8"]
network = {name = "pyramid", widths = [8, 8], stem = 4}
[[recipe.legs]]
epochs = 1000
batch_size = 10
lr = 0.01
"""

NETWORKS = """
[width.small]
network = {name = "pyramid", widths = [8, 8], stem = 4}
[width.large]
network = {name = "pyramid", widths = [16, 8], stem = 4}
[upsampling.nearest]
network = {name = "pyramid", widths = [8, 8], stem = 4, upsampling = "nearest"}
"""

LEVERS = """
[base.as-it-is]
["projection conditioning".no-projection]
critic_name = "no-projection"
"""


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Return a function that runs a benchmark on the digits and returns its output and rows."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def run(program: str, variants: str, *arguments: str) -> tuple[str, list[dict]]:
        (tmp_path / "toy.toml").write_text(TOY)
        (tmp_path / "variants.toml").write_text(variants)
        out = tmp_path / "out" / "rows.jsonl"
        common = ["--real", "digits", "--config", "toy.toml", "--variants", "variants.toml", "--out", str(out)]
        small = ["--student", "convnet1-w8", "--epochs", "1", "--device", "cpu", "--compile", "off"]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [program, *common, *small, *arguments])
        __import__(program).main()
        return capsys.readouterr().out, [json.loads(line) for line in out.read_text().splitlines()]

    return run


def test_ablation_of_the_generator(call, tmp_path):
    out, rows = call("generator_ablation", NETWORKS, "--steps", "4", "--plot", "plot.png")
    assert [row["name"] for row in rows] == ["small", "large", "nearest"]
    small, large, nearest = rows
    assert small["mflop"] < large["mflop"]
    assert small["mflop"] == nearest["mflop"]
    assert small["bytes"] > nearest["bytes"]
    assert all(row["steps"] == 4 and row["images_per_second"] > 0 for row in rows)
    assert len({row["key"] for row in rows}) == 3
    assert "training images set aside" in small["scored_on"]
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3
    assert f"{large['accuracy'] - small['accuracy']:+.2f}" in lines[3]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")

    again, same = call("generator_ablation", NETWORKS, "--steps", "4", "--only", "large")
    assert same == rows, "what is there is not made again"
    assert "small" not in again.split("\n\n")[-2]


def test_what_costs_too_much_is_refused_before_anything_is_distilled(call, tmp_path):
    wide = '[width.wide]\nnetwork = {name = "pyramid", widths = [1024, 1024], stem = 1024}\n'
    with pytest.raises(SystemExit, match="wide costs more than 60 MFLOP"):
        call("generator_ablation", wide, "--steps", "4")
    assert not (tmp_path / "out").exists()


def test_levers_of_training(call):
    out, rows = call("training_levers", LEVERS, "--steps", "4", "--seeds", "2")
    assert [(row["name"], row["seed"]) for row in rows] == [
        (name, seed) for seed in (0, 1) for name in ("as-it-is", "no-projection")
    ]
    gains = [after["accuracy"] - before["accuracy"] for before, after in (rows[:2], rows[2:])]
    assert f"{sum(gains) / 2:+.2f} ±" in next(line for line in out.splitlines() if line.startswith("| projection"))


def test_cost_of_scale_gives_more_time_more_steps(call, tmp_path):
    more = ("--marks", "0.005,0.03", "--minutes", "0.005", "--only", "large", "--plot", "plot.svg")
    out, rows = call("cost_of_scale", NETWORKS, *more)
    short, long, large = rows
    assert (short["minutes"], long["minutes"], large["axis"]) == (0.005, 0.03, "bytes")
    assert short["steps"] < long["steps"]
    assert "0.03 minutes" in out
    assert "bytes stored" in (tmp_path / "plot.svg").read_text()
    with pytest.raises(SystemExit):
        call("cost_of_scale", NETWORKS, "--steps", "4")


def test_a_stopped_trial_goes_on_with_its_own_number_of_steps(call, tmp_path):
    _, (row,) = call("generator_ablation", NETWORKS, "--minutes", "0.005", "--only", "small")
    (run,) = (tmp_path / "out" / "rows").glob("small-0-*")
    for path in run.glob("generator/*"):
        path.unlink()
    (run / "generator").rmdir()
    (run / "scores.jsonl").unlink()
    (tmp_path / "out" / "rows.jsonl").write_text('{"key": "cut o')
    _, rows = call("generator_ablation", NETWORKS, "--minutes", "0.005", "--only", "small")
    assert [(again["steps"], again["accuracy"]) for again in rows[-1:]] == [(row["steps"], row["accuracy"])]


def test_an_unknown_variant_is_named(call):
    with pytest.raises(SystemExit, match="no variant larg; it has small, large, nearest"):
        call("generator_ablation", NETWORKS, "--steps", "4", "--only", "larg")


@pytest.mark.parametrize("program", ["generator_ablation", "training_levers", "cost_of_scale"])
def test_the_variants_that_come_along_are_configurations(program, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import training_levers  # noqa: F401 (registers a critic)
    import trials

    from dimdata.distill.config import make_config, merge
    from dimdata.distill.critics import CRITICS
    from dimdata.distill.dim import DimConfig
    from dimdata.generators.network import ARCHITECTURES

    found = trials.variants((BENCHMARKS / program).with_suffix(".toml"))
    assert len(found) >= 5
    for _, settings in found.values():
        network = dict(settings.get("network", {"name": "subpixel"}))
        ARCHITECTURES[network.pop("name")].Config.from_json(network)
        config = make_config(DimConfig, "dim-cifar10", merge({}, settings))
        assert config.critic_name in CRITICS
