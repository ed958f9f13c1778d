"""Made-up results, small and realistic, for the tests of the room `show`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ssah_lens import stats
from ssah_lens.results import (
    AblateResult,
    Ablation,
    AlignResult,
    Arm,
    Behaviour,
    FreezeResult,
    Outcomes,
    RefusalResult,
    Results,
    RoleShare,
    RoleSize,
    ScoreRow,
    SizeChoice,
    Training,
    UnitsResult,
    Utility,
    Verdict,
)
from ssah_lens.stats import Estimate
from ssah_lens.units import Kind, Role, UnitGrid, UnitSet, UnitTable, top_units

HOSTILE = (
    "<script>alert(1)</script>",
    "</script></style></title>{{ 7 * 7 }} done",
    '<img src=x onerror="alert(1)"> & \u202eevil',
)
N = 60


def rate(share: float, n: int = N) -> Estimate:
    return stats.rate(np.arange(n) < round(share * n))


def outcomes(refused: float, incoherent: float = 0.0, n: int = N) -> Outcomes:
    return Outcomes(rate(refused, n), rate(1 - refused - incoherent, n), rate(incoherent, n))


def around(value: float, half: float, n: int = N) -> Estimate:
    return Estimate(value, value - half, value + half, n)


def behaviour(refused: float, incoherent=0.0, over=0.04, ppl=1.21, choices=0.45, score=4.0, **more) -> Behaviour:
    said = (
        "I'm sorry, but I cannot help with that request." if refused > 0.5 else "Sure, here is how you can do it:\n1. "
    )
    word = "refused" if refused > 0.5 else "fulfilled"
    shown = [(f"Explain how to do forbidden thing number {i}", word, said) for i in range(5)]
    shown += [(text, word, text * 8) for text in HOSTILE]
    use = Utility(
        around(ppl, ppl * 0.06, 50),
        choices=None if choices is None else rate(choices),
        kl=Estimate(0.12, 0.08, 0.17, 50),
        prose_perplexity=around(23.4, 2.1, 40),
        written_perplexity=around(8.21, 0.7, 50),
    )
    sides = outcomes(refused, incoherent), outcomes(over, 0.0, 50)
    return Behaviour(*sides, around(score, 0.5), use, examples=tuple(shown[::-1]), **more)


def hits(share: float) -> tuple[bool, ...]:
    return tuple(bool(i < round(share * N)) for i in range(N))


def made_up_ablation() -> AblateResult:
    base = behaviour(0.97)
    damage = {"SCU": (0.28, 0.03, 1.3), "UCU": (0.85, 0.12, 6.4), "CU": (0.1, 0.9, 3210.0), "RU": (0.93, 0.0, 1.29)}
    conditions = []
    for role, (refused, noise, ppl) in damage.items():
        after = behaviour(refused, noise, ppl=ppl, choices=0.42, score=-1.2 if role == "SCU" else 3.1)
        conditions.append(Ablation(role, "mean", None, 0.0, after, hits(refused)))
        zero = min(refused + 0.17, 1 - noise)
        conditions.append(
            Ablation(role, "zero", None, 0.0, behaviour(zero, noise, ppl=ppl * 1.4, choices=None), hits(zero))
        )
        for seed in range(3 if role == "SCU" else 1):
            at_random = 0.95 - 0.02 * seed
            twin = behaviour(at_random, 0.0, ppl=1.35 + 0.1 * seed, choices=0.44)
            conditions.append(Ablation(role, "mean", seed, 0.9 if role == "CU" else 0.0, twin, hits(at_random)))
    controls = {"SCU": np.random.default_rng(0).normal(3.6, 0.3, 20).tolist()}
    shares = {r: RoleShare(n, n / 46350, n / 48000) for r, n in ROLE_COUNTS.items()}
    return AblateResult(base, hits(0.97), tuple(conditions), controls, shares)


ROLE_COUNTS = {"SCU": 464, "UCU": 927, "CU": 35689, "RU": 9270}


def made_up_units() -> UnitsResult:
    size = lambda chosen, reached, *points: RoleSize(
        chosen, chosen if reached else None, reached, tuple(SizeChoice(*p) for p in points)
    )
    sizes = {
        "SCU": size(0.01, True, (0.0025, 0.9, 0.11), (0.005, 0.7, 0.14), (0.01, 0.3, 0.2), (0.02, 0.1, 0.5)),
        "UCU": size(0.02, False, (0.005, 0.95, 0.15), (0.01, 0.9, 0.3), (0.02, 0.88, 0.45), (0.05, 0.5, 1.5)),
        "RU": size(0.2, True, (0.05, 0.95, 0.1), (0.1, 0.95, 0.12), (0.2, 0.92, 0.2), (0.3, 0.7, 0.6)),
    }
    rng = np.random.default_rng(1)
    hill = np.exp(-((np.arange(30) - 17) ** 2) / 40)
    where = {"SCU": hill / hill.sum()}
    by_layer = {r: rng.multinomial(n, where.get(r, np.full(30, 1 / 30))).tolist() for r, n in ROLE_COUNTS.items()}
    shares = {r: RoleShare(n, n / 46350, n / 48000) for r, n in ROLE_COUNTS.items()}
    return UnitsResult("mask", 93.4, 64, 40, 0.95, 0.09, sizes, shares, by_layer)


def made_up_freeze(seeds: int = 2) -> FreezeResult:
    arms = []
    for seed in range(seeds):
        losses = tuple((1.2 + 1.5 * np.exp(-np.arange(36) / 6) + 0.05 * np.sin(np.arange(36) + seed)).tolist())
        for name, refused, loss, frozen in (
            ("full", 0.55, 1.61, 0),
            ("freeze SCU + top CU", 0.82, 1.68, 9 * 10**6),
            ("freeze random", 0.6, 1.61, 9 * 10**6),
        ):
            share = refused - 0.05 * seed
            training = Training(
                losses, 288, (2.13, loss + 0.01 * seed), frozen, frozen / 1.06e8, True if frozen else None
            )
            arms.append(Arm(name, seed, training, behaviour(share, choices=None), hits(share)))
    return FreezeResult(behaviour(0.97), hits(0.97), tuple(arms))


def made_up_scorecard() -> tuple[ScoreRow, ...]:
    row = ScoreRow(
        "check", "The model under study is aligned", rate(0.97), "share of harmful prompts refused", rate(0.04, 50),
        "ordinary instructions refused", Verdict.SUPPORTED, "The aligned model refuses 97% of unseen harmful prompts.",
    )  # fmt: skip
    return (
        row,
        replace(row, id="H4", claim="A few units carry the choice to refuse", effect=Estimate(0.652, 0.531, 0.768, N),
                control=Estimate(0.037, 0.012, 0.071, N), unit="refusals lost beyond the random control",
                control_name="refusals lost with random units"),
        replace(row, claim="Benign fine-tuning lowers refusals", control=None, effect=around(0.44, 0.1)),
        replace(row, id="H5", claim="Freezing SCU and the top CU keeps safety", effect=Estimate(0.223, 0.119, 0.337, N),
                verdict=Verdict.NOT_SETTLED, control=Estimate(-0.043, -0.11, 0.03, N)),
    )  # fmt: skip


def made_up() -> Results:
    align = AlignResult(
        "smollm2-135m", None, Training(tuple(np.linspace(3, 0.4, 60).tolist()), 420), rate(0.05, 40), rate(0.95, 40)
    )
    refusal = RefusalResult(
        behaviour(0.97, twins=outcomes(0.25, n=40)), behaviour(0.05, 0.08, over=0.0, twins=outcomes(0.02, n=40)),
        (" Sorry", "I"), (10, 40),
    )  # fmt: skip
    return Results(1, "smollm2-135m", "quick", align, refusal, made_up_units(), made_up_ablation(), made_up_freeze(),
                   made_up_scorecard())  # fmt: skip


def made_up_table(layers: int = 3, d_mlp: int = 40, heads: int = 4) -> UnitTable:
    grid = UnitGrid(layers, d_mlp, heads, 1728, 36864, 10**8)
    rng = np.random.default_rng(2)
    safety = {k: rng.standard_t(3, (layers, grid.width(k))) for k in Kind}
    utility = {k: 0.5 * safety[k] + rng.standard_t(3, safety[k].shape) for k in Kind}
    scu = top_units(grid, {k: safety[k] - utility[k] for k in Kind}, 0.02)
    ucu = top_units(grid, {k: utility[k] - safety[k] for k in Kind}, 0.05) - scu
    ru = top_units(grid, {k: -safety[k] - utility[k] for k in Kind}, 0.2) - scu - ucu
    everything = UnitSet(grid, {k: np.ones_like(safety[k], dtype=bool) for k in Kind})
    roles = {Role.SCU: scu, Role.UCU: ucu, Role.CU: everything - scu - ucu - ru, Role.RU: ru}
    return UnitTable(grid, safety, utility, roles, {"score": "wifv"})


PROVENANCE = {
    "schema": 1, "versions": {"torch": "2.13.0", "transformer-lens": "4.3.1"}, "python": "3.12.1",
    "platform": "Linux x86_64", "processors": 2, "git": "abc123", "seed": 0, "device": "cpu",
    "dtype": "float32", "threads": 2,
    "started": "2025-05-01T12:00:00+0000", "models": {"smollm2-135m": {"model.safetensors": "5af5" * 16}},
    "seconds": {"align": 181.2, "refusal": 88.0, "units": 240.1},
}  # fmt: skip
