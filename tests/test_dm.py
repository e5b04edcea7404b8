"""Distribution matching, on the bundled digits."""

import pytest
import torch

from dimdata import artifact, latents
from dimdata.distill.config import make_config
from dimdata.distill.dm import DM, DmConfig
from dimdata.distill.pdd import PDD, PddConfig
from dimdata.distill.run import distill
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, FormatError
from dimdata.real import load_real, random_real, subset
from dimdata.students.train import accuracy, train

PLAIN = {"device": "cpu", "precision": "fp32", "compile": "off"}
RECIPE = {"legs": [{"epochs": 40, "batch_size": 10, "lr": 0.05}]}
SETTINGS = {"ipc": 1, "student": "convnet2-w16", "real_batch": 16, "lr": 5.0, "recipe": RECIPE}
ENGINE = Engine.of("cpu", "fp32", "off")


def method(steps=10, seed=0, **settings):
    return DM(make_config(DmConfig, {**SETTINGS, **settings}), load_real("digits"), ENGINE, seed, steps)


def take(dm, first, last):
    (phase,) = dm.phases()
    return [float(phase.step(step)["match"]) for step in range(first, last)]


def test_one_learned_image_of_each_class_beats_random_real_ones(tmp_path):
    real = load_real("digits")
    folder = distill(real, out=tmp_path / "run", method="dm", settings=SETTINGS, steps=40, **PLAIN)
    recipe = artifact.load(folder).recipe
    scores = {"learned": [], "random": []}
    for seed in range(2):
        for name, source in (("learned", artifact.load(folder)), ("random", random_real(real, 1, seed, recipe))):
            network = train("convnet2-w16", source, seed=seed, engine=ENGINE).network
            scores[name].append(accuracy(network, real.test.images, real.test.labels, real.mean, real.std, ENGINE))
    assert min(scores["learned"]) > max(scores["random"]) + 0.05, scores


def test_the_images_start_as_real_ones_and_move():
    dm = method(ipc=2, storage="uint8")
    real = subset(dm.real.train, 2, latents.fold(latents.stream("table.start"), 0)).images
    before = dm.generator()
    assert torch.equal(before.table, real)
    take(dm, 0, 3)
    assert not torch.equal(dm.generator().table, real)
    assert torch.equal(before.table, real), "an earlier generator moved along"


def test_networks_to_learn_through_start_otherwise_than_students_that_score():
    dm = method()
    for seed in range(3):
        student = train("convnet1-w8", dm.generator(), seed=seed, engine=ENGINE, limit_steps=0).network
        for number in range(3):
            met = dm.networks("convnet1-w8", 0).network(number)
            assert not torch.equal(met.state_dict()["classifier.weight"], student.state_dict()["classifier.weight"])


