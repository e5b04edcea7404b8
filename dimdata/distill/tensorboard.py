"""A run as TensorBoard shows it: curves of `metrics.jsonl`, and the sample grids. Needs tensorboard."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dimdata.errors import DimdataError
from dimdata.files import world_error

FOLDER = "tensorboard"  # within the run's folder


def require_tensorboard() -> None:
    """Raise `DimdataError` unless tensorboard is installed; asked before long work."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise DimdataError(
            "TensorBoard is not installed.", "pip install 'dimdata[tensorboard]', or leave --tensorboard out."
        ) from None


class TensorBoard:
    """Follows a run and writes what it finds in its folder to `tensorboard/` there.

    It is given to `distill` as `progress`, and holds the whole run from its first step: what a resumed run had recorded
    before is written again, and hides what earlier sittings wrote.

    Args:
        folder: The run's folder, the `out` of `distill`.

    Raises:
        DimdataError: If tensorboard is not installed.

    Example:
        >>> with TensorBoard("runs/digits") as board:  # doctest: +SKIP
        ...     distill("digits", out="runs/digits", minutes=1, progress=board)
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        require_tensorboard()
        self.folder = Path(folder).expanduser()
        self._writer: Any = None  # opened by the first event: a run that is refused leaves nothing
        self._read = 0  # bytes of the metrics that are written
        self._grids: set[str] = set()
        self._began = 0.0  # when the run would have begun, had it never been interrupted
        self._seconds = 0.0  # of training, at the last event written

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Write what is new; `event` tells that something is.

        Raises:
            WorldError: If the run's folder cannot be read or written.
        """
        if "note" in event:  # nothing of it is in the folder
            return
        try:
            if self._writer is None:
                self._open(event)
            self._scalars()
            self._images()
        except OSError as error:
            raise world_error(error, f"Writing {self.folder / FOLDER}") from error

    def close(self) -> None:
        """Write what came after the last event, and close the file."""
        if self._writer is not None:
            self({})
            self._writer.close()
            self._writer = None

    def _open(self, event: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._began = time.time() - event.get("seconds", 0.0)
        writer: Any = SummaryWriter
        self._writer = writer(str(self.folder / FOLDER), purge_step=0)

    def _scalars(self) -> None:
        with (self.folder / "metrics.jsonl").open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            event = json.loads(line)
            self._seconds = event.get("seconds", self._seconds)  # a probe does not say
            for name, value in _values(event).items():
                self._writer.add_scalar(name, value, event["step"], walltime=self._began + self._seconds)

    def _images(self) -> None:
        import numpy as np
        from PIL import Image

        for path in sorted(self.folder.glob("grids/step-*.png")):
            if path.name not in self._grids:
                self._grids.add(path.name)
                with Image.open(path) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                self._writer.add_image("draws", pixels, int(path.stem.removeprefix("step-")), dataformats="HWC")
        self._writer.flush()


def _values(event: Mapping[str, Any]) -> dict[str, float]:
    """Return the curves that an event of a run has a point of."""
    values = {f"{event['phase']}/{name}": value for name, value in event.get("losses", {}).items()}
    others = {"images_per_second", "validation_accuracy"} & set(event)
    return values | {name: event[name] for name in others}
