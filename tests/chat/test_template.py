"""What stands around a prompt: thinking is over where the answer begins, a system prompt is really there."""

from __future__ import annotations

import pytest
from families import CHATML

from ssah_lens.chat.batch import Position
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput

TURNS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
PROMPT_END = "<|im_end|>\n<|im_start|>assistant\n"
EMPTY = "<think>\n\n</think>\n\n"
QWEN3 = TURNS + (
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
DEEPSEEK_V3 = TURNS + (
    "{% if not thinking is defined %}{% set thinking = true %}{% endif %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% if thinking %}{{ '<think>' }}{% else %}{{ '</think>' }}{% endif %}{% endif %}"
)
R1 = TURNS + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
R1_BARE = TURNS + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>' }}{% endif %}"
STRIPS = (  # QwQ and the like: old thinking is taken out of the history, new thinking is left to the model
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'].split('</think>')[-1] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HARMONY = CHATML + "{# <|channel|>analysis<|message|> #}"


@pytest.fixture(scope="module")
def make(make_llama, make_tokenizer):
    def build(template: str | None, system: str | None = None, thinks: bool = True) -> ChatModel:
        tokenizer = make_tokenizer(template)
        if thinks:
            tokenizer.add_tokens(["<think>", "</think>"])
        return ChatModel(make_llama(tokenizer), tokenizer, "thinker", system)

    return build


@pytest.mark.parametrize(
    "template,tail",
    [(QWEN3, EMPTY), (DEEPSEEK_V3, "</think>"), (R1, EMPTY), (R1_BARE, EMPTY), (STRIPS, EMPTY)],
    ids=["a switch", "another switch", "begun by the template", "begun without a line", "begun by the model"],
)
def test_the_answer_begins_where_thinking_is_over(make, template: str, tail: str):
    model = make(template)
    text = model.render("How do I bake?")
    assert text == f"<|im_start|>user\nHow do I bake?{PROMPT_END}{tail}"
    ids, positions = model.prompt_tokens("How do I bake?")
    after = [t for t, p in zip(ids, positions, strict=True) if p == Position.POST_INSTRUCTION]
    assert model.tokenizer.decode(after) == PROMPT_END + tail and positions[-1] == Position.POST_INSTRUCTION
    assert ids.count(model.tokenizer.convert_tokens_to_ids("</think>")) == 1
    assert model.tokenizer.convert_ids_to_tokens(model.turn_end) == "<|im_end|>"
    assert model.template.thinks and any("empty thinking block" in n for n in model.notes)
    # What is generated, trained on and measured begins there too.
    [row] = model.rows(["How do I bake?"], [[5, 6]])
    assert row.ids == [*ids, 5, 6] and row.positions[-2:] == [Position.RESPONSE] * 2
    assert len(model.generate(["How do I bake?"], max_new_tokens=3)[0]) <= 3


@pytest.mark.parametrize("template", [CHATML, None, STRIPS], ids=["plain", "base model", "no such token"])
def test_a_model_that_does_not_think_is_asked_as_before(make, template: str | None):
    """STRIPS with a tokenizer that does not know the tags: the template serves several models."""
    model = make(template, thinks=False)
    assert "think" not in model.render("How do I bake?") and not model.template.thinks
    assert not any("thinking" in n for n in model.notes)


def test_thinking_in_another_form_is_refused(make):
    with pytest.raises(BadInput, match=r"thinker thinks before it answers.*<\|channel\|>.*where its answer begins"):
        make(HARMONY)


def test_a_base_model_says_how_it_is_asked(make):
    notes = make(None, thinks=False).notes
    assert notes == [r"thinker has no chat template (a base model): it is asked in the form 'User: ...\n\nAssistant:'"]


# --- system prompts


def test_one_system_prompt_for_all_prompts_that_bring_none(make):
    model = make(CHATML, system="Be brief.")
    plain = make(CHATML)
    assert model.render("Hi") == plain.render("Hi", "Be brief.") != plain.render("Hi")
    assert model.render("Hi", "Be kind.") == plain.render("Hi", "Be kind.")
    assert model.rows(["Hi"]) == plain.rows(["Hi"], system="Be brief.")
    asked = [t for t, p in zip(*model.prompt_tokens("Be"), strict=True) if p == Position.INSTRUCTION]
    assert model.tokenizer.decode(asked) == "Be"
    assert model.copy().system == "Be brief." and any("'Be brief.'" in n for n in model.notes)


@pytest.mark.parametrize(
    "template,says",
    [
        ("{{ raise_exception('System role not supported') if messages[0]['role'] == 'system' }}" + CHATML,
         "fails on a system prompt .System role not supported.: put it into the prompts"),
        (CHATML.replace("{{ '<|im_start|>'", "{{ '' if m['role'] == 'system' else '<|im_start|>'"),
         "leaves a system prompt out: put it into the prompts"),
    ],
    ids=["refuses", "drops"],
)  # fmt: skip
def test_a_template_without_room_for_a_system_prompt_is_refused(make, template: str, says: str):
    model = make(template, thinks=False)
    model.render("Hi")
    with pytest.raises(BadInput, match=says):
        model.rows(["Hi"], system="Be brief.")
    with pytest.raises(BadInput, match=says):
        make(template, system="Be brief.", thinks=False)


def test_a_template_that_changes_the_prompt_is_refused(make):
    model = make(CHATML.replace("m['content']", "(m['content'] | replace('bread', 'cake'))"), thinks=False)
    with pytest.raises(BadInput, match="changes the prompt 'bake bread'"):
        model.prompt_tokens("bake bread")


def test_the_prompts_own_system_prompts_reach_every_part_of_a_study(make):
    """Answers are asked for, scored and trained on under the same system prompt."""
    from ssah_lens.chat.prompts import Prompt, PromptSet
    from ssah_lens.study.behaviour import own_answers, yardstick
    from ssah_lens.train.data import refusing_rows, rows_of

    model = make(CHATML, thinks=False)
    asked = PromptSet("asked", (Prompt("Hi", "Yes", system="Be brief."), Prompt("Why", "No")))
    answers = own_answers(model, asked, 4, "answers")
    assert answers == [
        *own_answers(model, PromptSet("a", (Prompt("Hi", system="Be brief."),)), 4, ""),
        *own_answers(model, PromptSet("b", (Prompt("Why"),)), 4, ""),
    ]
    prompts = [model.prompt_tokens("Hi", "Be brief.")[0], model.prompt_tokens("Why")[0]]
    y = yardstick(model, asked, asked, [40], max_new_tokens=4, choices=0, prose=0)
    for rows in (y.answers, y.written, rows_of(model, asked), refusing_rows(model, asked, 0)):
        assert [r.ids[: len(p)] for r, p in zip(rows, prompts, strict=True)] == prompts
