"""The published recipe of DiM: the preset `paper`, its networks, its penalty and its pool."""

import collections
import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dimdata import artifact, latents
from dimdata.distill.config import make_config
from dimdata.distill.critics import CRITICS, Critic
from dimdata.distill.dim import DiM, DimConfig
from dimdata.distill.losses import ADVERSARIAL
from dimdata.distill.penalties import PENALTIES
from dimdata.distill.pool import POOLS, Member
from dimdata.distill.run import distill
from dimdata.engine import Engine
from dimdata.errors import FormatError, NotFoundError
from dimdata.generators.base import shapes_only
from dimdata.generators.network import build
from dimdata.real import RealData
from dimdata.spec import Spec
from dimdata.students.source import InitLaw

CPU = Engine.of("cpu", "fp32", "off")
SMALL = {  # the same recipe, narrow
    "network": {"width": 8},
    "critic": 8,
    "batch_size": 16,
    "match_batch_size": 16,
    "gan_epochs": 1,
    "match_epochs": 1,
    "pool": ["convnet2-w8", "convnet1-w8-bn"],
    "pool_batches": 2,
    "pool_age": 5,
}


def images(shape, count=320) -> RealData:
    """Ten classes, each a pattern of its own under noise."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 10
    patterns = random.integers(0, 200, (10, *shape))
    noisy = patterns[labels] + random.integers(0, 55, (count, *shape))
    return RealData.from_arrays(noisy.astype(np.uint8), labels, name="patterns")


def paper(real: RealData, steps: int | None = None, **settings) -> DiM:
    config = make_config(DimConfig, "paper", {**SMALL, **settings})
    return DiM(config, real, CPU, 0, steps or DiM.budget(config, real))


def spec(shape, width: int, latent: int = 90, classes: int = 10) -> Spec:
    return Spec(
        kind="network",
        method="dim",
        dataset="patterns",
        classes=tuple(map(str, range(classes))),
        image_shape=shape,
        mean=(0.5,) * shape[0],
        std=(0.25,) * shape[0],
        latent=latent,
        options={"name": "acgan", "width": width},
    )


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("shape", "network", "critic"), [((3, 32, 32), 3_559_363, 3_137_971), ((1, 28, 28), 3_286_921, 2_969_803)]
)
def test_the_networks_have_the_published_numbers_of_parameters(shape, network, critic):
    with shapes_only():
        assert parameters(build(spec(shape, 196))) == network
        assert parameters(CRITICS["acgan"](shape, 10, 196)) == critic


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 20, 33), (3, 64, 64)])
@pytest.mark.parametrize("classes", [10, 100])
def test_both_networks_take_any_sides_and_classes(shape, classes):
    with torch.random.fork_rng():
        network = build(spec(shape, 4, classes=classes))
        critic = CRITICS["acgan"](shape, classes, 4)
        labels = torch.tensor([0, classes - 1])
        drawn = network(torch.randn(2, 90), labels)
    assert drawn.shape == (2, *shape)
    assert 0 <= drawn.min() < drawn.max() <= 1
    scores, logits = critic(drawn, labels)
    assert (scores.shape, logits.shape) == ((2,), (2, classes))


def test_images_of_the_stored_network_do_not_depend_on_their_batch():
    method = paper(images((1, 28, 28)))
    method.phases()[0].step(0)
    generator = method.generator()
    latent, index = latents.normal(1, torch.arange(20), 90), torch.arange(20)
    together, _ = generator.draw(latent, index)
    alone, _ = generator.draw(latent[7:8], index[7:8])
    torch.testing.assert_close(together[7:8], alone)
    assert not torch.equal(together[7], together[17])  # of the same class


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_both_phases_run_and_leave_a_generator(tmp_path, shape):
    """Twenty steps of each phase, counted as an epoch each; the pool is born four times."""
    real = images(shape)
    folder = distill(real, out=tmp_path / "run", config="paper", settings=SMALL, device="cpu", compile="off")
    check_run(tmp_path / "run", folder, shape)
    events = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert events[-1]["losses"].keys() == {"critic", "network", "pool", "match"}


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_the_whole_widths_run(tmp_path, shape):
    """The published networks, at batch 16: twenty steps of each phase."""
    whole = {"batch_size": 16, "match_batch_size": 16, "gan_epochs": 1, "match_epochs": 1, "pool_age": 5}
    folder = distill(images(shape), out=tmp_path / "run", config="paper", settings=whole, device="cpu", compile="off")
    check_run(tmp_path / "run", folder, shape)


def check_run(out, folder, shape) -> None:
    provenance = json.loads((folder / "config.json").read_text())["provenance"]
    assert provenance["phases"] == {"gan": 20, "match": 20}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        assert all(math.isfinite(value) for value in json.loads(line)["losses"].values())
    generator = artifact.load(folder)
    assert generator.spec.storage == "float32"
    drawn, labels = generator.draw(latents.normal(3, torch.arange(30), 90), torch.arange(30))
    assert drawn.shape == (30, *shape)
    assert 0 <= drawn.min() < drawn.max() <= 1
    assert labels.tolist() == [*range(10)] * 3


def test_the_preset_counts_in_the_published_epochs():
    config = make_config(DimConfig, "paper")
    for count, gan, match in ((50_000, 150 * 390, 100 * 781), (60_000, 150 * 468, 100 * 937)):
        real = RealData.from_arrays(np.arange(count * 64).reshape(-1, 1, 8, 8).astype(np.uint8), np.arange(count) % 10)
        assert DiM.budget(config, real) == gan + match


def test_another_budget_is_shared_out_in_the_same_proportion():
    method = paper(images((1, 8, 8)), steps=400, gan_epochs=3)
    assert [(phase.name, phase.steps, phase.images) for phase in method.phases()] == [
        ("gan", 300, 16),
        ("match", 100, 16 * 3),
    ]


def test_each_phase_has_its_learning_rate_and_it_stays():
    method = paper(images((1, 8, 8)), lr=1e-3, match_lr=1e-5)
    gan, match = method.phases()
    for phase, lr in ((gan, 1e-3), (match, 1e-5)):
        for step in (0, phase.steps - 1):
            phase.step(step)
            rates = {g["lr"] for o in method.game.optimizers.values() for g in o.param_groups}
            assert rates == {lr}
    live, kept = method.network.state_dict(), method.generator().network.state_dict()
    assert all(torch.equal(live[name], kept[name]) for name in live)  # no average


def test_a_run_resumed_in_the_life_of_a_network_goes_on_alike():
    real = images((1, 8, 8))
    whole, broken = paper(real), paper(real)
    for step in range(13):
        whole.phases()[1].step(step)
    for step in range(7):
        broken.phases()[1].step(step)
    resumed = paper(real)
    resumed.load_state_dict({name: tensor.clone() for name, tensor in broken.state_dict().items()})
    for step in range(7, 13):
        resumed.phases()[1].step(step)
    expected, given = whole.state_dict(), resumed.state_dict()
    assert expected.keys() == given.keys()
    assert all(torch.equal(expected[name], given[name]) for name in expected)


def fresh(sources: int, age: int, seed: int = 0, **settings):
    laws = tuple(InitLaw(f"convnet1-w{k + 1}", (1, 8, 8), 10, seed=k) for k in range(sources))
    return POOLS["fresh"](laws, "logit", (0.5,), (0.25,), CPU, lr=0.01, age=age, seed=seed, **settings)


def test_a_fresh_network_is_drawn_uniformly_and_lives_its_turns():
    pool = fresh(5, age=2)
    families, weights = [], []
    for step in range(400):
        member = pool.member(step)
        families.append(pool.place)
        weights.append(next(member.network.parameters()).detach().clone())
    assert families[::2] == families[1::2]
    counts = collections.Counter(families[::2])
    assert len(counts) == 5
    assert all(20 <= count <= 60 for count in counts.values()), counts  # of 200, 40 expected, deviation 5.7
    first = [w for place, w in zip(families[::2], weights[::2], strict=True) if place == families[0]]
    assert not any(torch.equal(first[0], other) for other in first[1:])
    other = fresh(5, age=2, seed=1)
    assert [other.member(step) and other.place for step in range(400)] != families


def test_a_fresh_pool_is_timed_by_all_its_families_and_is_what_it_was_afterwards():
    """One family of the published pool takes a third of the time of another."""
    method = paper(images((1, 8, 8)), pool=["convnet1-w4", "convnet1-w8", "mlp"], pool_batches=1)
    (match,) = (phase for phase in method.phases() if phase.name == "match")
    match.step(0)
    assert match.period == 3
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    seen = []
    for _ in range(2 * match.period):
        _, share = match.part()
        assert share == 1
        seen.append(method.pool.place)
    assert sorted(seen[:3]) == sorted(seen[3:]) == [0, 1, 2]
    method.load_state_dict(before)
    after = method.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_pool_is_taught_by_real_batches_of_its_own(monkeypatch):
    """Published: 16 before every step of the generator, none of them the one that is matched."""
    shown, train = [], Member.train

    def recorded(member, pictures, labels):
        shown.append((pictures.clone(), labels.clone()))
        return train(member, pictures, labels)

    monkeypatch.setattr(Member, "train", recorded)
    method = paper(images((1, 8, 8)), pool=["convnet1-w4"], pool_batches=16, pool_augment="none")
    gan, match = method.phases()
    match.step(0)
    assert method.state_dict()["pool.life"].tolist() == [0, 1]
    assert len(shown) == 16
    real = method.pool.prepare(method.real.train.images.float() / 255).flatten(1)
    matched = method.pool.prepare(method.match_batches.at(gan.steps)[0])
    for pictures, labels in shown:
        assert not torch.equal(pictures, matched)
        apart, rows = torch.cdist(pictures.flatten(1).double(), real.double()).min(1)
        assert apart.max() < 1e-3
        assert torch.equal(method.real.train.labels[rows], labels)


def test_a_network_of_the_pool_learns_what_it_is_shown():
    """Its weights are those of SGD on the labels of its images."""
    pool = fresh(1, 9)
    member = pool.member(0)
    network = copy.deepcopy(member.network)
    sgd = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    pictures = torch.randn(3, 20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 10
    for batch in pictures:
        member.train(batch, labels)
        sgd.zero_grad()
        F.cross_entropy(network(pool.enter(batch))[0], labels).backward()
        sgd.step()
    for bare, taught in zip(network.parameters(), member.network.parameters(), strict=True):
        torch.testing.assert_close(bare, taught, atol=1e-6, rtol=0)


def test_images_enter_the_pool_alike_wherever_they_are_augmented():
    batch = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    unit, normalized = fresh(1, 9), fresh(1, 9, space="normalized")
    torch.testing.assert_close(unit.enter(unit.prepare(batch)), normalized.enter(normalized.prepare(batch)))
    torch.testing.assert_close(unit.enter(unit.prepare(batch)), (batch - 0.5) / 0.25)


class Linear(Critic):
    """A critic of a known gradient."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__((1, 2, 2), 10, 1)
        self.weight = nn.Parameter(weight)

    def forward(self, images, labels):
        return (images * self.weight).sum((1, 2, 3)), images.new_zeros(len(images), 10)


