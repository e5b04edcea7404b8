"""Real data: its sources and its checks."""

from __future__ import annotations

import dataclasses
import gzip
import io
import struct
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from dimdata.errors import ArgumentError, DataError, DimdataError, NotFoundError, WorldError
from dimdata.real import Batches, RealData, load_real, names, random_real, require_classes, validation_split
from dimdata.recipe import Leg, Recipe


def write_image(path: Path, size: tuple[int, int] = (6, 5), mode: str = "L", value: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "I;16") else (value, 2, 3)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for part in ("train", "test"):
        for k, name in enumerate(("ant", "bee")):
            for i in range(3):
                write_image(root / part / name / f"{i}.png", value=10 * k + i)
    return root


# ---------------------------------------------------------------- sources


def test_digits_needs_no_download() -> None:
    real = load_real("digits", root="/nowhere", download=False)
    assert real.image_shape == (1, 8, 8)
    assert real.test is not None
    assert (len(real.train), len(real.test)) == (1297, 500)
    assert real.test.counts.tolist() == [50] * 10
    assert int(real.train.images.max()) == 255
    assert real.licence == "cc-by-4.0"
    assert real.classes == tuple("0123456789")
    pixels = real.train.images.double() / 255
    assert real.mean[0] == pytest.approx(float(pixels.mean()), abs=1e-12)
    assert real.std[0] == pytest.approx(float(pixels.std(correction=0)), abs=1e-12)
    # A nearest-neighbour classifier is only right where labels belong to their images.
    distance = torch.cdist(real.test.images.flatten(1).float(), real.train.images.flatten(1).float())
    assert float((real.train.labels[distance.argmin(1)] == real.test.labels).float().mean()) > 0.97


def test_another_default_device_changes_nothing() -> None:
    real = load_real("digits")
    recipe = Recipe(legs=(Leg(epochs=1, batch_size=10),))
    expected = random_real(real, 2, 0, recipe), Batches(validation_split(real).train, "cpu", 0, 20)
    torch.set_default_device("meta")
    try:
        again = load_real("digits")
        found = random_real(again, 2, 0, recipe), Batches(validation_split(again).train, "cpu", 0, 20)
        batches = found[1].at(3), found[1].matched(found[1].labels_at(3), 3, "x")
    finally:
        torch.set_default_device(None)
    assert again.fingerprint == real.fingerprint
    assert torch.equal(found[0].table, expected[0].table)
    for one, other in zip(
        batches, (expected[1].at(3), expected[1].matched(expected[1].labels_at(3), 3, "x")), strict=True
    ):
        assert torch.equal(one[0], other[0])


def test_fingerprint_is_of_the_training_part() -> None:
    real = load_real("digits")
    assert real.fingerprint == load_real("DIGITS").fingerprint
    assert len(real.fingerprint) == 64
    assert real.fingerprint.startswith("5469e3a54d19")  # the split and its images are fixed for good
    assert validation_split(real).fingerprint != real.fingerprint
    changed = real.train.images.clone()
    changed[5, 0, 3, 3] ^= 1
    assert RealData.from_arrays(changed, real.train.labels).fingerprint != real.fingerprint


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(root: Path) -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 30), ("t10k", 20)):
        images = np.arange(n)[:, None, None] * np.ones((1, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(n) % 10))
    return raw


def test_torchvision_files_are_read_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_mnist(tmp_path)
    monkeypatch.setenv("DIMDATA_DATA", str(tmp_path))
    real = load_real("mnist")
    assert real.test is not None
    assert (len(real.train), len(real.test), real.image_shape) == (30, 20, (1, 28, 28))
    assert (real.mean, real.std) == ((0.1307,), (0.3081,))
    assert int(real.train.images[17, 0, 3, 3]) == 17
    assert int(real.train.labels[17]) == 7
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03 not idx")
    with pytest.raises(DataError, match=r"MNIST below .* damaged"):
        load_real("mnist")


def test_absent_files_and_failed_downloads_say_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError, match="train-images-idx3-ubyte"):
        load_real("mnist", root=tmp_path, download=False)
    assert not list(tmp_path.iterdir())

    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    for name in ("mnist", "cifar10"):
        with pytest.raises(WorldError, match="could not be downloaded") as caught:
            load_real(name, root=tmp_path)
        assert caught.value.exit_code == 1
        assert str(tmp_path) in caught.value.hint
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install scipy"):  # before 400 MB are downloaded in vain
        load_real("svhn", root=tmp_path)


