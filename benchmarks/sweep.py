"""Units per second of the exact sweep against what a user would otherwise run, in one run and on the same work.

    python benchmarks/sweep.py [MODEL] [--prompts 32] [--units 1024] [--json]

The loop is TransformerLens as documented: one `run_with_hooks` per unit, batched over the prompts, with their attention
mask. 'plain hooks' is the same loop over the transformers model with a torch pre-hook and the last position's logits
only; 'nnsight' is that loop as nnsight writes it (left out where nnsight is not installed: it is no dependency). Every
engine's values are compared with the loop's on the units that both ran. All are warmed up on one unit. Every engine has
a process of its own, one after the other, so that its peak memory is its own (the model included).

'Share of GEMM rate' is the work that an engine's blocks must do (ours: one clean pass, and of every edit the blocks and
positions that it can change) over what the machine's rate for one large matrix product of this model would allow.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
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
    parser.add_argument("--loop-units", type=int, default=4, help="neurons run by the loops")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", choices=list(ENGINES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.model, options.prompts, options.units, options.loop_units)))
        return
    installed = importlib.util.find_spec("nnsight") is not None
    out: list[dict] = []
    found: dict = {}
    for engine in ENGINES:
        if engine == NNSIGHT and not installed:
            continue
        words = [sys.executable, __file__, options.model, "--one", engine, "--prompts", str(options.prompts)]
        words += ["--units", str(options.units), "--loop-units", str(options.loop_units)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        out += compared(found, out)
        if not options.json:
            for row in out[-len(found["rows"]) :]:
                show(row, header=row is out[0])
    facts = found["facts"] | ({} if installed else {"left out": "nnsight (not installed)"})
    if options.json:
        print(json.dumps({"facts": facts, "results": out}))
        return
    print("", *(f"{k}: {v}" for k, v in facts.items()), sep="\n")


def compared(found: dict, before: list[dict]) -> list[dict]:
    """An engine's rows of the table; the first engine is what the others are compared with."""
    out = []
    for row in found["rows"]:
        base = next((b for b in before if b["edit"] == row["edit"]), row)
        off = np.abs(np.subtract(row["values"], base["values"])).max()
        times = row["units_per_second"] / base["units_per_second"]
        out.append(row | {"times": times, "difference": float(off), "peak": found["peak"]})
    return out


def show(r: dict, header: bool) -> None:
    """One row of the table, as soon as it is known."""
    if header:
        print("| edit at | engine | units/s | times the loop | share of GEMM rate | largest difference | peak, MB |")
        print("|---|---|---|---|---|---|---|")
    print(
        f"| {r['edit']} | {r['engine']} | {r['units_per_second']:.2f} | {r['times']:.1f} | {r['gemm']:.0%} | "
        f"{r['difference']:.1e} | {r['peak']:,} |",
        flush=True,
    )


def measure(engine: str, name: str, n_prompts: int, units: int, loop_units: int) -> dict:
    """One engine at each choice of positions, in this process."""
    model = ChatModel.load(name)
    prompts = pairs("validation")[0].sample(n_prompts, 0)
    rows = model.rows(prompts.texts)
    first = lambda texts: [model.response_tokens(t, ended=False)[0] for t in texts]
    metric = logit_difference(*(first(t) for t in OPENINGS))
    rate = gemm_rate(model)
    post = sum(p == Position.POST_INSTRUCTION for p in rows[0].positions)
    places = ("decision position", 1), (f"{post} post-instruction positions", post), ("all positions", None)
    out = [{"edit": where, **run(engine, model, rows, metric, last, units, loop_units, rate)} for where, last in places]
    facts = {
        "model": model.name,
        "prompts": len(rows),
        "tokens per prompt": float(np.mean([len(r.ids) for r in rows])),
        "threads": torch.get_num_threads(),
        "GEMM rate, GFLOP/s": round(rate / 1e9, 1),
    }
    return {"rows": out, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "facts": facts}


def run(
    engine: str, model: ChatModel, rows, metric: Metric, last: int | None, units: int, loop_units: int, rate: float
) -> dict:
    """Speed of one engine at one choice of positions, and what it finds for the units that all engines run."""
    n_layers, d_mlp = model.grid.n_layers, model.grid.d_mlp
    units = units if last == 1 else max(n_layers, units // 4) if last else n_layers
    rng = np.random.default_rng(0)
    chosen = [Edits(Site.NEURON, i, rng.choice(d_mlp, -(-units // n_layers), replace=False)) for i in range(n_layers)]
    few = [Edits(Site.NEURON, i, chosen[i].units[:1]) for i in np.linspace(0, n_layers - 1, loop_units).astype(int)]
    length = float(np.mean([len(r.ids) for r in rows]))
    loop = ENGINES[engine]
    if loop is None:
        ours = lambda edits: sweep(model, rows, metric, edits, Fill("zero"), last).values
        values, n = ours(few), sum(map(len, chosen))  # also warms up
        seconds, _ = timed(lambda: ours(chosen))
        size = length if last is None else last
        reached = sum((n_layers - e.layer) / n_layers * size * len(e) for e in chosen)
        work = 2 * model.grid.block_parameters * len(rows) * (length + reached)
    else:
        loop(model, rows, metric, few[:1], last)  # warms up
        n = len(few)
        seconds, values = timed(lambda: loop(model, rows, metric, few, last))
        work = 2 * sum(p.numel() for p in model.plain.parameters()) * length * len(rows) * n
    gemm = work / seconds / rate
    return {"engine": engine, "units_per_second": n / seconds, "gemm": gemm, "values": values.tolist()}


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

        handle = e.site.owner(model.anatomy.blocks[e.layer]).register_forward_pre_hook(zero)
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


NNSIGHT = "nnsight, last logits"
ENGINES: dict[str, Callable | None] = {
    "TransformerLens loop": by_run_with_hooks,
    "plain hooks, last logits": by_plain_hooks,
    NNSIGHT: by_nnsight,
    "ours": None,
}
"""In the order of the table; the first one is what the others are compared with."""


if __name__ == "__main__":
    main()
