"""Published sets become tables: layouts, labels, order, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dimdata import artifact
from dimdata.errors import ArgumentError, DataError, DimdataError, NotFoundError
from dimdata.recipe import Leg, Recipe
from dimdata.wrap import wrap_npz

GREY = (np.arange(6 * 20) * 2 % 256).astype(np.uint8).reshape(6, 4, 5)
COLOUR = np.stack([GREY, GREY // 2, 255 - GREY], axis=3)  # [N, H, W, C]
BALANCED = np.array([0, 0, 1, 1, 2, 2])


def save(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "set.npz", **arrays)
    return folder / "set.npz"


@pytest.mark.parametrize(
    ("images", "shape"),
    [(GREY, (1, 4, 5)), (GREY[..., None], (1, 4, 5)), (GREY[:, None], (1, 4, 5)), (COLOUR, (3, 4, 5))],
)
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y")])
def test_layouts_and_types(
    tmp_path: Path, images: Any, shape: tuple[int, ...], kind: Any, names: tuple[str, str]
) -> None:
    values = images if kind == np.uint8 else (images / 255).astype(kind)
    table = wrap_npz(save(tmp_path, **{names[0]: values, names[1]: BALANCED}))
    assert table.spec.image_shape == shape
    assert table.spec.storage == ("uint8" if kind == np.uint8 else "float32")
    assert table.spec.classes == ("0", "1", "2")
    assert table.spec.method == "wrapped"
    drawn, labels = table.draw(torch.empty(6, 0), torch.arange(6))
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    expected = torch.from_numpy(images[[0, 2, 4, 1, 3, 5]].astype(np.float32) / 255).reshape(6, *images.shape[1:])
    if shape[0] == 3:
        expected = expected.permute(0, 3, 1, 2)
    assert torch.allclose(drawn, expected.reshape(6, *shape), atol=1e-6)


def test_channels_first_colour(tmp_path: Path) -> None:
    first = wrap_npz(save(tmp_path, images=COLOUR.transpose(0, 3, 1, 2), labels=BALANCED))
    last = wrap_npz(save(tmp_path, images=COLOUR, labels=BALANCED))
    assert torch.equal(first.table, last.table)


def test_unbalanced_sets_keep_their_labels(tmp_path: Path) -> None:
    table = wrap_npz(save(tmp_path, images=GREY, labels=np.array([2, 2, 2, 0, 1, 2], dtype=np.uint8)))
    assert table.labels(torch.arange(6)).tolist() == [0, 1, 2, 2, 2, 2], "slot by slot, each class in turn"
    assert torch.equal(table.table[:, 0], torch.from_numpy(GREY)[[3, 4, 0, 1, 2, 5]])


def test_soft_targets(tmp_path: Path) -> None:
    targets = np.eye(3, dtype=np.float64)[BALANCED] * 0.7 + 0.1
    table = wrap_npz(save(tmp_path, x=GREY, targets=targets))
    assert table.spec.targets == "soft"
    drawn = table.draw(torch.empty(6, 0), torch.arange(6))[1]
    assert drawn.argmax(1).tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.allclose(drawn, torch.from_numpy(targets[[0, 2, 4, 1, 3, 5]]).float())


def test_facts_and_recipe(tmp_path: Path) -> None:
    path = save(tmp_path, images=COLOUR, labels=BALANCED)
    plain = wrap_npz(path, dataset="cifar10")
    assert plain.spec.dataset == "cifar10"
    for channel in range(3):
        values = COLOUR[..., channel] / 255
        assert plain.spec.mean[channel] == pytest.approx(values.mean(), abs=1e-5)
        assert plain.spec.std[channel] == pytest.approx(values.std(), abs=1e-5)
    leg = plain.recipe.legs[0]
    assert (leg.epochs, leg.batch_size, leg.lr, leg.momentum, leg.weight_decay) == (1000, 6, 0.01, 0.9, 5e-4)
    own = Recipe(legs=(Leg(steps=5, batch_size=2),))
    given = wrap_npz(path, classes=("a", "b", "c", "d"), mean=(0.1, 0.2, 0.3), std=(1, 1, 1), recipe=own)
    assert given.spec.classes == ("a", "b", "c", "d")
    assert given.spec.mean == (0.1, 0.2, 0.3)
    assert given.recipe == own
    flat = wrap_npz(save(tmp_path, images=np.full((2, 4, 4), 7, np.uint8), labels=np.array([0, 1])))
    assert flat.spec.std == (1.0,), "constant images are not divided by zero"


def test_a_wrapped_set_survives_the_folder(tmp_path: Path) -> None:
    table = wrap_npz(save(tmp_path, images=GREY, labels=np.array([2, 2, 2, 0, 1, 2])))
    loaded = artifact.load(artifact.save(table, tmp_path / "g"))
    assert torch.equal(loaded.stored()["table"], table.table)
    assert torch.equal(loaded.labels(torch.arange(6)), table.labels(torch.arange(6)))


def with_nan() -> Any:
    images = GREY / 255
    images[3, 1, 1] = np.nan
    return images


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": BALANCED}, "no array called images or x"),
        ({"images": GREY}, "either labels or y or targets"),
        ({"images": GREY, "labels": BALANCED, "targets": np.eye(6)}, "either labels or y or targets"),
        ({"images": GREY, "labels": BALANCED[:5]}, "6 images but 5 labels"),
        ({"images": GREY, "targets": np.eye(3)}, "6 images but 3 labels"),
        ({"images": GREY.astype(object), "labels": BALANCED}, "Python objects"),
        ({"images": GREY, "labels": BALANCED.astype(object)}, "Python objects"),
        ({"images": GREY.astype(np.int64), "labels": BALANCED}, "images are int64"),
        ({"images": with_nan(), "labels": BALANCED}, "images have values that are not finite"),
        ({"images": np.full((6, 4, 4), 1e300), "labels": BALANCED}, "not finite"),
        ({"images": GREY.astype(np.float32), "labels": BALANCED}, "run from 0 to 238"),
        ({"images": GREY[:, :, 0], "labels": BALANCED}, r"shape \[6, 4\]"),
        ({"images": GREY[:0], "labels": BALANCED[:0]}, r"shape \[0, 1, 4, 5\]"),
        ({"images": np.zeros((6, 2, 4, 4), np.uint8), "labels": BALANCED}, "neither 1 nor 3"),
        ({"images": np.zeros((6, 3, 4, 3), np.uint8), "labels": BALANCED}, "first or last"),
        ({"images": np.zeros((1, 1, 5000, 2), np.uint8), "labels": [0]}, "sides"),
        ({"images": GREY, "labels": BALANCED - 1}, "run from -1"),
        ({"images": GREY, "labels": BALANCED * 10**6}, "run from 0 to 2000000"),
        ({"images": GREY, "labels": np.array([2**64 - 1] * 6, np.uint64)}, "run from"),
        ({"images": GREY, "labels": BALANCED / 1}, "not integers"),
        ({"images": GREY, "labels": np.eye(6, dtype=np.int64)}, r"shape \[6, 6\]"),
        ({"images": GREY, "targets": np.full((6, 3), np.inf)}, "targets have values that are not finite"),
        ({"images": GREY, "targets": np.ones((6, 3), np.int64)}, "targets are int64"),
        ({"images": GREY, "targets": np.array([[9.0, -8.0, 0.0]] * 6)}, "targets are no distributions"),
        ({"images": GREY, "targets": np.full((6, 3), 0.5)}, "targets are no distributions"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        wrap_npz(save(tmp_path, **arrays))


@pytest.mark.parametrize(
    "arguments",
    [
        {"classes": ("a", "b")},
        {"classes": ("a", "b", "b")},
        {"mean": (0.1, 0.2)},
        {"mean": (float("nan"),)},
        {"std": (0.0,)},
        {"std": ()},
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(DimdataError) as caught:
        wrap_npz(save(tmp_path, images=GREY, labels=BALANCED), **arguments)
    assert caught.value.exit_code == 2


def test_images_that_are_stored_normalised_come_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.15)
    values = COLOUR.astype(np.float32) / 255
    path = save(tmp_path, images=(values - np.array(mean)) / np.array(std), labels=BALANCED)
    told = wrap_npz(path, mean=mean, std=std, normalized=True)
    plain = wrap_npz(save(tmp_path, images=values, labels=BALANCED), mean=mean, std=std)
    assert torch.allclose(told.table, plain.table, atol=1e-6)
    assert (told.spec.mean, told.spec.std) == (plain.spec.mean, plain.spec.std) == (mean, std)
    assert not caplog.records


def test_images_that_seem_normalised_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = (GREY / 255 - 0.5) / 0.25
    wrap_npz(save(tmp_path, images=values.astype(np.float32), labels=BALANCED))
    assert "--normalized" in caplog.text
    with pytest.raises(ArgumentError, match="normalised by is not known"):
        wrap_npz(save(tmp_path, images=values.astype(np.float32), labels=BALANCED), normalized=True)
    with pytest.raises(ArgumentError, match="uint8"):
        wrap_npz(save(tmp_path, images=GREY, labels=BALANCED), mean=(0.5,), std=(0.25,), normalized=True)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        wrap_npz(tmp_path / "absent.npz")
    path = save(tmp_path, images=GREY, labels=BALANCED)
    data = path.read_bytes()
    for damaged in (b"", b"text", data[:100], data[:-50], data[:200] + b"\xff" * 40 + data[240:], b"\x80\x04K\x01."):
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            wrap_npz(path)
    for header in (b"(", b"  {\n a", b"-" * 3000 + b"1"):
        with zipfile.ZipFile(path, "w") as archive:
            text = header + b" " * (3200 - len(header)) + b"\n"
            archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
        with pytest.raises(DataError, match="not a readable"):
            wrap_npz(path)
    for place, value in ((8, b"\x63\x00"), (6, b"\x01\x00")):  # a method that nobody knows; a password
        damaged = bytearray(data)
        for mark, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
            at = -1
            while (at := damaged.find(mark, at + 1)) >= 0:
                damaged[at + place + shift : at + place + shift + 2] = value
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not a readable"):
            wrap_npz(path)
    np.save(tmp_path / "one.npy", GREY)
    with pytest.raises(DataError, match="no named arrays"):
        wrap_npz(tmp_path / "one.npy")
