"""The sections of the stages that prove: which score is best, stability, sufficiency, and the grid of ablations."""

from __future__ import annotations

from collections.abc import Sequence

from ssah_lens.results import (
    AblateResult,
    Ablation,
    Behaviour,
    ComparedScore,
    ContextsResult,
    Faithfulness,
    Match,
    RoleMoves,
    ScoreComparison,
    StabilityResult,
    SufficiencyResult,
    Transplant,
)
from ssah_lens.show.section import Section, Table
from ssah_lens.show.text import cell, clean, count, interval, listed, number, percent, percents, points
from ssah_lens.show.words import compared
from ssah_lens.units import Kind, unit_name

CONDITIONS = ("undamaged", "without the SCU", "without a random set")
DEFAULT_SCORE = "mask"
"""What `ssah-lens units` takes when no score is named."""


def scores(r: ScoreComparison) -> Section:
    """Stage `scores`."""
    lines = sorted(r.scores, key=lambda s: (-s.refusal_lost, -s.score_lost))
    doses = [f"refused without the top {d.share:.1%}" for d in lines[0].doses]
    columns = ("score", f"refusals lost at {number(r.budget)} nats", "refusal score lost, nats", *doses, "seconds",
               "forward passes", "Spearman I_S, neurons", "top 1% shared", "Spearman I_S, heads",
               "Spearman I_U")  # fmt: skip
    told = "; ".join(f"{s.name} {percent(s.refusal_lost)}" for s in lines)
    verdict = (
        f"The winner on validation is “{r.best}”, which is the default."
        if r.best == DEFAULT_SCORE
        else f"The winner on validation is “{r.best}”; the default is “{DEFAULT_SCORE}”. Name another with units.score."
    )
    best = next(s for s in r.scores if s.name == r.best)
    words = (
        f"{verdict} Without its highest-ranked units refusals fall by {points(best.refusal_lost)} at most while the "
        f"loss on harmless answers rises by no more than {number(r.budget)} nats per token.",
        f"The exact effect is that of {r.estimand}, on {count(r.exact_prompts, 'prompt')} of each side; it took "
        f"{r.exact_seconds:,.0f} s. Single effects do not add up, so a score can rank units as their single effects do "
        "and still not find the set that carries refusal: the ablation decides.",
    )
    tables = [Table("Every score (validation prompts; intervals are over prompts)", columns, tuple(map(_score, lines)))]
    if r.shared:
        names = list(r.shared)
        rows = tuple((a, *(percent(r.shared[a][b]) for b in names)) for a in names)
        tables.append(Table("Do scores name the same units? Share of the top 1% in common", ("score", *names), rows))
    return Section(
        "scores",
        "Which score is best",
        "Which way of scoring units finds those that carry refusal, at the least loss of utility?",
        {"scores_compared": f"Bars, refusals lost at equal utility lost: {told}. Below: agreement and time."},
        words,
        "A random ranking, and the exact effect of single units. Test prompts play no part in this choice.",
        tuple(tables),
    )


def _score(s: ComparedScore) -> tuple[str, ...]:
    mlp = s.safety.get("mlp")
    doses = (
        f"{interval(d.behaviour.harmful.refused)}, perplexity {number(d.behaviour.utility.answer_perplexity.value)}"
        for d in s.doses
    )
    shared = "" if mlp is None else f"{percent(mlp.overlap)} n={mlp.n}"
    return (s.name, percent(s.refusal_lost), number(s.score_lost), *doses, f"{s.seconds:.1f}", f"{s.passes:.1f}",
            _spearman(mlp), shared, _spearman(s.safety.get("head")), _spearman(s.utility.get("mlp")))  # fmt: skip


def _spearman(m: Match | None) -> str:
    return "none" if m is None or m.spearman is None else number(m.spearman)


def stability(r: StabilityResult) -> Section:
    """Stage `stability`."""
    roles = list(r.confidence)
    rows = tuple((name, *(_held(m, role) for role in roles)) for name, m in r.compared.items())
    chance = next(iter(r.compared.values())).chance
    rows = (*rows, ("by chance", *(number(chance[role]) if role in chance else "" for role in roles)))
    told = "; ".join(f"{role} {number(v)}" for role, v in r.confidence.items())
    sure = listed([f"{percent(v)} of {role}" for role, v in r.sure_share.items()])
    words = (
        f"Over {count(r.reruns, 'bootstrap sample')} of the calibration prompts a unit keeps its role in this share of "
        f"reruns on average: {told}. At least {percent(r.sure)} of the reruns agree for {sure}.",
        "Each unit's own share stands in the column confidence of units.parquet.",
    )
    return Section(
        "stability",
        "How stable are the roles",
        "Would other calibration prompts, or another seed, have given the same units?",
        {"stability": f"Points: share of each role's units that keep it, per rerun. Mean over bootstraps: {told}."},
        words,
        "Random roles of the same sizes. All reruns are cut at the sizes of the roles that they are compared with.",
        (Table("Units that keep their role (share)", ("calibration data", *roles), rows),),
    )


