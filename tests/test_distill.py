"""The distillation loop, driven with DiM on the bundled digits."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dimdata import artifact
from dimdata.distill.config import about, make_config, merge, parse_setting, presets
from dimdata.distill.dim import DiM, DimConfig
from dimdata.distill.method import METHODS, Phase, Probe
from dimdata.distill.plan import Plan
from dimdata.distill.run import Run, compiling, distill
from dimdata.distill.staging import steps_of
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, DeviceError, FormatError, NotFoundError, RunError, WorldError
from dimdata.evaluate import evaluate
from dimdata.hub.readme import add_scores
from dimdata.real import load_real, random_real
from dimdata.recipe import Leg, Recipe
from dimdata.students.legs import rates_of
from dimdata.students.train import accuracy, train

TINY = {
    "network": {"width": 16, "mid": 16, "stem": 8},
    "latent": 8,
    "critic": 8,
    "batch_size": 20,
    "pool": ["convnet1-w8", "resnet10-w16"],
    "pool_age": 10,
}
PLAIN = {"device": "cpu", "precision": "fp32", "compile": "off"}


def run(out: Path, **changes) -> Path:
    arguments = {"settings": TINY, "steps": 40, **PLAIN, **changes}
    return distill("digits", out=out, **arguments)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def child(
    out: Path,
    *,
    steps: int = 40,
    resume: bool = False,
    before: str = "",
    die_at: int | None = None,
    by: tuple[int, ...] = (signal.SIGKILL,),
) -> subprocess.Popen:
    """Distil in a process of its own, which sends itself signals once step `die_at` is done."""
    code = (
        f"import os, sys\n{before}\nimport torch; torch.set_num_threads(1)\n"
        "from dimdata.distill import run\nfrom dimdata.errors import DimdataError\n"
        "run.CHECKPOINT_SECONDS = 0.0; run.LOG_SECONDS = 0.0\n"
        "def show(event):\n"
        "    print(event.get('step'), flush=True)\n"
        f"    if event.get('step') == {die_at}: [os.kill(os.getpid(), number) for number in {[*map(int, by)]}]\n"
        f"try: run.distill('digits', out={str(out)!r}, settings={TINY!r}, steps={steps}, resume={resume}, "
        f"progress=show, **{PLAIN!r})\n"
        "except DimdataError as error: print(error, file=sys.stderr); sys.exit(error.exit_code)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy()
    )


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    for line in process.stdout:
        if line.strip().isdigit() and int(line) >= step:
            return
    raise AssertionError(process.stderr.read())


def test_a_run_leaves_a_generator_metrics_and_grids(tmp_path):
    events = []
    folder = run(tmp_path / "run", progress=events.append)
    generator = artifact.load(folder)
    assert generator.spec.dataset == "digits"
    assert generator.spec.image_shape == (1, 8, 8)
    images, labels = generator.draw(torch.zeros(10, 8), torch.arange(10))
    assert images.shape == (10, 1, 8, 8)
    assert labels.tolist() == list(range(10))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines == events
    assert {line["phase"] for line in lines} == {"gan", "match"}
    assert lines[-1]["step"] == 40
    assert len(list((tmp_path / "run/grids").glob("*.png"))) == 10
    provenance = json.loads((folder / "config.json").read_text())["provenance"]
    assert provenance["plan"]["steps"] == 40
    assert provenance["real_images_consumed"] == 800


def test_distilled_digits_beat_as_many_random_real_images(tmp_path):
    """One image per class: 60 epochs of fresh draws against the same ten real images, one budget for both."""
    folder = run(
        tmp_path / "run",
        steps=400,
        settings={**TINY, "match_share": 0.1, "critic": 16, "network": {"width": 32, "mid": 16, "stem": 16}},
    )
    real = load_real("digits")
    engine = Engine.of("cpu", "fp32", "off")
    recipe = make_config(DimConfig, {"recipe": {"legs": [{"epochs": 60, "batch_size": 10, "lr": 0.05}]}}).recipe
    scores = {"generated": [], "random": []}
    for seed in range(2):
        for name, source in (("generated", artifact.load(folder)), ("random", random_real(real, 1, seed, recipe))):
            trained = train("convnet2-w16", source, ipc=1, recipe=recipe, seed=seed, engine=engine)
            scores[name].append(
                accuracy(trained.network, real.test.images, real.test.labels, real.mean, real.std, engine)
            )
    assert min(scores["generated"]) > max(scores["random"]) + 0.05, scores


def test_equal_runs_give_equal_weights_and_other_seeds_other_weights(tmp_path):
    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    assert weights(first) == weights(second)
    assert weights(run(tmp_path / "c", seed=1)) != weights(first)


def test_global_random_state_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    run(tmp_path / "run", steps=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_killed_in_the_middle_and_resumed_gives_equal_weights(tmp_path):
    whole = tmp_path / "whole"
    assert child(whole).wait(120) == 0
    killed = tmp_path / "killed"
    for step in (7, 33):  # once in each phase
        process = child(killed, resume=step > 7, die_at=step)
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
    assert not (killed / "generator").exists()
    last = child(killed, resume=True)
    steps = [int(line) for line in last.stdout if line.strip().isdigit()]
    assert last.wait(120) == 0, last.stderr.read()
    assert steps[0] == 33, "the run began again instead of going on"
    assert weights(killed / "generator") == weights(whole / "generator")
    logged = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert logged == sorted(set(logged)), "steps taken twice are logged twice"


def test_ctrl_c_checkpoints_and_says_how_to_go_on(tmp_path):
    process = child(tmp_path / "run", steps=2000)
    wait_for_step(process, 5)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    message = process.stderr.read()
    assert "--resume" in message
    assert "Traceback" not in message
    assert (tmp_path / "run/checkpoint.safetensors").is_file()


@pytest.mark.parametrize("by", [(signal.SIGTERM,) * 3, (signal.SIGTERM, signal.SIGINT)])
def test_asked_to_stop_more_than_once_it_still_keeps_a_checkpoint(by, tmp_path):
    """GNU timeout sends its signal to the process, and again to its group."""
    process = child(tmp_path / "run", steps=2000, die_at=5, by=by)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Stopped at step 5 of 2000" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "run/checkpoint.safetensors").is_file()


def test_a_second_ctrl_c_ends_it_at_once(tmp_path):
    process = child(tmp_path / "run", steps=2000, die_at=1, by=(signal.SIGINT, signal.SIGINT))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Stopping after the step under way" in errors
    assert "goes on from the beginning" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run/checkpoint.safetensors").exists()
    assert child(tmp_path / "run", steps=2000, resume=True, die_at=5, by=(signal.SIGINT,)).wait(120) == 130


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    out = tmp_path / "run"
    assert child(out, steps=20).wait(120) == 0
    before = (out / "checkpoint.safetensors").read_bytes()
    limit = len(before) // 2
    full = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    )
    process = child(out, steps=40, resume=True, before=full)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == WorldError.exit_code, errors
    assert "checkpoint.safetensors" in errors
    assert "Traceback" not in errors
    assert (out / "checkpoint.safetensors").read_bytes() == before
    assert not list(out.glob("*.part")) + list(out.glob(".*.part"))


def test_minutes_become_steps_that_reproduce_the_run(tmp_path):
    folder = run(tmp_path / "timed", steps=None, minutes=0.05)
    plan = json.loads((tmp_path / "timed/run.json").read_text())
    assert plan["minutes"] == 0.05
    assert weights(run(tmp_path / "counted", steps=plan["steps"])) == weights(folder)


def ticking(tmp_path, monkeypatch, seconds, progress=None):
    """Return a run of one phase and a clock that its steps alone move, each by what `seconds` gives of its number."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    class Ticking(DiM):
        def phases(self):
            def step(number):
                clock[0] += seconds(number)
                return {}

            return (Phase("gan", self.steps, step, 1),)

    config, real = make_config(DimConfig, TINY), load_real("digits")
    plan = Plan(method="dim", data=real.name, fingerprint=real.fingerprint, config=config.to_json(), seed=0, steps=10)
    method = Ticking(config, real, Engine.of(*PLAIN.values()), 0, 10)
    return Run(tmp_path / "run", plan, method, progress, ""), clock


