"""Many processes that pull one name at once into one cache, over connections of which a third is cut anywhere.

Run `python tests/benchmarks/hub_crowd.py`; it prints one line a round and one JSON line, and exits with 1 if a process
fails or the cache holds a damaged file. Each round begins with an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import make_network  # first, for it clears the variables that are set below
from hub_server import WRITER, git_id, serve

REPO = "owner/crowd"
PATIENCE = 120  # seconds


def pull(cache: Path, barrier: Any, send: Any) -> None:
    """Load the generator, and send its commit or what went wrong."""
    import logging

    from dimdata import artifact

    logging.disable(logging.WARNING)  # each cut is told, and there are many
    barrier.wait(PATIENCE)
    try:
        send.send(artifact.load(REPO, cache_dir=cache).revision)
    except Exception as error:
        send.send(f"{type(error).__name__}: {error}")


def answer(receive: Any) -> str:
    """Return what a process sent, or that it sent nothing."""
    try:
        return receive.recv() if receive.poll(PATIENCE) else f"no answer in {PATIENCE} s"
    except EOFError:
        return "ended without an answer"


def damaged(cache: Path) -> list[str]:
    """Files of the cache whose content is not what their name, a digest, says."""
    import hashlib

    blobs = [path for path in cache.glob("models--*/blobs/*") if path.is_file()]
    found = {path: path.read_bytes() for path in blobs}
    return [p.name for p, data in found.items() if p.name not in (git_id(data), hashlib.sha256(data).hexdigest())]


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder) / "hub") as hub:
        os.environ.update(HF_ENDPOINT=hub.url, HF_TOKEN=WRITER, HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1")
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        from huggingface_hub import HfApi, hf_hub_download  # noqa: F401 - once, and not in every process

        from dimdata import artifact

        commit = hub.put(REPO, artifact.save(make_network(), Path(folder) / "made"))
        context, failures, spoilt, asked = get_context("fork"), [], [], 0
        for number in range(options.rounds):
            cache, start = Path(folder) / f"cache-{number}", time.perf_counter()
            hub.forget()
            hub.fault({"where": ".", "what": "cut", "share": 1 / 3, "round": number})
            barrier = context.Barrier(options.processes)
            pipes = [context.Pipe(duplex=False) for _ in range(options.processes)]
            processes = [context.Process(target=pull, args=(cache, barrier, send)) for _, send in pipes]
            for process, (_, send) in zip(processes, pipes, strict=True):
                process.start()
                send.close()  # or the end of a process that died would never show
            results = [answer(receive) for receive, _ in pipes]
            for process in processes:
                process.join(PATIENCE)
                process.kill()
            failures += [result for result in results if result != commit]
            spoilt += damaged(cache)
            asked += len(hub.requests)
            print(
                f"round {number + 1}: {results.count(commit)} of {options.processes} loaded it, "
                f"{len(hub.requests)} requests, {time.perf_counter() - start:.1f} s",
                flush=True,
            )
    result = {"rounds": options.rounds, "processes": options.processes, "requests": asked}
    print(json.dumps({**result, "failures": failures, "damaged": spoilt}))
    return int(bool(failures or spoilt))


if __name__ == "__main__":
    sys.exit(main())
