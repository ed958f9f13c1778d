"""Peak memory of every measurement at 100 and at 2,000 prompts: it must not grow with their number.

usage: python benchmarks/memory.py [SMALL LARGE [NAME ...]]

A micro Llama with a vocabulary of 50,000, so that any table of logits per prompt would show (2,000 prompts: 400 MB).
Both numbers of prompts run in one process: the peak after the small one is the base, the large one may not raise it.
Prompts are so long that 100 of them fill a batch. NAMEs choose measurements; all by default.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import Prompt, PromptSet
from ssah_lens.intervene.moments import Moments, collect
from ssah_lens.measure.refusal import refusal_scores, refusals
from ssah_lens.measure.utility import losses
from ssah_lens.progress import quiet
from ssah_lens.score import score
from ssah_lens.score.base import Calibration
from ssah_lens.study.behaviour import behave, yardstick

VOCABULARY = 50_000
PADDING = "so that it rises well and its crust turns out brown"
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def micro() -> ChatModel:
    """Two layers of random weights, and a byte-level tokenizer."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    inner.train_from_iterator(
        ["How do I bake a loaf of bread?"],
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=special[1], pad_token=special[1])
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    return ChatModel(LlamaForCausalLM(config).float(), tokenizer, "micro")


def measurements(model: ChatModel, n: int) -> dict[str, Callable[[], object]]:
    """What is run on n prompts, by name."""
    prompts = PromptSet(
        "prompts", tuple(Prompt(f"Of {n} loaves, how do I bake loaf {i} {PADDING}?", "Like this.") for i in range(n))
    )
    answer = model.response_tokens("Like this.")
    rows = model.rows(prompts.texts, [answer] * n)
    found: dict[str, Moments] = {}

    def calibration() -> Calibration:
        return Calibration(rows, rows[:8], rows, found["m"], found["m"], unaligned=model, refusal_tokens=(40, 50))

    def scored(name: str) -> object:
        return score(name)(model, calibration())

    return {
        "generating and judging": lambda: refusals(model, prompts, max_new_tokens=2),
        "refusal scores": lambda: refusal_scores(model, prompts, [40, 50]),
        "loss of answers": lambda: losses(model, rows),
        "behaviour with KL from a reference": lambda: behave(
            model, yardstick(model, prompts[:8], prompts, [40], max_new_tokens=2, choices=0, prose=0), choices=False
        ),
        "activation moments": lambda: found.update(m=collect(model, rows)),
        **{f"score {name}": partial(scored, name) for name in ("wifv", "wanda", "contrast", "attribution", "snip")},
    }  # fmt: skip


def peak() -> float:
    """MB of resident memory, the most so far."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main(small: int, large: int, *names: str) -> None:
    model = micro()
    table: dict[str, list[str]] = {}
    with quiet():
        for n in (small, large):
            for name, run in measurements(model, n).items():
                if names and name not in names:
                    continue
                started = time.perf_counter()
                run()
                table.setdefault(name, []).extend([f"{time.perf_counter() - started:.1f}", f"{peak():.0f}"])
    print(f"| after | s, {small} prompts | peak MB | s, {large} prompts | peak MB |\n|---|---|---|---|---|")
    for name, cells in table.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(*(map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (100, 2000)), *sys.argv[3:])
