"""Hostile repositories by the dozen, each kind made from a seed: what a stranger, or a false Hub, may serve."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import random
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from dimdata.spec import canonical_json

Files = dict[str, bytes]
ESCAPES = ("\x1b]0;owned\x07", "\x1b[2J\x1b[31m", "\r\x1b[1Aerror: none", "\x9b31m", "\u202egnp.exe", "[red]x[/red]")
OUTSIDE = ("../../../../escaped", "/escaped", "..\\..\\escaped", "~/escaped", "a/../../../escaped", "file:///escaped")
CONFIG, MODEL = "config.json", "model.safetensors"


@dataclass
class Hostile:
    """What to serve, and what the server itself does wrong."""

    files: Files
    faults: list[dict[str, Any]] = field(default_factory=list)


Kind = Callable[[random.Random, Files], Hostile]
KINDS: dict[str, Kind] = {}


def kind(make: Kind) -> Kind:
    KINDS[make.__name__] = make
    return make


def unpack(model: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(model[:8], "little")
    return json.loads(model[8:end]), model[end:]


def pack(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def vouched(files: Files, model: bytes, config: dict[str, Any] | None = None) -> Hostile:
    """The files with another model (and config) that vouch for each other."""
    config = json.loads(files[CONFIG]) if config is None else config
    config["weights"] = {"sha256": hashlib.sha256(model).hexdigest(), "bytes": len(model)}
    return Hostile({**files, MODEL: model, CONFIG: json.dumps(config).encode()})


def told(files: Files, config: dict[str, Any]) -> Hostile:
    """The files with another config, of which the model's header speaks, too."""
    header, data = unpack(files[MODEL])
    header["__metadata__"] = {"dimdata": canonical_json({key: config[key] for key in ("generator", "recipe")})}
    return vouched(files, pack(header, data), config)


@kind
def links(rng: random.Random, files: Files) -> Hostile:
    """A symbolic link in git is a file that holds the path it leads to."""
    return Hostile({**files, rng.choice((CONFIG, MODEL)): rng.choice(OUTSIDE).encode() * rng.randint(1, 3)})


@kind
def paths_in_the_config(rng: random.Random, files: Files) -> Hostile:
    config = json.loads(files[CONFIG])
    path = rng.choice(OUTSIDE)
    match rng.randrange(5):
        case 0:
            config["generator"]["kind"] = path
        case 1:
            config["generator"]["options"]["name"] = path
        case 2:
            config["recipe"]["tensors"] = [path]
        case 3:
            config["generator"]["file"] = path
        case 4:
            config["generator"]["storage"] = path
    return told(files, config)


@kind
def paths_in_the_header(rng: random.Random, files: Files) -> Hostile:
    header, data = unpack(files[MODEL])
    name = rng.choice([name for name in header if name != "__metadata__"])
    header[rng.choice(("", "generator.", "recipe.")) + rng.choice(OUTSIDE)] = header.pop(name)
    return vouched(files, pack(header, data))


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('a pickle was opened')",)


@kind
def pickles(rng: random.Random, files: Files) -> Hostile:
    """Instead of the weights, or beside none."""
    bomb = pickle.dumps(_Bomb(), protocol=rng.randint(0, 4)) + bytes(rng.randrange(100))
    zipped = BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("archive/data.pkl", bomb)
    data = rng.choice((bomb, zipped.getvalue()))
    if rng.random() < 0.3:
        return Hostile({CONFIG: files[CONFIG], rng.choice(("pytorch_model.bin", "model.pt", "model.ckpt")): data})
    return vouched(files, data)


@kind
def huge_announcements(rng: random.Random, files: Files) -> Hostile:
    size = str(rng.choice((2**30 + 1, 2**40, 2**62, 10**18)))
    if rng.random() < 0.5:
        headers = {"where": "^HEAD .*model", "what": "headers", "headers": {"X-Linked-Size": size}}
        return Hostile(files, [headers])
    where, both = f"^HEAD .*{rng.choice((CONFIG, MODEL))}", {"X-Linked-Size": size, "Content-Length": size}
    return Hostile(files, [{"where": where, "what": "headers", "headers": both}])


@kind
def sizes_that_lie(rng: random.Random, files: Files) -> Hostile:
    if rng.random() < 0.5:
        config = json.loads(files[CONFIG])
        config["weights"]["bytes"] += rng.choice((-1, 1, 2**31, 2**50))
        return Hostile({**files, CONFIG: json.dumps(config).encode()})
    where = rng.choice(("^STORAGE GET", f"^GET .*{CONFIG}"))
    return Hostile(files, [{"where": where, "what": "longer", "by": rng.choice((1, 10**6, 3 * 10**7))}])


@kind
def deep_json(rng: random.Random, files: Files) -> Hostile:
    depth = rng.choice((65, 1000, 100_000, 1_000_000))
    deep = rng.choice((b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"[" * depth))
    if rng.random() < 0.5:
        config = files[CONFIG].rstrip()[:-1] + b',"x":' + deep + b"}"
        return Hostile({**files, CONFIG: config})
    return vouched(files, pack(b'{"x":' + deep + b"}", b""))


@kind
def numbers_that_are_none(rng: random.Random, files: Files) -> Hostile:
    bad = rng.choice((b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * rng.choice((30, 5000, 100_000)), b"0x10"))
    key = rng.choice((b"latent", b"bytes", b"width", b"epochs"))
    config, changed = re.subn(b'("' + key + b'": )[0-9]+', rb"\g<1>" + bad, files[CONFIG])
    assert changed
    return Hostile({**files, CONFIG: config})


