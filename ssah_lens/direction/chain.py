"""From prompt to choice: who writes the refuse-minus-fulfil logit at the decision position, layer by layer.

Direct logit attribution splits the logit difference between refusing and fulfilling first tokens into what the
embedding, every attention and every MLP wrote, with the final norm's scale held at its value (Elhage et al. 2021; Wang
et al. 2022, arXiv 2211.00593). It adds up exactly. TransformerLens' own tool needs rewritten weights (compatibility
mode) and a copy of the model; the sum is the same one. The logit lens reads the same difference off every block's input
(nostalgebraist 2020), and attention patterns say which part of the prompt the strongest heads look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssah_lens.chat.batch import Position
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.promptset import Prompt
from ssah_lens.intervene.sites import Site
from ssah_lens.measure.utility import decision_log_probs
from ssah_lens.progress import progress

N_FULFILLING = 10
"""First tokens on the fulfilling side."""
CLASSES = (Position.TEMPLATE, Position.INSTRUCTION, Position.POST_INSTRUCTION)


@dataclass(frozen=True)
class Contrast:
    """Which tokens stand for refusing and fulfilling, and how much each weighs (each side sums to 1).

    Attributes:
        refusing, fulfilling: token ids.
        refusing_weight, fulfilling_weight: the model's own mean probabilities, normalised.
    """

    refusing: tuple[int, ...]
    fulfilling: tuple[int, ...]
    refusing_weight: tuple[float, ...]
    fulfilling_weight: tuple[float, ...]

    def direction(self, plain: nn.Module) -> Float[Tensor, " d_model"]:
        """Weighted unembedding rows, refusing minus fulfilling."""
        head = plain.get_output_embeddings().weight.detach().float()
        sum_up = lambda ids, w: torch.tensor(w, device=head.device) @ head[list(ids)]
        return sum_up(self.refusing, self.refusing_weight) - sum_up(self.fulfilling, self.fulfilling_weight)


def contrast(
    model: ChatModel, tokens: Sequence[int], harmful: Sequence[str | Prompt], harmless: Sequence[str | Prompt]
) -> Contrast:
    """Weighs refusing tokens by their probability on harmful train prompts, and finds the likeliest other openings of
    harmless ones."""
    p = decision_log_probs(model, harmful).exp().mean(0)
    q = decision_log_probs(model, harmless).exp().mean(0)
    q[list(tokens)] = 0
    fulfilling = q.topk(N_FULFILLING)
    share = lambda w: tuple((w / w.sum()).tolist())
    return Contrast(tuple(tokens), tuple(fulfilling.indices.tolist()), share(p[list(tokens)]), share(fulfilling.values))


@dataclass(frozen=True)
class Attribution:
    """Contributions to the logit difference at the decision position, per prompt.

    Attributes:
        embedding: of the token embedding, [prompt].
        attention, mlp: of every block's halves, [prompt, layer].
        heads: of every head, [prompt, layer, head]; None where a norm stands between heads and residual stream.
        lens: the logit difference read off every block's input and the last block's output, [prompt, layer + 1].
        looks: attention of the decision position on template, instruction and post-instruction tokens, summed,
            [prompt, layer, head, class].
    """

    embedding: Float[np.ndarray, " prompt"]
    attention: Float[np.ndarray, "prompt layer"]
    mlp: Float[np.ndarray, "prompt layer"]
    heads: Float[np.ndarray, "prompt layer head"] | None
    lens: Float[np.ndarray, "prompt state"]
    looks: Float[np.ndarray, "prompt layer head class"]


@torch.no_grad()
def attribute(model: ChatModel, prompts: Sequence[str | Prompt], between: Contrast) -> Attribution:
    """One pass over the prompts.

    Args:
        model: the model.
        prompts: user turns.
        between: which logit difference.
    """
    n_layers, n_heads, d_head = model.grid.n_layers, model.anatomy.n_heads, model.anatomy.d_head
    parts: dict[str, list] = {name: [None] * len(prompts) for name in ("resid", "attn", "mlp", "z", "looks")}
    rows = model.rows(prompts)
    batches = model.batches(rows, share_prefix=False)
    for chosen, batch in progress(batches, "logit attribution"):
        found: dict[tuple[str, int], Tensor] = {}
        classes = torch.stack([(batch.positions == c) & (batch.mask == 1) for c in CLASSES], -1).float()

        def keep(name: str, layer: int, found=found, classes=classes):
            def hook(x: Tensor, hook) -> None:
                if name == "looks":
                    found[name, layer] = torch.einsum("bhk,bkc->bhc", x[:, :, -1].float(), classes)
                else:
                    found[name, layer] = x[:, -1].float()

            return hook

        names = {"resid": Site.RESID.hook, "attn": Site.ATTN.hook, "mlp": Site.MLP.hook, "z": Site.HEAD.hook,
                 "looks": lambda i: f"blocks.{i}.attn.hook_pattern"}  # fmt: skip
        hooks = [(at(i), keep(name, i)) for name, at in names.items() for i in range(n_layers)]
        hooks.append((f"blocks.{n_layers - 1}.hook_resid_post", keep("resid", n_layers)))
        with batches.room():
            with model.bridge.hooks(fwd_hooks=hooks):
                model.logits(batch)
            for name, kept in parts.items():
                count = n_layers + (name == "resid")
                stacked = torch.stack([found[name, i] for i in range(count)], 1)
                for i, row in enumerate(chosen):
                    kept[row] = stacked[i]
    resid, attn, mlp, z, looks = (torch.stack(parts[name]) for name in ("resid", "attn", "mlp", "z", "looks"))
    to_logit = _Readout(model, between, resid[:, -1])
    write = resid[:, 1:] - resid[:, :-1]
    # Families that normalise a half's output write something else than that output: the block's sum then tells.
    plain_sum = torch.allclose(attn + mlp, write, rtol=1e-3, atol=1e-3 * float(write.abs().max()))
    if plain_sum:
        heads = torch.stack(
            [
                torch.einsum("nhd,mhd->nhm", z[:, i].reshape(-1, n_heads, d_head), _output(block, n_heads, d_head))
                for i, block in enumerate(model.anatomy.blocks)
            ],
            1,
        )
        by_head = to_logit(heads).cpu().numpy()
        by_attn, by_mlp = to_logit(attn).cpu().numpy(), to_logit(mlp).cpu().numpy()
    else:
        middle = _middle(model, rows)
        by_head, by_attn = None, to_logit(middle - resid[:, :-1]).cpu().numpy()
        by_mlp = to_logit(resid[:, 1:] - middle).cpu().numpy()
    return Attribution(
        to_logit(resid[:, :1])[:, 0].cpu().numpy(), by_attn, by_mlp, by_head,
        _lens(model, between, resid).cpu().numpy(), looks.cpu().numpy(),
    )  # fmt: skip


def _output(block, n_heads: int, d_head: int) -> Float[Tensor, "d_model head d_head"]:
    """The attention's second matrix by head, whichever way the family stores it."""
    from ssah_lens.units import Kind

    return block.output_weight(Kind.HEAD).detach().float().unflatten(1, (n_heads, d_head))