def test_minutes_include_compiling_and_measuring(tmp_path, monkeypatch):
    """The first step takes 100 seconds, as where it is compiled, and others take one."""
    run, clock = ticking(tmp_path, monkeypatch, lambda number: 1.0 if number else 100.0)
    run.plan_minutes(10.0, 0)
    spent = clock[0]
    assert spent > 100
    assert run.seconds == spent
    assert run.plan.steps == run.method.steps == 600 - spent


def test_time_is_measured_for_two_seconds_at_least(tmp_path, monkeypatch):
    """A device whose steps are short is timed by many: its first ones are not as fast as the others."""
    events = []
    run, clock = ticking(tmp_path, monkeypatch, lambda number: 0.02 if number < 20 else 0.005, events.append)
    run.plan_minutes(10.0, 0)
    assert clock[0] > 2
    assert run.costs["gan"] == pytest.approx(0.005, rel=0.2)
    assert events == [{"phase": "gan", "note": "Timing a few steps of the phase gan ..."}]


def test_what_a_short_run_would_not_win_back_is_not_compiled():
    assert compiling("auto", 5.0, 1_000) == compiling("auto", None, 60) == "off"
    assert compiling("auto", 10.0, 60) == compiling("auto", None, 100) == "auto"
    assert compiling("on", 1.0, 1) == "on"


def test_a_resumed_run_computes_as_it_began(tmp_path, monkeypatch):
    """A default budget of few steps is one, in the first sitting as in the next."""
    module = sys.modules["dimdata.distill.run"]
    asked, of = [], Engine.of
    monkeypatch.setattr(module.Engine, "of", lambda *words: asked.append(words) or of("cpu", "fp32", "off"))
    settings = {**TINY, "default_steps": 6, "match_share": 0.0}
    words = {"settings": settings, "steps": None, "device": "cpu", "precision": "auto", "compile": "auto"}
    run(tmp_path / "run", **words)
    run(tmp_path / "run", **words, resume=True)
    assert [word[2] for word in asked] == ["off", "off"] * 2