@kind
def keys_twice(rng: random.Random, files: Files) -> Hostile:
    key = rng.choice(("format", "generator", "weights", "recipe"))
    again = json.dumps({key: json.loads(files[CONFIG])[key]}).encode()[1:-1]
    return Hostile({**files, CONFIG: b"{" + again + b"," + files[CONFIG].lstrip()[1:]})


@kind
def terminal_escapes(rng: random.Random, files: Files) -> Hostile:
    """In what the refusal must quote."""
    config = json.loads(files[CONFIG])
    text = rng.choice(ESCAPES)
    match rng.randrange(5):
        case 0:
            config["generator"]["kind"] = text
        case 1:
            config["generator"][text] = 1
        case 2:
            config["format"] = text
        case 3:
            config["generator"]["classes"] = [text] * 10
        case 4:
            header, data = unpack(files[MODEL])
            header[text] = header.pop(next(iter(set(header) - {"__metadata__"})))
            return vouched(files, pack(header, data))
    return told(files, config)


@kind
def markup(rng: random.Random, files: Files) -> Hostile:
    config = json.loads(files[CONFIG])
    text = rng.choice(("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "![x](javascript:1)", "[bold]x[/]"))
    config["generator"][rng.choice(("kind", "targets", "storage"))] = text * rng.randint(1, 50)
    return told(files, config)


@kind
def truncated(rng: random.Random, files: Files) -> Hostile:
    model = files[MODEL]
    cut = model[: rng.choice((0, 1, 7, 8, 9, 100, len(model) - 1, rng.randrange(len(model))))]
    return vouched(files, cut) if cut and rng.random() < 0.7 else Hostile({**files, MODEL: cut})


@kind
def header_bombs(rng: random.Random, files: Files) -> Hostile:
    header, data = unpack(files[MODEL])
    match rng.randrange(4):
        case 0:
            length = rng.choice((2**22 + 1, 2**31, 2**63, 2**64 - 1, len(files[MODEL])))
            return vouched(files, length.to_bytes(8, "little") + files[MODEL][8:])
        case 1:
            entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
            header = {f"x{number}": entry for number in range(rng.choice((1000, 40_000)))}
        case 2:
            side = rng.choice((2**20, 2**31, 2**40))
            header = {"generator.x": {"dtype": "F32", "shape": [side] * 2, "data_offsets": [0, 4 * side**2]}}
        case 3:
            header["__metadata__"] = {"dimdata": "x" * rng.choice((10**6, 4 * 10**6))}
    return vouched(files, pack(header, data))


@kind
def wrong_hashes(rng: random.Random, files: Files) -> Hostile:
    config, model = json.loads(files[CONFIG]), bytearray(files[MODEL])
    if rng.random() < 0.5:
        config["weights"]["sha256"] = rng.choice(("0" * 64, "x" * 64, "", hashlib.sha256(b"x").hexdigest()))
    else:
        model[rng.randrange(len(model) // 2, len(model))] ^= 1
    return Hostile({**files, CONFIG: json.dumps(config).encode(), MODEL: bytes(model)})


@kind
def wrong_types(rng: random.Random, files: Files) -> Hostile:
    header, data = unpack(files[MODEL])
    name = rng.choice([name for name in header if name != "__metadata__"])
    header[name]["dtype"] = rng.choice(("F64", "BF16", "F16", "I64", "U8", "C64", "F8_E4M3", "object", "", None, 7))
    return vouched(files, pack(header, data))


@kind
def too_many_of_all(rng: random.Random, files: Files) -> Hostile:
    config = json.loads(files[CONFIG])
    spec = config["generator"]
    match rng.randrange(5):
        case 0:
            spec["classes"] = [str(number) for number in range(rng.choice((100_001, 300_000)))]
        case 1:
            spec["image_shape"] = rng.choice(([64, 4096, 4096], [10**9, 1, 1], [1, 2**40, 2**40]))
        case 2:
            spec["latent"] = rng.choice((2**31, 2**62))
        case 3:
            spec["options"] |= {"width": rng.choice((10**5, 10**9)), "mid": 10**6}
        case 4:
            config["recipe"]["legs"] = config["recipe"]["legs"] * rng.choice((20_000, 60_000))
    return told(files, config)


@kind
def names_of_the_hub(rng: random.Random, files: Files) -> Hostile:
    """A false Hub whose digests and commits are paths, or that leads elsewhere."""
    path = rng.choice(OUTSIDE[:3])
    match rng.randrange(3):
        case 0:
            headers = {"ETag": f'"{path}"', "X-Linked-Etag": f'"{path}"'}
            return Hostile(files, [{"where": "^HEAD .*(config|model)", "what": "headers", "headers": headers}])
        case 1:
            body = json.dumps({"id": "owner/hostile", "sha": path, "siblings": []})
            return Hostile(files, [{"where": "^GET /api/models/", "what": "body", "body": body}])
        case _:
            where = rng.choice(("file:///etc/passwd", "gopher://127.0.0.1:1/", "javascript:alert(1)"))
            return Hostile(files, [{"where": "^HEAD .*model", "what": "headers", "headers": {"Location": where}}])


@kind
def compressed_bombs(rng: random.Random, files: Files) -> Hostile:
    """A small answer that unpacks into a big one."""
    bomb = gzip.compress(bytes(rng.choice((2 * 10**7, 10**8))), 1).hex()
    return Hostile(files, [{"where": rng.choice(("^STORAGE GET", f"^GET .*{CONFIG}")), "what": "packed", "hex": bomb}])
