"""Runs as TensorBoard shows them, read back by TensorBoard's own reader."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dimdata.cli.main import main
from dimdata.distill.tensorboard import TensorBoard, require_tensorboard
from dimdata.errors import DimdataError


def read(folder: Path) -> Any:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def steps(found: Any, name: str) -> list[int]:
    return [event.step for event in found.Scalars(name)]


class RunFolder:
    """The folder of a run, written as the loop writes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "grids").mkdir(parents=True, exist_ok=True)

    def event(self, step: int, **changes: Any) -> dict[str, Any]:
        event = {"phase": "gan", "step": step, "seconds": step / 10, "losses": {"critic": 1 / step}} | changes
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")
        return event

    def grid(self, step: int) -> None:
        Image.new("L", (8, 6), step).save(self.folder / "grids" / f"step-{step:07d}.png")


def test_curves_and_grids(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = RunFolder(tmp_path)
    with TensorBoard(tmp_path) as board:
        board(run.event(10, images_per_second=5.0))
        run.grid(10)
        board(run.event(20))
        board(run.event(20, phase="probe", validation_accuracy=87.5, losses={}))
        run.grid(20)  # after the last event
    found = read(tmp_path)
    assert steps(found, "gan/critic") == [10, 20]
    assert [event.value for event in found.Scalars("gan/critic")] == pytest.approx([0.1, 0.05])
    assert [event.value for event in found.Scalars("images_per_second")] == [5.0]
    assert [event.value for event in found.Scalars("validation_accuracy")] == [87.5]
    assert [event.step for event in found.Images("draws")] == [10, 20]
    assert (found.Images("draws")[0].width, found.Images("draws")[0].height) == (8, 6)
    first, second = (event.wall_time for event in found.Scalars("gan/critic"))
    assert second - first == pytest.approx(1.0, abs=0.01)  # the seconds of training between them


def test_a_resumed_run_is_one_curve(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = RunFolder(tmp_path)
    with TensorBoard(tmp_path) as board:
        for step in (10, 20, 30):
            board(run.event(step))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text(lines[0])  # the checkpoint was of step 10
    with TensorBoard(tmp_path) as board:
        board(run.event(25))
        board(run.event(40))
    assert steps(read(tmp_path), "gan/critic") == [10, 25, 40]


def test_a_run_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with TensorBoard(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_the_command_line_writes_them(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    words = ["distill", "digits", "--steps", "6", "--tensorboard", "--set", "batch_size=4", "--set", "match_share=0"]
    assert main([*words, "--device", "cpu", "--compile", "off", "-o", str(out)]) == 0
    found = read(out)
    recorded = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for name, value in recorded[-1]["losses"].items():
        last = found.Scalars(f"{recorded[-1]['phase']}/{name}")[-1]
        assert (last.step, last.value) == (6, pytest.approx(value, rel=1e-5))
    assert [event.step for event in found.Images("draws")][-1] == 6


def test_without_tensorboard_the_line_to_install_it_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(DimdataError, match="not installed") as caught:
        require_tensorboard()
    assert "pip install 'dimdata[tensorboard]'" in caught.value.hint
    assert main(["distill", "digits", "--tensorboard", "-o", str(tmp_path / "run")]) == 2
    assert "dimdata[tensorboard]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
