from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dimdata.errors import FormatError, WorldError
from dimdata.report import escape, markdown, notes, size, table
from dimdata.scores import Results, Row, Score, aggregate, read_rows


def make_row(**changes: Any) -> Row:
    values: dict[str, Any] = {
        "what": "generator",
        "name": "dim-mnist",
        "source": "s",
        "dataset": "mnist",
        "test": "mnist test (10,000)",
        "student": "convnet3",
        "ipc": 10,
        "images": 100,
        "draw": "fresh",
        "protocol": "dimdata",
        "recipe": "1000 epochs",
        "budget": "b",
        "epochs": 1000,
        "seed": 0,
        "accuracy": 98.0,
        "steps": 2000,
        "images_seen": 100_000,
        "stored_bytes": 1_234_567,
        "seconds": 1.5,
    } | changes
    values.setdefault("distinct", values["images"] if values["draw"] == "fixed" else 100_000)
    key = values.pop("key", "-".join(str(values[name]) for name in ("what", "draw", "seed", "student", "budget")))
    return Row(key=key, **values)


@pytest.fixture
def rows() -> list[Row]:
    made = []
    for budget, ipc in (("b1", 1), ("b10", 10)):
        common = {"ipc": ipc, "images": 10 * ipc, "images_seen": 10_000 * ipc, "budget": budget}
        for seed, accuracy in enumerate((96.0, 98.0, 97.0)):
            made += [
                make_row(seed=seed, accuracy=accuracy, **common),
                make_row(seed=seed, accuracy=accuracy - 30, draw="fixed", **common),
                make_row(what="random", draw="fixed", seed=seed, accuracy=60.0, source="r", **common),
                make_row(what="distinct", seed=seed, accuracy=98.0, source="r", **common),
                make_row(what="all", draw="fixed", seed=seed, accuracy=99.0, source="r", **common),
            ]
    return made


def test_seeds_are_taken_together(rows: list[Row]) -> None:
    score = next(s for s in aggregate(rows) if s.what == "generator" and s.draw == "fresh" and s.ipc == 1)
    assert (score.mean, score.std, score.seeds) == (97.0, 1.0, (0, 1, 2))
    assert score.accuracies == (96.0, 98.0, 97.0)
    assert aggregate([make_row()])[0].std is None


def test_a_student_that_diverged_or_did_not_learn_is_marked() -> None:
    rows = [make_row(seed=0), make_row(seed=1, accuracy=11.0), make_row(seed=2, accuracy=11.0, diverged=True)]
    (score,) = aggregate(rows)
    assert (score.diverged, score.failed) == ((2,), (1, 2))
    assert "(1 of 3 diverged, 1 of 3 did not learn)" in markdown([score]).replace("\\", "")
    said = " ".join(notes([score]))
    assert "Diverged:" in said
    assert "Did not learn:" in said
    (fine,) = aggregate([make_row()])
    assert "learn" not in markdown([fine]) + " ".join(notes([fine]))
    assert Score.from_json(score.to_json()) == score
    assert "failed" not in fine.to_json()
    # A baseline that has no line of its own is told of in words.
    bad = make_row(what="distinct", source="r", accuracy=10.0)
    assert any(
        note == "Distinct real (ceiling), convnet3, 100,000 images: did not learn."
        for note in notes(aggregate([make_row(), bad]))
    )


@pytest.mark.parametrize(
    ("classes", "accuracy", "failed"),
    [(10, 12.0, True), (10, 12.1, False), (100, 2.0, True), (100, 2.1, False), (2, 51.9, True), (2, 53.0, False)],
)
def test_learning_is_more_than_guessing(classes: int, accuracy: float, failed: bool) -> None:
    assert make_row(images=10 * classes, accuracy=accuracy).failed is failed
    assert not make_row(ipc=None, images=classes, accuracy=accuracy).failed  # nobody knows how many classes there are


