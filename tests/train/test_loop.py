"""The training loop: it learns, repeats itself to the bit, touches block matrices only and leaves no trace."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput, Fault
from ssah_lens.measure.utility import losses
from ssah_lens.train import loop
from ssah_lens.train.freeze import FrozenSlices, other_slices, owned_slices
from ssah_lens.train.loop import Diverged, Trained, TrainSettings, Watch, _order, check_training_room, train
from ssah_lens.train.objective import Anchors
from ssah_lens.units import Kind, UnitSet

PROMPTS = ["Hi", "How do I bake a loaf of bread?", "Why not"]
ANSWERS = ["Sure, here is how you can do that.", "No", "Ask the assistant"]
FIVE = TrainSettings(steps=5, batch_size=2, lr=1e-2)


def rows(model: ChatModel) -> list[Row]:
    return model.rows(PROMPTS, [model.response_tokens(a) for a in ANSWERS])


def weights(model: ChatModel) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.plain.named_parameters()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    return {n for n in a if not torch.equal(a[n].view(torch.int32), b[n].view(torch.int32))}


# --- learning


def test_a_small_batch_is_memorised(micro_copy: ChatModel):
    before = losses(micro_copy, rows(micro_copy)).mean
    got = train(micro_copy, rows(micro_copy), TrainSettings(steps=60, batch_size=3, lr=2e-2))
    assert len(got.losses) == 60 and (got.frozen_parameters, got.unchanged) == (0, None)
    assert got.final_loss < 0.5 * before
    assert losses(micro_copy, rows(micro_copy)).mean < 0.5 * before  # and the bridged view learnt it too


def test_examples_are_counted_as_they_are_read(micro_copy: ChatModel):
    read = lambda steps: train(micro_copy, rows(micro_copy), replace(FIVE, steps=steps, batch_size=1)).examples
    assert [read(2), read(3), read(5)] == [2, 3, 3]


def test_the_loss_is_that_of_the_answers(micro_copy: ChatModel):
    """Nats per response token over the batch; the prompts do not count. bfloat16 products cost some digits."""
    expected = losses(micro_copy, rows(micro_copy)).mean
    got = train(micro_copy, rows(micro_copy), TrainSettings(steps=1, batch_size=3, lr=1e-9))
    assert got.losses[0] == pytest.approx(expected, rel=0.02)


def test_only_the_loss_moves_weights(micro_copy: ChatModel):
    """With an unembedding of zeros no gradient reaches the blocks, and without decay nothing else moves them."""
    with torch.no_grad():
        micro_copy.plain.lm_head.weight.zero_()
    before = weights(micro_copy)
    train(micro_copy, rows(micro_copy), TrainSettings(steps=3, batch_size=3, lr=1e-2, weight_decay=0.0))
    assert not differing(before, weights(micro_copy))


def test_the_same_seed_gives_the_same_weights_to_the_bit(micro: ChatModel, make_llama, make_tokenizer):
    def trained(seed: int) -> tuple[Trained, dict[str, torch.Tensor]]:
        tokenizer = make_tokenizer()
        model = ChatModel(make_llama(tokenizer), tokenizer, "again")
        return train(model, rows(model), TrainSettings(steps=4, batch_size=2, lr=1e-2, seed=seed)), weights(model)

    (a, wa), (b, wb), (c, wc) = trained(1), trained(1), trained(2)
    assert a == b and not differing(wa, wb)
    assert c.losses != a.losses and differing(wa, wc)


# --- what it touches


@pytest.mark.parametrize("which", ["micro_copy", "qwen_copy"])
def test_embeddings_norms_and_unembedding_stay(which, request):
    model: ChatModel = request.getfixturevalue(which)
    before = weights(model)
    train(model, rows(model), FIVE)
    changed = differing(before, weights(model))
    assert changed == {n for n in before if "_proj." in n}


def test_it_leaves_no_trace(micro_copy: ChatModel):
    train(micro_copy, rows(micro_copy), FIVE)
    assert not micro_copy.plain.training
    assert all(p.grad is None and p.requires_grad for p in micro_copy.plain.parameters())


def test_requires_grad_is_as_it_was(micro_copy: ChatModel):
    """A user may hold parameters of their own; afterwards they must still be held."""
    held = micro_copy.plain.lm_head.weight, micro_copy.anatomy.blocks[0].attention.q_proj.weight
    for p in held:
        p.requires_grad_(False)
    train(micro_copy, rows(micro_copy), FIVE)
    assert [p.requires_grad for p in held] == [False, False]
    assert micro_copy.plain.model.embed_tokens.weight.requires_grad


def test_old_gradients_do_not_leak_in(micro_copy: ChatModel, make_llama, make_tokenizer):
    tokenizer = make_tokenizer()
    clean = ChatModel(make_llama(tokenizer), tokenizer, "clean")
    for p in micro_copy.plain.parameters():
        p.grad = torch.full_like(p, 100.0)
    train(micro_copy, rows(micro_copy), FIVE)
    train(clean, rows(clean), FIVE)
    assert not differing(weights(clean), weights(micro_copy))


def test_training_is_seen_in_the_bridged_view(micro_copy: ChatModel):
    batch = micro_copy.pad(micro_copy.rows(PROMPTS))
    with torch.no_grad():
        before = micro_copy.logits(batch)
    train(micro_copy, rows(micro_copy), FIVE)
    with torch.no_grad():
        after = micro_copy.logits(batch)
        plain = micro_copy.plain(batch.ids, attention_mask=batch.mask, logits_to_keep=1).logits
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, plain, atol=1e-5, rtol=0)


# --- anchors


def test_anchored_rows_count_by_their_divergence(micro_copy: ChatModel, micro: ChatModel):
    """Before the first step the model is its own reference: an anchored row costs nothing, but its tokens count."""
    answered, anchored = rows(micro_copy)[:1], rows(micro_copy)[1:]
    got = train(
        micro_copy, answered, TrainSettings(steps=1, batch_size=3, lr=1e-9), anchors=Anchors(anchored, micro)
    )  # fmt: skip
    n = [sum(p == 3 for p in r.positions) for r in rows(micro_copy)]
    expected = losses(micro, answered).nll.sum() / sum(n)
    assert got.losses[0] == pytest.approx(expected, rel=0.02)


def test_anchors_hold_the_model_back(micro: ChatModel, make_llama, make_tokenizer):
    def moved(with_anchors: bool) -> float:
        tokenizer = make_tokenizer()
        model = ChatModel(make_llama(tokenizer), tokenizer, "moved")
        answered, others = rows(model)[:1], rows(model)[1:]
        settings = TrainSettings(steps=40, batch_size=3, lr=1e-2)
        train(model, answered, settings, anchors=Anchors(others, micro) if with_anchors else None)
        with torch.no_grad():
            batch = micro.pad(others)
            p, q = (m.logits(batch, keep=4).log_softmax(-1) for m in (micro, model))
        return float((p.exp() * (p - q)).sum(-1).mean())

    assert moved(True) < 0.5 * moved(False)


def test_the_reference_is_not_trained(micro_copy: ChatModel, make_llama, make_tokenizer):
    tokenizer = make_tokenizer()
    reference = ChatModel(make_llama(tokenizer, seed=5), tokenizer, "reference")
    before = weights(reference)
    train(micro_copy, rows(micro_copy)[:1], FIVE, anchors=Anchors(rows(micro_copy)[1:], reference))
    assert not differing(before, weights(reference)) and all(p.grad is None for p in reference.plain.parameters())


# --- settings


def test_the_rate_rises_and_falls_linearly():
    s = TrainSettings(steps=10, lr=1.0, warmup=0.2)
    np.testing.assert_allclose(
        [s.rate(i) for i in range(10)], [0.5, 1.0, *[1 - 0.9 * k / 8 for k in range(8)]], rtol=1e-12
    )
    assert TrainSettings(steps=1, lr=1.0).rate(0) == 1.0
    long = TrainSettings(steps=1000, lr=1.0)
    assert long.rate(999) == pytest.approx(0.1, abs=0.002) and long.rate(0) == pytest.approx(0.01)


def test_every_pass_takes_every_example_once():
    settings, lengths = TrainSettings(steps=14, batch_size=4, seed=3), [5, 9, 2, 7, 7, 1, 4]
    steps = _order(lengths, settings)
    assert [len(s) for s in steps] == [4] * 14
    assert Counter(np.concatenate(steps).tolist()) == Counter({i: 8 for i in range(7)})
    assert steps == _order(lengths, settings)
    assert steps != _order(lengths, TrainSettings(steps=14, batch_size=4, seed=4))


def test_examples_of_a_step_have_similar_lengths():
    lengths = list(range(64))
    steps = _order(lengths, TrainSettings(steps=8, batch_size=8))
    assert sorted(sorted(s) for s in steps) == [list(range(k, k + 8)) for k in range(0, 64, 8)]
    assert [s[0] for s in steps] != sorted(s[0] for s in steps)  # the order of the steps stays random


def test_the_final_loss_is_the_mean_of_the_last_quarter():
    assert Trained((9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 3.0)).final_loss == 2.0
    assert Trained((5.0,)).final_loss == 5.0


# --- refusals


def test_training_needs_answers(micro_copy: ChatModel):
    before = weights(micro_copy)
    for bad in ([], micro_copy.rows(PROMPTS), [*rows(micro_copy), micro_copy.rows(["Hi"])[0]]):
        with pytest.raises(BadInput, match="an answer in each"):
            train(micro_copy, bad, FIVE)
    assert not differing(before, weights(micro_copy))
    assert all(p.requires_grad for p in micro_copy.plain.parameters())


def test_a_loss_that_is_not_finite_is_a_fault(micro_copy: ChatModel):
    with torch.no_grad():
        micro_copy.anatomy.blocks[1].down.weight[0, 0] = math.inf
    with pytest.raises(Fault, match="the loss became nan at step 0: lower the learning rate"):
        train(micro_copy, rows(micro_copy), FIVE)
    assert not micro_copy.plain.training
    assert all(p.grad is None and p.requires_grad for p in micro_copy.plain.parameters())


def test_a_rate_that_explodes_is_a_fault(micro_copy: ChatModel):
    with pytest.raises(Fault, match="learning rate"):
        train(micro_copy, rows(micro_copy), TrainSettings(steps=20, batch_size=3, lr=1e30, weight_decay=1.0))


def test_a_slice_that_moved_is_a_fault(micro_copy: ChatModel):
    """Someone else wrote to a frozen weight in the meantime: `unchanged` must not be reported."""
    frozen = FrozenSlices(owned_slices(micro_copy.anatomy, UnitSet.of(micro_copy.grid, [(Kind.MLP, 0, 0)])))

    def meddle() -> dict[str, float]:
        micro_copy.anatomy.blocks[0].mlp.gate_proj.weight[0, 0] += 1
        return {}

    with pytest.raises(Fault, match="frozen parameter"):
        train(micro_copy, rows(micro_copy), FIVE, frozen, watch=Watch(3, meddle))


def test_everything_frozen_is_refused(micro_copy: ChatModel):
    slices = other_slices(micro_copy.anatomy, UnitSet.empty(micro_copy.grid))
    with pytest.raises(BadInput, match="nothing would be trained"):
        train(micro_copy, rows(micro_copy), FIVE, FrozenSlices(slices))
    # with the other policy there is something left: embeddings, norms, unembedding
    before = weights(micro_copy)
    train(micro_copy, rows(micro_copy), replace(FIVE, policy="all"), FrozenSlices(slices))
    assert differing(before, weights(micro_copy)) == {n for n in before if "_proj." not in n}


def test_rows_longer_than_the_context_are_refused(micro_copy: ChatModel):
    long = micro_copy.rows(["Hi " * 400], [micro_copy.response_tokens("No")])
    assert len(long[0].ids) > 512
    with pytest.raises(BadInput, match=r"row 4 has \d+ tokens, the context of micro-llama holds 512; shorten"):
        train(micro_copy, [*rows(micro_copy), *long], FIVE)


@pytest.mark.parametrize("wrong", [{"policy": "some"}, {"optimizer": "lion"}])
def test_unknown_settings_are_refused(micro_copy: ChatModel, wrong):
    with pytest.raises(BadInput, match="allowed are"):
        train(micro_copy, rows(micro_copy), replace(FIVE, **wrong))
    assert all(p.requires_grad for p in micro_copy.plain.parameters())


# --- stopping with the last good weights


def poisoned_at(step: int, model: ChatModel) -> Watch:
    """A look that, after so many steps, makes a weight infinite: the next loss is not a number."""

    def look() -> dict[str, float]:
        look.steps += 1
        if look.steps - 1 == step:
            model.anatomy.blocks[1].down.weight[0, 0] = math.inf
        return {}

    look.steps = 0
    return Watch(1, look)


def test_after_a_bad_loss_the_model_has_its_last_good_weights(micro_copy: ChatModel, make_llama, make_tokenizer):
    """Good weights are kept every 8 steps: poisoned after step 12, a run falls back to those of step 8."""
    tokenizer = make_tokenizer()
    clean = ChatModel(make_llama(tokenizer), tokenizer, "clean")
    settings = TrainSettings(steps=20, batch_size=2, lr=1e-3)
    seen = []
    look = lambda: seen.append(weights(clean)) or {}
    train(clean, rows(clean), settings, watch=Watch(1, look))
    with pytest.raises(Diverged, match="nan at step 12: .*lower the learning rate.*weights of step 8 again") as got:
        train(micro_copy, rows(micro_copy), settings, watch=poisoned_at(12, micro_copy))
    assert len(got.value.trained.losses) == 8 and got.value.model is micro_copy
    assert not differing(seen[8], weights(micro_copy))
    assert got.value.trained.curve[-1][0] == 8


def test_a_gradient_that_is_not_finite_moves_nothing(micro_copy: ChatModel):
    before = weights(micro_copy)
    hook = micro_copy.anatomy.blocks[0].down.weight.register_hook(lambda g: g * math.nan)
    with pytest.raises(Diverged, match="gradient became nan at step 0"):
        train(micro_copy, rows(micro_copy), FIVE)
    hook.remove()
    assert not differing(before, weights(micro_copy))


# --- sliced training


def test_optimizer_state_scales_with_what_is_trained(micro_copy: ChatModel, monkeypatch):
    """Two moments per trained entry and nothing else; the whole gradient is gone after the backward pass."""
    made = []
    optimizer = loop._optimizer
    monkeypatch.setattr(loop, "_optimizer", lambda *a: made.append(optimizer(*a)) or made[-1])
    units = UnitSet.of(micro_copy.grid, [(Kind.MLP, 0, 3), (Kind.MLP, 1, 5), (Kind.HEAD, 1, 0)])
    frozen = FrozenSlices(other_slices(micro_copy.anatomy, units))
    got = train(micro_copy, rows(micro_copy), FIVE, frozen)
    n = 2 * 3 * 16 + 2 * 4 * 16  # two neurons and a head, counted by hand; its group has another head
    state = [t for s in made[0].state.values() for k, t in s.items() if k.startswith("exp_avg")]
    assert got.trained_parameters == n and sum(t.numel() for t in state) == 2 * n
    assert got.frozen_parameters + n == micro_copy.grid.block_parameters


def test_sliced_training_takes_the_step_that_adamw_takes(micro_copy: ChatModel, make_llama, make_tokenizer):
    """AdamW works entry by entry: without clipping, trained slices move as in full training, to rounding."""
    tokenizer = make_tokenizer()
    whole = ChatModel(make_llama(tokenizer), tokenizer, "whole")
    settings = TrainSettings(steps=1, batch_size=3, lr=1e-2, clip=1e9)
    units = UnitSet.of(micro_copy.grid, [(Kind.MLP, 0, 3), (Kind.MLP, 0, 7)])
    train(micro_copy, rows(micro_copy), settings, FrozenSlices(other_slices(micro_copy.anatomy, units)))
    train(whole, rows(whole), settings)
    sliced, full = micro_copy.anatomy.blocks[0], whole.anatomy.blocks[0]
    torch.testing.assert_close(sliced.mlp.up_proj.weight[[3, 7]], full.mlp.up_proj.weight[[3, 7]])
    torch.testing.assert_close(sliced.down.weight[:, [3, 7]], full.down.weight[:, [3, 7]])


def test_bfloat16_weights_follow_a_float32_master(micro_copy: ChatModel):
    """A thousandth of a weight is under bfloat16's resolution (1/256): only a master copy can add such steps up."""
    model = ChatModel(micro_copy.plain.bfloat16(), micro_copy.tokenizer, "low")
    weight = model.anatomy.blocks[0].down.weight
    with torch.no_grad():
        weight.fill_(1.0)
    settings = TrainSettings(steps=40, batch_size=3, lr=1e-3, warmup=0.0, weight_decay=0.0)
    train(model, rows(model), replace(settings, steps=1))
    assert (weight == 1).all()  # one step of 0.001 rounds away
    train(model, rows(model), settings)
    assert weight.dtype == torch.bfloat16 and (weight != 1).float().mean() > 0.5  # forty do not


