"""What a dry run tells: time, memory and disk, of every method, and that it writes nothing."""

import dataclasses
import json
import re
import sys
import time
from pathlib import Path

import pytest

from dimdata.cli.main import main
from dimdata.distill.config import make_config
from dimdata.distill.estimate import _seconds, estimate, steps_within
from dimdata.distill.method import METHODS, Phase
from dimdata.distill.mtt import MttConfig
from dimdata.distill.plan import Plan
from dimdata.distill.run import Run, distill
from dimdata.engine import Engine
from dimdata.errors import ArgumentError
from dimdata.real import load_real

PLAIN = {"device": "cpu", "precision": "fp32", "compile": "off"}
CPU = Engine.of(*PLAIN.values())
RECIPE = {"legs": [{"epochs": 4, "batch_size": 10}]}
TABLE = {"ipc": 2, "student": "convnet1-w8", "recipe": RECIPE}
TINY = {
    "dim": {
        "network": {"width": 16, "mid": 16, "stem": 8},
        "latent": 8,
        "critic": 8,
        "batch_size": 20,
        "pool": ["convnet1-w8"],
    },
    "dd": {"student": "mlp", "inner_steps": 2, "epochs": 2, "batch_size": 50},
    "dm": TABLE | {"real_batch": 8, "zca": 0.1},
    "idc": TABLE | {"real_batch": 4, "net_batch": 20, "net_steps": 1},
    "mtt": TABLE | {"experts": 3, "expert_epochs": 1, "max_start": 2, "learned_steps": 3, "expert_augment": "crop"},
    "pdd": {"base": "mtt", "stages": 2, "networks": 1, "age": 2},
}
TINY["pdd"]["settings"] = TINY["mtt"]
STEPS = {"mtt": 20, "pdd": 40}


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """An empty folder to run in, with the cache of trajectories inside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIMDATA_BUFFERS", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module")
def real():
    return load_real("digits")


def make(name, real, steps=0, **settings):
    kind = METHODS[name]
    config = make_config(kind.Config, TINY[name] | settings)
    return kind(config, real, CPU, 0, steps or STEPS.get(name, 6))


def size_of(folder, but=()):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name not in but)


def held() -> int:
    """Return the most bytes that this process has held."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs Linux")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])


def test_every_method_is_tried_here():
    ours = {name for name in METHODS if METHODS[name].__module__.startswith("dimdata.")}
    assert set(TINY) == ours


@pytest.mark.parametrize("name", TINY)
def test_every_method_can_be_estimated(name, real, places):
    method = make(name, real)
    planned = {phase.name: phase.steps for phase in method.phases()}
    found = estimate(method)
    assert held() / 2 < found.memory_bytes < 2**36, "bytes, neither kilobytes nor their thousandfold"
    assert {phase: each.steps for phase, each in found.phases.items()} == planned
    for each in found.phases.values():
        assert each.seconds_per_step > 0
        assert each.seconds == pytest.approx((each.steps - each.ready) * each.seconds_per_step)
    assert found.seconds == pytest.approx(sum(each.seconds for each in found.phases.values()))
    assert found.checkpoint_bytes > 0
    assert found.folder_bytes > 2 * found.checkpoint_bytes
    assert list(places.iterdir()) == [], "nothing is written"


@pytest.mark.parametrize(("base", "form"), [("dm", {}), ("dim", {}), ("dim", {"network": {"name": "subpixel-coded"}})])
def test_the_size_of_all_stages_is_told_beforehand(base, form, real):
    small = {"width": 16, "mid": 16, "stem": 8}
    settings = TINY[base] | ({"network": small | form.get("network", {})} if base == "dim" else {"ipc": 4})
    settings |= {"recipe": {"legs": [{"epochs": 4, "batch_size": 10}]}}
    method = make("pdd", real, steps=8, base=base, settings=settings)
    told = method.outline().nbytes
    for phase in method.phases():
        for step in range(phase.steps):
            phase.step(step)
    whole = method.generator()
    assert whole.stages == 2
    assert told == whole.nbytes


