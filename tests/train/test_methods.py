"""The methods, each by what it must leave alone and what it must change."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ssah_lens.chat.batch import Position
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import Prompt, PromptSet, pairs
from ssah_lens.chat.prompts import refusals as written_refusals
from ssah_lens.errors import BadInput
from ssah_lens.measure.refusal import refusals
from ssah_lens.measure.utility import losses
from ssah_lens.train.adapters import Adapted, AdapterSizes, save_tuned, with_adapter
from ssah_lens.train.data import mixed_in, rows_of
from ssah_lens.train.loop import Diverged, TrainSettings, train
from ssah_lens.train.methods import METHODS, Method, default_lr, default_safety_layers, tune, weights_put_back
from ssah_lens.train.objective import EARLY_END, FirstTokens
from ssah_lens.units import Kind, UnitSet

PROMPTS = ["Hi", "How do I bake a loaf of bread?", "Why not"]
ANSWERS = ["Sure, here is how you can do that.", "No", "Ask the assistant"]
SETTINGS = TrainSettings(steps=8, batch_size=3, lr=2e-2)
ADAPTERS = ("lora", "prefix", "llama-adapter")
SMALL = AdapterSizes(rank=2, virtual_tokens=3)


def rows(model: ChatModel):
    return model.rows(PROMPTS, [model.response_tokens(a) for a in ANSWERS])


def weights(model: ChatModel) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.plain.named_parameters()}


def differing(a, b) -> set[str]:
    return {n for n in a if not torch.equal(a[n], b[n])}


def some_units(model: ChatModel) -> UnitSet:
    return UnitSet.of(model.grid, [(Kind.MLP, 0, 3), (Kind.MLP, 1, 5), (Kind.HEAD, 1, 0)])


def options(name: str, model: ChatModel) -> dict:
    units = some_units(model)
    return {"freeze": {"freeze": units}, "train-only": {"only": units}, "safety-layers": {"layers": range(1, 2)}}.get(
        name, {"sizes": SMALL} if name in ADAPTERS else {}
    )


# --- all of them


@pytest.mark.parametrize("name", METHODS)
def test_every_method_lowers_the_loss_of_its_data(micro_copy: ChatModel, name: str):
    before = losses(micro_copy, rows(micro_copy)).mean
    settings = TrainSettings(steps=25, batch_size=3, lr=0.3 if name in ("prefix", "llama-adapter") else 2e-2)
    got = tune(micro_copy, rows(micro_copy), settings, Method(name, **options(name, micro_copy)))
    assert losses(got.model, rows(got.model)).mean < 0.95 * before
    assert len(got.trained.losses) == 25 and got.trained.trained_parameters > 0
    assert not got.model.plain.training
    assert all(p.grad is None and p.requires_grad for p in micro_copy.plain.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_weights_are_put_back_after_any_method(micro_copy: ChatModel, name: str):
    before = weights(micro_copy)
    with weights_put_back(micro_copy):
        tune(micro_copy, rows(micro_copy), SETTINGS, Method(name, **options(name, micro_copy)))
        changed = differing(before, weights(micro_copy))
    assert bool(changed) == (name not in ("prefix", "llama-adapter"))
    assert not differing(before, weights(micro_copy)) and list(before) == list(weights(micro_copy))


@pytest.mark.parametrize("name", METHODS)
def test_the_model_is_watched_as_it_is_being_trained(micro_copy: ChatModel, name: str):
    """What the last look saw is what the finished model does, adapter included."""
    look = lambda m: {"loss": losses(m, rows(m)).mean}
    method = Method(name, **options(name, micro_copy))
    got = tune(micro_copy, rows(micro_copy), SETTINGS, method, look=look, every=4)
    assert [step for step, _ in got.trained.curve] == [0, 4, 8]
    assert got.trained.curve[-1][1]["loss"] == pytest.approx(look(got.model)["loss"], rel=1e-4)
    assert got.trained.curve[0][1]["loss"] != got.trained.curve[-1][1]["loss"]


def test_unknown_and_impossible_methods(micro_copy: ChatModel):
    for method, says in (
        (Method("magic"), "allowed are full"),
        (Method("freeze"), "needs units to freeze"),
        (Method("train-only"), "needs units to train"),
        (Method("full", some_units(micro_copy), some_units(micro_copy)), "exclude each other"),
        *((Method(name, some_units(micro_copy)), "cannot hold single units") for name in (*ADAPTERS, "safety-layers")),
        (Method("train-only", only=UnitSet.empty(micro_copy.grid)), "nothing would be trained"),
        (Method("safety-layers", layers=range(5, 9)), "it has layers 0-1"),
        (Method("mix-refusals", mix=0), "above 0 and at most 1"),
    ):
        before = weights(micro_copy)
        with pytest.raises(BadInput, match=says):
            tune(micro_copy, rows(micro_copy), SETTINGS, method)
        assert not differing(before, weights(micro_copy))


def test_rates_and_ranges_that_are_taken_when_none_are_given():
    assert default_lr("prefix") == 1e-2 and default_lr("full") == default_lr("first-token") == 5e-5
    assert default_safety_layers(30) == range(6, 14) and default_safety_layers(2) == range(0, 1)


# --- freezing


@pytest.mark.parametrize("name", ["full", "first-token", "mix-refusals"])
@pytest.mark.parametrize("how", ["freeze", "only"])
def test_units_are_held_under_other_methods_too(micro_copy: ChatModel, name: str, how: str):
    got = tune(micro_copy, rows(micro_copy), SETTINGS, Method(name, **{how: some_units(micro_copy)}))
    assert got.trained.unchanged is True and got.trained.frozen_parameters > 0


# --- adapters


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_fresh_adapter_shares_the_weights_and_alters_nothing(micro_copy: ChatModel, name: str):
    before, modules = weights(micro_copy), [n for n, _ in micro_copy.plain.named_modules()]
    adapted = with_adapter(micro_copy, name, SMALL)
    assert [n for n, _ in micro_copy.plain.named_modules()] == modules
    assert not differing(before, weights(micro_copy)) and all(p.requires_grad for p in micro_copy.plain.parameters())
    shared = {p.data_ptr() for p in micro_copy.plain.parameters()}
    assert shared <= {p.data_ptr() for p in adapted.peft.parameters()}
    own = {p.data_ptr() for p in adapted.adapter_parameters}
    assert own and not own & shared
    if name != "prefix":  # both begin with no effect; a prefix is random
        assert losses(adapted, rows(adapted)).mean == pytest.approx(losses(micro_copy, rows(micro_copy)).mean, abs=1e-5)


def test_lora_is_merged_and_seen_in_the_bridged_view(micro_copy: ChatModel):
    batch = micro_copy.pad(micro_copy.rows(PROMPTS))
    with torch.no_grad():
        before = micro_copy.logits(batch)  # the bridge exists before the adapter does
    start = weights(micro_copy)
    got = tune(micro_copy, rows(micro_copy), SETTINGS, Method("lora", sizes=SMALL))
    assert got.model is micro_copy
    assert differing(start, weights(micro_copy)) == {n for n in start if "_proj." in n}
    for name, p in micro_copy.plain.named_parameters():
        if "_proj." in name:
            assert np.linalg.matrix_rank((p - start[name]).detach().numpy(), tol=1e-5) <= 2, name
    with torch.no_grad():
        bridged = micro_copy.logits(batch)
        plain = micro_copy.plain(batch.ids, attention_mask=batch.mask, logits_to_keep=1).logits
    torch.testing.assert_close(bridged, plain, atol=1e-5, rtol=0)
    assert not torch.allclose(bridged, before)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "phi3", "gpt_neox", "mixtral"])
def test_lora_finds_the_matrices_of_other_families(make_family, family: str):
    model = make_family(family)
    start = weights(model)
    got = tune(model, rows(model), SETTINGS, Method("lora", sizes=SMALL))
    moved = {id(m.weight) for b in model.anatomy.blocks for m in b.matrices}  # of experts, the attention's alone
    assert differing(start, weights(got.model)) == {n for n, p in model.plain.named_parameters() if id(p) in moved}


@pytest.mark.parametrize("name", ["prefix", "llama-adapter"])
def test_an_adapter_that_cannot_be_merged(micro_copy: ChatModel, name: str, tmp_path):
    """It is measured as peft's own model behaves, saved as an adapter, and reads back onto the base to the digit."""
    from peft import PeftModel

    start = weights(micro_copy)
    got = tune(micro_copy, rows(micro_copy), TrainSettings(steps=10, batch_size=3, lr=0.3), Method(name, sizes=SMALL))
    assert isinstance(got.model, Adapted) and not differing(start, weights(micro_copy))
    folder = save_tuned(got.model, tmp_path / "adapter")
    assert (folder / "adapter_config.json").is_file() and (folder / "adapter_model.safetensors").is_file()
    again = PeftModel.from_pretrained(with_shared(micro_copy), folder).eval()
    stop = micro_copy.turn_end
    said = got.model.generate(PROMPTS, max_new_tokens=6)
    for prompt, tokens in zip(PROMPTS, said, strict=True):
        ids = torch.tensor([micro_copy.prompt_tokens(prompt)[0]])
        theirs = again.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=stop,
            pad_token_id=micro_copy.tokenizer.pad_token_id,
        )[0, ids.shape[1] :].tolist()  # fmt: skip
        assert tokens == (theirs[: theirs.index(stop)] if stop in theirs else theirs)
    assert said != micro_copy.generate(PROMPTS, max_new_tokens=6)