@pytest.mark.parametrize(
    ("leg", "more", "told"),
    [
        ({}, {"tensors": ["x"]}, "names the tensor 'x'"),
        ({"augment": "colour"}, {}, "colour"),
        ({"stage": 2}, {}, "Leg 1 of the recipe is of stage 2, and there will be 1"),
        ({}, {"start": {"law": "stored", "student": "lenet"}}, "starts from stored weights"),
        ({}, {"start": {"law": "default", "student": "convent3"}}, "Did you mean convnet3"),
    ],
)
@pytest.mark.parametrize("method", ["dim", "dm", "pdd"])
def test_a_recipe_that_no_student_can_follow_is_refused_at_once(tmp_path, method, leg, more, told):
    recipe = {"recipe": {"legs": [{"epochs": 10, "batch_size": 10, **leg}], **more}}
    settings = {"dim": TINY | recipe, "dm": recipe, "pdd": {"base": "dim", "settings": TINY | recipe}}[method]
    by_pdd = "|Stages need a recipe of one leg|has 1 stage, not 2" if method == "pdd" else ""
    with pytest.raises((ArgumentError, NotFoundError), match=told + by_pdd) as caught:
        run(tmp_path / "run", method=method, settings=settings)
    assert caught.value.hint
    assert not (tmp_path / "run").exists()


