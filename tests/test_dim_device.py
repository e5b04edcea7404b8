"""DiM on accelerators: no step waits for the device, and the presets for GPUs run, at toy size, on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dimdata import artifact, latents
from dimdata.distill.config import make_config, presets
from dimdata.distill.dim import DiM, DimConfig, MovingAverage
from dimdata.distill.run import distill
from dimdata.engine import Engine
from dimdata.generators.cost import cost
from dimdata.real import RealData

BENCHMARKS = Path(__file__).parent / "benchmarks"
GPU = tuple(name for name in presets() if name.endswith("-gpu"))
SMALL = {
    "network": {"width": 8, "mid": 8, "stem": 4},
    "critic": 4,
    "batch_size": 20,
    "match_batch_size": 20,
    "pool": ["convnet1-w8"],
}


def colour(classes: int, images: int = 200) -> RealData:
    """Random images in the shape of CIFAR's."""
    values = latents.integers(latents.fold(latents.stream("test"), 1), torch.arange(images * 3 * 32 * 32), 256)
    labels = torch.arange(images) % classes
    return RealData.from_arrays(values.to(torch.uint8).view(images, 3, 32, 32), labels, name=f"colour{classes}")


@pytest.mark.parametrize("name", ["dim-cifar10", "paper", *GPU])
def test_no_step_asks_the_device_for_a_value(name):
    """Tensors of the meta device have no values: whatever waits for one fails, as it would stall a GPU."""
    small = SMALL | {"network": {"width": 8}, "pool_batches": 1}
    config = make_config(DimConfig, name, small)
    method = DiM(config, colour(100 if "100" in name else 10), Engine(torch.device("meta")), 0, 1000)
    for phase in method.phases():
        for step in range(2):
            losses = phase.step(step)
        assert {loss.device.type for loss in losses.values()} == {"meta"}
    assert method.gan_batches.images.dtype == torch.uint8
    assert method.gan_batches.images.device.type == "meta", "the data lies on the device"


def test_a_step_that_asks_the_device_for_a_value_would_be_noticed():
    with pytest.raises((RuntimeError, NotImplementedError)):
        int(torch.zeros((), device="meta"))


@pytest.mark.parametrize("name", GPU)
def test_presets_for_gpus_run(name, tmp_path):
    classes = 100 if "100" in name else 10
    seen = []
    folder = distill(
        colour(classes),
        out=tmp_path / "run",
        config=name,
        settings=SMALL,
        steps=20,
        device="cpu",
        precision="bf16",
        compile="off",
        progress=lambda event: seen.append(event["phase"]),
    )
    made = artifact.read_config(folder)
    assert made.provenance["phases"] == {"gan": 16, "match": 4}
    assert {"gan", "match"} <= set(seen)
    assert made.generator.num_classes == classes
    assert artifact.load(folder).sample([0, classes - 1])[0].isfinite().all()


@pytest.mark.parametrize("name", GPU)
def test_presets_for_gpus_make_generators_within_the_limits(name):
    config = make_config(DimConfig, name, {"pool": ["convnet1-w8"]})
    spent = cost(DiM(config, colour(100 if "100" in name else 10), Engine(torch.device("meta")), 0, 10).spec)
    assert spent.flop <= 60e6
    assert spent.nbytes <= 4e6


def test_the_moving_average_spans_at_most_half_of_the_steps():
    network = nn.Linear(1, 1, bias=False)
    average = MovingAverage(network, 0.9)
    values = torch.arange(1.0, 31.0)
    expected = 0.0
    for step, value in enumerate(values.tolist()):
        network.weight.data.fill_(value)
        average.update_parameters(network)
        decay = 0.0 if step == 0 else min(0.9, (step + 1) / (step + 3))
        expected = decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)


def test_the_profile_counts_every_operation_to_its_part(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import profile_distill

    monkeypatch.setitem(profile_distill.SIDE, "cpu", 64)
    (tmp_path / "toy.toml").write_text(
        'critic = 8\nbatch_size = 16\npool = ["convnet1-w16"]\nlatent = 8\n'
        'network = {name = "pyramid", widths = [16, 8], stem = 8}\n'
    )
    arguments = ["mnist", "--config", str(tmp_path / "toy.toml"), "--steps", "2", "--device", "cpu", "--compile", "off"]
    monkeypatch.setattr(sys, "argv", ["profile_distill", *arguments, "--out", str(tmp_path / "profile.json")])
    profile_distill.main()
    found = json.loads((tmp_path / "profile.json").read_text())
    assert set(found["phases"]) == {"gan", "match"}
    for name, phase in found["phases"].items():
        parts = phase["parts"]
        assert sum(part["seconds"] for part in parts.values()) == pytest.approx(phase["seconds"])
        assert (parts["pool"]["seconds"] > 0) == (parts["pool"]["flop"] > 0) == (name == "match")
        assert parts["optimiser"]["seconds"] > 0
        assert parts["optimiser"]["flop"] == 0
    config = make_config(DimConfig, str(tmp_path / "toy.toml"))
    grey = RealData.from_arrays(torch.zeros(20, 1, 28, 28, dtype=torch.uint8), torch.arange(20) % 10)
    forward = 16 * cost(DiM(config, grey, Engine(torch.device("meta")), 0, 10).spec).flop
    spent = found["phases"]["gan"]["parts"]["generator"]["flop"]
    assert 2.5 * forward < spent <= 3 * forward, "forward once, backward for weights and for inputs but the latent's"
    assert "The 3 largest: " in capsys.readouterr().out
