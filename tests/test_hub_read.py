"""Names that lead to the Hub: one commit for all files, the cache, and what is asked of the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_network, make_table
from hub_server import READER, WRITER, Hub

import dimdata
from dimdata import GeneratedDataset, artifact, names
from dimdata.cli.main import main
from dimdata.errors import ArgumentError, FormatError, NotFoundError
from dimdata.evaluate import evaluate
from dimdata.hub.client import download
from dimdata.verify import verify_files

REPO = "owner/dim-digits"


@pytest.fixture
def commits(hub: Hub, tmp_path: Path) -> tuple[str, str]:
    """Two commits of one repository, a table tagged v1 and then a network; the second holds much that is not needed."""
    first = hub.put(REPO, artifact.save(make_table(), tmp_path / "first"))
    holdout = {"images": torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "labels": torch.tensor([0, 1])}
    folder = artifact.save(make_network(), tmp_path / "second", holdout=holdout, card="# card")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    second = hub.put(REPO, folder)
    hub.repository(REPO).point("refs/tags/v1", first)
    hub.forget()
    return first, second


def files_of(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("snapshots/*/*")}


def test_by_name_and_by_revision(hub: Hub, commits: tuple[str, str], tmp_path: Path) -> None:
    first, second = commits
    newest = artifact.load(REPO, cache_dir=tmp_path / "cache")
    assert (newest.spec.kind, newest.name, newest.revision) == ("network", REPO, second)
    for revision in ("v1", first):
        old = artifact.load(REPO, revision=revision, cache_dir=tmp_path / "cache")
        assert (old.spec.kind, old.revision) == ("table", first)
    held_out = artifact.holdout(artifact.resolve(REPO, cache_dir=tmp_path / "cache"))
    assert held_out is not None
    assert len(held_out[0]) == 2


def test_the_hold_out_is_that_of_the_files_loaded(hub: Hub, commits: tuple[str, str], tmp_path: Path) -> None:
    """From a cache of its own, without the Hub, and of the commit that the weights are of."""
    artifact.load(REPO, cache_dir=tmp_path / "cache")
    hub.forget()
    made = artifact.load(REPO, cache_dir=tmp_path / "cache", local_files_only=True)
    assert made.folder is not None
    (score,) = evaluate(made, ipc=1, students="convnet1-w4", seeds=1, epochs=1, engine="cpu")
    assert score.test == "hold-out (2)"
    generator, files = verify_files(REPO, cache_dir=tmp_path / "cache", local_files_only=True)
    assert (files.folder, files.holdout) == (str(made.folder), 2)
    assert generator.view().folder == made.folder
    assert hub.requests == []


def test_only_what_is_needed_is_downloaded(hub: Hub, commits: tuple[str, str], tmp_path: Path) -> None:
    artifact.load(REPO, cache_dir=tmp_path / "cache")
    assert files_of(tmp_path / "cache") == {"config.json", "model.safetensors", "holdout.safetensors"}
    assert not [request for request in hub.requests if "pytorch_model" in request or "README" in request]
    assert all("dimdata/" in entry["agent"] for entry in hub.log())


def test_all_files_come_from_one_commit(hub: Hub, commits: tuple[str, str]) -> None:
    artifact.load(REPO)
    files = [request for request in hub.requests if "/resolve/" in request]
    assert files
    assert all(f"/resolve/{commits[1]}/" in request for request in files)
    assert len([request for request in hub.requests if request.startswith("GET /api/models/")]) == 1


@pytest.mark.parametrize("which", [0, 1])  # with a hold-out, and without one
def test_a_pinned_commit_in_the_cache_asks_for_nothing(hub: Hub, commits: tuple[str, str], which: int) -> None:
    GeneratedDataset(REPO, ipc=1, revision=commits[which])
    assert hub.requests
    hub.forget()
    GeneratedDataset(REPO, ipc=1, revision=commits[which])
    assert artifact.resolve(REPO, revision=commits[which]).is_dir()
    assert hub.requests == []


def test_a_branch_in_the_cache_asks_once(hub: Hub, commits: tuple[str, str]) -> None:
    artifact.load(REPO)
    hub.forget()
    artifact.load(REPO)
    assert hub.requests == [f"GET /api/models/{REPO}"]


def test_the_cache_serves_when_the_hub_does_not(
    hub: Hub, commits: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    artifact.load(REPO)
    artifact.load(REPO, revision="v1")
    hub.forget()
    assert artifact.load(REPO, local_files_only=True).revision == commits[1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert artifact.load(REPO, revision="v1").revision == commits[0]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert hub.requests == []
    hub.fault({"where": ".", "what": "status", "status": 503})
    assert artifact.load(REPO).revision == commits[1]
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert artifact.load(REPO).revision == commits[1]


def test_a_cache_that_another_tool_filled(hub: Hub, commits: tuple[str, str]) -> None:
    from huggingface_hub import HfApi

    for name in ("config.json", "model.safetensors"):
        HfApi().hf_hub_download(REPO, name, revision=commits[0])
    assert artifact.load(REPO, revision=commits[0], local_files_only=True).revision == commits[0]
    hub.forget()
    artifact.load(REPO, revision=commits[0])
    assert hub.requests  # whether it has a hold-out was not known
    hub.forget()
    artifact.load(REPO, revision=commits[0])
    assert hub.requests == []


def test_pull_says_what_loads_it(
    hub: Hub, commits: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pulled = dimdata.pull(REPO, revision="v1")
    assert (pulled.name, pulled.revision) == (REPO, commits[0])
    assert set(pulled.files) == {"config.json", "model.safetensors"}
    scope = {"GeneratedDataset": GeneratedDataset}
    exec(pulled.line, scope)
    assert scope["dataset"].generator.revision == commits[0]
    assert main(["pull", REPO]) == 0
    folder, line = capsys.readouterr().out.splitlines()
    assert Path(folder, "model.safetensors").is_file()
    assert f'"{REPO}", ipc=10, revision="{commits[1]}"' in line
    assert main(["pull", REPO, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["revision"] == commits[1]


def test_pull_mends_what_is_damaged(hub: Hub, commits: tuple[str, str]) -> None:
    folder = dimdata.pull(REPO).folder
    for name in ("model.safetensors", "config.json", "holdout.safetensors"):
        data = bytearray((folder / name).read_bytes())
        data[-2] ^= 1
        (folder / name).resolve().write_bytes(data)
    with pytest.raises(FormatError):
        artifact.load(REPO, revision=commits[1])
    pulled = dimdata.pull(REPO, revision=commits[1])
    assert artifact.load(REPO, revision=commits[1], local_files_only=True).revision == pulled.revision


def test_pull_of_what_is_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pulled = dimdata.pull("dim-mnist")
    assert (pulled.revision, pulled.line) == (None, 'dataset = GeneratedDataset("dim-mnist", ipc=10)')
    with pytest.raises(ArgumentError, match="here already"):
        dimdata.pull(str(tmp_path))


LOAD = """
import sys
from dimdata.errors import DimdataError
from dimdata.hub.client import download
try:
    print(*download(sys.argv[1]))
