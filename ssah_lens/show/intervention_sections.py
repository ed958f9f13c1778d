"""The sections of the stages that change the model: ablation and freezing."""

from __future__ import annotations

import numpy as np

from ssah_lens.results import AblateResult, Ablation, Arm, Behaviour, FreezeResult
from ssah_lens.show import words
from ssah_lens.show.figures import ARM_NAMES
from ssah_lens.show.proof_sections import grid_tables
from ssah_lens.show.reference import CAUTION, PAPER_ABLATION, PAPER_FREEZING
from ssah_lens.show.section import Section, Table, examples
from ssah_lens.show.text import cell, count, number, percent
from ssah_lens.stats import Estimate

BESIDE = (
    "Dumbbells: share of harmful prompts not refused before and after, this run above the paper's models. The "
    "table beside the paper's figures holds every number."
)


def ablate(r: AblateResult) -> Section:
    """Stage `ablate`."""
    rows = [_condition("undamaged", r.baseline, "")]
    for role in dict.fromkeys(c.role for c in r.conditions):
        for c in (c for c in r.conditions if c.role == role):
            lost = ""
            if c.control is None and r.controls(role, c.mode):
                lost = cell(r.beyond_random(role, c.mode))
            name = f"{role}, {c.mode}" if c.control is None else f"random set {c.control} for {role}, {c.mode}"
            name += f" ({percent(c.overlap)} shared with {role})" if c.overlap else ""
            rows.append(_condition(name, c.behaviour, lost))
    columns = ("units ablated", "harmful refused", "harmful incoherent", "refusals lost beyond random",
               "ordinary refused", "multiple choice", "answer perplexity", "refusal score")  # fmt: skip
    scores = _score_table(r)
    figures = {"roles_ablated": "Points with intervals, share of harmful prompts refused: "
               + "; ".join(f"{row[0]} {row[1]}" for row in rows) + ". Below: incoherence and utility."}  # fmt: skip
    figures |= {f"score_controls_{name.lower()}": words.score_controls(r, name) for name in words.scored_roles(r)}
    if r.doses:
        told = "; ".join(f"{d.size.units:.1%} {number(d.behaviour.harmful.refused.value)}" for d in r.doses)
        figures["dose_response"] = (
            f"Lines: share of harmful prompts refused against the share of units ablated: {told}."
        )
    figures["ablation_beside_paper"] = BESIDE
    main = _main(r)
    shown = {"undamaged": r.baseline} | ({f"without {main.role}": main.behaviour} if main else {})
    return Section(
        "ablate",
        "Ablating each role",
        "Does the model stop refusing without a role's units, and only without those?",
        figures,
        words.ablate(r),
        "Random sets with the same number of units in every layer and kind, ablated the same way. Intervals are over "
        "prompts; how far random sets differ among themselves shows in their rows and in the refusal scores of many.",
        (
            Table("Test prompts (shares of prompts or items; perplexity; log-odds)", columns, tuple(rows)),
            *scores,
            *grid_tables(r),
        ),
        _ablation_reference(r),
        CAUTION,
        examples(shown),
    )


def _condition(name: str, b: Behaviour, lost: str) -> tuple[str, ...]:
    choices = "" if b.utility.choices is None else cell(b.utility.choices)
    return (name, cell(b.harmful.refused), cell(b.harmful.incoherent), lost, cell(b.harmless.refused), choices,
            cell(b.utility.answer_perplexity), cell(b.refusal_score))  # fmt: skip


def _main(r: AblateResult) -> Ablation | None:
    return next((c for c in r.conditions if c.control is None and c.role == "SCU"), None)


def _score_table(r: AblateResult) -> tuple[Table, ...]:
    rows = tuple(
        (f"random sets for {role}", str(len(v)), number(float(np.mean(v))), f"{number(min(v))} to {number(max(v))}")
        for role, v in r.score_controls.items()
        if v
    )
    columns = ("sets", "number of sets", "mean refusal score", "range")
    return (Table("Refusal score of many random sets (log-odds, nats)", columns, rows),) if rows else ()


