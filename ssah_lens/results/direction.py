"""Is refuse-or-fulfil one direction, and where is it made?"""

from __future__ import annotations

from dataclasses import dataclass

from ssah_lens.results.basics import Outcomes
from ssah_lens.results.steering import TO_ZERO, CandidateDirection, Steered, TriedAblation, there
from ssah_lens.stats import Estimate


@dataclass(frozen=True)
class Elsewhere:
    """The read-outs of the chosen cell on prompts of another origin, which took no part in fitting or choosing.

    Attributes:
        prompts: names of the two sets, harmful first.
        harm, choice: AUROC of the difference of means against the prompts' label, and against what the model did
            (refused or not). None where a side has too few prompts.
        probe_harm, probe_choice: of the probe.
    """

    prompts: str
    harm: Estimate | None
    choice: Estimate | None
    probe_harm: Estimate | None
    probe_choice: Estimate | None


@dataclass(frozen=True)
class Readout:
    """How well one thing is read off one direction, on test prompts.

    Attributes:
        target: 'choice' (the model refused or not, all prompts) or 'harm' (the prompt's label, matched pairs).
        mean_difference: AUROC of the difference of means, [layer][position].
        probe: AUROC of the regularised linear probe, [layer][position].
        layer, position: where the difference of means separates best on validation prompts (position -1: decision).
        auroc: there, on test prompts, of the difference of means.
        probe_auroc: there, of the probe.
        null: the same with the labels of every split shuffled, the cell chosen the same way; one per shuffle.
        transfer: the same projection on borderline prompts, scored against the same target.
        other: the same projection and prompts, scored against the other target.
        within: 'harm': the choice among harmless prompts only; 'choice': harm among the refused prompts only. Each says
            whether the direction reads more than its own target. None where a side has too few prompts.
        elsewhere: on the user's prompts; None without them.
    """

    target: str
    mean_difference: list[list[float]]
    probe: list[list[float]]
    layer: int
    position: int
    auroc: Estimate
    probe_auroc: Estimate
    null: tuple[float, ...]
    transfer: Estimate | None
    other: Estimate | None
    within: Estimate | None
    elsewhere: Elsewhere | None = None


@dataclass(frozen=True)
class Flips:
    """Decisions flipped by an interchange on one basis, on test pairs taken both ways.

    Attributes:
        basis: 'difference of means', 'probe', 'DAS', 'whole state', or a control.
        rank: its dimensions.
        flipped: share of directed pairs that took the source's choice; of arbitrary labels, share of train pairs that
            took theirs (what the method's freedom alone reaches).
        to_fulfil, to_refuse: the same, of refused bases and of answered bases; None for the untrained model
            and for arbitrary labels.
        fit: share of its own train targets that a trained basis reaches.
        hits: per directed pair (random subspaces: share of the draws).
    """

    basis: str
    rank: int
    flipped: Estimate
    to_fulfil: float | None
    to_refuse: float | None
    fit: float | None
    hits: tuple[float, ...]


@dataclass(frozen=True)
class Interchange:
    """One dimension or several, at the first block where the choice has arrived at the decision position.

    Attributes:
        pairs: 'twins' (token-aligned pairs of one topic) or 'unmatched' (a harmful prompt and an ordinary one).
        layer: whose input.
        arrived: whether the whole state flips nearly all decisions there.
        n_train, n_test: pairs that the model decides differently.
        layers: blocks that were looked at.
        whole, line: share of train pairs flipped there by the whole state and by the difference of means.
        flips: bases and controls.
        cosines: of each one-dimensional basis with the extracted direction.
    """

    pairs: str
    layer: int
    arrived: bool
    n_train: int
    n_test: int
    layers: tuple[int, ...]
    whole: list[float]
    line: list[float]
    flips: tuple[Flips, ...]
    cosines: dict[str, float]

    def find(self, basis: str, rank: int | None = None) -> Flips | None:
        """The flips of this basis, if it was measured."""
        return next((f for f in self.flips if f.basis == basis and rank in (None, f.rank)), None)


@dataclass(frozen=True)
class Distances:
    """The paper's distance probe of one model: cosine distance to the clean query, mean over prompts and strings.

    Attributes:
        model: 'aligned' or 'unaligned'.
        tokens: response tokens k.
        refusing, fulfilling: [block][k].
        gap, low, high: D(fulfilling) - D(refusing) with its band over prompts, [block][k]; positive = nearer
            to refusing.
        n: prompts.
    """

    model: str
    tokens: tuple[int, ...]
    refusing: list[list[float]]
    fulfilling: list[list[float]]
    gap: list[list[float]]
    low: list[list[float]]
    high: list[list[float]]
    n: int


@dataclass(frozen=True)
class Forced:
    """Refusals after a forced opening, judged on what the model adds.

    Attributes:
        tokens: k, how many tokens of the opening were forced.
        refused: share of prompts (over all openings) that the model then refuses.
        incoherent: share that is noise.
        hits: per prompt, share of the openings after which it was refused.
    """

    tokens: int
    refused: Estimate
    incoherent: Estimate
    hits: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """A mean with its band, step by step along a response."""

    name: str
    mean: list[float]
    low: list[float]
    high: list[float]
    n: int


