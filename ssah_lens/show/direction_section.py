"""The report's section on the refuse-or-fulfil direction."""

from __future__ import annotations

from ssah_lens.results import ABLATED, AT_PROMPT, AT_RESPONSE, UNDAMAGED, DirectionResult, Interchange, Readout
from ssah_lens.show.section import Examples, Section, Table
from ssah_lens.show.text import cell, clean, number, percent, percents
from ssah_lens.show.words import ABLATION_WORDS

N_HEADS = 5


def direction(r: DirectionResult) -> Section:
    """Stage `direction`."""
    figures = {
        "direction_steered": "Points with intervals, share refused: " + "; ".join(
            f"{_name(s.name, s.control)} harmful {number(s.harmful.refused.value)}" for s in r.steered if s.harmful
        ) + ".",
        "direction_selection": f"Scatter: refusal scores and KL of {len(r.candidates)} candidate directions by layer; "
        f"chosen layer {r.layer}, position {r.position}.",
        "direction_auroc": "Lines: AUROC per layer. " + "; ".join(
            f"{x.target} {number(x.auroc.value)} at layer {x.layer}" for x in r.readouts
        ) + ".",
        "direction_distance_sides": "Lines: distance to the clean query per block, after refusing and after fulfilling "
        "tokens. " + "; ".join(
            f"{d.model}: the refusing side is nearer in {percent(_positive(d.gap))} of blocks and lengths"
            for d in r.distances
        ) + ".",
        "direction_distance": "Lines: distance gap between fulfilling and refusing per block. " + "; ".join(
            f"{d.model}: positive in {percent(_positive(d.gap))} of blocks and lengths" for d in r.distances
        ) + ".",
        "direction_onset": "Refusals after forced tokens: " + "; ".join(
            f"k={f.tokens} {number(f.refused.value)}" for f in r.onset.prefilled
        ) + ".",
        "direction_chain": f"Bars per layer of what attention and MLP add to the logit difference, together "
        f"{number(r.chain.total)}.",
    }  # fmt: skip
    for found in r.interchange:
        figures[f"direction_interchange_{found.pairs}"] = "Decisions flipped: " + "; ".join(
            f"{f.basis} rank {f.rank} {number(f.flipped.value)}" for f in found.flips
        ) + "."  # fmt: skip
    return Section(
        "direction",
        "One direction?",
        "Is refuse-or-fulfil one binary choice along one direction, and where is it made?",
        figures,
        _words(r),
        "Random directions of the same length, shuffled labels, norm-matched random subspaces, DAS on arbitrary labels "
        "and in an untrained copy of the model, and shuffled openings.",
        tuple(_tables(r)),
        examples=_examples(r),
    )


def _words(r: DirectionResult) -> tuple[str, ...]:
    kind = "refused harmful and answered harmless" if r.by_choice else "harmful and harmless (too few were refused)"
    where = f"block {r.layer}, position {r.position} (-1 is the decision position)"
    out = [
        f"The direction is the difference of mean states between {kind} train prompts, at the input of {where}; "
        f"{len(r.candidates)} candidates were tried on validation prompts"
        + (
            "; none met the published conditions, so the bound on KL was dropped: see its KL below."
            if r.relaxed
            else "."
        )
        + f" Where it is added, {r.strength:g} of its lengths are: the fewest that made the model refuse nearly all "
        "ordinary validation prompts. The KL of the conditions is taken on prompts that "
        "the undamaged model is going to answer; the table has that of all beside it."
    ]
    out += _ablation_words(r)
    prompt, response, base = (r.find(n) for n in (AT_PROMPT, AT_RESPONSE, UNDAMAGED))
    if prompt and response and prompt.harmful and response.harmful and base and base.harmful:
        out.append(
            f"Undamaged, the model refuses {percents(base.harmful.refused)} of harmful prompts. Taken out of the "
            f"prompt only, {percent(prompt.harmful.refused)}; taken out of the response only, "
            f"{percent(response.harmful.refused)}."
        )
    out += _utility_words(r)
    if r.before is not None:
        out.append(
            f"Before alignment: the direction of harm had cosine {number(r.before.cosine)} to today's, and today's "
            f"read harm with AUROC {number(r.before.harm_auroc.value)} in the unaligned model. Adding today's refusal "
            f"direction to the unaligned model makes it refuse {percents(r.before.added.refused)} of harmful prompts."
        )
    for found in r.interchange:
        sure = "" if found.arrived else " (nowhere does the whole state flip nearly all: the best block was taken)"
        out.append(
            f"Interchange on {found.pairs} pairs was done at block {found.layer}, the first where the whole state "
            f"carries the choice{sure}. Cosines with the direction: "
            + ", ".join(f"{n} {number(c)}" for n, c in found.cosines.items())
            + ". For arbitrary labels the share is of train pairs that took their arbitrary label: what the freedom to "
            "choose a subspace fits by itself."
        )
    if r.onset.kl_first is not None:
        out.append(
            f"The first {r.onset.kl_tokens} tokens hold {percent(r.onset.kl_first)} of the KL between the aligned and "
            "the unaligned model along the aligned model's own refusals."
        )
    out += [
        f"Made to begin so, the unaligned model refuses {percents(e)} of {name}." for name, e in r.onset.forced_refusal
    ]
    if r.skipped:
        out.append("Not measured: " + "; ".join(r.skipped) + ".")
    return tuple(out)


