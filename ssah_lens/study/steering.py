"""H2, first half: what the model does on test prompts with the direction taken out or added, beside random ones.

What a model without the direction is still good for is measured beside one random direction: a model that no longer
refuses because it no longer speaks would show there.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ssah_lens import stats
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import PromptSet
from ssah_lens.direction.choice import Choice
from ssah_lens.direction.extract import Ablation, random_like
from ssah_lens.intervene.steer import PROMPT, RESPONSE, added, projected_out
from ssah_lens.measure.judges import Outcome
from ssah_lens.measure.refusal import STORED_CHARACTERS, Refusals, ask, log_odds
from ssah_lens.measure.utility import choices, kl, losses, row_log_probs
from ssah_lens.progress import progress
from ssah_lens.results import ABLATED, ADDED, AS_PUBLISHED, AT_PROMPT, AT_RESPONSE, UNDAMAGED, Outcomes, Steered
from ssah_lens.stats import Estimate
from ssah_lens.study.behaviour import outcomes
from ssah_lens.study.keep import Keep

ADDED_ONCE = "added at its own length"
"""The published dose, beside the one that validation asks for where that is another."""
N_EXAMPLES = 6


@dataclass
class Steering:
    """Asks the same test prompts under every change.

    Attributes:
        model: the model.
        harmful, ordinary: test prompts.
        choice: how to tell a refusal at the decision position.
        judge: which judge.
        max_new_tokens: length of a response.
        choices: multiple-choice items; 0 for none, None for all.
        answers: the undamaged model's own answers to the ordinary prompts, as response tokens; without them no utility
            is measured.
        reference: its log-probabilities there, once it was asked.
    """

    model: ChatModel
    harmful: PromptSet
    ordinary: PromptSet
    choice: Choice
    judge: str
    max_new_tokens: int
    choices: int | None = 0
    answers: list[list[int]] | None = None
    reference: Float[Tensor, "prompt vocab"] | None = None

    def all(
        self,
        vector: Float[Tensor, " d_model"],
        layer: int,
        strength: float,
        controls: int,
        seed: int,
        keep: Keep,
        gentler: Ablation | None = None,
    ) -> tuple[Steered, ...]:
        """The undamaged model, the direction ablated and added, where it matters, and random directions.

        Args:
            vector: the direction.
            layer: the block whose input it is added to, `strength` times.
            strength: from `extract`.
            controls: random directions, of the same length where they are added.
            seed: of the first of them; the others follow.
            keep: where finished measurements are kept.
            gentler: how directions are taken out, random ones included; the published way when None.
        """
        none = PromptSet("none", ())
        out: list[Steered] = []

        def add(
            name: str, control: int | None, change: AbstractContextManager, harmful: PromptSet, ordinary: PromptSet
        ) -> None:
            useful = name in (UNDAMAGED, ABLATED) and control in (None, seed)  # of random directions, the first
            make = lambda: self.measure(name, control, change, harmful, ordinary, useful)
            part = "_".join(["steered", *name.split(), *([] if control is None else [str(control)])])
            out.append(keep(part, Steered, make))

        add(UNDAMAGED, None, nullcontext(), self.harmful, self.ordinary)
        without: Ablation = gentler or partial(projected_out, self.model)
        add(ABLATED, None, without(vector), self.harmful, self.ordinary)
        if gentler is not None:
            add(AS_PUBLISHED, None, projected_out(self.model, vector), self.harmful, self.ordinary)
        add(ADDED, None, added(self.model, layer, strength * vector), none, self.ordinary)
        if strength != 1:
            add(ADDED_ONCE, None, added(self.model, layer, vector), none, self.ordinary)
        for name, where in ((AT_PROMPT, PROMPT), (AT_RESPONSE, RESPONSE)):
            add(name, None, without(vector, where), self.harmful, none)
        for i in progress(range(controls), "random directions"):
            drawn = random_like(vector, seed + i)
            add(ABLATED, seed + i, without(drawn), self.harmful, self.ordinary)
            add(ADDED, seed + i, added(self.model, layer, strength * drawn), none, self.ordinary)
        return tuple(out)

    def measure(
        self,
        name: str,
        control: int | None,
        change: AbstractContextManager,
        harmful: PromptSet,
        ordinary: PromptSet,
        useful: bool = False,
    ) -> Steered:
        """Asks both sets (either may be empty) inside `change`; `useful` measures utility as well."""
        n, m = len(harmful), len(ordinary)
        if m and self.reference is None and name != UNDAMAGED:  # an interrupted run kept the undamaged model's part
            self.reference = row_log_probs(self.model, self.model.rows(ordinary.texts, system=ordinary.systems))
        scores, log_probs = np.empty(n), [None] * m

        def read(rows: list[int], logits: Tensor) -> None:
            for i, row in zip(rows, logits.float().log_softmax(-1), strict=True):
                if i < n:
                    scores[i] = float(log_odds(row[None], self.choice.tokens))
                else:
                    log_probs[i - n] = row.clone()

        sets = [s for s in (harmful, ordinary) if len(s)]
        with change:
            found = ask(self.model, sets, self.judge, self.max_new_tokens, at_decision=read)
            here = torch.stack(log_probs) if m else None
            if name == UNDAMAGED:
                self.reference = here
            utility = self._utility(self.answers) if useful and self.answers is not None else (None, None)
        said = dict(zip([id(s) for s in sets], found, strict=True))
        moved = kl(self.reference, here) if m and name != UNDAMAGED else None
        side = lambda s: said.get(id(s)) if len(s) else None
        h, o = side(harmful), side(ordinary)
        return Steered(
            name,
            control,
            _outcomes(h),
            _outcomes(o),
            stats.mean(scores) if n else None,
            None if moved is None else stats.mean(moved[self.choice.answers(self.reference)]),
            _refused(h),
            _refused(o),
            _examples(harmful, h) if h else _examples(ordinary, o),
            None if moved is None else stats.mean(moved),
            *utility,
        )

    def _utility(self, answers: list[list[int]]) -> tuple[Estimate | None, Estimate]:
        """Multiple choice, and the perplexity of own answers, of the model as it runs now.

        Prompts that the undamaged model refuses are left out: to speak less of a refusal is no loss of utility.
        """
        picked = choices(self.model, self.choices).accuracy if self.choices != 0 else None
        answered = [i for i, yes in enumerate(self.choice.answers(self.reference)) if yes]
        texts, systems = self.ordinary.texts, self.ordinary.systems
        rows = self.model.rows(
            [texts[i] for i in answered], [answers[i] for i in answered], [systems[i] for i in answered]
        )
        return picked, losses(self.model, rows).perplexity


def _outcomes(found: Refusals | None) -> Outcomes | None:
    return None if found is None else outcomes(found)


def _refused(found: Refusals | None) -> tuple[bool, ...]:
    return () if found is None else tuple(bool(b) for b in found.is_(Outcome.REFUSED))


def _examples(prompts: PromptSet, found: Refusals | None) -> tuple[tuple[str, str, str], ...]:
    if found is None:
        return ()
    rows = np.linspace(0, len(prompts) - 1, min(N_EXAMPLES, len(prompts))).round().astype(int)
    return tuple((prompts[i].text, str(found.outcomes[i]), found.responses[i][:STORED_CHARACTERS]) for i in rows)
