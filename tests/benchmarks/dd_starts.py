"""What Dataset Distillation does to networks that it never saw: accuracy before and after training by the recipe.

Run `python tests/benchmarks/dd_starts.py GENERATOR --real mnist`; GENERATOR is the folder that a finished run of `dd`
made, whose settings are read from its `config.json`. Held-out networks begin as those of the run did, under seeds of
their own: from new weights, or trained first where the run had `pretrain`. Each is scored, trained by the recipe, and
scored again, as in the paper's tables of random starts, adaptation and poisoning (Wang et al., arXiv 1811.10959,
section 4). A fixed start is one network, so that there is nothing to hold out: the stored one alone is scored.

For a poisoned generator it also says which share of the victim's test images is taken for the target, before and after,
and how accurate the networks are on the other classes. One line of JSON ends the output.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import dimdata
from dimdata.artifact import load, read_config
from dimdata.distill.config import make_config
from dimdata.distill.dd import DDConfig
from dimdata.distill.objectives import Objective, Poison, objective_of
from dimdata.distill.starts import Starts
from dimdata.engine import Engine
from dimdata.generators.base import Generator
from dimdata.real import RealData, load_real
from dimdata.students.source import START
from dimdata.students.train import train

FIRST_SEED = 2**32  # of the networks; runs seldom have such


def classes_of(network: nn.Module, real: RealData, engine: Engine) -> Tensor:
    """Return what a network takes the test images for, int64 `[N]`."""
    assert real.test is not None
    shift, scale = (torch.tensor(values, device=engine.device)[:, None, None] for values in (real.mean, real.std))
    found = []
    network.eval()
    with torch.no_grad():
        for part in real.test.images.split(500):
            found.append(network((part.to(engine.device).float() / 255 - shift) / scale).argmax(1).cpu())
    return torch.cat(found)


def percent(mask: Tensor) -> float:
    """Return the share of true values in percent."""
    return 100 * float(mask.float().mean())


def figures(network: nn.Module, real: RealData, objective: Objective, engine: Engine) -> dict[str, float]:
    """Return what is measured of a network, in percent."""
    assert real.test is not None
    found, labels = classes_of(network, real, engine), real.test.labels
    if not isinstance(objective, Poison):
        return {"accuracy": percent(found == labels)}
    victims = labels == objective.victim
    return {
        "accuracy": percent(found == labels),
        "accuracy of others": percent((found == labels)[~victims]),
        "victim taken for target": percent(found[victims] == objective.taken_for),
    }


def supply(config: DDConfig, generator: Generator, real: RealData, engine: Engine, seed: int) -> Iterator[nn.Module]:
    """Yield networks to train: held out ones without end, or the one that a fixed start stores."""
    starts = Starts(config.student, config.law, config.start, config.pretrain, real, engine, FIRST_SEED + seed)
    stored = {k.removeprefix(START): t for k, t in generator.recipe_tensors.items() if k.startswith(START)}
    for number in itertools.count():
        network = starts.template()
        network.load_state_dict(stored if starts.fixed else starts.make(number))
        yield network
        if starts.fixed:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("generator", type=Path, help="the folder of a generator that dd distilled")
    parser.add_argument("--real", help="the dataset; that of the run unless given")
    parser.add_argument("--root", type=Path, help="where datasets lie")
    parser.add_argument("--networks", type=int, default=20, help="held-out networks")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other networks")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", default="off")
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    args = parser.parse_args()
    plan = read_config(args.generator).provenance["plan"]
    if plan["method"] != "dd":
        parser.error(f"{args.generator} was distilled by {plan['method']}, not dd.")
    config = make_config(DDConfig, plan["config"])
    assert isinstance(config, DDConfig)
    objective = objective_of(config.objective)
    generator = load(args.generator)
    # Normalised as the run did, whatever the split that these moments were taken of.
    real = load_real(args.real or plan["data"], root=args.root)
    real = dataclasses.replace(real, mean=generator.spec.mean, std=generator.spec.std)
    if real.test is None:
        parser.error(f"{real.name} has no test images.")
    engine = Engine.of(args.device, "fp32", args.compile)
    rows = []
    for network in itertools.islice(supply(config, generator, real, engine, args.seed), args.networks):
        before = figures(network, real, objective, engine)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*poisoned")
            train(network, generator, engine=engine)  # nothing in it is random: no shuffling, no augmentation
        rows.append({"before": before, "after": figures(network, real, objective, engine)})
        print(f"network {len(rows)}: " + "; ".join(f"{k} {v:.2f}" for k, v in rows[-1]["after"].items()), flush=True)
    count = len(rows)
    found = {
        name: {
            when: {
                "mean": statistics.mean(row[when][name] for row in rows),
                "std": statistics.stdev(row[when][name] for row in rows) if count > 1 else None,
            }
            for when in ("before", "after")
        }
        for name in rows[0]["after"]
    }
    kind = f"{config.student}, {config.start} start, pretrain {config.pretrain.on or 'none'}"
    print(f"\n{count} network{'s' * (count > 1)} ({kind}), in percent")
    for name, when in found.items():
        cells = [f"{v['mean']:6.2f}" + ("" if v["std"] is None else f" ± {v['std']:5.2f}") for v in when.values()]
        print(f"{name:>24}  {cells[0]}  ->  {cells[1]}")
    result = {
        "benchmark": "dd_starts",
        "networks": count,
        "data": real.name,
        "objective": dict(config.objective),
        "pretrain": config.pretrain.to_json(),
        "seed": args.seed,
        "figures": found,
        "rows": rows,
        "torch": torch.__version__,
        "dimdata": dimdata.__version__,
    }
    print(json.dumps(result))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
