"""Generators: labels from indices, draws without state, tables and their stages, and construction without memory."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from conftest import make_network, make_table, recipe
from torch import Tensor, nn

from dimdata.errors import ArgumentError, DimdataError, FormatError
from dimdata.generators.base import GENERATORS, Generator, shapes_only
from dimdata.generators.network import NetworkGenerator
from dimdata.generators.table import TableGenerator, table_generator
from dimdata.latents import latents
from dimdata.spec import Spec

CLASSES: dict[str, Any] = {"classes": ("a", "b", "c"), "mean": (0.5,), "std": (0.2,)}


def small_table(count: int = 6, **arguments: Any) -> TableGenerator:
    pictures = (torch.arange(count * 16) % 251).to(torch.uint8).view(count, 1, 4, 4)
    return table_generator(pictures, recipe=recipe(), **CLASSES, **arguments)


def draw(generator: Generator, index: Tensor) -> tuple[Tensor, Tensor]:
    return generator.draw(latents(0, 0, index, generator.spec.latent), index)


@pytest.mark.parametrize("kind", ["network", "table"])
def test_draw(kind: str) -> None:
    generator: Generator = make_network() if kind == "network" else make_table()
    index = torch.tensor([0, 7, 13, 9])
    images, targets = draw(generator, index)
    assert images.shape == (4, 1, 28, 28)
    assert images.dtype == torch.float32
    assert not images.requires_grad
    low, high = generator.spec.value_range
    assert low <= float(images.min())
    assert float(images.max()) <= high
    assert float(images.std()) > 0.01, "the images are not all alike"
    assert torch.equal(targets, torch.tensor([0, 7, 3, 9]))
    assert torch.equal(targets, generator.labels(index))
    alone = torch.cat([draw(generator, index[i : i + 1])[0] for i in range(4)])
    assert torch.allclose(alone, images, atol=1e-5)


def test_drawing_leaves_global_randomness_alone() -> None:
    generator = make_network()
    before = torch.get_rng_state()
    draw(generator, torch.arange(10))
    assert torch.equal(before, torch.get_rng_state())


def test_a_class_changes_the_image() -> None:
    generator = make_network()
    latent = latents(0, 0, torch.zeros(2, dtype=torch.int64), generator.spec.latent)
    images, _ = generator.draw(latent, torch.tensor([0, 1]))
    assert not torch.allclose(images[0], images[1])


@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 32), (1, 5, 9), (2, 1, 1), (3, 33, 70)])
def test_network_shapes(image_shape: tuple[int, int, int]) -> None:
    images, _ = draw(make_network(image_shape=image_shape), torch.arange(3))
    assert images.shape == (3, *image_shape)
    assert bool(images.isfinite().all())


@pytest.mark.parametrize(
    "changes",
    [
        {"images": 10},
        {"latent": 0},
        {"storage": "uint8"},
        {"targets": "soft"},
        {"options": {}},
        {"options": {"name": 3}},
        {"options": {"name": "subpixle"}},
        {"options": {"name": "subpixel", "width": 0}},
        {"options": {"name": "subpixel", "depth": 3}},
    ],
)
def test_networks_refuse_what_they_cannot_be(changes: dict[str, Any]) -> None:
    spec = Spec.from_json(make_network().spec.to_json() | changes)
    with pytest.raises(DimdataError), shapes_only():
        NetworkGenerator(spec, recipe())


@pytest.mark.parametrize(
    "changes",
    [
        {"images": None},
        {"latent": 3},
        {"options": {"stages": [10, 11]}},
        {"options": {"stages": [20, 0]}},
        {"options": {"rows": 3}},
        {"value_range": [-1.0, 1.0]},
    ],
)
def test_tables_refuse_what_they_cannot_be(changes: dict[str, Any]) -> None:
    spec = Spec.from_json(make_table().spec.to_json() | changes)
    with pytest.raises(FormatError), shapes_only():
        TableGenerator(spec, recipe())


def test_table_without_labels_counts_through_the_classes() -> None:
    generator = small_table(labels=torch.tensor([0, 1, 2, 0, 1, 2]))
    assert set(generator.stored()) == {"table"}
    assert generator.labels(torch.arange(6)).tolist() == [0, 1, 2, 0, 1, 2]
    assert generator.images == 6
    images, _ = draw(generator, torch.tensor([2]))
    assert torch.equal(images[0].flatten() * 255, torch.arange(32.0, 48.0))


def test_table_with_labels_and_soft_targets() -> None:
    labels = torch.tensor([2, 2, 0, 1, 0, 0])
    assert torch.equal(draw(small_table(labels=labels), torch.arange(6))[1], labels)
    targets = torch.eye(3)[labels] * 0.8 + 0.1
    soft = small_table(targets=targets)
    assert torch.equal(draw(soft, torch.arange(6))[1], targets)
    assert torch.equal(soft.labels(torch.arange(6)), labels)
    with pytest.raises(FormatError, match="class that does not exist"):
        small_table(labels=labels + 1)


def test_learned_images_may_leave_the_range() -> None:
    pictures = torch.linspace(-2, 3, 3 * 16).view(3, 1, 4, 4)
    generator = table_generator(pictures, recipe=recipe(), **CLASSES)
    assert generator.spec.value_range == (-2.0, 3.0)
    assert torch.equal(draw(generator, torch.arange(3))[0], pictures)


def test_stages_are_prefixes() -> None:
    generator = small_table(count=9, stages=(3, 3, 3))
    assert generator.stages == 3
    assert generator.view() is generator
    assert generator.view(stage=3) is generator
    prefix = generator.view(stage=2)
    assert prefix.images == 6
    assert prefix.stages == 2
    assert torch.equal(draw(prefix, torch.arange(6))[0], draw(generator, torch.arange(6))[0])
    table = prefix.stored()["table"]
    assert table.data_ptr() == generator.stored()["table"].data_ptr(), "a prefix shares memory"
    for stage in (0, 4, -1):
        with pytest.raises(ArgumentError, match="has 3 stages"):
            generator.view(stage=stage)
    with pytest.raises(ArgumentError, match="has 1 stage,"):
        make_network().view(stage=2)


@pytest.mark.parametrize("kind", ["network", "table"])
def test_sample(kind: str) -> None:
    generator: Generator = make_network() if kind == "network" else make_table()
    images, targets = generator.sample([3, 3, 0, 3], seed=5)
    assert targets.tolist() == [3, 3, 0, 3]
    assert not torch.equal(images[0], images[1])
    assert torch.allclose(generator.sample(torch.tensor([3]), seed=5)[0][0], images[0], atol=1e-5)
    assert torch.allclose(generator.sample([0], seed=5)[0][0], images[2], atol=1e-5)
    if kind == "network":
        assert not torch.allclose(generator.sample([3], seed=6)[0], images[:1])
    assert generator.sample([])[0].shape[0] == 0
    for label in (-1, 10):
        with pytest.raises(ArgumentError, match="0 to 9"):
            generator.sample([label])


def test_sample_walks_through_stored_images() -> None:
    generator = small_table(labels=torch.tensor([2, 2, 0, 0, 0, 0]))
    images, _ = generator.sample([2, 2, 2])
    assert torch.equal(images[0], images[2]), "the two images of the class come round again"
    assert not torch.equal(images[0], images[1])
    with pytest.raises(ArgumentError, match=r"no image of class 1 \(b\)"):
        generator.sample([1])


def test_nbytes_counts_what_is_stored() -> None:
    assert make_table().nbytes == 20 * 784
    assert make_network("float32").nbytes == 2 * make_network("float16").nbytes


def test_shapes_only_takes_no_memory_and_no_randomness() -> None:
    before = torch.get_rng_state()
    with shapes_only():
        layers = nn.ModuleList([nn.Embedding(10**6, 10**6), nn.Linear(10**6, 10**6), nn.Conv2d(10**4, 10**4, 99)])
    assert all(p.device.type == "meta" for p in layers.parameters())
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(0)
    assert nn.Embedding(2, 2).weight.abs().sum() > 0, "initial values are drawn again afterwards"
    torch.set_rng_state(before)


def test_shapes_only_imports_no_compiler() -> None:
    code = (
        "import sys, torch; from conftest import make_network; make_network(); "
        "print([m for m in ('sympy', 'torch._dynamo') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=__file__.rsplit("/", 1)[0])
    assert out.stdout.strip() == "[]", out.stderr


def test_kinds_are_registered() -> None:
    assert {"network", "table"} <= set(GENERATORS)
