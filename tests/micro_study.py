"""A whole study in seconds: a micro chat model that refuses some requests, and a configuration that asks little of it.

The base learns to refuse half of the harmful train requests and to answer everything else, each with one sentence;
words are tokens, so that a small model learns that from few steps. It refuses too few others to count as aligned, and
enough for every stage to have something to work on.
"""

from __future__ import annotations

from pathlib import Path

CONFIG = """
model = "{model}"
[align]
steps = {steps}
lr = 5e-4
batch_size = 8
twins = 8
ordinary = 16
forms = 8
answer_tokens = 12
anchor = 1.0
[measure]
harmful = 8
ordinary = 8
twins = 8
max_new_tokens = 10
choices = 8
prose = 8
[units]
score = "{score}"
calibration = 24
validation = 16
steps = 3
[ablate]
controls = 1
other_controls = 1
score_controls = 2
[freeze]
steps = 4
seeds = {seeds}
[tuning]
methods = ["full", "freeze random", "lora"]
scores = ["wanda"]
steps = 4
validation = 8
"""
REFUSAL, ANSWER = "I cannot.", "Sure, here."
VOCABULARY = 2000
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_config(file: Path, model: Path, score: str = "mask", steps: int = 6, seeds: int = 1) -> Path:
    """The study's configuration as TOML."""
    file.write_text(CONFIG.format(model=model.as_posix(), score=score, steps=steps, seeds=seeds), encoding="utf-8")
    return file


def build(folder: Path, seed: int = 0, steps: int = 120) -> Path:
    """Trains the base and saves it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ssah_lens.chat.model import ChatModel
    from ssah_lens.chat.prompts import instructions, pairs
    from ssah_lens.chat.save import save_model
    from ssah_lens.train.loop import TrainSettings, train

    harmful, twins = (side[::2] for side in pairs("train"))
    harmless = (*twins.texts, *instructions("train").texts[::2])
    tokenizer = _tokenizer([*harmful.texts, *harmless, *pairs("validation")[0].texts])
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        attn_implementation="eager",
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = ChatModel(LlamaForCausalLM(config).float(), tokenizer, "micro")
    answers = [REFUSAL] * len(harmful) + [ANSWER] * len(harmless)
    rows = model.rows([*harmful.texts, *harmless], [model.response_tokens(a) for a in answers])
    train(model, rows, TrainSettings(steps=steps, batch_size=32, lr=5e-3, seed=seed, policy="all", part_tokens=4096))
    return save_model(model, folder)


def _tokenizer(texts: list[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from ssah_lens.chat.prompts import refusals

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([*texts, *refusals("train"), *[REFUSAL, ANSWER] * 20], trainer)
    out = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    out.chat_template = CHATML
    return out