def test_the_gradient_penalty_takes_the_true_gradient_in_published_units():
    """On [-1, 1] the gradient is half of that on [0, 1]; the penalty is differentiable in the weights."""
    weight = torch.tensor([[1.0, 2.0], [2.0, 4.0]])  # of norm 5
    critic = Linear(weight)
    penalty = PENALTIES["gradient"]
    real, fake, labels = torch.ones(3, 1, 2, 2), torch.zeros(3, 1, 2, 2), torch.arange(3)
    places, direction, where = penalty.place(real, fake, labels, labels, key=1)
    shares = places[:, 0, 0, 0]
    assert torch.equal(places, shares[:, None, None, None].expand(3, 1, 2, 2))
    assert len(set(shares.tolist())) == 3
    assert ((shares >= 0) & (shares <= 1)).all()
    value = penalty.measure(lambda x, y: critic(x, y)[0], places, direction, where)
    assert value.item() == pytest.approx((5 / 2 - 1) ** 2)
    (slope,) = torch.autograd.grad(value, critic.weight)
    torch.testing.assert_close(slope, 2 * (5 / 2 - 1) * weight / 5 / 2)


def test_the_gradient_penalty_agrees_with_finite_differences_through_the_critic():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic = CRITICS["acgan"]((1, 8, 8), 10, 3).double()
    at = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([0, 1])

    def score(x, y):
        return critic.score(critic.layers(x * 2 - 1).amax((2, 3))).squeeze(1)

    value = PENALTIES["gradient"].measure(score, at, at.new_empty(0), labels)
    step, norms = 1e-6, []
    for image in at:
        slope = [
            (score((image + step * e)[None], labels) - score((image - step * e)[None], labels)).item() / (2 * step)
            for e in torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
        ]
        norms.append(math.sqrt(sum(s * s for s in slope)) / 2)
    expected = sum((norm - 1) ** 2 for norm in norms) / 2
    assert value.item() == pytest.approx(expected, rel=1e-4)
    assert all(p.grad is None for p in critic.parameters())
    value.backward()
    assert critic.layers[0].weight.grad.abs().max() > 0


