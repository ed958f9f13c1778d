"""One clean forward pass, remembered so that any block can be run again from its stored input for the last positions.

`Replay.record` runs the plain model once and keeps, per block, the residual stream that enters it, the keys and values
of its attention (after rotary embedding) and the arguments that it was called with. `Replay.run` then starts at one
block, for many edits at once: E edits of the last P positions become E*P query positions of the same N sequences. Each
attends to the recorded keys of the earlier positions and to its own edit's keys, never to another edit's. Everything
else (norms, rotary embedding, biases, gates) is the model's own code, because the attention function is handed to
transformers through its attention interface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssah_lens.chat.batch import Batch
from ssah_lens.chat.model import ChatModel, unembed
from ssah_lens.errors import BadInput

ATTENTION = "ssah_lens_replay"
KNOWN_ARGUMENTS = {
    "attention_mask", "dropout", "scaling", "softcap", "sliding_window", "is_causal", "position_ids", "cache_position",
    "use_cache", "output_attentions", "past_key_values", "logits_to_keep", "position_bias", "target_dtype",
    "query_length", "return_dict", "output_router_logits", "output_hidden_states",
}  # fmt: skip
"""Arguments of attention functions that we understand or that change nothing; any other is refused."""
CHECKED = 2
"""Positions that are run again to see whether a model can be replayed."""
TOLERANCE = 1e-3
"""Largest difference of a decision logit between replay and the model itself, in units of their spread."""


class CannotReplay(BadInput):
    """A model whose blocks cannot be run again on their own; one forward pass per intervention is left."""


@dataclass
class _Attention:
    """What the attention function of one layer needs to know."""

    keys: Float[Tensor, "batch group pos d_head"]
    values: Float[Tensor, "batch group pos d_head"]
    mask: Float[Tensor, "batch one pos pos"] | None


@dataclass
class Replay:
    """A recorded forward pass over one batch.

    Attributes:
        model: the model that was run.
        resid: input of every block, [batch, pos, d_model]; the last entry is the input of the final norm.
        arguments: keyword arguments of every block.
        attention: keys, values and mask of every block.
        logits: of the decision position, [batch, vocab].
    """

    model: ChatModel
    resid: list[Float[Tensor, "batch pos d_model"]]
    arguments: list[dict[str, Any]]
    attention: list[_Attention]
    logits: Float[Tensor, "batch vocab"]
    _edits: int = field(default=1, repr=False)

    @property
    def n_rows(self) -> int:
        return self.resid[0].shape[0]

    @property
    def n_pos(self) -> int:
        return self.resid[0].shape[1]

    # ---- recording

    @classmethod
    @torch.no_grad()  # not inference mode: gradients may be taken through `run`, and need ordinary tensors
    def record(cls, model: ChatModel, batch: Batch) -> Replay:
        """Runs the model once over a batch without a shared prefix.

        Raises:
            CannotReplay: a model whose blocks cannot be run again on their own.
        """
        if batch.prefix is not None:
            raise ValueError("replay needs whole rows; pad them with share_prefix=False")
        blocks = model.anatomy.blocks
        resid: list[Tensor] = []
        arguments: list[dict[str, Any]] = []
        attention: list[_Attention] = []

        def on_block(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            resid.append(args[0] if args else kwargs["hidden_states"])
            arguments.append({k: v for k, v in kwargs.items() if k not in ("hidden_states", "past_key_values")})

        def remember(module, query, key, value, mask, **options):
            attention.append(_Attention(key, value, mask))
            return _attend(query, key, value, mask, options, 1, key.shape[2])

        handles = [b.module.register_forward_pre_hook(on_block, with_kwargs=True) for b in blocks]
        handles.append(model.anatomy.final_norm.register_forward_pre_hook(lambda m, args: resid.append(args[0])))
        try:
            with _attention_function(model, remember):
                logits = model.plain(
                    input_ids=batch.ids,
                    attention_mask=batch.mask,
                    position_ids=(batch.mask.cumsum(1) - 1).clamp(min=0),
                    use_cache=False,
                    logits_to_keep=1,
                ).logits[:, -1]
        finally:
            for handle in handles:
                handle.remove()
        if not len(blocks) == len(attention) == len(arguments) == len(resid) - 1:
            raise CannotReplay(f"{type(model.plain).__name__} runs its blocks in a way that cannot be replayed")
        replay = cls(model, resid, arguments, attention, logits)
        replay._check()
        return replay

    def _check(self) -> None:
        """The blocks, run again for the last positions alone, must give the logits that the model gave.

        In formats shorter than float32 rounding grows from block to block, so there only the last one is run.
        """
        first = 0 if self.logits.dtype == torch.float32 else len(self.attention) - 1
        again = self.logits_of(self.run(first, self.resid[first][:, None, -CHECKED:])[:, :, -1])[:, 0]
        worst = (again - self.logits).abs().max() / self.logits.std().clamp(min=1e-6)
        if not worst <= TOLERANCE * (1 if self.logits.dtype == torch.float32 else 100):
            raise CannotReplay(
                f"{type(self.model.plain).__name__} cannot be replayed block by block "
                f"(logits differ by {float(worst):.2g} of their spread)"
            )

    # ---- running again

    def run(
        self, layer: int, hidden: Float[Tensor, "batch edit pos d_model"]
    ) -> Float[Tensor, "batch edit pos d_model"]:
        """Runs block `layer` and all after it for every edit; hooks on its modules see [batch, edit * pos, channel].

        Differentiable: call it in inference mode where no gradient is wanted.

        Args:
            layer: block to start at.
            hidden: what enters it at the last positions, per edit.
        """
        n, edits, n_pos, width = hidden.shape
        x = hidden.reshape(n, edits * n_pos, width)

        def answer(module, query, key, value, mask, **options):
            past = self.attention[module.layer_idx]
            return _attend(query, key, value, past.mask, options, edits, n_pos, past.keys, past.values)

        with _attention_function(self.model, answer):
            for at in range(layer, len(self.attention)):
                out = self.model.anatomy.blocks[at].module(x, **self._arguments(at, edits, n_pos))
                x = out[0] if isinstance(out, tuple) else out
        return x.view(n, edits, n_pos, width)

    def _arguments(self, layer: int, edits: int, n_pos: int) -> dict[str, Any]:
        """The block's own arguments, cut to the last positions and repeated for every edit; no mask, no cache."""
        repeat = lambda t: t[:, -n_pos:].repeat(1, edits, *[1] * (t.ndim - 2)) if t.ndim > 1 else t[-n_pos:]
        out = dict(self.arguments[layer])
        for name, value in out.items():
            if name == "attention_mask":
                out[name] = None
            elif name == "position_embeddings" and value is not None:
                out[name] = tuple(repeat(v) for v in value)
            elif isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == self.n_pos:
                out[name] = repeat(value)
        return out

    def logits_of(
        self, final: Float[Tensor, "batch edit d_model"], columns: Tensor | None = None
    ) -> Float[Tensor, "batch edit column"]:
        """Logits from the input of the final norm; only some vocabulary columns when given."""
        return unembed(self.model.plain, self.model.anatomy.final_norm(final), columns)


