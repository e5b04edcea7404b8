"""DiM on accelerators: no step waits for the device, and the presets for GPUs run, at toy size, on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.utils._python_dispatch import TorchDispatchMode

from dimdata import artifact, latents
from dimdata.distill.config import make_config, presets
from dimdata.distill.dim import DiM, DimConfig, MovingAverage
from dimdata.distill.run import distill
from dimdata.engine import Engine
from dimdata.generators.cost import cost
from dimdata.generators.layers import ClassAffine
from dimdata.real import RealData

BENCHMARKS = Path(__file__).parent / "benchmarks"
GPU = tuple(name for name in presets() if name.endswith("-gpu"))
MORE = {"batch_size": 120, "match_batch_size": 120}  # than a hundred classes, so that some have a pair
SMALL = {
    "network": {"name": "subpixel", "width": 8, "mid": 8, "stem": 4},
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


class Copies(TorchDispatchMode):
    """Notes copies from one device to another that wait for their end."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operation.overloadpacket.__name__
        pairs = []
        if name == "_to_copy":
            pairs = [(kwargs.get("device") or args[0].device, args[0].device, kwargs.get("non_blocking"))]
        elif name == "copy_":
            pairs = [(args[0].device, args[1].device, (*args, *kwargs.values())[-1] is True)]
        elif name == "_foreach_copy_":
            pairs = [(to.device, of.device, False) for to, of in zip(args[0], args[1], strict=True)]
        self.waiting += [f"{name}: {of} to {to}" for to, of, free in pairs if to != of and not free]
        return operation(*args, **kwargs)


@pytest.mark.parametrize("name", ["dim-cifar10", "paper", *GPU])
def test_no_step_asks_the_device_for_a_value(name):
    """Tensors of the meta device have no values: whatever waits for one fails, as it would stall a GPU."""
    small = SMALL | (MORE if "100" in name else {}) | {"pool_batches": 1}
    config = make_config(DimConfig, name, small)
    method = DiM(config, colour(100 if "100" in name else 10), Engine(torch.device("meta")), 0, 1000)
    for phase in method.phases():
        phase.step(0)  # which fills caches
        with Copies() as copies:
            losses = phase.step(1)
        assert copies.waiting == []
        assert {loss.device.type for loss in losses.values()} == {"meta"}
    assert method.gan_batches.images.dtype == torch.uint8
    assert method.gan_batches.images.device.type == "meta", "the data lies on the device"


def test_a_copy_that_is_waited_for_would_be_noticed():
    with Copies() as copies:
        torch.zeros(()).to("meta")
        torch.zeros(2, device="meta").copy_(torch.zeros(2))
        torch.zeros(2).to("meta", non_blocking=True)
        torch.zeros(2).to(torch.float64)
    assert [each.split(":")[0] for each in copies.waiting] == ["_to_copy", "copy_"]


def test_a_step_that_asks_the_device_for_a_value_would_be_noticed():
    with pytest.raises((RuntimeError, NotImplementedError)):
        int(torch.zeros((), device="meta"))


@pytest.mark.parametrize("name", GPU)
def test_presets_for_gpus_run(name, tmp_path):
    """With their own network, only narrower, and a pool of two families like theirs, of which some are replaced."""
    classes = 100 if "100" in name else 10
    own = dict(make_config(DimConfig, name).network) | {"widths": [8, 8, 8], "stem": 4}
    small = SMALL | (MORE if classes == 100 else {})
    small |= {"network": own, "pool": ["convnet1-w8", "resnet10-w16"] * 2, "pool_age": 1}
    seen = []
    folder = distill(
        colour(classes),
        out=tmp_path / "run",
        config=name,
        settings=small,
        steps=40,
        device="cpu",
        precision="bf16",
        compile="off",
        progress=lambda event: seen.append(event["phase"]),
    )
    made = artifact.read_config(folder)
    assert made.provenance["phases"] == {"gan": 32, "match": 8}
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


def test_the_moving_average_keeps_the_buffers_of_the_network():
    network = nn.BatchNorm1d(3)
    average = MovingAverage(network, 0.9)
    network.running_mean.fill_(2.0)
    network.num_batches_tracked.fill_(7)
    average.update_parameters(network)
    assert average.module.running_mean.tolist() == [2.0] * 3
    assert average.module.num_batches_tracked == 7


def test_networks_are_made_without_touching_random_states(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a CUDA state is seeded"))
    before = torch.get_rng_state()
    DiM(make_config(DimConfig, "dim-cifar10", SMALL), colour(10), Engine(torch.device("cpu")), 0, 10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_rows_of_a_class_are_looked_up_as_by_indexing(kind):
    layer, x = ClassAffine(5, 7), torch.randn(40, 7, 3, 3, generator=torch.Generator().manual_seed(0)).to(kind)
    nn.init.normal_(layer.scale, generator=torch.Generator().manual_seed(1))
    label = latents.integers(3, torch.arange(40), 5)
    other = ClassAffine(5, 7)
    other.load_state_dict(layer.state_dict())
    scale, shift = (rows[label].to(kind)[:, :, None, None] for rows in (other.scale, other.shift))
    for out in (layer(x, label), torch.addcmul(shift, x, scale)):
        out.float().square().sum().backward()
    assert torch.equal(layer(x, label), torch.addcmul(shift, x, scale))
    assert torch.equal(layer.scale.grad, other.scale.grad)
    assert torch.equal(layer.shift.grad, other.shift.grad)


def test_the_profile_counts_a_kernel_once_and_labels_not_at_all(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import profile_distill

    def event(name, start, end, device=DeviceType.CPU, **more):
        return FunctionEvent(0, name, 0, start, end, use_device="cuda", device_type=device, **more)

    label = event("part: critic", 0, 10, is_user_annotation=True)
    convolution, add = event("aten::conv2d", 1, 4), event("aten::add", 20, 21)
    convolution.set_cpu_parent(label)
    label.append_cpu_child(convolution)
    on_device = [
        event("part: critic", 30, 90, DeviceType.CUDA, is_user_annotation=True),
        event("implicit_gemm", 30, 70, DeviceType.CUDA),
        event("add_kernel", 80, 85, DeviceType.CUDA),
    ]
    label.append_kernel("part: critic", 0, 60)  # as PyTorch links the device's side of a label to it
    convolution.append_kernel("implicit_gemm", 0, 40)
    add.append_kernel("add_kernel", 0, 5)
    found = profile_distill.shares([label, convolution, add, *on_device], of_device=True)
    assert {part: value for part, value in found.items() if value} == {"critic": 40, "rest": 5}
    assert profile_distill.shares([label, convolution, add], of_device=False) == {"critic": 10, "rest": 1}


def test_the_profile_counts_every_operation_to_its_part(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import profile_distill

    monkeypatch.setitem(profile_distill.SIDE, "cpu", 64)
    monkeypatch.setattr(profile_distill, "PRODUCT_SECONDS", 0.01)
    monkeypatch.setattr(profile_distill, "TIMED_SECONDS", 0.01)
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