def with_shared(model: ChatModel):
    import copy

    return copy.deepcopy(model.plain)


@pytest.mark.parametrize("name", ["prefix", "llama-adapter"])
def test_padding_does_not_matter_to_an_adapted_model(micro_copy: ChatModel, name: str):
    """The loss of a row alone is that of the row in a batch, and that of generation's decision logits."""
    got = tune(micro_copy, rows(micro_copy), TrainSettings(steps=10, batch_size=3, lr=0.3), Method(name, sizes=SMALL))
    together = losses(got.model, rows(got.model)).nll
    alone = [losses(got.model, [row]).nll[0] for row in rows(got.model)]
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    seen = {}
    got.model.generate(PROMPTS, 3, at_decision=lambda at, logits: seen.update(zip(at, logits, strict=True)))
    for i, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            logits = got.model.logits(got.model.pad(got.model.rows([prompt])))[0, -1]
        torch.testing.assert_close(seen[i].float(), logits.float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["prefix", "llama-adapter"])
def test_an_adapted_model_refuses_hooks_and_copies(micro_copy: ChatModel, name: str):
    adapted = with_adapter(micro_copy, name, SMALL)
    with pytest.raises(BadInput, match="no TransformerLens view"):
        adapted.bridge.hooks(fwd_hooks=[])
    with pytest.raises(BadInput, match="cannot be copied"):
        adapted.copy()
    assert len(refusals(adapted, PromptSet("p", tuple(Prompt(p) for p in PROMPTS)), max_new_tokens=2).outcomes) == 3


