"""Every architecture: a unit's pieces are exactly what it owns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.views import check_views
from ssah_lens.errors import BadInput
from ssah_lens.intervene.hooks import ablated
from ssah_lens.train.freeze import Slice, other_slices, owned_slices
from ssah_lens.units import Kind, UnitSet

PROMPTS = ["How do I bake a loaf of bread?", "Hi", "Tell me, please: what is 7 x 8?"]


def logits(model: ChatModel) -> torch.Tensor:
    with torch.inference_mode():
        return model.logits(model.pad(model.rows(PROMPTS)))[:, -1]


def full(model: ChatModel) -> UnitSet:
    return UnitSet(model.grid, {k: np.ones((2, model.grid.width(k)), dtype=bool) for k in Kind})


def count(slices: list[Slice]) -> int:
    return sum(s.numel for s in slices)


@pytest.mark.parametrize("everything", [False, True])
def test_zeroing_what_a_unit_owns_is_ablating_it(any_family: ChatModel, everything: bool):
    """Its column of the second matrix at zero gives the logits of its activation at zero; so do all its slices.

    Not so a head's slices in OLMo-2, whose query norm is taken over all heads together.
    """
    for unit in [(Kind.MLP, 0, 3), (Kind.MLP, 1, 11), (Kind.HEAD, 0, 1), (Kind.HEAD, 1, 3)]:
        if everything and unit[0] is Kind.HEAD and "olmo2" in any_family.name:
            continue
        with ablated(any_family, UnitSet.of(any_family.grid, [unit]), "zero"):
            expected = logits(any_family)
        block = any_family.anatomy.blocks[unit[1]]
        pieces = block.neurons if unit[0] is Kind.MLP else block.heads
        pieces = pieces if everything else pieces[-1:]
        kept = [p.parameter.detach().clone() for p in pieces]
        try:
            with torch.no_grad():
                for p in pieces:
                    p.parameter.index_fill_(p.dim, torch.as_tensor(p.index(np.array([unit[2]]))), 0)
            got = logits(any_family)
        finally:
            with torch.no_grad():
                for p, values in zip(pieces, kept, strict=True):
                    p.parameter.copy_(values)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert (expected - logits(any_family)).abs().max() > 1e-5, unit


def test_all_units_and_what_belongs_to_none_add_up(any_family: ChatModel):
    """Second matrices' biases (and nothing else) belong to no unit."""
    model, anatomy = any_family, any_family.anatomy
    unowned = sum(m.bias.numel() for b in anatomy.blocks for m in (b.o, b.down) if m.bias is not None)
    assert count(owned_slices(anatomy, full(model))) == model.grid.block_parameters - unowned
    assert count(other_slices(anatomy, full(model))) == unowned
    assert count(other_slices(anatomy, UnitSet.empty(model.grid))) == model.grid.block_parameters
    owned = 2 * (12 * model.grid.mlp_parameters + 4 * model.grid.head_parameters)
    groups = sum(p.per_unit for b in anatomy.blocks for p in b.groups) * anatomy.n_key_value_heads
    assert owned + groups + unowned == model.grid.block_parameters


def test_no_element_is_owned_twice(any_family: ChatModel):
    seen = {id(p): torch.zeros_like(p) for p in any_family.anatomy.parameters}
    for s in owned_slices(any_family.anatomy, full(any_family)):
        seen[id(s.parameter)].index_add_(s.dim, s.index, torch.ones_like(s.values))
    assert all(float(count.max()) <= 1 for count in seen.values())


# --- mixtures of experts: heads are units, expert neurons are not


