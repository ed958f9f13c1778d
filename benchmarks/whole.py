"""The exact effect of every head and every neuron, and how well cheaper numbers stand in for it.

    python benchmarks/whole.py MODEL --out FOLDER [--prompts 32] [--sample 96] [--layers A-B]

Mean ablation at the decision position on harmful validation prompts; the same call goes on where a killed one stopped.
Writes `effects.parquet` (kind, layer, index, exact effect, two approximations), `facts.json` and two figures, and
prints what they say: time, agreement of attribution patching with the exact effect and what it misses, agreement of the
effect at the decision position with the effect at all positions (on a random sample of units), error of bfloat16.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pandas as pd

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import pairs
from ssah_lens.intervene.moments import collect
from ssah_lens.intervene.sweep import Fill, all_units, sweep
from ssah_lens.show.effect_figures import agreement_scatter
from ssah_lens.show.style import save_png
from ssah_lens.study.effects import compared, guesses, position_agreement, unit_names
from ssah_lens.study.openings import find_openings
from ssah_lens.units import Kind

STEPS = 4
"""Points of integrated gradients."""


def main() -> None:
    args = arguments()
    model = ChatModel.load(args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    harmful, twins = (p.sample(args.prompts, args.seed) for p in pairs("validation"))
    rows = model.rows(harmful.texts)
    metric = find_openings(model, args.seed).metric
    fill = Fill("mean", collect(model, rows + model.rows(twins.texts)))
    layers = None if args.layers is None else range(args.layers[0], args.layers[1] + 1)
    edits = all_units(model, layers=layers)
    started = time.perf_counter()
    exact = sweep(model, rows, metric, edits, fill, store=args.out / "sweep.npy")
    seconds = time.perf_counter() - started
    facts = {
        "model": model.name,
        "prompts": len(rows),
        "units": len(exact.values),
        "estimand": exact.estimand,
        "metric": exact.metric,
        "engine": exact.engine,
        "seconds of this call": round(seconds, 1),
        "mean metric": float(exact.clean.mean()),
    }
    print(*(f"{k}: {v}" for k, v in facts.items()), sep="\n", flush=True)
    effect = exact.effect.mean(1)
    table = pd.DataFrame(
        [(str(k), layer, i) for k in Kind for layer in layers or range(model.grid.n_layers)
         for i in range(model.grid.width(k))], columns=["kind", "layer", "index"],
    )  # fmt: skip
    table["effect"], table["sd_over_prompts"] = effect, exact.effect.std(1, ddof=1)
    found = []
    for name, steps in (("attribution", 0), ("integrated_gradients", STEPS)):
        table[name], taken = guesses(model, rows, metric, fill, edits, steps)
        facts[f"seconds of {name}"] = round(taken, 1)
        for kind in Kind:
            of = (table["kind"] == kind).to_numpy()
            found.append(
                compared(
                    f"{name.replace('_', ' ')}, {kind}", "exact effect", unit_names(edits)[of], effect[of],
                    table[name].to_numpy()[of], exact.estimand, exact.metric, len(rows),
                )
            )  # fmt: skip
    table.to_parquet(args.out / "effects.parquet", index=False)
    positions = position_agreement(model, rows, metric, fill, args.sample, args.seed)
    low = sweep(model, rows, metric, edits[:: max(1, len(edits) // 8)], fill, bfloat16=True)
    facts["bfloat16"] = None if low.rounding is None else vars(low.rounding)
    facts["agreement"] = [
        {"name": a.name, "n": len(a.exact), "spearman": a.spearman, "overlap": a.overlap, "missed": a.missed[:5]}
        for a in (*found, positions)
    ]
    (args.out / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    for a in (*found, positions):
        overlap = ", ".join(f"{k:.1%}: {v:.0%}" for k, v in a.overlap.items())
        print(f"{a.name} against {a.against}: Spearman {a.spearman:.3f} over {len(a.exact):,} units, top {overlap}; "
              f"missed: {', '.join(a.missed[:5])}")  # fmt: skip
    print("bfloat16:", facts["bfloat16"])
    for a in (found[0], positions):
        save_png(agreement_scatter(a), args.out / f"{a.name.split(',')[0].replace(' ', '_')}.png")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="built-in name, folder or hub id of an aligned model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--sample", type=int, default=96, help="units that are also ablated at all positions")
    parser.add_argument("--layers", type=lambda s: tuple(map(int, s.split("-"))), help="A-B: only these layers")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
