"""The folder of a generator: what is written, what is read back, what is refused, and what a crash leaves."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_network, make_table, recipe
from safetensors import safe_open
from safetensors.torch import load_file

import dimdata
from dimdata import artifact, names
from dimdata.errors import ArgumentError, DimdataError, FormatError, NotFoundError, WorldError
from dimdata.files import settled, strict_json, write_atomic
from dimdata.generators.base import Generator
from dimdata.generators.table import TableGenerator, table_generator
from dimdata.latents import latents
from dimdata.recipe import Leg, Recipe
from dimdata.spec import canonical_json

INDEX = torch.arange(20)


def images(generator: Generator) -> torch.Tensor:
    return generator.draw(latents(0, 0, INDEX, generator.spec.latent), INDEX)[0]


def change(folder: Path, *path: str | int, value: Any) -> None:
    """Set one value of config.json; the key is removed where `value` is ...."""
    config = json.loads((folder / "config.json").read_text())
    part = config
    for key in path[:-1]:
        part = part[key]
    if value is ...:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_network_survives_the_folder(tmp_path: Path, storage: str) -> None:
    generator = make_network(storage)
    loaded = dimdata.load(dimdata.save(generator, tmp_path / "g"))
    assert torch.equal(images(loaded), images(generator))
    assert loaded.spec == generator.spec
    assert loaded.recipe == generator.recipe
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    stored = load_file(tmp_path / "g/model.safetensors")
    assert {t.dtype for t in stored.values()} == {getattr(torch, storage)}
    assert "generator.network.body.weight" in stored


def test_table_survives_the_folder(tmp_path: Path, table: TableGenerator) -> None:
    loaded = artifact.load(artifact.save(table, tmp_path / "g"))
    assert isinstance(loaded, TableGenerator)
    assert loaded.table.dtype == torch.uint8
    assert torch.equal(images(loaded), images(table))
    assert loaded.stages == 2
    prefix = artifact.load(artifact.save(table.view(stage=1), tmp_path / "prefix"))
    assert prefix.images == 10


def test_soft_targets_labels_and_recipe_tensors_survive(tmp_path: Path) -> None:
    pictures = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.softmax(pictures.flatten(1)[:, :3] * 4, 1)
    common: dict[str, Any] = {"classes": ("a", "b", "c"), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    walk = Recipe(legs=(Leg(steps=4, batch_size=3, shuffle=False, step_sizes="lr"),), tensors=("lr", "start.weight"))
    soft = table_generator(pictures, targets=targets, recipe=walk, **common)
    soft.recipe_tensors = {"lr": torch.rand(4), "start.weight": torch.rand(2, 3)}
    loaded = artifact.load(artifact.save(soft, tmp_path / "soft"))
    drawn = loaded.draw(torch.empty(6, 0), torch.arange(6))
    assert torch.equal(drawn[0], pictures)
    assert torch.equal(drawn[1], targets)
    for name, tensor in soft.recipe_tensors.items():
        assert torch.equal(loaded.recipe_tensors[name], tensor)
    labels = torch.tensor([2, 2, 0, 1, 0, 0])
    hard = artifact.load(
        artifact.save(table_generator(pictures, labels=labels, recipe=recipe(), **common), tmp_path / "hard")
    )
    assert torch.equal(hard.labels(torch.arange(6)), labels)
    again = artifact.save(loaded, tmp_path / "again")  # loaded tensors share one buffer
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "soft/model.safetensors").read_bytes()


def test_folder_format(tmp_path: Path, network_generator: Generator) -> None:
    folder = artifact.save(
        network_generator, tmp_path / "a/b", card="# Ü\n", preview=b"\x89PNG", scores=[{"ipc": 10}], provenance={"p": 1}
    )
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors", "preview.png"]
    assert [p.name for p in folder.parent.iterdir()] == ["b"], "nothing is left beside the folder"
    text = (folder / "config.json").read_text("utf-8")
    config = json.loads(text)
    assert set(config) == {"format", "generator", "recipe", "weights", "scores", "provenance"}
    assert text == json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    assert config["format"] == "1.0"
    model = (folder / "model.safetensors").read_bytes()
    assert config["weights"] == {"sha256": hashlib.sha256(model).hexdigest(), "bytes": len(model)}
    with safe_open(folder / "model.safetensors", "pt") as file:
        identity = canonical_json({"generator": config["generator"], "recipe": config["recipe"]})
        assert file.metadata() == {"dimdata": identity}
    assert folder.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_equal_generators_give_equal_weights(tmp_path: Path) -> None:
    a = artifact.save(make_network(), tmp_path / "a", provenance={"minutes": 1})
    b = artifact.save(make_network(), tmp_path / "b", provenance={"minutes": 2})
    c = artifact.save(artifact.load(a), tmp_path / "c")
    first, *others = [(folder / "model.safetensors").read_bytes() for folder in (a, b, c)]
    assert others == [first, first]


def test_read_config(generator_folder: Path, network_generator: Generator) -> None:
    config = artifact.read_config(generator_folder)
    assert config.generator == network_generator.spec
    assert config.recipe == network_generator.recipe
    assert config.provenance == {"seed": 0}
    assert config.scores == ()
    assert config.weights.bytes == (generator_folder / "model.safetensors").stat().st_size


def test_update_scores_touches_nothing_else(generator_folder: Path) -> None:
    before = json.loads((generator_folder / "config.json").read_text())
    weights = (generator_folder / "model.safetensors").stat()
    artifact.update_scores(generator_folder, [{"student": "convnet3", "accuracy": 98.7}])
    after = json.loads((generator_folder / "config.json").read_text())
    assert after.pop("scores") == [{"student": "convnet3", "accuracy": 98.7}]
    before.pop("scores")
    assert before == after
    assert (generator_folder / "model.safetensors").stat().st_mtime_ns == weights.st_mtime_ns
    artifact.load(generator_folder)
    with pytest.raises(ArgumentError, match="JSON"):
        artifact.update_scores(generator_folder, [{"accuracy": float("nan")}])
    assert artifact.read_config(generator_folder).scores[0]["accuracy"] == 98.7


def test_loading_leaves_global_randomness_alone(generator_folder: Path) -> None:
    before = torch.get_rng_state()
    artifact.load(generator_folder)
    assert torch.equal(before, torch.get_rng_state())


def test_loading_imports_no_compiler_and_no_hub(generator_folder: Path) -> None:
    code = (
        "import sys, dimdata; dimdata.load(sys.argv[1]); "
        "print([m for m in ('torchvision', 'huggingface_hub', 'accelerate', 'sympy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code, str(generator_folder)], capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr


# Versions


def test_newer_major_is_refused(generator_folder: Path) -> None:
    change(generator_folder, "format", value="2.0")
    change(generator_folder, "surprise", value=1)
    with pytest.raises(FormatError, match=r"needs a newer dimdata.*2\.0.*pip install --upgrade"):
        artifact.load(generator_folder)


@pytest.mark.parametrize("version", ["0.9", "1", "1.0.0", 1.0, None, "x" * 10_000, ["1.0"], "1.99999"])
def test_malformed_version_is_refused(generator_folder: Path, version: Any) -> None:
    change(generator_folder, "format", value=version)
    with pytest.raises(FormatError) as caught:
        artifact.load(generator_folder)
    assert len(str(caught.value)) < 300


def test_unknown_fields_are_errors_in_this_minor(generator_folder: Path) -> None:
    change(generator_folder, "recipie", value={})
    with pytest.raises(FormatError, match=r"unknown field 'recipie'.*Did you mean recipe"):
        artifact.load(generator_folder)


def test_unknown_fields_of_a_newer_minor_are_kept(tmp_path: Path, network_generator: Generator) -> None:
    folder = artifact.save(network_generator, tmp_path / "g")
    raw = json.loads((folder / "config.json").read_text())
    raw["format"] = "1.7"
    raw["future"] = {"a": [1]}
    raw["generator"]["mood"] = "sunny"
    raw["recipe"]["legs"][0]["tempo"] = 3
    tensors = load_file(folder / "model.safetensors")
    from safetensors.torch import save

    model = save(tensors, {"dimdata": canonical_json({"generator": raw["generator"], "recipe": raw["recipe"]})})
    raw["weights"] = {"sha256": hashlib.sha256(model).hexdigest(), "bytes": len(model), "blake": "x"}
    (folder / "model.safetensors").write_bytes(model)
    (folder / "config.json").write_text(json.dumps(raw))
    loaded = artifact.load(folder)
    assert torch.equal(images(loaded), images(network_generator))
    assert loaded.spec.unknown == {"mood": "sunny"}
    assert loaded.recipe.legs[0].unknown == {"tempo": 3}
    artifact.update_scores(folder, [{"ipc": 1}])
    assert json.loads((folder / "config.json").read_text()) == {**raw, "scores": [{"ipc": 1}]}
    again = json.loads((artifact.save(loaded, tmp_path / "again") / "config.json").read_text())
    assert again["generator"]["mood"] == "sunny"
    assert again["recipe"]["legs"][0]["tempo"] == 3
    assert again["format"] == "1.7"
    assert artifact.load(tmp_path / "again").spec.unknown == {"mood": "sunny"}


# Refusals


def test_config_and_weights_must_belong_together(generator_folder: Path) -> None:
    change(generator_folder, "generator", "classes", value=[f"class {i}" for i in range(10)])
    with pytest.raises(FormatError, match="do not belong together"):
        artifact.load(generator_folder)


def test_bit_flip_and_truncation_are_named(generator_folder: Path) -> None:
    model = generator_folder / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[-2] ^= 1
    model.write_bytes(data)
    with pytest.raises(FormatError, match="sha256"):
        artifact.load(generator_folder)
    model.write_bytes(data[:-100])
    with pytest.raises(FormatError, match="bytes"):
        artifact.load(generator_folder)
    model.unlink()
    with pytest.raises(FormatError, match=r"has no file model\.safetensors"):
        artifact.load(generator_folder)


def test_size_limit_can_be_set(generator_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIMDATA_MAX_BYTES", "1000")
    with pytest.raises(FormatError, match="DIMDATA_MAX_BYTES"):
        artifact.load(generator_folder)
    monkeypatch.setenv("DIMDATA_MAX_BYTES", "1 GiB")
    with pytest.raises(ArgumentError, match="not a number"):
        artifact.load(generator_folder)
    monkeypatch.setenv("DIMDATA_MAX_BYTES", "100000000")
    artifact.load(generator_folder)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no folder"):
        artifact.load(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match=r"no config\.json"):
        artifact.load(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FormatError, match="is a file"):
        artifact.load(tmp_path / "file")
    with pytest.raises(ArgumentError):
        artifact.load(tmp_path / ("x" * 5000))
    with pytest.raises(DimdataError):
        artifact.load("./a\0b")
    os.mkfifo(tmp_path / "empty/config.json")
    with pytest.raises(FormatError, match=r"no config\.json"):
        artifact.load(tmp_path / "empty")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"nul",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 2}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b"\xff\xfe",
        b'{"a": "\x00"}',
    ],
)
def test_json_is_read_by_the_letter(text: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        strict_json(text, "The text")
    assert len(str(caught.value)) < 200


def test_what_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    generator = make_network("float16")
    with torch.no_grad():
        next(generator.parameters()).fill_(1e6)  # infinite in half precision
    with pytest.raises(ArgumentError, match="not finite as float16"):
        artifact.save(generator, tmp_path / "g")
    with pytest.raises(ArgumentError, match="JSON"):
        artifact.save(make_table(), tmp_path / "g", provenance={"when": object()})
    extra = make_table()
    extra.recipe_tensors = {"lr": torch.ones(3)}
    with pytest.raises(ArgumentError, match="'lr' is not named"):
        artifact.save(extra, tmp_path / "g")
    named = make_table()
    named.recipe = Recipe(legs=recipe().legs, tensors=("lr",))
    with pytest.raises(ArgumentError, match="'lr' is missing"):
        artifact.save(named, tmp_path / "g")
    named.recipe_tensors = {"lr": torch.ones(3, dtype=torch.float64)}
    with pytest.raises(ArgumentError, match="not stored"):
        artifact.save(named, tmp_path / "g")
    assert not list(tmp_path.iterdir()), "nothing is half-written"


def test_step_sizes_must_have_the_length_of_their_leg(tmp_path: Path) -> None:
    generator = make_table()
    generator.recipe = Recipe(legs=(Leg(steps=4, batch_size=3, step_sizes="lr"),), tensors=("lr",))
    generator.recipe_tensors = {"lr": torch.ones(5)}
    folder = artifact.save(generator, tmp_path / "g")
    with pytest.raises(FormatError, match="step sizes 'lr'"):
        artifact.load(folder)


def test_only_generators_are_replaced(tmp_path: Path, table: TableGenerator) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("years")
    with pytest.raises(ArgumentError, match="something else"):
        artifact.save(table, full)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArgumentError, match="is a file"):
        artifact.save(table, tmp_path / "file")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["Bert"]}')
    with pytest.raises(ArgumentError, match="not a generator's"):
        artifact.save(table, model)
    own = artifact.save(table, tmp_path / "own")
    (own / "notes.txt").write_text("keep")
    with pytest.raises(ArgumentError, match=r"'notes\.txt'"):
        artifact.save(table, own)
    (own / "notes.txt").unlink()
    artifact.save(make_network(), own)
    assert artifact.load(own).spec.kind == "network"
    (tmp_path / "empty").mkdir()
    artifact.save(table, tmp_path / "empty")


# Names


def test_bundled_names(tmp_path: Path, table: TableGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_ZOO", tmp_path)
    artifact.save(table, tmp_path / "dim-mnist")
    (tmp_path / "not-one").mkdir()
    assert artifact.bundled() == {"dim-mnist": tmp_path / "dim-mnist"}
    assert artifact.resolve("dim-mnist") == tmp_path / "dim-mnist"
    loaded = artifact.load("dim-mnist")
    assert (loaded.name, loaded.revision) == ("dim-mnist", None)
    with pytest.raises(NotFoundError, match="Did you mean dim-mnist"):
        artifact.load("dim-mnits")
    with pytest.raises(ArgumentError, match="no revisions"):
        artifact.load("dim-mnist", revision="v1")


def test_local_names(tmp_path: Path, table: TableGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    artifact.save(table, "owner/name")
    for source in ("./owner/name", "~/owner/name", str(tmp_path / "owner/name"), Path("owner/name")):
        loaded = artifact.load(source)
        assert artifact.resolve(loaded.name) == tmp_path / "owner/name"
    with pytest.raises(ArgumentError, match="no revisions"):
        artifact.load("./owner/name", revision="main")
    with pytest.raises(NotFoundError, match=r"For a folder write \./owner"):
        artifact.load("owner")


@pytest.mark.parametrize(
    "source",
    [
        "",
        "a/b/c",
        "a b",
        "owner/",
        "/owner\0",
        "-x",
        "hf://a/b",
        "a\\b",
        "x" * 5000,
        "x" * 5000 + "/y",
        3,
        None,
        b"./x",
    ],
)
def test_malformed_names_are_refused(source: Any) -> None:
    with pytest.raises(DimdataError) as caught:
        artifact.load(source)
    assert caught.value.exit_code == 2


# Real test images


def test_holdout(tmp_path: Path, table: TableGenerator) -> None:
    given = {"images": torch.arange(4 * 784).to(torch.uint8).view(4, 1, 28, 28), "labels": torch.tensor([3, 1, 4, 1])}
    folder = artifact.save(table, tmp_path / "g", holdout=given)
    read = artifact.holdout(folder)
    assert read is not None
    assert torch.equal(read[0], given["images"])
    assert torch.equal(read[1], given["labels"])
    assert artifact.holdout(artifact.save(table, tmp_path / "without")) is None
    for wrong in (
        {"images": given["images"]},
        {**given, "labels": given["labels"].int()},
        {**given, "labels": torch.tensor([3, 1, 4, 10])},
        {**given, "images": given["images"][:3]},
        {"images": given["images"][:0], "labels": given["labels"][:0]},
        {"images": given["images"][0], "labels": given["labels"][0]},
    ):
        with pytest.raises(ArgumentError, match="do not fit"):
            artifact.save(table, tmp_path / "g", holdout=wrong)
    other = artifact.save(make_network(image_shape=(3, 8, 8)), tmp_path / "other")
    (other / "holdout.safetensors").write_bytes((folder / "holdout.safetensors").read_bytes())
    with pytest.raises(FormatError, match="do not fit"):
        artifact.holdout(other)


# Crashes


def test_a_folder_caught_in_the_middle_of_its_replacement_is_found(generator_folder: Path) -> None:
    old = generator_folder.with_name(f".{generator_folder.name}.old")
    generator_folder.rename(old)
    assert settled(generator_folder) == old
    assert artifact.load(generator_folder).spec.kind == "network"
    artifact.save(make_table(), generator_folder)
    assert artifact.load(generator_folder).spec.kind == "table"
    assert not old.exists()


SAVE_FOR_EVER = """
import sys
sys.path.insert(0, sys.argv[1])
from conftest import make_network
from dimdata import artifact
pair = [make_network(seed=0), make_network(seed=1)]
for i in range(10**9):
    artifact.save(pair[i % 2], sys.argv[2], provenance={"seed": i % 2})
    if i == 1:
        print("ready", flush=True)
