"""How long a cached generator of the Hub takes to load beyond a bundled one, in a fresh process after `import torch`.

Run `python tests/benchmarks/hub_load.py`; it prints a table and one JSON line, and exits with 1 if a pinned name takes
over 0.1 s longer than the bundled one, or asks for anything. The Hub is the one of the tests, on loopback: what the
network adds to an unpinned name is not in these figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hub_server import serve

TARGET_SECONDS = 0.1
REPO = "owner/dim-mnist"
PROGRAM = """
import sys, time
import torch
start = time.perf_counter()
from dimdata import GeneratedDataset
GeneratedDataset(sys.argv[1], ipc=10, revision=sys.argv[2] or None)
print(time.perf_counter() - start)
"""


def seconds(*arguments: str) -> float:
    """Return what a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder) / "hub") as hub:
        os.environ.update(HF_ENDPOINT=hub.url, HF_HOME=str(Path(folder) / "home"), HF_HUB_DISABLE_TELEMETRY="1")
        from dimdata.names import bundled

        commit = hub.put(REPO, bundled()["dim-mnist"])
        cases = {"bundled": ("dim-mnist", ""), "pinned": (REPO, commit), "unpinned": (REPO, "")}
        for arguments in cases.values():
            seconds(*arguments)  # files into the caches
        least = dict.fromkeys(cases, float("inf"))
        asked = dict.fromkeys(cases, 0)
        for _ in range(options.rounds):
            for name, arguments in cases.items():
                hub.forget()
                least[name] = min(least[name], seconds(*arguments))
                asked[name] = len(hub.requests)
    for name, value in least.items():
        print(f"{name:12}{value:8.3f} s, {asked[name]} requests")
    more = least["pinned"] - least["bundled"]
    print(f"a pinned name takes {more:.3f} s more than a bundled one (at most {TARGET_SECONDS})")
    print(json.dumps({"seconds": least, "requests": asked}))
    return int(more > TARGET_SECONDS or asked["pinned"] > 0)


if __name__ == "__main__":
    sys.exit(main())
