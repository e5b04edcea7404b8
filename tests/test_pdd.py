"""Progressive distillation over several bases, on the bundled digits."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from dimdata import artifact, latents
from dimdata.cli.main import main
from dimdata.dataset import GeneratedDataset
from dimdata.distill.config import make_config
from dimdata.distill.estimate import estimate
from dimdata.distill.forgetting import forgetting_counts, hardest
from dimdata.distill.method import METHODS, Method, Phase
from dimdata.distill.pdd import PDD, PddConfig
from dimdata.distill.run import Run, distill
from dimdata.distill.shelf import RealSteps, Shelf, fresh_ipc
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, FormatError, NotFoundError
from dimdata.evaluate import evaluate
from dimdata.generators.base import Generator
from dimdata.real import Split, load_real
from dimdata.spec import Record
from dimdata.students import compiling
from dimdata.students.source import InitLaw
from dimdata.students.train import accuracy, train
from dimdata.whitening import Whitening

PLAIN = {"device": "cpu", "precision": "fp32", "compile": "off"}
ENGINE = Engine.of("cpu", "fp32", "off")
DM = {
    "ipc": 6,
    "student": "convnet1-w8",
    "real_batch": 4,
    "recipe": {"legs": [{"epochs": 40, "batch_size": 40, "lr": 0.05}]},
}
OVER_DM = {"base": "dm", "stages": 3, "settings": DM, "networks": 2, "age": 8}
DIM = {
    "network": {"width": 16, "mid": 16, "stem": 8},
    "latent": 8,
    "critic": 8,
    "batch_size": 20,
    "pool": ["convnet1-w8"],
    "match_share": 0.5,
    "recipe": {"legs": [{"epochs": 4, "batch_size": 20}]},
}
OVER_DIM = {"base": "dim", "stages": 2, "settings": DIM, "networks": 1, "age": 4}
CODED = OVER_DIM | {"settings": DIM | {"network": {"name": "subpixel-coded", "width": 16, "mid": 16, "stem": 8}}}


def method(settings=OVER_DM, steps=12, seed=0):
    return PDD(make_config(PddConfig, settings), load_real("digits"), ENGINE, seed, steps)


def take(pdd, first, last):
    """Take steps counted over all phases, as a run does."""
    number = 0
    for phase in pdd.phases():
        for step in range(phase.steps):
            if first <= number < last:
                phase.step(step)
            number += 1


def tensors(generator):
    return generator.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def child(out, settings, *, steps, resume=False, die_at=None):
    """Distil in a process of its own, which kills itself once step `die_at` is done."""
    code = (
        "import os, sys\nimport torch; torch.set_num_threads(1)\n"
        "from dimdata.distill import run\n"
        "run.CHECKPOINT_SECONDS = 0.0; run.LOG_SECONDS = 0.0\n"
        "def show(event):\n"
        "    print(event.get('step'), flush=True)\n"
        f"    if event.get('step') == {die_at}: os.kill(os.getpid(), 9)\n"
        f"run.distill('digits', out={str(out)!r}, method='pdd', settings={settings!r}, steps={steps}, "
        f"resume={resume}, progress=show, **{PLAIN!r})\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ.copy())


def test_a_run_in_stages_from_start_to_student(tmp_path):
    folder = distill("digits", out=tmp_path / "run", method="pdd", settings=OVER_DM, steps=12, **PLAIN)
    generator = artifact.load(folder)
    assert (generator.spec.method, generator.stages, generator.images) == ("pdd", 3, 60)
    config = json.loads((folder / "config.json").read_text())
    assert config["provenance"]["phases"] == {f"stage {stage}: match": 4 for stage in (1, 2, 3)}
    assert torch.equal(generator.view(stage=1).table, generator.table[:20])
    assert len(GeneratedDataset(generator, stage=2)) == 40
    result = train("convnet1-w8", generator, engine=ENGINE)
    assert result.steps == 80, "as many as 40 epochs of 60 images in batches of 40"
    with pytest.raises(ArgumentError, match="3 stages, not 4"):
        GeneratedDataset(generator, stage=4)


def test_the_first_stage_is_the_base_by_itself():
    pdd = method()
    take(pdd, 0, 4)
    kind = METHODS["dm"]
    share = DM | {"ipc": 2, "lr": kind.Config().lr / math.sqrt(3)}
    base = kind(make_config(kind.Config, share), load_real("digits"), ENGINE, 0, 4)
    take(base, 0, 4)
    assert torch.equal(pdd.generator().table, base.generator().table)


def test_earlier_stages_are_frozen_and_later_ones_differ():
    pdd = method()
    take(pdd, 0, 4)
    first = pdd.generator().table.clone()
    take(pdd, 4, 12)
    whole = pdd.generator()
    assert torch.equal(whole.table[:20], first)
    assert not torch.equal(whole.table[20:40], first)
    assert not torch.equal(whole.table[40:], whole.table[20:40])


def test_a_later_stage_sees_networks_trained_on_the_union_before(monkeypatch):
    seen = []

    class Kept(Shelf):
        def network(self, number):
            seen.append((self.generator.stages, number % self.size))
            return super().network(number)

    monkeypatch.setattr(sys.modules["dimdata.distill.pdd"], "Shelf", Kept)
    pdd = method()
    take(pdd, 0, 4)
    assert not seen, "the first stage has no stage before it"
    take(pdd, 4, 8)
    assert {stages for stages, _ in seen} == {1}
    assert {place for _, place in seen} == {0, 1}
    take(pdd, 8, 12)
    assert {stages for stages, _ in seen} == {1, 2}


def test_networks_of_a_shelf_are_trained_staggered_and_copied():
    pdd = method()
    take(pdd, 0, 4)
    generator = pdd.generator().view(stage=1)
    source = InitLaw("convnet1-w8", (1, 8, 8), 10)
    shelf = Shelf(generator, source, 2, 8, 0.0, 0, ENGINE)
    young, old, again = shelf.network(0), shelf.network(1), shelf.network(2)

    def distance(network, number):
        start = source.network(number).state_dict()
        return sum(float((t - start[name]).square().sum()) for name, t in network.state_dict().items())

    assert 0 < distance(young, 0) < distance(old, 1)
    assert same(again.state_dict(), young.state_dict())
    with torch.no_grad():
        next(young.parameters()).zero_()
    assert same(shelf.network(0).state_dict(), again.state_dict()), "what is handed out is a copy"


def test_networks_of_a_shelf_are_compiled_where_all_together_are_worth_it(monkeypatch):
    pdd = method()
    take(pdd, 0, 4)
    generator, source = pdd.generator().view(stage=1), InitLaw("convnet1-w8", (1, 8, 8), 10)
    asked = []
    monkeypatch.setattr(compiling, "worth", lambda engine, images, batch: bool(asked.append(images)))
    Shelf(generator, source, 4, 8, 1.0, 0, ENGINE).network(0)
    assert asked == [4 * 8 * 20], "eight steps of the twenty images of the first stage, for each of four networks"


def test_networks_may_go_on_from_the_stages_to_real_images():
    real = load_real("digits")
    pdd = method()
    take(pdd, 0, 4)
    generator, source = pdd.generator().view(stage=1), InitLaw("convnet1-w8", (1, 8, 8), 10)

    def network(steps):
        shelf = Shelf(generator, source, 2, 8, 0.0, 0, ENGINE, RealSteps(real, steps, 0.05) if steps else None)
        made = shelf.network(1)  # the older of the two
        right = accuracy(made.eval(), real.test.images, real.test.labels, real.mean, real.std)
        return right, made, shelf.real_images

    without, with_real = network(0), network(60)
    assert with_real[2] == 60 * 128
    assert without[2] == 0
    assert with_real[0] > without[0] + 0.05
    young = Shelf(generator, source, 2, 8, 0.0, 0, ENGINE, RealSteps(real, 60, 0.05))
    young.network(0)
    assert young.real_images == 30 * 128, "the younger network takes half of the steps"


def test_the_real_images_of_networks_are_counted_over_a_resumed_run():
    settings = OVER_DM | {"real_steps": 4}
    whole, cut, resumed = method(settings), method(settings), method(settings)
    take(whole, 0, 12)
    each = (2 + 4) * 128  # two networks a stage, of half and of full age
    assert whole.images_beside() == 2 * each
    take(cut, 0, 6)
    assert cut.images_beside() == each
    resumed.load_state_dict({name: tensor.clone() for name, tensor in cut.state_dict().items()})
    take(resumed, 6, 12)
    assert resumed.images_beside() == 3 * each, "a resumed run trains those of its stage again"
    assert same(tensors(resumed.generator()), tensors(whole.generator()))


def test_real_images_are_whitened_for_networks_as_those_of_the_stages_are():
    pdd = method(OVER_DM | {"settings": DM | {"zca": 0.1}})
    take(pdd, 0, 4)
    generator = pdd.generator().view(stage=1)
    source = InitLaw("convnet1-w8", (1, 8, 8), 10)
    trained = RealSteps(pdd.real, 2, 0.01).after(source, 1.0, generator, 0, ENGINE, 1)
    found = Whitening.of(trained.generator.recipe, trained.generator.recipe_tensors)
    assert found is not None
    images = pdd.real.train.images[:5].float() / 255
    assert torch.equal(found(images), pdd.base.normalize(images))
    trained.network(0)  # trains on whitened images


def test_the_first_steps_of_a_later_stage_do_not_tell_the_time_left(tmp_path):
    run = Run.__new__(Run)
    run.costs = {}
    first, second = (
        Phase(f"stage {n}: match", 200, lambda step: {}, 1, like="stage 1: match" * (n - 1)) for n in (1, 2)
    )
    assert run._seconds_left(first, 100, 10.0, (second,)) == pytest.approx(10 + 20)
    assert run._seconds_left(second, 199, 0.1, ()) == pytest.approx(19.9), "networks are trained in these steps"
    assert run._seconds_left(second, 100, 5.0, ()) == pytest.approx(20)


def ages(size, age=100, youngest=0.0):
    pdd = method()
    shelf = Shelf(pdd.generator(), InitLaw("convnet1-w8", (1, 8, 8), 10), size, age, youngest, 0, ENGINE)
    return [shelf.steps(number) for number in range(size)]


@pytest.mark.parametrize("size", [1, 2, 5, 8, 32, 100])
def test_ages_are_equally_spaced_and_the_first_few_are_spread(size):
    assert sorted(ages(size, age=size)) == list(range(1, size + 1))
    few = ages(size, age=100)[:4]
    if size >= 8:
        assert min(few) < 35
        assert max(few) > 65
    assert ages(size, youngest=1.0) == [100] * size, "as published"
    assert min(ages(size, youngest=0.5)) == round(50 + 50 / size)


def test_the_oldest_networks_have_the_legs_before_behind_them():
    pdd = method(OVER_DM | {"age": 0})
    found = []
    for stage in (1, 2):
        take(pdd, 4 * stage - 4, 4 * stage + 1)
        found.append(pdd.base.source.age)
    legs = [leg.steps for leg in pdd.walked.legs]
    assert sum(legs) == 80
    assert found == [legs[0], legs[0] + legs[1]]
    over_dim = method(OVER_DIM | {"age": 0}, steps=12)
    over_dim._advance()
    (source,) = over_dim.base.pool.sources
    assert source.age == 10, "2 of 4 epochs of 100 images, in batches of 20"


def test_stages_start_from_the_real_images_that_the_base_by_itself_starts_from():
    pdd = method(steps=3)
    starts = [pdd.base.table.detach().clone()]
    for _ in range(2):
        pdd._advance()
        starts.append(pdd.base.table.detach().clone())
    whole = METHODS["dm"](make_config(METHODS["dm"].Config, DM), load_real("digits"), ENGINE, 0, 3)
    assert torch.equal(torch.cat(starts), whole.table.detach())
    other = method(steps=3, seed=1)
    other._advance()
    assert not torch.equal(other.base.table, starts[1])


def test_stages_start_somewhere_where_their_real_images_are_few():
    """Those that easy images were dropped from may hold no more than a stage needs."""
    real = load_real("digits")
    rows = torch.cat([(real.train.labels == label).nonzero().flatten()[:7] for label in range(10)])
    few = dataclasses.replace(real, train=real.train.select(rows))
    config = make_config(PddConfig, OVER_DM | {"drop": 0.6, "drop_student": "convnet1-w8", "drop_epochs": 2})
    pdd = PDD(config, few, ENGINE, 0, 3)
    for _ in range(2):
        pdd._advance()
    assert len(pdd.base.real.train) == 30
    images = pdd.base.real.train.images.float() / 255
    own = pdd.base.denormalize(pdd.base.table.detach())
    assert (own[:, None] - images).abs().amax((2, 3, 4)).min(1).values.max() < 1e-5


def test_a_share_of_the_students_steps_can_be_kept_for_the_last_leg():
    plain, last = (method(OVER_DM | change, steps=3) for change in ({}, {"last_share": 0.7}))
    for pdd in (plain, last):
        take(pdd, 0, 3)
    ours, other = ([leg.steps for leg in pdd.generator().recipe.legs] for pdd in (last, plain))
    assert sum(ours) == sum(other) == 80
    assert ours[2] == 56
    assert ours[0] / ours[1] == other[0] / other[1]
    assert [leg.steps for leg in last.walked.legs] == ours
    assert [leg.steps for leg in last.generator().view(stage=2).recipe.legs] == ours[:2]


@pytest.mark.parametrize("settings", [OVER_DM, OVER_DIM, CODED, OVER_DM | {"drop": 0.5, "drop_student": "convnet1-w8"}])
def test_resumed_in_any_stage_is_bit_identical(settings):
    whole = method(settings, steps=12)
    take(whole, 0, 12)
    expected = tensors(whole.generator())
    for cut in (2, 8, 11):
        first = method(settings, steps=12)
        take(first, 0, cut)
        state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
        second = method(settings, steps=12)
        second.load_state_dict(state)
        take(second, cut, 12)
        assert same(tensors(second.generator()), expected), cut


def test_resumed_in_the_calm_steps_of_a_later_stage_is_bit_identical():
    """A network that went on from another needs no calm start, whether its run was stopped on the way or not."""
    settings = OVER_DIM | {"settings": DIM | {"match_share": 0.25, "class_fade": 0.5}}
    whole = method(settings, steps=32)
    take(whole, 0, 17)
    base = whole.base
    assert base._calm() == 4
    assert (base._flatness(1), base._anchor(1), base._class_weight(1)) == (0.05, 0.0, 0.0)
    second = method(settings, steps=32)
    second.load_state_dict({name: tensor.clone() for name, tensor in whole.state_dict().items()})
    assert second.base._flatness(1) == 0.05
    for pdd in (whole, second):
        take(pdd, 17, 20)
    assert same(whole.base.network.state_dict(), second.base.network.state_dict())
    assert same(whole.base.critic.state_dict(), second.base.critic.state_dict())


def test_the_class_loss_fades_in_the_first_stage_alone():
    fading, steady = (method(OVER_DIM | {"settings": DIM | {"class_fade": fade}}, steps=32) for fade in (0.5, 0.0))
    assert fading.base._class_weight(0) == steady.base._class_weight(0) == 0.3
    assert 0 < fading.base._class_weight(4) < 0.3
    for pdd in (fading, steady):
        pdd._advance()
    assert [pdd.base._class_weight(0) for pdd in (fading, steady)] == [0.0, 0.3]


@pytest.mark.parametrize("settings", [OVER_DM, CODED])
def test_killed_in_a_later_stage_and_resumed_gives_equal_weights(settings, tmp_path):
    whole = distill("digits", out=tmp_path / "whole", method="pdd", settings=settings, steps=12, **PLAIN)
    killed = tmp_path / "killed"
    died = child(killed, settings, steps=12, die_at=10)
    assert died.returncode == -signal.SIGKILL, died.stderr
    resumed = child(killed, settings, steps=12, resume=True)
    assert resumed.returncode == 0, resumed.stderr
    assert int(resumed.stdout.split()[0]) >= 9, "the run began again instead of going on"
    left, right = ((folder / "model.safetensors").read_bytes() for folder in (killed / "generator", whole))
    assert left == right


def test_a_run_can_be_planned_by_time(tmp_path):
    folder = distill("digits", out=tmp_path / "run", method="pdd", settings=OVER_DM, minutes=0.01, **PLAIN)
    assert artifact.load(folder).stages == 3


def test_progressive_dim_draws_without_limit_from_networks_that_differ():
    pdd = method(OVER_DIM, steps=12)
    names = [phase.name for phase in pdd.phases()]
    assert names == ["stage 1: gan", "stage 1: match", "stage 2: gan", "stage 2: match"]
    take(pdd, 0, 6)
    first = pdd.generator()
    take(pdd, 6, 12)
    whole = pdd.generator()
    assert (whole.images, whole.stages, whole.spec.kind) == (None, 2, "staged")
    assert [leg.epochs for leg in whole.recipe.legs] == [2, 2]
    assert same(tensors(whole.view(stage=1)), tensors(first))
    one, two = whole.networks
    assert not same(one.state_dict(), two.state_dict())


def test_a_later_stage_of_dim_goes_on_from_the_networks_of_the_one_before():
    pdd = method(OVER_DIM, steps=12)
    take(pdd, 0, 6)
    before = {name: tensor.clone() for name, tensor in pdd.base.state_dict().items() if name.startswith("network.")}
    pdd._advance()
    after = pdd.base.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_stages_of_one_network_train_their_codes_and_leave_the_images_before_as_they_are():
    recipe = {"legs": [{"epochs": 6, "batch_size": 20}]}
    pdd = method(CODED | {"stages": 3, "settings": CODED["settings"] | {"recipe": recipe}}, steps=18)
    index = torch.arange(40)
    noise = latents.latents(0, 0, index, 8)
    made = []
    for first in (0, 6, 12):
        take(pdd, first, first + 6)
        made.append(pdd.generator())
    whole = made[-1]
    assert (whole.spec.kind, whole.stages, whole.images) == ("coded", 3, None)
    assert [leg.epochs for leg in whole.recipe.legs] == [2, 2, 2]
    for stage in (1, 2):
        assert same(tensors(whole.view(stage=stage)), tensors(made[stage - 1]))
        assert torch.equal(whole.view(stage=stage).draw(noise, index)[0], made[stage - 1].draw(noise, index)[0])
    for name, code in whole.network.codes().items():
        codes = code.unflatten(0, (3, -1))
        assert not torch.equal(codes[0], codes[1]), name
        assert not torch.equal(codes[1], codes[2]), name


def test_a_later_stage_of_one_network_goes_on_from_the_average_and_optimises_its_code_alone():
    pdd = method(CODED, steps=12)
    take(pdd, 0, 6)
    average = {name: tensor.clone() for name, tensor in pdd.base.average.module.state_dict().items()}
    pdd._advance()
    assert same(pdd.base.network.state_dict(), average)
    take(pdd, 6, 12)
    codes = pdd.base.network.codes()
    assert {name for name, parameter in pdd.base.network.named_parameters() if parameter.requires_grad} == set(codes)
    for network in (pdd.base.network, pdd.base.average.module):
        assert all(torch.equal(t, average[name]) == (name not in codes) for name, t in network.state_dict().items())
    assert len(pdd.base.game.optimizers["network"].state) == len(codes)


def test_the_first_stage_may_get_more_of_the_steps():
    counts = {}
    for phase in method(OVER_DM | {"first_share": 0.6}, steps=20).phases():
        counts[phase.name] = phase.steps
    assert counts == {"stage 1: match": 12, "stage 2: match": 4, "stage 3: match": 4}
    alone = [phase.steps for phase in method(OVER_DM | {"first_share": 0.6, "stages": 1}, steps=20).phases()]
    assert alone == [20]


def test_budgets_are_equal_and_add_up():
    for steps in (12, 13, 14):
        counts = [phase.steps for phase in method(steps=steps).phases()]
        assert sum(counts) == steps
        assert max(counts) - min(counts) <= 1


def test_default_steps_are_those_of_the_base():
    for base in ("dm", "dim"):
        config = make_config(PddConfig, {"base": base, "stages": 5, "settings": {"default_steps": 75}})
        assert PDD.default_steps(config) == 75


PUBLISHED = {
    "pdd-mtt-cifar10-ipc10": {"experts": 2, "expert_batch": 200, "learned_steps": 2},
    "pdd-idc-cifar10-ipc10": {"real_batch": 4, "net_steps": 2},
}
PUBLISHED |= {name.replace("ipc10", "ipc50"): small for name, small in PUBLISHED.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_preset_can_be_tried_on_small_data(name, tmp_path, monkeypatch):
    """What --dry-run does, and a step of the second stage, whose networks are trained on the first."""
    monkeypatch.setenv("DIMDATA_BUFFERS", str(tmp_path))
    small = {"age": 5, "networks": 2, "settings": PUBLISHED[name] | {"student": "convnet1-w8"}}
    config = PDD.resolve(make_config(PddConfig, name, small))
    pdd = PDD(config, load_real("digits"), ENGINE, 0, PDD.default_steps(config))
    assert (config.stages, config.youngest, pdd.base.config.ipc) == (5, 1.0, 2 if name.endswith("10") else 10)
    found = estimate(pdd)
    assert len({phase.split(":")[0] for phase in found.phases}) == 5
    assert sum(phase.steps for phase in found.phases.values()) == PDD.default_steps(config)
    passes = [math.ceil(pdd.base.generator().images * k / pdd.walked.legs[0].batch_size) for k in range(1, 6)]
    assert [leg.steps for leg in pdd.walked.legs] == [500 * count for count in passes], "500 epochs of each union"
    pdd._advance()
    phase = pdd.base.phases()[-1]
    table = pdd.base.table.detach().clone()
    phase.step(0)
    assert not torch.equal(pdd.base.table, table)


def test_networks_of_finished_stages_are_let_go():
    """A published run trains thousands in each stage; those of earlier ones would fill a device."""
    pdd = method(OVER_DM | {"networks": 2, "real_steps": 2})
    seen = []
    for phase in pdd.phases():
        for step in range(phase.steps):
            phase.step(step)
        seen.append(pdd.images_beside())
        assert len(pdd._shelves) <= 1
    assert 0 == seen[0] < seen[1] < seen[2]


# --- easy images ---------------------------------------------------------------------------------------------------


def test_forgetting_counts_tell_mislabelled_images():
    """Images with a wrong label are not learned in a few epochs, and count as hard."""
    real = load_real("digits")
    rows = torch.arange(300)
    labels = real.train.labels[rows].clone()
    wrong = torch.arange(0, 300, 10)
    labels[wrong] = (labels[wrong] + 5) % 10
    mixed = dataclasses.replace(real, train=Split(real.train.images[rows], labels, 10))
    counts = forgetting_counts(mixed, "convnet1-w16", 8, ENGINE, 0)
    assert counts.shape == (300,)
    assert 0 <= counts.min() <= counts.max() <= 8
    right = torch.ones(300, dtype=torch.bool)
    right[wrong] = False
    assert counts[wrong].float().mean() > counts[right].float().mean() + 1
    assert torch.equal(counts, forgetting_counts(mixed, "convnet1-w16", 8, ENGINE, 0))


def test_the_hardest_images_of_each_class_are_kept():
    split = Split(torch.arange(8, dtype=torch.uint8)[:, None, None, None], torch.tensor([0, 1] * 4), 2)
    counts = torch.tensor([0, 7, 3, 0, 2, 0, 0, 1])
    kept = hardest(split, counts, 0.5, seed=0)
    assert kept.images.flatten().tolist() == [1, 2, 4, 7]
    assert len(hardest(split, counts, 0.01, seed=0)) == 2, "every class keeps one"
    assert len(hardest(split, counts, 1.0, seed=0)) == 8


def test_later_stages_leave_out_easy_images_and_the_first_none():
    pdd = method(OVER_DM | {"drop": 0.6, "drop_student": "convnet1-w8", "drop_epochs": 2})
    there = len(load_real("digits").train)
    sizes = []
    for cut in (4, 8, 12):
        take(pdd, cut - 4, cut)
        sizes.append(len(pdd.base.real.train))
    assert sizes[0] == there
    assert sizes[1] == pytest.approx(0.7 * there, rel=0.02)
    assert sizes[2] == pytest.approx(0.4 * there, rel=0.03)


# --- bad input -------------------------------------------------------------------------------------------------------


class WholeOnly(Method):
    """A method that says nothing of stages."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Record):
        """No settings."""

    @classmethod
    def default_steps(cls, config: Record) -> int:
        return 1

    def phases(self) -> tuple[Phase, ...]:
        return ()

    def state_dict(self):
        return {}

    def load_state_dict(self, state) -> None:
        pass

    def generator(self) -> Generator:
        raise NotImplementedError