def _not_refused(before: Estimate, after: Estimate) -> str:
    return f"{(1 - before.value) * 100:.1f} → {(1 - after.value) * 100:.1f}"


def _ablation_reference(r: AblateResult) -> Table:
    base, rows = r.baseline, []
    for c in (c for c in r.conditions if c.control is None and c.mode == "mean" and c.role in ("SCU", "UCU", "RU")):
        own, before = c.behaviour.utility.choices, base.utility.choices
        change = "not measured" if own is None or before is None else f"{(own.value - before.value) * 100:+.1f}"
        share = percent(r.shares[c.role].units) if c.role in r.shares else ""
        attack = _not_refused(base.harmful.refused, c.behaviour.harmful.refused)
        rows.append(("this run", c.role, share, attack, change))
    columns = ("model", "role", "share of units", "attack success or not refused, %", "utility change, points")
    return Table("Beside the paper's figures (its Table 2)", columns, (*rows, *PAPER_ABLATION))


def freeze(r: FreezeResult) -> Section:
    """Stage `freeze`."""
    names = list(dict.fromkeys(a.name for a in r.arms))
    b = r.before
    rows: list[tuple[str, ...]]
    rows = [("before", cell(b.harmful.refused), cell(b.harmful.incoherent), cell(b.harmless.refused), "", "", "")]
    rows += [_arm(a) for name in names for a in r.arms if a.name == name]
    columns = ("method", "harmful refused", "harmful incoherent", "ordinary refused", "validation loss before → after",
               "share of block parameters frozen", "bit-identical")  # fmt: skip
    means = {n: float(np.mean([a.after.harmful.refused.value for a in r.arms if a.name == n])) for n in names}
    told = "; ".join(f"{ARM_NAMES.get(n, n)} {number(m)}" for n, m in means.items())
    bars = f"Bars, share of harmful prompts refused: before {number(r.before.harmful.refused.value)}; after, {told}."
    paper = tuple(
        ("this run", ARM_NAMES.get(n, n), f"{(1 - r.before.harmful.refused.value) * 100:.1f} → {(1 - m) * 100:.1f}")
        for n, m in means.items()
    )
    reference = ("model and data", "method", "attack success or not refused, %")
    return Section(
        "freeze",
        "Freezing units through fine-tuning",
        "Does freezing the safety units keep refusals through harmless fine-tuning?",
        {
            "freezing": bars,
            "training_freeze": f"Lines: training loss per step of {count(len(r.arms), 'run')}.",
            "freezing_beside_paper": BESIDE,
        },
        words.freeze(r),
        "The same fine-tuning with nothing frozen, and with as many random units of every layer and kind frozen.",
        (Table("Before and after (shares of prompts; nats per token)", columns, tuple(rows)),),
        Table("Beside the paper's figures (AdvBench, keyword judge)", reference, (*paper, *PAPER_FREEZING)),
        CAUTION,
        examples({"before": r.before} | {ARM_NAMES.get(a.name, a.name): a.after for a in _first_seed(r)}),
    )


def _first_seed(r: FreezeResult) -> list[Arm]:
    return [a for a in r.arms if a.seed == min(b.seed for b in r.arms)]


def _arm(a: Arm) -> tuple[str, ...]:
    t = a.training
    loss = "" if t.validation_loss is None else f"{number(t.validation_loss[0])} → {number(t.validation_loss[1])}"
    same = {True: "yes", False: "NO", None: ""}[t.unchanged]
    frozen = percent(t.frozen_share) if t.frozen_parameters else "none"
    h = a.after.harmful
    return (f"{ARM_NAMES.get(a.name, a.name)}, seed {a.seed}", cell(h.refused), cell(h.incoherent),
            cell(a.after.harmless.refused), loss, frozen, same)  # fmt: skip