def test_folder_with_train_and_test(photos: Path) -> None:
    (photos / "train" / "ant" / "notes.txt").write_text("not an image")
    (photos / "train" / "ant" / "._0.png").write_bytes(b"resource fork")
    real = load_real(photos)
    assert real.name == "photos"
    assert real.classes == ("ant", "bee")
    assert real.image_shape == (1, 5, 6)
    assert real.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert real.train.images[:, 0, 4, 5].tolist() == [0, 1, 2, 10, 11, 12]
    assert real.test is not None
    assert len(real.test) == 6


def test_folder_of_classes_and_a_separate_test_folder(photos: Path) -> None:
    write_image(photos / "train" / "bee" / "deep" / "colour.jpg", mode="RGB")
    real = load_real(str(photos / "train"), test=photos / "test")
    assert real.image_shape == (3, 5, 6)  # one colour image makes all of them RGB
    assert len(real.train) == 7
    assert real.test is not None
    assert len(real.test) == 6
    assert load_real(photos / "train").test is None


def test_val_stands_in_for_test(photos: Path) -> None:
    (photos / "test").rename(photos / "val")
    assert load_real(photos).test is not None


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("training", "testing"), ("TRAIN", "Validation")])
def test_parts_may_be_called_otherwise(photos: Path, train: str, test: str) -> None:
    (photos / "train").rename(photos / train)
    (photos / "test").rename(photos / test)
    real = load_real(photos)
    assert real.classes == ("ant", "bee")
    assert real.test is not None


def test_all_images_that_cannot_be_read_are_told_at_once(photos: Path) -> None:
    ants = photos / "train" / "ant"
    (ants / "0.png").write_bytes(b"none")
    with pytest.raises(DataError, match=r"The image .*0\.png cannot be read"):
        load_real(photos)
    (ants / "1.png").write_bytes(b"nor this")
    with pytest.raises(DataError, match=r"2 of 12 images cannot be read: .*0\.png, .*1\.png"):
        load_real(photos)
    for number in (0, 1):  # whose headers are whole
        write_image(ants / f"{number}.png", size=(60, 50))
        whole = (ants / f"{number}.png").read_bytes()
        (ants / f"{number}.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"2 of 6 images cannot be read"):
        load_real(photos, size=8)


def test_photographs_stand_upright(tmp_path: Path) -> None:
    """A camera held on its side stores turned pixels and says so."""
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, :8] = 255
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        upright.save(tmp_path / name / "0.jpg", quality=100)
        upright.rotate(90, expand=True).save(tmp_path / name / "1.jpg", quality=100, exif=exif)
    real = load_real(tmp_path)
    assert real.image_shape == (1, 8, 16)
    assert (real.train.images[0].int() - real.train.images[1].int()).abs().max() < 3


def test_files_that_are_no_images_are_counted(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.heic", "b.HEIC", "c.gif", ".hidden"):
        (photos / "train" / "ant" / name).write_bytes(b"")
    assert len(load_real(photos).train) == 6
    (message,) = [record.getMessage() for record in caplog.records]
    assert "3 files" in message
    assert "2 of .heic, 1 of .gif" in message


def test_classes_of_other_names_are_refused() -> None:
    digits = load_real("digits")
    spec = random_real(digits, 1, 0, Recipe(legs=(Leg(epochs=1, batch_size=10),))).spec

    def named(*classes: str, name: str = "mine") -> RealData:
        return dataclasses.replace(digits, classes=classes, name=name)

    require_classes(spec, digits)
    require_classes(spec, named(*"abcdefghij"))  # the digits' own names only count
    letters = dataclasses.replace(spec, classes=tuple("abcdefghij"), dataset="mine")
    require_classes(letters, named(*"ABCDEFGHIJ"))
    require_classes(letters, digits)
    for classes in ("klmnopqrst", "bacdefghij"):
        with pytest.raises(DataError, match=f"The classes of mine are {classes[0]}, {classes[1]}"):
            require_classes(letters, named(*classes))
    with pytest.raises(DataError, match="fashion-mnist"):
        require_classes(spec, named(*"abcdefghij", name="fashion-mnist"))


def test_size_resizes_and_crops_from_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 4:20] = 200
    for name in ("a", "b"):
        write_image(tmp_path / name / "0.png", size=(4, 4))
        Image.fromarray(wide).save(tmp_path / name / "1.png")
    real = load_real(tmp_path, size=4)
    assert real.image_shape == (1, 4, 4)
    assert real.train.images[1].unique().tolist() == [200]
    assert load_real(tmp_path, size=(4, 8)).image_shape == (1, 4, 8)
    with pytest.raises(ArgumentError, match="size"):
        load_real(tmp_path, size=0)


