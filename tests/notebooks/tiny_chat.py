"""A tiny chat model that refuses the shipped harmful prompts: the planted model, told which words only they use."""

from __future__ import annotations

import torch
from planted import HARM_HERE, NOISE, SEES_HARM, WIDTH, plant

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import SPLITS, instructions, pairs

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VOCABULARY = 9000
LOUDER = 5
"""Prompts are longer than the planted model was made for: more words share the attention."""


def tiny_chat() -> ChatModel:
    """Says 'Sorry' to harmful prompts and 'Rome' to all others, for a reason that its units carry."""
    harmful = [t for s in SPLITS for t in pairs(s)[0].texts]
    harmless = [t for s in SPLITS for side in (pairs(s)[1], instructions(s)) for t in side.texts]
    model = plant(lambda: _tokenizer(harmful + harmless)).model
    words = lambda texts: {i for t in texts for i in model.tokenizer(t, add_special_tokens=False)["input_ids"]}
    bad = sorted(words(harmful) - words(harmless))
    embed = model.plain.get_input_embeddings().weight
    with torch.no_grad():
        embed[bad, SEES_HARM] = 4
        noise = embed[bad, NOISE]
        room = WIDTH - embed[bad].square().sum(1) + noise.square().sum(1)  # every token keeps the norm of the others
        for block in model.anatomy.blocks:
            block.o.weight[HARM_HERE] *= LOUDER
        embed[bad, NOISE] = noise * (room / noise.square().sum(1)).sqrt()[:, None]
    model.name = "tiny-chat"
    return model


def _tokenizer(texts: list[str]):
    """Whole words of these texts where they fit, bytes for all else."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    out = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False
    )
    out.chat_template = CHATML
    return out