# --- watching


def test_the_curve_is_taken_at_its_cadence(micro_copy: ChatModel):
    modes = []

    def look() -> dict[str, float]:
        modes.append((micro_copy.plain.training, torch.is_grad_enabled()))
        return {"loss": losses(micro_copy, rows(micro_copy)).mean}

    got = train(micro_copy, rows(micro_copy), replace(FIVE, steps=7), watch=Watch(3, look))
    assert [step for step, _ in got.curve] == [0, 3, 6, 7]
    assert got.curve[0][1]["loss"] > got.curve[-1][1]["loss"] == losses(micro_copy, rows(micro_copy)).mean
    assert set(modes) == {(False, False)}


def test_looking_changes_nothing(micro_copy: ChatModel, make_llama, make_tokenizer):
    tokenizer = make_tokenizer()
    other = ChatModel(make_llama(tokenizer), tokenizer, "unseen")
    train(micro_copy, rows(micro_copy), FIVE, watch=Watch(1, lambda: {"x": losses(micro_copy, rows(micro_copy)).mean}))
    train(other, rows(other), FIVE)
    assert not differing(weights(micro_copy), weights(other))


# --- memory


def test_what_the_optimizer_cannot_hold_is_refused_before_the_first_step():
    """10^13 numbers: gradients and two moments of AdamW, 4 bytes each, and a copy of the values where one is kept."""
    cpu = torch.device("cpu")
    with pytest.raises(BadInput, match=r"training 10,000,000 million numbers takes 120000\.0 GB .*--method lora"):
        check_training_room(10**13, replace(FIVE, keep_good=0), cpu)
    with pytest.raises(BadInput, match=r"takes 120000\.0 GB beside the model \(gradients, sgd\)"):
        check_training_room(10**13, replace(FIVE, optimizer="sgd"), cpu)
    check_training_room(10**6, FIVE, cpu)
