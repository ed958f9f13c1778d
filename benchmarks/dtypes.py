"""What a number format does to the numbers of one model: refusal scores, responses and speed beside float32's.

usage: python benchmarks/dtypes.py MODEL [PROMPTS]
"""

from __future__ import annotations

import sys
import time

import numpy as np

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import instructions, pairs
from ssah_lens.measure.judges import Outcome
from ssah_lens.measure.refusal import ask, refusal_scores, refusal_tokens

NEW_TOKENS = 12


def main(name: str, n: int) -> None:
    sets = [pairs("test")[0].sample(n, 0), instructions("test").sample(n, 0)]
    rows, base = [], None
    tokens: list[int] = []
    for dtype in ("float32", "bfloat16", "float16"):
        model = ChatModel.load(name, dtype=dtype)
        started = time.perf_counter()
        found = ask(model, sets, max_new_tokens=NEW_TOKENS)
        seconds = time.perf_counter() - started
        tokens = tokens or refusal_tokens(model, *found)
        scores = np.concatenate([refusal_scores(model, s, tokens) for s in sets])
        said = [t for f in found for t in f.tokens]
        outcomes = [o for f in found for o in f.outcomes]
        base = base or (scores, said, outcomes, seconds)
        same = lambda a, b: f"{np.mean([x == y for x, y in zip(a, b, strict=True)]):.0%}"
        cells = [
            f"{found[0].rate(Outcome.REFUSED).value:.0%}",
            f"{np.abs(scores - base[0]).mean():.3f}",
            f"{np.abs(scores - base[0]).max():.3f}",
            same([t[:1] for t in said], [t[:1] for t in base[1]]),
            same(said, base[1]),
            same(outcomes, base[2]),
            f"{base[3] / seconds:.2f}",
        ]
        rows.append(f"| {dtype} | " + " | ".join(cells) + " |")
    head = ["", "harmful refused", "refusal score: mean difference, nats", "largest", "same first token",
            f"same {NEW_TOKENS} tokens", "same judgement", "speed"]  # fmt: skip
    print(f"{name}, {n} harmful and {n} ordinary test prompts")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|\n" + "\n".join(rows))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 32)
