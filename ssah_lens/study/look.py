"""Looking at a model, one line per picture: attention, what speaks for refusing, activations, the response's odds.

Each function runs the model and hands plain arrays to `show.circuits`; what it returns displays itself in a notebook
and saves itself as a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ssah_lens.chat.batch import Position, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.promptset import Prompt, as_prompt_set
from ssah_lens.errors import BadInput
from ssah_lens.intervene.attribution import attribution
from ssah_lens.intervene.sweep import Fill
from ssah_lens.results import UnitContext
from ssah_lens.show import circuits
from ssah_lens.show.circuits import View
from ssah_lens.show.explorer import Effects, explorer
from ssah_lens.show.page import Page
from ssah_lens.study.contexts import Unit, unit_contexts
from ssah_lens.study.openings import Openings, find_openings
from ssah_lens.units import Kind, Role, UnitSet, UnitTable, unit_name

N_HEADS = 8
STEPS = 24
"""Points of the path of integrated gradients; denser at its start, where a norm makes much of small embeddings."""
LIKELIEST = 8
MATTERING = 2000
"""Units of an explorer that get contexts."""


def attention_view(
    model: ChatModel,
    prompt: str,
    heads: Sequence[tuple[int, int]] | None = None,
    openings: Openings | None = None,
) -> View:
    """Attention of some heads on a prompt.

    Args:
        model: the model.
        prompt: user turn.
        heads: (layer, head); the eight whose zero ablation at the decision position is estimated to move the choice
            most when None.
        openings: for that estimate; found from the model when None.
    """
    row = model.rows([prompt])[0]
    words = ""
    if heads is None:
        metric = (openings or find_openings(model)).metric
        effect = attribution(model, [row], metric, Fill("zero"), last=1)[Kind.HEAD][:, :, 0]
        order = np.argsort(-np.abs(effect), axis=None, kind="stable")[:N_HEADS]
        heads = [(int(a), int(b)) for a, b in zip(*np.unravel_index(order, effect.shape), strict=True)]
        words = "Heads whose zero ablation at the last token moves the choice most, by attribution patching."
    UnitSet.of(model.grid, [(Kind.HEAD, *h) for h in heads])
    kept: dict[int, Tensor] = {}
    hooks = [
        (f"blocks.{layer}.attn.hook_pattern", lambda x, hook, layer=layer: kept.update({layer: x[0].float().cpu()}))
        for layer in {layer for layer, _ in heads}
    ]
    with torch.inference_mode(), model.bridge.hooks(fwd_hooks=hooks):
        model.logits(model.pad([row]))
    patterns = np.stack([kept[layer][head].numpy() for layer, head in heads])
    return circuits.attention(_tokens(model, row.ids), patterns, [f"L{a}H{b}" for a, b in heads], words)


def refusal_view(model: ChatModel, prompt: str, openings: Openings | None = None) -> View:
    """The user's words, coloured by how far each speaks for refusing (orange) or fulfilling (blue).

    Integrated gradients (Sundararajan et al. 2017) of the logit difference between refusing and fulfilling openings,
    from the mean embedding of the vocabulary to the words: the values add up to the difference that the words make.
    """
    openings = openings or find_openings(model)
    row = model.rows([prompt])[0]
    values, whole = embedding_attribution(model, row, openings)
    said = np.flatnonzero(np.array(row.positions) == Position.INSTRUCTION)
    words = (
        f"Orange speaks for refusing, blue for fulfilling (nats of logit difference; integrated gradients, {STEPS} "
        f"steps). They add up to {values[said].sum():.2f}; replacing all the words makes {whole:.2f}. n = 1 prompt."
    )
    tokens = _tokens(model, [row.ids[i] for i in said])
    return circuits.coloured(tokens, values[said], "What speaks for refusing", words)


def embedding_attribution(model: ChatModel, row: Row, openings: Openings) -> tuple[Float[np.ndarray, " pos"], float]:
    """Integrated gradients of the metric over a prompt's embeddings (template: 0), and what they should add up to."""
    embed = model.plain.get_input_embeddings()
    batch = model.pad([row])
    with torch.no_grad():
        end = embed(batch.ids)
        said = (batch.positions == Position.INSTRUCTION)[..., None]
        start = torch.where(said, embed.weight.mean(0).to(end.dtype), end)
    total = torch.zeros_like(end)
    ends = []
    kept = [(p, p.requires_grad) for p in model.plain.parameters()]
    for p, _ in kept:
        p.requires_grad_(False)
    try:
        for share, weight in [(0.0, 0.0), (1.0, 0.0), *_path()]:
            x = torch.lerp(start, end, share).requires_grad_(weight > 0)
            with torch.set_grad_enabled(weight > 0):
                out = model.plain(inputs_embeds=x, attention_mask=batch.mask, use_cache=False, logits_to_keep=1)
                value = openings.metric.of(out.logits[:, -1]).sum()
            if weight > 0:
                total += weight * torch.autograd.grad(value, x)[0]
            else:
                ends.append(float(value))
    finally:
        for p, flag in kept:
            p.requires_grad_(flag)
    values = ((end - start) * total).float().sum(-1)[0].cpu().numpy()
    return values, ends[1] - ends[0]