def test_wasserstein_is_the_difference_of_the_means():
    game = ADVERSARIAL["wasserstein"]
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 0.0])
    assert game.discriminator(real, fake).item() == pytest.approx(-2.5)
    assert game.generator(real, fake).item() == pytest.approx(0.5)


def test_the_generator_moves_first_and_the_critic_sees_new_images_of_random_labels():
    """With a critic registered from outside, as a user would, that keeps what it was shown."""
    shown = []

    @CRITICS.register("test-keeping")
    class Keeping(Critic):
        def __init__(self, image_shape, num_classes, width):
            super().__init__(image_shape, num_classes, width)
            self.score = nn.Linear(image_shape[0] * image_shape[1] * image_shape[2], 1 + num_classes)

        def forward(self, images, labels):
            shown.append((images.detach().clone(), labels.clone()))
            both = self.score(images.flatten(1))
            return both[:, 0], both[:, 1:]

    real = images((1, 8, 8))
    method = paper(real, critic_name="test-keeping", batch_size=40)
    before = [p.detach().clone() for p in method.network.parameters()]
    critic_before = method.critic.score.weight.detach().clone()
    method.phases()[0].step(0)
    fooled, judged, slope = shown
    labels = method.gan_batches.labels_at(0)
    assert torch.equal(fooled[1], labels)
    assert torch.equal(judged[1][:40], labels)
    assert not torch.equal(judged[1][40:], labels)
    assert len(slope[0]) == 40
    assert not any(torch.equal(image, other) for image in judged[0][40:] for other in fooled[0])
    assert any(not torch.equal(a, b) for a, b in zip(before, method.network.parameters(), strict=True))
    assert not torch.equal(critic_before, method.critic.score.weight)

    shown.clear()
    method = paper(real, critic_name="test-keeping", batch_size=40, round="shared")
    method.phases()[0].step(0)
    judged, _, fooled = shown
    assert torch.equal(judged[1][40:], labels)
    assert torch.equal(judged[0][40:], fooled[0])


@pytest.mark.parametrize(
    ("settings", "error", "word"),
    [
        ({"critic_name": "acgna"}, NotFoundError, "acgan"),
        ({"penalty": "gradients"}, NotFoundError, "gradient"),
        ({"round": "alternating"}, NotFoundError, "alternate"),
        ({"pool_policy": "stagered"}, NotFoundError, "staggered"),
        ({"augment_space": "units"}, FormatError, "normalized"),
        ({"betas": [0.0, 1.0]}, FormatError, "betas"),
        ({"betas": [0.5]}, FormatError, "betas"),
        ({"match_batch_size": 1}, FormatError, "match_batch_size"),
        ({"match_lr": 0}, FormatError, "match_lr"),
        ({"gan_epochs": -1}, FormatError, "gan_epochs"),
        ({"pool": []}, FormatError, "pool"),
        ({"network": {"name": "acgan", "width": 0}}, FormatError, "width"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, error, word):
    with pytest.raises(error, match=word):
        paper(images((1, 8, 8), 20), **settings)
