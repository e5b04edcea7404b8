"""What do stages gain? Progressive distillation against its own base, at equal images and equal student steps.

    python tests/benchmarks/pdd_gain.py fashion-mnist --base dm --preset dm-fashion-mnist --ipc 10 --out gain.json
    python tests/benchmarks/pdd_gain.py fashion-mnist --base dim --preset dim-fashion-mnist --stages 3 --out gain.json

For each seed the base is distilled once as it is and once in stages, in as many steps altogether, and a student is
trained on either and scored on the test set. Steps of fixed length, those of MTT's experts, come on top: once for the
base, and once for each stage. Seconds are those of the distillations, the networks that are trained for later stages
included. Finished runs and scores stay in the working folder, so a stopped call goes on.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from dimdata import artifact
from dimdata.distill.config import make_config, merge, parse_setting
from dimdata.distill.method import METHODS, Method
from dimdata.distill.run import distill
from dimdata.engine import Engine, keep_freed_memory
from dimdata.evaluate import evaluate
from dimdata.files import write_atomic
from dimdata.real import RealData, load_real
from dimdata.scores import digest
from dimdata.spec import Record


def fixed_steps(kind: type[Method], config: Record, real: RealData) -> int:
    """Return the steps that a method takes whatever its budget; a stage takes as many as the whole."""
    method = kind(config, real, Engine.of(), 0, kind.default_steps(config))
    return sum(phase.steps for phase in method.phases() if phase.fixed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--root")
    parser.add_argument("--base", default="dm")
    parser.add_argument("--preset", default="", help="of the base")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="a setting of the base")
    parser.add_argument("--pdd", action="append", default=[], help="a setting of progressive distillation")
    parser.add_argument("--stages", type=int, default=5)
    parser.add_argument("--ipc", type=int, default=10, help="of a table: stored; of a network: an epoch's")
    parser.add_argument("--steps", type=int, help="of a whole distillation, but for those of fixed length")
    parser.add_argument("--epochs", type=int, help="of a student under a fresh draw")
    parser.add_argument("--student", default="convnet3")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/pdd-gain"))
    arguments = parser.parse_args()
    keep_freed_memory()
    real = load_real(arguments.data, root=arguments.root)
    settings, staged = {}, {}
    for text in arguments.settings:
        settings = merge(settings, parse_setting(text))
    for text in arguments.pdd:
        staged = merge(staged, parse_setting(text))
    kind = METHODS[arguments.base]
    if hasattr(kind.Config(), "ipc"):
        settings["ipc"] = arguments.ipc
    config = make_config(kind.Config, arguments.preset or None, settings)
    fixed = fixed_steps(kind, config, real)
    steps = arguments.steps or kind.default_steps(config) - fixed
    progressive = {"base": arguments.base, "stages": arguments.stages, "preset": arguments.preset, "settings": settings}

    def score(name: str, method: str, values: dict, steps: int, seed: int) -> dict:
        of = digest([method, values, steps])[:8]  # another setting is another run
        run = arguments.work / f"{real.name}-{arguments.base}-ipc{arguments.ipc}-{name}-{of}-{seed}"
        folder = run / "generator"
        if not folder.exists():
            start = time.perf_counter()
            resumed = (run / "run.json").exists()
            distill(real, out=run, method=method, settings=values, steps=steps, seed=seed, resume=resumed)
            if not resumed:
                write_atomic(run / "seconds.json", json.dumps(time.perf_counter() - start).encode())
        generator = artifact.load(folder)
        (result,) = evaluate(
            generator,
            ipc=arguments.ipc if generator.images is None else None,
            epochs=arguments.epochs if generator.images is None else None,
            students=arguments.student,
            seeds=[seed],
            real=real,
            baselines=(),
            output=run / "scores.jsonl",
        )
        seconds = run / "seconds.json"
        return {
            "accuracy": result.mean,
            "after_each_stage": result.stages,
            "student_steps": result.steps,
            "images": generator.images,
            "seconds": round(json.loads(seconds.read_text()), 1) if seconds.exists() else None,
        }

    rows = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        single = score("single", arguments.base, config.to_json(), steps + fixed, seed)
        whole = steps + fixed * arguments.stages
        stages = score(f"{arguments.stages}-stages", "pdd", merge(progressive, staged), whole, seed)
        if (single["student_steps"], single["images"]) != (stages["student_steps"], stages["images"]):
            raise SystemExit(f"The two are not trained alike: {single}, {stages}.")
        rows.append({"seed": seed, "single": single, "progressive": stages})
        print(json.dumps(rows[-1]), flush=True)
        gains = [row["progressive"]["accuracy"] - row["single"]["accuracy"] for row in rows]
        summary = {
            "dataset": real.name,
            "base": arguments.base,
            "ipc": arguments.ipc,
            "stages": arguments.stages,
            "steps": steps,
            "fixed_steps": fixed,
            "student": arguments.student,
            "single": round(statistics.mean(row["single"]["accuracy"] for row in rows), 2),
            "progressive": round(statistics.mean(row["progressive"]["accuracy"] for row in rows), 2),
            "gain": round(statistics.mean(gains), 2),
            "std": round(statistics.stdev(gains), 2) if len(gains) > 1 else None,
            "seeds": len(rows),
            "rows": rows,
            "settings": {"base": config.to_json(), "pdd": merge(progressive, staged)},
            "machine": Engine.of().describe(),
        }
        arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps({key: summary[key] for key in ("single", "progressive", "gain", "std", "seeds")}))


if __name__ == "__main__":
    main()
