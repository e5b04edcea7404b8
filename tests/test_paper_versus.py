"""A stopped benchmark goes on with its own runs only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dimdata.engine import Engine
from dimdata.errors import RunError
from dimdata.real import RealData, load_real, validation_split

BENCHMARKS = Path(__file__).parent / "benchmarks"
CPU = Engine.of("cpu", "fp32", "off")


@pytest.fixture
def versus(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "paper_versus_ours", raising=False)
    import paper_versus_ours

    return paper_versus_ours


@pytest.fixture(scope="module")
def real() -> RealData:
    return load_real("digits")


def test_a_run_of_other_settings_is_refused(versus: Any, real: RealData, tmp_path: Path) -> None:
    def side(preset: str = "dim-mnist", settings: Any = versus.TOY["ours"], data: RealData = real) -> Any:
        return versus.Side("ours", preset, settings, data, tmp_path)

    side().distill(0.02, 2, CPU)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    side().distill(0.02, 2, CPU)  # finished: nothing to do
    for other, minutes, marks in (
        (side(), 0.04, 2),
        (side(), 0.02, 4),
        (side(settings=versus.TOY["ours"] | {"critic": 4}), 0.02, 2),
        (side(data=validation_split(real)), 0.02, 2),
    ):
        with pytest.raises(RunError) as caught:
            other.distill(minutes, marks, CPU)
        assert caught.value.hint == "Choose another folder with --work."
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*")} == kept


def test_a_pool_that_was_never_renewed_is_told(versus: Any, real: RealData, tmp_path: Path) -> None:
    side = versus.Side("paper", "paper", versus.TOY["paper"], real, tmp_path)
    side.folder.mkdir()
    life = len(real.train) // 32

    def note(*ends: tuple[str, int]) -> str:
        lines = [json.dumps({"phase": phase, "step": step, "seconds": 1.0}) for phase, step in ends]
        (side.folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        return side.pool_note()

    assert f"5 steps of matching, no more than the {life}" in note(("gan", 50), ("gan", 100), ("match", 105))
    assert "'" not in note(("gan", 100), ("match", 105))
    assert note(("gan", 100), ("match", 100 + life + 1)) == ""
    assert "none was seen" in note(("gan", 100))
    ours = versus.Side("ours", "dim-mnist", versus.TOY["ours"], real, tmp_path)
    assert ours.pool_note() == ""
