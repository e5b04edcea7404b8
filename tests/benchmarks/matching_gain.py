"""Does matching earn its place? The second phase of DiM against giving the same time to the first.

    python tests/benchmarks/matching_gain.py fashion-mnist --steps 2000 --seeds 3 --out gain.json
    python tests/benchmarks/matching_gain.py mnist --config dim-mnist --set start=varied --set calm=500 --out gain.json

For each seed two generators are distilled: one with the matching phase, one without it and with as many more steps of
the GAN phase as take the same time, by seconds a step that are measured before (processor time on a CPU). A student is
trained on each and scored on the test set. Finished runs, scores and what was measured are kept in the working folder,
so a stopped call goes on.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from trials import PLANNED_STEPS, step_seconds

from dimdata.distill.config import make_config, merge, parse_setting
from dimdata.distill.dim import DiM, DimConfig
from dimdata.distill.run import distill
from dimdata.engine import Engine, keep_freed_memory
from dimdata.evaluate import evaluate
from dimdata.files import write_atomic
from dimdata.real import load_real
from dimdata.scores import digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--root")
    parser.add_argument("--config")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="a setting of both runs")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/matching-gain"))
    arguments = parser.parse_args()
    keep_freed_memory()
    real = load_real(arguments.data, root=arguments.root)

    common: dict[str, Any] = {}
    for text in arguments.settings:
        common = merge(common, parse_setting(text))

    def costs(path: Path, seed: int) -> dict[str, float]:
        """Return seconds a step of each phase, measured once."""
        if not path.is_file():
            engine = Engine.of()
            config = make_config(DimConfig, arguments.config, common)
            assert isinstance(config, DimConfig)
            clock = time.process_time if engine.device.type == "cpu" else time.perf_counter
            found = step_seconds(DiM(config, real, engine, seed, PLANNED_STEPS), clock)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(found).encode())
        return dict(json.loads(path.read_text()))

    def score(run: Path, steps: int, seed: int, **own: float) -> float:
        settings = {**common, **own}
        folder = run / "generator"
        if not folder.exists():
            resume = (run / "run.json").exists()
            distill(real, out=run, config=arguments.config, settings=settings, steps=steps, seed=seed, resume=resume)
        (result,) = evaluate(
            folder,
            ipc=arguments.ipc,
            epochs=arguments.epochs,
            seeds=[seed],
            real=real,
            baselines=(),
            output=run / "scores.jsonl",
        )
        return result.mean

    pairs = []
    for seed in range(arguments.seeds):
        work = arguments.work / f"{real.name}-{digest([arguments.config, common, arguments.steps])[:8]}-{seed}"
        cost = costs(work / "costs.json", seed)
        if "match" not in cost:
            parser.error("these settings have no matching phase")
        given = score(work / "match", arguments.steps, seed)
        plan = json.loads((work / "match/generator/config.json").read_text())["provenance"]["phases"]
        more = round(plan["match"] * cost["match"] / cost["gan"])
        without = score(work / "gan", plan["gan"] + more, seed, match_share=0.0, match_epochs=0)
        pair = {"seed": seed, "with": given, "without": without, "gan_steps_instead": more}
        pairs.append({**pair, "phases": plan, "seconds_a_step": cost})
        print(json.dumps(pairs[-1]), flush=True)
    gains = [pair["with"] - pair["without"] for pair in pairs]
    summary = {
        "dataset": real.name,
        "steps": arguments.steps,
        "settings": common,
        "student": "convnet3",
        "images": arguments.ipc * real.num_classes * arguments.epochs,
        "with_matching": round(statistics.mean(pair["with"] for pair in pairs), 2),
        "same_time_without": round(statistics.mean(pair["without"] for pair in pairs), 2),
        "gain": round(statistics.mean(gains), 2),
        "std": round(statistics.stdev(gains), 2) if len(gains) > 1 else None,
        "seeds": len(pairs),
        "runs": pairs,
        "machine": Engine.of().describe(),
    }
    write_atomic(arguments.out, (json.dumps(summary, indent=1) + "\n").encode())
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