def alone_on_networks(image_shape, num_classes):
    """A network with dropout whose first layer is frozen."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(4 * 6 * 6, num_classes)
    )
    network[0].requires_grad_(False)
    return network


def test_dropout_and_frozen_layers_of_the_pool(tmp_path):
    """A resumed run equals one that never stopped, no global random state is touched, and what is frozen stays so."""
    settings = {**TINY, "pool": ["test_distill:alone_on_networks"], "match_share": 0.5}
    state = torch.get_rng_state()
    whole = run(tmp_path / "whole", settings=settings, steps=12)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    seen = []

    def stop(event):
        seen.append(event)
        if event.get("step") == 9:
            os.kill(os.getpid(), signal.SIGINT)

    sys.modules["dimdata.distill.run"].LOG_SECONDS, kept = 0.0, sys.modules["dimdata.distill.run"].LOG_SECONDS
    try:
        with pytest.raises(RunError, match="Stopped at step"):
            run(tmp_path / "parts", settings=settings, steps=12, progress=stop)
    finally:
        sys.modules["dimdata.distill.run"].LOG_SECONDS = kept
    assert weights(run(tmp_path / "parts", settings=settings, steps=12, resume=True)) == weights(whole)
    made = DiM(make_config(DimConfig, settings), load_real("digits"), Engine.of(*PLAIN.values()), 0, 12)
    made.load_state_dict(load_file(tmp_path / "parts/checkpoint.safetensors"))
    born = DiM(made.config, made.real, made.engine, 0, 12)
    first = [each.pool.member(0).network.network[0].weight for each in (made, born)]
    assert torch.equal(*first)


def test_weights_begin_the_same_whatever_torch_defaults_to():
    config, real, engine = make_config(DimConfig, TINY), load_real("digits"), Engine.of(*PLAIN.values())
    expected = DiM(config, real, engine, 0, 10).state_dict()
    try:
        torch.set_default_device("meta")
        made = DiM(config, real, engine, 0, 10)
    finally:
        torch.set_default_device(None)
    found = made.state_dict()
    for name in expected:
        if name.startswith(("network", "critic", "average")):
            assert torch.equal(found[name], expected[name]), name
    assert made.average.n_averaged.device.type == "cpu"


def test_time_left_is_told_once_all_networks_of_the_pool_had_a_turn(tmp_path, monkeypatch):
    """Each is compiled at its first turn, which says nothing of the others."""
    monkeypatch.setattr(sys.modules["dimdata.distill.run"], "LOG_SECONDS", 0.0)
    events = []
    run(tmp_path / "run", steps=100, progress=events.append)
    config = make_config(DimConfig, TINY)
    periods = {"gan": config.flatness_every, "match": 8}
    for name, period in periods.items():
        told = ["eta_seconds" in event for event in events if event["phase"] == name]
        assert told == [False] * period + [True] * (len(told) - period)


def test_images_that_are_all_alike_are_told(tmp_path, caplog):
    config, real, engine = make_config(DimConfig, TINY), load_real("digits"), Engine.of(*PLAIN.values())
    assert not DiM(config, real, engine, 0, 10).ailing(), "a varied start varies"
    grey = make_config(DimConfig, {**TINY, "start": "grey"})
    assert "all but alike" in DiM(grey, real, engine, 0, 10).ailing()
    settings = {**TINY, "start": "grey", "lr": 1e-9}
    run(tmp_path / "run", settings=settings, steps=20)
    told = [record.getMessage() for record in caplog.records if "all but alike" in record.getMessage()]
    assert len(told) == 1, "once, not at each grid"
    assert told[0].startswith("At step 2 ")
    caplog.clear()
    staged = {"base": "dim", "stages": 2, "settings": settings}
    run(tmp_path / "staged", method="pdd", settings=staged, steps=20)
    (told,) = [record.getMessage() for record in caplog.records if "all but alike" in record.getMessage()]
    assert "--set settings.calm=2000" in told


def test_images_whose_use_was_kept_from_another_run_are_not_counted_again(tmp_path):
    settings = {
        "ipc": 1,
        "student": "convnet1-w8",
        "recipe": {"legs": [{"epochs": 1, "batch_size": 10}]},
        "experts": 2,
        "expert_epochs": 1,
        "max_start": 1,
        "learned_steps": 1,
        "buffer": str(tmp_path / "buffer"),
    }
    images = len(load_real("digits").train.labels)
    run(tmp_path / "first", method="mtt", settings=settings, steps=8)
    run(tmp_path / "second", method="mtt", settings=settings, steps=8)
    assert provenance(tmp_path / "first")["phases"] == provenance(tmp_path / "second")["phases"]
    epochs = provenance(tmp_path / "first")["phases"]["experts"]
    assert provenance(tmp_path / "first")["real_images_consumed"] == epochs * images
    assert provenance(tmp_path / "second")["real_images_consumed"] == 0


def test_the_same_minutes_go_on_with_the_same_steps(tmp_path):
    out = tmp_path / "run"
    folder = run(out, steps=None, minutes=0.05)
    steps = json.loads((out / "run.json").read_text())["steps"]
    again = run(out, steps=None, minutes=0.05, resume=True)
    assert json.loads((out / "run.json").read_text())["steps"] == steps
    assert weights(again) == weights(folder)


def test_resume_before_the_first_checkpoint_keeps_the_plan(tmp_path):
    out = tmp_path / "run"
    whole = run(tmp_path / "whole", steps=6)
    run(out, steps=6)
    (out / "checkpoint.safetensors").unlink()  # as if killed in the first minute
    with pytest.raises(RunError, match=r"seed: 0 -> 3"):
        run(out, steps=None, seed=3, resume=True)
    assert weights(run(out, steps=None, resume=True)) == weights(whole)
    logged = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert logged == sorted(set(logged))


def test_resume_refuses_another_config_and_shows_the_difference(tmp_path):
    run(tmp_path / "run", steps=4)
    with pytest.raises(RunError, match=r"config\.latent: 8 -> 9"):
        run(tmp_path / "run", steps=4, settings={**TINY, "latent": 9}, resume=True)
    with pytest.raises(RunError, match=r"seed: 0 -> 3"):
        run(tmp_path / "run", steps=4, seed=3, resume=True)


def test_a_run_of_before_a_setting_was_known_goes_on(tmp_path):
    """A field that its `run.json` lacks had its default's meaning."""
    out = tmp_path / "run"
    whole = run(tmp_path / "whole", steps=12)
    run(out, steps=12)
    (out / "checkpoint.safetensors").unlink()
    plan = json.loads((out / "run.json").read_text())
    for name in ("round", "penalty", "pool_policy", "match_lr", "gan_epochs"):
        del plan["config"][name]
    (out / "run.json").write_text(json.dumps(plan))
    with pytest.raises(RunError, match=r"config\.round: shared -> alternate"):
        run(out, steps=None, resume=True, settings={**TINY, "round": "alternate"})
    assert weights(run(out, steps=None, resume=True)) == weights(whole)


def provenance(out: Path) -> dict:
    return json.loads((out / "generator/config.json").read_text())["provenance"]


def test_a_longer_budget_goes_on_and_tells_what_was_done(tmp_path):
    run(tmp_path / "run", steps=10)
    assert provenance(tmp_path / "run")["phases"] == {"gan": 7, "match": 3}
    run(tmp_path / "run", steps=20, resume=True)
    assert json.loads((tmp_path / "run/run.json").read_text())["steps"] == 20
    told = provenance(tmp_path / "run")
    assert told["phases"] == {"gan": 7 + 4, "match": 3 + 6}  # the last ten steps of 14 and 6
    assert told["real_images_consumed"] == 20 * 20
    assert "After step 10 the budget was changed from 10 to 20 steps." in told["history"]
    assert "After step 10 the budget" in (tmp_path / "run/generator/README.md").read_text()
    with pytest.raises(RunError, match="20 steps"):
        run(tmp_path / "run", steps=8, resume=True)


def test_stages_that_are_finished_get_no_more_steps(tmp_path):
    settings = {"base": "dim", "stages": 2, "networks": 1, "age": 4, "settings": {**TINY, "match_share": 0.0}}
    run(tmp_path / "run", steps=10, method="pdd", settings=settings)
    before = weights(tmp_path / "run/generator")
    with pytest.raises(RunError, match="in a run of 20, what is finished by now") as caught:
        run(tmp_path / "run", steps=20, method="pdd", settings=settings, resume=True)
    assert "--steps 10" in caught.value.hint
    assert weights(tmp_path / "run/generator") == before
    assert json.loads((tmp_path / "run/run.json").read_text())["steps"] == 10
    assert weights(run(tmp_path / "run", steps=10, method="pdd", settings=settings, resume=True)) == before


