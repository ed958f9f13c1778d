"""Wrong uses from a notebook: each raises BadInput with one line that says what is wrong, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ssah_lens as sl
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import Prompt, PromptSet, instructions, shipped, token_aligned
from ssah_lens.chat.save import save_model
from ssah_lens.errors import BadInput
from ssah_lens.intervene.metric import Metric, logit_difference, refusal_log_odds
from ssah_lens.intervene.patching import activation_patching
from ssah_lens.intervene.sites import Site, parse_site
from ssah_lens.intervene.sweep import Edits, Fill, sweep
from ssah_lens.measure.judges import judge
from ssah_lens.measure.refusal import refusal_scores
from ssah_lens.score import score
from ssah_lens.score.roles import Sizes
from ssah_lens.stats import mean, rate
from ssah_lens.train.data import check_rows, mixed_in, rows_of
from ssah_lens.train.freeze import FrozenSlices, layer_slices, owned_slices
from ssah_lens.train.loop import TrainSettings, train
from ssah_lens.train.methods import Method, tune
from ssah_lens.units import Kind, Role, UnitGrid, UnitSet, parse_roles

GRID = UnitGrid(3, 10, 2, 30, 60, 2000)
NONE = PromptSet("none", ())
TWO = PromptSet("two", (Prompt("How do I bake bread?", "Sure.", "1"), Prompt("Draw a map", "Here.", "2")))
LONG = "bread " * 600
NUL = "a\0b"


def everything(model: ChatModel) -> UnitSet:
    return UnitSet(model.grid, {k: np.ones((model.grid.n_layers, model.grid.width(k)), bool) for k in Kind})


def rows(model: ChatModel) -> list:
    return rows_of(model, TWO)


def inside(context: Any) -> None:
    with context:
        pass


METRIC = logit_difference([1], [2])
CALLS: dict[str, tuple[Callable[[ChatModel], Any], str]] = {
    # models
    "no such model": (lambda m: sl.ChatModel.load("nobody"), "no model 'nobody'"),
    "a name with a NUL": (lambda m: sl.ChatModel.load(NUL), "no model"),
    "no such number format": (lambda m: sl.ChatModel.load("nobody", dtype="int8"), "allowed are float32"),
    "one text for a list of prompts": (lambda m: m.generate("How do I bake bread?"), "give ['How do I bake bread?']"),
    "one text to be judged": (lambda m: sl.refusals(m, "How do I bake bread?"), "this is one text"),
    "a prompt beyond the context": (lambda m: m.generate([LONG]), "more than the context of micro-llama holds (512)"),
    "no room for a response": (lambda m: m.generate(["hello"], 510), "a response of up to 510"),
    "logits beyond the context": (lambda m: list(m.batches(m.rows([LONG]))), "more than the context"),
    "positions of nothing": (lambda m: m.positions_of(3), "are known only inside"),
    "a folder that is taken": (lambda m: save_model(m, Path(__file__)), "cannot save the model"),
    # prompts
    "no prompts": (lambda m: sl.refusals(m, NONE).rate(), "no samples"),
    "no such split": (lambda m: sl.pairs("dev"), "no split 'dev': allowed are train, validation, test"),
    "no such style": (lambda m: instructions("train", "long"), "no style 'long'"),
    "no such shipped data": (lambda m: shipped("../secret"), "no shipped data '../secret'"),
    "no such file": (lambda m: sl.read_prompts("none.txt"), "no prompt file 'none.txt'"),
    "a file name with a NUL": (lambda m: sl.read_prompts(f"{NUL}.txt"), "no prompt file"),
    "a set name with a NUL": (lambda m: sl.prompt_set(NUL), "no prompt file or set"),
    "no such field": (lambda m: TWO.where(colour="red"), "prompts have no 'colour'"),
    "no such value": (lambda m: TWO.where(category="fraud"), "two has no category 'fraud'"),
    "no such category": (lambda m: TWO.of_category("fraud"), "has no category 'fraud'"),
    "a split of half": (lambda m: TWO.split([0.2, 0.3], 0), "positive numbers that add up to 1"),
    "a split of NaN": (lambda m: TWO.split([float("nan"), 1.0], 0), "positive numbers that add up to 1"),
    "a sample of fewer than none": (lambda m: TWO.sample(-1, 0), "allowed is 0 or more"),
    "pairs without twins": (lambda m: TWO.paired(TWO[:1]), "has no twin"),
    "sides of two lengths": (lambda m: token_aligned(m.tokenizer, TWO, TWO[:1]), "two sides of one length"),
    # measuring
    "no such judge": (lambda m: judge("me"), "no judge 'me'"),
    "no refusal tokens": (lambda m: refusal_scores(m, TWO, []), "at least one refusing token"),
    "a refusal token beyond the vocabulary": (lambda m: refusal_scores(m, TWO, [10**6]), "no token 1000000"),
    "an estimate of nothing": (lambda m: mean([]), "no samples"),
    "a rate of nothing": (lambda m: rate([]), "no samples"),
    # units
    "a mask of another shape": (lambda m: UnitSet(m.grid, UnitSet.empty(GRID).masks), "the model has"),
    "sets of two shapes": (lambda m: everything(m) | UnitSet.empty(GRID), "models of different shape"),
    "a unit outside": (lambda m: UnitSet.of(m.grid, [(Kind.MLP, 0, 99)]), "no mlp unit 99 in layer 0"),
    "a role that is none": (lambda m: parse_roles("SCU,boss"), "no role 'BOSS'"),
    "a share above one": (lambda m: Sizes(1.5, 0.1, 0.1), "allowed is 0 to 1"),
    "units of another model": (lambda m: inside(sl.ablated(m, UnitSet.empty(GRID), "zero")), "of another shape"),
    "a mode that is none": (lambda m: inside(sl.ablated(m, everything(m), "smash")), "no ablation mode 'smash'"),
    "means that are missing": (lambda m: inside(sl.ablated(m, everything(m))), "needs activation moments"),
    "units of another model, to freeze": (
        lambda m: owned_slices(m.anatomy, UnitSet.empty(GRID)), "a model of another shape",
    ),
    "a units file that is none": (lambda m: sl.UnitTable.load(Path(NUL)), "not a whole units file"),
    # interventions
    "no such score": (lambda m: score("luck"), "no score 'luck'"),
    "no such site": (lambda m: parse_site("norm"), "allowed are resid, attn, mlp, head, neuron"),
    "no refusing token": (lambda m: refusal_log_odds([]), "at least one refusing token"),
    "only shared tokens": (lambda m: logit_difference([1], [1]), "at least one fulfilling token"),
    "pairs of unequal length": (lambda m: sl.patch(m, "a b c", "a"), "not token-aligned"),
    "pairs of unequal number": (lambda m: sl.patch(m, ["a", "b"], ["a"]), "2 clean and 1 corrupted"),
    "pairs of the same": (lambda m: sl.patch(m, "a b", "a b"), "the same tokens"),
    "no pairs": (lambda m: sl.patch(m, [], []), "0 clean and 0 corrupted"),
    "a layer outside": (lambda m: sl.patch(m, "bake it", "make it", layers=[7]), "no layer 7: the model has"),
    "a site outside": (lambda m: sl.patch(m, "a b", "a c", "norm"), "no site 'norm'"),
    "a pair that is not aligned": (
        lambda m: activation_patching(m, ["a b c"], ["a"], METRIC, Site.RESID), "not token-aligned",
    ),
    "a sweep of nothing": (lambda m: sweep(m, [], METRIC, [], Fill("zero")), "at least one prompt"),
    "a sweep outside": (
        lambda m: sweep(m, m.rows(["a"]), METRIC, [Edits(Site.NEURON, 0, np.array([99]))], Fill("zero")),
        "no neuron 99 in layer 0",
    ),
    "a metric that is not finite": (
        lambda m: sweep(
            m, m.rows(["a"]), Metric("0 / 0", None, lambda logits: logits[..., 0] * float("nan")),
            [Edits(Site.NEURON, 0, np.array([0]))], Fill("zero"),
        ),
        "'0 / 0' is not finite",
    ),
    "an engine that is none": (
        lambda m: sweep(m, m.rows(["a"]), METRIC, [Edits(Site.NEURON, 0, np.array([0]))], Fill("zero"), engine="x"),
        "no engine 'x'",
    ),
    "a view of a unit outside": (lambda m: sl.neuron_view(m, ["a"], [("mlp", 0, 99)]), "no mlp unit 99"),
    "a view of a kind that is none": (lambda m: sl.unit_contexts(m, [("brain", 0, 0)]), "no kind of unit"),
    "a view of nothing": (lambda m: sl.unit_contexts(m, []), "no units were given"),
    # training
    "no answers": (lambda m: check_rows(m, m.rows(["a"])), "an answer in each"),
    "no rows": (lambda m: train(m, [], TrainSettings(1)), "at least one example"),
    "an answer beyond the context": (
        lambda m: check_rows(m, rows_of(m, PromptSet("one", (Prompt("a", LONG),)))), "row 1 has",
    ),
    "no steps": (lambda m: TrainSettings(steps=0), "0 steps of 8 examples"),
    "no examples in a step": (lambda m: TrainSettings(steps=1, batch_size=0), "1 steps of 0 examples"),
    "a rate of NaN": (lambda m: TrainSettings(steps=1, lr=float("nan")), "the learning rate is nan"),
    "an optimizer that is none": (
        lambda m: train(m, rows(m), TrainSettings(1, optimizer="adam")), "allowed are adamw, sgd",
    ),
    "a policy that is none": (lambda m: train(m, rows(m), TrainSettings(1, policy="some")), "no policy 'some'"),
    "a method that is none": (lambda m: tune(m, rows(m), TrainSettings(1), Method("magic")), "no method 'magic'"),
    "everything frozen": (
        lambda m: train(m, rows(m), TrainSettings(1), FrozenSlices(owned_slices(m.anatomy, everything(m)))),
        "every parameter is frozen",
    ),
    "layers outside": (lambda m: layer_slices(m.anatomy, range(1, 9)), "layers 1-8 are not in the model"),
    "a mixture of nothing": (lambda m: mixed_in(m, rows(m), 0.0, 0), "allowed is above 0 and at most 1"),
    "a mixture of NaN": (lambda m: mixed_in(m, rows(m), float("nan"), 0), "allowed is above 0 and at most 1"),
    # studies
    "an unknown field": (lambda m: sl.study_config(sed=1), "configuration: sed"),
    "a stage that is none": (lambda m: sl.run_study(sl.study_config(), Path("nowhere"), ["dance"]), "no stage 'dance'"),
    "no stages": (lambda m: sl.run_study(sl.study_config(), Path("nowhere"), []), "allowed are align"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_says_what_is_wrong(name: str, micro: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    call, says = CALLS[name]
    monkeypatch.chdir(tmp_path)
    before = {n: p.clone() for n, p in micro.plain.named_parameters()}
    with pytest.raises(BadInput) as e:
        call(micro)
    assert says in str(e.value) and "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []
    assert not micro.plain.training
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in micro.plain.named_parameters())


def test_a_tokenizer_of_another_model(micro: ChatModel, make_tokenizer: Callable):
    """Ids beyond the embeddings would be read from elsewhere, or fail deep inside."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["bread"])
    other = ChatModel(micro.plain, tokenizer, "mixed up")
    assert len(other.generate(["some cake"], 2)) == 1
    with pytest.raises(BadInput, match="another model's tokenizer"):
        other.generate(["some bread"], 2)