def test_a_base_that_cannot_be_staged_is_refused(monkeypatch):
    assert "dm" in METHODS
    monkeypatch.setitem(METHODS._entries, "whole-only", WholeOnly)  # for this test alone
    for base in ("whole-only", "pdd"):
        with pytest.raises(ArgumentError, match=f"The method {base} cannot be distilled in stages"):
            method({"base": base})
    with pytest.raises(NotFoundError, match="no method called"):
        method({"base": "dn"})


@pytest.mark.parametrize(
    ("settings", "steps", "said"),
    [
        ({"first_share": 0.8}, 20, "20 steps are too few for 3 stages: one would have 2; 4 of these are fixed."),
        ({}, 14, "one would have 4; 4 of these are fixed"),
    ],
)
def test_stages_without_steps_for_what_they_need_are_refused_at_once(settings, steps, said, tmp_path):
    base = {"ipc": 3, "student": "convnet1-w8", "experts": 2, "max_start": 2, "expert_epochs": 1}
    base |= {"recipe": DM["recipe"], "buffer": str(tmp_path / "buffer")}
    over = {"base": "mtt", "stages": 3, "settings": base, "networks": 1, "age": 4}
    with pytest.raises(ArgumentError, match=said):
        method(over | settings, steps)
    pdd = method(over | settings, 60)
    pdd.steps = steps  # as a budget in minutes sets them
    with pytest.raises(ArgumentError, match=said):
        pdd.phases()[0].step(0)
    assert not (tmp_path / "buffer").exists()


