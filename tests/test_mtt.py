"""Expert trajectories and their matching, on the bundled digits."""

import dataclasses
import json
import math
import os
import shutil
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F

from dimdata import latents
from dimdata.distill.buffers import Buffer, BufferInfo, flatten, named
from dimdata.distill.config import make_config
from dimdata.distill.mtt import MTT, MttConfig, _distance
from dimdata.distill.pdd import PDD, PddConfig
from dimdata.distill.run import distill
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, FormatError, RunError, WorldError
from dimdata.real import load_real
from dimdata.students import make_student
from dimdata.students.source import InitLaw

PLAIN = {"device": "cpu", "precision": "fp32", "compile": "off"}
ENGINE = Engine.of("cpu", "fp32", "off")
SETTINGS = {
    "ipc": 1,
    "student": "convnet1-w8",
    "experts": 2,
    "expert_lr": 0.05,
    "max_start": 2,
    "expert_epochs": 1,
    "learned_steps": 4,
    "step_size": 0.05,
    "step_size_lr": 1e-4,
    "lr": 20.0,
    "augment": "",
    "recipe": {"legs": [{"epochs": 40, "batch_size": 10}]},
}
EPOCHS = 4  # of both experts together


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIMDATA_BUFFERS", str(tmp_path / "cache"))
    return tmp_path / "cache"


def method(steps=EPOCHS + 6, seed=0, **settings):
    return MTT(make_config(MttConfig, {**SETTINGS, **settings}), load_real("digits"), ENGINE, seed, steps)


def take(mtt, first, last):
    found, number = [], 0
    for phase in mtt.phases():
        for step in range(phase.steps):
            if first <= number < last:
                losses = phase.step(step)
                found.append(float(losses.get("match", losses.get("expert"))))
            number += 1
    return found


def experts(cache):
    return sorted(cache.glob("*/expert-*.safetensors"))


def info(**changes):
    facts = {"student": "convnet1-w8", "images": "x", "epochs": 2, "batch_size": 64, "lr": 0.01, "momentum": 0.0}
    parameters = len(flatten(make_student("convnet1-w8", (1, 8, 8), 10)))
    return BufferInfo(**{**facts, "seed": 0, "parameters": parameters, **changes})


def test_the_student_ends_nearer_to_where_the_expert_goes():
    mtt = method(steps=EPOCHS + 16, max_start=0, epochs=2)
    losses = take(mtt, 0, EPOCHS + 16)[EPOCHS:]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4]), losses


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_student_starts_before_the_last_place_and_every_epoch_of_an_expert_is_matched(most):
    mtt = method(max_start=most, learned_steps=1)
    take(mtt, 0, EPOCHS)
    pairs = []

    def kept(number, *epochs, weights=mtt._weights):
        pairs.append(epochs)
        return weights(number, *epochs)

    mtt._weights = kept
    for step in range(16):
        mtt._match_step(step)
    assert {begin for begin, _ in pairs} == set(range(max(1, most)))
    assert max(end for _, end in pairs) == mtt.config.passes()


def test_learned_images_are_augmented_one_by_one():
    mtt = method(augment="crop", ipc=2, learned_steps=1)
    with torch.no_grad():
        mtt.table.copy_(mtt.table[:1].expand_as(mtt.table))
    seen = []
    mtt.network.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    mtt._match_part()
    assert len(seen[0]) == 20
    assert len(seen[0].flatten(1).unique(dim=0)) > 5


def test_recomputed_steps_have_the_same_slopes(cache):
    """By images and step size, and so the images after some steps are the same; the last bits are not."""
    kept, again = (method(recompute=recompute, learned_steps=4, learned_batch=7) for recompute in (False, True))
    start = flatten(kept.source.network(0))
    for step in range(2):
        losses = [each._match(step, start.clone(), 0.9 * start, 1.0) for each in (kept, again)]
        assert float(losses[0]["match"]) == pytest.approx(float(losses[1]["match"]), rel=1e-5)
        torch.testing.assert_close(losses[0]["step_size"], losses[1]["step_size"], rtol=1e-6, atol=0)
        torch.testing.assert_close(kept.table.grad, again.table.grad, rtol=1e-3, atol=1e-7)
    share = again._match_part()[1]
    assert share == 2 / 4, "enough to tell its time by"
    assert kept._match_part()[1] == 1


def test_the_step_size_is_learned_and_becomes_the_recipe():
    mtt = method()
    take(mtt, 0, EPOCHS + 4)
    rate = mtt.generator().recipe.legs[0].lr
    assert rate != pytest.approx(0.05)
    assert rate == float(mtt.step_size.detach())


