"""How the cost of the exact sweep grows: with units, prompts, their length, the edited layer and positions; its memory.

    python benchmarks/growth.py [MODEL] [--json]

One thing is varied at a time; the rest is 256 neurons spread over all layers, 32 prompts of 53 tokens on average,
the decision position. Every row is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

PLAN: tuple[tuple[str, dict], ...] = (
    *(("units", {"units": n}) for n in (64, 256, 1024)),
    *(("prompts", {"prompts": n}) for n in (8, 16, 64)),
    *(("tokens per prompt", {"tokens": n}) for n in (32, 64, 128, 256)),
    *(("edited layer", {"layer": n}) for n in (0, 10, 20, 29)),
    *(("positions", {"last": n, "units": 60}) for n in (1, 2, 4, 8, 16)),
)
"""What is varied, and how."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.model, **json.loads(options.one))))
        return
    rows = []
    for varied, given in PLAN:
        words = [sys.executable, __file__, options.model, "--one", json.dumps(given)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        rows.append({"varied": varied, **given, **json.loads(done.stdout.splitlines()[-1])})
        if not options.json:
            show(rows[-1], header=len(rows) == 1)
    if options.json:
        print(json.dumps(rows))


def show(row: dict, header: bool) -> None:
    if header:
        print("| varied | | seconds | of which the clean run | units/s | peak memory, MB |\n|---|---|---|---|---|---|")
    value = next(row[k] for k in ("tokens", "prompts", "layer", "last", "units") if k in row)
    print(
        f"| {row['varied']} | {value} | {row['seconds']:.1f} | {row['clean']:.1f} | {row['units/s']:.1f} | "
        f"{row['peak']:,} (model alone {row['model']:,}) |",
        flush=True,
    )


def measure(
    name: str,
    units: int = 256,
    prompts: int = 32,
    tokens: int | None = None,
    layer: int | None = None,
    last: int | None = 1,
) -> dict:
    """Seconds, units per second and peak memory of one sweep."""
    from sweep import OPENINGS

    from ssah_lens.chat.batch import Row
    from ssah_lens.chat.model import ChatModel
    from ssah_lens.chat.prompts import pairs
    from ssah_lens.intervene.metric import logit_difference
    from ssah_lens.intervene.sites import Site
    from ssah_lens.intervene.sweep import Edits, Fill, sweep

    megabytes = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    model = ChatModel.load(name)
    loaded = megabytes()
    rows = model.rows(pairs("train")[0].sample(prompts, 0).texts)
    if tokens is not None:  # the end of the prompt, over and over, so that it ends as prompts do
        rows = [Row((r.ids * tokens)[-tokens:], (r.positions * tokens)[-tokens:]) for r in rows]
    metric = logit_difference(*([model.response_tokens(t, ended=False)[0] for t in side] for side in OPENINGS))
    layers = range(model.grid.n_layers) if layer is None else [min(layer, model.grid.n_layers - 1)]
    rng = np.random.default_rng(0)
    share = np.array_split(np.arange(units), len(layers))
    edits = [
        Edits(Site.NEURON, i, rng.choice(model.grid.d_mlp, len(part), replace=False))
        for i, part in zip(layers, share, strict=True)
        if len(part)
    ]
    run = lambda e: sweep(model, rows, metric, e, Fill("zero"), last)
    run([Edits(Site.NEURON, model.grid.n_layers - 1, np.zeros(1, int))])  # warms up
    started = time.perf_counter()
    run([Edits(Site.NEURON, model.grid.n_layers - 1, np.zeros(1, int))])
    clean = time.perf_counter() - started
    started = time.perf_counter()
    run(edits)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "clean": clean, "units/s": units / seconds, "peak": megabytes(), "model": loaded}


if __name__ == "__main__":
    main()
