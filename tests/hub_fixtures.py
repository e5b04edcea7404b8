"""A Hub for tests: one server process for all of them, emptied before each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import WRITER, Hub, serve


@pytest.fixture(scope="session")
def hub_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serve(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(hub_process: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty Hub that the client in this process talks to, with a cache of its own and a token that may write."""
    from huggingface_hub import constants

    shutil.rmtree(hub_process.root)
    (hub_process.root / ".large").mkdir(parents=True)
    hub_process.fault()
    hub_process.forget()
    monkeypatch.setattr(constants, "ENDPOINT", hub_process.url)
    template = hub_process.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # files go by plain HTTP, as the server expects
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setenv("DIMDATA_RETRY_SECONDS", "1")
    return hub_process