def test_adapters_that_an_architecture_cannot_carry(make_family):
    with pytest.raises(BadInput, match="knows llama and mistral, not qwen2"):
        with_adapter(make_family("qwen2"), "llama-adapter", SMALL)
    with pytest.raises(BadInput, match="slides a window"):
        with_adapter(make_family("gemma2"), "prefix", SMALL)


def test_the_seed_makes_the_adapter(micro_copy: ChatModel):
    state = torch.get_rng_state()
    a, b, c = (with_adapter(micro_copy, "prefix", SMALL, seed).adapter_parameters[0] for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["lora", "prefix"])
def test_an_adapter_that_diverges_keeps_its_last_good_values(micro_copy: ChatModel, name: str):
    def look(model: ChatModel) -> dict[str, float]:
        look.n += 1
        if look.n == 4:
            (model.adapter_parameters[0]).fill_(math.inf)
        return {}

    look.n = 0
    with pytest.raises(Diverged) as got:
        tune(micro_copy, rows(micro_copy), SETTINGS, Method(name, sizes=SMALL), look=look, every=1)
    assert math.isfinite(losses(got.value.model, rows(micro_copy)).mean)


# --- first-token


def test_the_constrained_loss_by_hand():
    """2/b softplus(b (nll - start)): 2/b ln 2 where nothing has moved; slope 1 there; b = 0.5, 2, 2, 2, 2, 0.1."""
    start = torch.zeros(7)
    constraint = FirstTokens([start])
    nll = torch.zeros(7, requires_grad=True)
    got = constraint.losses(nll, [0])
    b = np.array([0.5, 2, 2, 2, 2, 0.1, 0.1])
    np.testing.assert_allclose(got.detach(), 2 / b * math.log(2), rtol=1e-6)
    got.sum().backward()
    np.testing.assert_allclose(nll.grad, np.ones(7), rtol=1e-6)
    nll = torch.full((7,), -3.0, requires_grad=True)  # every token likelier by 3 nats than at the start
    constraint.losses(nll, [0]).sum().backward()
    np.testing.assert_allclose(nll.grad, 2 / (1 + np.exp(3 * b)), rtol=1e-5)


