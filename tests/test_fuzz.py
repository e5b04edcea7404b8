"""Damaged and hostile generator folders: each is refused in one sentence or, where the damage is harmless, loads.

All cases run in one process of their own that may take little more memory than an honest load, with a hook that
notices anything executed, unpickled, or asked of the network.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_network, make_table
from safetensors import safe_open

from dimdata import artifact
from dimdata.errors import DimdataError
from dimdata.generators.table import table_generator
from dimdata.latents import latents
from dimdata.recipe import Leg, Recipe
from dimdata.spec import canonical_json

CASES = 50
HEADROOM = 96 * 2**20  # bytes of address space beyond what an honest load has taken
SECONDS = 2.0
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**40, 2**63, 2**64, 10**19, 0.0, -0.5, 1e-300, 1e308, "", "x", "network",
    "table", "float16", "uint8", "soft", "../../etc/passwd", "\u0000", "é" * 100_000, "A" * 1_000_000, [], [1], [[]],
    [None] * 1000, list(range(1000)), ["a"] * 200_000, {}, {"a": 1}, {"name": "subpixel"}, {"legs": []},
    [1, 4096, 4096], [64, 1, 1], [-1, 28, 28], [2**40, 2**40, 2**40], [0.0, 0.0], [1e308] * 3,
    {"name": "subpixel", "width": 1024, "mid": 1024},
)  # fmt: skip

Files = dict[str, bytes]
Damage = Callable[[random.Random, Files], Files]


def honest() -> list[Files]:
    """The files of three generators: a network, one in half precision, and a table with all that a table may have."""
    pictures = torch.linspace(0, 1, 6 * 192).view(6, 3, 8, 8)
    table = table_generator(
        pictures,
        labels=torch.tensor([2, 2, 0, 1, 0, 0]),
        classes=("a", "b", "c"),
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        recipe=Recipe(legs=(Leg(steps=4, batch_size=3, step_sizes="lr"),), tensors=("lr", "start.weight")),
        stages=(2, 4),
    )
    table.recipe_tensors = {"lr": torch.ones(4), "start.weight": torch.ones(2, 3)}
    folder, result = Path("honest"), []
    for generator in (make_network(), make_network("float16"), table):
        artifact.save(generator, folder, provenance={"command": ["a", "b"], "seconds": 1.5})
        result.append({path.name: path.read_bytes() for path in folder.iterdir()})
        shutil.rmtree(folder)
    return result


def unpack(model: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(model[:8], "little")
    return json.loads(model[8 : 8 + length]), model[8 + length :]


def pack(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def sealed(files: Files, model: bytes) -> Files:
    """The files with another model, and a config that vouches for it."""
    config = json.loads(files["config.json"])
    config["weights"] = {"sha256": hashlib.sha256(model).hexdigest(), "bytes": len(model)}
    return {**files, "model.safetensors": model, "config.json": json.dumps(config).encode()}


def flipped(rng: random.Random, data: bytes, start: int, stop: int) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 20))):
        changed[rng.randrange(start, stop)] ^= 1 << rng.randrange(8)
    return bytes(changed) if bytes(changed) != data else flipped(rng, data, start, stop)


def truncate(rng: random.Random, files: Files) -> Files:
    name = rng.choice(("config.json", "model.safetensors"))
    end = len(files[name].rstrip())
    return {**files, name: files[name][: rng.choice((0, 1, 7, 8, 9, end - 1, rng.randrange(end)))]}


def flip_weights(rng: random.Random, files: Files) -> Files:
    model = files["model.safetensors"]
    return {**files, "model.safetensors": flipped(rng, model, len(model) - len(unpack(model)[1]), len(model))}


def flip_header(rng: random.Random, files: Files) -> Files:
    model = files["model.safetensors"]
    damaged = flipped(rng, model, 0, len(model) - len(unpack(model)[1]))
    return {**files, "model.safetensors": damaged}


def flip_sealed_header(rng: random.Random, files: Files) -> Files:
    return sealed(files, flip_header(rng, files)["model.safetensors"])


def lie_about_length(rng: random.Random, files: Files) -> Files:
    model = files["model.safetensors"]
    true = int.from_bytes(model[:8], "little")
    wrong = (
        0,
        1,
        2,
        true - 1,
        true + 1,
        len(model),
        len(model) - 8,
        2**22,
        2**31,
        2**63,
        2**64 - 1,
        rng.getrandbits(64),
    )
    lying = rng.choice(wrong).to_bytes(8, "little") + model[8:]
    return sealed(files, lying) if rng.random() < 0.5 else {**files, "model.safetensors": lying}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All paths in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def mutate(rng: random.Random, value: Any) -> Any:
    """Put something hostile in one place: another value, a missing or surplus key, a longer list."""
    value = copy.deepcopy(value)
    *path, last = rng.choice(places(value)[1:])
    part = value
    for key in path:
        part = part[key]
    action = rng.random()
    if action < 0.1 and isinstance(part, dict):
        del part[last]
    elif action < 0.2 and isinstance(part, dict):
        part[rng.choice(("surplus", "", "__class__", "unknown"))] = rng.choice(HOSTILE)
    elif action < 0.3 and isinstance(part, list):
        part.extend(part[:1] * rng.choice((1, 1000, 200_000)))
    else:
        same = [item for item in HOSTILE if type(item) is type(part[last])]
        part[last] = rng.choice(same if same and rng.random() < 0.6 else HOSTILE)
    return value


def change_config(rng: random.Random, files: Files) -> Files:
    return {**files, "config.json": json.dumps(mutate(rng, json.loads(files["config.json"]))).encode()}


def change_config_and_header(rng: random.Random, files: Files) -> Files:
    config = json.loads(files["config.json"])
    part = rng.choice(("generator", "recipe"))
    config[part] = mutate(rng, {part: config[part]}).get(part)
    header, data = unpack(files["model.safetensors"])
    header["__metadata__"] = {"dimdata": canonical_json({key: config[key] for key in ("generator", "recipe")})}
    return sealed({**files, "config.json": json.dumps(config).encode()}, pack(header, data))


def change_tensors(rng: random.Random, files: Files) -> Files:
    header, data = unpack(files["model.safetensors"])
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    begin, end = entry["data_offsets"]
    action = rng.randrange(9)
    if action == 0:
        header[rng.choice(("surplus", "generator.", "recipe.x", "é" * 1000))] = header.pop(name)
    elif action == 1:
        del header[name]
    elif action == 2:
        header["surplus"] = {"dtype": "U8", "shape": [8], "data_offsets": [len(data), len(data) + 8]}
        data += b"surplus!"
    elif action == 3:
        entry["shape"] = rng.choice(
            ([1, *entry["shape"]], [*entry["shape"], 1], [-1], [2**62, 4], [1] * 1000, [0], "x", [1.0])
        )
    elif action == 4:
        entry["dtype"] = rng.choice(("F64", "BF16", "I64", "U8", "BOOL", "", None, 3, "object" * 1000))
    elif action == 5:
        wrong = (
            [0, end - begin],
            [begin + 1, end + 1],
            [end, begin],
            [-8, 0],
            [begin],
            [0, 2**63],
            [2**64, 2**65],
            "x",
        )
        entry["data_offsets"] = rng.choice([value for value in wrong if value != entry["data_offsets"]])
    elif action == 6:
        header[name] = rng.choice((None, [], "x", {}, {**entry, "pickle": "x"}, {"dtype": "F32"}))
    elif action == 7:
        header["__metadata__"] = rng.choice(
            ({}, None, {"dimdata": 3}, {"dimdata": "{}"}, [], {"dimdata": "x", "b": "y"})
        )
    else:
        data += bytes(rng.choice((1, 8, 1000)))
    return sealed(files, pack(header, data))


def poison(rng: random.Random, files: Files) -> Files:
    header, data = unpack(files["model.safetensors"])
    name = rng.choice([n for n, entry in header.items() if n != "__metadata__" and entry["dtype"][0] == "F"])
    begin, end = header[name]["data_offsets"]
    wide = header[name]["dtype"] == "F32"
    bad = rng.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff") if wide else (b"\x00\x7e", b"\x00\x7c"))
    place = begin + len(bad) * rng.randrange((end - begin) // len(bad))
    return sealed(files, pack(header, data[:place] + bad + data[place + len(bad) :]))


def nest(rng: random.Random, files: Files) -> Files:
    depth = rng.choice((100, 1000, 10_000, 100_000))
    deep = rng.choice((b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"[" * depth))
    if rng.random() < 0.5:
        return {**files, "config.json": rng.choice((deep, b'{"format": "1.0", "provenance": %s}' % deep))}
    return sealed(
        files, pack(rng.choice((deep, b'{"__metadata__": %s}' % deep)), unpack(files["model.safetensors"])[1])
    )


def lie_about_digest(rng: random.Random, files: Files) -> Files:
    config = json.loads(files["config.json"])
    name = rng.choice(("sha256", "bytes"))
    true = config["weights"][name]
    wrong = (true[:-1] + ("0" if true[-1] != "0" else "1"), true.upper() + "g", "", 3) if name == "sha256" else (
        true + 1, true - 1, 0, -true, 2**70, float(true), str(true))  # fmt: skip
    config["weights"][name] = rng.choice(wrong)
    return {**files, "config.json": json.dumps(config).encode()}


MUST_FAIL: tuple[Damage, ...] = (
    truncate, flip_weights, flip_header, flip_sealed_header, lie_about_length, change_tensors, poison, nest,
    lie_about_digest,
)  # fmt: skip
MAY_LOAD: tuple[Damage, ...] = (change_config, change_config_and_header)


def attempt(files: Files, must_fail: bool) -> str:
    """Load a damaged folder; return what is wrong with the outcome."""
    folder = Path("case")
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    started = time.process_time()
    try:
        generator = artifact.load(folder)
        index = torch.arange(3)
        generator.draw(latents(0, 0, index, generator.spec.latent), index)
        problem = "loaded" if must_fail else ""
    except DimdataError as error:
        sentence = len(str(error)) < 500 and "\n" not in str(error)
        problem = "" if sentence and error.exit_code == 2 else f"says {error!s:.600}"
    except BaseException as error:
        problem = f"raised {type(error).__name__}: {error!s:.200}"
    seconds = time.process_time() - started
    shutil.rmtree(folder)
    return problem or (f"took {seconds:.1f} s" if seconds > SECONDS else "")


def run_all() -> None:
    """Run all cases in this process and print what went wrong, and how often a case loaded."""
    generators, noticed = honest(), []
    for files in generators:
        assert attempt(files, must_fail=True) == "loaded"
    sys.addaudithook(lambda event, _: noticed.append(event) if event in FORBIDDEN else None)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    problems = []
    for damage in (*MUST_FAIL, *MAY_LOAD):
        for case in range(CASES):
            rng = random.Random(f"{damage.__name__} {case}")
            files = damage(rng, generators[case % len(generators)])
            if problem := attempt(files, damage in MUST_FAIL):
                problems.append(f"{damage.__name__} {case}: {problem}")
    print(json.dumps({"problems": problems, "noticed": noticed}))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to limit memory")
def test_no_damaged_folder_does_harm(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_fuzz; test_fuzz.run_all()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert out.returncode == 0, out.stderr[-2000:]
    result = json.loads(out.stdout.splitlines()[-1])
    assert result["problems"] == []
    assert result["noticed"] == []


@pytest.mark.parametrize(
    "config",
    [
        b'{"format":"1.0","generator":{"classes":[' + b'"",' * 1_300_000 + b'""]}}',
        b'{"format":"1.0","recipe":{"legs":[' + b'{"epochs":1,"batch_size":1},' * 140_000 + b"0]}}",
        b'{"format":"1.0","scores":[' + b"{}," * 1_300_000 + b"{}]}",
        b'{"format":"1.0",' + b",".join(b'"k%d":0' % i for i in range(300_000)) + b"}",
        b'{"format":"1.0","generator":' + b'{"a":' * 60 + b"0" + b"}" * 60 + b"}",
        b'{"format":"' + b"9" * 4_000_000 + b'"}',
        b" " * 5_000_000,
    ],
)
def test_the_longest_config_is_refused_quickly(tmp_path: Path, config: bytes) -> None:
    (tmp_path / "config.json").write_bytes(config)
    (tmp_path / "model.safetensors").write_bytes(b"")
    started = time.process_time()
    with pytest.raises(DimdataError) as caught:
        artifact.load(tmp_path)
    assert time.process_time() - started < SECONDS
    assert len(str(caught.value)) < 500


def test_strange_files_are_refused(tmp_path: Path) -> None:
    folder = artifact.save(make_table(), tmp_path / "g")
    model = folder / "model.safetensors"
    model.unlink()
    for make in (
        lambda: model.mkdir(),
        lambda: (model.rmdir(), os.mkfifo(model)),
        lambda: (model.unlink(), model.symlink_to(model)),
        lambda: (model.unlink(), model.symlink_to("/dev/zero")),
    ):
        make()
        with pytest.raises(DimdataError):
            artifact.load(folder)


def test_a_sparse_file_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = artifact.save(make_table(), tmp_path / "g")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(DimdataError, match="DIMDATA_MAX_BYTES"):
        artifact.load(folder)
    monkeypatch.setenv("DIMDATA_MAX_BYTES", str(2**50))
    with pytest.raises(DimdataError, match="header describes"):
        artifact.load(folder)


def test_the_reference_reader_agrees(tmp_path: Path) -> None:
    folder = artifact.save(make_network(), tmp_path / "g")
    loaded = artifact.load(folder).stored()
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == sorted(f"generator.{name}" for name in loaded)
        assert all(torch.equal(file.get_tensor(f"generator.{name}"), tensor) for name, tensor in loaded.items())


def peak(*, anew: bool = False) -> int:
    """Return the most bytes that this process has held, from now on if asked for; where Linux can tell."""
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not (status.exists() and forget.exists()):
        return 0
    if anew:
        forget.write_text("5")  # what tests before took says nothing
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    assert found is not None
    return 1024 * int(found[1])


def test_memory_that_was_taken_shows() -> None:
    if not peak():
        pytest.skip("needs Linux")
    before = peak(anew=True)
    taken = bytearray(2 * HEADROOM)
    taken[::4096] = b"x" * len(taken[::4096])
    assert peak() - before > HEADROOM


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (make_table, {"images": 2**40, "image_shape": [64, 4096, 4096], "mean": [0.5] * 64, "std": [0.5] * 64}),
        (make_table, {"images": 2**40}),
        (make_table, {"images": 100_000, "targets": "soft", "classes": [str(i) for i in range(100_000)]}),
        (make_network, {"latent": 65_536, "options": {"name": "subpixel", "width": 1024, "mid": 1024, "stem": 1024}}),
        (make_network, {"image_shape": [1, 4096, 4096], "classes": [str(i) for i in range(100_000)]}),
    ],
)
def test_huge_generators_are_refused_before_they_are_built(
    tmp_path: Path, make: Callable[[], Any], changes: dict[str, Any]
) -> None:
    folder = artifact.save(make(), tmp_path / "g")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = json.loads(files["config.json"])
    config["generator"] |= {"options": {}, **changes} if make is make_table else changes
    header, data = unpack(files["model.safetensors"])
    header["__metadata__"] = {"dimdata": canonical_json({key: config[key] for key in ("generator", "recipe")})}
    hostile = sealed({**files, "config.json": json.dumps(config).encode()}, pack(header, data))
    for name, content in hostile.items():
        (folder / name).write_bytes(content)
    started, most = time.process_time(), peak(anew=True)
    with pytest.raises(DimdataError, match=r"implies|cannot be built|lacks the tensor"):
        artifact.load(folder)
    assert time.process_time() - started < SECONDS
    assert peak() - most < HEADROOM