def _held(m: RoleMoves, role: str) -> str:
    return cell(m.held[role]) if role in m.held else ""


def contexts(r: ContextsResult) -> Section:
    """Stage `contexts`."""
    sets = list(dict.fromkeys(name for u in r.units for name in u.examples))
    rows = []
    for u in r.units:
        direct = "" if u.direct is None else f"{u.direct:+.2g}"
        read = (
            "; ".join(f"“{clean(s.tokens[s.peak].strip(), 20)}” {s.values[s.peak]:.2g}" for s in u.examples.get(n, ()))
            for n in sets
        )
        rows.append((unit_name(Kind(u.kind), u.layer, u.index), direct, *read))
    known = [u.direct for u in r.units if u.direct is not None]
    words = ["The unit explorer shows the words around the tokens."]
    if known:
        pushing = f"{sum(d > 0 for d in known)} of {len(known)} push straight towards refusing"
        words.insert(
            0,
            f"Of the {count(len(r.units), 'safety unit')} shown, {pushing}: what one writes at the decision position "
            "of harmful prompts, through the final norm and the unembedding, without what later blocks make of it.",
        )
    columns = ("unit", "direct effect on refusing, nats", *(f"strongest tokens, {n}" for n in sets))
    return Section(
        "contexts",
        "What the safety units respond to",
        "On which words are the highest-ranked safety units active, and what do they write?",
        {},
        tuple(words),
        "The same units on harmless prompts. For a head the number beside a token is the norm of its output.",
        (Table("Highest-ranked SCU (neurons, then heads)", columns, tuple(rows)),),
    )


def sufficiency(r: SufficiencyResult) -> Section:
    """Stage `sufficiency`."""
    figures, words, tables = {}, [], []
    if r.transplants:
        by = {t.name: t for t in r.transplants}
        rows = tuple(map(_moved, r.transplants))
        told = "; ".join(f"{row[0]} {row[2]}" for row in rows)
        figures["transplants"] = f"Points with intervals, share of harmful prompts refused: {told}."
        columns = ("units from the aligned model", "how many", "harmful refused", "harmful fulfilled",
                   "harmful incoherent", "ordinary refused", "refusal score")  # fmt: skip
        tables.append(Table("The unaligned model with units of the aligned one (shares of prompts)", columns, rows))
        twins = [t for t in r.transplants if t.name.startswith("random")]
        if "SCU" in by and "nothing" in by:
            at_random = f", with random sets {number(_mean(twins))}" if twins else ""
            words.append(
                f"As it is, the unaligned model refuses {percents(by['nothing'].harmful.refused)} of harmful prompts; "
                f"with the SCU as they are in the aligned model {percents(by['SCU'].harmful.refused)}{at_random}. Of "
                f"ordinary instructions it then refuses {percents(by['SCU'].harmless.refused)}."
            )
    else:
        words.append("There is no unaligned counterpart, so no units could be moved into one.")
    if r.faithfulness:
        areas = "; ".join(f"{c.name} {number(c.area)}" for c in r.faithfulness)
        figures["faithfulness"] = (
            "Lines: faithfulness against the share of units kept, by the refusal scores of "
            f"{compared(r.faithfulness[0])}. Areas: {areas}."
        )
        shares = [f"{s * 100:g}%" for s in r.faithfulness[0].shares]
        tables.append(
            Table(
                "Faithfulness when only the highest-ranked units are kept (1: whole model, 0: none)",
                ("ranking", "area (CPR)", "distance (CMD)", *shares),
                tuple(map(_faithful, r.faithfulness)),
            )
        )
        c = r.faithfulness[0]
        words.append(
            f"The whole model's refusal score is {number(c.whole)} nats higher on harmful prompts than on ordinary "
            f"ones, and {number(c.none)} with every unit at its mean. Area under the faithfulness curve: {areas}."
        )
    return Section(
        "sufficiency",
        "Are the safety units enough",
        "Do the safety units alone bring refusal, where everything else is unaligned or silent?",
        figures,
        tuple(words),
        "Random sets with as many units in every layer and kind; all units together, as the most that can be had.",
        tuple(tables),
    )


def _mean(found: list[Transplant]) -> float:
    return sum(t.harmful.refused.value for t in found) / len(found)


def _moved(t: Transplant) -> tuple[str, ...]:
    h = t.harmful
    return (t.name, f"{t.n:,}", cell(h.refused), cell(h.fulfilled), cell(h.incoherent), cell(t.harmless.refused),
            cell(t.refusal_score))  # fmt: skip


