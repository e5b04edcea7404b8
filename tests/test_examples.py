"""The examples, as users run them, with budgets of seconds."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def call(name: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run an example in a folder."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *words],
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def run(name: str, *words: str, cwd: Path) -> str:
    """Run an example in a folder and return what it prints."""
    done = call(name, *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused_anew(name: str, *words: str, cwd: Path) -> None:
    """Check that a second run in the same folder ends in a sentence with the way out."""
    before = {path: path.stat().st_mtime_ns for path in cwd.rglob("*")}
    done = call(name, *words, cwd=cwd)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (said,) = done.stderr.strip().splitlines()
    assert "holds a run. Name another folder with --out" in said
    assert "--resume" not in said  # which the example does not have
    assert {path: path.stat().st_mtime_ns for path in cwd.rglob("*")} == before


def percent(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, text
    return float(found[1])


def quickstart(tmp_path: Path, *words: str) -> float:
    return percent(r"reads ([\d.]+)% of 1,000 real held-out digits", run("quickstart.py", *words, cwd=tmp_path))


def test_quickstart(tmp_path: Path) -> None:
    assert quickstart(tmp_path, "--epochs", "12") > 60


@pytest.mark.slow
def test_quickstart_reads_real_digits(tmp_path: Path) -> None:
    assert quickstart(tmp_path) > 95


def test_own_images(tmp_path: Path) -> None:
    words = ("own_images.py", "--minutes", "0.05", "--epochs", "30", "--out", "run")
    out = run(*words, cwd=tmp_path)
    assert "1,297 images (1, 8, 8) of 10 classes" in out
    percent(r"It is right on ([\d.]+)% of 500 real test images", out)
    assert (tmp_path / "run" / "student.safetensors").is_file()
    refused_anew(*words, cwd=tmp_path)


def test_own_images_shows_progress_before_the_time_left_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    show = runpy.run_path(str(EXAMPLES / "own_images.py"))["show"]
    show({"phase": "gan", "step": 1, "steps": 9, "losses": {}})
    show({"phase": "gan", "step": 5, "steps": 9, "losses": {}, "images_per_second": 64.0, "eta_seconds": 2.4})
    assert capsys.readouterr().out.splitlines() == ["gan 1/9", "gan 5/9, 2 s left"]


def test_replay(tmp_path: Path) -> None:
    words = ("replay.py", "--distil-steps", "10", "--steps", "30", "--student", "convnet2-w16")
    out = run(*words, cwd=tmp_path)
    lines = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    kept = {line[0]: float(line[1].rstrip("%")) for line in lines if len(line) == 3 and line[1].endswith("%")}
    assert set(kept) == {"none", "generated", "real, without limit"}
    assert kept["real, without limit"] > kept["none"] + 30  # forgetting is real, and so is its remedy
    share = percent(r"Generated replay keeps ([\d.]+)%", out)
    assert share == pytest.approx(100 * kept["generated"] / kept["real, without limit"], abs=0.2)
    provenance = json.loads((tmp_path / "runs" / "replay" / "generator" / "config.json").read_text())
    assert provenance["generator"]["classes"] == list("01234")  # nothing of task 2 was seen
    refused_anew(*words, cwd=tmp_path)
    assert run(*words, "--generator", "./runs/replay/generator", cwd=tmp_path) == out


def test_own_loss(tmp_path: Path) -> None:
    words = ("own_loss.py", "--steps", "20", "--epochs", "3")
    out = run(*words, cwd=tmp_path)
    assert re.findall(r"matching by (\w+): [\d.]+ % of digits test", out) == ["logit", "correlation"]
    runs = [tmp_path / "runs" / "own-loss" / name for name in ("logit", "correlation")]
    assert [json.loads((run / "run.json").read_text())["config"]["matching"] for run in runs] == [
        "logit",
        "correlation",
    ]
    weights = [(run / "generator" / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] != weights[1]
    refused_anew(*words, cwd=tmp_path)


@pytest.mark.parametrize("script", [EXAMPLES / "quickstart.sh", Path(__file__).parent / "run.sh"])
def test_an_environment_of_the_users_own_is_never_erased(script: Path, tmp_path: Path) -> None:
    """Such as uv makes them: without pip."""
    copy = tmp_path / script.parent.name / script.name
    copy.parent.mkdir()
    copy.write_bytes(script.read_bytes())
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    kept = tmp_path / ".venv" / "bin" / "python"
    kept.write_text("#!/bin/sh\nexit 1\n")
    kept.chmod(0o755)
    done = subprocess.run(
        ["sh", str(copy)], capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable}
    )
    assert done.returncode == 2
    (said,) = done.stderr.strip().splitlines()
    assert ".venv has no working pip and was not made by this script" in said
    assert sorted(path.name for path in (tmp_path / ".venv").rglob("*")) == ["bin", "python"]
    assert kept.read_text().endswith("exit 1\n")


def test_generated_and_real(tmp_path: Path) -> None:
    out = run("generated_and_real.py", "--steps", "30", "--student", "convnet2-w16", cwd=tmp_path)
    found = re.findall(r"(real|generated|both) +([\d.]+)% of 800 real digits, after 30 steps", out)
    assert [name for name, _ in found] == ["real", "generated", "both"]
    assert all(float(value) > 30 for _, value in found)


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in text] == []
