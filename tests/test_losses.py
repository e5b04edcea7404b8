"""Matching and adversarial losses against their definitions."""

import pytest
import torch
from torch.nn import functional as F

from dimdata.distill.config import make_config
from dimdata.distill.dim import DiM, DimConfig
from dimdata.distill.losses import ADVERSARIAL, MATCHING, View, flatness
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, NotFoundError
from dimdata.real import load_real


def view(seed: int, scale: float = 1.0) -> View:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(12, 3, generator=random) * scale
    return View(logits, torch.randn(12, 5, generator=random), torch.arange(12) % 3)


@pytest.mark.parametrize("name", ["logit", "kl", "feature", "gradient"])
def test_equal_views_match_perfectly_and_others_do_not(name):
    real, other = view(0), view(1)
    assert MATCHING[name](real, real).item() == pytest.approx(0, abs=1e-6)
    assert MATCHING[name](real, other).item() > 1e-3


def test_logit_matching_is_the_mean_square_of_log_softmax_differences():
    real, fake = view(0), view(1)
    expected = sum(
        (F.log_softmax(fake.logits[i], 0) - F.log_softmax(real.logits[i], 0)).square().mean() for i in range(12)
    )
    torch.testing.assert_close(MATCHING["logit"](real, fake), expected / 12)


def test_standardised_logits_ignore_shift_and_scale():
    real = view(0)
    moved = View(real.logits * 7 + 3, real.features, real.labels)
    assert MATCHING["kl"](real, moved).item() == pytest.approx(0, abs=1e-5)


def test_a_higher_temperature_softens():
    """In the limit of high temperature the divergence is that of the z-scores, half their mean square distance."""
    real, fake = view(0), view(1)

    def scores(seen: View) -> torch.Tensor:
        centred = seen.logits - seen.logits.mean(1, keepdim=True)
        return centred / centred.std(1, keepdim=True)

    limit = (scores(real) - scores(fake)).square().mean(1).mean() / 2
    assert MATCHING["kl"](real, fake, temperature=100.0).item() == pytest.approx(limit.item(), rel=0.05)


def test_feature_matching_sees_class_means_alone():
    real = view(0)
    order = torch.cat([torch.arange(12).reshape(4, 3)[[2, 0, 3, 1]].flatten()])  # within classes only
    shuffled = View(real.logits, real.features[order], real.labels)
    assert MATCHING["feature"](real, shuffled).item() == pytest.approx(0, abs=1e-10)


def test_unbiased_features_multiply_differences_of_other_positions_only():
    real, fake = view(0), view(1)
    difference = fake.features - real.features
    means = []
    for label in range(3):
        rows = [row for row in range(12) if row % 3 == label]
        products = [(difference[i] @ difference[j]).item() for i in rows for j in rows if i != j]
        means.append(sum(products) / len(products))
    expected = sum(means) / 3 / real.features.var(0).sum()
    torch.testing.assert_close(MATCHING["feature-unbiased"](real, fake), expected)


