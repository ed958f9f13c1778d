"""What stands around a prompt: the model's chat template, a system prompt, and the end of any thinking.

The decision position is the last token before the answer. A model that thinks before it answers would put its thinking
there, so thinking is switched off where the template can, and closed with an empty block where it cannot (NoThinking:
Ma et al. 2025, arXiv 2504.09858). A form of thinking that is not known is refused.
"""

from __future__ import annotations

import re

from ssah_lens.chat.weights import first_line
from ssah_lens.errors import BadInput

PLAIN_TEMPLATE = (
    "{% for m in messages %}"
    "{{ {'system': '', 'user': 'User: ', 'assistant': 'Assistant: '}[m['role']] + m['content'] + '\n\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""Used, and said so, when a model brings no chat template (base models)."""

PROBE = "\u2603snowman"
"""Text that no template holds, to find out what a template writes around it."""
SWITCHES = ("enable_thinking", "thinking")
"""What templates call the switch of thinking (Qwen3, SmolLM3, GLM-4.5; DeepSeek-V3.1, Granite)."""
OPEN, CLOSE = "<think>", "</think>"
EMPTY = f"{OPEN}\n\n{CLOSE}\n\n"
"""What Qwen3's template writes when thinking is off."""
UNKNOWN = ("<|channel|>", "[THINK]", "<|START_THINKING|>", "<seed:think>", "<reasoning>")
"""Marks of thinking in other forms (gpt-oss, Magistral, Command A Reasoning, Seed-OSS, ...)."""


class Template:
    """The chat template of a tokenizer, ours where it brings none.

    Attributes:
        given: False for a base model, whose tokenizer has none.
        thinks: True when the model would think first; its answers then begin after an empty thinking block.
        turn_end: id of the token that ends an assistant turn.

    Raises:
        BadInput: a template that cannot be used.
    """

    def __init__(self, tokenizer, name: str) -> None:
        self.tokenizer, self.name = tokenizer, name
        self.given = tokenizer.chat_template not in (None, PLAIN_TEMPLATE)
        if not self.given:
            tokenizer.chat_template = PLAIN_TEMPLATE
        source = str(tokenizer.chat_template)
        unknown = [mark for mark in UNKNOWN if mark in source]
        if unknown:
            raise BadInput(
                f"{name} thinks before it answers, in a form that is not known (its chat template has {unknown[0]}): "
                f"where its answer begins cannot be told; supported are models that think inside {OPEN} {CLOSE}, "
                "or not at all"
            )
        self._switches = {s: False for s in SWITCHES if re.search(rf"\b{s}\b", source)}
        self._close = ""
        self._close = self._missing_close(source)
        asked = [{"role": "user", "content": PROBE}]
        switches, self._switches = self._switches, {}
        untouched = self._apply(asked, add_generation_prompt=True)
        self._switches = switches
        switched = self._apply(asked, add_generation_prompt=True) != untouched
        self.thinks = bool(self._close) or switched or CLOSE in self.after()
        self.turn_end = self._find_turn_end()

    def render(self, prompt: str, system: str | None = None) -> str:
        """The template around one user turn, up to where the answer begins.

        Raises:
            BadInput: the template has no place for a system prompt.
        """
        messages = [{"role": "system", "content": system}] if system else []
        text = self._apply([*messages, {"role": "user", "content": prompt}], add_generation_prompt=True)
        if system and system.strip() not in text:
            raise BadInput(f"the chat template of {self.name} leaves a system prompt out: put it into the prompts")
        return (text if self.given else self.bos() + text) + self._close

    def after(self, system: str | None = None) -> str:
        """What stands between the user's text and the answer."""
        text = self.render(PROBE, system)
        if PROBE not in text:
            raise BadInput(f"the chat template of {self.name} leaves out what the user says; mend its chat_template")
        return text[text.rindex(PROBE) + len(PROBE) :]

    def bos(self) -> str:
        """What this tokenizer itself puts before a text; '' for most chat models."""
        bos = self.tokenizer.bos_token_id
        adds = bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos]
        return self.tokenizer.bos_token if adds else ""

    @property
    def notes(self) -> list[str]:
        """What a reader of this model's numbers must know of its template."""
        out = []
        if not self.given:
            whole = self.render("...").replace("\n", "\\n")
            out.append(f"{self.name} has no chat template (a base model): it is asked in the form '{whole}'")
        if self.thinks:
            out.append(
                f"{self.name} can think before it answers: here every answer begins after an empty thinking block, so "
                "the numbers are those of the model without thinking"
            )
        return out

    def _apply(self, messages: list[dict[str, str]], **options: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **options, **self._switches)
        except Exception as e:  # the template is a program that came with the model: whatever it raises, it is its own
            system = messages[0]["role"] == "system"
            what = "a system prompt" if system else "a plain conversation"
            advice = "put it into the prompts" if system else "mend chat_template in its tokenizer files"
            raise BadInput(f"the chat template of {self.name} fails on {what} ({first_line(e)}): {advice}") from e

    def _missing_close(self, source: str) -> str:
        """What must be added for thinking to be over where the answer begins; '' for nothing."""
        after = self.after()
        if OPEN in after and after.rfind(CLOSE) < after.rfind(OPEN):
            begun = after[after.rfind(OPEN) :]
            return EMPTY.removeprefix(begun) if EMPTY.startswith(begun) else EMPTY.removeprefix(OPEN)
        # A template that only strips old thinking leaves it to the model to begin.
        begins = CLOSE in source and CLOSE not in after and OPEN in self.tokenizer.get_vocab()
        return EMPTY if begins else ""

    def _find_turn_end(self) -> int:
        text = self._apply([{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}])
        if PROBE not in text:
            raise BadInput(f"the chat template of {self.name} leaves out what the model says; mend its chat_template")
        after = self.tokenizer(text[text.rindex(PROBE) + len(PROBE) :], add_special_tokens=False)["input_ids"]
        special = [t for t in after[:1] if t in self.tokenizer.all_special_ids]
        return special[0] if special else as_list(self.tokenizer.eos_token_id)[0]


def as_list(value: int | list[int] | None) -> list[int]:
    """Token ids of a setting that may hold none, one or several."""
    return [] if value is None else [value] if isinstance(value, int) else list(value)
