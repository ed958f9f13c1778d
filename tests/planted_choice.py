"""Planted models: micro Llamas whose choice is written into their weights, so that the truth is known.

Both read marks in the prompt (single letters) through one attention layer that averages over all earlier tokens, and
write what they read along known directions of the residual stream at the tokens after the instruction. Nothing else
writes anything, so the planted directions are the only ones that can carry the choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch

from ssah_lens.chat.model import ChatModel

D_MODEL, D_HEAD = 32, 8
REFUSAL, ANSWER = "Sorry", "here"
WORDS = ["bread", "home", "user", "how", "the", "and", "can", "do"]


@dataclass(frozen=True)
class Planted:
    """A model and its truth.

    Attributes:
        model: the model.
        directions: orthonormal rows that carry the choice, [n, d_model].
        tokens: its refusal-opening token.
        harmful, harmless: makes n prompts that it refuses or answers.
    """

    model: ChatModel
    directions: torch.Tensor
    tokens: tuple[int, ...]
    harmful: Callable[[int, int], list[str]]
    harmless: Callable[[int, int], list[str]]


def prompt(rng: np.random.Generator, *marks: str) -> str:
    """Six ordinary words with the marks among them; every prompt is different."""
    words = list(rng.choice(WORDS, 6)) + list(marks)
    return " ".join(rng.permutation(words))


@pytest.fixture(scope="session")
def blank(make_tokenizer: Callable) -> Callable[[int], ChatModel]:
    """A Llama in which no block writes anything; embeddings are random in the last `D_MODEL - free` channels."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(free: int) -> ChatModel:
        tokenizer = make_tokenizer()
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=D_MODEL,
            intermediate_size=8,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            attn_implementation="eager",
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model = ChatModel(LlamaForCausalLM(config).float(), tokenizer, "planted")
        with torch.no_grad():
            for block in model.anatomy.blocks:
                for module in block.matrices:
                    module.weight.zero_()
            embedding = model.plain.get_input_embeddings().weight
            embedding.normal_()
            embedding[:, :free] = 0
            model.plain.get_output_embeddings().weight.zero_()
        return model

    return make


def rotation(seed: int) -> torch.Tensor:
    """A random orthogonal matrix, so that no planted direction is a coordinate axis."""
    drawn = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(seed)))
    return drawn.Q


def rotate(model: ChatModel, q: torch.Tensor) -> None:
    """Turns the residual stream by q (norm weights are 1, so RMSNorm turns with it)."""
    with torch.no_grad():
        for block in model.anatomy.blocks:
            reading, writing = block.matrices[:-2], (block.o, block.down)
            for module in reading:
                module.weight.copy_(module.weight @ q.T)
            for module in writing:
                module.weight.copy_(q @ module.weight)
        for e in (model.plain.get_input_embeddings(), model.plain.get_output_embeddings()):
            e.weight.copy_(e.weight @ q.T)


def read_marks(model: ChatModel, marks: dict[str, tuple[int, float]], n: int) -> None:
    """Block 0 averages channel i (0 <= i < n) of all tokens so far and writes it, enlarged, into channel n + i."""
    with torch.no_grad():
        embedding = model.plain.get_input_embeddings().weight
        for text, (channel, value) in marks.items():
            for spelled in (text, " " + text):
                (token,) = model.tokenizer(spelled, add_special_tokens=False)["input_ids"][-1:]
                embedding[token, channel] = value
        block = model.anatomy.blocks[0]
        for i in range(n):
            block.attention.v_proj.weight[i, i] = 1.0
            block.o.weight[n + i, i] = 40.0


def speak(model: ChatModel, choose: int, free: int) -> tuple[int, ...]:
    """Channel `choose` decides between one word that refuses and one that answers; each word then ends its turn."""
    words = [model.response_tokens(text) for text in (REFUSAL, ANSWER)]
    steps = [(a, b) for word in words for a, b in pairwise(word)]
    with torch.no_grad():
        embedding = model.plain.get_input_embeddings().weight
        head = model.plain.get_output_embeddings().weight
        # A channel a step. The embedding is loud, not the unembedding: a random move of the state at the decision
        # position would otherwise speak some bigram louder than the choice, and count as an answer.
        for at, (token, following) in enumerate(steps):
            embedding[token] = 0
            embedding[token, free + at] = 40.0
            head[following, free + at] += 2.0
        head[words[0][0], choose] = 8.0
        head[words[1][0], choose] = -8.0
        assert not {w[0] for w in words} & {t for w in words for t in w[1:]}
    return (words[0][0],)


@pytest.fixture(scope="session")
def one_direction(blank: Callable) -> Planted:
    """Refuses when the prompt holds 'X' and answers when it holds 'Q': along one direction, from block 1 on."""
    n_steps = 12
    model = blank(2 + n_steps)
    read_marks(model, {"X": (0, 4.0), "Q": (0, -4.0)}, 1)
    tokens = speak(model, 1, 2)
    q = rotation(7)
    rotate(model, q)
    mark = lambda letter: lambda n, seed: [prompt(np.random.default_rng([seed, i]), letter) for i in range(n)]
    return Planted(model, q[:, 1][None], tokens, mark("X"), mark("Q"))


@pytest.fixture(scope="session")
def two_directions(blank: Callable) -> Planted:
    """Refuses when two marks agree (X with Y, or Q with Z): the product of two directions, made by block 1's MLP."""
    n_steps = 12
    model = blank(5 + n_steps)
    read_marks(model, {"X": (0, 4.0), "Q": (0, -4.0), "Y": (1, 4.0), "Z": (1, -4.0)}, 2)
    mlp = model.anatomy.blocks[1].mlp
    with torch.no_grad():  # silu(a) b + silu(-a) (-b) = a b for large a
        for neuron, sign in enumerate((1.0, -1.0)):
            mlp.gate_proj.weight[neuron, 2] = 30 * sign
            mlp.up_proj.weight[neuron, 3] = sign
            mlp.down_proj.weight[4, neuron] = 0.05
    tokens = speak(model, 4, 5)
    q = rotation(11)
    rotate(model, q)

    def mark(which: Callable[[int], int], *either: tuple[str, str]) -> Callable[[int, int], list[str]]:
        return lambda n, seed: [prompt(np.random.default_rng([seed, i]), *either[which(i) % 2]) for i in range(n)]

    # Half of the pairs (row i of both sides) differ in the first mark, the other half in the second.
    return Planted(
        model,
        q[:, 2:4].T.contiguous(),
        tokens,
        mark(lambda i: i, ("X", "Y"), ("Q", "Z")),
        mark(lambda i: i + i // 2, ("X", "Z"), ("Q", "Y")),
    )
