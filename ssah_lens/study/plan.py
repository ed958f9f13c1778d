"""Which stages there are, in which order, what each needs and takes, and what a profile leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssah_lens.errors import BadInput

if TYPE_CHECKING:
    from ssah_lens.study.record import RunFolder

NEEDS = {
    "align": (),
    "refusal": ("align",),
    "direction": ("refusal",),
    "units": ("refusal",),
    "scores": ("refusal",),
    "stability": ("units",),
    "contexts": ("units",),
    "ablate": ("units",),
    "sufficiency": ("units",),
    "freeze": ("units",),
    "tuning": ("units",),
    "budget": ("units",),
    "transfer": ("units",),
    "patch": ("align",),
    "report": (),
}
"""Stages in their order, and which ones must be done before each."""
STAGES = tuple(NEEDS)
MODULES = {
    **dict.fromkeys(("align", "refusal", "direction", "units", "patch", "report"), "stages"),
    **dict.fromkeys(("scores", "stability", "contexts", "ablate", "sufficiency"), "proof_stages"),
    **dict.fromkeys(("freeze", "tuning", "budget", "transfer"), "tuning_stages"),
}
"""Modules of this room that hold the stages' functions."""
MINUTES = {
    "quick": {"align": 4, "refusal": 1.5, "direction": 3, "units": 3, "ablate": 3, "freeze": 3.5}
    | {"scores": 6, "stability": 9, "contexts": 1, "sufficiency": 4}
    | {"tuning": 20, "budget": 12, "transfer": 8, "patch": 4, "report": 0.2},
    "standard": {"align": 4, "refusal": 5, "direction": 45, "units": 8, "ablate": 95, "freeze": 30}
    | {"scores": 20, "stability": 35, "contexts": 1, "sufficiency": 20}
    | {"tuning": 280, "budget": 45, "transfer": 35, "patch": 6, "report": 0.2},
    "full": {"align": 4, "refusal": 8, "direction": 180, "units": 15, "ablate": 200, "freeze": 90}
    | {"scores": 60, "stability": 90, "contexts": 1, "sufficiency": 40}
    | {"tuning": 2400, "budget": 50, "transfer": 60, "patch": 20, "report": 0.2},
}
"""What a stage takes for smollm2-135m on two CPU cores; `workload.py` tells it for another configuration."""
LEFT_OUT = {
    "quick": ("direction", "scores", "stability", "contexts", "sufficiency", "tuning", "budget", "transfer", "patch")
}
"""Stages that a profile runs only when `stages` names them: the quick one has a quarter of an hour for the others."""
SPEAKS_TO = {"direction": "H1, H2, H3", "tuning": "H5 in every way of fine-tuning", "budget": "H6", "transfer": "H7"}
"""Hypotheses of the stages that may be left out."""
ON_ENGINE = {"units", "ablate", "freeze", "tuning", "budget"}
"""Stages that say ahead which parts they want."""


def wanted_stages(profile: str, stages: Sequence[str] | None) -> tuple[str, ...]:
    """The stages that were asked for; when None all that the profile does not leave out.

    Raises:
        BadInput: an unknown stage, or none.
    """
    left_out = LEFT_OUT.get(profile, ())
    wanted = tuple(s for s in STAGES if s not in left_out) if stages is None else tuple(stages)
    unknown = [s for s in wanted if s not in STAGES]
    if unknown or not wanted:
        raise BadInput(f"no stage '{', '.join(unknown)}': allowed are {', '.join(STAGES)}")
    return wanted


def check_order(folder: RunFolder, todo: Sequence[str]) -> None:
    """Raises BadInput when a stage needs another that is neither done in the folder nor to be done before it."""
    whole = set(todo)
    for stage in reversed(STAGES):  # what a stage needs stands before it
        if stage in whole:
            whole |= {s for s in NEEDS[stage] if not folder.done(s)}
    for stage in todo:
        for missing in NEEDS[stage]:
            if missing in whole - set(todo):
                raise BadInput(
                    f"stage '{stage}' needs '{missing}', which is not done in '{folder.path}'; "
                    f"give --stages {','.join(s for s in STAGES if s in whole)}"
                )


def not_run(folder: RunFolder, where: str = "DIR") -> dict[str, str]:
    """Hypotheses that the folder's profile leaves out -> what to run for them; `where` stands for the folder."""
    profile = folder.config.profile
    missing = [s for s in LEFT_OUT.get(profile, ()) if s in SPEAKS_TO and not folder.done(s)]
    command = f"ssah-lens study --config {where}/config.toml --out {where} --stages"
    return {SPEAKS_TO[s]: f"not run in the {profile} profile; run {command} {s},report" for s in missing}