def test_unbiased_features_ask_for_no_less_variety():
    """Features of one law, generated ones spread about their mean: the pull on the spread is none on average."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(12) % 3
    pulls = {"feature": [], "feature-unbiased": []}
    values = []
    for _ in range(800):
        spread = torch.ones((), requires_grad=True)
        logits = torch.zeros(12, 3)
        real = View(logits, torch.randn(12, 5, generator=random), labels)
        fake = View(logits, torch.randn(12, 5, generator=random) * spread, labels)
        for name, seen in pulls.items():
            loss = MATCHING[name](real, fake)
            seen.append(torch.autograd.grad(loss, spread, retain_graph=True)[0].item())
        values.append(loss.item())
    error = {name: torch.tensor(seen).std().item() / len(seen) ** 0.5 for name, seen in pulls.items()}
    mean = {name: sum(seen) / len(seen) for name, seen in pulls.items()}
    assert mean["feature"] > 10 * error["feature"]
    assert abs(mean["feature-unbiased"]) < 4 * error["feature-unbiased"]
    assert abs(sum(values) / len(values)) < 4 * torch.tensor(values).std().item() / len(values) ** 0.5


def test_unbiased_features_see_a_shift_and_single_images_do_not_count():
    real = view(0)
    moved = View(real.logits, real.features + 2.0, real.labels)
    shift = MATCHING["feature-unbiased"](real, moved) * (real.features.var(0).sum() + 1e-6)
    assert shift.item() == pytest.approx(5 * 4.0, rel=1e-5)
    single = [View(seen.logits[:3], seen.features[:3], seen.labels[:3]) for seen in (real, moved)]
    assert MATCHING["feature-unbiased"](*single).item() == 0


def test_kernel_distance_is_the_mean_over_pairs_of_different_positions_of_a_class():
    real, fake = view(0), view(1)
    apart = torch.cdist(real.features, real.features).square()
    scale = apart.sum() / (12 * 11)

    def like(a: torch.Tensor, b: torch.Tensor) -> float:
        distance = (a - b).square().sum()
        return sum(torch.exp(-distance / (scale * width)).item() for width in (0.5, 1.0, 2.0)) / 3

    expected = 0.0
    for label in range(3):
        rows = [row for row in range(12) if row % 3 == label]
        terms = [
            like(real.features[i], real.features[j])
            + like(fake.features[i], fake.features[j])
            - like(real.features[i], fake.features[j])
            - like(fake.features[i], real.features[j])
            for i in rows
            for j in rows
            if i != j
        ]
        expected += sum(terms) / len(terms) / 3
    assert MATCHING["kernel"](real, fake).item() == pytest.approx(expected, rel=1e-4)


def test_kernel_distance_sees_too_little_variety_where_means_do_not():
    random = torch.Generator().manual_seed(0)
    labels, logits = torch.arange(12) % 3, torch.zeros(12, 3)
    values = {1.0: [], 0.5: []}
    pulls = []
    for _ in range(400):
        real = View(logits, torch.randn(12, 5, generator=random), labels)
        noise = torch.randn(12, 5, generator=random)
        for spread in values:
            scale = torch.tensor(spread, requires_grad=True)
            loss = MATCHING["kernel"](real, View(logits, noise * scale, labels))
            values[spread].append(loss.item())
        pulls.append(torch.autograd.grad(loss, scale)[0].item())

    def mean_and_error(found: list[float]) -> tuple[float, float]:
        return sum(found) / len(found), torch.tensor(found).std().item() / len(found) ** 0.5

    same, narrow, pull = mean_and_error(values[1.0]), mean_and_error(values[0.5]), mean_and_error(pulls)
    assert abs(same[0]) < 4 * same[1]
    assert narrow[0] > 4 * narrow[1]
    assert pull[0] < -4 * pull[1]  # a larger spread lowers the loss


def test_kernel_distance_leaves_single_images_out():
    real, fake = view(0), view(1)
    single = [View(seen.logits[:3], seen.features[:3], seen.labels[:3]) for seen in (real, fake)]
    assert MATCHING["kernel"](*single).item() == 0


def test_gradient_matching_uses_the_true_gradient_of_the_last_layer():
    def gradient(seen: View) -> torch.Tensor:
        weight = torch.zeros(3, 5, requires_grad=True)
        logits = seen.logits + seen.features @ weight.T
        return torch.autograd.grad(F.cross_entropy(logits, seen.labels), weight)[0]

    real, fake = view(0), view(1)
    expected = (1 - F.cosine_similarity(gradient(fake), gradient(real), dim=1)).mean()
    torch.testing.assert_close(MATCHING["gradient"](real, fake), expected)


@pytest.mark.parametrize("name", list(ADVERSARIAL))
def test_adversaries_pull_in_opposite_directions(name):
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    game = ADVERSARIAL[name]
    by_critic = torch.autograd.grad(game.discriminator(real, fake), fake)[0]
    by_network = torch.autograd.grad(game.generator(real, fake), fake)[0]
    assert (by_critic > 0).all()
    assert (by_network < 0).all()


def test_flatness_is_the_squared_slope():
    scores = torch.tensor([1.0, 2.0])
    assert flatness(scores, scores + 0.1, 0.05).item() == pytest.approx(4.0, rel=1e-5)


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(NotFoundError, match="logit"):
        MATCHING["logits"]


@pytest.mark.parametrize("name", ["kernel", "feature-unbiased"])
def test_losses_of_pairs_refuse_batches_without_any(name):
    real = load_real("digits")
    settings = {"matching": name, "batch_size": 20, "match_batch_size": 10, "pool": ["convnet1-w8"]}

    def make(**changes):
        return DiM(make_config(DimConfig, settings | changes), real, Engine(torch.device("cpu")), 0, 20)

    with pytest.raises(ArgumentError, match="batch of 10") as caught:
        make()
    assert "match_batch_size=20" in caught.value.hint
    make(match_batch_size=11)
    make(match_share=0.0)
    make(matching="logit")
