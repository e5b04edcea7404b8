"""Processes that pull one name at once, over connections that break."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent / "benchmarks" / "hub_crowd.py"


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_all_succeed_and_the_cache_is_whole(rounds: int) -> None:
    command = [sys.executable, str(BENCHMARK), "--rounds", str(rounds)]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["failures"] == facts["damaged"] == []
    assert facts["requests"] > facts["rounds"] * facts["processes"]
