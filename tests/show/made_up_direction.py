"""A made-up result of stage `direction`, small and realistic."""

from __future__ import annotations

import numpy as np
from made_up import around, outcomes, rate

from ssah_lens.results import (
    BeforeAlignment,
    CandidateDirection,
    Chain,
    ChainHead,
    Curve,
    DirectionResult,
    Distances,
    Elsewhere,
    Flips,
    Forced,
    Interchange,
    Onset,
    Readout,
    Steered,
)
from ssah_lens.stats import Estimate

LAYERS, POSITIONS, N = 12, 5, 40


def steered(name: str, refused: float | None, over: float | None, control: int | None = None) -> Steered:
    examples = tuple(
        (f"Explain forbidden thing {i}", "refused", "I'm sorry <script>alert(1)</script>") for i in range(3)
    )
    return Steered(
        name, control, None if refused is None else outcomes(refused, n=N),
        None if over is None else outcomes(over, n=N),
        None if refused is None else around(2.0, 0.4, N),
        None if name == "undamaged" else Estimate(0.03, 0.02, 0.05, N),
        (True,) * N, (False,) * N, examples, choices=rate(0.75, N) if name != "added" else None,
        answer_perplexity=Estimate(1.4, 1.3, 1.5, N) if name in ("undamaged", "ablated") else None,
    )  # fmt: skip


def readout(target: str) -> Readout:
    hill = 0.5 + 0.48 / (1 + np.exp(4 - np.arange(LAYERS)))
    cells = np.tile(hill[:, None], (1, POSITIONS))
    null = tuple(np.random.default_rng(0).normal(0.5, 0.1, 20).clip(0, 1).tolist())
    one = around(0.96, 0.03, N)
    elsewhere = Elsewhere("own <b>.txt, ordinary", around(0.9, 0.05, N), one, around(0.91, 0.05, N), None)
    return Readout(target, cells.tolist(), (cells - 0.02).tolist(), 8, -1, one, one, null, one, one, None, elsewhere)


def flips() -> tuple[Flips, ...]:
    made = lambda basis, rank, share: Flips(basis, rank, rate(share, 48), share, share, None, (share,) * 48)
    out = [made("whole state", 64, 0.98), made("difference of means", 1, 0.85), made("probe", 1, 0.5)]
    for rank, share in ((1, 0.9), (2, 0.94), (4, 0.96), (8, 0.97)):
        out += [made("DAS", rank, share), made("random subspace", rank, 0.05), made("DAS, untrained model", rank, 0.4)]
        out.append(made("DAS, arbitrary labels", rank, 0.3))
    return tuple(out)


def distances(model: str, sign: float) -> Distances:
    gap = sign * np.outer(np.linspace(0, 0.2, LAYERS), [1, 0.8, 0.6])
    grid = lambda a: a.tolist()
    return Distances(
        model, (2, 6, 10), grid(0.5 - gap / 2), grid(0.5 + gap / 2), grid(gap), grid(gap - 0.02), grid(gap + 0.02), N
    )


def made_up_direction() -> DirectionResult:
    forced = lambda k, share: Forced(k, rate(share, N), rate(0.0, N), (share,) * N)
    curve = lambda name, level: Curve(name, [level] * 8, [level - 0.2] * 8, [level + 0.2] * 8, N)
    onset = Onset(
        (curve("own refusals", 2.0), curve("own answers", 0.2)), 0.8, 5,
        (forced(0, 0.95), forced(1, 0.8), forced(5, 0.3)), (forced(5, 0.9),),
        (("harmful prompts, opening 'Sorry, I'", rate(0.4, N)),),
        (curve("own refusals", 4.0), curve("own answers", 0.5)),
    )  # fmt: skip
    wave = np.sin(np.arange(LAYERS)).tolist()
    chain = Chain(
        ("Sorry",), ("Sure", "Here"), 0.0, wave, wave, np.outer(wave, [1, 0.5]).tolist(),
        np.linspace(0, 9, LAYERS + 1).tolist(),
        np.linspace(0, -3, LAYERS + 1).tolist(), 12.0,
        (ChainHead(7, 1, 0.6, (0.2, 0.5, 0.3), (0.5, 0.2, 0.3)),), N,
    )  # fmt: skip
    names = (("undamaged", 0.95, 0.1), ("ablated", 0.05, 0.0), ("added", None, 0.9),
             ("ablated at the prompt", 0.1, None), ("ablated at the response", 0.9, None))  # fmt: skip
    changes = [steered(*row) for row in names] + [steered("ablated", 0.95, 0.1, 0), steered("added", None, 0.1, 0)]
    table = tuple(CandidateDirection(i, -1, 4.0, 3.0 - i / 2, i - 4.0, 0.02 * i, 4 < i < 10) for i in range(LAYERS))
    found = Interchange(
        "twins", 6, True, 24, 24, tuple(range(LAYERS)), wave, wave, flips(), {"difference of means": 0.9, "DAS": 0.6}
    )
    before = BeforeAlignment(0.8, around(0.9, 0.05, N), around(0.95, 0.03, N), outcomes(0.2, n=N))
    return DirectionResult(
        9, -1, ("<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"), -1.0, 0.95, (40, 96), True, (1.0,) * 4,
        table, False, (3.0, -4.0), tuple(changes), (readout("choice"), readout("harm")), (found,),
        (distances("aligned", 1), distances("unaligned", -1)), onset, chain, before, ("something, for a reason",),
    )  # fmt: skip
