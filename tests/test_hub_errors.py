"""What can go wrong between here and the Hub, each in one sentence with a remedy; and what is tried again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import make_network
from hub_server import READER, Hub

import dimdata
from dimdata import artifact
from dimdata.cli.main import main
from dimdata.errors import AccessError, ArgumentError, DimdataError, FormatError, NotFoundError, WorldError
from dimdata.hub.boundary import Talk, plain
from dimdata.hub.client import hub_api

REPO = "owner/dim-digits"
FILE = f"^GET /{REPO}/resolve/.*/config.json"
LARGE = "^STORAGE GET"


@pytest.fixture
def commit(hub: Hub, tmp_path: Path) -> str:
    commit = hub.put(REPO, artifact.save(make_network(), tmp_path / "made"))
    hub.repository(REPO).point("refs/tags/v1", commit)
    return commit


def refusal(kind: type[DimdataError], **arguments: Any) -> DimdataError:
    """The error of a load, which must be a sentence and a remedy."""
    with pytest.raises(kind) as caught:
        artifact.load(arguments.pop("name", REPO), **arguments)
    error = caught.value
    assert error.message.endswith((".", "!"))
    assert error.hint
    assert "\n" not in error.message
    assert "Traceback" not in str(error)
    return error


def test_no_such_repository(hub: Hub, commit: str) -> None:
    error = refusal(NotFoundError, name="owner/dim-digitz")
    assert "no repository owner/dim-digitz" in error.message
    assert f"Did you mean {REPO}?" in error.hint
    assert "Check the name" in refusal(NotFoundError, name="else/where").hint


def test_private(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repository(REPO).set(private=True)
    monkeypatch.delenv("HF_TOKEN")
    error = refusal(NotFoundError)
    assert "private" in error.message
    assert "hf auth login" in error.hint


def test_gated(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repository(REPO).set(gated=True)
    monkeypatch.delenv("HF_TOKEN")
    error = refusal(AccessError)
    assert f"{hub.url}/{REPO}" in error.hint
    assert "hf auth login" in error.hint
    monkeypatch.setenv("HF_TOKEN", READER)  # a token, but not let in
    assert "check that the token" in refusal(AccessError).hint


def test_a_token_that_is_none(hub: Hub, commit: str) -> None:
    assert "does not accept this token" in refusal(AccessError, token="hf_expired").message


@pytest.mark.parametrize("token", ["hf_SECRET\n", " hf_SECRET"])
def test_white_space_around_a_token_is_no_part_of_it(hub: Hub, commit: str, token: str) -> None:
    assert "does not accept this token" in refusal(AccessError, token=token).message


@pytest.mark.parametrize("token", ["hf_SEC\nRET", "hf_SECR\u00c9T", "hf_SEC RET", "", "\n"])
def test_a_token_that_cannot_be_sent_is_refused_unseen(
    hub: Hub, commit: str, token: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = len(hub.requests)
    error = refusal(ArgumentError, token=token)
    with pytest.raises(ArgumentError, match="has white space or other characters"):
        dimdata.push(artifact.save(make_network(), tmp_path / "mine"), REPO, token=token)
    assert "SEC" not in f"{error!r} {error.__cause__} {error.__context__} {caplog.text}"
    assert len(hub.requests) == before


def test_a_token_that_a_library_quotes_is_blotted_out() -> None:
    said = "Illegal header value b'Bearer hf_SECRETSECRET\n', and nothing more"
    assert "SECRET" not in plain(said)
    assert plain(f"of hf_{'aB3' * 11}.") == "of hf_***"
    assert plain("unset HF_HUB_OFFLINE, see owner/hf_digits") == "unset HF_HUB_OFFLINE, see owner/hf_digits"
    assert "SECRET" not in repr(Talk(hub_api("hf_SECRET"), REPO, "Downloading", token="hf_SECRET"))


def test_no_such_revision(hub: Hub, commit: str) -> None:
    error = refusal(NotFoundError, revision="v9")
    assert "no revision 'v9'" in error.message
    assert "Tags: v1." in error.hint
    assert "Branches: main." in error.hint
    assert "no revision" in refusal(NotFoundError, revision="0" * 40).message


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ({"README.md": b"# hello"}, "has no config.json and no model.safetensors"),
        ({"config.json": b"{}"}, "has no model.safetensors"),
        ({"model.safetensors": b"x" * 100}, "has no config.json"),
        ({"config.json": b'{"model_type": "bert"}', "model.safetensors": b"x"}, "has no `format` and `generator`"),
    ],
)
def test_not_a_generator(hub: Hub, files: dict[str, bytes], missing: str) -> None:
    hub.put("owner/other", files)
    error = refusal(FormatError, name="owner/other")
    assert missing in error.message
    assert "not a dimdata generator" in error.message
    assert not [request for request in hub.requests if request.startswith("STORAGE")]  # no weights for nothing


def test_offline_and_not_cached(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    error = refusal(WorldError, local_files_only=True, revision="v1")
    assert "local_files_only" in error.message
    assert f"dimdata pull {REPO} --revision v1" in error.hint
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal(WorldError).message
    assert hub.requests == []


def test_network_down(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")  # nobody listens
        error = refusal(WorldError)
    assert "cannot be reached" in error.message
    assert error.exit_code == 1


@pytest.mark.parametrize("status", [429, 503])
def test_busy_then_well(hub: Hub, commit: str, status: int, caplog: pytest.LogCaptureFixture) -> None:
    hub.fault(
        {"where": f"/api/models/{REPO}$", "what": "status", "status": status, "times": 1},
        {"where": "HEAD .*config.json", "what": "status", "status": status, "times": 1},
    )
    assert artifact.load(REPO).revision == commit
    assert f"the Hub answered {status}; trying again" in caplog.text


def test_as_long_as_the_hub_asks(
    hub: Hub, commit: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DIMDATA_RETRY_SECONDS", "60")
    asked = {"where": f"/api/models/{REPO}$", "what": "status", "status": 429, "headers": {"Retry-After": "1"}}
    hub.fault({**asked, "times": 1})
    assert artifact.load(REPO).revision == commit
    assert "trying again in 1.0 s" in caplog.text
    hub.fault({**asked, "headers": {"Retry-After": "3600"}})
    hub.forget()
    assert "(status 429)" in refusal(WorldError, cache_dir=tmp_path / "elsewhere").message
    assert len(hub.requests) == 1  # an hour is not waited for


def test_busy_for_ever(hub: Hub, commit: str) -> None:
    hub.fault({"where": "/api/", "what": "status", "status": 503, "headers": {"X-Request-Id": "abc"}})
    error = refusal(WorldError)
    assert "status 503, request abc" in error.message
    assert "times over" in error.message
    assert error.exit_code == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"where": f"/api/models/{REPO}$", "what": "reset", "times": 1},
        {"where": f"/api/models/{REPO}$", "what": "cut", "bytes": 10, "times": 1},
        {"where": "^HEAD .*model", "what": "reset", "times": 1},
        {"where": LARGE, "what": "reset", "times": 1},
        {"where": LARGE, "what": "cut", "bytes": 70_000, "times": 1},
        {"where": FILE, "what": "length", "by": 100, "times": 1},
        {"where": LARGE, "what": "corrupt", "times": 1},
        {"where": FILE, "what": "corrupt", "times": 1},
        {"where": ".", "what": "slow", "seconds": 0.05},
    ],
    ids=lambda fault: f"{fault['what']}-{fault['where'].strip('^').split()[0].strip('/')[:8]}",
)
def test_faults_that_pass(hub: Hub, commit: str, fault: dict[str, Any]) -> None:
    hub.fault(fault)
    assert artifact.load(REPO).revision == commit


def test_connections_cut_for_ever(hub: Hub, commit: str) -> None:
    hub.fault({"where": "^HEAD", "what": "reset"})
    error = refusal(WorldError)
    assert "breaks connections off" in error.message
    assert "times over" in error.message


@pytest.mark.parametrize(("where", "name", "kind"), [(LARGE, "model", "sha256"), (FILE, "config", "git hash")])
def test_tampered(hub: Hub, commit: str, where: str, name: str, kind: str, tmp_path: Path) -> None:
    hub.fault({"where": where, "what": "corrupt"})
    error = refusal(FormatError)
    assert name in error.message
    assert f"its {kind} is" in error.message
    hub.fault()
    assert artifact.load(REPO).revision == commit  # the damaged file was not kept


def test_weights_of_another_config(hub: Hub, tmp_path: Path) -> None:
    made = artifact.save(make_network(), tmp_path / "made")
    shutil.copy(artifact.save(make_network(seed=1), tmp_path / "other") / "model.safetensors", made)
    hub.put("owner/mixed", made)
    error = refusal(FormatError, name="owner/mixed")
    assert "its sha256 is" in error.message
    assert not [request for request in hub.requests if request.startswith("STORAGE")]


def test_a_limit_that_can_be_raised(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIMDATA_MAX_BYTES", "1000")
    error = refusal(FormatError)
    assert "1,000 at most are read" in error.message
    assert "DIMDATA_MAX_BYTES" in error.hint
    assert not [request for request in hub.requests if request.startswith(("GET /owner", "STORAGE"))]
    monkeypatch.setenv("DIMDATA_MAX_BYTES", "1000000")
    assert artifact.load(REPO).revision == commit


def test_more_bytes_than_announced(hub: Hub, commit: str) -> None:
    hub.fault({"where": LARGE, "what": "longer", "by": 10_000_000})
    assert "more bytes than" in refusal(FormatError).message


def test_no_hub_at_all(hub: Hub, commit: str) -> None:
    """A captive portal answers everything with a page of its own."""
    hub.fault({"where": ".", "what": "body", "body": "<html>Welcome to our hotel</html>"})
    assert "Downloading" in refusal(WorldError).message


def test_what_the_hub_says_is_no_markup(hub: Hub, commit: str, capfd: pytest.CaptureFixture[str]) -> None:
    said = {"where": f"/api/models/{REPO}$", "what": "status", "status": 418, "message": "tea [red]\x1b[31m\x07 pot"}
    hub.fault({key: value for key, value in said.items() if key != "message"})
    assert main(["pull", REPO]) == 1
    hub.fault({"where": "/api/", "what": "body", "body": '{"id": "x", "sha": "\\u001b[31mred", "siblings": []}'})
    assert main(["pull", REPO]) == 1
    assert "\x1b" not in capfd.readouterr().err


def test_settings_that_are_none(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIMDATA_RETRY_SECONDS", "soon")
    hub.fault({"where": ".", "what": "status", "status": 503})
    with pytest.raises(ArgumentError, match="DIMDATA_RETRY_SECONDS"):
        artifact.load(REPO)


LOAD = """
import sys
from dimdata.errors import DimdataError
from dimdata.hub.client import download
for name in ("full", "sealed"):
    try:
        download("owner/dim-digits", cache_dir=f"{sys.argv[1]}/{name}")
    except DimdataError as error:
        print(error.exit_code, error)