def _path() -> list[tuple[float, float]]:
    """Shares of the way and their weights: Gauss-Legendre in the square root of the share."""
    nodes, weights = np.polynomial.legendre.leggauss(STEPS)
    u = (nodes + 1) / 2
    return list(zip((u**2).tolist(), (weights * u).tolist(), strict=True))


def neuron_view(model: ChatModel, prompts: Sequence[str | Prompt], units: Iterable[Unit]) -> View:
    """Activation of chosen units (the norm of its output, for a head) on every token of some prompts."""
    wanted = [(Kind(k), int(a), int(b)) for k, a, b in units]
    UnitSet.of(model.grid, wanted)
    rows = model.rows(prompts)
    activations = []
    with torch.inference_mode():
        for row in rows:
            kept: dict[tuple[Kind, int], Tensor] = {}
            hooks = [
                (k.hook(a), lambda x, hook, at=(k, a), kept=kept: kept.update({at: x[0].float().cpu()}))
                for k, a in {(k, a) for k, a, _ in wanted}
            ]
            with model.bridge.hooks(fwd_hooks=hooks):
                model.logits(model.pad([row]))
            channels = [kept[k, a].view(len(row.ids), model.grid.width(k), -1)[:, i] for k, a, i in wanted]
            activations.append(np.stack([(c[:, 0] if c.shape[1] == 1 else c.norm(dim=1)).numpy() for c in channels], 1))
    names = [unit_name(*unit) for unit in wanted]
    return circuits.neuron_activations([_tokens(model, r.ids) for r in rows], activations, names)


def top_tokens_view(
    model: ChatModel, prompts: Sequence[str | Prompt], units: UnitSet | Iterable[Unit], k: int = 10
) -> View:
    """The tokens on which each unit is most active, one per prompt."""
    found = unit_contexts(model, units, {"given": as_prompt_set(prompts)}, k)
    rows = [
        (unit_name(Kind(c.kind), c.layer, c.index), [s.tokens[s.peak] for s in c.examples["given"]],
         np.array([s.values[s.peak] for s in c.examples["given"]]))
        for c in found
    ]  # fmt: skip
    return circuits.top_tokens(rows, f"The strongest token of each of the {k} strongest prompts, n = {len(prompts)}.")


def response_view(model: ChatModel, prompt: str, max_new_tokens: int = 40) -> View:
    """The model's own response to a prompt, coloured by how likely each token was."""
    answer = model.generate([prompt], max_new_tokens, what="responding")[0]
    if not answer:
        raise BadInput("the model answers this prompt with nothing; choose another")
    row = model.rows([prompt], [answer])[0]
    with torch.inference_mode():
        log_probs = model.response_logits(model.pad([row])).float().log_softmax(-1).cpu()
    ids = torch.tensor(answer)[:, None]
    chosen = log_probs.gather(1, ids)
    ranks = (log_probs > chosen).sum(1)
    values, top = log_probs.topk(LIKELIEST, 1)
    return circuits.log_probs(
        model.tokenizer.decode([row.ids[-len(answer) - 1]]),
        _tokens(model, answer),
        chosen[:, 0].numpy(),
        ranks.numpy(),
        [_tokens(model, line) for line in top.tolist()],
        values.numpy(),
    )


def explore_units(
    table: UnitTable,
    model: ChatModel | None = None,
    contexts: Sequence[UnitContext] = (),
    effects: Effects | None = None,
    openings: Openings | None = None,
) -> Page:
    """The unit explorer.

    Args:
        table: scores and roles.
        model: given, contexts of the units that matter (SCU and UCU, the largest of them) are found with it.
        contexts: those that were found before.
        effects: further columns, e.g. exact effects.
        openings: for the direct effect on refusing tokens.
    """
    if model is not None and not contexts:
        contexts = unit_contexts(model, mattering(table), openings=openings)
    return explorer(table, contexts, effects, f"Units of {table.provenance.get('model', 'the model')}")


def mattering(table: UnitTable, most: int = MATTERING) -> list[Unit]:
    """SCU and UCU, those with the largest difference of scores first, at most `most`."""
    units = table.units([Role.SCU, Role.UCU])
    scored = [
        (-abs(float(table.safety[k][a, b] - table.utility[k][a, b])), k, int(a), int(b))
        for k in Kind
        for a, b in np.argwhere(units.masks[k])
    ]
    return [(k, a, b) for _, k, a, b in sorted(scored, key=lambda s: s[0])[:most]]


def _tokens(model: ChatModel, ids: Sequence[int]) -> list[str]:
    return [model.tokenizer.decode([i]) for i in ids]
