"""The doctor: what it finds, what it never shows, and how it names what is wrong. Each machine is a process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dimdata
from dimdata import doctor
from dimdata.cli.main import main
from dimdata.doctor import Report, examine

MAIN = "import sys; from dimdata.cli.main import main; sys.exit(main())"
SECTIONS = {"versions", "environment", "computing", "hub", "real data", "bundled generators"}


def ask(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the doctor in a process of its own, for most of the environment is read once."""
    return subprocess.run(
        [sys.executable, "-c", MAIN, "doctor", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def look(section: str) -> Report:
    """Return a report of one section."""
    report = Report(facts={section: {}})
    doctor._SECTIONS[section](report, report.facts[section])
    return report


def test_a_usable_machine(tmp_path: Path) -> None:
    cache = tmp_path / "home" / "hub"
    (cache / "models--a--b" / "blobs").mkdir(parents=True)
    (cache / "models--a--b" / "blobs" / "one").write_bytes(b"x" * 1000)
    (cache / "models--a--b" / "link").symlink_to(cache / "models--a--b" / "blobs" / "one")
    secret = "hf_" + "s" * 30
    result = ask(
        "--json",
        HF_HOME=str(tmp_path / "home"),
        HF_TOKEN=secret,
        HF_ENDPOINT="https://me:password@example.org/hub",
        HF_HUB_OFFLINE="1",
        DIMDATA_NAMESPACE="mine",
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(found) >= SECTIONS
    assert found["usable"] is True
    assert found["problems"] == []
    assert found["versions"]["dimdata"] == dimdata.__version__
    for name in doctor.PACKAGES:
        assert re.match(r"\d+\.\d+", found["versions"][name])
    assert found["computing"]["threads"] == 1
    assert found["computing"]["auto precision"].startswith(("fp32: ", "bf16: "))
    assert found["computing"]["auto compile"].startswith(("on: ", "off: "))
    assert found["hub"]["endpoint"] == "https://example.org/hub"
    assert found["hub"]["offline"] is True
    assert found["hub"]["token"] == "present, from HF_TOKEN"
    assert (found["hub"]["cache"], found["hub"]["cache bytes"]) == (str(cache), 1000)
    assert found["hub"]["cache writable"] is True
    assert found["hub"]["free bytes"] > 0
    assert found["environment"]["DIMDATA_NAMESPACE"] == "mine"
    assert set(found["bundled generators"].values()) == {"whole"}
    assert secret not in result.stdout + result.stderr
    assert "password" not in result.stdout + result.stderr


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for part in ("torch", "auto compile", "hub: cache size", "hub: free", "dim-mnist", "All is well."):
        assert part in printed, part


def test_it_says_what_the_engine_chooses() -> None:
    from dimdata.engine import Engine

    facts, engine = look("computing").facts["computing"], Engine.of()
    assert facts["auto device"] == str(engine.device)
    assert facts["auto precision"].startswith("bf16" if engine.bf16 else "fp32")
    compiler = shutil.which("g++")
    assert facts["auto compile"].startswith("on" if engine.compiled else "off")
    if engine.device.type == "cpu" and engine.compiled:
        assert str(compiler) in facts["auto compile"]


@pytest.mark.parametrize(
    ("package", "code", "message", "hint"),
    [
        ("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')", "nms", "one place"),
        ("torch", "raise ImportError('libcudart.so.13: no such file')", "libcudart", "--force-reinstall"),
    ],
)
def test_broken_packages_are_named(tmp_path: Path, package: str, code: str, message: str, hint: str) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(code)
    result = ask("--json", PYTHONPATH=str(tmp_path))
    assert result.returncode == 2
    found = json.loads(result.stdout)
    assert found["usable"] is False
    problem = found["problems"][0]
    assert package in problem["message"]
    assert message in problem["message"]
    assert hint in problem["hint"]
    assert f"error: {package}" in result.stderr
    assert "Traceback" not in result.stderr


def test_versions_out_of_range_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    import safetensors

    monkeypatch.setattr(safetensors, "__version__", "0.1.0")
    monkeypatch.setattr(huggingface_hub, "__version__", "3.0.0.dev1")
    report = look("versions")
    (problem,) = report.problems
    assert "safetensors 0.1.0 is too old" in problem.message
    assert "pip install --upgrade 'safetensors>=" in problem.hint
    assert report.warnings == ["huggingface_hub 3.0.0.dev1 is newer than any that was tried."]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("no_such_package",))
    report = examine()
    assert report.problems[0].message == "no_such_package is not installed."
    assert report.problems[0].hint == "Run: pip install no-such-package"
    assert report.to_json()["usable"] is False


def test_requirements_are_those_of_the_package() -> None:
    wanted = doctor._requirements()
    assert set(doctor.PACKAGES) <= set(wanted)
    assert wanted["huggingface_hub"][1] == (3,)
    assert wanted["torch"][0] >= (2,)
    assert doctor._release("0.29.2+cu132") == (0, 29, 2)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/no-such/hub")  # where even root makes no file
    report = look("hub")
    assert report.facts["hub"]["cache writable"] is False
    (problem,) = report.problems
    assert "/proc/no-such/hub" in problem.message
    assert problem.exit_code == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert look("hub").problems == [], "a cache that is read alone needs no writing"


def test_an_endpoint_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "hub.example.org")
    (problem,) = look("hub").problems
    assert "HF_ENDPOINT" in problem.message


@pytest.mark.parametrize(
    ("environment", "file", "answer"),
    [
        ({}, None, "absent"),
        ({}, "", "absent"),
        ({}, "hf_x", "present, from a file"),
        ({"HF_TOKEN": "hf_x"}, None, "present, from HF_TOKEN"),
        ({"HF_TOKEN": " "}, None, "absent"),
    ],
)
def test_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], file: str | None, answer: str
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if file is not None:
        (tmp_path / "token").write_text(file)
    assert doctor._token(str(tmp_path / "token")) == answer


def test_little_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LITTLE_DISK", 10**18)
    report = look("hub")
    assert any("MB left" in warning for warning in report.warnings)
    assert report.problems == []


def test_a_damaged_generator_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dimdata import names

    shutil.copytree(names.bundled()["dim-mnist"], tmp_path / "dim-mnist")
    path = tmp_path / "dim-mnist" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    monkeypatch.setattr(names, "_ZOO", tmp_path)
    report = look("bundled generators")
    assert report.facts["bundled generators"] == {"dim-mnist": "damaged"}
    assert "sha256" in report.problems[0].message
    assert "--force-reinstall" in report.problems[0].hint


def test_the_cache_is_counted_in_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"xx")
    assert doctor._size(tmp_path) == (10, True)
    monkeypatch.setattr(doctor, "MAX_FILES", 3)
    assert doctor._size(tmp_path) == (6, False)
    assert doctor._size(tmp_path / "absent") == (0, True)


def test_a_section_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(report: Report, facts: dict[str, Any]) -> None:
        raise RuntimeError("driver\nlost")

    monkeypatch.setattr(doctor, "_SECTIONS", {"computing": broken})
    (problem,) = examine().problems
    assert problem.message == "Looking at computing failed: RuntimeError: driver lost."
