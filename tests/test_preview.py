from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from conftest import make_network, recipe
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from dimdata.errors import ArgumentError, FormatError
from dimdata.generators.base import Generator
from dimdata.generators.table import TableGenerator, table_generator
from dimdata.preview import grid, png


def make_colours(rows: int, classes: int, channels: int = 3, labels: Tensor | None = None) -> TableGenerator:
    """Row i is of one brightness, i / rows, so that each cell of a grid tells its row."""
    values = (torch.arange(rows) / rows)[:, None, None, None].expand(rows, channels, 4, 4)
    return table_generator(
        values.contiguous(),
        labels=labels,
        classes=tuple(map(str, range(classes))),
        mean=(0.5,) * channels,
        std=(0.2,) * channels,
        recipe=recipe(),
    )


def cells(image: Image.Image, rows: int, columns: int) -> list[list[float]]:
    """The brightness at the centre of each cell, in [0, 1]."""
    width, height = image.width / columns, image.height / rows
    grey = image.convert("L")
    return [
        [grey.getpixel((int((c + 0.5) * width), int((r + 0.5) * height))) / 255 for c in range(columns)]  # type: ignore[operator]
        for r in range(rows)
    ]


def test_columns_are_classes() -> None:
    image = grid(make_colours(12, 3))
    shown = cells(image, 4, 3)
    assert shown == [[pytest.approx((r * 3 + c) / 12, abs=0.01) for c in range(3)] for r in range(4)]
    assert 500 <= image.width <= 700


def test_columns_are_classes_where_labels_are_stored_and_absent_images_blank() -> None:
    image = grid(make_colours(5, 3, labels=torch.tensor([1, 1, 0, 1, 2])), rows=2)
    found = cells(image, 2, 3)
    expected = [[2 / 5, 0 / 5, 4 / 5], [1.0, 1 / 5, 1.0]]
    assert found == [[pytest.approx(value, abs=0.01) for value in row] for row in expected]


def test_a_generator_with_fewer_images_than_classes() -> None:
    image = grid(make_colours(2, 5))
    assert cells(image, 1, 5)[0][2:] == [1.0, 1.0, 1.0]


def test_network_grids_are_large_enough_to_see(network_generator: Generator) -> None:
    image = grid(network_generator)
    assert image.mode in ("L", "RGB")
    assert (image.width, image.height) == (582, 582)
    assert grid(network_generator, rows=2, columns=3).width > image.width * 0.9
    colour = grid(make_network(image_shape=(3, 32, 32)), rows=1)
    assert colour.mode == "RGB"
    assert colour.width > 600


def test_draws_follow_the_seed(network_generator: Generator) -> None:
    def data(**arguments: Any) -> bytes:
        return grid(network_generator, rows=2, columns=2, **arguments).tobytes()

    assert data() == data()
    assert data() != data(seed=1)


def test_twenty_classes_at_most_unless_asked() -> None:
    many = make_colours(60, 30)
    assert cells(grid(many, rows=1), 1, 20)[0][19] == pytest.approx(19 / 60, abs=0.01)
    assert cells(grid(many, rows=1, columns=30), 1, 30)[0][29] == pytest.approx(29 / 60, abs=0.01)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels(channels: int) -> None:
    assert grid(make_colours(4, 2, channels)).mode in ("L", "RGB")


def test_values_beyond_the_range_are_brought_back_by_one_line() -> None:
    images = torch.tensor([-3.0, 0.5, 4.0])[:, None, None, None].expand(3, 1, 4, 4).contiguous()
    generator = table_generator(images, classes=("a", "b", "c"), mean=(0.5,), std=(1.0,), recipe=recipe())
    assert cells(grid(generator), 1, 3) == [[0.0, pytest.approx(0.5, abs=0.01), 1.0]]


def test_a_few_outliers_do_not_turn_the_picture_grey() -> None:
    images = torch.linspace(0, 1, 1600).view(1, 1, 40, 40).clone()
    images[0, 0, 0, :3] = -50.0
    generator = table_generator(images, classes=("a",), mean=(0.5,), std=(1.0,), recipe=recipe())
    shown = pil_to_tensor(grid(generator)).to(torch.float32)
    assert shown.std() > 60  # of 255; evenly spread values have 74


@pytest.mark.filterwarnings("error")
def test_draws_that_are_not_finite_are_refused(network_generator: Generator) -> None:
    list(network_generator.parameters())[-1].fill_(torch.nan)
    with pytest.raises(FormatError, match="not finite"):
        grid(network_generator, rows=1)


def test_png_is_a_png(network_generator: Generator) -> None:
    data = png(network_generator, rows=1, columns=2)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert image.convert("RGB").tobytes() == grid(network_generator, rows=1, columns=2).convert("RGB").tobytes()


@pytest.mark.parametrize("arguments", [{"rows": 0}, {"columns": 0}, {"columns": 11}, {"rows": -1}])
def test_nothing_to_show_is_refused(network_generator: Generator, arguments: dict[str, int]) -> None:
    with pytest.raises(ArgumentError):
        grid(network_generator, **arguments)


@pytest.mark.parametrize("rows", [0, -3, 2_000_000_000, 10**20])
def test_rows_beyond_a_picture_are_refused(network_generator: Generator, rows: int) -> None:
    with pytest.raises(ArgumentError, match=f"{rows} rows were asked for") as caught:
        grid(network_generator, rows=rows)
    assert caught.value.hint.startswith("Use 1 to ")
