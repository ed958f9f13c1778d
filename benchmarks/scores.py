"""Compares all unit scores on a model: agreement with the exact effect, refusal lost at equal utility lost, cost.

python benchmarks/scores.py runs/quick/aligned --unaligned smollm2-135m --out scores.json

Everything is chosen on train and judged on validation prompts of the shipped collection. With --store a second call
finds the exact effects that the first one measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from pydantic import TypeAdapter

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import instructions, pairs
from ssah_lens.config import UnitsConfig
from ssah_lens.results import Match, ScoreComparison
from ssah_lens.score.base import Measured
from ssah_lens.study.behaviour import find_refusal_tokens, yardstick
from ssah_lens.study.compare_scores import DOSES, compare_scores
from ssah_lens.study.units import answered_by, calibrate, harmless_mix, validation_prompts


def main() -> None:
    args = arguments()
    note = lambda text: print(text, file=sys.stderr, flush=True)
    seed = args.seed
    model = ChatModel.load(args.model, args.device, note=note)
    unaligned = ChatModel.load(args.unaligned, args.device, note=note) if args.unaligned else None
    started = time.perf_counter()
    harmful, twins = (p for p in pairs("train"))
    ordinary = instructions("train")
    tokens = find_refusal_tokens(model, harmful.sample(48, seed), ordinary.sample(48, seed), seed)
    config = UnitsConfig(calibration=args.calibration, validation=args.validation, steps=args.steps)
    mix = harmless_mix(twins, ordinary, config.calibration, seed)
    data = calibrate(model, unaligned, harmful.sample(config.calibration, seed), mix, config, seed, tokens)
    asked, harmless, spare = validation_prompts(config.validation, seed)
    mix, _ = answered_by(model, harmless, spare)
    y = yardstick(model, asked, mix, tokens, max_new_tokens=10, choices=0)
    seconds = time.perf_counter() - started
    note(f"calibration in {seconds:.0f} s: {len(data.safety)} refusals, {len(data.utility)} answers; asked {len(mix)}")
    last = None if args.positions == "all" else 1
    sample = Measured(args.units or None, args.prompts, last, store=args.store)
    found = compare_scores(model, data, y, args.scores.split(",") if args.scores else None, DOSES, sample)
    if args.out:
        args.out.write_bytes(TypeAdapter(ScoreComparison).dump_json(found, indent=1))
    report(found)


def report(found: ScoreComparison) -> None:
    """The table, in Markdown."""
    b = found.baseline
    print(
        f"{found.model}: {b.harmful.refused.value:.0%} of {b.harmful.refused.n} harmful validation prompts refused, "
        f"answer perplexity {b.utility.answer_perplexity.value:.2f}. Exact: {found.estimand}, {found.exact_prompts} "
        f"prompts a side, {found.exact_seconds:.0f} s. Equal utility lost: {found.budget:g} nats per token.\n"
    )
    doses = [f"{d.share:.1%}" for d in found.scores[0].doses]
    names = ["score", "s", "passes", "Spearman I_S (n)", "top 1%", "heads", "I_U", *doses, "lost at equal utility"]
    print(f"| {' | '.join(names)} |")
    print("|" + "---|" * len(names))
    for s in found.scores:
        cells = [
            f"{d.behaviour.harmful.refused.value:.0%} refused, {d.behaviour.harmful.fulfilled.value:.0%} fulfilled, "
            f"ppl {d.behaviour.utility.answer_perplexity.value:.2f}"
            for d in s.doses
        ]
        mlp, head = s.safety["mlp"], s.safety.get("head")
        print(
            f"| {s.name} | {s.seconds:.1f} | {s.passes:.2f} | {spearman(mlp)} ({mlp.n}) | {mlp.overlap:.0%} | "
            f"{spearman(head)} | {spearman(s.utility['mlp'])} | {' | '.join(cells)} | "
            f"{s.refusal_lost:.0%}, {s.score_lost:.1f} nats |"
        )
    print(f"\nbest at equal utility lost: {found.best}")


def spearman(m: Match | None) -> str:
    return "-" if m is None or m.spearman is None else f"{m.spearman:.2f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="built-in name, folder or hub id of an aligned model")
    parser.add_argument("--unaligned", help="its counterpart that fulfils; without it, no `contrast`")
    parser.add_argument("--scores", help="separated by commas; all when not given")
    parser.add_argument("--calibration", type=int, default=36, help="train prompts of each side")
    parser.add_argument("--validation", type=int, default=24, help="validation prompts of each side")
    parser.add_argument("--steps", type=int, default=18, help="steps of scores that learn")
    parser.add_argument("--units", type=int, default=2000, help="units of the exact effect; 0 for all")
    parser.add_argument("--prompts", type=int, default=12, help="prompts of each side for the exact effect")
    parser.add_argument("--positions", choices=("decision", "all"), default="decision", help="where it ablates")
    parser.add_argument("--store", type=Path, help="folder that keeps the exact effects")
    parser.add_argument("--out", type=Path, help="JSON file for the whole result")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
