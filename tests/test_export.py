"""Exports: what other programs read is what the generator draws, whole or not at all, and the same bytes each time."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_network, make_table, recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt  # of rich
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from dimdata import GeneratedDataset, artifact
from dimdata.cli.main import main
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, FormatError, NotFoundError, WorldError
from dimdata.export import export
from dimdata.export.writer import FORMATS, folder_names
from dimdata.generators.base import Generator
from dimdata.generators.table import TableGenerator, table_generator
from dimdata.levers import Levers, Teacher
from dimdata.real import load_real
from dimdata.spec import Spec
from dimdata.students.train import train
from dimdata.tensorfile import TensorFile
from dimdata.wrap import wrap_npz

ALL = sorted(FORMATS)
NAMES = ("zebra", "T-shirt/top", "apple")


def drawn(source: Generator, ipc: int | None, draws: int = 1, **arguments: object) -> tuple[Tensor, Tensor]:
    """What a loader gives in so many passes: images uint8 and targets."""
    dataset = GeneratedDataset(source, ipc, output="uint8", **arguments)
    passes = [batch for _ in range(draws) for batch in DataLoader(dataset, batch_size=7)]
    return torch.cat([images for images, _ in passes]), torch.cat([targets for _, targets in passes])


def table_of(images: Tensor, classes: tuple[str, ...] = NAMES, **arguments: object) -> TableGenerator:
    channels = images.shape[1]
    return table_generator(
        images, classes=classes, mean=(0.5,) * channels, std=(0.25,) * channels, recipe=recipe(), **arguments
    )


def ramp(count: int, channels: int = 1, side: int = 6) -> Tensor:
    """Different uint8 images."""
    values = torch.arange(count * channels * side * side) * 7 % 256
    return values.to(torch.uint8).view(count, channels, side, side)


def soft_table(count: int = 6) -> TableGenerator:
    targets = torch.softmax(torch.arange(count * 3).view(count, 3) * 0.37 % 1.3, dim=1)
    return table_of(ramp(count), targets=targets)


def pixels(data: bytes | Path) -> Tensor:
    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
        array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


def members(folder: Path) -> list[tuple[str, bytes]]:
    found = []
    for shard in sorted(folder.glob("shard-*.tar")):
        with tarfile.open(shard) as tar:
            for info in tar:
                file = tar.extractfile(info)
                assert file is not None
                found.append((info.name, file.read()))
    return found


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- what is written ------------------------------------------------------------------------------------------------


def test_image_folder_gives_the_generators_labels_to_its_readers(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    table = table_of(ramp(12, channels=3))
    export(table, tmp_path / "out")
    images, labels = drawn(table, None)
    theirs = ImageFolder(tmp_path / "out", loader=lambda path: pixels(Path(path)))
    by_number = {int(Path(path).stem): (pixels(Path(path)), label) for path, label in theirs.samples}
    assert sorted(by_number) == list(range(12))
    assert all(torch.equal(by_number[i][0], images[i]) and by_number[i][1] == labels[i] for i in range(12))
    ours = load_real(tmp_path / "out")
    assert ours.train.counts.tolist() == [4, 4, 4]
    for label in range(3):
        assert torch.equal(ours.train.images[ours.train.labels == label], images[labels == label])


def test_grey_images_stay_grey(tmp_path: Path) -> None:
    generator = make_network()
    export(generator, tmp_path / "out", ipc=2)
    images, labels = drawn(generator, 2)
    real = load_real(tmp_path / "out")
    assert real.classes == generator.spec.classes
    assert torch.equal(real.train.images, images[torch.argsort(labels, stable=True)])


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_npz_comes_back_through_wrap(tmp_path: Path, dtype: str) -> None:
    generator = make_network()
    export(generator, tmp_path / "out", format="npz", ipc=3, draws=2, dtype=dtype)
    table = wrap_npz(tmp_path / "out/images.npz")
    images, labels = drawn(generator, 3, draws=2)
    assert table.spec.classes == generator.spec.classes
    assert table.labels(torch.arange(60)).tolist() == labels.tolist()
    if dtype == "uint8":
        assert torch.equal(table.table, images)
        assert torch.equal(load_real(tmp_path / "out/images.npz").train.images, images)
    else:
        exact = [GeneratedDataset(generator, 3)[list(range(30))][0]]
        assert torch.allclose(table.table[:30], exact[0], atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_safetensors_hold_images_and_labels(tmp_path: Path, dtype: str) -> None:
    generator = make_network()
    export(generator, tmp_path / "out", format="safetensors", ipc=3, seed=5, dtype=dtype)
    tensors = load_file(tmp_path / "out/images.safetensors")
    images, labels = drawn(generator, 3, seed=5)
    given = tensors["images"] if dtype == "uint8" else (tensors["images"] * 255).round().to(torch.uint8)
    assert tensors["images"].dtype == getattr(torch, dtype)
    assert torch.equal(given, images)
    assert torch.equal(tensors["labels"], labels)
    with TensorFile(tmp_path / "out/images.safetensors", 2**20) as file:  # laid out and aligned as it should be
        facts = json.loads(file.metadata["dimdata.export"])
        assert torch.equal(file.read()["labels"], labels)
    assert facts["seed"] == 5
    assert facts["classes"] == list(generator.spec.classes)
    assert facts["per_class"] == 3


def test_webdataset_shards_hold_the_draw_in_order(tmp_path: Path) -> None:
    generator = make_network()
    export(generator, tmp_path / "out", format="webdataset", ipc=3, draws=2, shard_size=25)
    assert sorted(p.name for p in tmp_path.glob("out/*.tar")) == [f"shard-00000{i}.tar" for i in range(3)]
    found = members(tmp_path / "out")
    images, labels = drawn(generator, 3, draws=2)
    assert [name for name, _ in found] == [f"{i:05}.{kind}" for i in range(60) for kind in ("png", "cls")]
    assert torch.equal(torch.stack([pixels(data) for name, data in found if name.endswith(".png")]), images)
    assert [int(data) for name, data in found if name.endswith(".cls")] == labels.tolist()


@pytest.mark.parametrize("format", ALL)
def test_soft_targets(tmp_path: Path, format: str) -> None:
    table = soft_table()
    done = export(table, tmp_path / "out", format=format)
    wanted = table.row_targets
    assert wanted is not None
    if format == "folder":
        rows = list(csv.reader((tmp_path / "out/targets.csv").read_text().splitlines()))
        assert rows[0] == ["file", *NAMES]
        for row in rows[1:]:
            number = int(Path(row[0]).stem)
            assert torch.equal(pixels(tmp_path / "out" / row[0]), table.table[number])
            assert torch.equal(torch.tensor([float(value) for value in row[1:]]), wanted[number])
        assert len(rows) == 7
    elif format == "safetensors":
        tensors = load_file(tmp_path / "out/images.safetensors")
        assert torch.equal(tensors["targets"], wanted)
        assert torch.equal(tensors["labels"], wanted.argmax(1))
        assert torch.equal(tensors["images"], table.table)
    elif format == "npz":
        back = wrap_npz(tmp_path / "out/images.npz")
        assert back.row_targets is not None
        order = [int((back.table == image).flatten(1).all(1).nonzero()) for image in table.table]
        assert torch.equal(back.row_targets[order], wanted)
        assert back.spec.classes == NAMES
    else:
        found = [json.loads(data)["targets"] for name, data in members(tmp_path / "out") if name.endswith(".json")]
        assert torch.equal(torch.tensor(found), wanted)
    if format in ("folder", "webdataset"):
        assert any("distributions" in note for note in done.notes)


def test_values_beyond_the_range_are_clipped_and_told_or_kept(tmp_path: Path) -> None:
    images = torch.linspace(-1, 2, 6 * 36).view(6, 1, 6, 6)
    table = table_of(images)
    done = export(table, tmp_path / "clipped", format="npz")
    share = ((images < 0) | (images > 1)).float().mean() * 100
    assert any(f"{share:.2g} %" in note and "-1 to 2" in note and "--dtype" in note for note in done.notes)
    assert f"{share:.2g} %" in (tmp_path / "clipped/README.md").read_text()
    clipped = wrap_npz(tmp_path / "clipped/images.npz").table
    assert torch.equal(clipped, (images.clamp(0, 1) * 255).round().to(torch.uint8))
    kept = export(table, tmp_path / "kept", format="npz", dtype="float32")
    assert not any("clipped" in note for note in kept.notes)
    assert torch.equal(wrap_npz(tmp_path / "kept/images.npz").table, images)
    assert not export(table_of(ramp(6)), tmp_path / "within").notes


def test_stages_and_fixed_draws(tmp_path: Path) -> None:
    export(make_table(), tmp_path / "first", format="npz", stage=1)
    assert torch.equal(wrap_npz(tmp_path / "first/images.npz").table, make_table().table[:10])
    export(make_network(), tmp_path / "fixed", format="npz", ipc=2, draw="fixed")
    assert torch.equal(wrap_npz(tmp_path / "fixed/images.npz").table, drawn(make_network(), 2, draw="fixed")[0])


def test_levers_are_pulled_and_named(tmp_path: Path) -> None:
    export(make_network(), tmp_path / "out", format="npz", ipc=2, levers=Levers(spread=0.5))
    images, _ = drawn(make_network(), 2, levers=Levers(spread=0.5))
    assert torch.equal(wrap_npz(tmp_path / "out/images.npz").table, images)
    assert not torch.equal(images, drawn(make_network(), 2)[0])
    assert "spread=0.5" in (tmp_path / "out/README.md").read_text()


def test_classes_without_images_are_told(tmp_path: Path) -> None:
    done = export(table_of(ramp(2), labels=torch.tensor([0, 2])), tmp_path / "out")
    assert any("T-shirt/top" in note for note in done.notes)
    assert len([p for p in (tmp_path / "out").iterdir() if p.is_dir()]) == 3, "labels keep their numbers"


# --- names of class folders -----------------------------------------------------------------------------------------


def test_plain_names_stay_where_they_are_in_order() -> None:
    assert folder_names(("airplane", "bird", "cat")) == ["airplane", "bird", "cat"]
    assert folder_names(tuple("0123")) == list("0123")
    assert folder_names(NAMES) == ["0_zebra", "1_T-shirt_top", "2_apple"]
    assert folder_names(("test", "train")) == ["0_test", "1_train"], "readers would take them for parts"


@given(st.lists(st.text(max_size=150), min_size=1, max_size=12, unique=True))
@settings(max_examples=200, deadline=None)
def test_folders_are_safe_different_and_in_the_order_of_the_labels(classes: list[str]) -> None:
    names = folder_names(classes)
    assert len(names) == len(classes)
    assert names == sorted(names)
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert name
        assert name[0] not in "._-"
        assert name[-1] not in ". "
        assert not set(name) & set('/\\:*?"<>|\0\n')
        assert len(name.encode()) <= 200


# --- bytes, batches, failures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ALL)
def test_equal_arguments_give_equal_bytes(tmp_path: Path, format: str) -> None:
    generator = make_network()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        export(generator, tmp_path / name, format=format, ipc=2, seed=seed)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a") != content(tmp_path / "c")


class Watched(Generator):
    """A generator of our own that remembers how many images were asked for at once, and may fail."""

    kind = "watched"

    def __init__(self, fails_from: int | None = None) -> None:
        plain = make_network()
        spec = Spec.from_json(plain.spec.to_json() | {"image_shape": (1, 2, 2), "kind": "watched", "options": {}})
        super().__init__(spec, plain.recipe)
        self.fails_from = fails_from

    def _draw(self, latent: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        SEEN.append(len(index))
        if self.fails_from is not None and int(index[0]) >= self.fails_from:
            raise RuntimeError("out of order")
        return latent[:, :4].sigmoid().view(-1, 1, 2, 2), self.labels(index)


SEEN: list[int] = []


@pytest.fixture
def seen() -> Iterator[list[int]]:
    SEEN.clear()
    yield SEEN
    SEEN.clear()


@pytest.mark.parametrize("format", ALL)
def test_images_are_written_as_they_are_drawn(tmp_path: Path, format: str, seen: list[int]) -> None:
    told: list[tuple[int, int]] = []
    done = export(
        Watched(), tmp_path / "out", format=format, ipc=60, draws=2, on_images=lambda *numbers: told.append(numbers)
    )
    assert done.images == sum(seen) == 1200
    assert max(seen) <= 256
    assert [total for _, total in told] == [1200] * len(seen)
    assert [count for count, _ in told] == np.cumsum(seen).tolist()
    assert done.bytes == sum(path.stat().st_size for path in done.folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("format", ALL)
def test_a_failure_leaves_nothing(tmp_path: Path, format: str, seen: list[int]) -> None:
    with pytest.raises(RuntimeError, match="out of order"):
        export(Watched(fails_from=300), tmp_path / "out", format=format, ipc=60)
    assert len(seen) == 3, "it failed half-way"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ALL)
def test_a_full_disk_leaves_nothing_and_is_told(tmp_path: Path, format: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # no file may be longer, the card included
    try:
        with pytest.raises(WorldError, match="out"):
            export(make_network(), tmp_path / "out", format=format, ipc=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_killed_export_leaves_no_folder_of_that_name_and_the_next_one_works(tmp_path: Path) -> None:
    code = (
        "import os, signal\nfrom dimdata.export import export\n"
        "export('dim-mnist', 'out', ipc=60, on_images=lambda *_: os.kill(os.getpid(), signal.SIGKILL))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out").exists()
    assert export("dim-mnist", tmp_path / "out", ipc=1).images == 10


def test_what_is_not_finite_is_not_written(tmp_path: Path) -> None:
    generator = make_network()
    next(generator.parameters()).fill_(torch.inf)
    with pytest.raises(FormatError, match="not finite"):
        export(generator, tmp_path / "out", ipc=1)
    assert not list(tmp_path.iterdir())


# --- what is refused ------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_and_an_empty_one_taken(tmp_path: Path) -> None:
    generator = make_network()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name, what in (("full", "not empty"), ("full/note.txt", "is a file")):
        with pytest.raises(ArgumentError, match=what):
            export(generator, tmp_path / name, ipc=1)
    assert (tmp_path / "full/note.txt").read_text() == "mine"
    assert export(generator, tmp_path / "empty", ipc=1).images == 10
    assert export(generator, tmp_path / "deep/er", ipc=1).folder.is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "folder", "dtype": "float32"}, "8 bits"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"draws": 0}, "draws is 0"),
        ({"draws": 2, "draw": "fixed"}, "the same images"),
        ({"shard_size": True}, "shard_size is True"),
        ({"ipc": None}, "without limit"),
        ({"ipc": 10**9}, "at most are written"),
        ({"stage": 2}, "1 stage"),
        ({"draw": "wet"}, "draw is 'wet'"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        export(make_network(), tmp_path / "out", **{"ipc": 1, **arguments})
    assert not list(tmp_path.iterdir())


def test_stored_images_are_the_same_at_every_draw(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="the same images"):
        export(make_table(), tmp_path / "out", draws=2)


def test_unknown_formats_and_channels(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="webdatset"):
        export(make_network(), tmp_path / "out", format="webdatset", ipc=1)
    two = table_of(ramp(3, channels=2))
    for format in ("folder", "webdataset"):
        with pytest.raises(ArgumentError, match="these images have 2"):
            export(two, tmp_path / "out", format=format)
    export(two, tmp_path / "out", format="safetensors")
    assert torch.equal(load_file(tmp_path / "out/images.safetensors")["images"], two.table)


# --- the card and the command ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ALL)
def test_the_code_on_the_card_loads_what_was_written(tmp_path: Path, format: str) -> None:
    if format == "webdataset":
        pytest.importorskip("webdataset")
    generator = make_network()
    export(generator, tmp_path / "out", format=format, ipc=2)
    card = (tmp_path / "out/README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(tmp_path / "out"))
    names: dict[str, object] = {}
    exec(code, names)
    loaded = list(names["dataset"])  # type: ignore[call-overload]
    assert len(loaded) == 20
    dataset = GeneratedDataset(generator, 2)
    images, labels = dataset[list(range(20))]
    images = dataset.normalize((images * 255).round() / 255)
    order = torch.argsort(labels, stable=True) if format == "folder" else torch.arange(20)
    assert torch.allclose(torch.stack([image for image, _ in loaded]), images[order], atol=1e-5)
    assert [int(label) for _, label in loaded] == labels[order].tolist()


def test_the_card_tells_where_the_images_come_from(tmp_path: Path) -> None:
    done = export("dim-mnist", tmp_path / "out", format="webdataset", ipc=3, draws=2, seed=7, shard_size=20)
    card = (done.folder / "README.md").read_text()
    config = artifact.read_config(artifact.resolve("dim-mnist"))
    assert card.startswith("---\nlicense: cc-by-sa-3.0\n")
    for text in (
        "60 images",
        "| images per class | 6 |",
        "| seed | 7 |",
        "epochs 0 to 1",
        config.weights.sha256,
        "CC BY-SA 3.0",
        "0.1307",
        "dimdata export dim-mnist --ipc 3 --draws 2 --seed 7 --format webdataset --shard-size 20 -o FOLDER",
    ):
        assert text in card, text


@pytest.mark.parametrize("dataset", ["x\n```\n```python\nimport os", "a\nb", "mnist --hostile", "`````"])
@pytest.mark.parametrize("format", ALL)
def test_the_dataset_of_a_hostile_generator_adds_no_code(tmp_path: Path, format: str, dataset: str) -> None:
    def blocks(name: str, dataset: str) -> list[str]:
        export(table_of(ramp(6), dataset=dataset), tmp_path / name, format=format)
        tokens = MarkdownIt().parse((tmp_path / name / "README.md").read_text())
        return [token.content for token in tokens if token.type in ("fence", "code_block")]

    assert blocks("hostile", dataset) == blocks("plain", "")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "dim-mnist", "--ipc", "1", "--format", "npz", "-o", str(tmp_path / "a"), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["images"] == 10
    assert done["folder"] == str(tmp_path / "a")
    assert main(["export", "dim-mnist", "--ipc", "1", "--format", "npz", "-o", str(tmp_path / "a")]) == 2
    assert "is not empty" in capsys.readouterr().err
    words = ["export", "dim-mnist", "-o", str(tmp_path / "b"), "--levers", "spread=0.8"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(tmp_path / "b")
    assert "100 images" in captured.err, "ten of each class unless asked otherwise"
    assert main([*words[:3], str(tmp_path / "c"), "--levers", "spred=0.8"]) == 2
    assert "spread" in capsys.readouterr().err


def test_a_folder_is_told_by_what_it_is_and_not_by_where(tmp_path: Path) -> None:
    folder = artifact.save(table_of(ramp(6)), tmp_path / "secret" / "place")
    for format in ALL:
        done = export(str(folder), tmp_path / format, format=format)
        for path in done.folder.rglob("*"):
            assert path.is_dir() or b"secret" not in path.read_bytes(), path
    assert "dimdata export ./GENERATOR " in (tmp_path / ALL[0] / "README.md").read_text()
    made = train("convnet1-w8", str(folder), limit_steps=1, engine=Engine.of("cpu", "fp32", "off"))
    assert "secret" not in made.info.generator
    older = dataclasses.replace(made.info, generator="/home/somebody/secret")
    assert "secret" not in Teacher(made.network, older).describe()
