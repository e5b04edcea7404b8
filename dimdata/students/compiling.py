"""When compiling a student pays, and room for all that one process compiles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from dimdata.engine import Engine

# A batch shape is compiled where it comes with this many images: fewer are done before the compiler is.
COMPILE_FROM = 10_000


@contextlib.contextmanager
def room_for_shapes(engine: Engine) -> Iterator[None]:
    """Let one process compile for more networks and batch sizes than the compiler's own limit of 8.

    Beyond that limit it would run everything uncompiled. An evaluation meets each student at several batch sizes.
    """
    if not engine.compiled:
        yield
        return
    with torch._dynamo.config.patch(recompile_limit=64):
        yield
