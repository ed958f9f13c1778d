"""The whole study as named stages; a stage that is done is not done again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssah_lens.config import StudyConfig, limit
from ssah_lens.errors import BadInput
from ssah_lens.memory import give_back
from ssah_lens.results import Results
from ssah_lens.study.record import RunFolder, environment, write_results

if TYPE_CHECKING:
    from ssah_lens.chat.model import ChatModel
    from ssah_lens.chat.prompts import PromptSet
    from ssah_lens.score.base import Calibration
    from ssah_lens.study.behaviour import Yardstick

NEEDS = {
    "align": (),
    "refusal": ("align",),
    "units": ("refusal",),
    "ablate": ("units",),
    "freeze": ("units",),
    "report": (),
}
"""Stages in their order, and which ones must be done before each."""
STAGES = tuple(NEEDS)
MINUTES = {
    "quick": {"align": 4, "refusal": 1.5, "units": 3, "ablate": 3, "freeze": 3.5, "report": 0.2},
    "standard": {"align": 4, "refusal": 5, "units": 8, "ablate": 35, "freeze": 30, "report": 0.2},
    "full": {"align": 4, "refusal": 8, "units": 15, "ablate": 120, "freeze": 90, "report": 0.2},
}
"""Budget per stage for smollm2-135m on two CPU cores, told to the user beforehand."""
CHECK_PROMPTS = 30
"""Validation prompts that tell whether a model is aligned already, and whether aligning it worked."""
HELD_OUT = 24
"""Benign validation instructions whose loss is measured before and after fine-tuning."""
REFUSES = 0.5
"""A model that refuses at least half of the validation prompts counts as aligned already."""
Note = Callable[[str], None]


def run_study(
    config: StudyConfig, out: Path, stages: Sequence[str] | None = None, note: Note = lambda _: None
) -> Results:
    """Runs the stages that are not done yet and returns all results; the report is at `out/report.html`.

    Args:
        config: what to do.
        out: run folder; an interrupted run resumes there.
        stages: which stages; all when None.
        note: called with lines of progress.

    Raises:
        BadInput: unknown stages, a stage whose predecessor is missing, an unusable folder.
    """
    wanted = STAGES if stages is None else tuple(stages)
    unknown = [s for s in wanted if s not in STAGES]
    if unknown:
        raise BadInput(f"no stage '{', '.join(unknown)}': allowed are {', '.join(STAGES)}")
    from ssah_lens.score import score

    score(config.units.score)  # an unknown one is refused now, not after the stages before it
    folder = RunFolder.open(out, config)
    with folder.locked():
        study = Study(config, folder, note)
        study.prepare()
        todo = [s for s in STAGES if s in wanted and (s == "report" or not folder.done(s))]
        note(
            f"stages to do: {', '.join(todo)}; about {_minutes(config, todo)} minutes on two CPU cores for smollm2-135m"
        )
        for stage in todo:
            _run_stage(study, stage)
    return study.results()


def _run_stage(study: Study, stage: str) -> None:
    missing = [s for s in NEEDS[stage] if not study.folder.done(s)]
    if missing:
        raise BadInput(
            f"stage '{stage}' needs '{missing[0]}', which is not done in '{study.folder.path}'; run it first"
        )
    study.note(f"stage {stage} ...")
    study.folder.log("start", stage=stage)
    started = time.perf_counter()
    result = getattr(study, stage)()
    seconds = time.perf_counter() - started
    study.folder.add_time(stage, seconds)
    if stage != "report":
        study.folder.save_stage(stage, result)
    study.release(stage)
    study.folder.log("done", stage=stage, seconds=round(seconds, 1), peak_mb=_peak_megabytes())
    study.note(f"stage {stage} done in {seconds:.0f} s")


def _peak_megabytes() -> int | None:
    """Largest resident memory of this process so far."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def _minutes(config: StudyConfig, todo: Sequence[str]) -> str:
    return f"{sum(MINUTES[config.profile][s] for s in todo):.0f}"