def test_networks_of_later_stages_are_told_beside_the_steps(real, capsys, monkeypatch, places):
    settings = {"base": "dm", "stages": 3, "networks": 2, "settings": TABLE | {"ipc": 6, "real_batch": 8}}
    method = make("pdd", real, steps=12, **settings)
    trained = []
    shelf = sys.modules["dimdata.distill.pdd"].Shelf
    whole = shelf.steps
    monkeypatch.setattr(shelf, "steps", lambda self, number: trained.append(whole(self, number)) or trained[-1])
    told = method.beside()
    for phase in method.phases():
        for step in range(phase.steps):
            phase.step(step)
    assert len(trained) == 2 * 2
    assert f" {sum(trained):,} student steps in all" in told
    assert make("pdd", real, steps=12, **settings | {"stages": 1}).beside() == ""
    seen = 6 * len(real.train)
    assert f"on {seen:,} real images before" in make("pdd", real, steps=12, **settings | {"drop": 0.5}).beside()
    small = [word for name in ("ipc=2", "student=convnet1-w8") for word in ("--set", f"settings.{name}")]
    command = [
        "distill",
        "digits",
        "--method",
        "pdd",
        "--stages",
        2,
        *small,
        "--steps",
        4,
        "--compile",
        "off",
        "--dry-run",
    ]
    code, printed = call(capsys, *command)
    assert code == 0
    assert "that time is not counted" in " ".join(printed.out.split())


@pytest.mark.parametrize("name", ["dim", "dd", "dm", "mtt"])
def test_the_disk_is_enough_and_not_far_too_much(name, real, places):
    """Against a real run: its last checkpoint, and the folder at its end."""
    found = estimate(make(name, real))
    distill(real, out="run", method=name, settings=TINY[name], steps=STEPS.get(name, 6), **PLAIN)
    checkpoint = (places / "run/checkpoint.safetensors").stat().st_size
    headers = 30_000  # names and shapes of the tensors
    assert checkpoint <= found.checkpoint_bytes + headers
    folder = size_of(places / "run", but=("metrics.jsonl", "run.json", "README.md", "config.json"))
    assert folder <= found.folder_bytes + headers
    if name != "mtt":  # whose checkpoints are largest while experts are trained
        assert found.checkpoint_bytes <= checkpoint


def test_the_trajectories_are_told_before_they_are_written(real, places):
    found = estimate(make("mtt", real))
    distill(real, out="run", method="mtt", settings=TINY["mtt"], steps=20, **PLAIN)
    written = size_of(places / "cache", but=("buffer.json",))
    assert 0 < found.outside_bytes <= written <= found.outside_bytes + 3 * 1000
    again = estimate(make("mtt", real))
    assert again.outside_bytes == 0
    assert again.phases["experts"].ready == again.phases["experts"].steps == 6
    assert again.phases["experts"].seconds == 0
    assert again.seconds == again.phases["match"].seconds


def test_the_largest_checkpoint_holds_an_expert_under_way(real):
    mtt = make("mtt", real, expert_momentum=0.9)
    told = mtt.checkpoint_bytes()
    phase = mtt.phases()[0]
    sizes = []
    for step in range(phase.steps):
        phase.step(step)
        sizes.append(sum(tensor.nbytes for tensor in mtt.state_dict().values()))
    assert max(sizes) <= told
    assert told < 3 * max(sizes)


def test_a_part_of_an_expert_is_the_share_it_says(real):
    mtt = make("mtt", real, expert_batch=100)
    losses, share = mtt.phases()[0].part()
    assert share == pytest.approx(2 / 13), "1,297 images are 13 batches"
    assert float(losses["expert"]) > 0


def test_steps_that_fit_into_minutes(real):
    found = estimate(make("dm", real), minutes=0.5)
    (phase,) = found.phases.values()
    assert phase.steps > 6
    assert found.seconds <= 30
    assert found.seconds > 30 - 2 * phase.seconds_per_step


def test_what_is_there_of_the_first_stage_is_not_there_of_later_ones(real, places):
    fresh = estimate(make("pdd", real))
    first = make("pdd", real).base
    for step in range(6):
        first.phases()[0].step(step)
    again = estimate(make("pdd", real))
    ready = {name: phase.ready for name, phase in again.phases.items() if name.endswith("experts")}
    assert ready == {"stage 1: experts": 6, "stage 2: experts": 0}
    assert again.phases["stage 2: experts"].seconds > 0
    assert again.outside_bytes == fresh.outside_bytes / 2 == 3 * first.buffer.info.bytes
    assert again.checkpoint_bytes == fresh.checkpoint_bytes, "the second stage has experts under way"