def _middle(model: ChatModel, rows) -> Float[Tensor, "prompt layer d_model"]:
    """State between attention and MLP at the decision position."""
    out: list = [None] * len(rows)
    batches = model.batches(rows, share_prefix=False)
    for chosen, batch in batches:
        found: dict[int, Tensor] = {}
        hooks = [
            (f"blocks.{i}.hook_resid_mid", lambda x, hook, i=i, found=found: found.__setitem__(i, x[:, -1].float()))
            for i in range(model.grid.n_layers)
        ]
        with batches.room():
            with model.bridge.hooks(fwd_hooks=hooks):
                model.logits(batch)
            for i, row in enumerate(chosen):
                out[row] = torch.stack([found[k][i] for k in range(model.grid.n_layers)])
    return torch.stack(out)


class _Readout:
    """The linear map from a part of the final residual stream to the logit difference, the norm's scale held."""

    def __init__(self, model: ChatModel, between: Contrast, final: Float[Tensor, "prompt d_model"]) -> None:
        norm = model.anatomy.final_norm
        bias = getattr(norm, "bias", None)
        self.centred = isinstance(norm, nn.LayerNorm)
        dtype = next(model.plain.parameters()).dtype
        normed = norm(final.to(dtype)).float() - (0 if bias is None else bias.float())
        around = final - final.mean(-1, keepdim=True) if self.centred else final
        # Elementwise the norm only scales: (what comes out) / (what goes in) holds for every part of the stream.
        safe = torch.where(around.abs() > 1e-12, around, torch.ones_like(around))
        self.weight = normed / safe * between.direction(model.plain)

    def __call__(self, part: Float[Tensor, "prompt *any d_model"]) -> Float[Tensor, "prompt *any"]:
        if self.centred:
            part = part - part.mean(-1, keepdim=True)
        weight = self.weight.reshape(len(part), *[1] * (part.ndim - 2), -1)
        return (part * weight).sum(-1)


def _lens(model: ChatModel, between: Contrast, resid: Float[Tensor, "prompt state d_model"]):
    dtype = next(model.plain.parameters()).dtype
    return model.anatomy.final_norm(resid.to(dtype)).float() @ between.direction(model.plain)