@dataclass(frozen=True)
class Onset:
    """How deep the alignment is.

    Attributes:
        kl: KL(aligned || unaligned) per response token, on own refusals and on own answers; empty without an unaligned
            model.
        kl_first: share of the summed KL on refusals that lies in the first tokens (`kl_tokens`).
        kl_tokens: how many those are.
        prefilled: harmful prompts, after k fulfilling tokens; k = 0 is no opening.
        shuffled: the control, the same tokens in random order.
        forced_refusal: unaligned model, harmful and ordinary prompts made to open with a refusal, and neither:
            (name, share refused).
        projections: on the direction, from the decision position along refusals and answers.
    """

    kl: tuple[Curve, ...]
    kl_first: float | None
    kl_tokens: int
    prefilled: tuple[Forced, ...]
    shuffled: tuple[Forced, ...]
    forced_refusal: tuple[tuple[str, Estimate], ...]
    projections: tuple[Curve, ...]


@dataclass(frozen=True)
class ChainHead:
    """A head that writes the choice.

    Attributes:
        layer, head: which.
        contribution: to the logit difference, harmful minus harmless prompts.
        harmful, harmless: attention of the decision position on (template, instruction, post-instruction) tokens.
    """

    layer: int
    head: int
    contribution: float
    harmful: tuple[float, ...]
    harmless: tuple[float, ...]


@dataclass(frozen=True)
class Chain:
    """From prompt to choice: contributions to the refuse-minus-fulfil logit, harmful minus harmless prompts.

    Attributes:
        refusing, fulfilling: the first tokens on each side, as text.
        embedding: of the decision position's own token (the same for all prompts: about 0).
        attention, mlp: per layer.
        heads: per layer and head; empty where a norm stands between heads and residual stream.
        lens_harmful, lens_harmless: logit difference read off every block's input and the last output.
        total: mean logit difference, harmful minus harmless; embedding + attention + mlp add up to it.
        top: the strongest heads.
        n: prompts on each side.
    """

    refusing: tuple[str, ...]
    fulfilling: tuple[str, ...]
    embedding: float
    attention: list[float]
    mlp: list[float]
    heads: list[list[float]]
    lens_harmful: list[float]
    lens_harmless: list[float]
    total: float
    top: tuple[ChainHead, ...]
    n: int


@dataclass(frozen=True)
class BeforeAlignment:
    """The same direction in the unaligned counterpart.

    Attributes:
        cosine: of the harm direction (difference of means of matched pairs) there and here, at the chosen cell.
        harm_auroc: of the aligned model's harm direction on the unaligned model's states, test pairs.
        own_harm_auroc: of its own harm direction.
        added: refusals of harmful prompts when the aligned model's refusal direction is added to it.
    """

    cosine: float
    harm_auroc: Estimate
    own_harm_auroc: Estimate
    added: Outcomes


@dataclass(frozen=True)
class DirectionResult:
    """Stage `direction` (H1 to H3).

    Attributes:
        layer, position: where the direction comes from (block input; position -1 is the decision position).
        positions: text of the tokens after the instruction.
        threshold: refusal score above which the model counts as refusing; `agreement`: balanced accuracy of that
            border on train prompts (None: all on one side).
        refused_train: how many train prompts were refused, of how many; the direction is refused harmful minus
            answered harmless prompts, or harmful minus harmless ones where too few were refused (`by_choice` False).
        vector: the direction in its own length.
        candidates: the whole selection table; `relaxed`: no candidate met the published conditions.
        steered: the undamaged model ('undamaged') and every change, with controls.
        readouts: 'choice' (where there is one) and 'harm'.
        interchange: one per kind of pairs that the model decides differently.
        skipped: what was not measured, and why.
        strength: lengths of `vector` that were added.
        ablations: ways to take it out, the one that was taken first; () in older runs, which knew the published one.
    """

    layer: int
    position: int
    positions: tuple[str, ...]
    threshold: float
    agreement: float | None
    refused_train: tuple[int, int]
    by_choice: bool
    vector: tuple[float, ...]
    candidates: tuple[CandidateDirection, ...]
    relaxed: bool
    base_scores: tuple[float, float]
    steered: tuple[Steered, ...]
    readouts: tuple[Readout, ...]
    interchange: tuple[Interchange, ...]
    distances: tuple[Distances, ...]
    onset: Onset
    chain: Chain
    before: BeforeAlignment | None
    skipped: tuple[str, ...] = ()
    strength: float = 1.0
    ablations: tuple[TriedAblation, ...] = ()

    @property
    def ablation(self) -> str:
        """How the direction was taken out: the name of a `TriedAblation`."""
        return self.ablations[0].name if self.ablations else TO_ZERO

    def find(self, name: str) -> Steered | None:
        """One change along the direction itself."""
        return next((s for s in self.steered if s.name == name and s.control is None), None)

    def get(self, name: str) -> Steered:
        """A change that every run measures; LookupError where it is not there."""
        return there(self.find(name), f"'{name}'")

    def controls(self, name: str) -> list[Steered]:
        """The same change along random directions."""
        return [s for s in self.steered if s.name == name and s.control is not None]

    def readout(self, target: str) -> Readout | None:
        """'choice' or 'harm'."""
        return next((r for r in self.readouts if r.target == target), None)
