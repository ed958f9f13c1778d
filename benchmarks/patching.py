"""Residual patching, layer by position, against TransformerLens' `generic_activation_patch`, on the same batches.

    python benchmarks/patching.py [MODEL] [--pairs 16] [--cells 40] [--json]

Token-aligned pairs of the shipped collection, in batches without padding (the TransformerLens loop takes no attention
mask), the same batches for both. Ours runs the whole map; the loop runs a sample of the cells that can differ, spread
evenly over layers and positions, and its time for all of them is worked out from that. Values are compared on the
cells that both ran. Cells before the first differing token are left to nobody: ours knows them, and the loop is not
made to run them either.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np
import pandas as pd
import torch
from sweep import OPENINGS, gemm_rate

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import pairs
from ssah_lens.intervene.metric import Metric, logit_difference
from ssah_lens.intervene.patching import Patched, activation_patching
from ssah_lens.intervene.sites import Site


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--cells", type=int, default=40, help="cells that the loop runs, over all batches")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = ChatModel.load(options.model)
    first = lambda texts: [model.response_tokens(t, ended=False)[0] for t in texts]
    metric = logit_difference(*(first(t) for t in OPENINGS))
    groups = equal_lengths(model, options.pairs)
    rate = gemm_rate(model)
    ours_seconds = loop_seconds = work = 0.0
    cells = run = possible = loop_runs = 0
    worst = 0.0
    for clean, corrupted in groups:
        patch = lambda c=clean, k=corrupted: activation_patching(model, c, k, metric, Site.RESID)
        activation_patching(model, clean, corrupted, metric, Site.RESID, layers=[model.grid.n_layers - 1])  # warms up
        started = time.perf_counter()
        found = patch()
        ours_seconds += time.perf_counter() - started
        can = can_differ(model, clean, corrupted, found)
        share = max(2, round(options.cells * len(clean) / sum(len(c) for c, _ in groups)))
        seconds, difference = by_transformer_lens(model, clean, corrupted, metric, found, spread(can, share))
        loop_seconds += seconds * int(can.sum())
        worst = max(worst, difference)
        cells, run, possible = cells + found.cells, run + found.cells_run, possible + int(can.sum())
        loop_runs += share
        reach = np.arange(can.shape[1], 0, -1)
        blocks = model.grid.n_layers - np.arange(can.shape[0])
        work += float((can * reach * blocks[:, None]).sum()) * len(clean)
    flops = work * 2 * model.grid.block_parameters / model.grid.n_layers
    facts = {
        "model": model.name,
        "pairs": sum(len(c) for c, _ in groups),
        "batches (pairs x tokens)": ", ".join(f"{len(c)} x {len(model.rows(c[:1])[0].ids)}" for c, _ in groups),
        "cells": cells,
        "cells that can differ": possible,
        "cells that ours ran": run,
        "cells that the loop ran": loop_runs,
        "ours, seconds": round(ours_seconds, 1),
        "loop, seconds for the cells that can differ": round(loop_seconds, 1),
        "times the loop": round(loop_seconds / ours_seconds, 2),
        "loop, seconds for all cells": round(loop_seconds * cells / possible, 1),
        "largest difference": worst,
        "share of GEMM rate": round(flops / ours_seconds / rate, 3),
        "GEMM rate, GFLOP/s": round(rate / 1e9, 1),
        "peak memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(facts) if options.json else "\n".join(f"{k}: {v}" for k, v in facts.items()))


def equal_lengths(model: ChatModel, n: int) -> list[tuple[list[str], list[str]]]:
    """`n` token-aligned pairs in groups of one length, the largest groups first."""
    groups: dict[int, list[tuple[str, str]]] = {}
    for split in ("train", "validation", "test"):
        harmful, twins = pairs(split)
        for a, b in zip(harmful.texts, twins.texts, strict=True):
            one, other = (model.rows([t])[0].ids for t in (a, b))
            if len(one) == len(other) and one != other:
                groups.setdefault(len(one), []).append((a, b))
    out, left = [], n
    for group in sorted(groups.values(), key=lambda g: (-len(g), g)):
        part = group[:left]
        if part:
            out.append(([a for a, _ in part], [b for _, b in part]))
        left -= len(part)
    if left:
        raise SystemExit(f"only {n - left} token-aligned pairs for {model.name}")
    return out


def can_differ(model: ChatModel, clean: list[str], corrupted: list[str], found: Patched) -> np.ndarray:
    """True for cells that patching can change, [layer, pos]."""
    ids = [np.array([r.ids for r in model.rows(side)]) for side in (clean, corrupted)]
    differ = (ids[0] != ids[1]).any(0)
    can = np.broadcast_to(np.logical_or.accumulate(differ), found.values.shape[:2]).copy()
    can[0] = differ  # below block 0 only the differing tokens themselves
    return can


def spread(can: np.ndarray, n: int) -> list[tuple[int, int]]:
    """Some of the cells, evenly over their order."""
    where = np.argwhere(can)
    return [(int(layer), int(pos)) for layer, pos in where[np.linspace(0, len(where) - 1, n).astype(int)]]


@torch.inference_mode()
def by_transformer_lens(
    model: ChatModel, clean: list[str], corrupted: list[str], metric: Metric, ours: Patched, cells: list
) -> tuple[float, float]:
    """Seconds per cell of `generic_activation_patch`, and the largest difference from our values."""
    from transformer_lens import patching

    bridge = model.bridge
    tokens = [torch.tensor([r.ids for r in model.rows(side)]) for side in (clean, corrupted)]
    names = lambda name: name.endswith("hook_resid_pre")
    _, cache = bridge.run_with_cache(tokens[0], names_filter=names)
    index = pd.DataFrame(cells, columns=["layer", "pos"])
    read = lambda logits: metric.of(logits[:, -1])
    setter = patching.layer_pos_patch_setter
    run = lambda frame: patching.generic_activation_patch(
        bridge, tokens[1], cache, read, setter, "resid_pre", index_df=frame, reduce="none"
    )
    run(index[:1])  # warms up
    started = time.perf_counter()
    values = run(index).values
    seconds = (time.perf_counter() - started) / len(cells)
    mine = np.stack([ours.values[cell] for cell in cells])
    return seconds, float(np.abs(values.numpy() - mine).max())


if __name__ == "__main__":
    main()
