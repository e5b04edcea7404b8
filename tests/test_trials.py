"""The benchmarks that distil variants for equal time: at toy size, from the command line to table and picture."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

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
        monkeypatch.setattr(__import__("trials"), "TIMED_SECONDS", 0.0)
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


def test_a_trial_that_fails_is_a_row_and_the_others_go_on(call, monkeypatch):
    import trials

    from dimdata.errors import RunError

    whole = trials.distill

    def distill(*arguments, **settings):
        if settings["config"].lr == 1e-4 and settings["seed"] == 1:
            raise RunError("The loss is no number.")
        return whole(*arguments, **settings)

    monkeypatch.setattr(trials, "distill", distill)
    variants = LEVERS + '["rate".small]\nlr = 1e-4\n'
    out, rows = call(
        "training_levers", variants, "--steps", "4", "--seeds", "2", "--only", "as-it-is", "--only", "small"
    )
    assert [row["accuracy"] is None for row in rows] == [False, False, False, True]
    assert rows[-1]["failed"] == "The loss is no number."
    assert "small, seed 1: failed: The loss is no number." in out
    assert re.search(
        r"\| 1 \(failed: (0, )?1\) \|", next(line for line in out.splitlines() if line.startswith("| rate"))
    )


def test_trials_begin_calmly_unless_they_are_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import trials

    (tmp_path / "toy.toml").write_text(TOY)
    common = ["--real", "digits", "--config", str(tmp_path / "toy.toml"), "--out", str(tmp_path / "rows.jsonl")]

    def config(*more):
        return trials.Bench(trials.options("").parse_args([*common, "--device", "cpu", *more])).config({})

    assert (config().start, config().calm) == ("varied", 500)
    told = config("--set", "calm=0")
    assert (told.start, told.calm) == ("varied", 0)


@pytest.mark.parametrize("preset", ["dim-cifar10", "dim-cifar10-gpu", "paper"])
def test_levers_of_the_share_of_matching_hold_for_presets_that_count_epochs(preset, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import trials

    from dimdata.distill.config import make_config
    from dimdata.distill.dim import DimConfig

    for axis, settings in trials.variants(BENCHMARKS / "training_levers.toml").values():
        if axis == "time given to matching":
            config = make_config(DimConfig, preset, settings)
            assert (config.gan_epochs, config.match_epochs) == (0, 0), "or its share of the steps would say nothing"


def test_the_critic_without_projection_is_that_of_the_base_but_for_it(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import training_levers  # noqa: F401 (registers it)

    from dimdata.distill.config import make_config
    from dimdata.distill.critics import CRITICS
    from dimdata.distill.dim import DimConfig

    name = make_config(DimConfig, "dim-cifar10").critic_name
    base, without = (CRITICS[each]((3, 16, 16), 10, 8) for each in (name, "no-projection"))
    shapes = {key: tensor.shape for key, tensor in base.state_dict().items() if not key.startswith("project.")}
    assert {key: tensor.shape for key, tensor in without.state_dict().items()} == shapes
    without.load_state_dict({key: tensor for key, tensor in base.state_dict().items() if key in shapes})
    base.project.weight.data.zero_()
    base.project.bias.data.zero_()
    images, labels = torch.rand(4, 3, 16, 16), torch.arange(4)
    for one, other in zip(base(images, labels), without(images, labels), strict=True):
        assert torch.equal(one, other)


def test_every_trial_has_room_for_what_it_compiles(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import trials

    arguments = ["--real", "digits", "--config", str(tmp_path / "toy.toml"), "--out", str(tmp_path / "rows.jsonl")]
    (tmp_path / "toy.toml").write_text(TOY)
    arguments = trials.options("").parse_args([*arguments, "--device", "cpu", "--compile", "on"])
    outside, inside = torch._dynamo.config.recompile_limit, []

    class Bench(trials.Bench):
        def _make(self, trial, config, key):
            inside.append(torch._dynamo.config.recompile_limit)
            return {"steps": 1, "mflop": 1.0, "bytes": 1, "accuracy": 1.0}

    Bench(arguments).run(trials.Trial(name, "", {"latent": 4 + n}, 1.0, 0) for n, name in enumerate("ab"))
    assert len(inside) == 2
    assert min(inside) > outside == torch._dynamo.config.recompile_limit


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


TABLES = """
student = "convnet1-w8"
{own}
[[recipe.legs]]
epochs = 8
batch_size = 15
lr = 0.05
"""
OF = {
    "idc": "real_batch = 4\nnet_batch = 20\nnet_steps = 1",
    "mtt": "experts = 2\nmax_start = 1\nexpert_epochs = 1\nlearned_steps = 2\nstep_size = 0.05\nzca = 0.1",
}


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """Return a function that compares a base with its stages on the digits, and returns the summary and the runs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("DIMDATA_BUFFERS", str(tmp_path / "cache"))

    def run(program: str, base: str, *arguments: str) -> tuple[dict, list[dict]]:
        (tmp_path / "base.toml").write_text(TABLES.format(own=OF[base]))
        common = ["digits", "--base", base, "--preset", str(tmp_path / "base.toml"), "--student", "convnet1-w8"]
        places = ["--out", str(tmp_path / "out.json"), "--work", str(tmp_path / "work"), "--stages", "2"]
        small = ["--set", "augment=none"]
        monkeypatch.setattr(sys, "argv", [program, *common, *small, *places, *arguments])
        with torch.compiler.set_stance("force_eager"):  # compiling would take longer than all else
            __import__(program).main()
        rows = [json.loads(line) for path in (tmp_path / "work").rglob("scores.jsonl") for line in path.open()]
        return json.loads((tmp_path / "out.json").read_text()), rows

    return run


