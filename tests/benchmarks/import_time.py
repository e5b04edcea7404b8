"""What importing dimdata costs over importing torch, how long the first batch takes after it, and what help costs.

Run `python tests/benchmarks/import_time.py`; it prints a table and one JSON line, and exits with 1 if a target is
missed. Each round runs a fresh process of each kind one after another. Within processes the least time is kept;
`dimdata --help` and a process that only imports torch are timed from outside, as one waits for them, and for these the
median is kept and reported, without a target.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

TARGET_RATIO = 1.1
TARGET_SECONDS = 0.5

CLOCK = "import time; start = time.perf_counter()\n"
PROGRAMS = {
    "import torch": CLOCK + "import torch\nprint(time.perf_counter() - start)",
    "import torch, dimdata": CLOCK + "import torch, dimdata\nprint(time.perf_counter() - start)",
    "first batch": "import torch\n"
    + CLOCK
    + "from torch.utils.data import DataLoader\nfrom dimdata import GeneratedDataset\n"
    + "next(iter(DataLoader(GeneratedDataset({name!r}, ipc=10), batch_size=128)))\nprint(time.perf_counter() - start)",
}

WAITS = {
    "dimdata --help": "from dimdata.cli.main import main\nmain(['--help'])",  # what the console script does
    "python -c 'import torch'": "import torch",
}


def wait(program: str) -> float:
    """Return the wall time of a fresh process from start to end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return time.perf_counter() - start


def seconds(program: str) -> float:
    """Return what a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--name", default="dim-mnist", help="a bundled generator, or a folder such as ./runs/x/generator"
    )
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    programs = {what: text.replace("{name!r}", repr(options.name)) for what, text in PROGRAMS.items()}
    for program in programs.values():
        seconds(program)  # files into the system's cache
    least = dict.fromkeys(programs, float("inf"))
    waits: dict[str, list[float]] = {what: [] for what in WAITS}
    for _ in range(options.rounds):
        for what, program in programs.items():
            least[what] = min(least[what], seconds(program))
        for what, program in WAITS.items():
            waits[what].append(wait(program))
    median = {what: statistics.median(times) for what, times in waits.items()}
    ratio = least["import torch, dimdata"] / least["import torch"]
    for what, value in least.items():
        print(f"{what:26}{value:8.3f} s")
    for what, value in median.items():
        print(f"{what:26}{value:8.3f} s (median; {min(waits[what]):.3f} to {max(waits[what]):.3f})")
    print(f"import ratio {ratio:.3f} (at most {TARGET_RATIO}); first batch at most {TARGET_SECONDS} s")
    help_ratio = median["dimdata --help"] / median["python -c 'import torch'"]
    print(f"help ratio {help_ratio:.3f}")
    print(json.dumps({"seconds": least, "import_ratio": ratio, "wall": waits, "help_ratio": help_ratio}))
    return int(ratio > TARGET_RATIO or least["first batch"] > TARGET_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