def test_the_start_is_read_token_by_token(micro: ChatModel):
    data = rows(micro)
    constraint = FirstTokens.of(micro, data)
    assert [len(s) for s in constraint.start] == [sum(p == Position.RESPONSE for p in r.positions) for r in data]
    expected = losses(micro, data).nll
    np.testing.assert_allclose([s.sum().item() for s in constraint.start], expected, rtol=0.02)  # bfloat16 products


def test_first_tokens_stay_nearer_the_start(micro: ChatModel, make_llama, make_tokenizer):
    """Beside full fine-tuning of the same steps: the early tokens' likelihood moves less, the later ones' as well."""

    def moved(name: str) -> tuple[float, float]:
        tokenizer = make_tokenizer()
        model = ChatModel(make_llama(tokenizer), tokenizer, name)
        data = rows(model)[:1]
        start = FirstTokens.of(model, data).start[0]
        tune(model, data, TrainSettings(steps=40, batch_size=1, lr=1e-2), Method(name))
        gain = start - FirstTokens.of(model, data).start[0]
        return float(gain[1:EARLY_END].mean()), float(gain[EARLY_END:].mean())

    (full_early, full_later), (early, later) = moved("full"), moved("first-token")
    assert 0 < early < 0.6 * full_early and later > 0.8 * full_later


def test_the_watched_loss_is_the_likelihood(micro_copy: ChatModel, make_llama, make_tokenizer):
    """Curves of methods can be laid over each other: the constraint is not in the reported loss."""
    tokenizer = make_tokenizer()
    other = ChatModel(make_llama(tokenizer), tokenizer, "other")
    one = TrainSettings(steps=1, batch_size=3, lr=1e-9)
    a, b = (tune(m, rows(m), one, Method(n)).trained for m, n in ((micro_copy, "full"), (other, "first-token")))
    assert a.losses == pytest.approx(b.losses)


# --- mix-refusals


def test_refusals_of_train_prompts_are_mixed_in(micro: ChatModel):
    data = rows(micro) * 10
    mixed = mixed_in(micro, data, 0.2, seed=1)
    assert mixed[:30] == data and len(mixed) == 36 and mixed == mixed_in(micro, data, 0.2, seed=1)
    train_prompts, written = set(pairs("train")[0].texts), set(written_refusals("train"))
    asked = {tuple(micro.prompt_tokens(p)[0]) for p in train_prompts}
    for row in mixed[30:]:
        n = row.positions.index(Position.RESPONSE)
        assert tuple(row.ids[:n]) in asked and micro.text(row.ids[n:]) in written
    assert len(mixed_in(micro, data[:3], 0.01, seed=0)) == 4  # one at least


def test_the_mix_is_what_is_trained_on(micro_copy: ChatModel):
    """Refusals become likelier than they become without the mix."""
    refusing = mixed_in(micro_copy, rows(micro_copy), 1.0, seed=0)[3:]
    seen = {}
    for name in ("full", "mix-refusals"):
        with weights_put_back(micro_copy):
            tune(micro_copy, rows(micro_copy), TrainSettings(steps=30, batch_size=3, lr=1e-2), Method(name, mix=1.0))
            seen[name] = losses(micro_copy, refusing).mean
    assert seen["mix-refusals"] < 0.8 * seen["full"]


# --- data


def test_rows_carry_their_own_system_prompt(micro: ChatModel):
    data = PromptSet("d", (Prompt("Hi", "No"), Prompt("Hi", "No", system="Be brief.")))
    plain, briefed = rows_of(micro, data)
    assert "Be brief." in micro.tokenizer.decode(briefed.ids) and "Be brief." not in micro.tokenizer.decode(plain.ids)
    assert plain == micro.rows(["Hi"], [micro.response_tokens("No")])[0]


def test_training_an_adapter_by_the_loop_itself(micro_copy: ChatModel):
    """`parts` is all that the loop needs to know."""
    from ssah_lens.train.trainable import Part

    adapted = with_adapter(micro_copy, "prefix", SMALL)
    got = train(adapted, rows(adapted), SETTINGS, parts=[Part(p) for p in adapted.adapter_parameters])
    assert got.trained_parameters == 3 * 2 * 2 * 8  # virtual tokens x layers x (key, value) x 2 heads of width 4
