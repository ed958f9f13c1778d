"""The stages that every study has, as the runner calls them: the model aligned and asked, its direction and units.

Each takes the study (its models, prompts and folder) and returns the stage's result; so do `proof_stages` (H4) and
`tuning_stages` (H5 to H7). What draws is imported by the stages that draw: the others do without its hundred megabytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssah_lens.chat import weights
from ssah_lens.chat.prompts import pairs
from ssah_lens.chat.save import save_model
from ssah_lens.measure.refusal import refusals
from ssah_lens.results import AlignResult, Behaviour, DirectionResult, PatchResult, RefusalResult, UnitsResult
from ssah_lens.stats import Estimate
from ssah_lens.study.align import AlignmentData
from ssah_lens.study.align import align as align_model
from ssah_lens.study.behaviour import behave
from ssah_lens.study.direction import study_direction
from ssah_lens.study.direction_data import direction_data
from ssah_lens.study.freeze import training_result
from ssah_lens.study.openings import Openings, find_openings
from ssah_lens.study.record import ALIGNED, write_results
from ssah_lens.study.sweeps import effects_in_parts
from ssah_lens.study.units import find_units, validation_prompts
from ssah_lens.train.checkpoint import Checkpoints

if TYPE_CHECKING:
    from ssah_lens.study.runner import Study

CHECK_PROMPTS = 30
"""Validation prompts that tell whether a model is aligned already, and whether aligning it worked."""


def align(study: Study) -> AlignResult:
    """Aligns the given model, unless it refuses already."""
    config, seed, keep = study.config, study.config.seed, study.folder.parts("align")
    study.folder.discard(ALIGNED)  # saved by a run that was killed before this stage was whole
    check = pairs("validation")[0].sample(CHECK_PROMPTS, seed)
    rate = lambda: refusals(study.given, check, config.measure.judge, 12, "does it refuse?").rate()
    before = keep("before", Estimate, rate)
    if config.unaligned or before.value >= config.align.aligned_at:
        return AlignResult(config.model, config.unaligned, None, before, None)
    data = keep("data", AlignmentData, lambda: study.alignment_data(study.given))
    checkpoints = Checkpoints.within(keep.working("training"), study.given)
    done = align_model(study.given, data, config.align, seed, checkpoints=checkpoints)
    result = AlignResult(config.model, None, training_result(study.given, done, None), before, rate())
    folder = save_model(study.given, study.folder.path / ALIGNED)
    wrote = weights.file_hashes(weights.resolve(str(folder)))
    study.folder.update_record(aligned=wrote)
    study.let_go("given")  # the trained weights stay with the folder
    return result


def refusal(study: Study) -> RefusalResult:
    """Behaviour of both models on the test split; perplexity is that of the unaligned model's answers, if any."""
    y, keep = study.yardstick_of(study.unaligned or study.aligned), study.folder.parts("refusal")
    does = lambda model: behave(model, y, twins=True, prose=True, written=True)[0]
    aligned = keep("aligned", Behaviour, lambda: does(study.aligned))
    unaligned = keep("unaligned", Behaviour, lambda: does(study.unaligned)) if study.unaligned else None
    words = tuple(study.aligned.tokenizer.decode([t]) for t in y.tokens)
    return RefusalResult(aligned, unaligned, words, y.tokens)


def direction(study: Study) -> DirectionResult:
    """The refuse-or-fulfil direction: read, ablated, added, interchanged; and how deep the alignment is."""
    d, m, seed = study.config.direction, study.config.measure, study.config.seed
    tokens = study.folder.load_stage("refusal").refusal_token_ids
    data = direction_data(d, m, seed)
    keep = study.folder.parts("direction")
    return study_direction(study.aligned, study.unaligned, data, tokens, d, seed, m.judge, study.note, keep)


def units(study: Study) -> UnitsResult:
    """Scores, roles, `units.parquet`."""
    u, seed = study.config.units, study.config.seed
    harmful, harmless, spare = validation_prompts(u.validation, seed)
    table, result = find_units(
        study.aligned,
        study.calibration,
        harmful,
        harmless,
        u,
        store=study.score_parts,
        effects=effects_in_parts(study.folder.parts("units"), study.ahead("units")),
        spare=spare,
    )
    table.save(study.folder.path / "units.parquet")
    return result


def patch(study: Study) -> PatchResult:
    """Activation patching over matched test pairs, and what stands in for exact effects."""
    from ssah_lens.study.patch_stage import patch_stage

    config, keep = study.config, study.folder.parts("patch")
    openings = keep("openings", Openings, lambda: find_openings(study.aligned, config.seed))
    return patch_stage(study.aligned, *pairs("test"), openings, config.patch, config.seed, study.note, keep)


def report(study: Study) -> None:
    """`results.json`, the figures and `report.html`."""
    from ssah_lens.show.run_folder import render
    from ssah_lens.study.explored import load_contexts

    results = study.results()
    write_results(study.folder, results)
    table = study.table() if study.folder.done("units") else None
    contexts = load_contexts(study.folder.path) or (results.contexts.units if results.contexts else ())
    render(results, table, study.folder.record, study.folder.path, contexts)
