"""The whole study as named stages; a stage that is done is not done again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssah_lens.config import StudyConfig, limit
from ssah_lens.errors import BadInput
from ssah_lens.memory import give_back
from ssah_lens.progress import bars_told, is_quiet
from ssah_lens.results import Results
from ssah_lens.show.stage_list import stage_list
from ssah_lens.study.engine import Ahead, Cluster, Home, OnRay, check_engine, cluster, nothing_ahead
from ssah_lens.study.estimate import estimate
from ssah_lens.study.plan import MODULES, ON_ENGINE, STAGES, check_order, not_run, wanted_stages
from ssah_lens.study.record import ALIGNED, RunFolder, environment
from ssah_lens.study.workload import stage_minutes

if TYPE_CHECKING:
    from ssah_lens.chat.model import ChatModel
    from ssah_lens.chat.prompts import PromptSet
    from ssah_lens.score.base import Calibration
    from ssah_lens.study.align import AlignmentData
    from ssah_lens.study.behaviour import Yardstick
    from ssah_lens.units import UnitTable

OPENINGS = 36
"""Train prompts of each side whose answers tell how refusals open."""
Note = Callable[[str], None]


def run_study(
    config: StudyConfig,
    out: Path,
    stages: Sequence[str] | None = None,
    note: Note = lambda _: None,
    engine: str = "local",
    address: str | None = None,
) -> Results:
    """Runs the stages that are not done yet and returns all results; the report is at `out/report.html`.

    Args:
        config: what to do.
        out: run folder; an interrupted run resumes there.
        stages: which stages; when None all that are not `LEFT_OUT` of the profile.
        note: called with lines of progress.
        engine: 'local' or 'ray' (`engine.py`); results are the same.
        address: of a running Ray cluster; None starts one here.

    Raises:
        BadInput: unknown stages, a stage whose predecessor is missing, an unusable folder, an engine that is not there.
    """
    wanted = wanted_stages(config.profile, stages)
    if not (out / "config.toml").exists():
        _check_names(config)
    from ssah_lens.score import score

    for name in (config.units.score, *config.tuning.scores):
        score(name)  # an unknown one is refused now, not after the stages before it
    check_engine(engine, address)
    with RunFolder(out).locked():
        folder = RunFolder.open(out, config)
        folder.tidy()
        study = Study(config, folder, note)
        todo = [s for s in STAGES if s in wanted and (s == "report" or not folder.done(s))]
        check_order(folder, todo)
        study.prepare(working=bool(set(todo) - {"report"}))
        budget = {stage: stage_minutes(config, stage) for stage in todo}
        note(f"stages to do: {', '.join(todo)}; {estimate(sum(budget.values()), config.model)}")
        with (
            cluster(engine if ON_ENGINE & set(todo) else "local", address) as study.cluster,
            stage_list(budget, note, live=not is_quiet()) as shown,
            bars_told(shown.tell),
        ):
            for stage in todo:
                with shown.doing(stage):
                    _run_stage(study, stage)
        for hypotheses, why in not_run(folder, str(out)).items():
            note(f"{hypotheses}: {why}")
    return study.results()


def _check_names(config: StudyConfig) -> None:
    """A model that is nowhere is refused before a run folder is made; built-in ones may still be fetched."""
    from ssah_lens.chat import weights
    from ssah_lens.chat.built_in import BUILT_IN

    for name in (config.model, config.unaligned):
        if name is not None and name not in BUILT_IN:
            weights.resolve(name)


def _run_stage(study: Study, stage: str) -> None:
    study.folder.log("start", stage=stage)
    started = time.perf_counter()
    result = _body(stage)(study)
    seconds = time.perf_counter() - started
    study.folder.add_time(stage, seconds)
    if stage != "report":
        study.folder.save_stage(stage, result)
    study.release(stage)
    study.folder.log("done", stage=stage, seconds=round(seconds, 1), peak_mb=_peak_megabytes())


def _body(stage: str) -> Callable[[Study], Any]:
    """The stage's function, named as the stage is; its module is read when it is needed."""
    return getattr(import_module(f"ssah_lens.study.{MODULES[stage]}"), stage)