def test_the_loss_of_a_row_is_a_number_or_null_or_not_known(tmp_path: Path) -> None:
    for changes in ({}, {"loss": 0.25}, {"diverged": True}):
        row = make_row(**changes)
        path = tmp_path / f"{len(changes)}{row.diverged}.jsonl"
        Results(path).add(row)
        assert read_rows(path) == [row]
        line = json.loads(path.read_text())
        assert ("loss" in line, line.get("loss")) == (bool(changes), row.loss)
    with pytest.raises(FormatError, match="diverged"):
        make_row(loss=0.25, diverged=True)


def test_the_share_is_that_of_the_distinct_baseline_and_of_fresh_draws_only(rows: list[Row]) -> None:
    scores = aggregate(rows)
    fresh = next(s for s in scores if s.what == "generator" and s.draw == "fresh")
    fixed = next(s for s in scores if s.what == "generator" and s.draw == "fixed")
    assert fresh.baselines == {"random": 60.0, "distinct": 98.0, "all": 99.0}
    assert fresh.share == pytest.approx(100 * 97 / 98)
    assert fixed.baselines == {"random": 60.0, "all": 99.0}
    assert fixed.share is None
    assert all(s.share is None and not s.baselines for s in scores if s.what != "generator")


def test_baselines_of_another_budget_student_or_test_set_are_not_compared_with() -> None:
    for change in ({"budget": "x"}, {"student": "lenet"}, {"test": "hold-out (1,000)"}, {"dataset": "svhn"}):
        scores = aggregate([make_row(), make_row(what="distinct", source="r", **change)])
        assert scores[0].baselines == {}


def test_an_ipc_is_claimed_for_1000_fresh_epochs_only() -> None:
    def budget(**changes: Any) -> str:
        return aggregate([make_row(**changes)])[0].budget_text

    assert budget() == "IPC 10"
    assert budget(images_seen=50_000, epochs=500) == "50,000 images"
    assert budget(images_seen=200_000, epochs=2000) == "200,000 images"
    assert budget(images_seen=50_000, epochs=500, draw="fixed") == "IPC 10"
    assert budget(draw="fixed", distinct=190) == "100,000 images"  # an index shows another image in each leg
    assert budget(ipc=None) == "100,000 images"
    assert budget(ipc=None, draw="fixed", images=5) == "5 stored images"
    assert budget(ipc=None, draw="fixed", images=5, what="all") == "100,000 images"
    assert budget(what="distinct") == "100,000 images"


def test_scores_survive_json(rows: list[Row]) -> None:
    for score in aggregate(rows):
        assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score
    with pytest.raises(FormatError, match="percentage"):
        Score.from_json(aggregate(rows)[0].to_json() | {"baselines": {"distinct": "98"}})


def test_the_table_shows_figures_and_leaves_empty_columns_out(rows: list[Row]) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(aggregate(rows)))
    text = console.export_text()
    assert "97.00 ± 1.00" in text
    assert "99.0 %" in text
    assert "1.23 MB" in text
    assert "100,000" in text
    assert "all real" in text
    assert "protocol" not in text
    alone = Console(width=200, record=True, file=io.StringIO())
    alone.print(table(aggregate([make_row()])))
    assert "real" not in alone.export_text()


def test_rows_of_baselines_alone_make_a_table_too(rows: list[Row]) -> None:
    text = markdown(aggregate([row for row in rows if row.what != "generator"]))
    assert "distinct real (ceiling)" in text


def test_markdown_is_one_table_whatever_names_hold() -> None:
    text = markdown(aggregate([make_row(name="a|b\n<script>"), make_row(name="other", source="o")]))
    lines = text.splitlines()
    assert len(lines) == 4
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "<script>" not in text
    assert markdown([]) == ""


def test_notes_say_what_the_figures_mean(rows: list[Row]) -> None:
    text = " ".join(notes(aggregate(rows)))
    assert "1,000 epochs" in text
    assert "ceiling" in text
    assert "mnist test (10,000)" in text
    paper = " ".join(notes(aggregate([make_row(protocol="dim-paper")])))
    assert "2303.04707" in paper
    assert "Mended" in paper
    assert "1,000 epochs of n" not in " ".join(notes(aggregate([make_row(images_seen=5)])))


