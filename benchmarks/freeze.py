"""What freezing costs: seconds per step, and bytes that the optimizer holds, beside plain fine-tuning.

    python benchmarks/freeze.py MODEL UNITS [--rounds N] [--arms WORD,...]

All arms take the same examples in the same order, a few steps each in turn, so that a machine that slows down slows
all of them. A step is compared with the plain step on the same examples; the median over steps is reported. Bytes are
counted from the optimizer itself, while it steps: moments, own copies of sliced parameters, and gradients.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import instructions
from ssah_lens.progress import quiet
from ssah_lens.study.budget import redundant
from ssah_lens.study.freeze import frozen_set
from ssah_lens.train.data import rows_of
from ssah_lens.train.freeze import FrozenSlices, other_slices, owned_slices
from ssah_lens.train.loop import TrainSettings, Watch, train
from ssah_lens.train.methods import weights_put_back
from ssah_lens.train.trainable import Policy
from ssah_lens.units import Role, UnitTable

STEPS = 4
"""Steps of an arm in a round; the first makes the optimizer's state and is not counted."""
TOP_CU = 0.06
LARGE_RU = 0.2
"""The share that the SSAH paper trains."""


def arms(model: ChatModel, table: UnitTable) -> dict[str, tuple[Policy, FrozenSlices | None]]:
    """Name -> (policy, what is frozen)."""
    hold = lambda units: FrozenSlices(owned_slices(model.anatomy, units))
    only = lambda units: FrozenSlices(other_slices(model.anatomy, units))
    return {
        "plain": ("blocks", None),
        "plain, all parameters": ("all", None),
        "freeze SCU": ("blocks", hold(table.roles[Role.SCU])),
        "freeze SCU + top CU": ("blocks", hold(frozen_set(table, [Role.SCU], TOP_CU))),
        "freeze SCU + all CU": ("blocks", hold(table.units([Role.SCU, Role.CU]))),
        "train RU only": ("blocks", only(table.roles[Role.RU])),
        f"train RU only, {LARGE_RU:.0%} of units": ("blocks", only(redundant(table, LARGE_RU))),
    }


def measure(model: ChatModel, table: UnitTable, rounds: int, some: list[str] | None = None) -> dict[str, dict]:
    """Medians per arm; `some` keeps the plain arm and those whose names hold one of these words."""
    rows = rows_of(model, instructions("train"))
    seconds: dict[str, list[float]] = {}
    held: dict[str, dict[str, float]] = {}
    trained: dict[str, int] = {}
    size = lambda tensors: float(sum(t.numel() * t.element_size() for t in tensors))
    own = {id(p) for p in model.plain.parameters()}
    ways = {n: a for n, a in arms(model, table).items() if some is None or n == "plain" or any(w in n for w in some)}
    for turn in range(rounds):
        for name, (policy, frozen) in ways.items():
            if turn and name == "plain, all parameters":
                continue  # it is there for its bytes

            def count(optimizer: torch.optim.Optimizer, *_, name=name) -> None:
                tensors = [p for group in optimizer.param_groups for p in group["params"]]
                held[name] = {
                    "moments": size(t for s in optimizer.state.values() for k, t in s.items() if k != "step"),
                    "copies": size(t for t in tensors if id(t) not in own),
                    "gradients": size(t.grad for t in (*tensors, *model.plain.parameters()) if t.grad is not None)
                    - size(t.grad for t in tensors if id(t) in own),
                }

            stamps: list[float] = []
            look = lambda stamps=stamps: stamps.append(time.perf_counter()) or {}
            settings = TrainSettings(steps=STEPS, lr=5e-5, seed=turn, policy=policy)
            hook = register_optimizer_step_post_hook(count)
            with weights_put_back(model):
                done = train(model, rows, settings, frozen, watch=Watch(1, look))
            hook.remove()
            seconds.setdefault(name, []).extend(np.diff(stamps)[1:].tolist())
            trained[name] = done.trained_parameters
    plain = np.array(seconds["plain"])
    memory = lambda name: held[name]["moments"] + held[name]["copies"]
    return {
        name: {
            "trained_parameters": trained[name],
            "frozen_share": (0 if (frozen := ways[name][1]) is None else frozen.n_parameters)
            / model.grid.block_parameters,
            "seconds": float(np.median(took)),
            "to_plain": float(np.median(np.array(took) / plain[: len(took)])),
            "n_steps": len(took),
            "megabytes": {k: round(v / 1e6, 1) for k, v in held[name].items()},
            "optimizer_to_plain": memory(name) / memory("plain"),
        }
        for name, took in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("units", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", help="words in the names of some arms, separated by commas")
    given = parser.parse_args()
    some = given.arms.split(",") if given.arms else None
    with quiet():
        model = ChatModel.load(given.model)
        found = measure(model, UnitTable.load(given.units, model.grid), given.rounds, some)
    print(json.dumps({"threads": torch.get_num_threads(), "arms": found}, indent=1))


if __name__ == "__main__":
    main()
