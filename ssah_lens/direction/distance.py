"""The paper's distance probe (arXiv 2410.10862, section 3): is a prompt nearer to refusing or to fulfilling?

Cosine distance of the hidden state of query + k refusing (or fulfilling) tokens to that of the clean query, per block.
An aligned model is expected to be nearer to the refusing side, an unaligned one to the fulfilling side. The paper does
not give strings, position or template; ours: chat template, response tokens after the generation prompt, the last token
of each input, several strings a side. Attention is causal, so one pass over query + all tokens gives every k and the
clean query too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.promptset import Prompt
from ssah_lens.errors import BadInput
from ssah_lens.progress import progress

TOKENS = (2, 4, 6, 8, 10)
"""Response tokens k, as in the paper."""
REFUSING = (
    "Sorry, I can't help with that request, because it could hurt people.",
    "I'm sorry, but I cannot assist with that, since it would be harmful.",
    "I can't help with this. It is dangerous and it may be against the law.",
)
FULFILLING = (
    "Here's how you can do it, step by step, starting with the basics.",
    "Sure, here is a simple guide that explains how to do that well.",
    "Of course! To do this, you first need to get the following things.",
)


@torch.no_grad()
def distances(
    model: ChatModel,
    prompts: Sequence[str | Prompt],
    strings: Sequence[str],
    ks: Sequence[int] = TOKENS,
    what: str = "distances",
) -> Float[np.ndarray, "prompt block k"]:
    """Cosine distance to the clean query at every block's output, mean over the strings.

    Args:
        model: the model.
        prompts: queries.
        strings: responses of one side; each has at least max(ks) tokens.
        ks: response tokens after which to look.
        what: label of the progress bar.

    Raises:
        BadInput: a string that is too short, or a k below 1.
    """
    ks, most = sorted(ks), max(ks)
    answers = [model.response_tokens(s, ended=False)[:most] for s in strings]
    short = [s for s, a in zip(strings, answers, strict=True) if len(a) < most]
    if short or ks[0] < 1:
        got = f"k from {ks[0]}, '{(short or strings)[0]}'"
        raise BadInput(f"the distance probe needs k of 1 or more and strings of {most} tokens or more: got {got}")
    rows = model.rows([p for p in prompts for _ in answers], [a for _ in prompts for a in answers])
    n_layers = model.grid.n_layers
    out = np.empty((len(rows), n_layers, len(ks)))
    # Columns from the end: the clean query's last token, then the k-th response token for every k.
    columns = [-most - 1, *(k - most - 1 for k in ks)]
    batches = model.batches(rows)
    for chosen, batch in progress(batches, what):
        if batch.ids.shape[1] < most + 1:
            batch = model.pad([rows[i] for i in chosen])
        found: dict[int, Tensor] = {}

        def keep(layer: int, found=found):
            def hook(x: Tensor, hook) -> None:
                if x.shape[1] > most:  # a shared prefix may be shorter; it is run first, so ours overwrites it
                    found[layer] = _to_first(x[:, columns].float())

            return hook

        hooks = [(f"blocks.{layer}.hook_resid_post", keep(layer)) for layer in range(n_layers)]
        with batches.room():
            with model.bridge.hooks(fwd_hooks=hooks):
                model.logits(batch)
            out[chosen] = torch.stack([found[layer] for layer in range(n_layers)], 1).cpu().numpy()
    return out.reshape(len(prompts), len(answers), n_layers, len(ks)).mean(1)


def _to_first(x: Float[Tensor, "batch state d_model"]) -> Float[Tensor, "batch other"]:
    """Cosine distance of every later state to the first."""
    unit = torch.nn.functional.normalize(x, dim=-1)
    return 1 - (unit[:, 1:] * unit[:, :1]).sum(-1)