def test_scores_by_a_protocol_of_a_newer_version_are_shown() -> None:
    scores = aggregate([make_row(protocol="dim-paper-2")])
    assert "dim-paper-2 is not known to this version." in " ".join(notes(scores))
    assert "98.00" in markdown(scores)


@pytest.mark.parametrize("text", ["<b>", "a`b", "[x](y)", "a|b", "*a*", "# a", "$x$"])
def test_escape(text: str) -> None:
    shown = escape(text)
    assert "<" not in shown
    for character in "`|[]*#$":
        assert shown.count(character) == shown.count(f"\\{character}")


def test_sizes() -> None:
    assert [size(n) for n in (12, 4_000, 1_499_999)] == ["12 B", "4.00 kB", "1.50 MB"]


def test_results_come_back_from_their_file(rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "folder" / "rows.jsonl"
    results = Results(path)
    for row in rows:
        results.add(row)
    assert read_rows(path) == rows
    assert Results(path).rows == {row.key: row for row in rows}
    assert all(json.loads(line)["accuracy"] >= 0 for line in path.read_text().splitlines())


@pytest.mark.parametrize("cut", [1, 9, 12, 60])
def test_a_line_cut_off_gives_way_to_the_next_row(rows: list[Row], tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl"
    results = Results(path)
    for row in rows[:3]:
        results.add(row)
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    path.write_bytes(whole[: start + cut])
    again = Results(path)
    assert list(again.rows) == [row.key for row in rows[:2]]
    assert path.read_bytes() == whole[: start + cut]  # reading changes nothing
    again.add(rows[2])
    assert path.read_bytes() == whole


def test_a_last_row_without_its_line_end_counts(rows: list[Row], tmp_path: Path) -> None:
    """An editor may have taken it, or a process may have died one byte early."""
    path = tmp_path / "rows.jsonl"
    for row in rows[:3]:
        Results(path).add(row)
    whole = path.read_bytes()
    path.write_bytes(whole.splitlines(keepends=True)[0] + whole.splitlines(keepends=True)[1][:-1])
    assert read_rows(path) == rows[:2]
    again = Results(path)
    assert list(again.rows) == [row.key for row in rows[:2]]
    again.add(rows[2])
    assert path.read_bytes() == whole


def test_a_file_in_the_users_folder(rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Results("~/rows.jsonl").add(rows[0])
    assert read_rows("~/rows.jsonl") == read_rows(tmp_path / "rows.jsonl") == rows[:1]


@pytest.mark.parametrize("cut", [0, 20])
def test_two_programs_add_to_one_file(rows: list[Row], tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl"
    Results(path).add(rows[0])
    path.write_bytes(path.read_bytes() + path.read_bytes()[:cut])
    first, second = Results(path), Results(path)
    for results, row in zip((first, second, first, second), rows[1:5], strict=True):
        results.add(row)
    assert read_rows(path) == rows[:5]


@pytest.mark.parametrize("content", ['{"some": "file"}', "not rows\n", '{"key": "a"}\n', '[1]\n{"key": "', "\x00\xff"])
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(FormatError, match="Line 1"):
        Results(path)
    assert path.read_text() == content


def test_shipped_rows_are_found_and_copied(rows: list[Row], tmp_path: Path) -> None:
    shipped, path = tmp_path / "shipped.jsonl", tmp_path / "rows.jsonl"
    Results(shipped).add(rows[0])
    before = shipped.read_bytes()
    results = Results(path, shipped=shipped)
    assert results.find(rows[0].key) == rows[0]
    assert results.find("absent") is None
    results.add(rows[1])
    assert read_rows(path) == rows[:2]
    assert shipped.read_bytes() == before


def test_a_place_that_cannot_be_written_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorldError, match="file"):
        Results(tmp_path / "file" / "rows.jsonl")
    with pytest.raises(WorldError, match=str(tmp_path)):
        Results(tmp_path)