@pytest.mark.parametrize(("base", "more"), [("dm", {"ipc": 60}), ("idc", {"ipc": 15, "net_steps": 1})])
def test_a_last_stage_without_images_to_start_from_is_refused_at_once(base, more):
    settings = {"student": "convnet1-w8", "recipe": DM["recipe"]} | more
    over = {"base": base, "stages": 5 if base == "dm" else 3, "settings": settings, "drop": 0.95}
    with pytest.raises(ArgumentError, match=r"drop is 0\.95, which leaves \d+ real images .* starts from"):
        method(over)


def test_images_consumed_are_those_of_the_steps_and_of_what_is_dropped(tmp_path, monkeypatch):
    """Experts that another run has trained are not consumed again; those of a stage have the images of that stage."""
    monkeypatch.setenv("DIMDATA_BUFFERS", str(tmp_path / "cache"))
    base = {"ipc": 2, "student": "convnet1-w8", "experts": 1, "max_start": 1, "expert_epochs": 1, "learned_steps": 1}
    over = {"base": "mtt", "stages": 2, "settings": base | {"recipe": DM["recipe"]}, "networks": 1, "age": 4}
    over |= {"drop": 0.5, "drop_student": "convnet1-w8", "drop_epochs": 2}
    there = len(load_real("digits").train)
    found = []
    for name in ("first", "second"):
        folder = distill("digits", out=tmp_path / name, method="pdd", settings=over, steps=6, **PLAIN)
        found.append(artifact.read_config(folder).provenance["real_images_consumed"])
    assert found[1] == 2 * there, "the passes that tell what is easy alone"
    assert found[0] == pytest.approx(2 * there + there + there / 2, rel=0.01)