def test_vectors_of_weights_are_those_of_the_network():
    network = make_student("convnet1-w8", (1, 8, 8), 10)
    flat = flatten(network).requires_grad_()
    for name, value in named(network, flat).items():
        assert torch.equal(value, network.get_parameter(name))
    sum(value.square().sum() for value in named(network, flat).values()).backward()
    torch.testing.assert_close(flat.grad, 2 * flat.detach())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_experts_are_what_a_bare_loop_trains(momentum):
    """The kept weights are those of plain SGD over the same order."""
    mtt = method(expert_momentum=momentum)
    take(mtt, 0, 2)
    kept = mtt.buffer.info
    start, end = mtt.buffer.weights(0, 0, 2)
    network = InitLaw("convnet1-w8", (1, 8, 8), 10, seed=latents.fold(latents.stream("table.networks"), 0)).network(0)
    assert torch.equal(start, flatten(network))
    real = mtt.real
    images, labels = (real.train.images / 255 - real.mean[0]) / real.std[0], real.train.labels
    sgd = torch.optim.SGD(network.parameters(), lr=SETTINGS["expert_lr"], momentum=momentum)
    for epoch in (1, 2):
        key = latents.fold(latents.stream("expert.order"), kept.seed, 0, epoch)
        for rows in latents.permutation(key, len(labels)).split(kept.batch_size):
            sgd.zero_grad()
            F.cross_entropy(network(images[rows]), labels[rows]).backward()
            sgd.step()
    assert not torch.allclose(start, end, atol=1e-3)
    torch.testing.assert_close(flatten(network), end, atol=1e-6, rtol=0)


def test_the_loss_is_the_distance_left_as_a_share_of_the_experts_way():
    """Cazenavette et al., equation 1."""
    start, target = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])
    assert float(_distance(torch.tensor([3.0, 1.0]), start, target)) == (1 + 4) / (4 + 4)
    assert float(_distance(start, start, target)) == 1


def test_experts_are_shared_by_runs_and_trained_once(cache):
    take(method(), 0, EPOCHS)
    made = {path: path.read_bytes() for path in experts(cache)}
    assert len(made) == 2
    assert take(method(seed=1), 0, EPOCHS) == [0.0] * EPOCHS, "nothing was left to train"
    assert {path: path.read_bytes() for path in experts(cache)} == made
    take(method(expert_seed=1), 0, EPOCHS)
    assert len(experts(cache)) == 4


@pytest.mark.parametrize("cut", [1, 3, 6])  # within the first expert, the second, and the matching
def test_resumed_is_bit_identical(cut, cache):
    whole = method()
    losses = take(whole, 0, 8)
    weights = [path.read_bytes() for path in experts(cache)]
    shutil.rmtree(cache)
    first = method()
    take(first, 0, cut)
    state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    second = method()
    second.load_state_dict(state)
    assert take(second, cut, 8) == losses[cut:]
    assert torch.equal(second.table, whole.table)
    assert torch.equal(second.step_size, whole.step_size)
    assert [path.read_bytes() for path in experts(cache)] == weights


def test_a_lost_expert_is_trained_again_when_it_is_needed(cache):
    whole = method()
    losses = take(whole, 0, 8)
    other = method()
    take(other, 0, EPOCHS)
    for path in experts(cache):
        path.unlink()
    assert take(other, EPOCHS, 8) == losses[EPOCHS:]


def test_a_run_goes_through_both_phases(tmp_path):
    folder = distill("digits", out=tmp_path / "run", method="mtt", settings=SETTINGS, steps=EPOCHS + 3, **PLAIN)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines if line["step"] in (EPOCHS, EPOCHS + 3)] == ["experts", "match"]
    assert folder.is_dir()


def test_experts_of_another_precision_are_others(cache):
    """What lies in the cache is of no run that computes otherwise."""
    for bf16, count in ((True, 1), (False, 2), (True, 2)):
        engine = Engine(torch.device("cpu"), bf16=bf16)
        made = MTT(make_config(MttConfig, SETTINGS), load_real("digits"), engine, 0, EPOCHS + 6)
        phase = made.phases()[0]
        for step in range(phase.ready, phase.steps):
            phase.step(step)
        assert len(list(cache.glob("*/buffer.json"))) == count
        assert json.loads((made.buffer.folder / "buffer.json").read_text())["precision"] == ("bf16" if bf16 else "fp32")


