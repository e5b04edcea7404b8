"""Names that lead to the Hub: one commit for all files, the cache, and every fault in our words."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_network, make_table
from hub_server import Hub, serve
from huggingface_hub import constants, hf_api

from dimdata import artifact, names
from dimdata.errors import ArgumentError, DimdataError, FormatError, NotFoundError, WorldError
from dimdata.generators.base import Generator

FIRST, SECOND = "1" * 40, "2" * 40
REPO = "owner/dim-digits"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with one generator of two commits, and a folder of its own for the cache."""
    root = tmp_path / "hub"
    artifact.save(make_table(), root / REPO / FIRST)
    holdout = {"images": torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "labels": torch.tensor([0, 1])}
    artifact.save(make_network(), root / REPO / SECOND, holdout=holdout, card="# card")
    (root / REPO / SECOND / "pytorch_model.bin").write_bytes(b"never fetched")
    (root / REPO / "tags.json").write_text(f'{{"v1": "{FIRST}"}}')
    with serve(root) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(names, "_ZOO", tmp_path / "zoo")
        yield server


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {"cache_dir": tmp_path / "cache"}


def kind(generator: Generator) -> str:
    return generator.spec.kind


def test_load_by_name_and_revision(hub: Hub, options: dict[str, Any]) -> None:
    newest = artifact.load(REPO, **options)
    assert (kind(newest), newest.name, newest.revision) == ("network", REPO, SECOND)
    assert not any("pytorch_model" in request or "README" in request for request in hub.requests)
    for revision in ("v1", FIRST):
        old = artifact.load(REPO, revision=revision, **options)
        assert (kind(old), old.revision) == ("table", FIRST)
    folder = artifact.resolve(REPO, **options)
    held_out = artifact.holdout(folder)
    assert held_out is not None
    assert len(held_out[0]) == 2


def test_all_files_come_from_one_commit(hub: Hub, options: dict[str, Any]) -> None:
    artifact.load(REPO, **options)
    files = [request for request in hub.requests if "/resolve/" in request]
    assert files
    assert all(f"/resolve/{SECOND}/" in request for request in files)
    assert len([request for request in hub.requests if request.endswith(("/revision/main", REPO))]) == 1


def test_a_pinned_commit_in_the_cache_needs_no_request(hub: Hub, options: dict[str, Any]) -> None:
    artifact.load(REPO, revision=SECOND, **options)
    hub.requests.clear()
    artifact.load(REPO, revision=SECOND, **options)
    assert hub.requests == []


def test_the_cache_serves_when_the_hub_does_not(hub: Hub, options: dict[str, Any]) -> None:
    artifact.load(REPO, **options)
    assert kind(artifact.load(REPO, local_files_only=True, **options)) == "network"
    hub.faults[REPO] = "down"
    assert artifact.load(REPO, **options).revision == SECOND


def test_damage_on_the_way_is_found(hub: Hub, options: dict[str, Any]) -> None:
    model = hub.root / REPO / SECOND / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)  # the same size: the client does not notice
    with pytest.raises(FormatError, match="sha256"):
        artifact.load(REPO, **options)


@pytest.mark.parametrize(
    ("source", "arguments", "error", "message"),
    [
        ("owner/absent", {}, NotFoundError, "no repository owner/absent.*private"),
        (REPO, {"revision": "v9"}, NotFoundError, "no revision 'v9'"),
        (REPO, {"local_files_only": True}, WorldError, "not in the cache.*while online"),
        ("owner/a--b", {}, ArgumentError, "no name of a repository"),
        ("no-such-name", {}, NotFoundError, "no bundled generator"),
    ],
)
def test_errors(
    hub: Hub,
    options: dict[str, Any],
    source: str,
    arguments: dict[str, Any],
    error: type[DimdataError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        artifact.load(source, **arguments, **options)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("gated", NotFoundError, "must be asked for"),
        ("down", WorldError, "not in the cache"),
        ("cut", WorldError, "failed|not in the cache"),
    ],
)
def test_faults(
    hub: Hub,
    options: dict[str, Any],
    fault: str,
    error: type[DimdataError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.faults[REPO] = fault
    with pytest.raises(error, match=message):
        artifact.load(REPO, **options)


def test_a_closed_port(hub: Hub, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_api.api, "endpoint", "http://127.0.0.1:9")
    with pytest.raises(WorldError) as caught:
        artifact.load(REPO, **options)
    assert caught.value.exit_code == 1


def test_a_repository_that_is_no_generator(hub: Hub, options: dict[str, Any]) -> None:
    (hub.root / REPO / SECOND / "config.json").unlink()
    with pytest.raises(FormatError, match=r"has no config\.json"):
        artifact.load(REPO, **options)
    shutil.rmtree(hub.root / REPO / SECOND)
    (hub.root / REPO / SECOND).mkdir()
    (hub.root / REPO / SECOND / "README.md").write_text("empty")
    with pytest.raises(FormatError, match=r"has no config\.json"):
        artifact.load(REPO, cache_dir=options["cache_dir"] / "other")


def test_namespace(hub: Hub, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIMDATA_NAMESPACE", "owner")
    assert artifact.load("dim-digits", **options).name == REPO
    artifact.save(make_table(), tmp_path / "zoo" / "dim-digits")
    assert artifact.load("dim-digits", **options).revision is None
    assert artifact.load("dim-digits", revision="v1", **options).revision == FIRST
    monkeypatch.setenv("DIMDATA_NAMESPACE", "own/er")
    with pytest.raises(ArgumentError):
        artifact.load("absent", **options)


def test_a_folder_of_the_same_name_is_mentioned(
    hub: Hub, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own/folder").mkdir(parents=True)
    with pytest.raises(NotFoundError, match=r"For a folder write \./own/folder"):
        artifact.load("own/folder", **options)
