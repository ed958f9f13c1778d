"""Memory that runs out: a smaller batch, the same results, never a crash.

Here memory runs out by the true exceptions, above a size of batch; and once for good, under a limit of the system's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from ssah_lens.chat.memory import SMALLEST, out_of_memory
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import Prompt, PromptSet
from ssah_lens.direction.chain import _middle
from ssah_lens.direction.choice import Choice
from ssah_lens.direction.decision import Decisions
from ssah_lens.direction.onset import projections
from ssah_lens.errors import BadInput
from ssah_lens.intervene.attribution import attribution, curvature
from ssah_lens.intervene.gradients import gradients_of
from ssah_lens.intervene.hooks import fills
from ssah_lens.intervene.metric import divergence, logit_difference
from ssah_lens.intervene.moments import Moments, collect
from ssah_lens.intervene.sweep import Fill, all_units, sweep
from ssah_lens.measure.refusal import refusal_scores
from ssah_lens.measure.utility import losses, row_log_probs
from ssah_lens.score import mask, score
from ssah_lens.score.base import Calibration
from ssah_lens.study.contexts import unit_contexts
from ssah_lens.study.tuning import task_quality
from ssah_lens.train.loop import TrainSettings, train
from ssah_lens.train.objective import FirstTokens
from ssah_lens.units import Kind

PROMPTS = [f"How do I bake {'a loaf of ' * (i % 4)}bread number {i}?" for i in range(16)]
ERRORS = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
    ),
}


@contextmanager
def memory_for(model: ChatModel, most: int, error: str = "cpu") -> Iterator[list[int]]:
    """Half-way through the model memory runs out when more than `most` positions are run at once; tells how many."""
    ran: list[int] = []

    def check(module, args, named):
        x = args[0] if args else named["hidden_states"]
        ran.append(x.shape[0] * x.shape[1])
        if ran[-1] > most:
            raise ERRORS[error]()

    layers = (model.plain.get_decoder().layers[1], model.bridge.original_model.get_decoder().layers[1])
    inner = [getattr(layer, "original_component", layer) for layer in layers]
    handles = [m.register_forward_pre_hook(check, with_kwargs=True) for m in inner]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()
        model.room.share = 1.0


@pytest.fixture(autouse=True)
def float32_products(monkeypatch: pytest.MonkeyPatch):
    """In bfloat16, which some machines multiply in, another order of sums would show."""
    monkeypatch.setattr("ssah_lens.chat.precision.has_bfloat16", lambda device: False)


@pytest.fixture(scope="module")
def rows(micro: ChatModel):
    answers = [micro.response_tokens("Sure, here is how"), micro.response_tokens("No")]
    return micro.rows(PROMPTS, [answers[i % 2] for i in range(len(PROMPTS))])


@pytest.fixture(scope="module")
def moments(micro: ChatModel, rows) -> Moments:
    return collect(micro, rows)


METRIC = logit_difference([40], [60, 70])


def measured(what: str, model: ChatModel, rows, moments: Moments, other: ChatModel):
    """One measurement as arrays to compare."""
    prompts = [r.prompt for r in rows]
    calibration = lambda **more: Calibration(rows[::2], rows[1::2], rows[1::2], moments, moments, **more)
    per_kind = lambda values: [np.asarray(values[k]) for k in Kind]
    both = lambda s: [*per_kind(s.safety), *per_kind(s.utility)]
    if what == "moments":
        m = collect(model, rows)
        return [m.count.numpy(), *(m.mean[k].numpy() for k in Kind), *(m.m2[k].numpy() for k in Kind)]
    if what == "attribution":
        return per_kind(attribution(model, prompts, METRIC, Fill("mean", moments), None))
    if what == "curvature":
        return per_kind(curvature(model, rows, Fill("mean", moments), seed=3))
    if what == "integrated":
        return per_kind(attribution(model, prompts, METRIC, Fill("mean", moments), 1, steps=2))
    if what == "sweep":
        return [sweep(model, prompts, METRIC, all_units(model), Fill("mean", moments), None).values]
    if what == "divergence":
        metric = divergence(row_log_probs(model, prompts))
        return [sweep(model, prompts, metric, all_units(model, layers=[1]), Fill("zero")).values]
    if what == "contrast":
        return both(score(what)(model, calibration(unaligned=other)))
    if what == "contexts":
        asked = PromptSet("asked", tuple(map(Prompt, PROMPTS)))
        found = unit_contexts(model, [(Kind.MLP, 0, 3), (Kind.HEAD, 1, 2)], {"asked": asked}, 2)
        return [np.array([s.values[s.peak] for c in found for s in c.examples["asked"]])]
    if what == "first tokens":
        return [torch.cat(list(FirstTokens.of(model, rows).start)).numpy()]
    if what == "decisions":
        found = Decisions(model, PROMPTS, Choice((40, 50)))
        return [found.states.numpy(), found.margins]
    return {
        "task quality": lambda: [np.array(task_quality(model, rows))],
        "projections": lambda: [projections(model, rows, 1, torch.ones(16), 4)],
        "between the halves": lambda: [_middle(model, prompts).detach().numpy()],
        "losses": lambda: [losses(model, rows).nll, losses(model, rows).tokens],
        "scores": lambda: [refusal_scores(model, PROMPTS, [40, 50])],
        "log-probabilities": lambda: [row_log_probs(model, prompts).numpy()],
    }[what]()


MEASURED = ["moments", "losses", "scores", "log-probabilities", "contrast", "attribution", "curvature", "integrated",
            "sweep", "divergence", "contexts", "first tokens",
            "decisions", "projections", "between the halves", "task quality"]  # fmt: skip


@pytest.mark.parametrize("what", MEASURED)
def test_results_do_not_depend_on_the_memory_there_is(micro: ChatModel, make_llama, rows, moments, what: str):
    """A batch fails when a part of it has been through already: nothing may count twice."""
    other = ChatModel(make_llama(micro.tokenizer, 1), micro.tokenizer, "other")
    whole = measured(what, micro, rows, moments, other)
    with memory_for(micro, 160) as ran:
        short = measured(what, micro, rows, moments, other)
        assert SMALLEST < micro.room.share < 1
    assert max(ran) > 160 and sum(n > 160 for n in ran) <= 6  # it ran out, and that was learnt from
    for a, b in zip(whole, short, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    "goal",
    [
        mask.Goal(lambda nll: nll),
        mask.Goal(lambda nll: nll, (40, 50)),
        mask.Goal(lambda nll: torch.relu(4.0 - nll)),
        mask.Goal(lambda nll: torch.relu(9 - nll)),
    ],
    ids=["answers", "answers and openings", "lost", "not yet lost"],
)
def test_the_learnt_gates_gradient_in_parts(micro: ChatModel, rows, moments: Moments, goal: mask.Goal):
    """A gradient, not gates after steps of Adam, which enlarges the rounding of small gradients."""
    got = {}
    for share in (1.0, 0.25, 1 / 64):
        logits = {k: torch.linspace(-2, 3, 2 * micro.grid.width(k)).view(2, -1).requires_grad_() for k in Kind}
        micro.room.share = share
        with gradients_of(micro):
            mask._gradient(micro, logits, fills(micro, moments, "mean"), rows[:9], 4, goal)
        got[share] = logits
    micro.room.share = 1.0
    for share in (0.25, 1 / 64):
        for kind in Kind:
            torch.testing.assert_close(got[share][kind].grad, got[1.0][kind].grad, rtol=1e-3, atol=1e-5)


def test_learnt_gates_in_little_memory(micro: ChatModel, rows, moments: Moments):
    with memory_for(micro, 160) as ran:
        found = score("mask")(micro, Calibration(rows[::2], rows[1::2], rows[1::2], moments, moments, steps=2))
        assert max(ran) > 160 and micro.room.share < 1
    assert all(np.isfinite(v[k]).all() for v in (found.safety, found.utility) for k in Kind)


def test_sampled_answers_are_the_same_to_the_token(micro: ChatModel):
    """They are drawn for the batch as it was planned, and as transformers would draw them."""
    whole = micro.generate(PROMPTS, 6, sample_seed=3)
    with memory_for(micro, 160) as ran:
        assert micro.generate(PROMPTS, 6, sample_seed=3) == whole
    assert max(ran) > 160
    [(chosen, batch)] = micro.batches(micro.rows(PROMPTS[:5]), share_prefix=False, overhead=10**6)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        tokens = micro.plain.generate(
            input_ids=batch.ids, attention_mask=batch.mask, do_sample=True, top_k=0, max_new_tokens=6,
            eos_token_id=micro.turn_end, pad_token_id=micro.tokenizer.pad_token_id,
        )[:, batch.ids.shape[1] :].tolist()  # fmt: skip
    theirs = [row[: row.index(micro.turn_end)] if micro.turn_end in row else row for row in tokens]
    ours = micro.generate(PROMPTS[:5], 6, sample_seed=3)
    assert [ours[i] for i in chosen] == theirs


@pytest.mark.parametrize("error", ERRORS)
def test_greedy_answers_are_the_same_to_the_token(micro: ChatModel, error: str):
    seen: dict[int, np.ndarray] = {}

    def tell(chosen: list[int], logits: torch.Tensor) -> None:
        seen.update(zip(chosen, logits.numpy().copy(), strict=True))

    whole = micro.generate(PROMPTS, 6, at_decision=tell)
    before = dict(seen)
    seen.clear()
    with memory_for(micro, 160, error) as ran:
        assert micro.generate(PROMPTS, 6, at_decision=tell) == whole
    assert max(ran) > 160
    assert seen.keys() == before.keys()
    for i, logits in before.items():
        np.testing.assert_allclose(seen[i], logits, atol=1e-4)


def test_training_goes_on_in_smaller_parts(make_llama, make_tokenizer):
    """A gradient that was half there when memory ran out is not counted twice."""
    got = {}
    for most in (10**9, 120):
        tokenizer = make_tokenizer()
        model = ChatModel(make_llama(tokenizer), tokenizer, "trained")
        rows = model.rows(PROMPTS, [model.response_tokens("Sure, here")] * len(PROMPTS))
        with memory_for(model, most) as ran:
            done = train(model, rows, TrainSettings(steps=3, batch_size=8, lr=1e-2, optimizer="sgd"))
        got[most] = done.losses, [p.detach().clone() for p in model.plain.parameters()]
        assert (max(ran) > 120) and (most > 120 or sum(n > most for n in ran) < 4)
    np.testing.assert_allclose(got[120][0], got[10**9][0], rtol=1e-4)
    for a, b in zip(got[120][1], got[10**9][1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)  # Adam would enlarge the rounding of small gradients


def test_one_prompt_that_is_too_long_is_refused(micro: ChatModel):
    with (
        memory_for(micro, 5),
        pytest.raises(BadInput, match=r"one prompt of \d+ tokens does not fit in memory: shorten"),
    ):
        refusal_scores(micro, PROMPTS, [40])
    assert len(refusal_scores(micro, PROMPTS, [40])) == len(PROMPTS)


def test_resampling_is_the_same_in_smaller_batches(micro: ChatModel, rows):
    """What stands for a prompt is another one of all prompts, not of its batch."""
    whole = sweep(micro, rows, METRIC, all_units(micro, layers=[1]), Fill("resample")).values
    micro.room.share = 1 / 8
    again = sweep(micro, rows, METRIC, all_units(micro, layers=[1]), Fill("resample")).values
    with memory_for(micro, 160):
        cut = sweep(micro, rows, METRIC, all_units(micro, layers=[1]), Fill("resample")).values
    for values in (again, cut):
        np.testing.assert_allclose(values, whole, atol=1e-4)


def test_other_errors_are_not_taken_for_it(micro: ChatModel):
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))
    assert out_of_memory(MemoryError()) and out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9"))
    with pytest.raises(RuntimeError, match="shapes"), micro.batches(micro.rows(["Hi"])).room():
        raise RuntimeError("shapes")


LIMITED = """
import resource, sys, json, torch
sys.path[:0] = sys.argv[1:2]
from ssah_lens.chat.model import ChatModel
from ssah_lens.measure.refusal import refusal_scores
from ssah_lens.measure.utility import losses
torch.set_num_threads(1)
model = ChatModel.load(sys.argv[2])
prompts = [f"How do I bake bread number {i}? " + "word " * 100 for i in range(40)]
rows = model.rows(prompts, [model.response_tokens("Sure, here is how you can do that. " * 6)] * 40)
want = losses(model, rows[:2]).nll.tolist()  # what takes memory once is taken now
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]) + int(open("/proc/self/statm").read().split()[0]) * 4096,) * 2)
got = losses(model, rows).nll.tolist()
print(json.dumps({"share": model.room.share, "want": want, "got": got[:2], "n": len(got)}))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs Linux")
def test_under_a_limit_of_the_systems_own(micro: ChatModel, tmp_path: Path):
    """The allocator's own error: an address space that holds a few rows' attention and no more."""
    import json

    micro.plain.save_pretrained(tmp_path)
    micro.tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))

    def limited_to(megabytes: int) -> float:
        got = subprocess.run(
            [sys.executable, "-c", LIMITED, str(Path(__file__).parents[2]), str(tmp_path), str(megabytes * 2**20)],
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "TQDM_DISABLE": "1"},
        )
        assert got.returncode == 0, got.stderr[-2000:]
        found = json.loads(got.stdout)
        assert found["n"] == 40
        np.testing.assert_allclose(found["got"], found["want"], rtol=1e-4)
        return found["share"]

    # How much a pass takes depends on the processor's kernels: the first limit that is too tight counts.
    assert any(limited_to(megabytes) < 1 for megabytes in (44, 36, 28, 22, 17))