class Study:
    """The stages, and what they share: models, prompts and the yardstick, made when first needed."""

    def __init__(self, config: StudyConfig, folder: RunFolder, note: Note) -> None:
        self.config, self.folder, self.note = config, folder, note

    def prepare(self) -> None:
        """Records where results come from; a resumed run keeps the first run's thread count."""
        import torch

        record = self.folder.record
        if "threads" in record:
            torch.set_num_threads(record["threads"])
        else:
            self.folder.update_record(
                **environment(),
                seed=self.config.seed,
                device=self.config.device,
                dtype=self.config.dtype,
                threads=torch.get_num_threads(),
                started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            )

    def results(self) -> Results:
        """Everything so far, with its scorecard."""
        from ssah_lens.study.scorecard import scorecard

        found = self.folder.results()
        return replace(found, scorecard=scorecard(found))

    # ---- models

    def _load(self, name: str) -> ChatModel:
        from ssah_lens.chat import weights
        from ssah_lens.chat.model import ChatModel

        model = ChatModel.load(name, self.config.device, self.config.dtype, self.note, self.config.system)
        model.room.share = self.folder.record.get("batch_share", 1.0)
        hashes = {**self.folder.record.get("models", {}), name: weights.file_hashes(weights.resolve(name))}
        notes = {**self.folder.record.get("notes", {}), **({name: "; ".join(model.notes)} if model.notes else {})}
        self.folder.update_record(models=hashes, **({"notes": notes} if notes else {}))
        return model

    @cached_property
    def given(self) -> ChatModel:
        """The model that the user named."""
        return self._load(self.config.model)

    @property
    def _made(self) -> bool:
        """True when this study aligned the given model itself."""
        return (self.folder.path / "aligned").is_dir()

    @cached_property
    def aligned(self) -> ChatModel:
        from ssah_lens.chat.model import ChatModel

        if not self._made:
            return self.given
        model = ChatModel.load(
            str(self.folder.path / "aligned"), self.config.device, self.config.dtype, system=self.config.system
        )
        model.room.share = self.folder.record.get("batch_share", 1.0)
        model.name = f"{self.config.model} (aligned)"
        return model

    @cached_property
    def unaligned(self) -> ChatModel | None:
        if self.config.unaligned:
            return self._load(self.config.unaligned)
        return self.given if self._made else None

    def release(self, stage: str) -> None:
        """Lets go of what later stages do not need: the unaligned model after scoring, and freed memory."""
        self._keep_batch_share()
        if stage == "units" and self._made:
            for name in ("given", "unaligned"):
                self.__dict__.pop(name, None)
            self.calibration = replace(self.calibration, unaligned=None)
        give_back()

    def _keep_batch_share(self) -> None:
        """What a stage learnt of memory holds for the next stages, in this process and in one that resumes."""
        models = [m for m in (self.__dict__.get(name) for name in ("given", "aligned", "unaligned")) if m is not None]
        share = min((m.room.share for m in models), default=1.0)
        if share < 1:
            for model in models:
                model.room.share = share
            self.folder.update_record(batch_share=share)

    # ---- prompts

    @cached_property
    def ordinary_train(self) -> tuple[PromptSet, PromptSet]:
        """Ordinary train instructions: those for alignment, and the others, for benign fine-tuning."""
        from ssah_lens.chat.prompts import instructions

        everything = instructions("train")
        first = everything.sample(self.config.align.ordinary, self.config.seed)
        return first, everything.without(first)

    @cached_property
    def yardstick(self) -> Yardstick:
        """The aligned model's yardstick on the test split."""
        return self._yardstick(self.aligned)

    def _yardstick(self, reference: ChatModel) -> Yardstick:
        from ssah_lens.chat.prompts import instructions, pairs
        from ssah_lens.study.behaviour import find_refusal_tokens, yardstick

        m, seed = self.config.measure, self.config.seed
        harmful, twins = pairs("test")
        done = self.folder.load_stage("refusal")
        if done is None:
            train = pairs("train")[0], self.ordinary_train[0]
            tokens = find_refusal_tokens(self.aligned, *(p.sample(48, seed) for p in train), seed)
        else:
            tokens = done.refusal_token_ids
        return yardstick(
            reference,
            harmful.sample(limit(m.harmful), seed),
            instructions("test").sample(limit(m.ordinary), seed),
            tokens,
            twins.sample(limit(m.twins), seed),
            m.judge,
            m.max_new_tokens,
            limit(m.choices),
            limit(m.prose),
        )

    @cached_property
    def calibration(self) -> Calibration:
        from ssah_lens.chat.prompts import pairs
        from ssah_lens.study.units import calibrate, harmless_mix

        u, seed = self.config.units, self.config.seed
        harmful, twins = pairs("train")
        harmless = harmless_mix(twins, self.ordinary_train[0], u.calibration, seed)
        refusal = self.folder.load_stage("refusal")
        return calibrate(
            self.aligned,
            self.unaligned,
            harmful.sample(u.calibration, seed),
            harmless,
            u,
            seed,
            refusal.refusal_token_ids if refusal else (),
        )

    # ---- stages

    def align(self) -> Any:
        """Aligns the given model, unless it refuses already."""
        from ssah_lens.chat.prompts import pairs
        from ssah_lens.chat.save import save_model
        from ssah_lens.measure.refusal import refusals
        from ssah_lens.results import AlignResult
        from ssah_lens.study.align import align, alignment_data
        from ssah_lens.study.freeze import training_result

        config, seed = self.config, self.config.seed
        check = pairs("validation")[0].sample(CHECK_PROMPTS, seed)
        rate = lambda m: refusals(m, check, config.measure.judge, 12, "does it refuse?").rate()
        before = rate(self.given)
        if config.unaligned or before.value >= REFUSES:
            return AlignResult(config.model, config.unaligned, None, before, None)
        harmful, twins = pairs("train")
        data = alignment_data(
            self.given, harmful, twins.sample(config.align.twins, seed), self.ordinary_train[0], config.align, seed
        )
        done = align(self.given, data, config.align, seed)
        after = rate(self.given)
        save_model(self.given, self.folder.path / "aligned")
        # The trained weights stay with the folder; the given model is read again when it is needed.
        del self.__dict__["given"]
        return AlignResult(config.model, None, training_result(self.aligned, done, len(data), None), before, after)

    def refusal(self) -> Any:
        """Behaviour of both models on the test split; perplexity is that of the unaligned model's answers, if any."""
        from ssah_lens.results import RefusalResult
        from ssah_lens.study.behaviour import behave

        y = self._yardstick(self.unaligned or self.aligned)
        options = {"twins": True, "prose": True, "written": True}
        aligned, _ = behave(self.aligned, y, **options)
        unaligned = behave(self.unaligned, y, **options)[0] if self.unaligned else None
        words = tuple(self.aligned.tokenizer.decode([t]) for t in y.tokens)
        return RefusalResult(aligned, unaligned, words, y.tokens)

    def units(self) -> Any:
        """Scores, roles, `units.parquet`."""
        from ssah_lens.chat.prompts import instructions, pairs
        from ssah_lens.study.units import find_units, harmless_mix

        u, seed = self.config.units, self.config.seed
        harmful, twins = pairs("validation")
        harmless = harmless_mix(twins, instructions("validation"), u.validation, seed)
        table, result = find_units(
            self.aligned,
            self.calibration,
            harmful.sample(u.validation, seed),
            harmless,
            u,
            store=self.folder.path / "exact",
        )
        table.save(self.folder.path / "units.parquet")
        return result

    def ablate(self) -> Any:
        """Every role ablated on the test split, beside its random twins."""
        from ssah_lens.study.ablate import ablate_sets

        sets = {str(r): s for r, s in self._table().roles.items()}
        return ablate_sets(
            self.aligned, sets, self.calibration.moments, self.yardstick, self.config.ablate, self.config.seed
        )

    def freeze(self) -> Any:
        """Benign fine-tuning, three ways."""
        from ssah_lens.chat.prompts import instructions
        from ssah_lens.study.behaviour import behave
        from ssah_lens.study.freeze import compare_freezing

        ablated = self.folder.load_stage("ablate")  # it measured the same model by the same yardstick
        if ablated is None:
            before = behave(self.aligned, self.yardstick, choices=False)
        else:
            before = ablated.baseline, ablated.baseline_refused
        return compare_freezing(
            self.aligned,
            self._table(),
            self.ordinary_train[1],
            instructions("validation").sample(HELD_OUT, self.config.seed),
            self.yardstick,
            before,
            self.config.freeze,
            self.config.seed,
        )

    def report(self) -> None:
        """`results.json`, the figures and `report.html`."""
        from ssah_lens.show.run_folder import render

        results = self.results()
        write_results(self.folder, results)
        table = self._table() if (self.folder.path / "units.parquet").is_file() else None
        render(results, table, self.folder.record, self.folder.path)

    def _table(self):
        from ssah_lens.units import UnitTable

        return UnitTable.load(self.folder.path / "units.parquet")
