"""Hostile repositories: each is refused in a sentence, and nothing escapes, runs, or reaches a terminal."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_network
from hub_hostile import KINDS, Files
from hub_server import Hub

from dimdata import artifact
from dimdata.errors import DimdataError

REPO = "owner/hostile"
BENCHMARK = Path(__file__).parent / "benchmarks" / "hub_hostile.py"


@pytest.fixture
def honest(tmp_path: Path) -> Files:
    folder = artifact.save(make_network(), tmp_path / "honest")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_honest_one_loads_without_touching_the_pickle_beside_it(hub: Hub, honest: Files) -> None:
    hub.put(REPO, {**honest, "pytorch_model.bin": b"cos\nsystem\n", "optimizer.pt": b"\x80\x04"})
    artifact.load(REPO)
    assert not [request for request in hub.requests if ".bin" in request or ".pt" in request]


@pytest.mark.parametrize("name", KINDS)
def test_refused(hub: Hub, honest: Files, name: str, tmp_path: Path) -> None:
    for seed in range(3):
        cache = tmp_path / "a" / "b" / f"cache-{seed}"  # what is cached already would not be asked for
        hostile = KINDS[name](random.Random(f"{name} {seed}"), honest)
        hub.put(REPO, hostile.files)
        hub.fault(*hostile.faults)
        with pytest.raises(DimdataError) as caught:
            artifact.load(REPO, cache_dir=cache)
        message = str(caught.value)
        assert message.isprintable(), (name, seed)
        assert len(message) < 1000
        assert "escaped" not in {path.name for path in tmp_path.rglob("*")}
        assert {path.name for path in tmp_path.iterdir()} <= {"a", "honest", "hub-cache"}
        assert not any(entry["token"] for entry in hub.log() if entry["request"].startswith("STORAGE"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_of_each_within_two_seconds_and_200_megabytes() -> None:
    done = subprocess.run([sys.executable, str(BENCHMARK)], env=dict(os.environ), check=False)
    assert done.returncode == 0