def _ablation_words(r: DirectionResult) -> list[str]:
    if not r.ablations:
        return []
    each = [
        f"{ABLATION_WORDS[a.name]}: {a.refused:.0%} of harmful validation prompts are about to be refused, KL on "
        f"harmless ones {number(a.kl)}"
        for a in r.ablations
    ]
    return [f"Ways to take it out, the first of which was taken: {'; '.join(each)}."]


def _utility_words(r: DirectionResult) -> list[str]:
    rate = lambda s: f"{number(s.choices.value)} right, " if s.choices else ""
    each = [
        f"{_name(s.name, s.control)}: {rate(s)}perplexity {number(s.answer_perplexity.value)}"
        for s in r.steered
        if s.answer_perplexity
    ]
    about = "Utility (multiple choice; the undamaged model's own answers to ordinary prompts): "
    return [about + "; ".join(each) + "."] if each else []


def _tables(r: DirectionResult):
    rows = [
        (_name(s.name, s.control), *(_rates(side) for side in (s.harmful, s.harmless)), cell(s.kl) if s.kl else "",
         cell(s.kl_all) if s.kl_all else "", cell(s.refusal_score) if s.refusal_score else "",
         cell(s.harmful.incoherent) if s.harmful else "", cell(s.choices) if s.choices else "",
         cell(s.answer_perplexity) if s.answer_perplexity else "")
        for s in r.steered
    ]  # fmt: skip
    columns: tuple[str, ...]
    columns = ("change", "harmful refused", "ordinary refused", "KL where it was to answer (nats)",
               "KL on all ordinary (nats)", "refusal score (log-odds)", "harmful incoherent",
               "multiple choice", "perplexity of own answers")  # fmt: skip
    yield Table("Test prompts (shares of prompts)", columns, tuple(rows))
    if r.readouts:
        columns = ("target", "difference of means", "probe", "shuffled labels", "borderline prompts", "other target",
                   "other target, one side")  # fmt: skip
        yield Table("AUROC on unseen prompts", columns, tuple(_readout(x) for x in r.readouts))
    yield from _elsewhere(r)
    for found in r.interchange:
        yield _flips(found)
    heads = tuple(
        (f"layer {h.layer}, head {h.head}", number(h.contribution), *(" / ".join(number(x) for x in side)
         for side in (h.harmful, h.harmless)))
        for h in r.chain.top[:N_HEADS]
    )  # fmt: skip
    if heads:
        columns = ("head", "to the logit difference", "attention, harmful", "attention, ordinary")
        yield Table("Heads that write the choice (attention on template / instruction / after it)", columns, heads)


def _readout(x: Readout) -> tuple[str, ...]:
    null = f"{number(sum(x.null) / len(x.null))} ({number(min(x.null))} to {number(max(x.null))})"
    name = f"{x.target}, layer {x.layer}, position {x.position}"
    return (name, cell(x.auroc), cell(x.probe_auroc), null, cell(x.transfer), cell(x.other), cell(x.within))


def _elsewhere(r: DirectionResult):
    """The read-outs on the user's prompts: of label and of behaviour, whichever they were fitted to."""
    found = [(x, x.elsewhere) for x in r.readouts if x.elsewhere is not None]
    if found:
        rows = [
            row
            for x, e in found
            for row in (
                (f"{x.target}, difference of means", cell(e.harm), cell(e.choice)),
                (f"{x.target}, probe", cell(e.probe_harm), cell(e.probe_choice)),
            )
        ]
        columns = ("read-out, fitted to", "harm (the label)", "choice (refused or not)")
        yield Table(f"AUROC of the same read-outs on other prompts: {clean(found[0][1].prompts)}", columns, tuple(rows))


def _flips(found: Interchange) -> Table:
    rows = [
        (f"{f.basis}, rank {f.rank}", cell(f.flipped), *map(_number, (f.to_fulfil, f.to_refuse, f.fit)))
        for f in found.flips
    ]
    columns = ("basis", "flipped", "to fulfil", "to refuse", "own train targets")
    return Table(f"Decisions flipped, {found.pairs} pairs ({found.n_test}, both ways)", columns, tuple(rows))


def _number(value: float | None) -> str:
    return "" if value is None else number(value)


def _name(name: str, control: int | None) -> str:
    return name if control is None else f"random direction {control} {name}"


def _rates(side) -> str:
    return "" if side is None else cell(side.refused)


def _positive(gap: list[list[float]]) -> float:
    values = [v for row in gap for v in row]
    return sum(v > 0 for v in values) / len(values)


def _examples(r: DirectionResult) -> Examples | None:
    shown = {name: s.examples for name in (UNDAMAGED, ABLATED) if (s := r.find(name)) is not None and s.harmful}
    if len(shown) < 2:
        return None
    answers = [{clean(p): (clean(o, 20), clean(t)) for p, o, t in rows} for rows in shown.values()]
    prompts = [p for p in answers[0] if all(p in a for a in answers)]
    names = ("undamaged", "direction ablated")
    return Examples(names, tuple((p, tuple(a[p] for a in answers)) for p in prompts)) if prompts else None
