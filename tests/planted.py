"""A model whose truth is known: a small Llama, weights written by hand, in which named units gate refusal.

A '!' anywhere in the prompt makes it say 'Sorry'. Otherwise a '#' makes it say 'Paris', no '#' 'Rome'. Three heads
find the '!' and carry it to every later token, six neurons above them turn it into the refusal: the safety units. Three
heads and six neurons do the same for the '#': the utility units. All others are busy and do nothing: they read
everything, some of them loudly, and write where nothing reads. The unaligned counterpart is the same model before the
safety units were made: there they are as they were at random, and every weight is a little different, as after any
training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import Prompt, PromptSet
from ssah_lens.units import Kind, UnitSet

HARM, TOPIC = "!", "#"
REFUSE, MARKED, PLAIN = "Sorry", "Paris", "Rome"
SAFETY = (
    *((Kind.HEAD, 0, h) for h in (1, 5)), (Kind.HEAD, 1, 3), *((Kind.MLP, 2, n) for n in (5, 17, 30, 36)),
    *((Kind.MLP, 3, n) for n in (8, 21)),
)  # fmt: skip
UTILITY = (
    *((Kind.HEAD, 0, h) for h in (4, 7)), (Kind.HEAD, 1, 6), *((Kind.MLP, 2, n) for n in (2, 11, 24, 39)),
    *((Kind.MLP, 3, n) for n in (13, 33)),
)  # fmt: skip
WIDTH, D_HEAD, LAYERS, NEURONS = 64, 8, 4, 40
ALWAYS, SEES_HARM, SEES_TOPIC, HARM_HERE, TOPIC_HERE, REFUSING, ANSWERING, DONE = range(WIDTH - 8, WIDTH)
"""Dimensions of the residual stream with a meaning; the others hold noise."""
NOISE = slice(0, WIDTH - 8)
SLOW = 3
"""The head's dimension whose rotation is too slow to matter over a prompt."""
LOGIT = {REFUSE: 11.0, MARKED: 9.0, PLAIN: 7.5}
"""When each is what the model means. Half of the first (mean ablation) is less than the last."""
VERBS = ("bake", "draw", "find", "make", "see", "tell", "write", "count", "read", "buy", "mend", "sell")
THINGS = ("a loaf", "the map", "it", "one of these", "a song for two", "the bread at home", "some", "that request")


@dataclass(frozen=True)
class Planted:
    """The model, its counterpart, and the truth about its units."""

    model: ChatModel
    unaligned: ChatModel
    safety: UnitSet
    utility: UnitSet

    def token(self, word: str) -> int:
        """Id of one of the three answers."""
        return self.model.response_tokens(word, ended=False)[0]


def prompts(harmful: bool, n: int, seed: int = 0) -> PromptSet:
    """Distinct requests, every other one with a '#'; the harmful ones hold a '!' at a random place."""
    rng = np.random.default_rng([seed, harmful])
    every = [f"{verb} {thing}" for verb in VERBS for thing in THINGS]
    out = []
    for i, k in enumerate(rng.choice(len(every), n, replace=False)):
        words = every[k].split()
        for mark in ([TOPIC] if i % 2 else []) + ([HARM] if harmful else []):
            words.insert(int(rng.integers(1, len(words) + 1)), mark)
        out.append(Prompt(" ".join(words), id=str(i)))
    return PromptSet("harmful" if harmful else "harmless", tuple(out))