"""


@pytest.fixture
def small_disks(tmp_path: Path) -> list[str]:
    """A command that runs another with a disk of 4 KiB and one that is read-only."""
    mounts = f"mount -t tmpfs -o size=4k none {tmp_path}/full && mount -t tmpfs -o ro none {tmp_path}/sealed"
    prefix = ["unshare", "-rm", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
    for name in ("full", "sealed"):
        (tmp_path / name).mkdir()
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("this system does not let us mount")
    return prefix


def test_a_full_and_a_read_only_cache(hub: Hub, commit: str, tmp_path: Path, small_disks: list[str]) -> None:
    command = [*small_disks, sys.executable, "-c", LOAD, str(tmp_path)]
    variables = {**os.environ, "HF_ENDPOINT": hub.url}
    full, sealed = subprocess.run(
        command, env=variables, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()
    assert full.startswith(f"1 The cache {tmp_path}/full cannot take the download: No space left")
    assert sealed.startswith(f"1 The cache {tmp_path}/sealed cannot take the download: Read-only")
    assert "HF_HOME" in full
    assert "HF_HOME" in sealed


def test_a_cache_that_is_a_file(hub: Hub, commit: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = refusal(WorldError, cache_dir=tmp_path / "file")
    assert "cannot take the download" in error.message


def test_every_failure_has_its_exit_code(hub: Hub, commit: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "owner/absent"]) == 2
    assert main(["pull", REPO, "--revision", "../x"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error: ") == 2
    assert isinstance(dimdata.pull(REPO).revision, str)