def test_dropout_is_refused():
    with pytest.raises(ArgumentError, match=r"mobilenet-v2 keeps statistics|has dropout"):
        method(student="mobilenet-v2")
    with pytest.raises(ArgumentError, match="has dropout"):
        method(student="test_mtt:forgetful")


def forgetful(image_shape, num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.1), torch.nn.Linear(64, num_classes))


def test_stages_have_experts_of_their_own(cache):
    settings = {"base": "mtt", "stages": 2, "settings": SETTINGS | {"ipc": 2}, "networks": 1, "age": 4}
    config = make_config(PddConfig, settings)
    pdd = PDD(config, load_real("digits"), ENGINE, 0, 2 * (EPOCHS + 2))
    for phase in pdd.phases():
        for step in range(phase.steps):
            phase.step(step)
    assert len(experts(cache)) == 4
    infos = [json.loads(path.read_text()) for path in cache.glob("*/buffer.json")]
    assert sorted(bool(each["before"]) for each in infos) == [False, True]
    rates = [leg.lr for leg in pdd.generator().recipe.legs]
    assert len(set(rates)) == 2, "each stage learned a step size"
    assert PDD.default_steps(config) == 5_000 + 2 * EPOCHS


def staged(**settings):
    """Progressive MTT in its second stage."""
    over = {"base": "mtt", "stages": 2, "networks": 1, "age": 4}
    base = SETTINGS | {"ipc": 4} | settings.pop("settings", {})
    pdd = PDD(make_config(PddConfig, over | settings | {"settings": base}), load_real("digits"), ENGINE, 0, 20)
    pdd._advance()
    return pdd


@pytest.mark.parametrize(
    "change",
    [{"networks": 2}, {"age": 5}, {"settings": {"recipe": {"legs": [{"epochs": 40, "batch_size": 20}]}}}],
)
def test_experts_of_a_later_stage_belong_to_the_training_before_them(change):
    ours, again, other = (pdd.base.buffer.info for pdd in (staged(), staged(), staged(**change)))
    assert ours == again
    assert ours.before
    assert ours.digest() != other.digest(), "they start from other weights"


def test_a_later_stage_learns_beside_the_images_before_which_stand_still():
    base = staged().base
    earlier = base.earlier.generator
    images = base.normalize(earlier.draw(torch.empty(20, 0), torch.arange(20))[0])
    assert torch.equal(base.before, images)
    turns = base._turns(0)
    assert [len(rows) for rows in turns] == [20] * 4, "batches are as large as a stage"
    assert torch.cat(turns[:2]).sort().values.tolist() == list(range(40))
    seen = []
    base.network.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    base._match_part()
    assert torch.equal(seen[0], torch.cat([staged().base.table, images])[turns[0]])
    assert torch.equal(base.before, images)
    assert not torch.equal(base.table, staged().base.table)
    alone = staged(settings={"union": False}).base
    assert not len(alone.before)
    assert max(int(rows.max()) for rows in alone._turns(0)) == 19


# --- bad input and a full disk ---------------------------------------------------------------------------------------


def test_a_buffer_of_another_training_is_refused(tmp_path):
    buffer = str(tmp_path / "mine")
    take(method(buffer=buffer), 0, EPOCHS)
    with pytest.raises(FormatError, match="student is 'convnet1-w8', not 'convnet1-w16'"):
        method(buffer=buffer, student="convnet1-w16")
    with pytest.raises(FormatError, match=r"lr is 0\.05, not 0\.1"):
        method(buffer=buffer, expert_lr=0.1)
    real = load_real("digits")
    less = make_config(MttConfig, {**SETTINGS, "buffer": buffer})
    other = dataclasses.replace(real, train=real.train.select(torch.arange(500)))
    with pytest.raises(FormatError, match="images is"):
        MTT(less, other, ENGINE, 0, 10)


def test_a_buffer_that_does_not_say_what_it_is_of_is_refused(tmp_path):
    buffer = tmp_path / "mine"
    take(method(buffer=str(buffer)), 0, EPOCHS)
    (buffer / "buffer.json").unlink()
    with pytest.raises(FormatError, match=r"lacks buffer\.json"):
        method(buffer=str(buffer), expert_lr=0.1)


def test_an_expert_that_diverged_is_not_kept_and_its_learning_rate_is_named(cache):
    mtt = method(expert_lr=1e30)
    with pytest.raises(RunError, match="The weights of expert 0 are not finite after epoch 1") as caught:
        take(mtt, 0, EPOCHS)
    assert "expert_lr" in caught.value.hint
    assert not list(cache.rglob("expert-*"))