def plant(make_tokenizer: Callable, seed: int = 0) -> Planted:
    """Builds the pair."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    tokenizer.add_tokens([REFUSE, MARKED, PLAIN])
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=NEURONS,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // D_HEAD,
        num_key_value_heads=WIDTH // D_HEAD,
        max_position_embeddings=512,
        attn_implementation="eager",
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    plain = LlamaForCausalLM(config).float()
    model = ChatModel(plain, tokenizer, "planted")
    with torch.no_grad():
        _busy(model)
        before = copy.deepcopy(plain)
        _wire(model)
        _decide(model)
        grid = model.grid
        return Planted(model, _counterpart(model, before), UnitSet.of(grid, SAFETY), UnitSet.of(grid, UTILITY))


def _busy(model: ChatModel) -> None:
    """Every unit reads everything and writes noise; loudness differs by a factor of ten and more."""
    inner = model.plain.model
    embed = inner.embed_tokens.weight
    embed[:] = 0
    noise = torch.randn(len(embed), WIDTH - 8)
    embed[:, ALWAYS] = 1
    ids = lambda *words: [model.response_tokens(w, ended=False)[0] for w in words]
    embed[ids(HARM), SEES_HARM] = 4
    embed[ids(TOPIC), SEES_TOPIC] = 4
    embed[ids(REFUSE, MARKED, PLAIN), DONE] = 4
    left = WIDTH - embed.square().sum(1, keepdim=True)  # every token has norm 8: the first norm changes nothing
    embed[:, NOISE] = noise * (left / noise.square().sum(1, keepdim=True)).sqrt()
    for block in model.anatomy.blocks:
        for m in block.matrices:
            m.weight.normal_(std=WIDTH**-0.5)
        block.down.weight *= torch.randn(NEURONS).mul(0.8).exp()
        block.o.weight *= torch.randn(WIDTH // D_HEAD).mul(0.8).exp().repeat_interleave(D_HEAD) * 0.5
        for out in (block.down, block.o):
            out.weight[ALWAYS:] = 0
    head = model.plain.lm_head.weight
    head.normal_(std=0.05)
    head[:, ALWAYS:] = 0


def _wire(model: ChatModel) -> None:
    """Gives the named units their inputs and their targets."""
    for units, sees, here, target in (
        (SAFETY, SEES_HARM, HARM_HERE, REFUSING),
        (UTILITY, SEES_TOPIC, TOPIC_HERE, ANSWERING),
    ):
        n_heads = sum(k is Kind.HEAD for k, _, _ in units)
        for kind, layer, i in units:
            block = model.anatomy.blocks[layer]
            if kind is Kind.HEAD:
                rows, first = slice(i * D_HEAD, (i + 1) * D_HEAD), i * D_HEAD
                block.attention.q_proj.weight[rows] = 0
                block.attention.k_proj.weight[rows] = 0
                block.attention.q_proj.weight[first + SLOW, ALWAYS] = 3
                block.attention.k_proj.weight[first + SLOW, sees] = 2
                block.attention.v_proj.weight[first] = 0
                block.attention.v_proj.weight[first, sees] = 1
                block.o.weight[here, first] = 1.5 / n_heads
            else:
                block.mlp.gate_proj.weight[i] = 0
                block.mlp.gate_proj.weight[i, here] = 3
                block.mlp.gate_proj.weight[i, ALWAYS] = -3
                block.mlp.up_proj.weight[i] = 0
                block.mlp.up_proj.weight[i, ALWAYS] = 1
                block.down.weight[target, i] = 1


def _decide(model: ChatModel) -> None:
    """Scales the answers' logits by what reaches the last norm at the decision position."""
    harmful = [p.text for p in prompts(True, 24, 99)]
    topical = [p.text for p in prompts(False, 24, 99) if TOPIC in p.text]
    head = model.plain.lm_head.weight
    for word, texts, dim in ((REFUSE, harmful, REFUSING), (MARKED, topical, ANSWERING), (PLAIN, topical, ALWAYS)):
        final: list[torch.Tensor] = []
        handle = model.plain.model.norm.register_forward_hook(lambda m, args, out, f=final: f.append(out[:, -1]))
        for text in texts:
            model.plain(torch.tensor([model.rows([text])[0].ids]))
        handle.remove()
        token = model.response_tokens(word, ended=False)[0]
        head[token] = 0
        head[token, dim] = LOGIT[word] / torch.cat(final)[:, dim].mean()
    head[model.turn_end] = 0
    head[model.turn_end, DONE] = 30


def _counterpart(model: ChatModel, before: torch.nn.Module) -> ChatModel:
    out = ChatModel(copy.deepcopy(model.plain), model.tokenizer, "planted, unaligned")
    for kind, layer, i in SAFETY:
        block, old = out.anatomy.blocks[layer], before.model.layers[layer]
        if kind is Kind.HEAD:
            rows = slice(i * D_HEAD, (i + 1) * D_HEAD)
            for name in ("q_proj", "k_proj", "v_proj"):
                getattr(block.attention, name).weight[rows] = getattr(old.self_attn, name).weight[rows]
            block.o.weight[:, rows] = old.self_attn.o_proj.weight[:, rows]
        else:
            block.mlp.gate_proj.weight[i] = old.mlp.gate_proj.weight[i]
            block.mlp.up_proj.weight[i] = old.mlp.up_proj.weight[i]
            block.down.weight[:, i] = old.mlp.down_proj.weight[:, i]
    for p in out.anatomy.parameters:
        p.add_(torch.randn_like(p) * 0.02 * p.std())
    for block in out.anatomy.blocks:  # the noise of training does not reach what the answers are read from
        for m in (block.down, block.o):
            m.weight[REFUSING:] = torch.where(m.weight[REFUSING:].abs() < 0.1, 0.0, m.weight[REFUSING:])
    return out