def _faithful(c: Faithfulness) -> tuple[str, ...]:
    return (c.name, number(c.area), number(c.distance), *map(number, c.values))


def grid_tables(r: AblateResult) -> tuple[Table, ...]:
    """Doses, kinds of request, other harmful sets and utility sub-tests: what the longer profiles add to `ablate`."""
    out = []
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    if r.doses:
        out.append(role_table(r))
        columns = ("share of units", "of parameters", "refused", "fulfilled", "incoherent", "refused, random sets",
                   "refusal score", "refusal score, random sets", "perplexity", "perplexity, random sets",
                   "ordinary refused", "multiple choice", "KL, nats")  # fmt: skip
        out.append(Table("Rising doses of the SCU ranking, mean ablation", columns, tuple(map(_dose, r.doses))))
    if r.groups:
        rows = tuple(
            (f"{g.by}: {g.name}", cell(g.baseline), cell(g.ablated), cell(g.control))
            for g in sorted(r.groups, key=lambda g: (g.by, g.name))
        )
        columns = ("harmful test prompts", *CONDITIONS)
        out.append(Table("Refused, by kind of request (share of prompts)", columns, rows))
    if r.sets:
        rows = tuple(
            (f"{s.name}, {name}", *(cell(getattr(o, f)) for f in ("refused", "fulfilled", "incoherent")))
            for s in r.sets
            for name, o in (
                ("undamaged", s.baseline),
                ("without the SCU", s.ablated),
                ("without a random set", s.control),
            )
        )
        out.append(Table("Other sets of harmful prompts", ("set, model", "refused", "fulfilled", "incoherent"), rows))
    tasks = r.baseline.utility.choices_by_task
    scu = next((c for c in r.conditions if (c.role, c.control) == ("SCU", None) and c.behaviour.utility.choices), None)
    if tasks and scu:
        twin = next((c for c in r.controls("SCU", scu.mode) if c.behaviour.utility.choices_by_task), None)
        models = {"undamaged": r.baseline, "without the SCU": scu.behaviour}
        models |= {"without a random set": twin.behaviour} if twin else {}
        accuracies = [b.utility.choices_by_task or {} for b in models.values()]
        rows = tuple((t, *(cell(a[t]) for a in accuracies)) for t in tasks)
        out.append(Table("Multiple choice by sub-test (accuracy)", ("sub-test", *models), rows))
    return tuple(out)


def role_table(r: AblateResult) -> Table:
    """The analogue of the paper's table of roles: every role and way of ablating, all outcomes, with intervals."""
    models: list[tuple[str, str, str, Behaviour, Sequence[Ablation]]] = [("undamaged", "", "", r.baseline, ())]
    for c in (c for c in r.conditions if c.control is None):
        size = r.shares.get(c.role)
        sizes = ("", "") if size is None else (f"{size.units:.2%}", f"{size.parameters:.2%}")
        models.append((f"{c.role}, {c.mode}", *sizes, c.behaviour, r.controls(c.role, c.mode)))
    rows = []
    for name, units, parameters, b, twins in models:
        refused = [t.behaviour.harmful.refused.value for t in twins]
        at_random = f"{number(min(refused))} to {number(max(refused))}" if refused else ""
        outcomes = (cell(getattr(b.harmful, f)) for f in ("refused", "fulfilled", "incoherent"))
        choices = "" if b.utility.choices is None else cell(b.utility.choices)
        rows.append((name, units, parameters, *outcomes, at_random, cell(b.harmless.refused), choices,
                     cell(b.utility.answer_perplexity), cell(b.utility.kl)))  # fmt: skip
    columns = ("units ablated", "share of units", "of parameters", "harmful refused", "fulfilled", "incoherent",
               "refused, random sets", "ordinary refused", "multiple choice", "perplexity", "KL, nats")  # fmt: skip
    return Table("Every role, all outcomes (test prompts)", columns, tuple(rows))


def _dose(d) -> tuple[str, ...]:
    b, h = d.behaviour, d.behaviour.harmful
    spread = lambda values: f"{number(min(values))} to {number(max(values))}" if values else ""
    choices = "" if b.utility.choices is None else cell(b.utility.choices)
    return (f"{d.size.units:.2%}", f"{d.size.parameters:.2%}", cell(h.refused), cell(h.fulfilled), cell(h.incoherent),
            spread([c.harmful.refused.value for c in d.controls]), cell(b.refusal_score), spread(d.score_controls),
            cell(b.utility.answer_perplexity), spread([c.utility.answer_perplexity.value for c in d.controls]),
            cell(b.harmless.refused), choices, cell(b.utility.kl))  # fmt: skip