def test_a_preset_of_the_base_is_part_of_the_run(tmp_path):
    path = tmp_path / "base.toml"
    path.write_text("latent = 8\ncritic = 8\nbatch_size = 20\nmatch_share = 0.0\nlr = 0.001\n")
    network = {"network": TINY["network"]}
    settings = {"base": "dim", "stages": 2, "networks": 1, "age": 4, "preset": str(path), "settings": network}
    run(tmp_path / "run", steps=6, method="pdd", settings=settings)
    planned = json.loads((tmp_path / "run/run.json").read_text())["config"]
    assert planned["preset"] == ""
    assert planned["settings"]["lr"] == 0.001
    assert planned["settings"]["network"] == TINY["network"] | {"name": "subpixel"}
    again = run(tmp_path / "again", steps=6, method="pdd", settings=None, config=planned)
    assert weights(again) == weights(tmp_path / "run/generator")
    path.write_text(path.read_text().replace("0.001", "0.1"))
    with pytest.raises(RunError, match=r"config\.settings\.lr: 0\.001 -> 0\.1"):
        run(tmp_path / "run", steps=6, method="pdd", settings=settings, resume=True)


def test_a_finished_run_that_is_resumed_keeps_what_was_measured(tmp_path):
    folder = run(tmp_path / "run", steps=4)
    real = load_real("digits")
    score = evaluate(folder, ipc=1, epochs=2, seeds=1, real=real, baselines=(), engine=Engine.of("cpu", "fp32", "off"))
    add_scores(folder, score, artifact.read_config(folder).weights.sha256)
    few = {"images": real.test.images[:7], "labels": real.test.labels[:7]}
    kept = {"scores": artifact.read_config(folder).scores, "provenance": artifact.read_config(folder).provenance}
    artifact.save(artifact.load(folder), folder, holdout=few, **kept)
    run(tmp_path / "run", steps=4, resume=True)
    assert artifact.read_config(folder).scores == kept["scores"] != ()
    assert torch.equal(artifact.holdout(folder)[0], few["images"])
    assert f"{score[0].mean:.2f}" in (folder / "README.md").read_text()
    run(tmp_path / "run", steps=6, resume=True)  # another generator, of which nothing has been measured
    assert not artifact.read_config(folder).scores
    assert artifact.holdout(folder) is None


def test_a_run_stopped_at_a_grid_and_a_probe_makes_both_when_it_goes_on(tmp_path):
    def stop(event):
        if event.get("step") == 5:
            signal.raise_signal(signal.SIGTERM)

    out = tmp_path / "run"
    with pytest.raises(RunError, match=r"Stopped at step [56] of 10"):
        run(out, steps=10, probes=2, progress=stop)
    run(out, steps=10, probes=2, resume=True)
    assert len(list((out / "grids").iterdir())) == 10
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["phase"] == "probe"] == [5, 10]


@pytest.mark.parametrize("setting", [{"storage": "uint8"}, {"latent": 0}])
def test_what_could_not_be_stored_is_refused_before_the_first_step(setting, tmp_path):
    with pytest.raises(FormatError, match=f"generator.{next(iter(setting))}"):
        run(tmp_path / "run", settings={**TINY, **setting})
    assert not (tmp_path / "run").exists()


def test_probes_hold_out_training_images(tmp_path):
    events = []
    run(tmp_path / "run", steps=10, probes=1, progress=events.append)
    scores = [e["validation_accuracy"] for e in events if e["phase"] == "probe"]
    assert len(scores) == 1
    assert 0 <= scores[0] <= 100
    provenance = json.loads((tmp_path / "run/generator/config.json").read_text())["provenance"]
    assert provenance["data"]["images"] < len(load_real("digits").train.labels)


