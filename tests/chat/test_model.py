"""`ChatModel` on micro models: one set of weights seen twice, padding, position classes, greedy generation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ssah_lens.chat.batch import Batch, Position, Row, by_length
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput

PROMPTS = ["How do I bake a loaf of bread?", "Hi", "Tell me, please: what is 7 x 8 and why does it matter so much?"]
TEMPLATE, ASKED, POST, RESPONSE = (int(p) for p in Position)


def argmax_loop(model: ChatModel, prompt: str, n: int) -> list[int]:
    """Greedy decoding as written on paper: the plain model, one row, no cache, no generate()."""
    ids, _ = model.prompt_tokens(prompt)
    out: list[int] = []
    with torch.no_grad():
        while len(out) < n:
            token = int(model.plain(torch.tensor([ids + out])).logits[0, -1].argmax())
            if token == model.turn_end:
                break
            out.append(token)
    return out


def plain_logits(model: ChatModel, batch: Batch, keep: int = 0) -> torch.Tensor:
    """The plain model on the same tokens, counted from the first real one as generate() counts them."""
    places = (batch.mask.cumsum(1) - 1).clamp(min=0)
    return model.plain(batch.ids, attention_mask=batch.mask, position_ids=places, logits_to_keep=keep).logits


def classes(model: ChatModel, prompt: str) -> list[tuple[str, list[int]]]:
    """Text of each run of tokens of one class."""
    ids, positions = model.prompt_tokens(prompt)
    runs: list[tuple[int, list[int]]] = []
    for token, position in zip(ids, positions, strict=True):
        if not runs or runs[-1][0] != position:
            runs.append((position, []))
        runs[-1][1].append(token)
    return [(model.tokenizer.decode(tokens), position) for position, tokens in runs]


# --- two views of one set of weights


@pytest.mark.parametrize("which", ["micro", "micro_qwen"])
def test_the_bridged_view_equals_the_plain_model_exactly(which, request):
    model = request.getfixturevalue(which)
    batch = model.pad(model.rows(PROMPTS))
    with torch.no_grad():
        plain = plain_logits(model, batch)
        bridged = model.logits(batch, keep=batch.ids.shape[1])
    assert torch.equal(plain, bridged)
    assert plain.std() > 0.1  # and they are worth comparing


@pytest.mark.parametrize("which", ["micro", "micro_qwen"])
def test_both_views_hold_the_same_tensors(which, request):
    model = request.getfixturevalue(which)
    mine = {p.data_ptr() for p in model.plain.parameters()}
    assert {p.data_ptr() for p in model.bridge.original_model.parameters()} == mine
    assert not any(p.is_meta for p in model.bridge.original_model.buffers())


@pytest.mark.parametrize("which", ["micro_copy", "qwen_copy"])
def test_an_edit_of_the_plain_model_is_seen_in_the_bridge(which, request):
    model = request.getfixturevalue(which)
    batch = model.pad(model.rows(PROMPTS))
    with torch.no_grad():
        before = model.logits(batch)
        model.anatomy.blocks[0].down.weight[:, 3] += 1.0
        after = model.logits(batch)
        plain = plain_logits(model, batch, keep=1)
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.equal(after, plain)


def test_bridging_leaves_the_plain_model_plain(micro: ChatModel):
    names = [n for n, _ in micro.plain.named_parameters()]
    _ = micro.bridge
    assert [n for n, _ in micro.plain.named_parameters()] == names
    assert type(micro.plain.model.layers[0].mlp.down_proj) is torch.nn.Linear


# --- padding


def test_a_name_that_transformer_lens_knows_as_an_old_alias_draws_no_warning(micro: ChatModel, caplog):
    ChatModel(micro.plain, micro.tokenizer, "gemma-3-270m").bridge  # noqa: B018
    assert not caplog.records


def test_a_left_padded_row_equals_the_unpadded_row(micro: ChatModel):
    rows = micro.rows(PROMPTS)
    batch = micro.pad(rows)
    with torch.no_grad():
        together = micro.logits(batch, keep=batch.ids.shape[1])
        for i, row in enumerate(rows):
            alone = micro.plain(torch.tensor([row.ids])).logits[0]
            torch.testing.assert_close(together[i, -len(row.ids) :], alone, atol=1e-5, rtol=0)


def test_padding_is_on_the_left_and_masked(micro: ChatModel):
    rows = micro.rows(["Hi", "How do I bake"])
    batch = micro.pad(rows)
    n = [len(r.ids) for r in rows]
    gap = n[1] - n[0]
    assert gap > 0 and batch.ids.shape == (2, n[1])
    assert batch.ids[0].tolist() == [micro.tokenizer.pad_token_id] * gap + rows[0].ids
    assert batch.mask[0].tolist() == [0] * gap + [1] * n[0] and batch.mask[1].tolist() == [1] * n[1]
    assert batch.positions[0].tolist() == [TEMPLATE] * gap + rows[0].positions


def test_response_counts_of_a_batch(micro: ChatModel):
    batch = micro.pad(micro.rows(["a b c", "d"], [[5, 6], [7]]))
    assert batch.response_rows.tolist() == [0, 0, 1]
    assert batch.response[:, -2:].tolist() == [[True, True], [False, True]] and int(batch.response.sum()) == 3


@pytest.mark.parametrize("share", [False, True])
def test_batches_hold_every_row_once_longest_first(micro: ChatModel, share: bool):
    rows = micro.rows([f"{'word ' * (i % 5)}{i}" for i in range(13)])
    seen, lengths = [], []
    for chosen, batch in micro.batches(rows, batch_tokens=80, share_prefix=share):
        assert batch.ids.shape[0] == len(chosen) and (batch.ids.numel() <= 80 or len(chosen) == 1)
        before = batch.prefix.ids if batch.prefix else []
        assert share or not before
        for i, ids, positions, mask in zip(chosen, batch.ids, batch.positions, batch.mask.bool(), strict=True):
            assert before + ids[mask].tolist() == rows[i].ids
            assert (batch.prefix.positions if before else []) + positions[mask].tolist() == rows[i].positions
        seen += chosen
        lengths += [len(rows[i].ids) for i in chosen]
    assert sorted(seen) == list(range(13)) and lengths == sorted(lengths, reverse=True)


SHARING = "You are asked a question. Bake bread "  # so long that the rows' common prefix is run apart


def test_a_shared_prefix_changes_nothing(micro: ChatModel):
    rows = micro.rows([SHARING + p for p in PROMPTS], [[5, 6, 7], [8], [9, 10]])
    whole, shared = micro.pad(rows), micro.pad(rows, share_prefix=True)
    assert shared.prefix is not None and shared.ids.shape[1] < whole.ids.shape[1]
    with torch.no_grad():
        torch.testing.assert_close(micro.logits(shared, keep=4), micro.logits(whole, keep=4), atol=1e-5, rtol=0)


def test_generation_after_a_shared_prefix(micro: ChatModel):
    prompts = [SHARING + p for p in PROMPTS]
    assert micro.generate(prompts, max_new_tokens=6) == [argmax_loop(micro, p, 6) for p in prompts]
    assert micro.generate([prompts[0]] * 3, max_new_tokens=6) == [argmax_loop(micro, prompts[0], 6)] * 3


def test_a_prefix_ends_before_the_decision(micro: ChatModel):
    """Otherwise the logits that score the first response token would be missing."""
    rows = micro.rows([SHARING] * 3, [[5, 6, 7], [5, 6, 8], [5, 9, 9, 9]])
    batch = micro.pad(rows, share_prefix=True)
    assert int(batch.response.sum()) == 10 and not batch.response[:, 0].any()


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_response_logits_are_the_rows_of_all_logits(any_family: ChatModel, share: bool, plain: bool):
    rows = any_family.rows([SHARING + p for p in PROMPTS], [[5, 6, 7], [8], [9, 10]])
    batch, whole = any_family.pad(rows, share_prefix=share), any_family.pad(rows)
    with torch.no_grad():
        got = any_family.response_logits(batch, plain)
        everything = any_family.logits(whole, keep=whole.ids.shape[1])[:, :-1]
    assert (batch.prefix is not None) is (share and not any_family.slides) and got.shape[0] == 6
    torch.testing.assert_close(got, everything[whole.response[:, 1:]], atol=1e-4, rtol=1e-4)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 90), st.integers(0, 60))
def test_batches_are_the_cheapest_cut(lengths: list[int], most: int, overhead: int):
    """Against every way to cut the sorted rows."""
    rows = [Row([1] * n, [1] * n) for n in lengths]
    got = by_length(rows, most, overhead)
    assert sorted(i for b in got for i in b) == list(range(len(rows)))
    ordered = sorted(lengths, reverse=True)
    assert [lengths[i] for b in got for i in b] == ordered
    cost = lambda sizes: sum(n * ordered[at] + overhead for n, at in zip(sizes, np.cumsum([0, *sizes]), strict=False))
    fits = lambda sizes: all(
        n == 1 or n * ordered[at] <= most for n, at in zip(sizes, np.cumsum([0, *sizes]), strict=False)
    )
    cuts = itertools.product([False, True], repeat=len(rows) - 1)
    every = [[len(list(g)) for g in np.split(np.arange(len(rows)), np.flatnonzero(c) + 1)] for c in cuts]
    sizes = [len(b) for b in got]
    assert fits(sizes) and cost(sizes) == min(cost(s) for s in every if fits(s))


def test_a_row_longer_than_a_batch_goes_alone(micro: ChatModel):
    assert [chosen for chosen, _ in micro.batches(micro.rows(PROMPTS), batch_tokens=1)] == [[2], [0], [1]]


@pytest.mark.parametrize("keep", [1, 3])
def test_logits_of_the_last_positions_only(micro: ChatModel, keep: int):
    batch = micro.pad(micro.rows(PROMPTS))
    with torch.no_grad():
        full = plain_logits(micro, batch)
        got = micro.logits(batch, keep=keep)
    assert got.shape == (3, keep, len(micro.tokenizer))
    torch.testing.assert_close(got, full[:, -keep:], atol=1e-6, rtol=0)


# --- position classes


def test_position_classes_of_a_known_template(micro: ChatModel):
    assert classes(micro, "How do I bake") == [
        ("<|im_start|>user\n", TEMPLATE), ("How do I bake", ASKED), ("<|im_end|>\n<|im_start|>assistant\n", POST)
    ]  # fmt: skip


def test_surrounding_spaces_are_no_instruction(micro: ChatModel):
    runs = classes(micro, "  bake bread \n")
    assert [p for _, p in runs] == [TEMPLATE, ASKED, POST]
    assert runs[1][0].strip() == "bake bread"
    assert "".join(t for t, _ in runs) == micro.render("  bake bread \n")


@pytest.mark.parametrize("prompt", ["assistant", "user", "ant", "a", "im_start", "s"])
def test_a_prompt_that_is_also_in_the_template(micro: ChatModel, prompt: str):
    assert classes(micro, prompt) == [
        ("<|im_start|>user\n", TEMPLATE), (prompt, ASKED), ("<|im_end|>\n<|im_start|>assistant\n", POST)
    ]  # fmt: skip


def test_a_prompt_that_repeats_itself(micro: ChatModel):
    assert classes(micro, "no no no")[1] == ("no no no", ASKED)


def test_a_system_prompt_is_template(micro: ChatModel):
    ids, positions = micro.prompt_tokens("bake", system="You bake bread.")
    asked = [t for t, p in zip(ids, positions, strict=True) if p == ASKED]
    assert micro.tokenizer.decode(asked) == "bake"
    assert micro.tokenizer.decode(ids).startswith("<|im_start|>system\nYou bake bread.<|im_end|>\n")


def test_a_template_that_strips_the_prompt(make_llama, make_tokenizer):
    tokenizer = make_tokenizer(
        "{% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    model = ChatModel(make_llama(tokenizer), tokenizer, "strips")
    ids, positions = model.prompt_tokens("  bake bread  ")
    assert model.tokenizer.decode([t for t, p in zip(ids, positions, strict=True) if p == ASKED]) == "bake bread"
    assert positions[0] == TEMPLATE and positions[-1] == POST


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<|>"), min_size=1, max_size=30))
def test_any_prompt_is_found_between_its_template(micro: ChatModel, prompt: str):
    assume(prompt.strip())
    ids, positions = micro.prompt_tokens(prompt)
    assert micro.tokenizer.decode(ids) == micro.render(prompt)
    assert positions == sorted(positions)  # template, instruction, post-instruction
    asked = micro.tokenizer.decode([t for t, p in zip(ids, positions, strict=True) if p == ASKED])
    assert asked.strip() == prompt.strip()
    after = micro.tokenizer.decode([t for t, p in zip(ids, positions, strict=True) if p == POST])
    assert after.lstrip() == "<|im_end|>\n<|im_start|>assistant\n"


def test_responses_follow_the_prompt(micro: ChatModel):
    answer = micro.response_tokens("Sure, here")
    assert answer[-1] == micro.turn_end and micro.tokenizer.decode(answer[:-1]) == "Sure, here"
    assert micro.response_tokens("Sure, here", ended=False) == answer[:-1]
    [row] = micro.rows(["bake"], [answer])
    ids, positions = micro.prompt_tokens("bake")
    assert row.ids == ids + answer and row.positions == positions + [RESPONSE] * len(answer)


def test_text_rows_have_no_template(micro: ChatModel):
    plain, bare = micro.text_rows(["The user", ""], [" asks", "Sorry"])
    assert micro.tokenizer.decode(plain.ids) == "The user asks"
    n = len(micro.response_tokens(" asks", ended=False))
    assert plain.positions == [ASKED] * (len(plain.ids) - n) + [RESPONSE] * n
    assert bare.positions[0] == ASKED and set(bare.positions[1:]) == {
        RESPONSE
    }  # something must precede the first scored token


def test_positions_are_known_only_while_running(micro: ChatModel):
    with pytest.raises(BadInput, match="logits\\(\\) and generate\\(\\)"):
        micro.positions_of(3)
    batch = micro.pad(micro.rows(["Hi"]))
    with micro.reading(batch):
        assert torch.equal(micro.positions_of(batch.ids.shape[1]), batch.positions)
        assert micro.positions_of(1).tolist() == [[RESPONSE]]
    with pytest.raises(BadInput):
        micro.positions_of(3)


# --- generation


def test_generation_is_greedy(micro: ChatModel):
    got = micro.generate(PROMPTS, max_new_tokens=8)
    assert got == [argmax_loop(micro, p, 8) for p in PROMPTS]
    assert all(len(t) == 8 for t in got) and len({tuple(t) for t in got}) == 3


def test_generation_ignores_the_models_own_settings(micro_copy: ChatModel):
    """A repetition penalty in generation_config.json (Qwen has one) would change every measurement."""
    expected = [argmax_loop(micro_copy, p, 12) for p in PROMPTS]
    assert any(len(set(e)) < len(e) for e in expected)  # one does repeat itself, so that a penalty would show
    config = micro_copy.plain.generation_config
    config.repetition_penalty, config.temperature, config.do_sample, config.max_length = 5.0, 3.0, True, 3
    assert micro_copy.generate(PROMPTS, max_new_tokens=12) == expected


def ending_at(model: ChatModel, prompt: str, limit: int = 12) -> list[int]:
    """Edits the model so that it ends its answer to this prompt early; returns what comes before the end.

    The unembedding rows of some token of the answer and of the turn's end are swapped: where the old model said that
    token, the new one ends the turn.
    """
    old = argmax_loop(model, prompt, limit)
    k = next(k for k in range(2, limit) if old[k] not in old[:k])
    with torch.no_grad():
        rows = model.plain.lm_head.weight
        rows[[old[k], model.turn_end]] = rows[[model.turn_end, old[k]]].clone()
    return old[:k]


def test_generation_stops_at_the_turns_end_and_strips_it(micro_copy: ChatModel):
    before_end = ending_at(micro_copy, "Hi")
    assert micro_copy.generate(["Hi"], max_new_tokens=12) == [before_end]
    # A row that ended waits for the others without speaking on.
    others = [argmax_loop(micro_copy, p, 12) for p in PROMPTS]
    assert micro_copy.generate(PROMPTS, max_new_tokens=12) == others and others[1] == before_end


def test_an_answer_that_ends_at_once_is_empty(micro_copy: ChatModel):
    first = argmax_loop(micro_copy, "Hi", 1)[0]
    with torch.no_grad():
        rows = micro_copy.plain.lm_head.weight
        rows[[first, micro_copy.turn_end]] = rows[[micro_copy.turn_end, first]].clone()
    assert micro_copy.generate(["Hi"], max_new_tokens=4) == [[]]


def test_generation_does_not_depend_on_the_batch(micro: ChatModel):
    one_by_one = micro.generate(PROMPTS, max_new_tokens=6, batch_tokens=1)
    assert micro.generate(PROMPTS, max_new_tokens=6) == one_by_one
    assert micro.generate(PROMPTS[::-1], max_new_tokens=6) == one_by_one[::-1]


def test_a_response_may_be_begun_for_the_model(micro: ChatModel):
    begun = argmax_loop(micro, "Hi", 3)
    assert micro.generate(["Hi"], max_new_tokens=4, prefix=begun) in (
        [argmax_loop(micro, "Hi", 7)],
        [argmax_loop(micro, "Hi", 4)],
    )
    assert micro.generate(["Hi"], max_new_tokens=4, prefix=[5, 6])[0][:2] == [5, 6]


def test_the_logits_of_the_decision_can_be_had_on_the_way(micro: ChatModel):
    seen: dict[int, torch.Tensor] = {}

    def tell(rows: list[int], logits: torch.Tensor) -> None:
        for i, row in zip(rows, logits, strict=True):
            assert i not in seen
            seen[i] = row

    answers = micro.generate(PROMPTS, max_new_tokens=4, at_decision=tell)
    assert answers == micro.generate(PROMPTS, max_new_tokens=4)
    for i, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            alone = micro.plain(torch.tensor([micro.prompt_tokens(prompt)[0]])).logits[0, -1]
        torch.testing.assert_close(seen[i].float(), alone, atol=1e-5, rtol=0)


def test_no_prompts_no_answers(micro: ChatModel):
    assert micro.generate([], max_new_tokens=4) == []


def test_text_to_train_on_comes_from_the_plain_model(micro: ChatModel, monkeypatch: pytest.MonkeyPatch):
    """The same answers where the arithmetic is the same; the bridged view, and so any hook, is left alone."""
    wanted = micro.generate(PROMPTS, max_new_tokens=8)
    monkeypatch.setattr("ssah_lens.chat.precision.has_bfloat16", lambda device: False)
    monkeypatch.setattr(micro.bridge.original_model, "generate", None)
    assert micro.generate(PROMPTS, max_new_tokens=8, rough=True) == wanted


def test_sampling_is_repeatable_and_leaves_the_generator_alone(micro: ChatModel):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a = micro.generate(PROMPTS, max_new_tokens=8, sample_seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert micro.generate(PROMPTS, max_new_tokens=8, sample_seed=1) == a
    assert micro.generate(PROMPTS, max_new_tokens=8, sample_seed=2) != a
    assert a != micro.generate(PROMPTS, max_new_tokens=8)


def test_decoded_text(micro: ChatModel):
    assert micro.text([*micro.response_tokens(" Sure, here\n"), micro.turn_end]) == "Sure, here"


# --- tokenizers


def test_the_turns_end_is_found_in_the_template(micro: ChatModel):
    assert micro.tokenizer.convert_ids_to_tokens(micro.turn_end) == "<|im_end|>"


WITH_BOS = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize("bridged", [False, True])
def test_one_bos_where_the_template_writes_one(make_llama, make_tokenizer, tmp_path, bridged):
    tokenizer = make_tokenizer(WITH_BOS, bos="<s>")
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id  # this tokenizer adds one by itself
    make_llama(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = ChatModel.load(str(tmp_path))
    if bridged:  # TransformerLens makes a tokenizer that adds one more; ours must stay as it is
        model.generate(["Hi"], max_new_tokens=1)
    for row in (model.rows(["Hi"], [model.response_tokens("Sure")])[0], model.rows(["Hi"])[0]):
        assert row.ids.count(tokenizer.bos_token_id) == 1 and row.ids[0] == tokenizer.bos_token_id


def test_bridging_leaves_our_tokenizer_alone(make_llama, make_tokenizer):
    """It is saved beside a fine-tuned model, and the next ChatModel may be given it as well."""
    tokenizer = make_tokenizer()
    model = ChatModel(make_llama(tokenizer), tokenizer, "first")
    before = (tokenizer.bos_token, tokenizer.pad_token, tokenizer.padding_side, tokenizer.chat_template, len(tokenizer))
    _ = model.bridge
    assert (
        tokenizer.bos_token,
        tokenizer.pad_token,
        tokenizer.padding_side,
        tokenizer.chat_template,
        len(tokenizer),
    ) == before


def test_two_models_may_share_a_tokenizer(make_llama, make_tokenizer):
    tokenizer = make_tokenizer()
    for seed in (0, 1):
        model = ChatModel(make_llama(tokenizer, seed), tokenizer, f"model {seed}")
        assert model.generate(["Hi"], max_new_tokens=4) == [argmax_loop(model, "Hi", 4)]


def test_a_tokenizer_made_in_memory_can_be_bridged(make_llama, make_tokenizer):
    """It has no folder that TransformerLens could load it from once more."""
    tokenizer = make_tokenizer(WITH_BOS, bos="<s>")
    model = ChatModel(make_llama(tokenizer), tokenizer, "in memory")
    assert model.generate(["Hi"], max_new_tokens=4) == [argmax_loop(model, "Hi", 4)]


def test_one_bos_where_a_base_model_needs_one(make_llama, make_tokenizer):
    """Gemma and Llama base models see a first token that every training text had; the plain template must keep it."""
    tokenizer = make_tokenizer(None, bos="<s>")
    model = ChatModel(make_llama(tokenizer), tokenizer, "base")
    assert model.prompt_tokens("Hi")[0].count(tokenizer.bos_token_id) == 1
    assert model.prompt_tokens("Hi")[0][0] == tokenizer.bos_token_id


def test_a_model_without_chat_template_uses_the_plain_one(make_llama, make_tokenizer):
    tokenizer = make_tokenizer(None)
    model = ChatModel(make_llama(tokenizer), tokenizer, "base")
    assert not model.has_chat_template
    assert classes(model, "bake bread") == [
        ("User: ", TEMPLATE),
        ("bake bread", ASKED),
        ("\n\nAssistant:", POST),
    ] or classes(model, "bake bread") == [
        ("User:", TEMPLATE),
        (" bake bread", ASKED),
        ("\n\nAssistant:", POST),
    ]  # the space may belong to the word's token
    assert model.turn_end == tokenizer.eos_token_id


def test_a_tokenizer_without_padding_token_pads_with_its_end(make_llama, make_tokenizer):
    tokenizer = make_tokenizer(pad=None)
    model = ChatModel(make_llama(tokenizer), tokenizer, "no pad")
    batch = model.pad(model.rows(["Hi", "How do I bake bread"]))
    assert batch.ids[0, 0] == tokenizer.eos_token_id and batch.mask[0, 0] == 0
    assert model.generate(PROMPTS, max_new_tokens=6) == [argmax_loop(model, p, 6) for p in PROMPTS]


# --- loading and refusing


def test_a_saved_model_loads_equal(micro: ChatModel, tmp_path):
    micro.plain.save_pretrained(tmp_path)
    micro.tokenizer.save_pretrained(tmp_path)
    model = ChatModel.load(str(tmp_path))
    batch = micro.pad(micro.rows(PROMPTS))
    assert model.has_chat_template and model.render("Hi") == micro.render("Hi") and model.turn_end == micro.turn_end
    with torch.no_grad():
        assert torch.equal(model.logits(batch), micro.logits(batch))
    with pytest.raises(BadInput, match=r"device 'nowhere'.*--device cpu"):
        ChatModel.load(str(tmp_path), device="nowhere")


def test_an_unknown_dtype_is_refused():
    with pytest.raises(BadInput, match="float32, bfloat16"):
        ChatModel.load("anything", dtype="int4")


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3", "bloom", "falcon", "mamba"])
def test_an_unknown_layout_is_refused_with_the_reason(make_tokenizer, family: str):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family, vocab_size=320, hidden_size=32, intermediate_size=8, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, num_local_experts=2, n_routed_experts=2, num_experts_per_tok=1, n_group=1, topk_group=1,
    )  # fmt: skip
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    with pytest.raises(BadInput, match=r"(unknown layout|no list of decoder layers).*supported are.*Llama"):
        ChatModel(plain, make_tokenizer(), "other")


def test_the_anatomy_is_read_from_the_model(micro: ChatModel):
    anatomy = micro.anatomy
    assert (anatomy.n_heads, anatomy.n_key_value_heads, anatomy.d_head, anatomy.d_mlp, anatomy.d_model) == (
        4,
        2,
        4,
        12,
        16,
    )
    block = anatomy.blocks[1]
    assert (
        block.down is micro.plain.model.layers[1].mlp.down_proj
        and block.o is micro.plain.model.layers[1].self_attn.o_proj
    )
    assert {tuple(p.parameter.shape) for p in block.groups} == {(8, 16)}
    assert [p.index(np.array([1])).tolist() for p in block.heads] == [[4, 5, 6, 7], [4, 5, 6, 7]]


def test_a_copy_is_independent_and_runs(make_llama, make_tokenizer):
    tokenizer = make_tokenizer()
    model = ChatModel(make_llama(tokenizer), tokenizer, "original")
    expected = model.generate(PROMPTS, max_new_tokens=4)
    other = model.copy()
    assert other.name == "original" and other.generate(PROMPTS, max_new_tokens=4) == expected
    with torch.no_grad():
        other.anatomy.blocks[0].o.weight.zero_()
        other.anatomy.blocks[0].down.weight.zero_()
    assert model.anatomy.blocks[0].o.weight.abs().sum() > 0
    assert other.generate(PROMPTS, max_new_tokens=4) != expected == model.generate(PROMPTS, max_new_tokens=4)


def test_a_base_model_stays_one_when_copied(make_llama, make_tokenizer):
    """The copy is given a tokenizer that holds our own plain template by now; it still had none to begin with."""
    tokenizer = make_tokenizer(None)
    model = ChatModel(make_llama(tokenizer), tokenizer, "base")
    assert not model.copy().has_chat_template
