"""The report's sections of the stages `tuning`, `budget` and `transfer`."""

from __future__ import annotations

from ssah_lens.results import BudgetResult, RoleMoves, TransferResult, TunedArm, TuningResult
from ssah_lens.show.reference import CAUTION, PAPER_FREEZING
from ssah_lens.show.section import Section, Table
from ssah_lens.show.text import cell, number, percent
from ssah_lens.show.tuning_stage_figures import SAFEST, data_name


def tuning(r: TuningResult) -> Section:
    """Stage `tuning`."""
    ways = list(dict.fromkeys(w for a in (*r.before, *r.arms) for w in a.asked))
    columns = ("data, method, seed", "measured at", *(f"refused, {w}" for w in ways), "incoherent", "ordinary refused",
               "multiple choice", "validation loss", "answer tokens right", "parameters held", "steps")  # fmt: skip
    rows = [_arm(a, ways) for b in r.before for a in (b, *(x for x in r.arms if x.data == b.data))]
    figures = {}
    for b in r.before:
        arms = [a for a in r.arms if a.data == b.data]
        told = "; ".join(f"{a.method} {number(a.asked['plain'].refused.value)}" for a in arms if a.equal == "steps")
        before = number(b.asked["plain"].refused.value)
        figures[f"tuning_{data_name(b.data)}"] = f"Points, share of harmful prompts refused: before {before}; {told}."
        if any(a.method.startswith(SAFEST) for a in arms):
            figures[f"tuning_tradeoff_{data_name(b.data)}"] = (
                "Lines: refusals and validation loss against the share of units held."
            )
    return Section(
        "tuning",
        "Every way of fine-tuning",
        "Which way of fine-tuning on harmless data keeps safety, when all learn equally much?",
        figures,
        (
            "Each way starts from the same aligned model and sees the same examples in the same order. It is measured "
            "after as many steps as 'full'; when it has learned less by then, it is trained anew until its validation "
            "loss is that of 'full' (at most twice the steps) and measured again.",
        ),
        "'full' holds nothing; 'freeze random' holds as many random units of every layer and kind.",
        (Table("Before and after (shares of prompts or tokens; nats per token)", columns, tuple(rows)),),
        Table(
            "The paper's figures (AdvBench, keyword judge)",
            ("model and data", "method", "attack success, %"),
            PAPER_FREEZING,
        ),
        CAUTION,
    )


def _arm(a: TunedArm, ways: list[str]) -> tuple[str, ...]:
    at = {"steps": "equal steps", "loss": "equal loss" if a.reached else "twice the steps (loss not reached)"}[a.equal]
    held = "" if a.held is None else percent(a.held) + (", bit-identical" if a.unchanged else "")
    return (
        f"{a.data}, {a.method}, {a.seed}",
        "start" if a.method == "before" else at,
        *(cell(a.asked[w].refused) if w in a.asked else "" for w in ways),
        cell(a.asked["plain"].incoherent),
        cell(a.harmless.refused),
        "" if a.utility.choices is None else cell(a.utility.choices),
        number(a.validation_loss),
        percent(a.exact_tokens),
        held,
        str(a.steps),
    )


def budget(r: BudgetResult) -> Section:
    """Stage `budget`."""
    rows = [("unaligned", "", cell(r.unaligned.harmful.refused), cell(r.unaligned.harmless.refused), "",
             *_utility(r.unaligned))]  # fmt: skip
    for a in r.arms:
        rows.append((f"{a.name}, seed {a.seed}", percent(a.trained_share), cell(a.after.harmful.refused),
                     cell(a.after.harmless.refused), number(a.tax), *_utility(a.after)))  # fmt: skip
    columns = ("parameters trained", "share of block parameters", "harmful refused", "ordinary refused",
               "tax, nats per token", "multiple choice", "KL at the decision position")  # fmt: skip
    told = "; ".join(f"{row[0]} {row[2]}, tax {row[4] or 'none'}" for row in rows)
    return Section(
        "budget",
        "The alignment budget",
        "Is it enough to train the redundant units to align a model, and does it cost less?",
        {"budget": f"Points, share of harmful prompts refused: {told}."},
        (
            "The same alignment of the same unaligned model: all block parameters trained, only those of the most "
            "redundant units, only those of random units. The tax is what the model loses of its own answers to "
            "ordinary prompts.",
        ),
        "A random set with as many units of every layer and kind, trained the same way.",
        (Table("Safety reached and tax paid", columns, tuple(rows)),),
    )


def _utility(b) -> tuple[str, str]:
    u = b.utility
    return ("" if u.choices is None else cell(u.choices), "" if u.kl is None else cell(u.kl))


def transfer(r: TransferResult) -> Section:
    """Stage `transfer`."""
    named = {"fine-tuned": r.tuned, "fine-tuned, refusals mixed in": r.safe, "null": r.null}
    rows = [(f"{role} before, {name}", *_moved(moves, role)) for name, moves in named.items() for role in moves.matrix]
    roles = tuple(f"{role} after" for role in r.tuned.matrix)
    back = tuple((x.units, str(x.n), cell(x.refused)) for x in r.restored)
    safety = tuple((name, cell(e)) for name, e in r.refused.items())
    held = "; ".join(f"{n} {number(m.held['SCU'].value)}" for n, m in named.items() if "SCU" in m.held)
    tables = (
        Table("Where units went (shares of all units)", ("role and model", *roles, "kept the role", "by chance"),
              tuple(rows)),
        Table("Harmful prompts refused", ("model", "refused"), safety),
        *([Table("Fine-tuned model, parameters put back", ("units", "number", "refused"), back)] if back else []),
    )  # fmt: skip
    return Section(
        "transfer",
        "Attribute transfer",
        "Does fine-tuning turn safety units into others, and is that why safety falls?",
        {"transfer": f"Points: share of SCU that kept the role: {held}."},
        (
            "All tables are cut at the role sizes before fine-tuning. Some units change their role between any two "
            "calibration samples; the null says how many. Putting back parameters tests whether the units that lost "
            "the role carry the loss of refusals; all heads, all neurons and thirds of the blocks show where it sits.",
        ),
        "The same model scored on another calibration sample; fine-tuning with refusals mixed in; random twins.",
        tables,
    )


def _moved(moves: RoleMoves, role: str) -> tuple[str, ...]:
    held = cell(moves.held[role]) if role in moves.held else ""
    chance = percent(moves.chance[role]) if role in moves.chance else ""
    return (*(percent(v) for v in moves.matrix[role].values()), held, chance)
