"""Critics of the adversarial game."""

import pytest
import torch

from dimdata import latents
from dimdata.distill.config import make_config
from dimdata.distill.critics import CRITICS
from dimdata.distill.dim import DiM, DimConfig, moments
from dimdata.distill.run import distill
from dimdata.engine import Engine
from dimdata.real import load_real


@pytest.mark.parametrize("name", list(CRITICS))
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 17, 23)])
def test_critics_judge_images_one_by_one_under_their_labels(name, shape):
    torch.manual_seed(0)
    critic = CRITICS[name](shape, 4, 6)
    images, labels = torch.rand(5, *shape), torch.tensor([0, 1, 2, 3, 0])
    with torch.no_grad():
        scores, classes = critic(images, labels)
        alone = critic(images[2:3], labels[2:3])
    assert scores.shape == (5,)
    assert classes.shape == (5, 4)
    torch.testing.assert_close(scores[2:3], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(classes[2:3], alone[1], rtol=1e-4, atol=1e-5)


def test_only_the_spatial_critic_sees_where_a_feature_is():
    torch.manual_seed(0)
    x = torch.rand(2, 8, 3, 3)
    moved = x.roll(1, 3)
    average, spatial = (CRITICS[name]((1, 28, 28), 4, 2) for name in ("projection", "spatial"))
    torch.testing.assert_close(average.pool(x), average.pool(moved))
    assert not torch.allclose(spatial.pool(x), spatial.pool(moved))


def test_the_scaled_critic_sees_where_too_and_moves_less_in_a_step_of_adam():
    images, labels = torch.rand(16, 3, 32, 32), torch.arange(16) % 4
    moves = {}
    for name in ("spatial", "spatial-scaled"):
        torch.manual_seed(0)
        critic = CRITICS[name]((3, 32, 32), 4, 8)
        x = torch.rand(2, 8, 4, 4)
        assert not torch.allclose(critic.pool(x), critic.pool(x.roll(1, 3)))
        heads = [*critic.score.parameters(), *critic.project.parameters()]
        optimizer = torch.optim.Adam(heads, lr=2e-3, betas=(0.0, 0.99))
        before = critic(images, labels)[0]
        (-before.mean()).backward()
        optimizer.step()
        moves[name] = (critic(images, labels)[0] - before).mean().item()
    assert 0 < moves["spatial-scaled"] < moves["spatial"] / 2


def test_a_run_with_the_spatial_critic_and_kernel_matching_leaves_a_generator(tmp_path):
    settings = {"critic_name": "spatial", "critic": 4, "network": {"name": "subpixel", "width": 8, "mid": 8, "stem": 4}}
    plain = {"method": "dim", "device": "cpu", "precision": "fp32", "compile": "off", "steps": 4}
    settings |= {"matching": "kernel", "match_share": 0.5, "pool": ("convnet1-w8",)}
    folder = distill("digits", out=tmp_path / "run", settings=settings, **plain)
    assert (folder / "model.safetensors").is_file()
    assert '"critic_name": "spatial"' in (tmp_path / "run" / "run.json").read_text()


@pytest.mark.parametrize("start", ["grey", "mean", "varied"])
def test_how_bright_and_how_different_untrained_images_are(start):
    real = load_real("digits")
    config = make_config(DimConfig, {"start": start, "match_share": 0.0, "critic": 4})
    method = DiM(config, real, Engine.of("cpu", "fp32", "off"), 0, 10)
    index = torch.arange(200)  # 20 of each class
    noise = latents.latents(0, 0, index, method.spec.latent)
    drawn = method.generator().draw(noise, index)[0]
    assert abs(real.mean[0] - 0.5) > 0.1  # so that the two can be told apart
    wanted = torch.tensor([0.5] if start == "grey" else real.mean)
    torch.testing.assert_close(drawn.mean((0, 2, 3)), wanted, atol=0.05, rtol=0)
    deviation = drawn.view(20, 10, -1).std(0).mean()  # among the images of a class
    assert deviation > 0.03 if start == "varied" else deviation < 0.01


def test_a_calm_start_lets_the_rate_rise_and_the_penalty_fall():
    config = make_config(DimConfig, {"calm": 50, "lr": 0.01, "flatness": 0.02, "match_share": 0.0, "critic": 4})
    method = DiM(config, load_real("digits"), Engine.of("cpu", "fp32", "off"), 0, 1000)
    (phase,) = method.phases()
    rates, weights = [], []
    for step in (0, 24, 50):
        phase.step(step)
        rates.append(method.game.optimizers["critic"].param_groups[0]["lr"])
        weights.append(method.game.flatness)
    assert rates == pytest.approx([0.01 / 50, 0.01 / 2, 0.01])
    assert weights == pytest.approx([0.3, 0.3 * (0.02 / 0.3) ** (24 / 50), 0.02])
    assert [method._anchor(step) for step in (0, 25, 50)] == [250.0, 125.0, 0.0]
    short = DiM(config, load_real("digits"), Engine.of("cpu", "fp32", "off"), 0, 40)
    short.phases()[0].step(10)  # a quarter of a short run is calm at the most
    assert short.game.flatness == 0.02
    assert short.game.optimizers["critic"].param_groups[0]["lr"] == 0.01


def test_moments_are_those_of_each_pixel_and_have_a_slope_everywhere():
    torch.manual_seed(0)
    real, fake = torch.rand(64, 1, 4, 4), torch.rand(64, 1, 4, 4)
    assert moments(real, real) == 0
    assert moments(real, real.roll(1, 3)) > 0  # other places
    assert moments(real, 0.5 + 0.1 * (real - 0.5)) > 10 * moments(real, fake)  # too little variety
    black = torch.zeros(64, 1, 4, 4, requires_grad=True)
    moments(real, black).backward()
    assert black.grad.isfinite().all()
    assert (black.grad < 0).all()  # brighter is better


def test_a_calm_start_keeps_generators_from_turning_black():
    real = load_real("digits")

    def deviation(settings):
        torch.manual_seed(0)
        plain = {"match_share": 0.0, "critic": 16, "network": {"name": "subpixel", "width": 16, "mid": 16, "stem": 8}}
        method = DiM(make_config(DimConfig, plain | settings), real, Engine.of("cpu", "fp32", "off"), 0, 400)
        (phase,) = method.phases()
        for step in range(100):
            phase.step(step)
        index = torch.arange(200)
        drawn = method.generator().draw(latents.latents(0, 0, index, method.spec.latent), index)[0]
        return drawn.view(20, 10, -1).std(0).mean().item()

    theirs = torch.stack([real.train.images[real.train.labels == k][:100].float().std(0) / 255 for k in range(10)])
    calm, sudden = deviation({}), deviation({"calm": 0, "start": "mean"})
    assert calm > theirs.mean() / 2
    assert calm > 2 * sudden