def test_learnt_positions_end_where_the_context_ends(make_family: Callable):
    """GPT-2 has no position 512: without the check it fails with an index error."""
    model = make_family("gpt2")
    room = 512 - len(model.rows(["hello"])[0].ids)
    assert len(model.generate(["hello"], room)) == 1
    with pytest.raises(BadInput, match="lower --max-new-tokens"):
        model.generate(["hello"], room + 1)


def test_a_template_that_refuses_system_prompts_says_so(micro: ChatModel, make_tokenizer: Callable):
    """As Gemma's does."""
    no_system = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer = make_tokenizer(no_system + make_tokenizer().chat_template)
    model = ChatModel(micro.plain, tokenizer, "strict")
    assert model.render("hello")
    with pytest.raises(BadInput, match="the chat template of strict .*System role not supported"):
        model.render("hello", "be brief")
    with pytest.raises(BadInput, match="System role not supported"):
        sl.refusals(model, PromptSet("one", (replace(TWO[0], system="be brief"),)))


def test_weights_whose_sum_overflows_are_not_broken(micro_copy: ChatModel, tmp_path: Path):
    """Only NaN and infinity are refused; the quick look at the sum alone would call these infinite."""
    with torch.no_grad():
        micro_copy.plain.lm_head.weight.fill_(3e38)
    save_model(micro_copy, tmp_path / "large")
    assert sl.ChatModel.load(str(tmp_path / "large")).grid == micro_copy.grid


def test_roles_name_units_of_this_model(micro: ChatModel):
    assert len(everything(micro)) == micro.grid.n_units == 32 and Role.SCU in Role
