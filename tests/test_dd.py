"""Dataset Distillation on the bundled digits, with a small perceptron."""

import dataclasses
import itertools
import json
import logging
import shutil
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

from dimdata import artifact
from dimdata.dataset import GeneratedDataset
from dimdata.distill.beginnings import BEGINNINGS
from dimdata.distill.config import make_config
from dimdata.distill.dd import DD, DDConfig
from dimdata.distill.estimate import estimate
from dimdata.distill.objectives import objective_of
from dimdata.distill.run import distill
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, FormatError, NotFoundError, RunError
from dimdata.evaluate import evaluate
from dimdata.generators.table import table_generator
from dimdata.real import RealData, load_real, random_real, selected_real
from dimdata.recipe import Leg, Recipe
from dimdata.report import notes
from dimdata.students.train import accuracy, save_student, train
from dimdata.whitening import Whitening

PLAIN = {"device": "cpu", "precision": "fp32", "compile": "off"}
CPU = Engine.of(*PLAIN.values())
TINY = {"student": "mlp", "inner_steps": 2, "epochs": 2, "batch_size": 50, "lr": 0.05, "lr_sizes": 0.05}


@pytest.fixture(scope="module")
def real():
    return load_real("digits")


def run(out, steps=30, probes=0, **settings):
    return distill("digits", out=out, method="dd", settings=TINY | settings, steps=steps, probes=probes, **PLAIN)


def make(real, steps=6, seed=0, **settings):
    method = DD(make_config(DDConfig, TINY | settings), real, CPU, seed, steps)
    method.phases()  # refuses what it cannot begin with
    return method


def score(generator, real, seed=0, network=None):
    made = train(network or generator.recipe.student, generator, seed=seed, engine=CPU)
    return accuracy(made.network, real.test.images, real.test.labels, real.mean, real.std, CPU)


def take(method, first, last):
    steps = [(phase.step, number) for phase in method.phases() for number in range(phase.steps)]
    for step, number in steps[first:last]:
        losses = step(number)
    return losses


def changed(folder, out, recipe=None, **stored):
    """Store a generator with other tensors of its recipe, or another recipe."""
    generator = artifact.load(folder)
    generator.recipe_tensors = generator.recipe_tensors | stored
    if recipe is not None:
        generator.recipe = recipe
    return str(artifact.save(generator, out))


def as_npz(path, real):
    np.savez(path, images=real.train.images.numpy(), labels=real.train.labels.numpy())
    return str(path)


@pytest.fixture(scope="module")
def hard(tmp_path_factory):
    return run(tmp_path_factory.mktemp("dd") / "hard", steps=60, probes=2)


def test_distilled_images_teach_more_than_real_ones_with_learned_step_sizes(hard, real, tmp_path):
    frozen = artifact.load(run(tmp_path / "frozen", steps=60, begin="random", learn_images=False))
    distilled = artifact.load(hard)
    assert score(distilled, real) > score(frozen, real) + 0.05
    index = torch.arange(20)
    shown = frozen.draw(torch.empty(20, 0), index)[0]
    expected = make(real, begin="random").generator().draw(torch.empty(20, 0), index)[0]
    torch.testing.assert_close(shown, expected)
    assert frozen.recipe_tensors["step_sizes"].std() > 0


def test_training_on_the_result_gives_the_reported_accuracy_again(hard):
    from dimdata.real import validation_split

    events = [json.loads(line) for line in (hard.parent / "metrics.jsonl").read_text().splitlines()]
    reported = [event["validation_accuracy"] for event in events if event["phase"] == "probe"][-1]
    held_out = validation_split(load_real("digits"))
    for source in (artifact.load(hard), GeneratedDataset(hard)):
        made = train("mlp", source, engine=CPU)
        test = held_out.test
        found = accuracy(made.network, test.images, test.labels, held_out.mean, held_out.std, CPU)
        assert round(100 * found, 2) == reported


def test_the_recipe_is_the_training_that_was_unrolled(real):
    method = make(real, steps=3, soft=True)
    take(method, 0, 3)
    generator = method.generator()
    (leg,) = generator.recipe.legs
    assert (leg.shuffle, leg.batch_size, leg.epochs, generator.images) == (False, 10, 2, 20)
    weights = method.starts.weights(0, 1)
    path = method.unroll.trajectory(
        weights, method.learned["images"].detach(), method.targets().detach(), method.sizes().detach()
    )
    network = train("mlp", generator, engine=CPU).network
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, path[-1][name])
    assert (generator.recipe_tensors["step_sizes"] > 0).all()


