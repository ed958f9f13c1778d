"""Units per second of the exact sweep against what a user would otherwise run, in one process and on the same work.

    python benchmarks/sweep.py [MODEL] [--prompts 32] [--units 1024] [--json]

The loop is TransformerLens as documented: one `run_with_hooks` per unit, batched over the prompts, with their attention
mask. 'plain hooks' is the same loop over the transformers model with a torch pre-hook and the last position's logits
only. Every engine's values are compared with the loop's on the units that both ran.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable

import numpy as np
import torch

from ssah_lens.chat.batch import Position
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import pairs
from ssah_lens.intervene.metric import Metric, logit_difference
from ssah_lens.intervene.sites import Site
from ssah_lens.intervene.sweep import Edits, Fill, sweep

OPENINGS = ("I", "Sorry", "Unfortunately"), ("Sure", "Here", "To", "The")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--units", type=int, default=1024, help="neurons swept by ours, evenly over layers")
    parser.add_argument("--loop-units", type=int, default=6, help="neurons run by the loops")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = ChatModel.load(options.model)
    prompts = pairs("validation")[0].sample(options.prompts, 0)
    rows = model.rows(prompts.texts)
    first = lambda texts: [model.response_tokens(t, ended=False)[0] for t in texts]
    metric = logit_difference(*(first(t) for t in OPENINGS))
    rate = gemm_rate(model)
    post = sum(p == Position.POST_INSTRUCTION for p in rows[0].positions)
    out = []
    for name, last in (("decision position", 1), (f"{post} post-instruction positions", post), ("all positions", None)):
        out += compare(model, rows, metric, last, name, options.units, options.loop_units, rate)
    facts = {
        "model": model.name,
        "prompts": len(rows),
        "tokens per prompt": float(np.mean([len(r.ids) for r in rows])),
        "threads": torch.get_num_threads(),
        "GEMM rate, GFLOP/s": round(rate / 1e9, 1),
        "peak memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    if options.json:
        print(json.dumps({"facts": facts, "results": out}))
        return
    print(*(f"{k}: {v}" for k, v in facts.items()), sep="\n")
    print("\n| edit at | engine | units/s | times the loop | share of GEMM rate | largest difference |")
    print("|---|---|---|---|---|---|")
    for r in out:
        print(
            f"| {r['edit']} | {r['engine']} | {r['units_per_second']:.2f} | {r['times']:.1f} | {r['gemm']:.0%} | "
            f"{r['difference']:.1e} |"
        )


def compare(model, rows, metric: Metric, last: int | None, name: str, units: int, loop_units: int, rate: float) -> list:
    """Rows of the table for one choice of positions."""
    n_layers, d_mlp = model.grid.n_layers, model.grid.d_mlp
    units = units if last == 1 else max(n_layers, units // 8) if last else 2 * n_layers
    rng = np.random.default_rng(0)
    chosen = [Edits(Site.NEURON, i, rng.choice(d_mlp, -(-units // n_layers), replace=False)) for i in range(n_layers)]
    few = [Edits(Site.NEURON, i, chosen[i].units[:1]) for i in np.linspace(0, n_layers - 1, loop_units).astype(int)]
    loop_seconds, loop_values = timed(lambda: by_run_with_hooks(model, rows, metric, few, last))
    plain_seconds, plain_values = timed(lambda: by_plain_hooks(model, rows, metric, few, last))
    ours = lambda edits: sweep(model, rows, metric, edits, Fill("zero"), last).values
    few_values = ours(few)  # also warms up
    seconds, _ = timed(lambda: ours(chosen))
    n = sum(map(len, chosen))
    base = loop_units / loop_seconds
    size = np.mean([len(r.ids) for r in rows]) if last is None else last
    flops = lambda layer: 2 * model.grid.block_parameters / n_layers * (n_layers - layer) * size * len(rows)
    work = sum(flops(e.layer) * len(e) for e in chosen)
    whole = 2 * sum(p.numel() for p in model.plain.parameters()) * np.mean([len(r.ids) for r in rows]) * len(rows)
    row = lambda engine, speed, gemm, values: {
        "edit": name,
        "engine": engine,
        "units_per_second": speed,
        "times": speed / base,
        "gemm": gemm / rate,
        "difference": float(np.abs(values - loop_values).max()),
    }
    return [
        row("TransformerLens loop", base, whole * base, loop_values),
        row("plain hooks, last logits", loop_units / plain_seconds, whole * loop_units / plain_seconds, plain_values),
        row("ours", n / seconds, work / seconds, few_values),
    ]


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds of the second run: the first one warms up."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


@torch.inference_mode()
def by_run_with_hooks(model: ChatModel, rows, metric: Metric, edits: list[Edits], last: int | None) -> np.ndarray:
    """TransformerLens as documented."""
    batch = model.pad(rows)
    out = []
    for e in edits:
        unit = int(e.units[0])

        def zero(x: torch.Tensor, hook, unit=unit) -> torch.Tensor:
            x = x.clone()
            x[:, slice(None) if last is None else slice(-last, None), unit] = 0
            return x

        logits = model.bridge.run_with_hooks(
            batch.ids, attention_mask=batch.mask, fwd_hooks=[(e.site.hook(e.layer), zero)]
        )
        out.append(metric.of(logits[:, -1]).numpy())
    return np.array(out)


@torch.inference_mode()
def by_plain_hooks(model: ChatModel, rows, metric: Metric, edits: list[Edits], last: int | None) -> np.ndarray:
    """transformers with a torch pre-hook, logits of the last position only."""
    batch = model.pad(rows)
    positions = (batch.mask.cumsum(1) - 1).clamp(min=0)
    out = []
    for e in edits:
        unit = int(e.units[0])

        def zero(module, args, unit=unit):
            x = args[0].clone()
            x[:, slice(None) if last is None else slice(-last, None), unit] = 0
            return (x,)

        handle = model.anatomy.blocks[e.layer].down.register_forward_pre_hook(zero)
        try:
            logits = model.plain(
                input_ids=batch.ids, attention_mask=batch.mask, position_ids=positions, logits_to_keep=1
            ).logits
        finally:
            handle.remove()
        out.append(metric.of(logits[:, -1]).numpy())
    return np.array(out)


def gemm_rate(model: ChatModel, tokens: int = 2048, seconds: float = 2.0) -> float:
    """float32 multiply-adds per second, times two, of this model's MLP product: what the machine can give at most."""
    a, b = torch.randn(tokens, model.anatomy.d_model), torch.randn(model.anatomy.d_mlp, model.anatomy.d_model)
    torch.nn.functional.linear(a, b)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        torch.nn.functional.linear(a, b)
        done += 1
    return 2 * a.numel() * b.shape[0] * done / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
