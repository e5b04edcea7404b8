"""What it takes to refuse hostile repositories: time and memory, for each kind of them.

Run `python tests/benchmarks/hub_hostile.py`; it prints a table and one JSON line, and exits with 1 if a repository is
not refused in a sentence of ours, takes over 2 s, needs over 200 MB more memory than an honest load, leaves a file
outside the cache, or if the token reaches the second port. Each kind runs in a process of its own, whose memory counts.
The times are to be judged on an idle machine; on a busy one the processor time tells what is ours.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import make_network  # first, for it clears the variables that are set below
from hub_server import WRITER, serve

TARGET_SECONDS, TARGET_MB = 2.0, 200


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def refuse(kind: str, each: int, root: Path, address: dict[str, str], send: Any) -> None:
    """Load `each` hostile repositories of a kind, and send what it took."""
    from hub_hostile import KINDS
    from hub_server import Hub

    from dimdata import artifact
    from dimdata.errors import DimdataError

    hub, work = Hub(root, **address), Path(tempfile.mkdtemp())
    folder = artifact.save(make_network(), work / "honest")
    honest = {path.name: path.read_bytes() for path in folder.iterdir()}
    repo, cache = f"owner/{kind.replace('_', '-')}", work / "a" / "b"
    hub.fault()
    hub.put(repo, honest)
    artifact.load(repo, cache_dir=cache / "honest")
    cases = [KINDS[kind](random.Random(f"{kind} {seed}"), honest) for seed in range(each)]
    before, slowest, busiest, accepted, problems = peak_mb(), 0.0, 0.0, 0, []
    for number, hostile in enumerate(cases):
        hub.put(repo, hostile.files)
        hub.fault(*hostile.faults)
        start, busy = time.perf_counter(), time.process_time()
        try:
            artifact.load(repo, cache_dir=cache / str(number))  # what is cached would not be asked for
            accepted += 1
            problems.append(f"{number} was accepted")
        except DimdataError as error:
            if not str(error).isprintable():
                problems.append(f"{number} was refused in other than one plain sentence")
        except Exception as error:
            problems.append(f"{number} raised {type(error).__name__}: {error}")
        slowest, busiest = max(slowest, time.perf_counter() - start), max(busiest, time.process_time() - busy)
    outside = sorted(path.name for path in work.iterdir() if path.name not in ("a", "honest"))
    outside += sorted(path.name for path in work.rglob("*escaped*"))
    tokens = sum(bool(entry["token"]) for entry in hub.log() if entry["request"].startswith("STORAGE"))
    send.send(
        {
            "kind": kind,
            "cases": each,
            "refused": each - accepted,
            "slowest_seconds": round(slowest, 3),
            "processor_seconds": round(busiest, 3),
            "extra_mb": round(peak_mb() - before, 1),
            "outside": outside,
            "tokens": tokens,
            "problems": problems[:3],
        }
    )


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=50, help="how many of each kind")
    parser.add_argument("--kinds", nargs="*", help="all unless given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as hub:
        os.environ.update(HF_ENDPOINT=hub.url, HF_TOKEN=WRITER, HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1")
        from hub_hostile import KINDS

        rows = []
        for kind in options.kinds or KINDS:
            context = get_context("fork")  # torch is imported once, and each kind has memory of its own
            receive, send = context.Pipe(duplex=False)
            address = {"url": hub.url, "storage_url": hub.storage_url}
            process = context.Process(target=refuse, args=(kind, options.each, Path(folder), address, send))
            process.start()
            send.close()
            rows.append(receive.recv())
            process.join()
            row = rows[-1]
            took = f"{row['slowest_seconds']:.2f} s ({row['processor_seconds']:.2f} s of processor)"
            print(
                f"{kind:22}{row['refused']:4}/{row['cases']} refused, slowest {took}, {row['extra_mb']:.1f} MB more"
                f"{''.join('; ' + problem for problem in row['problems'])}",
                flush=True,
            )
    missed = [
        row["kind"]
        for row in rows
        if row["problems"]
        or row["outside"]
        or row["tokens"]
        or row["slowest_seconds"] > TARGET_SECONDS
        or row["extra_mb"] > TARGET_MB
    ]
    print(f"{sum(row['cases'] for row in rows)} repositories of {len(rows)} kinds; missed: {missed or 'none'}")
    print(json.dumps(rows))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