def test_what_a_stage_refuses_on_resume_is_not_told_of_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("DIMDATA_BUFFERS", str(tmp_path / "cache"))
    base = {"ipc": 2, "student": "convnet1-w8", "experts": 1, "max_start": 1, "expert_epochs": 1, "learned_steps": 1}
    over = {"base": "mtt", "stages": 2, "settings": base | {"recipe": DM["recipe"]}, "networks": 1, "age": 4}
    run = {"out": tmp_path / "run", "method": "pdd", "settings": over, "steps": 6, **PLAIN}
    distill("digits", **run)
    for path in (tmp_path / "cache").glob("*/buffer.json"):
        path.write_text("{")
    with pytest.raises(FormatError, match=r"buffer\.json cannot be read") as caught:
        distill("digits", resume=True, **run)
    assert "checkpoint" not in str(caught.value)
    assert "Delete the folder" in caught.value.hint


def test_epochs_are_shared_among_stages_and_phases_stay_where_they_are_when_images_are_dropped():
    epochs = {"gan_epochs": 4, "match_epochs": 1, "match_batch_size": 50}
    real = load_real("digits")
    whole, over = (make_config(PddConfig, OVER_DIM | {"stages": stages, "settings": DIM | epochs}) for stages in (1, 2))
    assert PDD.budget(over, real) < 1.3 * PDD.budget(whole, real), "a last epoch is rounded up in each stage"
    pdd = method(over.to_json() | {"drop": 0.5, "drop_student": "convnet1-w8", "drop_epochs": 2}, steps=60)
    before = [(phase.name, phase.steps) for phase in pdd.phases()]
    pdd._advance()
    assert len(pdd.base.real.train) < len(real.train)
    assert [(phase.name, phase.steps) for phase in pdd.phases()] == before