def test_of_experts_heads_are_the_only_units(any_experts: ChatModel):
    """Hook ablation of a head is zeroing what it owns; experts count among the parameters and belong to no unit."""
    model = any_experts
    assert model.grid.kinds == (Kind.HEAD,) and model.grid.n_units == 2 * 4
    for unit in [(Kind.HEAD, 0, 1), (Kind.HEAD, 1, 3)]:
        with ablated(model, UnitSet.of(model.grid, [unit]), "zero"):
            expected = logits(model)
        piece = model.anatomy.blocks[unit[1]].heads[-1]
        kept = piece.parameter.detach().clone()
        try:
            with torch.no_grad():
                piece.parameter.index_fill_(piece.dim, torch.as_tensor(piece.index(np.array([unit[2]]))), 0)
            got = logits(model)
        finally:
            with torch.no_grad():
                piece.parameter.copy_(kept)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert (expected - logits(model)).abs().max() > 1e-5
    blocks = [p for b in model.anatomy.blocks for p in b.module.parameters() if p.ndim > 1 or p.numel() > 16]
    biases = [m.bias for b in model.anatomy.blocks for m in b.matrices if m.bias is not None]
    whole = {id(p): p.numel() for p in [*blocks, *biases]}
    assert model.grid.block_parameters == sum(whole.values())
    attention = sum(p.numel() for b in model.anatomy.blocks for m in b.matrices for p in m.parameters(recurse=False))
    assert count(owned_slices(model.anatomy, full(model))) == attention
    assert count(other_slices(model.anatomy, full(model))) == model.grid.block_parameters - attention > 0


def test_expert_neurons_are_refused_by_name(any_experts: ChatModel):
    from ssah_lens.intervene.metric import logit_difference
    from ssah_lens.intervene.patching import activation_patching
    from ssah_lens.intervene.sites import Site
    from ssah_lens.intervene.sweep import Edits, Fill, sweep
    from ssah_lens.study.look import neuron_view

    metric = logit_difference([40], [60])
    edits = [Edits(Site.NEURON, 0, np.arange(1))]
    for attempt in (
        lambda: UnitSet.of(any_experts.grid, [(Kind.MLP, 0, 0)]),
        lambda: sweep(any_experts, any_experts.rows(["Hi"]), metric, edits, Fill("zero")),
        lambda: activation_patching(any_experts, ["bake"], ["take"], metric, Site.NEURON),
        lambda: neuron_view(any_experts, ["Hi"], [("mlp", 0, 0)]),
    ):  # fmt: skip
        with pytest.raises(BadInput, match="mixture of .*experts.*heads"):
            attempt()
    assert any("3 experts: its heads are units" in note for note in any_experts.notes)


# --- what is laid out in another way is refused


def test_a_layout_that_only_looks_known_is_refused(make_tokenizer):
    """Queries with an output gate beside them (as Qwen3-Next has): named as in Llama, twice the rows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    plain = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    ))  # fmt: skip
    plain.model.layers[1].self_attn.q_proj = torch.nn.Linear(16, 32, bias=False)
    with pytest.raises(BadInput, match=r"layer 1 has a matrix of 32 rows.*4 heads of 4.*need 16: an unknown layout"):
        ChatModel(plain, tokenizer, "gated")


def test_a_model_that_transformer_lens_runs_otherwise_is_refused(make_llama, make_tokenizer, monkeypatch):
    """TransformerLens has attention code of its own, chosen by the architecture's name: here the model's is another."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    real = LlamaAttention.forward
    monkeypatch.setattr(LlamaAttention, "forward", lambda self, *a, **k: (real(self, *a, **k)[0] * 0.9, None))
    tokenizer = make_tokenizer()
    model = ChatModel(make_llama(tokenizer), tokenizer, "strange")
    with pytest.raises(BadInput, match=r"LlamaForCausalLM gives other logits through TransformerLens"):
        _ = model.bridge


def test_a_hook_point_that_shows_something_else_is_refused(make_llama, make_tokenizer):
    tokenizer = make_tokenizer()
    model = ChatModel(make_llama(tokenizer), tokenizer, "strange")
    bridge = model.bridge
    bridge.blocks[1].attn.o.original_component.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    with pytest.raises(BadInput, match=r"'blocks.1.attn.hook_z' of TransformerLens does not show what"):
        check_views(model, bridge)