def test_an_expert_that_is_not_finite_is_refused(tmp_path):
    mtt = method(buffer=str(tmp_path / "mine"))
    take(mtt, 0, EPOCHS)
    mtt.buffer.write(0, [torch.full((mtt.buffer.info.parameters,), math.nan) for _ in range(3)])
    with pytest.raises(FormatError, match=r"expert-0000\.safetensors holds weights that are not finite"):
        mtt.buffer.weights(0, 0)


def test_a_damaged_expert_is_refused(tmp_path):
    mtt = method(buffer=str(tmp_path / "mine"))
    take(mtt, 0, EPOCHS)
    path = mtt.buffer.path(0)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FormatError, match="cannot be read"):
        mtt.buffer.weights(0, 0)


def test_a_disk_without_room_is_refused_before_the_run(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(1, 1, 1000))
    with pytest.raises(WorldError, match=r"has 1\.00 kB free"):
        Buffer(tmp_path / "buffer", info(), 3)


def test_a_disk_without_room_for_all_stages_is_refused_before_the_first(cache, monkeypatch):
    config = make_config(PddConfig, {"base": "mtt", "stages": 2, "settings": SETTINGS | {"ipc": 2}})
    pdd = PDD(config, load_real("digits"), ENGINE, 0, 2 * (EPOCHS + 2))
    usage = namedtuple("usage", "total used free")
    room = pdd.base.disk() * 3 // 2  # one stage fits, and two do not
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(0, 0, room))
    pdd = PDD(config, load_real("digits"), ENGINE, 0, 2 * (EPOCHS + 2))
    phase = pdd.phases()[0]
    with pytest.raises(WorldError, match="The expert trajectories need"):
        phase.step(0)
    assert not experts(cache)
    room *= 2
    phase.step(0)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    mtt = method(buffer=str(tmp_path / "mine"))
    take(mtt, 0, 2)
    parts = [
        tmp_path / "mine" / f".{name}.{pid}.part" for pid, name in enumerate(["buffer.json", "expert-0001.safetensors"])
    ]
    alive = tmp_path / "mine" / ".expert-0001.safetensors.77.part"
    foreign = tmp_path / "mine" / "notes.part"
    for path in (*parts, alive, foreign):
        path.write_bytes(b"half")
    for path in (*parts, foreign):
        os.utime(path, (1, 1))
    take(mtt, 2, 4)
    assert [path.exists() for path in (*parts, alive, foreign)] == [False, False, True, True]


