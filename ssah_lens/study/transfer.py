"""H7: do safety units turn into others when a model is fine-tuned?

Both tables are cut at the sizes that the roles had before (METHOD.md sections 1 and 7): with sizes that differ, as in
the paper's Figure 11, much of the 'transfer' would follow from the cut alone. Even so some units change their role
between any two calibration samples; a third table, of the model before on another sample, says how many (the null).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ssah_lens import stats
from ssah_lens.errors import BadInput
from ssah_lens.results import RoleMoves, TransferReport
from ssah_lens.score.roles import cut_like, scores_of
from ssah_lens.units import Role, UnitGrid, UnitSet, UnitTable


def transfer(before: UnitTable, after: UnitTable, null: UnitTable | None = None) -> TransferReport:
    """Where the units of each role went.

    Args:
        before: the units before fine-tuning.
        after: of the fine-tuned model, by the same score.
        null: of the model before, by the same score on another calibration sample; None for no null.

    Raises:
        BadInput: another shape or another score.
    """
    find = lambda table: moves(before.grid, before.roles, recut(_matched(before, table), before))
    return TransferReport(
        **vars(find(after)),
        score=str(before.provenance.get("score", "")),
        n_units=before.grid.n_units,
        null=find(null) if null is not None else None,
    )


def doubts(before: UnitTable, after: UnitTable, has_null: bool) -> list[str]:
    """What a reader of the comparison must know."""
    out = []
    if not has_null:
        out.append("note: without --null nothing says how many units would change their role without any fine-tuning")
    model = before.provenance.get("model")
    if model is not None and model == after.provenance.get("model"):
        out.append(f"note: both units files were made from '{model}': is one of them really of a tuned model?")
    return out


def recut(table: UnitTable, like: UnitTable) -> dict[Role, UnitSet]:
    """Roles of one table's scores, cut as another's were: by its rule, in its layers, at its sizes.

    A table that is cut like itself gets its own roles back.
    """
    importance = table.importance if like.importance is not None else None
    scores = replace(scores_of(like), safety=table.safety, utility=table.utility, importance=importance)
    return cut_like(scores, like.roles)


def moves(grid: UnitGrid, before: Mapping[Role, UnitSet], after: Mapping[Role, UnitSet]) -> RoleMoves:
    """The transition matrix, and what share of each role was held, beside what chance would hold."""
    counts = {str(b): {str(a): len(before[b] & after[a]) for a in Role} for b in Role}
    held, chance = {}, {}
    for role in Role:
        n = len(before[role])
        if not n:
            continue
        kept = len(before[role] & after[role])
        held[str(role)] = stats.rate(np.arange(n) < kept)
        same_kind = sum(before[role].masks[k].sum() * after[role].masks[k].mean() for k in grid.kinds)
        chance[str(role)] = float(same_kind / n)
    share = lambda row: {a: n / grid.n_units for a, n in row.items()}
    return RoleMoves({b: share(row) for b, row in counts.items()}, counts, held, chance)


def _matched(before: UnitTable, other: UnitTable) -> UnitTable:
    if before.grid != other.grid:
        raise BadInput("the units files belong to models of different shape; transfer compares a model with its tuning")
    scores = [t.provenance.get("score") for t in (before, other)]
    if scores[0] != scores[1]:
        raise BadInput(f"the units were scored by '{scores[0]}' and '{scores[1]}'; score both the same way (--score)")
    if before.importance is not None and other.importance is None:
        raise BadInput("one units file has no 'importance' (an older version made it); make it anew: ssah-lens units")
    return other