def test_phases_of_fixed_length_come_off_the_time_first():
    def phase(name, steps, **more):
        return Phase(name, steps, lambda step: {}, 0, **more)

    costs = {"experts": 2.0, "match": 1.0, "polish": 3.0}
    match, polish = phase("match", 600), phase("polish", 200)
    phases = (phase("experts", 40, fixed=True), match, polish)  # 80 seconds, and 1.5 a step
    assert steps_within(5.0, phases, costs) == 40 + 146
    assert steps_within(5.0, (phase("experts", 40, fixed=True, ready=30), match, polish), costs) == 40 + 186
    assert steps_within(5.0, phases, costs, spent=80.0, taken={"experts": 40}) == 40 + 146
    assert steps_within(5.0, phases, costs, spent=20.0, taken={"experts": 10}) == 40 + 146
    assert steps_within(5.0, (match, polish), costs) == 200
    assert steps_within(1e-9, (match, polish), costs) == 2, "one of each"
    assert steps_within(84 / 60, phases, costs) == 42
    assert steps_within(1.0, phases, costs, spent=90.0, taken={"experts": 40, "match": 9, "polish": 1}) == 50
    # 300 seconds that begin after 400 matching steps in 400: the others in their shares of 600, 450 and 150, take 500
    assert steps_within(15.0, (match, polish), costs, spent=400.0, taken={"match": 400}) == 600
    words = r"All of experts and a step of match, polish take about 1\.4 minutes, and 1\.3 were given"
    with pytest.raises(ArgumentError, match=words) as caught:
        steps_within(1.3, phases, costs)
    assert caught.value.hint == "Give 1.6 minutes or more."
    assert steps_within(1.6, phases, costs) > 42


@pytest.mark.parametrize("name", ["mtt", "pdd"])
def test_a_run_planned_by_time_has_matching_steps_and_trains_no_expert_for_it(name, real, places):
    kind = METHODS[name]
    config = make_config(kind.Config, TINY[name])
    facts = {"method": name, "data": real.name, "fingerprint": real.fingerprint, "config": config.to_json()}
    plan = Plan(**facts, seed=0, steps=STEPS[name])
    method = kind(config, real, CPU, 0, plan.steps)
    before = {key: tensor.clone() for key, tensor in method.state_dict().items()}
    run = Run(places / "run", plan, method, None, "")
    run.plan_minutes(60.0, 0)
    steps = {phase.name: phase.steps for phase in method.phases()}
    assert sum(steps.values()) == run.plan.steps == method.steps
    experts = 3 * make_config(MttConfig, TINY["mtt"]).passes()
    assert {count for phase, count in steps.items() if phase.endswith("experts")} == {experts}
    assert min(count for phase, count in steps.items() if phase.endswith("match")) > 100
    after = method.state_dict()
    assert after.keys() == before.keys()
    assert all(after[key].equal(before[key]) for key in before)
    assert list(places.iterdir()) == [], "nothing is written"
    with pytest.raises(ArgumentError, match=r"All of .*experts and a step of .*match take about .* minutes"):
        run.plan_minutes(1e-6, 0)
    with pytest.raises(ArgumentError, match=r"All of .*experts and a step of .*match take about .* minutes"):
        estimate(make(name, real), minutes=1e-6)
    assert sum(each.steps for each in estimate(make(name, real), minutes=60.0).phases.values()) > 200


@pytest.mark.parametrize(("compiled", "each", "taken"), [(False, 11, 1), (True, 11, 2), (True, 130, 1), (False, 2, 3)])
def test_a_long_first_step_is_not_repeated_unless_compiling_may_be_much_of_it(compiled, each, taken, monkeypatch):
    clock, steps = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def step(number):
        clock[0] += each
        steps.append(number)
        return {}

    engine = dataclasses.replace(CPU, compiled=compiled)
    assert _seconds(Phase("long", 5, step, 1), engine) == each
    assert len(steps) == taken