def test_a_disk_that_fills_in_the_middle_loses_no_finished_expert(tmp_path, monkeypatch):
    mtt = method(buffer=str(tmp_path / "mine"))
    take(mtt, 0, 2)
    kept = mtt.buffer.path(0).read_bytes()

    def full(path, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("dimdata.files._write", full)
        with pytest.raises(WorldError, match="No space left"):
            take(mtt, 2, 4)
    assert mtt.buffer.path(0).read_bytes() == kept
    assert not mtt.buffer.path(1).exists()
    again = method(buffer=str(tmp_path / "mine"))
    assert take(again, 0, 2) == [0.0, 0.0]
    take(again, 2, 4)
    assert again.buffer.path(1).is_file()


def test_what_will_be_written_is_said_before(tmp_path, caplog):
    buffer = Buffer(tmp_path / "buffer", info(), 3)
    assert buffer.missing_bytes == 3 * 3 * 4 * buffer.info.parameters
    assert "3 expert trajectories" in caplog.text
    assert str(tmp_path / "buffer") in caplog.text


def test_bad_settings_are_refused():
    for settings in (
        {"experts": 0},
        {"epochs": 1},
        {"step_size": 0.0},
        {"max_start": -1},
        {"learned_steps": 0},
        {"expert_momentum": -1.0},
        {"expert_momentum": 1.0},
    ):
        with pytest.raises(FormatError):
            make_config(MttConfig, {**SETTINGS, **settings})
    with pytest.raises(ArgumentError, match="4 steps are too few"):
        method(steps=EPOCHS)
    with pytest.raises(ArgumentError, match="keeps statistics"):
        method(student="convnet1-w8-bn")


# --- whitening and augmentation of experts ---------------------------------------------------------------------------


def test_plain_buffers_are_called_as_they_always_were():
    """What a buffer from before there was whitening says of itself names the same folder."""
    facts = {"student", "images", "before", "epochs", "batch_size", "lr", "momentum", "seed", "parameters"}
    assert set(info().to_json()) == facts
    assert BufferInfo.from_json(info().to_json()) == info()
    changed = [info(zca=0.1), info(augment="crop"), info(augment="crop", dialect="each")]
    assert len({each.digest() for each in (info(), *changed)}) == 4
    assert [BufferInfo.from_json(each.to_json()) for each in changed] == changed


def test_experts_of_other_units_or_another_network_are_others(tmp_path, monkeypatch):
    real = load_real("digits")
    config = make_config(MttConfig, SETTINGS)
    other = dataclasses.replace(real, mean=(0.5,))
    folders = {MTT(config, each, ENGINE, 0, 10).buffer.folder for each in (real, other)}
    assert len(folders) == 2, "they see images in other units"
    source = "from dimdata.students import make_student\n\ndef net(shape, classes):\n"
    source += "    {}return make_student('convnet1-w8', shape, classes)\n"
    monkeypatch.syspath_prepend(str(tmp_path))
    codes = set()
    for number, more in enumerate(("", "shape = tuple(shape)\n    ")):
        (tmp_path / f"own{number}.py").write_text(source.format(more))
        codes.add(method(student=f"own{number}:net").buffer.info.code)
    assert len(codes) == 2
    assert "" not in codes
    assert method().buffer.info.code == ""


def test_experts_may_lie_in_the_folder_of_their_run(tmp_path):
    """Which the run holds for itself."""
    settings = SETTINGS | {"buffer": str(tmp_path / "run")}
    distill("digits", out=tmp_path / "run", method="mtt", settings=settings, steps=EPOCHS + 1, **PLAIN)
    assert len([*(tmp_path / "run").glob("expert-*.safetensors")]) == 2


def test_experts_that_another_run_puts_there_meanwhile_are_not_taken_for_ones_own(tmp_path):
    """Both begin with an empty folder; who comes first says what the experts in it are."""
    buffer = str(tmp_path / "mine")
    first, second = method(buffer=buffer), method(buffer=buffer, expert_lr=0.5)
    take(first, 0, EPOCHS)
    kept = {path: path.read_bytes() for path in (tmp_path / "mine").glob("[!.]*")}
    with pytest.raises(FormatError, match="of another training"):
        take(second, 0, 1)
    late = method(buffer=str(tmp_path / "other"), expert_lr=0.5)
    take(late, 0, 1)
    shutil.copytree(tmp_path / "mine", tmp_path / "other")
    with pytest.raises(FormatError, match="of another training"):
        late.buffer.write(0, late.expert.trajectory)
    for folder in ("mine", "other"):
        assert {path.name for path in (tmp_path / folder).glob("[!.]*")} == {path.name for path in kept}
        assert all((tmp_path / folder / path.name).read_bytes() == content for path, content in kept.items())


def test_a_folder_that_cannot_hold_experts_is_refused_before_they_are_trained(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorldError, match="file is no folder"):
        method(buffer=str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "x"


def test_whitened_and_augmented_experts_are_others(tmp_path, cache):
    buffer = str(tmp_path / "mine")
    take(method(buffer=buffer), 0, EPOCHS)
    for settings, match in (({"zca": 0.1}, r"zca is None, not 0\.1"), ({"expert_augment": "crop"}, "augment is None")):
        with pytest.raises(FormatError, match=match):
            method(buffer=buffer, **settings)
    ends = []
    for settings in ({}, {"zca": 0.1}, {"expert_augment": "crop"}):
        mtt = method(**settings)
        take(mtt, 0, 2)
        ends.append(mtt.buffer.weights(0, 0, 2))
    starts = [start for start, _ in ends]
    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[0], starts[2])
    assert not any(torch.equal(ends[0][1], end) for _, end in ends[1:])


@pytest.mark.parametrize("cut", [1, 6])
def test_resumed_with_whitening_is_bit_identical(cut, cache):
    settings = {"zca": 0.1, "expert_augment": "crop", "expert_momentum": 0.5}
    whole = method(**settings)
    losses = take(whole, 0, 8)
    shutil.rmtree(cache)
    first = method(**settings)
    take(first, 0, cut)
    state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    second = method(**settings)
    second.load_state_dict(state)
    assert take(second, cut, 8) == losses[cut:]
    assert torch.equal(second.table, whole.table)


def test_the_recipe_has_the_learned_rate_and_the_whitening():
    mtt = method(zca=0.1)
    recipe = mtt.generator().recipe
    assert recipe.legs[0].lr == pytest.approx(0.05)
    assert recipe.whitening.eps == pytest.approx(0.1)