def test_evaluation_and_training_take_the_student_of_the_recipe(hard, real):
    (found,) = evaluate(artifact.load(hard), real=real, seeds=1, baselines=(), engine=CPU)
    assert found.student == "mlp"
    assert found.mean == pytest.approx(100 * score(artifact.load(hard), real), abs=0.006)
    with pytest.raises(ArgumentError, match="mlp"):
        train("lenet", artifact.load(hard), engine=CPU)


def test_equal_runs_give_equal_files(tmp_path):
    first, second = (run(tmp_path / name, steps=3) / "model.safetensors" for name in "ab")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"soft": True},
        {"start": "random", "networks": 2, "law": "orthogonal"},
        {"start": "random", "pretrain": {"on": "digits", "count": 2, "epochs": 1}},
        {"start": "random", "networks": 3, "epochs": 4, "window": 3},
        {"start": "random", "calibrate": [1.0, 0.5]},
    ],
)
def test_a_resumed_run_goes_on_bit_by_bit(real, settings):
    whole = make(real, **settings)
    take(whole, 0, 6)
    broken = make(real, **settings)
    take(broken, 0, 3)
    state = {name: tensor.clone() for name, tensor in broken.state_dict().items()}
    other = make(real, **settings)
    other.load_state_dict(state)
    take(other, 3, 6)
    ours, expected = other.state_dict(), whole.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_a_stopped_run_resumes_from_its_folder(tmp_path):
    whole = run(tmp_path / "whole", steps=4)

    def stop(event):
        if event["step"] == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(RunError, match=r"Stopped at step [23] of 4"):
        distill("digits", out=tmp_path / "b", method="dd", settings=TINY, steps=4, progress=stop, **PLAIN)
    assert (tmp_path / "b" / "checkpoint.safetensors").is_file()
    again = distill("digits", out=tmp_path / "b", method="dd", settings=TINY, steps=4, resume=True, **PLAIN)
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_fewer_images_than_classes(real, tmp_path):
    fast = {"lr": 0.1, "lr_sizes": 0.1, "lr_targets": 0.05}
    folder = run(tmp_path / "five", steps=60, inner_steps=1, images=5, epochs=4, soft=True, **fast)
    generator = artifact.load(folder)
    assert generator.images == 5
    dataset = GeneratedDataset(generator)
    assert len(dataset) == 5
    _, target = dataset[0]
    assert target.shape == (10,)
    assert float(target.sum()) == pytest.approx(1, abs=1e-5)
    assert score(generator, real) > 0.4
    assert (folder / "preview.png").exists()


def test_fewer_images_than_classes_begin_with_a_share_of_each(real):
    targets = make(real, inner_steps=1, images=5, soft=True).targets()[0]
    assert targets.shape == (5, 10)
    torch.testing.assert_close(targets.sum(1), torch.ones(5))
    assert targets[0].topk(2).indices.sort().values.tolist() == [0, 5]
    with pytest.raises(FormatError, match="soft"):
        make(real, inner_steps=1, images=5)


def test_windows_end_anywhere_from_their_own_length_on(real):
    method = make(real, start="random", epochs=4, window=3)
    ends = [method._end(step) for step in range(200)]
    assert set(ends) == set(range(3, 9))
    assert ends == [make(real, start="random", epochs=4, window=3)._end(step) for step in range(200)]
    assert {make(real, epochs=4)._end(step) for step in range(20)} == {8}
    before = method.learned["sizes"].detach().clone()
    end = method._end(0)
    take(method, 0, 1)
    moved = method.learned["sizes"].detach().ne(before)
    assert moved.tolist() == [end - 3 <= t < end for t in range(8)]