def test_the_images_may_start_as_centres_of_clusters():
    dm = method(ipc=2, storage="uint8", begin="kmeans")
    centres, real = dm.generator().table, dm.real.train
    assert not torch.equal(centres, method(ipc=2, storage="uint8").generator().table)
    for row, centre in enumerate(centres):  # each is the mean of the images of its class that lie nearest to it
        own = real.images[real.labels == row % 10].flatten(1).float()
        both = centres[row % 10 :: 10].flatten(1).float()
        nearest = torch.cdist(own, both).argmin(1)
        assert torch.allclose(own[nearest == row // 10].mean(0), centre.flatten().float(), atol=1.5)


def test_clusters_of_a_later_stage_start_from_another_choice():
    first, second = method(ipc=2, begin="kmeans").start(), second_stage(ipc=4, begin="kmeans").start()
    assert first.shape == second.shape
    assert not torch.equal(first, second)


@pytest.mark.parametrize("storage", ["uint8", "float16", "float32"])
def test_stored_as_asked_and_read_back_equal(tmp_path, storage):
    dm = method(storage=storage)
    take(dm, 0, 5)
    made = dm.generator()
    read = artifact.load(artifact.save(made, tmp_path / "generator"))
    assert read.table.dtype == getattr(torch, storage)
    assert torch.equal(read.table, made.table)
    assert read.spec.images == 10
    index = torch.arange(10)
    images, labels = read.draw(torch.empty(10, 0), index)
    assert labels.tolist() == list(range(10))
    assert read.spec.value_range[0] <= images.min() <= images.max() <= read.spec.value_range[1]
    inside = bool((dm.table * dm.std + dm.mean).aminmax()[0] >= -1e-5)
    assert inside == (storage == "uint8"), "only uint8 keeps images within [0, 1]"


def test_each_step_brings_class_means_nearer_for_the_network_it_used():
    """Plain descent on one network: the loss that was reported falls when the same step is asked for again."""
    dm = method(momentum=0.0, lr=0.5, augment="")
    (phase,) = dm.phases()
    losses = [float(phase.step(0)["match"]) for _ in range(8)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]


def test_learned_images_can_take_turns():
    dm = method(ipc=4, learned_batch=2, momentum=0.0)
    before = dm.table.detach().clone().unflatten(0, (4, 10))
    take(dm, 0, 1)
    moved = (dm.table.detach().unflatten(0, (4, 10)) != before).flatten(1).any(1)
    assert moved.tolist() == [True, True, False, False]
    take(dm, 1, 2)
    assert (dm.table.detach().unflatten(0, (4, 10)) != before).flatten(1).any(1).all()


def test_resumed_is_bit_identical():
    whole = method()
    losses = take(whole, 0, 6)
    first = method()
    assert take(first, 0, 3) == losses[:3]
    state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    second = method()
    second.load_state_dict(state)
    assert take(second, 3, 6) == losses[3:]
    assert torch.equal(second.table, whole.table)


@pytest.mark.parametrize("union", [None, False, True])
def test_a_later_stage_matches_by_itself_unless_told_otherwise(union):
    settings = SETTINGS | {"ipc": 4} | ({} if union is None else {"union": union})
    over = {"base": "dm", "stages": 2, "networks": 1, "age": 4, "settings": settings}
    pdd = PDD(make_config(PddConfig, over), load_real("digits"), ENGINE, 0, 8)
    first = pdd.base.table.detach().clone()
    pdd._advance()
    assert len(pdd.base._chosen(0)) == (40 if union else 20)
    assert pdd.base.lr == pytest.approx(SETTINGS["lr"] / 2**0.5 * (2 if union else 1))
    if union:
        torch.testing.assert_close(pdd.base.before, first, atol=0.01, rtol=0)


def second_stage(**settings):
    """DM as the second of two stages."""
    over = {"base": "dm", "stages": 2, "networks": 1, "age": 20, "settings": SETTINGS | {"ipc": 2, **settings}}
    pdd = PDD(make_config(PddConfig, over), load_real("digits"), ENGINE, 0, 8)
    pdd._advance()
    return pdd.base


def test_focus_weights_real_images_by_how_wrong_the_network_is():
    dm = second_stage(focus=2.0)
    images, labels = dm.batches.at(0)
    images = dm.normalize(images)
    with torch.no_grad():
        logits, features = dm.network(images)
        found = dm._means(images, 2.0)
        plain = dm._means(images)
    own = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    weights = (1 - own).clamp_min(1e-3).square()
    for label in range(10):
        chosen = labels == label
        mean = (weights[chosen, None] * features[chosen]).sum(0) / weights[chosen].sum()
        torch.testing.assert_close(found[label], mean)
        torch.testing.assert_close(plain[label], features[chosen].mean(0))
    assert not torch.allclose(found, plain, rtol=0.01)


def test_focused_means_are_gradients_of_the_last_layer():
    """The loss of real images of a class, by the weights of their class, points where the focused mean does."""
    dm = second_stage(focus=1.0)
    images, labels = dm.batches.at(0)
    images = dm.normalize(images)
    (weight,) = [w for name, w in dm.network.named_parameters() if w.ndim == 2]
    weight.requires_grad_(True)
    logits, _ = dm.network(images)
    found = dm._means(images, 1.0).detach()
    for label in range(10):
        loss = torch.nn.functional.cross_entropy(logits[labels == label], labels[labels == label])
        (slope,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert torch.cosine_similarity(-slope[label], found[label], 0) > 0.999


def test_focus_changes_nothing_but_later_stages():
    assert take(method(focus=3.0), 0, 2) == take(method(), 0, 2)
    ours, plain = second_stage(focus=3.0), second_stage()
    assert (ours.focus, plain.focus) == (3.0, 0.0)
    assert take(ours, 0, 1) != take(plain, 0, 1)


def test_images_of_a_class_are_augmented_alike_and_those_of_others_otherwise():
    dm = method(ipc=3, augment="crop+rotate+color")
    image = dm.table.detach()[:1]
    seen = dm._augmented(image.expand(30, -1, -1, -1), 0).unflatten(0, (3, 10))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    assert len(seen[0].flatten(1).unique(dim=0)) > 5
    again = dm._augmented(image.expand(50, -1, -1, -1), 0).unflatten(0, (5, 10))
    assert torch.equal(again[0], seen[0]), "real and learned images are augmented alike"
    assert not torch.equal(dm._augmented(image.expand(30, -1, -1, -1), 1)[:10], seen[0])


@pytest.mark.parametrize(("turn", "share"), [(0, 0.5), (4, 1 / 2**0.5), (2, 1.0), (1, 1.0)])
def test_a_stage_takes_up_as_much_noise_as_the_whole(turn, share):
    """Steps, a stage's being a quarter, times the square of what moves an image in each."""
    whole = make_config(DmConfig, SETTINGS | {"ipc": 8, "learned_batch": turn})
    stage = DM.for_stages(whole, 4)
    assert (stage.ipc, stage.lr) == (2, pytest.approx(whole.lr * share))

    def noise(config, steps):
        return steps * config.turn() / config.ipc * (config.lr / config.turn()) ** 2

    assert noise(stage, 100) == pytest.approx(noise(whole, 400))


def test_the_learning_rate_may_fall_at_the_end():
    dm = method(lr_decay=0.5, momentum=0.0)
    rates = []
    for step in range(10):
        take(dm, step, step + 1)
        rates.append(dm.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([5.0] * 6 + [4.0, 3.0, 2.0, 1.0])
    steady, falling = method(), method(lr_decay=0.5)
    assert take(falling, 0, 5) == take(steady, 0, 5)
    assert torch.equal(falling.table, steady.table)


def test_seeds_differ():
    assert take(method(seed=0), 0, 1) != take(method(seed=1), 0, 1)


def test_bad_settings_are_refused():
    changes = ({"ipc": 0}, {"lr": 0.0}, {"momentum": 1.0}, {"real_batch": 0}, {"storage": "float8"})
    for settings in (*changes, {"focus": -1.0}, {"lr_decay": 1.5}, {"begin": "mean"}):
        with pytest.raises(FormatError):
            make_config(DmConfig, settings)
    with pytest.raises(ArgumentError, match="has"):
        method(ipc=1000)