"""


def test_kill_in_the_middle_of_a_save_leaves_old_or_new(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    for delay in (0.0, 0.003, 0.011):
        command = [sys.executable, "-c", SAVE_FOR_EVER, str(Path(__file__).parent), str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        seed = artifact.read_config(folder).provenance["seed"]
        assert torch.equal(images(artifact.load(folder)), images(make_network(seed=seed)))


SAVE_ON_A_FULL_DISK = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from conftest import make_network, make_table
from dimdata import artifact
from dimdata.errors import WorldError
network, table = make_network(), make_table(rows=400, stages=())
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for folder in sys.argv[2:]:
    try:
        artifact.save(table, folder)
    except WorldError as error:
        print(error.exit_code, error.message)
"""


def test_full_disk_leaves_the_old_folder(generator_folder: Path, network_generator: Generator) -> None:
    before = {path.name: path.read_bytes() for path in generator_folder.iterdir()}
    command = [sys.executable, "-c", SAVE_ON_A_FULL_DISK, str(Path(__file__).parent)]
    new = generator_folder.with_name("new")
    out = subprocess.run([*command, str(generator_folder), str(new)], capture_output=True, text=True)
    lines = out.stdout.splitlines()
    assert len(lines) == 2, out.stderr
    assert all(line.startswith("1 Writing the folder") and "failed" in line for line in lines)
    assert {path.name: path.read_bytes() for path in generator_folder.iterdir()} == before
    assert [path.name for path in generator_folder.parent.iterdir()] == [generator_folder.name]
    assert torch.equal(images(artifact.load(generator_folder)), images(network_generator))


def test_write_atomic(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"1")
    write_atomic(tmp_path / "a", b"22")
    assert (tmp_path / "a").read_bytes() == b"22"
    with pytest.raises(WorldError, match="failed"):
        write_atomic(tmp_path / "absent/a", b"1")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WorldError):
        write_atomic(tmp_path / "folder", b"1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "folder"]


def test_the_folder_of_a_run_leads_to_its_generator(tmp_path):
    folder = artifact.save(make_network(), tmp_path / "run" / "generator")
    with pytest.raises(FormatError, match=r"no config\.json") as caught:
        artifact.load(tmp_path / "run")
    assert str(folder) in caught.value.hint
