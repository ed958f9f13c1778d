"""Validated run configuration: what a study does, in three profiles, read from and written to TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ssah_lens.errors import BadInput

Profile = Literal["quick", "standard", "full"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AlignConfig(_Section):
    """Alignment of an unaligned model."""

    steps: int = Field(72, ge=1)
    lr: float = Field(1.5e-4, gt=0)
    batch_size: int = Field(8, ge=1)
    twins: int = Field(48, ge=0, description="harmless twins of harmful prompts among the harmless examples")
    ordinary: int = Field(240, ge=2, description="ordinary instructions among them")
    answer_tokens: int = Field(20, ge=4)
    anchor: float = Field(4.0, gt=0, description="weight of staying the same on harmless answers, against refusing")


Limit = Annotated[int, Field(ge=8)] | Literal["all"]
"""How many of a shipped set to use."""


def limit(n: Limit) -> int | None:
    """As `PromptSet.sample` takes it: None for all."""
    return None if n == "all" else n


class MeasureConfig(_Section):
    """How many test prompts, multiple-choice items and prose passages, and how long the responses are."""

    harmful: Limit = 32
    ordinary: Limit = 24
    twins: Limit = 16
    max_new_tokens: int = Field(12, ge=4)
    choices: Limit = 30
    prose: Limit = 8
    judge: str = "keyword"


class UnitsConfig(_Section):
    """Scores and the choice of role sizes."""

    score: str = "mask"
    calibration: int = Field(36, ge=8, description="harmful and as many harmless train prompts")
    validation: int = Field(24, ge=8, description="harmful and as many harmless validation prompts")
    steps: int = Field(18, ge=1, description="optimizer steps of a score that learns")
    exact_units: int | None = Field(None, ge=8, description="units that the exact score measures; all when not given")
    exact_prompts: int = Field(16, ge=1, description="prompts of each side that it measures them on")


class AblateConfig(_Section):
    """Role ablation on the test split."""

    controls: int = Field(3, ge=1, description="matched random sets that are generated and judged, per role")
    other_controls: int = Field(1, ge=1, description="the same for roles other than SCU")
    score_controls: int = Field(10, ge=1, description="matched random sets measured by refusal score only")


class FreezeConfig(_Section):
    """Benign fine-tuning with and without frozen units."""

    steps: int = Field(16, ge=1)
    lr: float = Field(1e-4, gt=0)
    batch_size: int = Field(8, ge=1)
    top_cu: float = Field(0.06, ge=0, le=1, description="share of all units, the CU with the largest I_S - I_U")
    seeds: int = Field(1, ge=1)


class StudyConfig(_Section):
    """A whole study."""

    model: str = "smollm2-135m"
    unaligned: str | None = None
    profile: Profile = "quick"
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    system: str | None = Field(None, description="system prompt of prompts that bring none; else the template's own")
    align: AlignConfig = AlignConfig()
    measure: MeasureConfig = MeasureConfig()
    units: UnitsConfig = UnitsConfig()
    ablate: AblateConfig = AblateConfig()
    freeze: FreezeConfig = FreezeConfig()


EVERYTHING = dict.fromkeys(("harmful", "ordinary", "twins", "choices", "prose"), "all")
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {},
    "standard": {
        "measure": {**EVERYTHING, "max_new_tokens": 24},
        "units": {"calibration": 128, "validation": 72, "steps": 60},
        "ablate": {"controls": 3, "other_controls": 3, "score_controls": 20},
        "freeze": {"seeds": 3},
    },
    "full": {
        "measure": {**EVERYTHING, "max_new_tokens": 48},
        "units": {"calibration": 180, "validation": 72, "steps": 100},
        "ablate": {"controls": 10, "other_controls": 5, "score_controls": 40},
        "freeze": {"seeds": 5, "steps": 72},
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
        first = e.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise BadInput(f"configuration: {where}: {first['msg']} (got {first['input']!r})") from e


def to_toml(config: StudyConfig) -> str:
    """The resolved configuration; values of None are left out."""
    import tomli_w

    return tomli_w.dumps(config.model_dump(exclude_none=True))


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise BadInput(f"configuration '{file}' cannot be read: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise BadInput(f"configuration '{file}' is not valid TOML: {e}") from e