def test_calibration_takes_step_sizes_back_from_the_edge(real):
    scales = (1.0, 0.5, 0.01)
    method = make(real, steps=4, start="random", networks=2, step_size=30.0, calibrate=scales, learn_images=False)
    phases = method.phases()
    assert [(phase.name, phase.steps) for phase in phases] == [("unroll", 3), ("calibrate", 1)]
    before = method.sizes().detach().clone()
    told = phases[1].step(0)
    assert float(told["scale"]) == pytest.approx(0.01)
    torch.testing.assert_close(method.sizes().detach(), 0.01 * before)
    assert DD.default_steps(method.config) == method.config.default_steps + 1
    calm = make(real, steps=4, start="random", networks=2, step_size=0.3, calibrate=scales)
    assert float(calm.phases()[1].step(0)["scale"]) != pytest.approx(0.01)


def test_soft_targets_move_and_hard_ones_do_not(real):
    soft = make(real, soft=True)
    before = soft.targets().detach().clone()
    take(soft, 0, 3)
    assert not torch.allclose(before, soft.targets())
    torch.testing.assert_close(soft.targets().sum(-1), torch.ones(2, 10))
    hard = make(real)
    take(hard, 0, 2)
    generator = hard.generator()
    assert generator.spec.targets == "hard"
    assert generator.labels(torch.arange(20)).tolist() == [*range(10), *range(10)]


