from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from test_cross import MEANS, make_scores
from test_report import make_row

from dimdata.errors import ArgumentError, DimdataError, WorldError
from dimdata.plots import MOST_SPAN, cross_plot, limits, plot, require_plots
from dimdata.scores import Score, aggregate

pytest.importorskip("matplotlib")


@pytest.fixture
def scores() -> list[Score]:
    rows = []
    for budget, ipc in (("b1", 1), ("b10", 10)):
        common = {"ipc": ipc, "images": 10 * ipc, "images_seen": 10_000 * ipc, "budget": budget}
        rows += [make_row(seed=seed, accuracy=95.0 + seed, **common) for seed in range(2)]
        rows += [make_row(draw="fixed", accuracy=60.0, **common)]
        rows += [make_row(what="distinct", accuracy=98.0, source="r", **common)]
    return aggregate(rows)


def drawn(path: Path) -> str:
    """What an SVG says: matplotlib keeps each text in a comment beside its outlines."""
    return " ".join(re.findall(r"<!--(.*?)-->", path.read_text(), re.DOTALL))


def test_accuracy_against_images_per_class(scores: list[Score], tmp_path: Path) -> None:
    from PIL import Image

    path = plot(scores, tmp_path / "plot.png")
    with Image.open(path) as image:
        assert image.width > 500
    text = drawn(plot(scores, tmp_path / "plot.svg"))
    for word in ("fresh draw", "fixed draw", "distinct real (ceiling)", "images per class", "mnist test (10,000)"):
        assert word in text


def test_accuracy_against_the_student(tmp_path: Path) -> None:
    from PIL import Image

    real = {"convnet3": 99.0, "vgg11": 99.4}
    scores = [*make_scores(MEANS, real=real), *make_scores({"convnet3": 80.0, "vgg11": 81.0}, name="b", source="b")]
    with Image.open(cross_plot(scores, tmp_path / "cross.png")) as image:
        assert image.width > image.height > 300
        assert len(image.convert("RGB").getcolors(10**6) or ()) > 20
    text = drawn(cross_plot(scores, tmp_path / "cross.svg"))
    for word in (*MEANS, "dim-mnist", "spread", "98.50", "81.00", "distinct real (ceiling)", "ConvNet-3"):
        assert word in text
    alone = drawn(cross_plot(make_scores(MEANS), tmp_path / "alone.svg"))
    assert "ceiling" not in alone


@pytest.mark.parametrize(
    ("low", "high", "span"), [(10, 95, MOST_SPAN), (10, 10, 80), (9, 98.5, 100), (99, 99.5, 4), (50, 60, 20), (0, 1, 4)]
)
def test_an_axis_shows_its_accuracies_and_none_below_0(low: float, high: float, span: float) -> None:
    left, right = limits(low, high, span)
    assert 0 <= left <= low <= high <= right <= MOST_SPAN
    assert right - left == pytest.approx(span)


def test_a_student_that_only_guesses_fits_into_the_plot(tmp_path: Path) -> None:
    text = drawn(cross_plot(make_scores({"convnet3": 95.0, "alexnet": 10.0}), tmp_path / "cross.svg"))
    assert "\N{MINUS SIGN}" not in text  # of a negative accuracy


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_equal_scores_give_equal_files(tmp_path: Path, ending: str) -> None:
    first, second = (cross_plot(make_scores(MEANS), tmp_path / f"{n}.{ending}").read_bytes() for n in "ab")
    assert first == second


def test_many_generators_wrap(tmp_path: Path) -> None:
    from PIL import Image

    scores = [s for n in range(5) for s in make_scores(MEANS, name=f"g{n}", source=f"{n}")]
    with Image.open(cross_plot(scores, tmp_path / "cross.png")) as image:
        assert image.height > 700
        assert image.width < 1700


def test_names_are_no_formulas(tmp_path: Path) -> None:
    odd = "$a_{"
    assert plot(aggregate([make_row(name=odd), make_row(name="b", source="b")]), tmp_path / "a.svg").is_file()
    scores = make_scores(MEANS, name=odd, test="$x_{")
    assert cross_plot(scores, tmp_path / "b.svg").is_file()


def test_refusals(scores: list[Score], tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no score at a number of images per class"):
        plot(aggregate([make_row(images_seen=7)]), tmp_path / "a.png")
    with pytest.raises(ArgumentError, match="two students"):
        cross_plot(scores, tmp_path / "a.png")
    for draw in (plot, cross_plot):
        with pytest.raises(ArgumentError, match="ending"):
            draw(make_scores(MEANS), tmp_path / "a.xyz")
        with pytest.raises(WorldError):
            draw(make_scores(MEANS), tmp_path / "absent" / "a.png")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_line_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    with pytest.raises(DimdataError, match="matplotlib") as caught:
        require_plots("a.png")
    assert "pip install 'dimdata[report]'" in caught.value.hint
