"""Augmentation: pure in its key, differentiable, and what it says."""

import pytest
import torch

from dimdata.errors import ArgumentError, NotFoundError
from dimdata.students.augment import AUGMENTATIONS, parse

NAMES = list(AUGMENTATIONS)


def batch(count: int = 64, shape: tuple[int, int, int] = (3, 16, 16)) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)) + 0.1


@pytest.mark.parametrize("name", NAMES)
def test_one_key_treats_two_batches_alike(name: str) -> None:
    augment, images = parse(name), batch()
    before = torch.get_rng_state()
    first = augment(images, key=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, augment(images.clone(), key=7))
    assert not torch.equal(first, augment(images, key=8))
    assert not torch.equal(first, images)
    assert first.shape == images.shape
    assert first.dtype == images.dtype


@pytest.mark.parametrize("name", NAMES)
def test_parameters_belong_to_the_number_of_an_image(name: str) -> None:
    augment, images = parse(name), batch()
    whole = augment(images, key=3)
    part = augment(images[20:30], key=3, index=torch.arange(20, 30))
    assert torch.allclose(part, whole[20:30], atol=1e-6)
    alike = augment(images[:1].expand(8, -1, -1, -1), key=3, index=torch.zeros(8, dtype=torch.int64))
    assert torch.allclose(alike, alike[:1].expand_as(alike), atol=1e-6)
    own = augment(images[:1].expand(64, -1, -1, -1), key=3)
    assert not torch.allclose(own, own[:1].expand_as(own))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_right(name: str) -> None:
    images = batch(2, (2, 6, 8)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: parse(name)(x, key=5), images)


def test_all_together_on_odd_shapes() -> None:
    for shape in ((1, 8, 8), (3, 28, 28), (1, 9, 13)):
        out = parse("+".join(NAMES))(batch(5, shape), key=1)
        assert out.shape == (5, *shape)
        assert torch.isfinite(out).all()


def test_flip_mirrors_half_of_the_images() -> None:
    images = batch(400)
    out = parse("flip")(images, key=0)
    kept = (out == images).flatten(1).all(1)
    assert torch.equal(out[~kept], images[~kept].flip(3))
    assert 150 < int(kept.sum()) < 250


def test_crop_moves_by_at_most_an_eighth_and_fills_with_blanks() -> None:
    images = batch(600, (1, 16, 8))
    out = parse("crop")(images, key=0)
    padded = torch.nn.functional.pad(images, (1, 1, 2, 2))
    seen = set()
    for image, moved in zip(padded, out, strict=True):
        places = [
            (top, left)
            for top in range(5)
            for left in range(3)
            if torch.equal(image[:, top : top + 16, left : left + 8], moved)
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 15


def test_cutout_blanks_a_rectangle_of_at_most_half() -> None:
    images = batch(300)
    out = parse("cutout")(images, key=0)
    blank = out[:, 0] == 0
    assert torch.equal(out[:, 0][~blank], images[:, 0][~blank])
    height, width = blank.any(2).sum(1), blank.any(1).sum(1)
    assert torch.equal(blank.sum((1, 2)), height * width)
    assert int(height.max()) == int(width.max()) == 8
    assert int(height.min()) >= 4  # the centre is always inside


def test_color_keeps_order_within_an_image() -> None:
    images = batch(50, (1, 16, 16))
    out = parse("color")(images, key=0)
    assert torch.equal(out.flatten(1).argsort(1), images.flatten(1).argsort(1))
    contrast = out.flatten(1).std(1) / images.flatten(1).std(1)
    assert 0.5 <= float(contrast.min()) < 0.7
    assert 1.3 < float(contrast.max()) <= 1.5
    shift = (out - images).mean((1, 2, 3))
    assert -0.5 <= float(shift.min()) < -0.3
    assert 0.3 < float(shift.max()) <= 0.5


def test_the_dialect_one_takes_one_operation_a_batch() -> None:
    images = batch()
    alone = [parse(name) for name in ("flip", "crop", "color")]
    augment = parse("flip+crop+color", dialect="one")
    chosen = []
    for key in range(40):
        out = augment(images, key)
        fits = [place for place, single in enumerate(alone) if torch.equal(out, single(images, key))]
        assert len(fits) == 1
        chosen += fits
    assert set(chosen) == {0, 1, 2}


def test_each_is_one_after_the_other() -> None:
    images = batch()
    both = parse("flip+crop")(images, key=2)
    assert torch.equal(both, parse("crop")(parse("flip")(images, key=2), key=2))


def test_none_changes_nothing() -> None:
    images = batch()
    for text in ("", "none"):
        assert parse(text)(images, key=1) is images
        assert parse(text, dialect="one")(images, key=1) is images


def test_unknown_words_are_refused() -> None:
    with pytest.raises(NotFoundError, match="flip"):
        parse("flipp+crop")
    with pytest.raises(ArgumentError, match="each or one"):
        parse("flip", dialect="some")