def test_a_probe_follows_the_whole_schedule_in_fewer_steps():
    generator = artifact.load("dim-mnist")
    probe = Probe()
    recipe = probe.recipe(generator)
    (leg,), (whole,) = recipe.legs, generator.recipe.legs
    assert leg.steps == probe.steps < steps_of(whole, probe.ipc * 10)
    assert (leg.schedule, leg.lr, leg.batch_size) == (whole.schedule, whole.lr, whole.batch_size)
    assert rates_of(leg, leg.steps, {})(leg.steps - 1) < leg.lr / 100
    assert train("convnet1-w8", generator, ipc=probe.ipc, recipe=recipe, engine="cpu").steps == probe.steps
    assert dataclasses.replace(probe, steps=10**6).recipe(generator) is generator.recipe
    assert dataclasses.replace(probe, steps=None).recipe(generator) is generator.recipe
    learned = artifact.load("dd-mnist-fixed")
    assert Probe(ipc=None, steps=5).recipe(learned) is learned.recipe  # its step sizes belong to all of its steps
    generator.recipe = Recipe(legs=(Leg(epochs=1_000, batch_size=50), Leg(steps=6_000, batch_size=50)))
    assert [leg.steps for leg in probe.recipe(generator).legs] == [125, 375]
    assert [leg.steps for leg in Probe(ipc=None).recipe(artifact.load("pdd-mnist")).legs] == [125, 125, 250]


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"steps": 0}, ArgumentError, "steps"),
        ({"steps": None, "minutes": -1}, ArgumentError, "minutes"),
        ({"minutes": 1}, ArgumentError, "one of them"),
        ({"settings": {"latnet": 3}}, FormatError, "latent"),
        ({"settings": {"lr": "fast"}}, FormatError, "lr"),
        ({"settings": {"flatness": -1}}, FormatError, "flatness"),
        ({"settings": {"match_weight": -1}}, FormatError, "match_weight"),
        ({"settings": {"class_weight": -0.1}}, FormatError, "class_weight"),
        ({"settings": {"fake_class_weight": -0.1}}, FormatError, "fake_class_weight"),
        ({"settings": {"matching": "logits"}}, NotFoundError, "logit"),
        ({"settings": {"pool": ["convnet3-thick"]}}, NotFoundError, "convnet3"),
        ({"settings": {"network": {"name": "subpixle"}}}, NotFoundError, "subpixel"),
        ({"config": "dim-cifra10"}, NotFoundError, "dim-cifar10"),
        ({"method": "dimm"}, NotFoundError, "dim"),
        ({"device": "cuda:77"}, DeviceError, "--device cpu"),
        ({"precision": "fp8"}, ArgumentError, "bf16"),
        ({"resume": True}, RunError, "no run to resume"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(tmp_path, changes, error, word):
    with pytest.raises(error, match=word):
        run(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        run(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("resume", [False, True])
def test_two_processes_do_not_share_a_folder(resume, tmp_path):
    """The one that comes later is refused before it reads data; that a process died there is no hindrance."""
    out = tmp_path / "run"
    if resume:
        run(out, steps=2)
    slow = (
        "import time\nfrom dimdata.distill import run as loop\n"
        "def load(*arguments, **more):\n    print(0, flush=True)\n    time.sleep(600)\n"
        "loop.load_real = load"
    )
    first = child(out, steps=4, resume=resume, before=slow)
    try:
        wait_for_step(first, 0)
        with pytest.raises(RunError, match=r"Another process is at work in .*another folder"):
            run(out, steps=4, resume=resume)
    finally:
        first.kill()
        first.communicate()
    assert (out / ".lock").exists()
    run(out, steps=4, resume=resume)
    assert not (out / ".lock").exists()


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def lockless(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", lockless)
    run(tmp_path / "run", steps=2)
    assert not (tmp_path / "run" / ".lock").exists()


def test_what_fails_before_it_begins_leaves_no_folder(tmp_path):
    with pytest.raises(NotFoundError):
        distill("no-such-data", out=tmp_path / "runs" / "one", settings=TINY, steps=2, **PLAIN)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(NotFoundError):
        distill("no-such-data", out=tmp_path / "mine", settings=TINY, steps=2, **PLAIN)
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"], "a folder of the user's stays"


def test_another_default_number_of_steps_is_not_passed_over(tmp_path):
    """Whoever resumes a run says whether it is to be longer."""
    out, settings = tmp_path / "run", {**TINY, "default_steps": 4}
    run(out, steps=None, settings=settings)
    longer = {**settings, "default_steps": 6}
    with pytest.raises(RunError, match=r"begun with the 4 steps of its settings, which say 6 now.*--steps 6"):
        run(out, steps=None, settings=longer, resume=True)
    assert provenance(out)["plan"]["steps"] == 4
    run(out, steps=6, settings=longer, resume=True)
    assert provenance(out)["plan"]["steps"] == 6
    assert "from 4 to 6 steps" in provenance(out)["history"]
    run(out, steps=None, settings=longer, resume=True)


def tied(image_shape, num_classes):
    """A network with one tensor under two names."""
    side = image_shape[1] * image_shape[2]
    first, second = torch.nn.Linear(side, side), torch.nn.Linear(side, side)
    second.weight = first.weight
    return torch.nn.Sequential(torch.nn.Flatten(), first, torch.nn.ReLU(), second, torch.nn.Linear(side, num_classes))


def test_layers_of_the_pool_may_share_a_tensor(tmp_path):
    settings = {**TINY, "pool": ["test_distill:tied"], "match_share": 0.5}
    whole = run(tmp_path / "whole", settings=settings, steps=8)
    run(tmp_path / "parts", settings=settings, steps=8)
    (tmp_path / "parts" / "generator" / "model.safetensors").unlink()
    assert weights(run(tmp_path / "parts", settings=settings, steps=8, resume=True)) == weights(whole)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    run(tmp_path / "run", steps=4)
    path = tmp_path / "run/checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"checkpoint\.safetensors cannot be read"):
        run(tmp_path / "run", steps=8, resume=True)


@pytest.mark.parametrize(
    "metadata",
    [{}, {"dimdata": "{}"}, {"dimdata": "[]"}, {"dimdata": '{"done": "four", "seconds": 1}'}, {"dimdata": "cut o"}],
)
def test_a_checkpoint_that_does_not_say_how_far_it_is_is_refused(metadata, tmp_path):
    run(tmp_path / "run", steps=4)
    path = tmp_path / "run/checkpoint.safetensors"
    save_file(load_file(path), path, metadata)
    with pytest.raises(RunError, match=r"checkpoint\.safetensors cannot be read"):
        run(tmp_path / "run", steps=8, resume=True)


@pytest.mark.parametrize(
    ("method", "settings", "hint"),
    [
        ("dm", {"stages": 3}, "It belongs to --method pdd."),
        ("dim", {"base": "dm", "stages": 3}, "It belongs to --method pdd."),
        ("pdd", {"ipc": 6}, "It is a setting of the base dm: --set settings.ipc=..."),
        ("pdd", {"base": "mtt", "experts": 3}, "It is a setting of the base mtt: --set settings.experts=..."),
        ("pdd", {"stagess": 3}, "Did you mean stages or age?"),
        ("dim", {"latnt": 3}, "Did you mean latent or flatness?"),
    ],
)
def test_a_setting_of_another_method_or_of_the_base_is_told_so(method, settings, hint):
    with pytest.raises(FormatError, match="unknown field") as caught:
        make_config(METHODS[method].Config, settings)
    assert caught.value.hint == hint


def test_settings_of_a_base_are_named_as_they_are_given():
    config = make_config(METHODS["pdd"].Config, {"settings": {"ipcc": 6}})
    with pytest.raises(FormatError, match=r"config\.settings has an unknown field 'ipcc'"):
        config.of_base()


def test_a_run_is_not_resumed_by_another_method(tmp_path):
    run(tmp_path / "run", steps=4)
    with pytest.raises(RunError, match="begun with the method dim, not dm") as caught:
        distill("digits", out=tmp_path / "run", method="dm", steps=4, resume=True)
    assert "--method dim" in caught.value.hint


def test_values_too_large_to_store_end_a_run_with_a_remedy(tmp_path):
    settings = {"base": "dm", "stages": 2, "settings": {"ipc": 2, "student": "convnet1-w8", "lr": 1e9, "real_batch": 4}}
    with pytest.raises(RunError, match=r"draws values that are not finite|is not finite") as caught:
        distill("digits", out=tmp_path / "run", method="pdd", settings=settings, steps=40, **PLAIN)
    assert "--set settings.lr=" in caught.value.hint


def test_a_device_without_room_for_the_checkpoint_is_told_as_such(tmp_path, monkeypatch):
    run(tmp_path / "run", steps=4)

    def full(self, state):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(DiM, "load_state_dict", full)
    with pytest.raises(WorldError, match="too little free memory to go on from") as caught:
        run(tmp_path / "run", steps=8, resume=True)
    assert "--device" in caught.value.hint


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(RunError, match="not finite") as caught:
        run(tmp_path / "run", steps=200, settings={**TINY, "lr": 1e18})
    assert "another run" in caught.value.hint  # a resumed one would have to keep the learning rate
    metrics = tmp_path / "run/metrics.jsonl"
    assert not metrics.exists() or "NaN" not in metrics.read_text()


def test_pool_ages_are_staggered_and_networks_are_born_again():
    method = DiM(make_config(DimConfig, TINY), load_real("digits"), Engine.of("cpu", "fp32", "off"), 0, 100)
    first = {m.place: next(m.network.parameters()).clone() for m in method.pool.members}
    phase = method.phases()[1]
    assert [method.pool.limit(m) for m in method.pool.members] == [5, 10]
    for step in range(12):
        phase.step(step)
    young, old = method.pool.members
    assert (young.births, young.age) == (1, 1)
    assert (old.births, old.age) == (0, 6)
    assert not torch.equal(next(young.network.parameters()), first[0])


def test_a_grown_pool_has_its_ages_from_the_start(monkeypatch):
    settings = {**TINY, "pool": ["convnet1-w8"] * 4, "pool_policy": "grown", "match_share": 0.5, "pool_age": 6}

    def made(steps, **changes):
        return DiM(
            make_config(DimConfig, {**settings, **changes}), load_real("digits"), Engine.of(*PLAIN.values()), 0, steps
        )

    def ages(method, steps):
        (*_, phase) = method.phases()
        found = []
        for step in range(steps):
            phase.step(step)
            found.append([member.age for member in method.pool.members])
        return found

    method = made(80)  # of which each place has ten
    assert method.images_beside() == 0
    found = ages(method, 12)
    assert found[3] == [1, 1 + 1, 1 + 3, 1 + 4], "the first four steps are the first turns"
    assert found[7] == [2, 3, 5, 6]
    assert found[11] == [3, 4, 6, 1], "the oldest was replaced, and is not trained beforehand again"
    assert method.images_beside() == (1 + 3 + 4) * 20
    short = made(16)  # of which each place has two: no age is greater
    assert ages(short, 4)[-1] == [1, 1, 2, 2]
    untrained, grown = made(80, pool_policy="staggered"), made(80)
    ages(untrained, 4), ages(grown, 4)
    same = [
        torch.equal(next(a.network.parameters()), next(b.network.parameters()))
        for a, b in zip(untrained.pool.members, grown.pool.members, strict=True)
    ]
    assert same == [True, False, False, False]
    again = made(80)
    again.load_state_dict({name: tensor.clone() for name, tensor in grown.state_dict().items()})
    (*_, one), (*_, other) = grown.phases(), again.phases()
    for step in range(4, 12):
        assert {k: float(v) for k, v in one.step(step).items()} == {k: float(v) for k, v in other.step(step).items()}
    assert again.images_beside() == (1 + 3 + 4) * 20


def test_another_matching_loss_is_one_function(tmp_path):
    """Registered from outside the package, as a user would."""
    from dimdata.distill.losses import MATCHING

    calls = []

    @MATCHING.register("test-mean")
    def mean(real, fake):
        calls.append(1)
        return (real.logits.mean(0) - fake.logits.mean(0)).square().sum()

    run(tmp_path / "run", steps=10, settings={**TINY, "matching": "test-mean"})
    assert calls


def test_settings():
    assert parse_setting("network.width=48") == {"network": {"width": 48}}
    assert parse_setting("augment=flip+crop") == {"augment": "flip+crop"}
    assert parse_setting('pool=["lenet"]') == {"pool": ["lenet"]}
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
    with pytest.raises(ArgumentError, match="name=value"):
        parse_setting("lr")


@pytest.mark.parametrize("given", [{"steps": "2"}, {"minutes": "1"}, {"probes": 0.5}, {"steps": True}])
def test_budgets_of_another_type_are_refused(tmp_path, given):
    with pytest.raises(ArgumentError, match=next(iter(given))):
        run(tmp_path / "run", **{"steps": None, **given})
    assert not (tmp_path / "run").exists()


def test_a_preset_of_another_method_names_its_command():
    with pytest.raises(FormatError) as caught:
        make_config(DimConfig, "pdd-mnist")
    assert caught.value.hint == "The preset is for: dimdata distill mnist --method pdd --config pdd-mnist"


def test_a_folder_that_holds_no_run_is_not_to_be_resumed(tmp_path):
    (tmp_path / "file").write_text("")
    for place, said in ((tmp_path, "is not empty"), (tmp_path / "file", "is a file")):
        with pytest.raises(RunError, match=said) as caught:
            run(place)
        assert "--resume" not in caught.value.hint


def test_another_network_keeps_of_the_options_what_it_has(tmp_path):
    """Those of the network before are no concern of the one that takes its place."""

    def network(*sources):
        return make_config(DimConfig, *sources).network

    path = tmp_path / "mine.toml"
    path.write_text("[network]\nwidth = 80\nmid = 48\nstem = 48\n")
    preset = network(str(path))
    assert preset["name"] == "subpixel"
    assert "width" in preset
    other = {"name": "pyramid", "widths": [8, 8], "condition": "concat"}
    assert network(str(path), {"network": other}) == {**other, "stem": preset["stem"]}
    assert network(str(path), {"network": {"name": "subpixel-coded"}}) == {**preset, "name": "subpixel-coded"}
    assert network(str(path), {"network": {"width": 9}}) == {**preset, "width": 9}
    wrong = {"network": {"name": "pyramid", "width": 8}}
    with pytest.raises(FormatError, match="width"):
        DiM(make_config(DimConfig, str(path), wrong), load_real("digits"), Engine.of(*PLAIN.values()), 0, 4)


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_for_the_command_that_it_names(name):
    what, command = about(name)
    assert what
    words = command.split()
    assert words[words.index("--config") + 1] == name
    kind = METHODS[words[words.index("--method") + 1] if "--method" in words else "dim"]
    assert kind.default_steps(make_config(kind.Config, name)) > 0


def test_checkpoints_come_without_asking(tmp_path):
    process = child(tmp_path / "run", steps=100_000)
    wait_for_step(process, 3)
    deadline = time.monotonic() + 30
    while not (tmp_path / "run/checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait(30)
    assert (tmp_path / "run/checkpoint.safetensors").exists()


def test_a_first_step_that_compiles_tells_neither_rate_nor_time(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["dimdata.distill.run"], "LOG_SECONDS", 0.0)
    events = []
    run(tmp_path / "run", steps=6, progress=events.append)
    by_phase = [[event for event in events if event["phase"] == phase] for phase in ("gan", "match")]
    for *first, last in by_phase:  # fewer than a period of either phase
        assert not any("eta_seconds" in event or "images_per_second" in event for event in first)
        assert last["eta_seconds"] >= 0
        assert last["images_per_second"] > 0