def test_random_starts_are_of_the_law_and_not_those_of_students(real):
    method = make(real, start="random", networks=3, law="orthogonal")
    first, second = method.starts.weights(0, 3), method.starts.weights(1, 3)
    kinds = {tuple(w["fc1.weight"][0, :4].tolist()) for w in [*first, *second]}
    assert len(kinds) == 6
    recipe = method.generator().recipe
    assert (recipe.start.law, recipe.start.student, recipe.tensors) == ("orthogonal", "mlp", ("step_sizes",))
    for seed in range(3):
        weight = train("mlp", method.generator(), seed=seed, engine=CPU, limit_steps=0).network.fc1.weight
        assert tuple(weight[0, :4].tolist()) not in kinds
        torch.testing.assert_close(weight.T @ weight, torch.eye(64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("begin", list(BEGINNINGS))
def test_every_beginning(real, begin):
    method = make(real, begin=begin)
    images = method.generator().draw(torch.empty(20, 0), torch.arange(20))[0]
    assert images.shape == (20, 1, 8, 8)
    assert images.isfinite().all()
    inside = bool(((images >= -1e-4) & (images <= 1 + 1e-4)).all())
    assert inside == (begin != "noise")


def test_selected_real_images_are_the_best_scored(real):
    recipe = Recipe(legs=(Leg(steps=1, batch_size=1),))
    seen = []

    def figure(table):
        seen.append(table)
        return float(table.table[0].float().mean())

    best = selected_real(real, 1, [3, 4, 5], figure, recipe)
    assert len(seen) == 3
    assert best.table[0].float().mean() == min(t.table[0].float().mean() for t in seen)
    assert any(torch.equal(best.table, random_real(real, 1, seed, recipe).table) for seed in (3, 4, 5))


def test_going_on_from_an_earlier_result(hard, real, tmp_path):
    method = make(real, begin=str(hard), soft=True)
    earlier = artifact.load(hard)
    now = method.generator()
    index = torch.arange(20)
    torch.testing.assert_close(now.draw(torch.empty(20, 0), index)[0], earlier.draw(torch.empty(20, 0), index)[0])
    torch.testing.assert_close(now.recipe_tensors["step_sizes"], earlier.recipe_tensors["step_sizes"])
    assert torch.equal(now.recipe_tensors["start.fc1.weight"], earlier.recipe_tensors["start.fc1.weight"])
    assert torch.equal(now.labels(index), earlier.labels(index))
    with pytest.raises(ArgumentError, match="20 images"):
        make(real, begin=str(hard), inner_steps=1)
    soft = artifact.save(now, tmp_path / "soft")
    assert torch.equal(make(real, begin=str(soft), soft=True).generator().labels(index), now.labels(index))
    with pytest.raises(ArgumentError, match="soft=true"):
        make(real, begin=str(soft))
    with pytest.raises(NotFoundError, match="begin"):
        make(real, begin="kmean")


def test_poisoning(real):
    settings = {"pretrain": {"on": "digits", "epochs": 5}, "objective": {"name": "poison", "victim": 3, "taken_for": 8}}
    method = make(real, steps=80, inner_steps=1, epochs=1, lr=0.2, **settings)
    take(method, 0, 80)
    generator = method.generator()
    assert generator.spec.flags == ("poisoned",)
    with pytest.warns(UserWarning, match="poisoned"):
        GeneratedDataset(generator)
    rows = real.test.labels == 3
    before = train("mlp", generator, engine=CPU, limit_steps=0).network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = train("mlp", generator, engine=CPU).network
    victims = (real.test.images[rows].float() / 255 - real.mean[0]) / real.std[0]
    mistaken = [float((network(victims).argmax(1) == 8).float().mean()) for network in (before, after)]
    assert mistaken[0] < 0.2
    assert mistaken[1] > 0.5


@pytest.mark.parametrize(
    ("objective", "error", "words"),
    [
        ({"victim": 1}, FormatError, "name"),
        ({"name": "harm"}, NotFoundError, "objective"),
        ({"name": "poison", "victim": 2, "taken_for": 2}, FormatError, "same class"),
        ({"name": "poison", "victim": 12}, ArgumentError, "12"),
        ({"name": "distill", "victim": 2}, FormatError, "victim"),
    ],
)
def test_objectives_that_do_not_fit(objective, error, words):
    with pytest.raises(error, match=words):
        objective_of(objective).fit(tuple("0123456789"))


def flipped(real):
    """The digits with dark and light exchanged and the classes in another order: another task of the same shape."""
    return RealData.from_arrays(255 - real.train.images, 9 - real.train.labels, name="flipped")


def test_adaptation_moves_a_network_trained_elsewhere(real, tmp_path):
    other = flipped(real)
    on = as_npz(tmp_path / "flipped.npz", other)
    settings = {"start": "random", "pretrain": {"on": on, "count": 2, "epochs": 3}}
    method = make(real, steps=50, epochs=4, lr=0.1, lr_sizes=0.1, **settings)
    take(method, 0, 50)
    generator = method.generator()
    assert generator.recipe.start.law == "stored"
    before = train("mlp", generator, engine=CPU, limit_steps=0).network
    test = (real.test.images, real.test.labels, real.mean, real.std, CPU)
    assert score(generator, real) > accuracy(before, *test) + 0.15


@pytest.mark.parametrize(("start", "on", "students"), [("fixed", "", 1), ("random", "digits", 1), ("random", "", 8)])
def test_probes_train_as_many_students_as_there_are_starts(real, start, on, students):
    method = make(real, start=start, pretrain={"on": on, "count": 1, "epochs": 1})
    assert method.probe().students == students
    generator = method.generator()
    made = [train("mlp", generator, seed=seed, engine=CPU, limit_steps=0).network.fc1.weight for seed in (0, 1)]
    assert torch.equal(*made) == (students == 1)


def test_scores_of_a_stored_start_say_that_seeds_cannot_differ(hard, real):
    scores = evaluate(artifact.load(hard), real=real, seeds=2, baselines=(), engine=CPU)
    assert scores[0].std == 0
    assert "seeds cannot differ" in " ".join(notes(scores))


def test_a_stored_student_as_the_start(real, tmp_path):
    table = random_real(real, 20, 0, Recipe(legs=(Leg(epochs=2, batch_size=20),)))
    made = train("mlp", table, engine=CPU)
    path = save_student(made.network, tmp_path / "student.safetensors", made.info)
    generator = make(real, pretrain={"on": str(path)}).generator()
    weight = generator.recipe_tensors["start.fc1.weight"]
    assert torch.equal(weight, made.network.fc1.weight.detach())
    with pytest.raises(ArgumentError, match="holds a mlp"):
        make(real, student="convnet2-w8", pretrain={"on": str(path)})
    with pytest.raises(ArgumentError, match="one start"):
        make(real, start="random", pretrain={"on": str(path)})
    with pytest.raises(NotFoundError, match="There is no stored student"):
        make(real, pretrain={"on": str(tmp_path / "none.safetensors")})
    whitening = Whitening.fit(real.train.images, 0.1, CPU.device)
    recipe = dataclasses.replace(made.info.recipe, whitening=whitening.spec, tensors=tuple(whitening.tensors()))
    info = dataclasses.replace(made.info, recipe=recipe, whitening=whitening)
    with pytest.raises(ArgumentError, match="whitened"):
        make(real, pretrain={"on": str(save_student(made.network, tmp_path / "white.safetensors", info))})


@pytest.mark.parametrize("settings", [{"window": 5}, {"window": -1}, {"network_clip": -1.0}, {"warmup": -1}])
def test_windows_and_clips_out_of_range(settings):
    with pytest.raises(FormatError, match=f"config.{next(iter(settings))} is "):
        make_config(DDConfig, TINY | settings)


def test_settings_that_contradict_one_another(real):
    with pytest.raises(FormatError, match="networks"):
        make(real, networks=2)
    with pytest.raises(FormatError, match="step_size"):
        make(real, step_size=0.0)
    with pytest.raises(ArgumentError, match="running statistics"):
        make(real, student="convnet2-w8-bn")
    with pytest.raises(ArgumentError, match="steps are too few"):
        make(real, start="random", pretrain={"on": "digits", "count": 6})
    with pytest.raises(ArgumentError, match="nothing is imported for a stored name"):
        make(real, student="nets:mine")
    colours = RealData.from_arrays(real.train.images.expand(-1, 3, -1, -1), real.train.labels, name="colours")
    with pytest.raises(ArgumentError, match="one network cannot take both"):
        make(colours, pretrain={"on": "digits"})


def test_shuffled_use_is_told_once(hard):
    dataset = GeneratedDataset(hard)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert len(list(DataLoader(dataset, batch_size=10))) == 2
            assert len(list(dataset.loader(10, shuffle=False))) == 2
        train("mlp", dataset, engine=CPU)
    with pytest.warns(UserWarning, match="stored order") as told:
        list(itertools.chain(*(dataset.loader(5, seed=seed) for seed in range(3))))
    assert len(told) == 1


def in_order(dataset):
    """Loaders that read the stored order image by image, or leave a part of it out at the end."""
    yield DataLoader(dataset, batch_size=1)
    yield DataLoader(dataset, batch_size=19)  # and one alone
    yield DataLoader(dataset, batch_size=3, drop_last=True)
    yield DataLoader(ConcatDataset([dataset]), batch_size=10)
    yield DataLoader(ConcatDataset([dataset]), batch_size=1, drop_last=True)


def test_reading_image_by_image_in_the_stored_order_is_silent(hard):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "This DataLoader will create")  # torch, on a machine of one core
        dataset = GeneratedDataset(hard)
        for loader in itertools.chain(in_order(dataset), in_order(dataset)):
            list(loader)
        for looked in (3, 17):
            fresh = GeneratedDataset(hard)
            fresh[looked]
            list(ConcatDataset([fresh]))
        workers = {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": "fork"}
        for wrapped, size in ((dataset, 1), (ConcatDataset([dataset]), 7)):
            loader = DataLoader(wrapped, batch_size=size, **workers)
            for _ in range(2):
                list(loader)


@pytest.mark.parametrize("wrap", [lambda ds: ds, lambda ds: ConcatDataset([ds]), lambda ds: Subset(ds, [4, 2])])
def test_reading_image_by_image_out_of_order_is_told_once(hard, wrap):
    dataset = GeneratedDataset(hard)
    random = torch.Generator().manual_seed(0)
    loaders = [DataLoader(wrap(dataset), 1, shuffle=shuffle, generator=random) for shuffle in (True, False, True)]
    with pytest.warns(UserWarning, match="stored order") as told:
        list(itertools.chain(*loaders))
    assert len(told) == 1


def test_the_card_shows_how_to_train_by_the_recipe(hard):
    text = (hard / "README.md").read_text(encoding="utf-8")
    assert "train(generator.recipe.student, generator)" in text
    assert "shuffle=True" not in text
    assert "stored order" in text


def test_networks_are_trained_in_a_phase_of_their_own(real):
    settings = {"start": "random", "networks": 2, "pretrain": {"on": "digits", "count": 3, "epochs": 1}}
    assert DD.default_steps(make_config(DDConfig, TINY | settings | {"default_steps": 7})) == 7 + 4
    method = make(real, steps=10, **settings)
    assert [(p.name, p.steps, p.fixed, p.ready) for p in method.phases()] == [
        ("pretrain", 4, True, 0),
        ("unroll", 6, False, 0),
    ]
    found = estimate(method, grids=0)
    assert method.starts.ready == 0, "estimating a step trained whole networks"
    assert found.phases["pretrain"].seconds_per_step > found.phases["unroll"].seconds_per_step / 100
    network = sum(p.numel() for p in method.starts.template().parameters())
    method = make(real, steps=10, **settings)
    take(method, 0, 1)
    held_out = method.generator().recipe_tensors["start.fc1.weight"]
    take(method, 1, 4)
    assert method.phases()[0].ready == 4
    take(method, 4, 5)
    assert found.checkpoint_bytes == method.checkpoint_bytes() >= 4 * 4 * network
    for step in range(5):
        first, second = (w["fc1.weight"] for w in method.starts.weights(step, 2))
        assert not torch.equal(first, second), "one network was drawn twice"
        assert not torch.equal(first, held_out)
        assert not torch.equal(second, held_out)
    assert len(method.starts.weights(0, 5)) == 5


def test_images_of_another_size_are_resized(real, tmp_path, caplog):
    large = real.train.images[:300].repeat_interleave(2, 2).repeat_interleave(2, 3)
    other = RealData.from_arrays(large, real.train.labels[:300], name="large")
    settings = {"pretrain": {"on": as_npz(tmp_path / "large.npz", other), "epochs": 3}}
    with caplog.at_level(logging.WARNING, logger="dimdata"):
        method = make(real, **settings)
    assert "large resized from 16x16 to 8x8" in caplog.text
    take(method, 0, 1)
    network = train("mlp", method.generator(), engine=CPU, limit_steps=0).network
    assert accuracy(network, real.test.images, real.test.labels, real.mean, real.std, CPU) > 0.5


def test_the_other_dataset_is_looked_for_where_the_first_lies(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, rows in (("train", 20), ("t10k", 10)):
        images = np.random.default_rng(0).integers(0, 256, (rows, 28, 28), np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", np.arange(rows, dtype=np.uint8) % 10)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (raw / f"{part}-{name}-ubyte").write_bytes(head + array.tobytes())
    real = load_real("digits", root=tmp_path)
    method = make(real, pretrain={"on": "fashion-mnist", "epochs": 1})
    assert method.phases()[0].images == 20


def test_a_stored_result_is_taken_on_as_it_was_marked(hard, real, tmp_path):
    generator = artifact.load(hard)
    generator.spec = dataclasses.replace(generator.spec, flags=("poisoned", "odd"))
    marked = artifact.save(generator, tmp_path / "marked")
    assert make(real, begin=str(marked)).generator().spec.flags == ("poisoned", "odd")
    objective = {"name": "poison", "victim": 1, "taken_for": 2}
    assert make(real, begin=str(marked), objective=objective).generator().spec.flags == ("poisoned", "odd")
    digest = artifact.read_config(marked).weights.sha256
    assert digest in make(real, begin=str(marked)).provenance()["began_as"]
    assert not make(real).provenance()


def test_going_on_needs_the_stored_result_no_more(hard, tmp_path):
    earlier = shutil.copytree(hard, tmp_path / "earlier")
    settings = {"begin": str(earlier), "soft": True}

    def stop(event):
        if event["step"] == 2:
            signal.raise_signal(signal.SIGTERM)

    whole = run(tmp_path / "whole", steps=4, **settings)
    common = {"method": "dd", "settings": TINY | settings, "steps": 4, **PLAIN}
    with pytest.raises(RunError, match="Stopped"):
        distill("digits", out=tmp_path / "b", progress=stop, **common)
    shutil.rmtree(earlier)
    again = distill("digits", out=tmp_path / "b", resume=True, **common)
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    facts = [artifact.read_config(folder).provenance["began_as"] for folder in (whole, again)]
    assert facts[0] == facts[1]
    with pytest.raises(NotFoundError):
        distill("digits", out=tmp_path / "new", **common)
    assert not (tmp_path / "new").exists()


def test_stored_labels_are_put_in_turn_or_refused(real, tmp_path):
    rows = torch.cat([(real.train.labels == label).nonzero().flatten()[:2] for label in range(10)])
    split = real.train.select(rows)
    recipe = Recipe(legs=(Leg(steps=1, batch_size=1),))
    kept = {"classes": real.classes, "mean": real.mean, "std": real.std, "recipe": recipe}
    folder = artifact.save(table_generator(split.images, labels=split.labels, **kept), tmp_path / "sorted")
    images = make(real, begin=str(folder)).generator().draw(torch.empty(20, 0), torch.arange(20))[0]
    torch.testing.assert_close(images[3], split.images[6].float() / 255)
    torch.testing.assert_close(images[13], split.images[7].float() / 255)
    labels = split.labels.clone()
    labels[0] = 1
    folder = artifact.save(table_generator(split.images, labels=labels, **kept), tmp_path / "uneven")
    with pytest.raises(ArgumentError, match="1 images of class 0 and 3"):
        make(real, begin=str(folder))


def test_stored_starts_and_step_sizes_that_do_not_fit(hard, real, tmp_path):
    with pytest.raises(ArgumentError, match="pretrain asks for another"):
        make(real, begin=str(hard), pretrain={"on": "digits"})
    wrong = changed(hard, tmp_path / "wrong", **{"start.fc1.weight": torch.zeros(3, 64)})
    with pytest.raises(FormatError, match=r"has fc1.weight of shape \[3, 64\]"):
        make(real, begin=wrong)
    negative = changed(hard, tmp_path / "negative", step_sizes=torch.tensor([0.1, -0.1, 0.1, 0.1]))
    with pytest.raises(FormatError, match="not positive"):
        make(real, begin=negative)


def test_step_sizes_of_longer_and_shorter_trainings(hard, real, tmp_path, caplog):
    sizes = torch.tensor([0.1, 0.2, 0.3, 0.5])
    begin = changed(hard, tmp_path / "known", step_sizes=sizes)
    longer = make(real, begin=begin, epochs=3).sizes().detach()
    torch.testing.assert_close(longer, torch.tensor([0.1, 0.2, 0.3, 0.5, 0.2, 0.2]))
    torch.testing.assert_close(make(real, begin=begin, epochs=1).sizes().detach(), sizes[:2])
    with caplog.at_level(logging.WARNING, logger="dimdata"):
        other = make(real, begin=begin, inner_steps=1, per_class=2, epochs=4).sizes().detach()
    assert "batches of 10 images, not 20" in caplog.text
    torch.testing.assert_close(other, torch.full((4,), 0.02))


def test_rates_rise_in_a_warm_up(real):
    moved = {}
    for warmup in (0, 10):
        method = make(real, warmup=warmup)
        before = method.learned["images"].detach().clone()
        take(method, 0, 1)
        moved[warmup] = (method.learned["images"].detach() - before).abs().median()
    torch.testing.assert_close(moved[10], moved[0] / 10, rtol=1e-3, atol=0)
    method = make(real, betas=[0.9, 0.99])
    assert {group["betas"] for group in method.optimizer.param_groups} == {(0.9, 0.99)}
    with pytest.raises(FormatError, match="betas"):
        make(real, betas=[0.9, 1.0])


@pytest.mark.parametrize(
    ("begin", "soft", "method"), [("random", False, "real"), ("kmeans", True, "dd"), ("noise", False, "dd")]
)
def test_images_that_are_not_learned_remain_what_they_were(begin, soft, method, tmp_path):
    folder = run(tmp_path / "run", steps=2, begin=begin, soft=soft, learn_images=False)
    spec = artifact.load(folder).spec
    assert spec.method == method
    assert (spec.value_range == (0.0, 1.0)) == (begin != "noise")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert ("distilled with" in text) == (method == "dd")
    assert ("Step sizes alone were learned" in text) == (method == "real")


def test_a_score_that_is_no_number_is_the_worst(real):
    recipe = Recipe(legs=(Leg(steps=1, batch_size=1),))
    scores = iter([float("nan"), 2.0, 1.0])
    best = selected_real(real, 1, [3, 4, 5], lambda table: next(scores), recipe)
    assert torch.equal(best.table, random_real(real, 1, 5, recipe).table)


def test_choices_are_scored_at_step_sizes_that_teach(real):
    method = make(real, begin="random", step_size=1e-3)
    images = method.generator().draw(torch.empty(20, 0), torch.arange(20))[0]
    assert method._score(images) < method._score(torch.zeros_like(images)) - 0.05


def test_probes_of_a_poisoned_run_say_what_they_judge_by(real, caplog):
    method = make(real, objective={"name": "poison"})
    with caplog.at_level(logging.WARNING, logger="dimdata"):
        method.probe()
        method.probe()
    assert caplog.text.count("true labels") == 1


@pytest.mark.parametrize("poisoned", [False, True])
def test_held_out_networks_are_scored(poisoned, tmp_path, monkeypatch, capsys):
    settings = {"start": "random", "inner_steps": 1, "lr": 0.2, "lr_sizes": 0.2}
    if poisoned:
        settings["pretrain"] = {"on": "digits", "count": 1, "epochs": 2}
        settings["objective"] = {"name": "poison", "victim": 3, "taken_for": 8}
    folder = run(tmp_path / "run", steps=60, **settings)
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "benchmarks"))
    out = tmp_path / "found.json"
    words = ["dd_starts", str(folder), "--networks", "2", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    __import__("dd_starts").main()
    printed, found = capsys.readouterr().out, json.loads(out.read_text())
    assert json.loads(printed.splitlines()[-1]) == found
    assert found["networks"] == len(found["rows"]) == 2
    assert found["rows"][0]["before"] != found["rows"][1]["before"]
    name = "victim taken for target" if poisoned else "accuracy"
    figures = found["figures"][name]
    values = [row["after"][name] for row in found["rows"]]
    assert figures["after"]["mean"] == pytest.approx(sum(values) / 2)
    assert figures["after"]["mean"] > figures["before"]["mean"] + 10
    assert (found["figures"]["accuracy"]["before"]["mean"] > 50) == poisoned


PRETRAINED = {"start": "random", "networks": 2, "pretrain": {"on": "digits", "count": 2, "epochs": 1}}


def test_estimating_calibration_trains_no_network_and_takes_a_part_of_its_time(real, monkeypatch):
    method = make(real, steps=10, calibrate=[1.0, 0.5, 0.25, 0.125], **PRETRAINED)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    phase = method.phases()[-1]
    _, share = phase.part()
    assert share == 1 / (4 * 8)
    assert method.starts.ready == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    monkeypatch.setattr(method, "_calibrate", None)  # which would not be called
    assert estimate(method, grids=0).phases["calibrate"].steps == 1


@pytest.mark.parametrize("begin", ["noise", "selected"])
def test_networks_that_a_run_trains_count_as_consumed_whenever_it_does(begin, tmp_path):
    settings = PRETRAINED | {"begin": begin, "calibrate": [1.0, 0.5]}
    folder = run(tmp_path / "run", steps=7, **settings)
    provenance = artifact.read_config(folder).provenance
    steps = provenance["phases"]
    assert steps == {"pretrain": 3, "unroll": 3, "calibrate": 1}
    assert provenance["real_images_consumed"] == 3 * len(load_real("digits").train) + 3 * 50 + 8 * 50


def test_a_calibrated_run_gets_no_other_budget_than_leaves_calibration_last(tmp_path):
    settings = {"calibrate": [0.5], "start": "random"}
    with pytest.raises(ArgumentError, match="1 steps are too few: the last step calibrates"):
        run(tmp_path / "tiny", steps=1, **settings)
    out = tmp_path / "run"
    folder = run(out, steps=6, **settings)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match="in a run of 12, what is finished by now would have had another share"):
        distill("digits", out=out, method="dd", settings=TINY | settings, steps=12, resume=True, **PLAIN)
    assert (folder / "model.safetensors").read_bytes() == before


def test_probes_train_by_the_whole_recipe(real):
    assert make(real, epochs=300).probe().steps is None


def test_the_time_left_is_not_told_by_networks_that_are_trained_first(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["dimdata.distill.run"], "LOG_SECONDS", 0.0)
    events = []
    given = {"method": "dd", "settings": TINY | PRETRAINED, "progress": events.append, **PLAIN}
    distill("digits", out=tmp_path / "steps", steps=12, **given)
    assert [e["phase"] for e in events if "eta_seconds" in e and e["phase"] == "pretrain"] == []
    unrolled = [e["eta_seconds"] for e in events if "eta_seconds" in e and e["phase"] == "unroll"]
    assert len(unrolled) == 8
    assert unrolled[-1] == 0
    events.clear()
    distill("digits", out=tmp_path / "minutes", minutes=0.15, **given)
    told = [e["eta_seconds"] for e in events if "eta_seconds" in e and e["phase"] == "pretrain"]
    assert told, "a budget in minutes has measured all phases"
    assert max(told) < 60