except DimdataError as error:
    print(error)
"""


def test_variables_of_the_client(hub: Hub, commits: tuple[str, str], tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE, in processes of their own, with a private repository."""
    hub.repository(REPO).set(private=True)
    base = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    variables = {**base, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "DIMDATA_RETRY_SECONDS": "1"}

    def load(**more: str) -> str:
        command = [sys.executable, "-c", LOAD, REPO]
        done = subprocess.run(command, env={**variables, **more}, capture_output=True, text=True, check=True)
        return done.stdout

    assert "or it is private" in load()
    found = load(HF_TOKEN=READER)
    assert found.startswith(str(tmp_path / "home"))
    assert found.strip().endswith(commits[1])
    hub.forget()
    assert load(HF_HUB_OFFLINE="1") == found
    assert hub.requests == []


def test_tokens_given_by_hand(hub: Hub, commits: tuple[str, str]) -> None:
    hub.repository(REPO).set(private=True)
    with pytest.raises(NotFoundError, match="or it is private"):
        artifact.load(REPO, token=False)
    assert not any(entry["token"] for entry in hub.log())
    artifact.load(REPO, token=READER)
    assert f"Bearer {READER}" in {entry["token"] for entry in hub.log()}


def test_the_token_stays_on_the_first_port(hub: Hub, commits: tuple[str, str], tmp_path: Path) -> None:
    dimdata.pull(REPO)
    dimdata.push(artifact.save(make_table(), tmp_path / "new"), REPO)
    storage = [entry for entry in hub.log() if entry["request"].startswith("STORAGE")]
    assert {entry["request"].split()[1] for entry in storage} == {"GET", "PUT"}
    assert not any(entry["token"] for entry in storage)
    assert any(entry["token"] == f"Bearer {WRITER}" for entry in hub.log())


def test_namespace(hub: Hub, commits: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(names, "_ZOO", tmp_path / "zoo")
    monkeypatch.setenv("DIMDATA_NAMESPACE", "owner")
    assert artifact.load("dim-digits").name == REPO
    artifact.save(make_table(), tmp_path / "zoo" / "dim-digits")
    assert artifact.load("dim-digits").revision is None
    assert artifact.load("dim-digits", revision="v1").revision == commits[0]
    monkeypatch.setenv("DIMDATA_NAMESPACE", "own/er")
    with pytest.raises(ArgumentError):
        artifact.load("absent")


def test_a_folder_of_the_same_name_is_mentioned(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own/folder").mkdir(parents=True)
    with pytest.raises(NotFoundError, match=r"For a folder write \./own/folder"):
        artifact.load("own/folder")


@pytest.mark.parametrize(
    "revision", ["../../x", "/etc", "a//b", "a/../b", ".x", "a\nb", "x" * 300, "a/", "-x", "v1.lock", ""]
)
def test_revisions_that_could_escape(hub: Hub, revision: str) -> None:
    with pytest.raises(ArgumentError, match="can be no revision"):
        download(REPO, revision=revision)
    assert hub.requests == []


@pytest.mark.parametrize(
    "name", ["a--b/c", "../x", "owner/..", "owner/a..b", "owner/x.git", "a/b/c", "owner/" + "x" * 97]
)
def test_names_that_could_escape(hub: Hub, name: str) -> None:
    with pytest.raises(ArgumentError, match="names no generator"):
        download(name)
    assert hub.requests == []


def test_every_command_takes_a_name_of_the_hub(hub: Hub, commits: tuple[str, str], tmp_path: Path) -> None:
    """What is told of bundled names holds for those of the Hub, from the first byte to files for other programs."""
    for words in (
        ["info", REPO],
        ["verify", REPO, "--quick"],
        ["preview", REPO, "--rows", "2", "-o", str(tmp_path / "grid.png")],
        ["export", REPO, "--ipc", "1", "--format", "npz", "-o", str(tmp_path / "images.npz")],
    ):
        assert main(words) == 0, words
    assert (tmp_path / "grid.png").is_file()
    assert (tmp_path / "images.npz").exists()