def test_sixteen_bit_images_are_scaled(tmp_path: Path) -> None:
    for k, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((3, 3), 257 * (k + 100), np.uint16)).save(tmp_path / name / "0.png")
    assert load_real(tmp_path).train.images[:, 0, 0, 0].tolist() == [100, 101]


@pytest.mark.parametrize(
    "keys",
    [
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("x_train", "y_train", "x_test", "y_test"),
        ("images", "labels"),
    ],
)
def test_npz(tmp_path: Path, keys: tuple[str, ...]) -> None:
    images = np.arange(6 * 5 * 4 * 3, dtype=np.uint8).reshape(6, 5, 4, 3)
    labels = np.array([[0], [1], [2]] * 2, np.uint8)
    np.savez(tmp_path / "own.npz", **dict(zip(keys, (images, labels) * 2, strict=False)), classes=np.array(list("xyz")))
    real = load_real(tmp_path / "own.npz")
    assert (real.name, real.classes, real.image_shape) == ("own", ("x", "y", "z"), (3, 5, 4))
    assert real.train.labels.dtype == torch.int64
    assert np.array_equal(real.train.images.permute(0, 2, 3, 1).numpy(), images)
    assert (real.test is None) == (len(keys) == 2)
    again = load_real(tmp_path / "own.npz", test=tmp_path / "own.npz")
    assert again.test is not None
    assert torch.equal(again.test.images, real.train.images)


def test_unknown_names_and_paths() -> None:
    with pytest.raises(NotFoundError, match="Did you mean fashion-mnist"):
        load_real("fashion_mnist")
    with pytest.raises(NotFoundError, match="cifar10"):
        load_real("CIFAR-10")
    for missing in ("./absent", Path("absent"), "absent.npz", "a/b"):
        with pytest.raises(NotFoundError, match="no folder or file"):
            load_real(missing)
    with pytest.raises(NotFoundError):
        load_real("")
    with pytest.raises(ArgumentError, match="from_arrays"):
        load_real(3)  # type: ignore[arg-type]
    assert "digits" in names()


# ---------------------------------------------------------------- bad input


def test_bad_folders_are_named(photos: Path) -> None:
    train = photos / "train"
    odd = write_image(train / "bee" / "odd.png", size=(9, 5))
    with pytest.raises(DataError, match=r"differ in size: .*odd\.png is 5x9, .*0\.png is 5x6\. .*size=32"):
        load_real(photos)
    assert load_real(photos, size=5).image_shape == (1, 5, 5)
    odd.write_bytes(b"\x89PNG nonsense")
    with pytest.raises(DataError, match=r"odd\.png cannot be read"):
        load_real(photos)
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 6), np.uint8)).save(noise, "PNG")
    odd.write_bytes(noise.getvalue()[:-30])  # its header is whole
    with pytest.raises(DataError, match=r"odd\.png cannot be read"):
        load_real(photos)
    odd.unlink()
    (train / "wasp").mkdir()
    with pytest.raises(DataError, match=r"class folder .*wasp holds no images"):
        load_real(photos)
    (train / "wasp").rmdir()
    write_image(photos / "test" / "hornet" / "0.png")
    with pytest.raises(DataError, match="'hornet', which the training images have not"):
        load_real(photos)


def test_folders_without_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images in"):
        load_real(tmp_path)
    write_image(tmp_path / "0.png")
    with pytest.raises(DataError, match="no folders of classes"):
        load_real(tmp_path)
    write_image(tmp_path / "only" / "0.png")
    with pytest.raises(DataError, match="1 class; at least 2"):
        load_real(tmp_path)


def test_huge_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        write_image(tmp_path / name / "0.png", size=(5000, 1))
    with pytest.raises(DataError, match="1x5000; sides of up to 4096"):
        load_real(tmp_path)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"2 of 2 images cannot be read: .*0\.png.* The first: .*exceeds limit"):
        load_real(tmp_path, size=4)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr("dimdata.real.folder._memory", lambda: 20.0)
    with pytest.raises(DataError, match="memory"):
        load_real(tmp_path, size=4)


