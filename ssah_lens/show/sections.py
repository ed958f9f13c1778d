"""Results to the report's sections: tables, paragraphs and alt texts, one function per stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ssah_lens.results import AlignResult, Behaviour, RefusalResult, Results, UnitsResult
from ssah_lens.show import words
from ssah_lens.show.direction_section import direction
from ssah_lens.show.intervention_sections import ablate, freeze
from ssah_lens.show.patch_section import patch_section
from ssah_lens.show.proof_sections import contexts, scores, stability, sufficiency
from ssah_lens.show.section import Section, Table, examples
from ssah_lens.show.style import ROLE_NAMES
from ssah_lens.show.text import cell, number
from ssah_lens.show.tuning_stage_sections import budget, transfer, tuning


def sections(results: Results) -> list[Section]:
    """One section per stage that was run."""
    makers: dict[str, Callable[[Any], Section]] = {
        "align": _align,
        "refusal": _refusal,
        "direction": direction,
        "scores": scores,
        "units": _units,
    }
    makers |= {"stability": stability, "contexts": contexts, "ablate": ablate, "sufficiency": sufficiency}
    makers |= {"freeze": freeze, "tuning": tuning, "budget": budget, "transfer": transfer}
    makers["patch"] = patch_section
    return [make(getattr(results, stage)) for stage, make in makers.items() if getattr(results, stage) is not None]


def _align(r: AlignResult) -> Section:
    rows = [("before", cell(r.refused_before))]
    if r.refused_after is not None:
        rows.append(("after", cell(r.refused_after)))
    figures = {}
    if r.training is not None and r.training.losses:
        ends = f"from {number(r.training.losses[0])} to {number(r.training.losses[-1])} nats per token"
        figures["training_align"] = f"Line: alignment training loss {ends} over {len(r.training.losses)} steps."
    return Section(
        "align",
        "Alignment",
        "Is the model that we study aligned, and who aligned it?",
        figures,
        words.align(r),
        "The given model before any training, on the same validation prompts.",
        (Table("Harmful validation prompts refused (share)", ("model", "refused"), tuple(rows)),),
    )


def _refusal(r: RefusalResult) -> Section:
    models = {"aligned": r.aligned} | ({"unaligned": r.unaligned} if r.unaligned is not None else {})
    sides = {"harmful prompts": "harmful", "harmless twins": "twins", "ordinary instructions": "harmless"}
    rows = [
        (f"{side}, {name}", *(cell(getattr(o, f)) for f in ("refused", "fulfilled", "incoherent")))
        for side, field in sides.items()
        for name, b in models.items()
        if (o := getattr(b, field)) is not None
    ]
    alt = "Stacked bars, share refused: " + "; ".join(f"{row[0]} {row[1]}" for row in rows) + "."
    return Section(
        "refusal",
        "What the model refuses",
        "Does the aligned model refuse harmful prompts, and only those?",
        {"behaviour": alt},
        words.refusal(r),
        "Ordinary instructions and harmless twins (same topic, nothing harmful asked)"
        + (", and the unaligned model on all of them." if r.unaligned is not None else "."),
        (
            Table("Outcomes (share of prompts)", ("prompts, model", "refused", "fulfilled", "incoherent"), tuple(rows)),
            _utility_table(models),
        ),
        examples=examples(models),
    )


def _utility_table(models: dict[str, Behaviour]) -> Table:
    """One row per measure, so that a measure which was not taken takes no place."""
    measures = {
        "refusal score on harmful prompts (log-odds, nats)": lambda b: b.refusal_score,
        "multiple choice accuracy (share of items)": lambda b: b.utility.choices,
        "perplexity of reference answers": lambda b: b.utility.answer_perplexity,
        "perplexity of answers written by people": lambda b: b.utility.written_perplexity,
        "perplexity of prose": lambda b: b.utility.prose_perplexity,
        "KL to the reference model on ordinary instructions (nats)": lambda b: b.utility.kl,
    }
    rows = [
        (name, *(cell(value(b)) for b in models.values()))
        for name, value in measures.items()
        if any(value(b) is not None for b in models.values())
    ]
    return Table("Refusal score and utility", ("measure", *models), tuple(rows))


def _units(r: UnitsResult) -> Section:
    rows = []
    for role, share in r.roles.items():
        size = r.sizes.get(role)
        chosen = ("the rest", "", "") if size is None else (
            f"{size.chosen * 100:.3g}%",
            "none" if size.largest_within_tolerance is None else f"{size.largest_within_tolerance * 100:.3g}%",
            "yes" if size.reached else "no",
        )  # fmt: skip
        name = f"{role} ({ROLE_NAMES.get(role, 'role')})"
        rows.append((name, f"{share.n:,}", f"{share.units:.2%}", f"{share.parameters:.2%}", *chosen))
    columns = ("role", "units", "share of units", "share of block parameters", "share chosen (each kind)",
               "largest within tolerance", "target met")  # fmt: skip
    sizes = "; ".join(
        f"{n}: {s.chosen:.2%} chosen{'' if s.reached else ', target not reached'}" for n, s in r.sizes.items()
    )
    figures = {
        "size_choice": "Lines: refusals and answer loss against the share of units ablated, per role. "
        f"Without ablation {number(r.base_refused)} and {number(r.base_answer_loss)} nats per token. {sizes}.",
        "units_by_layer": f"Bars: units per layer and role. {words.where(r)}",
        "units_by_kind": "Bars: share of each layer's neurons, and of its heads, that are SCU and UCU.",
        "score_scatter": "Scatter: importance for safety against importance for utility of every unit, by role: "
        + ", ".join(f"{role} {s.n:,}" for role, s in r.roles.items()) + ".",
    }  # fmt: skip
    return Section(
        "units",
        "Which units",
        "Which neurons and attention heads matter for refusing, which for being useful?",
        figures,
        words.units(r),
        f"The undamaged model on the same validation prompts: {number(r.base_refused)} of them refused, answer loss "
        f"{number(r.base_answer_loss)} nats per token. Test prompts play no part in this choice.",
        (Table("Size of each role", columns, tuple(rows)),),
    )
