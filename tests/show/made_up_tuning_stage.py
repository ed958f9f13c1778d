"""Made-up results of the stages `tuning`, `budget` and `transfer`, shaped like real ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ssah_lens import stats
from ssah_lens.results import (
    Behaviour,
    BudgetArm,
    BudgetResult,
    Outcomes,
    Restored,
    RoleMoves,
    Training,
    TransferResult,
    TunedArm,
    TuningResult,
    Utility,
)
from ssah_lens.stats import Estimate

N = 60


def hits(share: float) -> tuple[bool, ...]:
    return tuple((np.arange(N) < round(share * N)).tolist())


def outcomes(share: float) -> Outcomes:
    refused = np.array(hits(share))
    return Outcomes(stats.rate(refused), stats.rate(~refused), stats.rate(np.zeros(N, dtype=bool)))


def arm(method: str, share: float, loss: float, seed: int = 0, held: float | None = 0.0, **more) -> TunedArm:
    asked = {"plain": outcomes(share), "prefilled": outcomes(share / 2), "role play 1": outcomes(share * 0.8)}
    e = Estimate(2.0, 1.9, 2.1, N)
    given = TunedArm(
        method, "ordinary", seed, "steps", True, 24, 1e-4, held, True if held else None, 2.6, loss, 0.44, share,
        asked, hits(share), outcomes(0.05), Utility(e, choices=stats.rate(np.array(hits(0.7)))),
    )  # fmt: skip
    return replace(given, **more)


def tuning() -> TuningResult:
    ways = {
        "full": (0.36, 2.60, 0.0), "freeze SCU": (0.37, 2.60, 0.01), "freeze SCU + top CU": (0.42, 2.62, 0.08),
        "freeze random": (0.40, 2.62, 0.08), "safety-layers": (0.45, 2.64, 0.27), "lora": (0.8, 2.8, None),
        "first-token": (0.55, 2.63, 0.0), "mix-refusals": (0.78, 2.615, 0.0),
    }  # fmt: skip
    arms = [
        arm(name, share + 0.02 * s, loss + 0.01 * s, s, held)
        for s in range(3)
        for name, (share, loss, held) in ways.items()
    ]
    arms += [arm("lora", 0.7, 2.7, s, None, equal="loss", reached=s == 0, steps=48) for s in range(3)]
    for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9):
        arms.append(arm(f"freeze top {share:.3g}", 0.36 + 0.5 * share**2, 2.6 + 0.3 * share**2, held=share))
        arms.append(arm(f"freeze random {share:.3g}", 0.36 + 0.4 * share**2, 2.6 + 0.25 * share**2, held=share))
    return TuningResult((arm("before", 0.95, 3.0, steps=0),), tuple(arms))


def budget() -> BudgetResult:
    e = Estimate(2.0, 1.9, 2.1, N)
    behaviour = lambda share: Behaviour(
        outcomes(share), outcomes(0.05), e, Utility(e, choices=stats.rate(np.array(hits(0.7))), kl=e)
    )
    ways = {"all": (0.97, 0.06, 1.0), "RU only": (0.9, 0.05, 0.19), "random only": (0.93, 0.055, 0.19)}
    arms = [
        BudgetArm(n, s, share, Training((1.0, 0.5), 60), behaviour(r), hits(r), tax + 0.005 * s)
        for s in range(3)
        for n, (r, tax, share) in ways.items()
    ]
    return BudgetResult(behaviour(0.03), tuple(arms))


def transfer() -> TransferResult:
    roles = ("SCU", "UCU", "CU", "RU")

    def moves(held: float) -> RoleMoves:
        sizes = {"SCU": 0.02, "UCU": 0.01, "CU": 0.95, "RU": 0.02}
        matrix = {b: {a: sizes[b] * (held if a == b else (1 - held) / 3) for a in roles} for b in roles}
        rate = lambda n: stats.rate(np.arange(n) < held * n)
        return RoleMoves(matrix, {}, {r: rate(900) for r in roles}, dict.fromkeys(roles, 0.02))

    refused = {n: stats.rate(np.array(hits(s))) for n, s in (("before", 0.95), ("tuned", 0.35), ("tuned safely", 0.8))}
    put_back = [Restored(n, 300, stats.rate(np.array(hits(s)))) for n, s in (
        ("SCU that lost the role", 0.5), ("random twin of SCU that lost the role", 0.36))]  # fmt: skip
    return TransferResult("mask", 46350, refused, moves(0.3), moves(0.5), moves(0.6), tuple(put_back))
