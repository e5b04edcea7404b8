"""Pushing: checked first, one commit, nothing twice, nothing of others overwritten."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import make_network, make_table
from hub_server import READER, WRITER, Hub

import dimdata
from dimdata import GeneratedDataset, artifact
from dimdata.cli.main import main
from dimdata.errors import AccessError, ArgumentError, ConflictError, FormatError, WorldError
from dimdata.preview import png

REPO = "owner/dim-digits"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = make_network()
    return artifact.save(generator, tmp_path / "made", preview=png(generator), provenance={"seed": 0})


def commits(hub: Hub) -> list[str]:
    return [request for request in hub.requests if "/commit/" in request]


def test_push_and_load(hub: Hub, folder: Path) -> None:
    pushed = dimdata.push(folder, REPO)
    repo = hub.repository(REPO)
    files = repo.files(pushed.revision or "")
    assert repo.commit_of("main") == pushed.revision
    assert len(commits(hub)) == 1
    for name in ("config.json", "model.safetensors", "preview.png"):
        assert files[name] == (folder / name).read_bytes()
    assert f'GeneratedDataset("{REPO}", ipc=10)' in files["README.md"].decode()
    assert "library_name: dimdata" in files["README.md"].decode()
    assert set(pushed.changed) == set(pushed.files) == set(files) - {".gitattributes"}
    assert pushed.url == f"{hub.url}/{REPO}/tree/{pushed.revision}"
    scope = {"GeneratedDataset": GeneratedDataset}
    exec(pushed.line, scope)
    twin = artifact.load(folder)
    for name, tensor in scope["dataset"].generator.stored().items():
        assert torch.equal(tensor, twin.stored()[name])
    assert repo.state()["private"] is False


def test_the_same_content_makes_no_second_commit(hub: Hub, folder: Path) -> None:
    first = dimdata.push(folder, REPO)
    hub.forget()
    again = dimdata.push(folder, REPO)
    assert (again.revision, again.line, again.changed) == (first.revision, first.line, ())
    assert commits(hub) == []
    assert not [request for request in hub.requests if request.startswith(("POST", "PUT", "STORAGE"))]


def test_only_what_changed_is_sent_and_what_is_gone_is_deleted(hub: Hub, folder: Path, tmp_path: Path) -> None:
    holdout = {"images": torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "labels": torch.tensor([0, 1])}
    before = artifact.save(make_network(), tmp_path / "before", holdout=holdout, provenance={"seed": 0})
    dimdata.push(before, REPO)
    hub.forget()
    second = dimdata.push(folder, REPO)
    assert set(second.changed) == {"README.md", "holdout.safetensors", "preview.png"}
    assert "holdout.safetensors" not in hub.repository(REPO).files(second.revision or "")
    assert not [request for request in hub.requests if "model.safetensors" in request]
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b"\n")
    assert dimdata.push(folder, REPO).changed == ("config.json",)


def test_what_others_put_there_stays(hub: Hub, folder: Path) -> None:
    hub.put(REPO, {"notes.txt": b"mine", "README.md": b"# old"})
    pushed = dimdata.push(folder, REPO)
    assert hub.repository(REPO).files(pushed.revision or "")["notes.txt"] == b"mine"


def test_dry_run(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (folder / "run.log").write_text("not part of it")
    assert main(["push", str(folder), REPO, "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert "model.safetensors" in captured.out
    assert f"{(folder / 'model.safetensors').stat().st_size:,}" in captured.out
    assert "Left out: run.log" in captured.err
    assert hub.requests == []
    assert main(["push", str(folder), REPO, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"].keys() == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preview.png",
    }


def test_command_line(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(folder), REPO, "--private", "--tag", "v1", "-m", "First"]) == 0
    url, line = capsys.readouterr().out.splitlines()
    repo = hub.repository(REPO)
    commit = repo.commit_of("v1")
    assert url.endswith(f"/{REPO}/tree/{commit}")
    assert line == f'dataset = GeneratedDataset("{REPO}", ipc=10, revision="{commit}")'
    assert repo.state()["private"] is True
    assert repo.state()["titles"][commit] == "First"
    assert main(["push", str(folder), REPO, "--tag", "v1", "--json"]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert (facts["revision"], facts["changed"], facts["python"]) == (commit, [], line)


def test_branches(hub: Hub, folder: Path, tmp_path: Path) -> None:
    main_commit = dimdata.push(folder, REPO).revision
    other = artifact.save(make_table(), tmp_path / "other")
    pushed = dimdata.push(other, REPO, revision="tables")
    repo = hub.repository(REPO)
    assert (repo.commit_of("main"), repo.commit_of("tables")) == (main_commit, pushed.revision)
    assert artifact.load(REPO, revision="tables").spec.kind == "table"
    assert "ipc" not in pushed.line  # as many images as are stored


def test_pull_request(hub: Hub, folder: Path, tmp_path: Path) -> None:
    first = dimdata.push(folder, REPO)
    other = artifact.save(make_network(seed=1), tmp_path / "other")
    pushed = dimdata.push(other, REPO, create_pr=True)
    repo = hub.repository(REPO)
    assert repo.commit_of("main") == first.revision
    assert repo.commit_of("refs/pr/1") == pushed.revision
    assert pushed.url == pushed.pull_request == f"{hub.url}/{REPO}/discussions/1"
    assert artifact.load(REPO, revision="refs/pr/1").revision == pushed.revision
    assert dimdata.push(folder, REPO, create_pr=True).changed == ()  # nothing to ask for


def test_tags(hub: Hub, folder: Path, tmp_path: Path) -> None:
    first = dimdata.push(folder, REPO, tag="v1")
    assert dimdata.push(folder, REPO, tag="v1").revision == first.revision
    other = artifact.save(make_network(seed=1), tmp_path / "other")
    hub.forget()
    with pytest.raises(ConflictError, match="has a tag v1"):
        dimdata.push(other, REPO, tag="v1")
    assert commits(hub) == []
    assert hub.repository(REPO).commit_of("v1") == first.revision


def test_a_concurrent_push_is_noticed(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """While one push waits before its commit, another one lands."""
    dimdata.push(folder, REPO)
    mine = artifact.save(make_network(seed=1), tmp_path / "mine")
    theirs = artifact.save(make_network(seed=2), tmp_path / "theirs")
    hub.fault({"where": "POST .*/commit/", "what": "slow", "seconds": 4, "times": 1})
    caught: list[Exception] = []

    def push_mine() -> None:
        try:
            dimdata.push(mine, REPO)
        except Exception as error:
            caught.append(error)

    hub.forget()
    thread = threading.Thread(target=push_mine)
    thread.start()
    while not commits(hub):
        assert thread.is_alive(), caught
        time.sleep(0.02)
    landed = dimdata.push(theirs, REPO)
    thread.join()
    assert [type(error) for error in caught] == [ConflictError]
    assert "nothing was overwritten" in str(caught[0])
    assert hub.repository(REPO).commit_of("main") == landed.revision


@pytest.mark.parametrize("what", [{"what": "cut", "bytes": 5}, {"what": "reset"}, {"what": "status", "status": 503}])
def test_a_commit_whose_answer_is_lost(hub: Hub, folder: Path, tmp_path: Path, what: dict[str, object]) -> None:
    dimdata.push(folder, REPO)
    other = artifact.save(make_network(seed=1), tmp_path / "other")
    hub.fault({"where": "POST .*/commit/", "times": 1, **what})
    pushed = dimdata.push(other, REPO)
    repo = hub.repository(REPO)
    assert repo.commit_of("main") == pushed.revision
    assert pushed.changed
    assert len([title for title in repo.state()["titles"].values() if title.startswith("Generator of")]) == 2


def test_uploads_that_are_cut(hub: Hub, folder: Path) -> None:
    hub.fault({"where": "STORAGE PUT", "what": "status", "status": 503, "times": 1})
    assert artifact.load(REPO, revision=dimdata.push(folder, REPO).revision)


def test_rights(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AccessError, match="may not write to owner/dim-digits") as caught:
        dimdata.push(folder, REPO, token=READER)
    assert "settings/tokens" in caught.value.hint
    with pytest.raises(AccessError, match="may not write to else/where"):
        dimdata.push(folder, "else/where")
    with pytest.raises(AccessError, match="does not accept"):
        dimdata.push(folder, REPO, token="hf_expired")
    dimdata.push(folder, REPO, token=WRITER)
    (folder / "LICENSE-DATA").write_text("CC")
    with pytest.raises(AccessError, match="may not write"):
        dimdata.push(folder, REPO, token=READER)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AccessError, match="none is set"):
        dimdata.push(folder, REPO)


def test_offline(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WorldError, match="HF_HUB_OFFLINE is set"):
        dimdata.push(folder, REPO)
    assert dimdata.push(folder, REPO, dry_run=True).files


def test_arguments(hub: Hub, folder: Path) -> None:
    dimdata.push(folder, REPO, tag="v1")
    hub.forget()
    for arguments, message in (
        ({"revision": "0" * 40}, "cannot be pushed to"),
        ({"revision": "../main"}, "can be no revision"),
        ({"tag": "a b"}, "can be no revision"),
        ({"create_pr": True, "revision": "dev"}, "goes to the default branch"),
        ({"create_pr": True, "tag": "v2"}, "carries no tag"),
        ({"message": " "}, "message is empty"),
    ):
        with pytest.raises(ArgumentError, match=message):
            dimdata.push(folder, REPO, **arguments)
    with pytest.raises(ArgumentError, match="names no generator"):
        dimdata.push(folder, "dim-digits")
    assert hub.requests == []
    with pytest.raises(ArgumentError, match="is a tag"):
        dimdata.push(folder, REPO, revision="v1")
    with pytest.raises(ArgumentError, match="exists and is public"):
        dimdata.push(folder, REPO, private=True)


def damage(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("model.safetensors", b"x" * 200, "damaged|not a safetensors"),
        ("config.json", b"{}", "config.json"),
        ("preview.png", b"<svg onload=alert(1)>", "not a PNG"),
        ("holdout.safetensors", b"x" * 200, "safetensors"),
        ("README.md", b"\xff\xfe", "not UTF-8"),
        ("LICENSE", b"\0\1", "is no text"),
        ("LICENSE", b"x" * (2**20 + 1), "longer than"),
    ],
)
def test_checked_before_anything_is_sent(hub: Hub, folder: Path, name: str, data: bytes, message: str) -> None:
    damage(folder, name, data)
    with pytest.raises(FormatError, match=message):
        dimdata.push(folder, REPO)
    assert hub.requests == []


def test_links_lead_nowhere(hub: Hub, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(FormatError, match="symbolic link"):
        dimdata.push(folder, REPO)
    assert hub.requests == []


def test_licences_go_along_and_all_else_stays(hub: Hub, folder: Path) -> None:
    (folder / "LICENSE-DATA").write_text("CC BY 4.0")
    (folder / "pytorch_model.bin").write_bytes(b"cos\n")
    (folder / ".env").write_text("HF_TOKEN=hf_secret")
    pushed = dimdata.push(folder, REPO)
    files = hub.repository(REPO).files(pushed.revision or "")
    assert files["LICENSE-DATA"] == b"CC BY 4.0"
    assert not {"pytorch_model.bin", ".env"} & set(files)
    assert pushed.left_out == (".env", "pytorch_model.bin")


def test_what_a_person_wrote_stays(hub: Hub, folder: Path) -> None:
    card = dimdata.push(folder, REPO)
    text = hub.repository(REPO).files(card.revision or "")["README.md"].decode()
    damage(folder, "README.md", f"{text}\n<!-- keep -->\nMy own words.\n<!-- /keep -->\n".encode())
    again = dimdata.push(folder, REPO)
    assert "My own words." in hub.repository(REPO).files(again.revision or "")["README.md"].decode()


def test_a_card_that_the_hub_refuses(hub: Hub, folder: Path) -> None:
    hub.fault({"where": "validate-yaml", "what": "status", "status": 400})
    with pytest.raises(ArgumentError, match=r"head of README\.md"):
        dimdata.push(folder, REPO)
    assert commits(hub) == []


def test_names_of_classes_are_no_html(hub: Hub, tmp_path: Path) -> None:
    from dataclasses import replace

    generator = make_network()
    classes = ("<script>alert(1)</script>", "](javascript:x)", *map(str, range(8)))
    generator.spec = replace(generator.spec, classes=classes)
    pushed = dimdata.push(artifact.save(generator, tmp_path / "made"), REPO)
    assert "<script>" not in hub.repository(REPO).files(pushed.revision or "")["README.md"].decode()