def _peak_megabytes() -> int | None:
    """Largest resident memory of this process so far."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


class Study:
    """What the stages share: models, prompts and the yardstick, made when first needed."""

    def __init__(self, config: StudyConfig, folder: RunFolder, note: Note) -> None:
        self.config, self.folder, self.note = config, folder, note
        self.cluster: Cluster | None = None

    def prepare(self, working: bool) -> None:
        """Records where results come from; a resumed run keeps the first run's thread count.

        Args:
            working: there is more to do than the report.
        """
        import torch

        from ssah_lens.chat.batch import BATCH_TOKENS

        record, here = self.folder.record, environment() | {"batch_tokens": BATCH_TOKENS}
        if "threads" in record:
            torch.set_num_threads(record["threads"])
            if working:
                self._compare(record, here)
        else:
            self.folder.update_record(
                **here,
                seed=self.config.seed,
                device=self.config.device,
                dtype=self.config.dtype,
                threads=torch.get_num_threads(),
                started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            )

    def _compare(self, record: dict[str, Any], here: dict[str, Any]) -> None:
        """Says so when an earlier session of this run was not like this one: the last digits may differ then."""
        flat = lambda e: {**e.get("versions", {}), **{k: v for k, v in e.items() if k not in ("versions", "schema")}}
        then, now = flat(record), flat(here)
        changed = {k: (then[k], v) for k, v in now.items() if then.get(k, v) != v}
        if changed:
            self.folder.log("changed", **changed)
            said = ", ".join(f"{k} {a} (now {b})" for k, (a, b) in changed.items())
            self.note(f"note: this run was begun with {said}; the last digits may differ from an unbroken run's")

    def results(self) -> Results:
        """Everything so far, with its scorecard."""
        from ssah_lens.study.scorecard import scorecard

        found = self.folder.results()
        return replace(found, scorecard=scorecard(found), not_run=not_run(self.folder))

    # ---- models

    def _read(self, name: str, note: Note | None = None) -> ChatModel:
        """A model as the configuration says, with what the run knows of the memory there is."""
        from ssah_lens.chat.model import ChatModel

        model = ChatModel.load(name, self.config.device, self.config.dtype, note, self.config.system)
        model.room.share = self.folder.record.get("batch_share", 1.0)
        return model

    def _load(self, name: str) -> ChatModel:
        from ssah_lens.chat import weights

        model = self._read(name, self.note)
        known, found = self.folder.record.get("models", {}), weights.file_hashes(weights.resolve(name))
        if known.get(name, found) != found:
            raise BadInput(f"the files of '{name}' have changed since this run began; choose another --out")
        notes = {**self.folder.record.get("notes", {}), **({name: "; ".join(model.notes)} if model.notes else {})}
        self.folder.update_record(models={**known, name: found}, **({"notes": notes} if notes else {}))
        return model

    @cached_property
    def given(self) -> ChatModel:
        """The model that the user named."""
        return self._load(self.config.model)

    @property
    def _made(self) -> bool:
        """True when this study aligned the given model itself."""
        done = self.folder.load_stage("align")
        return done is not None and done.training is not None

    @cached_property
    def aligned(self) -> ChatModel:
        if not self._made:
            return self.given
        model = self._read(self._check_aligned())
        model.name = f"{self.config.model} (aligned)"
        return model

    def _check_aligned(self) -> str:
        """The folder of the model that this study aligned, as it was written."""
        from ssah_lens.chat import weights

        folder = self.folder.path / ALIGNED
        wrote = self.folder.record.get("aligned")
        if not folder.is_dir() or wrote not in (None, weights.file_hashes(weights.resolve(str(folder)))):
            raise self.folder.lost(ALIGNED, "align")
        return str(folder)

    def ahead(self, stage: str, unaligned: bool = False) -> Ahead:
        """Makes parts of a stage ahead on the cluster, with the aligned or the unaligned model; without one, none."""
        if self.cluster is None:
            return nothing_ahead
        if unaligned and self.unaligned is not None:
            home = self._home(self.config.unaligned or self.config.model, self.unaligned.name)
        else:
            where = str((self.folder.path / ALIGNED).resolve()) if self._made else self.config.model
            home = self._home(where, self.aligned.name)
        return OnRay(self.cluster, home, self.folder.parts(stage))

    def _home(self, where: str, shown: str) -> Home:
        """What a worker needs to read a model as `_read` does."""
        import torch

        c = self.config
        return Home(where, shown, c.device, c.dtype, torch.get_num_threads(), c.system)

    @cached_property
    def unaligned(self) -> ChatModel | None:
        if self.config.unaligned:
            return self._load(self.config.unaligned)
        return self.given if self._made else None

    def release(self, stage: str) -> None:
        """Lets go of what later stages do not need: the unaligned model after scoring, and freed memory."""
        self._keep_batch_share()
        if stage in ("units", "scores", "stability", "sufficiency", "tuning", "budget", "transfer") and self._made:
            self.let_go("given", "unaligned")
            if "calibration" in self.__dict__:
                self.calibration = replace(self.calibration, unaligned=None)
        give_back()

    def let_go(self, *models: str) -> None:
        """Frees these models; one is read again when it is needed."""
        for name in models:
            self.__dict__.pop(name, None)

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

    def alignment_data(self, unaligned: ChatModel) -> AlignmentData:
        from ssah_lens.chat.prompts import pairs
        from ssah_lens.study.align import alignment_data, with_forms

        a, seed = self.config.align, self.config.seed
        harmful, twins = pairs("train")
        harmful, ordinary = with_forms(harmful, self.ordinary_train[0], a, seed)
        return alignment_data(unaligned, harmful, twins.sample(a.twins, seed), ordinary, a, seed)

    @cached_property
    def yardstick(self) -> Yardstick:
        """The aligned model's yardstick on the test split."""
        return self.yardstick_of(self.aligned)

    def yardstick_of(self, reference: ChatModel) -> Yardstick:
        from ssah_lens.chat.prompts import instructions, pairs
        from ssah_lens.study.behaviour import find_refusal_tokens, yardstick

        m, seed = self.config.measure, self.config.seed
        harmful, twins = pairs("test")
        done = self.folder.load_stage("refusal")
        if done is None:
            asked, ordinary = (p.sample(OPENINGS, seed) for p in (pairs("train")[0], self.ordinary_train[0]))
            find = lambda: find_refusal_tokens(self.aligned, asked, ordinary, seed)
            tokens = self.folder.part("refusal", "tokens", list[int], find)
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
        return self.calibration_of(self.config.seed)

    def calibration_of(self, seed: int) -> Calibration:
        """Calibration data of the aligned model, from train prompts drawn by a seed."""
        from ssah_lens.chat.prompts import pairs
        from ssah_lens.study.units import calibrate, harmless_mix

        u = self.config.units
        harmful, twins = pairs("train")
        ordinary = self.ordinary_train[0]
        harmless = harmless_mix(twins, ordinary, u.calibration, seed)
        refusal = self.folder.load_stage("refusal")
        return calibrate(
            self.aligned,
            self.unaligned,
            harmful.sample(u.calibration, seed),
            harmless,
            u,
            seed,
            refusal.refusal_token_ids if refusal else (),
            ordinary.without(harmless).sample(u.calibration, seed),
        )

    @property
    def score_parts(self) -> Path:
        """Where scores that take long keep what they have measured or learnt."""
        return self.folder.path / "score_parts"

    def table(self) -> UnitTable:
        from ssah_lens.units import UnitTable

        try:
            return UnitTable.load(self.folder.path / "units.parquet")
        except BadInput as e:
            raise self.folder.lost("units.parquet", "units") from e
