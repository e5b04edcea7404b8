"""Critics of the adversarial game."""

import pytest
import torch

from dimdata import latents
from dimdata.distill.config import make_config
from dimdata.distill.critics import CRITICS
from dimdata.distill.dim import DiM, DimConfig
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


@pytest.mark.parametrize("start_at_mean", [True, False])
def test_untrained_generators_are_as_bright_as_the_real_images(start_at_mean):
    real = load_real("digits")
    settings = {"start_at_mean": start_at_mean, "match_share": 0.0, "critic": 4}
    config = make_config(DimConfig, settings)
    method = DiM(config, real, Engine.of("cpu", "fp32", "off"), 0, 10)
    index = torch.arange(200)
    noise = latents.latents(0, 0, index, method.spec.latent)
    drawn = method.generator().draw(noise, index)[0].mean((0, 2, 3))
    wanted = torch.tensor(real.mean) if start_at_mean else torch.tensor([0.5])
    assert abs(real.mean[0] - 0.5) > 0.1  # so that the two can be told apart
    torch.testing.assert_close(drawn, wanted, atol=0.05, rtol=0)