@pytest.mark.parametrize(("base", "fixed", "images"), [("idc", 0, 4), ("mtt", 2, 1)])
def test_larger_sets_are_trained_on_alike(compare, base, fixed, images):
    summary, rows = compare("pdd_curve", base, "--per-stage", "1", "--steps", "3")
    assert summary["fixed_steps"] == fixed
    assert [len(point[kind]) for point in summary["points"] for kind in ("single", "progressive")] == [1] * 4
    by_images = {}
    for row in rows:
        by_images.setdefault(row["images"], []).append(row["steps"])
    assert {count: len(steps) for count, steps in by_images.items()} == {10 * images: 2, 20 * images: 2}
    assert all(len(set(steps)) == 1 for steps in by_images.values())


def test_stages_and_the_base_match_in_as_many_steps(compare, tmp_path):
    summary, rows = compare("pdd_gain", "mtt", "--ipc", "2", "--steps", "4", "--seeds", "1", "--pdd", "networks=1")
    assert (summary["steps"], summary["fixed_steps"]) == (4, 2)
    found = {}
    for path in (tmp_path / "work").rglob("generator/config.json"):
        phases = json.loads(path.read_text())["provenance"]["phases"]
        found[len(phases)] = sum(count for name, count in phases.items() if name.endswith("match"))
    assert found == {2: 4, 4: 4}
    assert len({row["steps"] for row in rows}) == 1


DD = ["digits", "--base", "dd", "--set", "student=mlp", "--set", "begin=random", "--set", "epochs=2", "--each"]


@pytest.mark.parametrize(
    ("program", "more"),
    [
        ("pdd_gain", ["--set", "inner_steps=2", "--seeds", "1"]),
        ("pdd_curve", ["--amount", "inner_steps", "--per-stage", "1"]),
    ],
)
def test_learned_steps_are_compared_at_equal_cost(program, more, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    places = ["--out", str(tmp_path / "out.json"), "--work", str(tmp_path / "work"), "--stages", "2", "--steps", "5"]
    monkeypatch.setattr(sys, "argv", [program, *DD, *more, *places, "--pdd", "networks=1"])
    with torch.compiler.set_stance("force_eager"):
        __import__(program).main()
    steps = {}
    for path in (tmp_path / "work").rglob("generator/config.json"):
        config = json.loads(path.read_text())
        steps[len(config["recipe"]["legs"]), config["generator"]["images"]] = config["provenance"]["phases"]
    assert steps[1, 20] == {"unroll": 5}
    assert steps[2, 20] == {"stage 1: unroll": 5, "stage 2: unroll": 5}
    summary = json.loads((tmp_path / "out.json").read_text())
    if program == "pdd_gain":
        assert summary["accuracy"].keys() == {"single", "progressive"}
        assert (summary["accuracy"]["single"].keys(), summary["accuracy"]["progressive"].keys()) == (
            {"one_leg"},
            {"walked"},
        )
    else:
        assert [(point["images"], point["student_steps"]) for point in summary["points"]] == [(10, 2), (20, 4)]


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
    assert len(found) >= 4
    for _, settings in found.values():
        network = dict(settings.get("network", {"name": "subpixel"}))
        ARCHITECTURES[network.pop("name")].Config.from_json(network)
        config = make_config(DimConfig, "dim-cifar10", merge({}, settings))
        assert config.critic_name in CRITICS


def test_the_device_is_waited_for_at_the_end_of_the_steps_alone(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import trials

    from dimdata.distill.method import Phase

    told = []

    class Loss:
        def __init__(self, step):
            self.step = step

        def item(self):
            told.append(f"wait {self.step}")

    def step(number):
        told.append(number)
        return {"loss": Loss(number)}

    trials._take(Phase("gan", 9, step, 0), 3, 4)
    assert told == [3, 4, 5, 6, "wait 6"]
