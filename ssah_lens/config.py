"""Validated run configuration: what a study does, in three profiles, read from and written to TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ssah_lens.errors import BadInput

Profile = Literal["quick", "standard", "full"]
MAX_STEPS, MAX_BATCH = 1_000_000, 4096
"""More is a slip of the finger, and would fill the memory before anything is said."""
PLACE = r"^(heads|neurons|blocks) (\d{1,4})-(\d{1,4})$"
"""Units by where they are: 'heads 10-19'."""
MAX_BYTES = 16_000
"""Largest configuration file that is read: a whole one takes 2 kB, and a key of many parts takes tomllib long."""
SHOWN = 80
"""Characters of a wrong value that an error repeats."""


Mode = Literal["mean", "zero", "resample"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Limit = Annotated[int, Field(ge=8)] | Literal["all"]
"""How many of a shipped set to use."""


def limit(n: int | Literal["all"]) -> int | None:
    """As `PromptSet.sample` takes it: None for all."""
    return None if n == "all" else n


class AlignConfig(_Section):
    """Alignment of an unaligned model."""

    aligned_at: float = Field(
        0.5,
        ge=0,
        le=1,
        description="a model that refuses this share of validation prompts counts as aligned and is studied as given; "
        "0 for any model, such as one that fine-tuning has weakened",
    )
    steps: int = Field(40, ge=1, le=MAX_STEPS)
    lr: float = Field(1.5e-4, gt=0, lt=1)
    batch_size: int = Field(16, ge=1, le=MAX_BATCH)
    twins: int = Field(90, ge=0, description="harmless twins of harmful prompts among the harmless examples")
    ordinary: int = Field(280, ge=2, description="ordinary instructions among them")
    forms: Limit = Field(160, description="requests in the forms that public sets like, on each side")
    answer_tokens: int = Field(16, ge=4)
    anchor: float = Field(4.0, gt=0, description="weight of staying the same on harmless answers, against refusing")


class MeasureConfig(_Section):
    """How many test prompts, multiple-choice items and prose passages, and how long the responses are."""

    harmful: Limit = 30
    ordinary: Limit = 20
    twins: Limit = 12
    max_new_tokens: int = Field(12, ge=4, le=2048)
    choices: Limit = 16
    prose: Limit = 8
    judge: str = "keyword"


class DirectionConfig(_Section):
    """The refuse-or-fulfil direction (H1 to H3); test prompts are those of `MeasureConfig`."""

    train: Limit = 28
    """Train pairs, and as many ordinary instructions."""
    validation: Limit = 12
    borderline: Limit = 12
    layer_step: int = Field(6, ge=1, description="every how manieth layer is tried (selection, interchange)")
    per_layer: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    controls: int = Field(1, ge=1, description="random directions that are generated with and judged")
    shuffles: int = Field(20, ge=1, description="shuffled labellings behind the null of the AUROC")
    max_new_tokens: int = Field(10, ge=4)
    pairs: int = Field(20, ge=8, description="pairs for interchange, train and test each")
    both_pairs: bool = Field(False, description="interchange on both kinds of pairs, with controls of every rank")
    ranks: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 4, 8), min_length=1)
    das_epochs: int = Field(5, ge=1)
    das_controls: int = Field(5, ge=1, description="random subspaces per rank")
    distance: Limit = 8
    onset: Limit = 8
    prefill: tuple[Annotated[int, Field(ge=1, le=12)], ...] = Field((1, 5), min_length=1)
    chain: Limit = 12
    choices: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        0, description="multiple-choice items answered without the direction; with none, perplexity alone is measured"
    )


class UnitsConfig(_Section):
    """Scores and the choice of role sizes."""

    score: str = "mask"
    calibration: int = Field(36, ge=8, description="harmful and as many harmless train prompts")
    validation: int = Field(20, ge=8, description="harmful and as many harmless validation prompts")
    steps: int = Field(18, ge=1, le=MAX_STEPS, description="optimizer steps of a score that learns")
    scu: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.005, 0.01, 0.02, 0.03), min_length=1, description="shares of units tried as SCU; above 3% they are not few"
    )
    exact_units: int | None = Field(None, ge=8, description="units that the exact score measures; all when not given")
    exact_prompts: int = Field(16, ge=1, description="prompts of each side that it measures them on")


class AblateConfig(_Section):
    """Role ablation on the test split."""

    controls: int = Field(3, ge=1, le=1000, description="matched random sets that are generated and judged, per role")
    other_controls: int = Field(1, ge=1, le=1000, description="the same for roles other than SCU")
    score_controls: int = Field(10, ge=1, le=1000, description="matched random sets measured by refusal score only")
    modes: tuple[Mode, ...] = Field(("mean", "zero"), min_length=1, description="the first one gets the controls")
    doses: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((), description="shares of each kind's units")
    harmful: tuple[str, ...] = Field((), description="more harmful sets: files, shipped names, hub ids")


COMMAND_ALIGN = {"steps": 110, "lr": 1.2e-4, "ordinary": 380, "twins": 160, "forms": "all"}
"""Of the command `align`, which has more time than a quick study: every training prompt once, and then some."""
FINE = (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03)
"""Shares tried as SCU where there is time to look for the smallest set."""
COMMAND_UNITS = {"calibration": 64, "validation": 40, "steps": 45, "scu": FINE}
"""Of the command `units`, which has more time than a quick study: after 18 steps hardly a gate has closed, after 45
about 1% of them have, and no more close."""


class ScoresConfig(_Section):
    """The comparison of all scores, on validation prompts."""

    exact_units: int | None = Field(2000, ge=8, description="units of the exact effect that scores are compared with")
    exact_prompts: int = Field(12, ge=1, description="prompts of each side that it is measured on")


class StabilityConfig(_Section):
    """The score again on other calibration data."""

    reruns: int = Field(4, ge=1, description="bootstrap samples of the calibration prompts")


class FreezeConfig(_Section):
    """Benign fine-tuning with and without frozen units."""

    steps: int = Field(10, ge=1, le=MAX_STEPS)
    lr: float = Field(1.3e-4, gt=0, lt=1)
    batch_size: int = Field(8, ge=1, le=MAX_BATCH)
    answer_tokens: Limit = Field(48, description="answers are cut there: refusing is unlearnt in their first tokens")
    top_cu: float = Field(0.06, ge=0, le=1, description="share of all units, the CU with the largest I_S - I_U")
    seeds: int = Field(1, ge=1, le=1000)


class TuningConfig(_Section):
    """Every way of fine-tuning, side by side."""

    data: tuple[Literal["ordinary", "terse", "identity-shift"], ...] = ("ordinary",)
    methods: tuple[str, ...] = Field(
        ("full", "freeze SCU + top CU", "freeze random", "safety-layers", "lora", "first-token", "mix-refusals"),
        description="labels of study.tuning.LABELS; 'full' is always among them",
    )
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (), description="trade-off: these shares of all units are held, once the safest and once random ones"
    )
    scores: tuple[str, ...] = Field(
        (), description="other scores, each of which freezes the units that it ranks safest, beside a random twin"
    )
    scored_share: float = Field(0.09, gt=0, lt=1, description="share of all units that each of `scores` freezes")
    places: tuple[Annotated[str, Field(pattern=PLACE)], ...] = Field(
        (), description="units held by where they are ('heads 10-19', 'blocks 12-14'), each beside as many anywhere"
    )
    mixes: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (), description="mix-refusals with these many refusals per row of data, beside a tenth"
    )
    seeds: int = Field(1, ge=1)
    steps: int = Field(24, ge=1)
    lr: float = Field(1e-4, gt=0, description="of what trains the model's own weights; adapters have their own")
    lora_lr: float = Field(1e-3, gt=0, description="of LoRA: ten times that of the model's own weights")
    batch_size: int = Field(8, ge=1)
    top_cu: float = Field(0.06, ge=0, le=1)
    validation: int = Field(48, ge=8, description="harmful validation prompts, and as many rows held out")


class BudgetConfig(_Section):
    """Alignment of the unaligned model through few parameters."""

    share: float = Field(0.2, gt=0, lt=1, description="of the units: the most redundant ones, and random ones")
    seeds: int = Field(1, ge=1)


class PatchConfig(_Section):
    """Activation patching on the test split, and what stands in for the exact effect of units."""

    pairs: int = Field(4, ge=2, description="token-aligned pairs that are patched")
    units: int = Field(48, ge=8, description="random units whose effects are compared")
    prompts: int = Field(8, ge=2, description="harmful prompts that units are ablated on")
    steps: int = Field(4, ge=1, description="points of integrated gradients")


class StudyConfig(_Section):
    """A whole study."""

    model: str = "smollm2-135m"
    unaligned: str | None = None
    profile: Profile = "quick"
    seed: int = Field(0, ge=0, lt=2**32)
    device: str = "cpu"
    dtype: str = "float32"
    system: str | None = Field(None, description="system prompt of prompts that bring none; else the template's own")
    align: AlignConfig = AlignConfig()
    measure: MeasureConfig = MeasureConfig()
    direction: DirectionConfig = DirectionConfig()
    units: UnitsConfig = UnitsConfig()
    scores: ScoresConfig = ScoresConfig()
    stability: StabilityConfig = StabilityConfig()
    ablate: AblateConfig = AblateConfig()
    freeze: FreezeConfig = FreezeConfig()
    tuning: TuningConfig = TuningConfig()
    budget: BudgetConfig = BudgetConfig()
    patch: PatchConfig = PatchConfig()


EVERYTHING = dict.fromkeys(("harmful", "ordinary", "twins", "choices", "prose"), "all")
GRID = {
    "modes": ("mean", "zero", "resample"),
    "doses": (0.001, 0.003, 0.01, 0.03, 0.1, 0.2),
    "harmful": ("borderline_unsafe",),
}
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {},
    "standard": {
        "measure": {**EVERYTHING, "max_new_tokens": 24},
        "direction": {
            "train": 128,
            "validation": 48,
            "borderline": 60,
            "layer_step": 1,
            "per_layer": 2,
            "controls": 3,
            "shuffles": 100,
            "max_new_tokens": 24,
            "pairs": 64,
            "both_pairs": True,
            "das_epochs": 12,
            "distance": 64,
            "onset": 48,
            "prefill": tuple(range(1, 11)),
            "chain": 48,
            "choices": "all",
        },
        "units": {"calibration": 128, "validation": 72, "steps": 60, "scu": FINE},
        "ablate": {"controls": 3, "other_controls": 3, "score_controls": 20, **GRID},
        "freeze": {"seeds": 3, "answer_tokens": "all"},
        "tuning": {"data": ("ordinary", "terse"), "seeds": 3},
        "budget": {"seeds": 3},
        "patch": {"pairs": 8, "units": 200, "prompts": 16},
    },
    "full": {
        "measure": {**EVERYTHING, "max_new_tokens": 48},
        "direction": {
            "train": "all",
            "validation": "all",
            "borderline": "all",
            "layer_step": 1,
            "per_layer": "all",
            "controls": 10,
            "shuffles": 200,
            "max_new_tokens": 48,
            "pairs": 128,
            "both_pairs": True,
            "das_epochs": 30,
            "das_controls": 10,
            "distance": "all",
            "onset": "all",
            "prefill": tuple(range(1, 11)),
            "chain": "all",
            "choices": "all",
        },
        "units": {"calibration": 180, "validation": 72, "steps": 100, "scu": FINE},
        "ablate": {"controls": 10, "other_controls": 5, "score_controls": 40, **GRID},
        "freeze": {"seeds": 5, "steps": 72, "answer_tokens": "all"},
        "tuning": {
            "data": ("ordinary", "terse", "identity-shift"),
            "methods": (
                *("full", "freeze SCU", "freeze SCU + top CU", "freeze SCU + all CU", "freeze random"),
                *("safety-layers", "lora", "prefix", "llama-adapter", "first-token", "mix-refusals"),
            ),
            "shares": (0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9),
            "seeds": 3,
            "steps": 48,
        },
        "budget": {"seeds": 3},
        "stability": {"reruns": 10},
        "patch": {"pairs": 16, "units": 400, "prompts": 32},
    },
}


def study_config(file: Path | None = None, **overrides: Any) -> StudyConfig:
    """A configuration from its profile, a TOML file over it, and given values over both.

    Args:
        file: TOML with any of the fields of `StudyConfig`.
        overrides: top-level fields; None means not given.

    Raises:
        BadInput: an unreadable file, an unknown key or a value out of range.
    """
    given = _read(file) if file else {}
    given |= {k: v for k, v in overrides.items() if v is not None}
    profile = given.get("profile", "quick")
    if not isinstance(profile, str) or profile not in PROFILES:
        raise BadInput(f"no profile '{profile}': allowed are {', '.join(PROFILES)}")
    merged: dict[str, Any] = {**PROFILES[profile], **{k: v for k, v in given.items() if not isinstance(v, dict)}}
    for section, values in given.items():
        if isinstance(values, dict):
            merged[section] = {**PROFILES[profile].get(section, {}), **values}
    try:
        return StudyConfig(**merged)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        where = ".".join(str(p) for p in first["loc"])
        raise BadInput(f"configuration: {where[:SHOWN]}: {first['msg']} (got {_shown(first['input'])})") from e


def to_toml(config: StudyConfig) -> str:
    """The resolved configuration; values of None are left out."""
    import tomli_w

    return tomli_w.dumps(config.model_dump(exclude_none=True))


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as f:
            content = f.read(MAX_BYTES + 1)
    except (OSError, ValueError) as e:  # a name with a NUL is a ValueError
        raise BadInput(f"configuration '{file}' cannot be read: {getattr(e, 'strerror', None) or e}") from e
    if len(content) > MAX_BYTES:
        raise BadInput(f"configuration '{file}' holds more than {MAX_BYTES // 1000} kB; keep the fields you change")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:  # a number of too many digits is a plain ValueError
        raise BadInput(f"configuration '{file}' is not valid TOML: {e}") from e


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return "nested too deep"
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
