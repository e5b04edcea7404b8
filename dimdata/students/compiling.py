"""When compiling a student pays, and room for all that one process compiles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from dimdata.engine import Engine

# On a CPU a batch shape is compiled where it comes with this many images: fewer are done before the compiler is.
COMPILE_FROM = 10_000
# Elsewhere by calls: at about a millisecond each, so many win back the tens of seconds that compiling takes.
COMPILE_FROM_CALLS = 20_000


def worth(engine: Engine, images: int, batch: int) -> bool:
    """Return whether a function of a batch is worth compiling.

    Args:
        engine: Where it runs.
        images: How many it will be given in all.
        batch: How many at a time.
    """
    return images >= (COMPILE_FROM if engine.device.type == "cpu" else COMPILE_FROM_CALLS * batch)


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
