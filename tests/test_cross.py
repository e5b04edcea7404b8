from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_report import make_row

from dimdata import artifact
from dimdata.cli.main import main
from dimdata.cross import by_size, columns, cross_architecture, cross_notes, grid, parameters
from dimdata.scores import Row, Score, aggregate, read_rows
from dimdata.students import make_student

# By construction: vgg11 and resnet18-thin are larger than convnet3, lenet is smaller.
MEANS = {"resnet18-thin": 97.0, "convnet3": 98.0, "lenet": 99.0, "vgg11": 98.5}


def make_scores(means: dict[str, float], real: dict[str, float] | None = None, **changes: Any) -> list[Score]:
    rows: list[Row] = []
    for student, mean in means.items():
        for seed, shift in enumerate((-0.1, 0.1)):
            rows.append(make_row(student=student, seed=seed, accuracy=mean + shift, **changes))
            if real and student in real:
                rows.append(make_row(what="distinct", student=student, seed=seed, accuracy=real[student], source="r"))
    return aggregate(rows)


def cells(text: str) -> dict[str, list[str]]:
    """Rows of a markdown table by their first cell."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert len({len(line) for line in lines}) == 1
    return {line[0]: line[1:] for line in lines}


@pytest.mark.parametrize("student", ["convnet3", "lenet", "vgg11", "alexnet", "mlp", "mobilenet-v2", "convnet4-w64-bn"])
def test_parameters_are_those_of_the_network(student: str) -> None:
    network = make_student(student, (3, 32, 32), 10)
    assert parameters(student) == sum(tensor.numel() for tensor in network.parameters())


def test_parameters_of_the_unknown_and_the_huge() -> None:
    assert parameters("package.module:factory") is None
    assert parameters("") is None
    huge = parameters("convnet3-w4096")  # counted without the gigabyte that it would take
    assert huge is None or huge > 10**8


def test_students_stand_by_size_and_the_unknown_last() -> None:
    assert by_size(["my:net", *MEANS, "lenet"]) == ["lenet", "convnet3", "resnet18-thin", "vgg11", "my:net"]


def test_spread_and_gain() -> None:
    (column,) = columns(make_scores(MEANS))
    assert column.spread == 2.0
    assert column.gain == (0.5, "vgg11")  # lenet is better still, but smaller
    assert columns(make_scores({"convnet3": 98.0}))[0].spread is None
    assert columns(make_scores({"convnet3": 98.0, "lenet": 99.0}))[0].gain is None
    assert columns(make_scores({"vgg11": 98.0, "lenet": 99.0}))[0].gain is None
    assert columns(make_scores({"convnet3": 98.0, "vgg11": 97.0}))[0].gain == (-1.0, "vgg11")


def test_the_ceiling_tells_its_own_seeds() -> None:
    means = {"convnet3": 98.0, "vgg11": 98.5}
    scores = make_scores(means, real=means)
    one = [replace(s, seeds=s.seeds[:1], accuracies=s.accuracies[:1]) if s.what == "distinct" else s for s in scores]
    own, real = columns(one)
    assert own.seeds == {"convnet3": 2, "vgg11": 2}
    assert real.seeds == {"convnet3": 1, "vgg11": 1}
    assert cells(cross_architecture(one))["seeds"] == ["2", "1"]
    alone = [s for s in scores if s.what == "generator"]  # of a card that keeps only the means
    assert cells(cross_architecture(alone))["seeds"] == ["2", "-"]


def test_larger_is_counted_at_the_shape_of_the_dataset() -> None:
    assert (parameters("mlp") or 0) > (parameters("convnet3") or 0)  # on 32x32 colour images alone
    means = {"convnet3": 98.0, "mlp": 98.5}
    (grey,) = columns(make_scores(means))
    (colour,) = columns(make_scores(means, dataset="cifar10"))
    assert grey.gain is None
    assert colour.gain == (0.5, "mlp")


def test_a_network_of_ones_own_counts_where_its_size_is_known() -> None:
    means = {"convnet3": 98.0, "my:net": 98.5}
    unsized = make_scores(means)
    assert columns(unsized)[0].gain is None
    assert any("my:net" in note and "leaves it out" in note for note in cross_notes(unsized))
    sized = [*make_scores({"convnet3": 98.0}), *make_scores({"my:net": 98.5}, parameters=10**6)]
    assert columns(sized)[0].gain == (0.5, "my:net")
    assert not any("leaves it out" in note for note in cross_notes(sized))
    assert "networks of one's own last" in cross_notes(sized)[0]
    assert "one's own" not in cross_notes(make_scores(MEANS))[0]


def test_what_failed_is_marked() -> None:
    scores = [
        *make_scores(MEANS),
        *make_scores({"alexnet": 10.5}),
        *make_scores({"mlp": 60.0}, diverged=True),
    ]
    found = cells(cross_architecture(scores))
    assert found["alexnet"] == ["10.50 ± 0.14 (2 of 2 did not learn)"]
    assert found["mlp"] == ["60.00 ± 0.14 (2 of 2 diverged)"]
    assert "(" not in found["convnet3"][0]


def test_images_seen_and_drawn_stand_below() -> None:
    real = {"convnet3": 99.0, "vgg11": 99.5}
    found = cells(cross_architecture(make_scores(MEANS, real=real)))
    assert found["distinct images"] == ["100,000", "100,000"]
    assert "drawn" not in found
    found = cells(cross_architecture(make_scores(MEANS, real=real, candidates=4, levers="best of 4", source="l")))
    assert found["drawn"] == ["400,000", "-"]
    assert found["levers"] == ["best of 4", "-"]


def test_a_column_for_each_generator_budget_draw_and_lever() -> None:
    scores = [
        *make_scores(MEANS),
        *make_scores(MEANS, name="other", source="o"),
        *make_scores(MEANS, ipc=1, images=10, images_seen=10_000, budget="1"),
        *make_scores(MEANS, draw="fixed"),
        *make_scores(MEANS, protocol="dim-paper", recipe="another", budget="p"),
        *make_scores(MEANS, levers="best of 4", source="l"),
    ]
    made = columns(scores)
    assert [column.title for column in made].count("dim-mnist") == 5
    assert len(made) == 6
    assert all(set(column.figures) == set(MEANS) for column in made)
    header, rows = grid(made)
    assert all(len(row) == len(header) for row in rows)
    found = {row[0]: row[1:] for row in rows}
    assert found["budget"].count("IPC 1") == 1
    assert found["draw"].count("fixed") == 1
    assert found["levers"].count("best of 4") == 1
    assert found["protocol"].count("dim-paper") == 1


def test_markdown() -> None:
    found = cells(cross_architecture([*make_scores(MEANS), *make_scores({"convnet3": 80.0}, name="x|y", source="o")]))
    assert found["student"] == ["dim-mnist"]  # one student alone is no comparison
    assert found["convnet3"] == ["98.00 ± 0.14"]
    assert found["spread"] == ["2.00"]
    assert found["best larger over ConvNet-3"] == ["+0.50 (vgg11)"]
    assert found["stored"] == ["1.23 MB"]
    assert found["student steps"] == ["2,000"]
    assert found["draw"] == ["fresh"]
    assert "levers" not in found
    assert cross_architecture([]) == ""
    assert cross_architecture(make_scores({"convnet3": 98.0})) == ""
    assert cross_notes([]) == []


def test_a_student_that_one_generator_lacks_is_a_dash() -> None:
    scores = [*make_scores(MEANS), *make_scores({"convnet3": 80.0, "vgg11": 81.0}, name="other", source="o")]
    assert cells(cross_architecture(scores))["lenet"] == ["99.00 ± 0.14", "-"]


def test_the_ceiling_is_a_column_where_two_students_have_one() -> None:
    one, two = {"convnet3": 99.0}, {"convnet3": 99.0, "vgg11": 99.5}
    assert cells(cross_architecture(make_scores(MEANS, real=one)))["student"] == ["dim-mnist"]
    found = cells(cross_architecture(make_scores(MEANS, real=two)))
    assert found["student"] == ["dim-mnist", "dim-mnist: distinct real"]
    assert found["vgg11"][1] == "99.50"
    assert found["lenet"][1] == "-"
    assert found["spread"][1] == "0.50"
    assert found["stored"][1] == "-"


def test_the_ceiling_of_an_only_student_is_shown() -> None:
    made = columns(make_scores({"convnet3": 80.0}, real={"convnet3": 90.0}))
    assert [(column.title, column.figures["convnet3"].mean) for column in made] == [
        ("dim-mnist", 80.0),
        ("dim-mnist: distinct real", 90.0),
    ]
    two = columns(make_scores({"convnet3": 80.0, "lenet": 70.0}, real={"convnet3": 90.0}))
    assert [column.title for column in two] == ["dim-mnist"], "one figure is no comparison"


def test_budgets_that_read_alike_have_columns_of_their_own() -> None:
    """Counted steps show as many images, whatever the images of an epoch are."""
    rows = [
        make_row(ipc=ipc, images=10 * ipc, budget=f"b{ipc}", images_seen=120, accuracy=80.0 + ipc) for ipc in (2, 4)
    ]
    made = columns(aggregate(rows))
    assert [column.score.budget_text for column in made] == ["120 images"] * 2
    assert [column.figures["convnet3"].mean for column in made] == [82.0, 84.0]


# --- the command ---------------------------------------------------------------------------------------------------

COMMAND = [
    "compare",
    "dim-mnist",
    "--real",
    "holdout",
    "--seeds",
    "1",
    "--epochs",
    "1",
    "--ipc",
    "1",
    "--device",
    "cpu",
]


def test_compare_is_resumable_row_by_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, picture = tmp_path / "rows.jsonl", tmp_path / "cross.svg"
    words = [*COMMAND, "--compile", "off", "-o", str(rows)]
    assert main([*words, "--student", "convnet1-w8,convnet2-w8"]) == 0
    first = capsys.readouterr().out
    assert "spread" in first
    lines = rows.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2
    rows.write_bytes(lines[0] + lines[1][:40])  # as if killed while the second was written

    assert main([*words, "--student", "convnet1-w8,convnet2-w8", "--plot", str(picture), "--markdown"]) == 0
    whole = rows.read_bytes()
    assert whole.splitlines(keepends=True)[:-1] == lines[:1]  # the first row is the old one, time of training and all
    again = capsys.readouterr().out
    found = cells(again.strip())
    assert {row.student: f"{row.accuracy:.2f}" for row in read_rows(rows)} == {
        name: found[name][0] for name in ("convnet1-w8", "convnet2-w8")
    }
    assert picture.read_text().lstrip().startswith("<?xml")
    assert main([*words, "--student", "convnet1-w8,convnet2-w8", "--json"]) == 0
    (column,) = json.loads(capsys.readouterr().out)
    assert column["budget"] == "10 images"
    assert (column["distinct"], column["drawn"], column["levers"]) == (10, 10, "")
    assert (column["protocol"], column["test"]) == ("dimdata", "hold-out (1,000)")
    assert column["seeds"] == {"convnet1-w8": 1, "convnet2-w8": 1}
    assert column["spread"] == pytest.approx(abs(column["accuracy"]["convnet1-w8"] - column["accuracy"]["convnet2-w8"]))
    assert rows.read_bytes() == whole  # a student trained again would have made another row


WRONG_WIDTH = """
from torch import nn