def test_networks_see_all_stages_before_them_however_many_there_are():
    twelve = {"stages": 12, "settings": DIM | {"recipe": {"legs": [{"epochs": 12, "batch_size": 20}]}}}
    pdd = method(OVER_DIM | twelve, steps=12)
    parts = [pdd.base.generator() for _ in range(11)]
    union = pdd._union(parts)
    dataset = GeneratedDataset(union, ipc=fresh_ipc(union))
    assert fresh_ipc(union) == 11
    assert set((dataset.generator.stage_of(torch.arange(len(dataset)))).tolist()) == set(range(11))


def test_stages_that_do_not_divide_the_images_are_refused():
    with pytest.raises(ArgumentError, match="6 images per class cannot be shared equally among 4 stages") as caught:
        method(OVER_DM | {"stages": 4})
    assert "2, 3, 6" in caught.value.hint


def test_settings_out_of_range_are_refused():
    for change in (
        {"stages": 0},
        {"networks": 0},
        {"age": -1},
        {"youngest": 1.1},
        {"real_steps": -1},
        {"real_lr": 0.0},
        {"drop": 1.0},
        {"drop_epochs": 1},
        {"first_share": 1.0},
        {"last_share": 0.0},
        {"last_share": 1.0},
    ):
        with pytest.raises(FormatError):
            make_config(PddConfig, change)
    with pytest.raises(ArgumentError, match="2 steps are too few for 3 stages"):
        method(steps=2)
    with pytest.raises(ArgumentError, match="6 steps are too few for 3 stages"):
        method(OVER_DM | {"first_share": 0.99}, steps=6)
    with pytest.raises(FormatError, match="unknown field 'ipv'"):
        method(OVER_DM | {"settings": {"ipv": 3}})
    leg = {"epochs": 2, "batch_size": 10}
    with pytest.raises(ArgumentError, match="one leg"):
        method(OVER_DM | {"settings": DM | {"recipe": {"legs": [leg, leg]}}})


