"""How far a judge agrees with people: accuracy, Cohen's kappa and per-class figures on hand-labelled outputs.

The labelled outputs come in two halves. Judges are improved on 'develop'; 'score' is only ever looked at as a number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssah_lens import stats
from ssah_lens.chat.prompts import shipped
from ssah_lens.errors import BadInput
from ssah_lens.measure.judges import Outcome, judge
from ssah_lens.stats import Estimate

HALVES = ("develop", "score")


@dataclass(frozen=True)
class ClassAgreement:
    """One outcome.

    Attributes:
        recall: of the outputs that people gave this outcome, the share that the judge gave it too.
        precision: of the outputs that the judge gave it, the share that people did; None when it never did.
    """

    recall: Estimate
    precision: Estimate | None


@dataclass(frozen=True)
class JudgeAgreement:
    """A judge against hand labels.

    Attributes:
        judge: its name.
        half: which half of the labelled outputs.
        accuracy: share judged as people did.
        kappa: Cohen's kappa, agreement beyond chance.
        classes: per outcome.
        confusion: confusion[label][judged] counts.
    """

    judge: str
    half: str
    accuracy: Estimate
    kappa: float
    classes: dict[str, ClassAgreement]
    confusion: dict[str, dict[str, int]]


def judge_agreement(name: str = "keyword", half: str = "score") -> JudgeAgreement:
    """Compares a judge with the hand-labelled outputs of `data/judged.jsonl`.

    Args:
        name: of the judge.
        half: 'develop' or 'score'.

    Raises:
        BadInput: no such judge or half.
    """
    from sklearn.metrics import cohen_kappa_score

    if half not in HALVES:
        raise BadInput(f"no half '{half}' of the labelled outputs: allowed are {', '.join(HALVES)}")
    rows = [r for r in shipped("judged") if r["half"] == half]
    labels = np.array([r["label"] for r in rows])
    judged = np.array([str(o) for o in judge(name)([r["prompt"] for r in rows], [r["response"] for r in rows])])
    outcomes = [str(o) for o in Outcome]
    right = labels == judged
    return JudgeAgreement(
        name,
        half,
        stats.rate(right),
        float(cohen_kappa_score(labels, judged, labels=outcomes)),
        {
            o: ClassAgreement(
                stats.rate(right[labels == o]), stats.rate(right[judged == o]) if (judged == o).any() else None
            )
            for o in outcomes
        },
        {o: {p: int(((labels == o) & (judged == p)).sum()) for p in outcomes} for o in outcomes},
    )