@pytest.mark.parametrize("own", [0.3, 40.0])
def test_compiling_the_networks_of_a_pool_one_after_another_is_no_part_of_a_step(own, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def step(number):
        clock[0] += own + (60.0 if number < 4 else 0.0)
        return {}

    phase = Phase("match", 1000, step, 1, period=8)
    found = _seconds(phase, dataclasses.replace(CPU, compiled=True))
    assert found == pytest.approx(own if own < 1 else own + 30), "a step of minutes is not repeated for that"


def test_stages_alike_are_timed_once(real):
    timed = []
    found = estimate(make("pdd", real), on_phase=timed.append)
    assert timed == ["stage 1: experts", "stage 1: match"]
    costs = {name: phase.seconds_per_step for name, phase in found.phases.items()}
    assert costs["stage 1: match"] == costs["stage 2: match"]


# --- the command -----------------------------------------------------------------------------------------------------


def options(settings):
    words = []
    for key, value in settings.items():
        if isinstance(value, dict) and key == "network":
            words += options({f"network.{name}": each for name, each in value.items()})
        else:
            text = json.dumps(value) if isinstance(value, list | str) else value
            words += ["--set", f"{key}={text}"]
    return words


def words(name, *more, **changed):
    settings = {key: value for key, value in (TINY[name] | changed).items() if key != "recipe"}
    plain = ["--device", "cpu", "--precision", "fp32", "--compile", "off"]
    return ["distill", "digits", "--method", name, "--dry-run", *options(settings), *plain, *more]


def call(capsys, *text):
    capsys.readouterr()
    code = main([str(word) for word in text])
    return code, capsys.readouterr()


def test_the_command_prints_time_memory_and_disk_and_writes_nothing(capsys, places):
    code, printed = call(capsys, *words("mtt", "--steps", 20))
    assert code == 0
    facts = " ".join(printed.out.split())
    for text in ("budget 20 steps (experts 6 of 1,297 real images, match 14)", "time about", "s a step", "memory"):
        assert text in facts
    assert "of the process at most so far" in facts
    assert "in runs/mtt-digits, a checkpoint having" in facts
    assert "outside it;" in facts
    assert "free" in facts
    assert "Timing a few steps of the phase match" in printed.err
    assert "3 expert trajectories of convnet1-w8 will take" in " ".join(printed.err.split())
    assert list(places.iterdir()) == []


def test_the_command_tells_machines(capsys, places):
    code, printed = call(capsys, *words("dm", "--steps", 7, "--json", "-o", "mine"))
    assert code == 0
    plan = json.loads(printed.out)
    assert plan["steps"] == 7
    assert plan["phases"]["match"]["steps"] == 7
    assert plan["seconds"] == pytest.approx(7 * plan["phases"]["match"]["seconds_per_step"])
    assert plan["disk"]["folder"] == "mine"
    assert plan["disk"]["outside_bytes"] == 0
    assert plan["disk"]["free_bytes"] > plan["disk"]["folder_bytes"] > 2 * plan["disk"]["checkpoint_bytes"]
    assert plan["memory"]["peak_bytes"] > plan["memory"]["images_bytes"] > 0
    assert list(places.iterdir()) == []


def test_too_little_room_is_said(capsys, monkeypatch):
    monkeypatch.setattr("dimdata.files.free_bytes", lambda folder: 1000)
    code, printed = call(capsys, *words("dm", "--steps", 2))
    assert code == 0
    assert "too little room" in printed.err


@pytest.mark.parametrize("name", ["mtt-cifar10-ipc10", "mtt-cifar10-ipc50", "idc-cifar10-ipc10", "idc-cifar10-ipc50"])
def test_presets_of_paper_scale(name):
    """They are what their names say, and can be the base of five stages."""
    method, _, ipc = name.split("-")
    kind = METHODS[method]
    config = make_config(kind.Config, name)
    assert config.ipc == int(ipc.removeprefix("ipc"))
    assert kind.for_stages(config, 5).ipc == config.ipc // 5
    assert config.recipe.legs[0].epochs == 1000
    assert (config.zca > 0) == (method == "mtt")
    assert config.default_steps == {"mtt": 5_000, "idc": 200_000}[method]