@contextmanager
def _attention_function(model: ChatModel, function: Callable) -> Iterator[None]:
    """transformers calls `function` for attention inside; masks arrive as additive floats."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(ATTENTION, function)
    AttentionMaskInterface.register(ATTENTION, eager_mask)
    configs = {id(m.config): m.config for m in model.plain.modules() if hasattr(m, "config")}.values()
    before = [(c, c._attn_implementation) for c in configs]
    for config, _ in before:
        config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


def _attend(
    query: Float[Tensor, "batch head edit_pos d_head"],
    key: Float[Tensor, "batch group edit_pos d_head"],
    value: Float[Tensor, "batch group edit_pos d_head"],
    mask: Float[Tensor, "batch one pos pos"] | None,
    options: dict[str, Any],
    edits: int,
    n_pos: int,
    past_keys: Float[Tensor, "batch group pos d_head"] | None = None,
    past_values: Float[Tensor, "batch group pos d_head"] | None = None,
) -> tuple[Float[Tensor, "batch edit_pos head d_head"], None]:
    """Softmax attention of each edit's positions over the recorded past and over that edit's own positions."""
    unknown = {k for k, v in options.items() if v is not None} - KNOWN_ARGUMENTS
    if unknown:
        raise CannotReplay(f"attention with {', '.join(sorted(unknown))} cannot be replayed")
    n, n_heads, _, d_head = query.shape
    groups = key.shape[1]
    scale = options.get("scaling") or d_head**-0.5
    before = 0 if past_keys is None else past_keys.shape[2] - n_pos
    # An edit's heads of one group and its positions side by side: few products, as large as can be.
    split = n, groups, n_heads // groups, edits, n_pos, d_head
    q = (query * scale).reshape(split).transpose(2, 3).reshape(n, groups, edits, -1, d_head)
    own_k, own_v = (t.reshape(n, groups, edits, n_pos, d_head) for t in (key, value))
    scores = (q * own_k).sum(-1, keepdim=True) if n_pos == 1 else q @ own_k.transpose(-1, -2)
    if past_keys is not None and before:
        past = q.reshape(n, groups, -1, d_head) @ past_keys[:, :, :before].transpose(-1, -2)
        scores = torch.cat([past.view(*q.shape[:-1], before), scores], -1)
    softcap = options.get("softcap")
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        by_head = scores.view(n, groups, edits, -1, n_pos, before + n_pos)
        scores = (by_head + mask[:, :, None, None, -n_pos:, -(before + n_pos) :]).view_as(scores)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    own_weights = weights[..., before:]
    out = own_weights * own_v if n_pos == 1 else own_weights @ own_v
    if past_values is not None and before:
        flat = weights[..., :before].reshape(n, groups, -1, before)
        out = out + (flat @ past_values[:, :, :before]).view_as(out)
    # [batch, group, edit, head, pos, d_head] -> [batch, edit, pos, group, head, d_head]
    out = out.view(n, groups, edits, -1, n_pos, d_head).permute(0, 2, 4, 1, 3, 5)
    return out.reshape(n, edits * n_pos, n_heads, d_head), None
