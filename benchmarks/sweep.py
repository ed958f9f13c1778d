"""Units per second of the exact sweep against what a user would otherwise run, in one process and on the same work.

    python benchmarks/sweep.py [MODEL] [--prompts 32] [--units 1024] [--json]

The loop is TransformerLens as documented: one `run_with_hooks` per unit, batched over the prompts, with their attention
mask. 'plain hooks' is the same loop over the transformers model with a torch pre-hook and the last position's logits
only; 'nnsight' is that loop as nnsight writes it (left out where nnsight is not installed: it is no dependency). Every
engine's values are compared with the loop's on the units that both ran. All are warmed up on one unit.

'Share of GEMM rate' is the work that an engine's blocks must do (ours: one clean pass, and of every edit the blocks and
positions that it can change) over what the machine's rate for one large matrix product of this model would allow.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import time
from collections.abc import Callable, Iterator

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
    parser.add_argument("--loop-units", type=int, default=4, help="neurons run by the loops")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = ChatModel.load(options.model)
    prompts = pairs("validation")[0].sample(options.prompts, 0)
    rows = model.rows(prompts.texts)
    first = lambda texts: [model.response_tokens(t, ended=False)[0] for t in texts]
    metric = logit_difference(*(first(t) for t in OPENINGS))
    rate = gemm_rate(model)
    post = sum(p == Position.POST_INSTRUCTION for p in rows[0].positions)
    places = ("decision position", 1), (f"{post} post-instruction positions", post), ("all positions", None)
    out = []
    for name, last in places:
        for r in compare(model, rows, metric, last, name, options.units, options.loop_units, rate):
            if not options.json:
                show(r, header=not out)
            out.append(r)
    facts = {
        "model": model.name,
        "prompts": len(rows),
        "tokens per prompt": float(np.mean([len(r.ids) for r in rows])),
        "threads": torch.get_num_threads(),
        "GEMM rate, GFLOP/s": round(rate / 1e9, 1),
        "peak memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    if importlib.util.find_spec("nnsight") is None:
        facts["left out"] = "nnsight (not installed)"
    if options.json:
        print(json.dumps({"facts": facts, "results": out}))
        return
    print("", *(f"{k}: {v}" for k, v in facts.items()), sep="\n")


def show(r: dict, header: bool) -> None:
    """One row of the table, as soon as it is known."""
    if header:
        print("| edit at | engine | units/s | times the loop | share of GEMM rate | largest difference |")
        print("|---|---|---|---|---|---|")
    print(
        f"| {r['edit']} | {r['engine']} | {r['units_per_second']:.2f} | {r['times']:.1f} | {r['gemm']:.0%} | "
        f"{r['difference']:.1e} |",
        flush=True,
    )


def compare(
    model, rows, metric: Metric, last: int | None, name: str, units: int, loop_units: int, rate: float
) -> Iterator[dict]:
    """Rows of the table for one choice of positions, the loop first."""
    n_layers, d_mlp = model.grid.n_layers, model.grid.d_mlp
    units = units if last == 1 else max(n_layers, units // 4) if last else n_layers
    rng = np.random.default_rng(0)
    chosen = [Edits(Site.NEURON, i, rng.choice(d_mlp, -(-units // n_layers), replace=False)) for i in range(n_layers)]
    few = [Edits(Site.NEURON, i, chosen[i].units[:1]) for i in np.linspace(0, n_layers - 1, loop_units).astype(int)]
    loops = {"TransformerLens loop": by_run_with_hooks, "plain hooks, last logits": by_plain_hooks}
    if importlib.util.find_spec("nnsight") is not None:
        loops["nnsight, last logits"] = by_nnsight
    n = sum(map(len, chosen))
    length = np.mean([len(r.ids) for r in rows])
    size = length if last is None else last
    per_token = 2 * model.grid.block_parameters
    share = lambda layer: (n_layers - layer) / n_layers
    work = per_token * len(rows) * (length + sum(share(e.layer) * size * len(e) for e in chosen))
    whole = 2 * sum(p.numel() for p in model.plain.parameters()) * length * len(rows)
    row = lambda engine, speed, gemm, values: {
        "edit": name,
        "engine": engine,
        "units_per_second": speed,
        "times": speed / base,
        "gemm": gemm / rate,
        "difference": float(np.abs(values - reference).max()),
    }
    base, reference = 1.0, None
    for engine, loop in loops.items():
        loop(model, rows, metric, few[:1], last)  # warms up
        taken, values = timed(lambda loop=loop: loop(model, rows, metric, few, last))
        if reference is None:
            base, reference = len(few) / taken, values
        yield row(engine, len(few) / taken, whole * len(few) / taken, values)
    ours = lambda edits: sweep(model, rows, metric, edits, Fill("zero"), last).values
    few_values = ours(few)  # also warms up
    seconds, _ = timed(lambda: ours(chosen))
    yield row("ours", n / seconds, work / seconds, few_values)


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds, and what was found."""
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


@torch.inference_mode()
def by_nnsight(model: ChatModel, rows, metric: Metric, edits: list[Edits], last: int | None) -> np.ndarray:
    """nnsight around the same transformers model, logits of the last position only."""
    from nnsight import NNsight

    batch = model.pad(rows)
    positions = (batch.mask.cumsum(1) - 1).clamp(min=0)
    given = {"input_ids": batch.ids, "attention_mask": batch.mask, "position_ids": positions, "logits_to_keep": 1}
    names = {id(module): name for name, module in model.plain.named_modules()}
    wrapped = NNsight(model.plain)
    where = slice(None) if last is None else slice(-last, None)
    out = []
    for e in edits:
        unit, down = int(e.units[0]), wrapped
        for part in names[id(model.anatomy.blocks[e.layer].down)].split("."):
            down = down[int(part)] if part.isdigit() else getattr(down, part)
        with wrapped.trace(**given):
            edited = down.input.clone()
            edited[:, where, unit] = 0
            down.input = edited
            logits = wrapped.output.logits.save()
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
