"""Fixtures shared by all tests: small generators, and a Hub cache of our own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from dimdata import artifact, latents
from dimdata.generators.base import Generator, shapes_only
from dimdata.generators.network import NetworkGenerator
from dimdata.generators.table import TableGenerator, table_generator
from dimdata.recipe import Leg, Recipe
from dimdata.spec import Spec

pytest_plugins = ["hub_fixtures"]

_HF_HOME = tempfile.mkdtemp(prefix="dimdata-hf-")
os.environ["HF_HOME"] = _HF_HOME  # read once, when huggingface_hub is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
for _name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "DIMDATA_NAMESPACE", "DIMDATA_MAX_BYTES"):
    os.environ.pop(_name, None)


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_unconfigure() -> None:
    shutil.rmtree(_HF_HOME, ignore_errors=True)


def recipe() -> Recipe:
    return Recipe(legs=(Leg(epochs=2, batch_size=10, augment="flip"),))


def make_network(storage: str = "float32", seed: int = 0, image_shape: tuple[int, int, int] = (1, 28, 28)) -> Generator:
    """A tiny network generator of ten classes with weights of our own hash: no global random state is used."""
    channels = image_shape[0]
    spec = Spec(
        kind="network",
        method="dim",
        dataset="digits",
        classes=tuple("0123456789"),
        image_shape=image_shape,
        mean=(0.13,) * channels,
        std=(0.31,) * channels,
        latent=8,
        storage=storage,
        options={"name": "subpixel", "width": 16, "mid": 16, "stem": 8},
    )
    with shapes_only():
        generator = NetworkGenerator(spec, recipe())
    tensors = {}
    for position, (name, tensor) in enumerate(generator.state_dict().items()):
        key = latents.fold(latents.stream("test"), seed, position)
        values = latents.normal(key, torch.arange(tensor.numel()), 1).view(tensor.shape) * 0.2
        tensors[name] = values.half().float() if storage == "float16" else values
    return generator.restore(tensors)


def make_table(rows: int = 20, stages: tuple[int, ...] = (10, 10), seed: int = 0) -> TableGenerator:
    """A table of random uint8 images of ten classes."""
    key = latents.fold(latents.stream("test"), seed)
    images = latents.integers(key, torch.arange(rows * 28 * 28), 256).to(torch.uint8)
    return table_generator(
        images.view(rows, 1, 28, 28),
        classes=tuple("0123456789"),
        mean=(0.5,),
        std=(0.25,),
        recipe=recipe(),
        dataset="digits",
        method="pdd",
        stages=stages,
    )


def require_commands(commands: Iterable[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Assert that commands of `dimdata`, given without that word, exist, and have the options that they name."""
    from dimdata.cli.main import main

    for words in map(shlex.split, commands):
        capsys.readouterr()
        assert main([words[0], "--help"]) == 0
        told = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", capsys.readouterr().out))
        asked = {word.partition("=")[0] for word in words if re.match("--?[a-z]", word)}
        assert asked <= told, (words, asked - told)


@pytest.fixture
def network_generator() -> Generator:
    return make_network()


@pytest.fixture
def network_generator_float16() -> Generator:
    return make_network("float16")


@pytest.fixture
def table() -> TableGenerator:
    return make_table()


@pytest.fixture
def generator_folder(tmp_path: Path, network_generator: Generator) -> Path:
    """The folder of `network_generator`."""
    return artifact.save(network_generator, tmp_path / "generator", provenance={"seed": 0})