IMAGES = np.zeros((4, 5, 5), np.uint8)
LABELS = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES.astype(np.float32)}, "float32; uint8"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "no images"),
        ({"images": IMAGES[:3]}, "3 images .* labels of the shape"),
        ({"images": IMAGES[0]}, r"shape \(5, 5\)"),
        ({"images": IMAGES.astype(object)}, "array of objects"),
        ({"images": np.zeros((4, 1, 1, 5000), np.uint8)}, "1x1x5000"),
        ({"images": np.zeros((4, 1, 0, 5), np.uint8)}, "1x0x5"),
        ({"images": "cats"}, "no array of numbers"),
        ({"labels": LABELS.astype(np.float64)}, "float64; integers"),
        ({"labels": LABELS.astype(bool)}, "bool; integers"),
        ({"labels": np.eye(4, dtype=np.int64)}, "labels of the shape"),
        ({"labels": LABELS - 1}, "run from -1 to 0"),
        ({"labels": LABELS * 10**15}, "run from 0 to 1000000000000000"),
        ({"labels": LABELS * 2}, r"Class 1 \(1\) of mine has no training image"),
        ({"labels": LABELS * 0}, "1 class; at least 2"),
        ({"labels": LABELS * 2, "classes": ["a", "b"]}, "run from 0 to 2, not 0 to 1"),
        ({"classes": ["a", "b", "c"]}, r"Class 2 \(c\)"),
        ({"classes": ["a", "a"]}, "'a' twice"),
        ({"test_images": IMAGES}, "no test labels"),
        ({"test_images": IMAGES[:, :4], "test_labels": LABELS}, "1x4x5, training images 1x5x5"),
        ({"test_images": IMAGES, "test_labels": LABELS + 1}, "the test part of mine run from 1 to 2"),
    ],
)
def test_bad_arrays(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        RealData.from_arrays(**{"images": IMAGES, "labels": LABELS, "name": "mine"} | changes)
    assert caught.value.hint


def test_arrays_are_not_changed_and_layouts_are_understood() -> None:
    frozen = IMAGES.copy()
    frozen.flags.writeable = False
    assert RealData.from_arrays(frozen, LABELS).image_shape == (1, 5, 5)
    assert RealData.from_arrays(np.zeros((4, 32, 30, 3), np.uint8), LABELS).image_shape == (3, 32, 30)
    assert RealData.from_arrays(torch.zeros(4, 3, 32, 30, dtype=torch.uint8), LABELS).image_shape == (3, 32, 30)
    assert RealData.from_arrays(np.zeros((4, 5, 5), np.uint8), LABELS).std == (1 / 255,)  # never 0


def test_damaged_and_misnamed_npz(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_text("<html>moved</html>")
    with pytest.raises(DataError, match=r"x\.npz is no \.npz file"):
        load_real(path)
    with path.open("wb") as file:
        np.save(file, np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"x\.npz is a single array"):
        load_real(path)
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.savez_compressed(path, train_images=images, train_labels=np.arange(20) % 2)
    whole, refused = path.read_bytes(), 0
    for place in range(60, len(whole) - 60, 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            load_real(path)
        except DataError as error:
            refused += "x.npz" in str(error)
    assert refused > 20


def test_bad_npz(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for arrays, message in (
        ({"images": IMAGES, "labels": np.array([0, "a", None, 1], object)}, "Python objects"),
        ({"pictures": IMAGES}, "holds pictures"),
        ({"images": IMAGES}, "holds images but not labels"),
        ({"images": IMAGES, "labels": LABELS, "x_test": IMAGES}, "holds x_test but not y_test"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=message):
            load_real(path)
    np.savez(path, images=np.random.default_rng(0).integers(0, 255, (4, 50, 50), np.uint8), labels=LABELS)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[3000] ^= 255
    for content in (b"", b"PK\x03\x04", whole[: len(whole) // 2], bytes(damaged), gzip.compress(b"x")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.npz"):
            load_real(path)
    (tmp_path / "table.csv").write_text("1,2")
    with pytest.raises(DataError, match="neither a folder"):
        load_real(tmp_path / "table.csv")


def test_errors_are_ours_and_the_import_is_lean() -> None:
    for bad in (3.5, None, b"mnist"):
        with pytest.raises(DimdataError):
            load_real(bad)  # type: ignore[arg-type]
    code = "import dimdata.real, sys; assert not {'torchvision', 'PIL'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_data_of_ones_own_are_never_called_like_a_known_dataset(photos: Path, tmp_path: Path) -> None:
    named = photos.rename(tmp_path / "MNIST")
    assert load_real(named).name == "MNIST-folder"
    np.savez(tmp_path / "cifar10.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4) % 2)
    assert load_real(tmp_path / "cifar10.npz").name == "cifar10-npz"
    np.savez(tmp_path / "birds.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4) % 2)
    assert load_real(tmp_path / "birds.npz").name == "birds"