def test_a_base_without_epochs_for_all_stages_is_refused_before_the_run():
    short = DIM | {"recipe": {"legs": [{"epochs": 1, "batch_size": 20}]}}
    with pytest.raises(ArgumentError, match="1 epochs for 2 stages"):
        method(OVER_DIM | {"settings": short})


def test_train_refuses_a_part_of_stored_stages(tmp_path, capsys):
    folder = distill("digits", out=tmp_path / "run", method="pdd", settings=OVER_DM, steps=12, **PLAIN)
    words = ["train", str(folder), "--student", "convnet1-w8", "--compile", "off"]
    assert main([*words, "--ipc", "2"]) == 2
    assert "IPC 2 is a part of the 60 images of 3 stages" in capsys.readouterr().err
    assert main([*words, "--ipc", "7"]) == 2
    assert "must be a whole number from 1 to 6" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ArgumentError, match="IPC 2 is a part of the 60 images of 3 stages"):
        train("convnet1-w8", artifact.load(folder), ipc=2, engine=ENGINE)
    with pytest.raises(ArgumentError, match="from 1 to 4"):
        train("convnet1-w8", artifact.load(folder), ipc=5, stage=2, engine=ENGINE)
    assert train("convnet1-w8", artifact.load(folder), ipc=4, stage=2, engine=ENGINE).distinct_images == 40


def test_evaluate_takes_what_is_real_by_its_path(tmp_path):
    real = load_real("digits")
    parts = {"train": real.train, "test": real.test}
    arrays = {
        f"{part}_{what}": getattr(of, what).numpy() for part, of in parts.items() for what in ("images", "labels")
    }
    np.savez(tmp_path / "own.npz", **arrays)
    folder = distill("digits", out=tmp_path / "run", method="dm", settings=DM, steps=2, **PLAIN)
    (score,) = evaluate(
        folder, real=tmp_path / "own.npz", students="convnet1-w8", seeds=1, epochs=1, baselines=(), engine=ENGINE
    )
    assert score.dataset == "own"