def net(image_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, num_classes))
"""


def test_compare_leaves_out_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A ConvNet of nine poolings cannot be made for 28x28 pixels; the other can be made, and takes no such image.
    (tmp_path / "wrong_width.py").write_text(WRONG_WIDTH)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [*COMMAND, "--compile", "off", "--student", "convnet1-w8,convnet9,wrong_width:net"]
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert list(json.loads(out)[0]["accuracy"]) == ["convnet1-w8"]
    assert "convnet9 is left out for dim-mnist" in err
    assert "wrong_width:net is left out for dim-mnist" in err
    assert main([*words, "--plot", str(tmp_path / "cross.svg")]) == 2
    err = capsys.readouterr().err
    assert "nothing to compare" in err
    assert "seed 0" not in err  # nothing was trained


def test_one_student_is_compared_on_several_generators(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(artifact.bundled()["dim-mnist"], tmp_path / "copy")
    words = ["compare", str(tmp_path / "copy"), *COMMAND[1:], "--compile", "off", "--student", "convnet1-w8"]
    assert main([*words, "--markdown"]) == 0
    out, err = capsys.readouterr()
    found = cells(out.strip())
    assert found["student"][0].endswith("copy")
    assert found["student"][1] == "dim-mnist"
    assert found["convnet1-w8"][0] == found["convnet1-w8"][1], "they are the same generator"
    assert "spread" not in out + err, "one student has none"


def test_compare_of_all_that_is_bundled_leaves_out_what_one_student_alone_can_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo = artifact.bundled()
    monkeypatch.setattr(
        artifact, "bundled", lambda: {name: zoo[name] for name in ("dd-mnist-fixed", "pdd-mnist", "dim-mnist")}
    )
    words = [word for word in COMMAND if word != "dim-mnist"]
    assert main([*words, "--compile", "off", "--student", "convnet1-w8,lenet", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [column["name"] for column in json.loads(out)] == ["dim-mnist"]
    assert "dd-mnist-fixed was made for lenet alone" in err
    assert "pdd-mnist is trained on in counted steps" in err


def test_compare_takes_levers(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*COMMAND, "--compile", "off", "--student", "convnet1-w8,convnet2-w8", "--levers", "spread=0.5"]
    assert main(words) == 0
    assert "spread" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--student", "convnet3"], "convnet3 alone on dim-mnist alone is no comparison."),
        (["--student", ","], "--student names no network."),
        (["--student", "convnet3,convent4"], "convent4"),
        (["--plot", "absent/cross.png"], "no folder"),
        (["--plot", "cross.txt"], "no ending of a picture"),
        (["--ipc", "x"], "--ipc"),
        (["--protocol", "none"], "protocol"),
        (["--draw", ","], "No draw is given."),
        (["--baselines", "random,all"], "--baselines is 'random,all'"),
        (["--baselines", "distnict"], "--baselines is 'distnict'"),
        (["--baselines", "distinct"], "tested on its hold-out alone"),
        (["--student", "convnet9,convnet8"], "takes none of the students"),
    ],
)
def test_compare_refuses_before_it_trains(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "dim-mnist", "--real", "holdout", *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_compare_refuses_what_only_a_later_generator_cannot_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = artifact.save(artifact.load("dim-fashion-mnist"), tmp_path / "bare")  # without its hold-out
    words = [word for word in COMMAND if word != "compare"]
    assert main(["compare", *words[:1], str(folder), *words[1:], "--compile", "off"]) == 2
    err = capsys.readouterr().err
    assert "comes without test images" in err
    assert "--real" in err
    assert "seed 0" not in err  # nothing was trained
