"""The exact sweep against the plain hook loop, on every architecture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from asked import METRIC, PROMPTS
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb, eager_attention_forward

from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.attribution import attribution
from ssah_lens.intervene.metric import Metric, logit_difference, refusal_log_odds
from ssah_lens.intervene.moments import collect
from ssah_lens.intervene.room import Room, free_bytes, room
from ssah_lens.intervene.runners import Replayed
from ssah_lens.intervene.sites import Site
from ssah_lens.intervene.sweep import Edits, Fill, _Bar, all_units, sweep
from ssah_lens.progress import bars_told, quiet
from ssah_lens.units import Kind


def rows(model: ChatModel):
    return model.rows(PROMPTS)


def both(model: ChatModel, edits, fill, **options):
    return [sweep(model, rows(model), METRIC, edits, fill, engine=e, **options) for e in ("replay", "loop")]


def every_site() -> list[Edits]:
    return [
        Edits(site, layer, np.array(units))
        for layer in (0, 1)
        for site, units in (
            (Site.RESID, [0]),
            (Site.ATTN, [0]),
            (Site.MLP, [0]),
            (Site.HEAD, [0, 3, 1]),
            (Site.NEURON, [11, 0, 5]),
        )
    ]


@pytest.mark.parametrize("last", [1, 5, None])
def test_replay_is_the_hook_loop_on_every_architecture(any_family: ChatModel, last: int | None):
    """Zero, resample, patch and mean at every site; mean at all units."""
    source = any_family.rows([p[::-1] for p in PROMPTS])
    if last is None:  # as long as the longest row
        source = any_family.rows([p[::-1] + " or not, or so, or else, or nothing of this" for p in PROMPTS])
    for fill in (Fill("zero"), Fill("resample"), Fill("patch", source=source)):
        fast, slow = both(any_family, every_site(), fill, last=last)
        np.testing.assert_allclose(fast.clean, slow.clean, atol=1e-4)
        np.testing.assert_allclose(fast.values, slow.values, atol=1e-4)
        if fill.mode == "zero":
            assert np.abs(fast.effect).max(1).min() > 1e-6  # every edit does something
    moments = collect(any_family, rows(any_family), sites=["resid", "attn", "mlp"])
    fast, slow = both(any_family, [*all_units(any_family), *every_site()], Fill("mean", moments), last=last)
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-4)
    assert fast.values.shape == (2 * (12 + 4) + 2 * 9, 4) and (fast.engine, slow.engine) == ("replay", "loop")


@pytest.mark.parametrize("last", [1, None])
def test_replay_is_the_hook_loop_on_mixtures_of_experts(any_experts: ChatModel, last: int | None):
    """At every site but the neurons, which are no units; each position chooses its experts anew."""
    edits = [e for e in every_site() if e.site is not Site.NEURON]
    fast, slow = both(any_experts, edits, Fill("zero"), last=last)
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-4)
    assert np.abs(fast.effect).max(1).min() > 1e-6
    moments = collect(any_experts, rows(any_experts))
    fast, slow = both(any_experts, all_units(any_experts), Fill("mean", moments), last=last)
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-4)
    assert fast.values.shape == (2 * 4, 4)


@given(st.data())
def test_windows_choose_positions(micro: ChatModel, data):
    n = max(len(r.ids) for r in rows(micro))
    shape = (data.draw(st.integers(1, 4)), n)
    window = data.draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=shape[0], max_size=shape[0]))
    edits = [Edits(Site.NEURON, 0, np.arange(shape[0]), np.array(window)), Edits(Site.RESID, 1, np.zeros(1, int))]
    fast, slow = both(micro, edits, Fill("zero"), last=2)
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-4)
    for row, chosen in zip(fast.values, window, strict=False):
        if not any(chosen):
            np.testing.assert_allclose(row, fast.clean, atol=1e-5)


def test_a_zeroed_neuron_by_hand(micro: ChatModel):
    """The last layer's neuron at the decision position: its column times its activation leaves the residual stream."""
    batch = micro.pad(rows(micro)[:1])
    seen: dict[str, torch.Tensor] = {}
    names = ("blocks.1.mlp.hook_post", "blocks.1.hook_resid_post")
    hooks = [(n, lambda x, hook, n=n: seen.update({n: x.detach().clone()})) for n in names]
    with micro.bridge.hooks(fwd_hooks=hooks), torch.no_grad():
        micro.logits(batch)
    left = seen[names[1]][0, -1] - seen[names[0]][0, -1, 7] * micro.anatomy.blocks[1].down.weight[:, 7]
    with torch.no_grad():
        logits = micro.plain.lm_head(micro.plain.model.norm(left))
    got = sweep(micro, rows(micro)[:1], METRIC, [Edits(Site.NEURON, 1, np.array([7]))], Fill("zero"))
    assert got.values[0, 0] == pytest.approx(float(METRIC.of(logits[None])), abs=1e-4)
    assert got.estimand == "zero at the decision position"


def test_chunks_do_not_change_values(micro: ChatModel, monkeypatch: pytest.MonkeyPatch):
    whole = sweep(micro, rows(micro), METRIC, all_units(micro), Fill("zero"))
    monkeypatch.setattr("ssah_lens.intervene.room.CHUNK_TOKENS", 12)
    monkeypatch.setattr("ssah_lens.intervene.room.BATCH_TOKENS", 40)
    np.testing.assert_allclose(sweep(micro, rows(micro), METRIC, all_units(micro), Fill("zero")).values, whole.values,
                               atol=1e-5)  # fmt: skip


def test_little_memory_means_little_at_a_time(micro: ChatModel, monkeypatch: pytest.MonkeyPatch):
    longest = max(len(r.ids) for r in rows(micro))
    assert room(micro, longest) == Room(), "a micro model has room for as much as is quick"
    whole = sweep(micro, rows(micro), METRIC, all_units(micro), Fill("zero"))
    ran, real = [], Replayed._chunk
    monkeypatch.setattr(
        Replayed, "_chunk", lambda self, edits: ran.append((self.n_rows, len(edits))) or real(self, edits)
    )
    monkeypatch.setattr("ssah_lens.intervene.room.free_bytes", lambda device: 40_000)
    limits = room(micro, longest)
    assert limits.batch_tokens == longest and 1 <= limits.chunk_tokens < 20
    found = sweep(micro, rows(micro), METRIC, all_units(micro), Fill("zero"))
    np.testing.assert_allclose(found.values, whole.values, atol=1e-5)
    assert {n_rows for n_rows, _ in ran} <= {1, 2} and max(n * edits for n, edits in ran) <= limits.chunk_tokens


def test_free_memory_is_known():
    assert 10**6 < free_bytes(torch.device("cpu")) < 10**14


def test_the_refusal_score_reads_the_whole_vocabulary(micro: ChatModel):
    score = refusal_log_odds([40, 50])
    fast, slow = (
        sweep(micro, rows(micro), score, all_units(micro), Fill("zero"), engine=e) for e in ("replay", "loop")
    )
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-4)


def test_a_killed_sweep_resumes_with_the_same_values(micro: ChatModel, tmp_path, monkeypatch: pytest.MonkeyPatch):
    whole = sweep(micro, rows(micro), METRIC, all_units(micro), Fill("zero"))
    ran, real = [], Replayed._chunk

    def counted(self, edits):
        ran.append(len(edits))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return real(self, edits)

    monkeypatch.setattr(Replayed, "_chunk", counted)
    store = tmp_path / "kept" / "sweep.npy"
    with pytest.raises(KeyboardInterrupt):
        sweep(micro, rows(micro), METRIC, all_units(micro), Fill("zero"), store=store)
    done = int((~np.isnan(np.load(store))).all(1).sum())
    assert 0 < done < len(whole.values)
    ran[:] = [0] * 10
    again = sweep(micro, rows(micro), METRIC, all_units(micro), Fill("zero"), store=store)
    np.testing.assert_array_equal(again.values, whole.values)
    assert sum(ran[10:]) == len(whole.values) - done


def test_a_kill_while_the_store_is_made_leaves_a_sweep_that_can_be_given_again(micro: ChatModel, tmp_path, monkeypatch):
    """Half a .json is never seen under its name; and a .json whose values are gone stands for nothing."""
    store, edits = tmp_path / "sweep.npy", [Edits(Site.HEAD, 0, np.arange(4))]
    real = Path.write_text

    def torn(path: Path, text: str, **options) -> int:
        real(path, text[:5], **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as torn_writes:
        torn_writes.setattr(Path, "write_text", torn)
        with pytest.raises(KeyboardInterrupt):
            sweep(micro, rows(micro), METRIC, edits, Fill("zero"), store=store)
    assert not store.with_suffix(".json").exists()
    first = sweep(micro, rows(micro), METRIC, edits, Fill("zero"), store=store)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sweep.json", "sweep.npy"]
    store.unlink()
    with monkeypatch.context() as torn_writes:
        torn_writes.setattr(Path, "write_text", torn)
        with pytest.raises(KeyboardInterrupt):
            sweep(micro, rows(micro)[:2], METRIC, edits, Fill("zero"), store=store)
    again = sweep(micro, rows(micro)[:2], METRIC, edits, Fill("zero"), store=store)
    np.testing.assert_allclose(again.values, first.values[:, :2], atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [60, 4096])
def test_the_bar_counts_all_of_the_work_once(micro: ChatModel, tmp_path, monkeypatch, batch_tokens: int):
    """Whole, killed and resumed; low layers, which take longest, come first; and it estimates what is left."""
    monkeypatch.setattr("ssah_lens.intervene.room.BATCH_TOKENS", batch_tokens)
    bars, real, layers = [], _Bar, []

    class Seen(real):
        def __init__(self, total: float, what: str) -> None:
            super().__init__(total, what)
            bars.append((total, []))

        def skip(self, work: float) -> None:
            super().skip(work)
            bars[-1][1].append(work)

    monkeypatch.setattr("ssah_lens.intervene.sweep._Bar", Seen)
    run, ran = Replayed._chunk, []

    def counted(self, edits):
        layers.append(edits.layer)
        ran.append(len(edits))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return run(self, edits)

    lines: list[str] = []
    call = lambda: sweep(micro, rows(micro), METRIC, all_units(micro), Fill("zero"), store=tmp_path / "a.npy")
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(Replayed, "_chunk", counted)
        call()
    with quiet(False), bars_told(lambda number, line: lines.append(line)):
        call()
    (total, before), (again, whole) = bars
    assert total == again and 0 < sum(before) < total
    assert layers == sorted(layers) and lines[-1] == ""
    assert lines[0] == f"sweeping units 0 of {round(total)}" and sum(whole) == pytest.approx(total)


def test_another_sweep_never_resumes_here(micro: ChatModel, micro_copy: ChatModel, tmp_path):
    """Other prompts, other tokens under one name, other means, other arithmetic, other weights in the last layer."""
    store, edits = tmp_path / "sweep.npy", [Edits(Site.HEAD, 0, np.arange(4))]
    means = collect(micro, rows(micro))
    first = sweep(micro, rows(micro), METRIC, edits, Fill("mean", means), store=store)
    again = sweep(micro, rows(micro), METRIC, edits, Fill("mean", means), store=store)
    np.testing.assert_array_equal(first.values, again.values)
    with torch.no_grad():
        micro_copy.anatomy.blocks[1].down.weight[:] += 0.1
    other = logit_difference([41, 50], [60, 70, 80])
    assert other.name == METRIC.name
    for call in (
        lambda: sweep(micro, rows(micro)[:2], METRIC, edits, Fill("mean", means), store=store),
        lambda: sweep(micro, rows(micro), other, edits, Fill("mean", means), store=store),
        lambda: sweep(micro, rows(micro), METRIC, edits, Fill("mean", collect(micro, rows(micro)[:1])), store=store),
        lambda: sweep(micro_copy, rows(micro), METRIC, edits, Fill("mean", means), store=store),
    ):
        with pytest.raises(BadInput, match="another sweep"):
            call()
    store.with_suffix(".json").write_text("{")
    with pytest.raises(BadInput, match="damaged"):
        sweep(micro, rows(micro), METRIC, edits, Fill("mean", means), store=store)


def test_bfloat16_states_its_error(micro: ChatModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ssah_lens.intervene.sweep.has_bfloat16", lambda device: True)
    edits = all_units(micro)
    exact = sweep(micro, rows(micro), METRIC, edits, Fill("zero"))
    low = sweep(micro, rows(micro), METRIC, edits, Fill("zero"), bfloat16=True)
    off = np.abs(low.values - exact.values)
    assert exact.rounding is None and low.rounding.n == 32 == len(off), "so few that the sample is all of them"
    assert low.rounding.largest == pytest.approx(off.max()) and 0 < low.rounding.typical < low.rounding.largest
    assert low.rounding.effect == pytest.approx(np.sqrt(np.square(exact.effect).mean()))
    assert low.rounding.typical < 0.1 * low.rounding.effect
    np.testing.assert_array_equal(low.clean, exact.clean)


def test_bfloat16_changes_nothing_where_nothing_is_edited(micro: ChatModel, monkeypatch: pytest.MonkeyPatch):
    """Rounding alone is no effect, though it moves the metric."""
    monkeypatch.setattr("ssah_lens.intervene.sweep.has_bfloat16", lambda device: True)
    n = max(len(r.ids) for r in rows(micro))
    none = [Edits(Site.NEURON, 0, np.arange(3), np.zeros((3, n), dtype=bool))]
    assert np.abs(sweep(micro, rows(micro), METRIC, none, Fill("zero"), None, bfloat16=True).effect).max() < 1e-6


@pytest.mark.parametrize(("engine", "native"), [("replay", False), ("loop", True)])
def test_where_there_is_no_bfloat16_it_is_said(micro: ChatModel, monkeypatch: pytest.MonkeyPatch, engine, native):
    monkeypatch.setattr("ssah_lens.intervene.sweep.has_bfloat16", lambda device: native)
    edits = [Edits(Site.HEAD, 0, np.arange(4))]
    with pytest.warns(UserWarning, match="has no bfloat16 arithmetic: sweeping in float32"):
        got = sweep(micro, rows(micro), METRIC, edits, Fill("zero"), engine=engine, bfloat16=True)
    assert got.rounding is None
    np.testing.assert_array_equal(
        got.values, sweep(micro, rows(micro), METRIC, edits, Fill("zero"), engine=engine).values
    )


class OwnAttention(LlamaAttention):
    """Attention in a model's own code, as models from outside transformers have it: nothing can be recorded."""

    def forward(self, hidden_states, position_embeddings, attention_mask=None, **options):
        shape = *hidden_states.shape[:-1], -1, self.head_dim
        q, k, v = (p(hidden_states).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        mixed, weights = eager_attention_forward(self, q, k, v, attention_mask, self.scaling)
        return self.o_proj(mixed.reshape(*hidden_states.shape[:-1], -1)), weights


def test_a_model_that_cannot_be_replayed_falls_back_and_says_so(micro: ChatModel, micro_copy: ChatModel):
    for block in micro_copy.plain.model.layers:
        block.self_attn.__class__ = OwnAttention
    edits = every_site()
    with pytest.warns(UserWarning, match="LlamaForCausalLM.*falling back to one forward pass per intervention"):
        got = sweep(micro_copy, rows(micro), METRIC, edits, Fill("zero"), last=3)
    assert got.engine == "loop"
    np.testing.assert_allclose(got.values, sweep(micro, rows(micro), METRIC, edits, Fill("zero"), 3).values, atol=1e-4)
    with pytest.raises(BadInput, match="cannot be replayed; use engine='loop'"):
        sweep(micro_copy, rows(micro), METRIC, edits, Fill("zero"), engine="replay")
    with pytest.raises(BadInput, match="cannot be replayed.*use steps=0"):
        attribution(micro_copy, rows(micro), METRIC, Fill("zero"), steps=2)


@pytest.mark.parametrize(
    ("edits", "match"),
    [
        ([Edits(Site.NEURON, 0, np.array([12]))], "there are 0-11"),
        ([Edits(Site.HEAD, 0, np.array([2, -1, 3]))], "no head -1 .* there are 0-3"),
        ([Edits(Site.HEAD, 2, np.array([0]))], "layers 0-1"),
        ([], "at least one"),
    ],
)
def test_units_outside_the_model_are_refused(micro: ChatModel, edits, match):
    with pytest.raises(BadInput, match=match):
        sweep(micro, rows(micro), METRIC, edits, Fill("zero"))


def test_a_metric_that_is_not_finite_is_refused(micro: ChatModel):
    nothing = Metric("log of nothing", torch.tensor([3]), lambda logits: (logits[..., 0] * 0).log())
    with pytest.raises(BadInput, match="log of nothing.*not finite on the undamaged model"):
        sweep(micro, rows(micro), nothing, [Edits(Site.HEAD, 0, np.array([0]))], Fill("zero"))
    clean = sweep(micro, rows(micro), METRIC, [Edits(Site.HEAD, 0, np.array([0]))], Fill("zero")).clean
    worse = Metric(
        "log of a fall", METRIC.columns, lambda x: (METRIC.function(x) - clean.min() + 1e-3).clamp(min=0).log()
    )
    with pytest.raises(BadInput, match="log of a fall.*not finite with resid of layer 0 replaced"):
        sweep(micro, rows(micro), worse, [Edits(Site.RESID, 0, np.array([0]))], Fill("zero"))


def test_bad_fills_and_settings_are_refused(micro: ChatModel):
    edits = [Edits(Site.HEAD, 0, np.array([0]))]
    for call, match in (
        (lambda: Fill("median"), "zero, mean, resample, patch"),
        (lambda: Fill("mean"), "needs activation moments"),
        (lambda: Fill("patch"), "rows to patch from"),
        (lambda: sweep(micro, rows(micro), METRIC, edits, Fill("zero"), engine="magic"), "auto, replay, loop"),
        (lambda: sweep(micro, rows(micro), METRIC, edits, Fill("zero"), last=0), "1 or more"),
        (lambda: all_units(micro, layers=[5]), "layers 0-1"),
        (lambda: logit_difference([1], [1]), "fulfilling"),
    ):
        with pytest.raises(BadInput, match=match):
            call()


def test_all_units_come_in_the_order_of_kinds_layers_indices(micro: ChatModel):
    got = [(e.site, e.layer, len(e)) for e in all_units(micro)]
    assert got == [(Site.of(k), i, micro.grid.width(k)) for k in Kind for i in (0, 1)]


def test_the_model_is_left_as_it_was(micro: ChatModel):
    before = micro.plain.config._attn_implementation, [len(m._forward_pre_hooks) for m in micro.plain.modules()]
    sweep(micro, rows(micro), METRIC, every_site(), Fill("zero"))
    assert before == (
        micro.plain.config._attn_implementation,
        [len(m._forward_pre_hooks) for m in micro.plain.modules()],
    )


def test_the_bar_adds_up_small_work():
    """Work is no whole number; the bar, and the time that it estimates from it, must not lose the rest."""
    with quiet(False), bars_told(lambda number, line: None):
        bar = _Bar(3.0, "work")
        seen = [bar.skip(0.4) or bar.bar.n for _ in range(7)]
        bar.close()
    assert seen == [0, 1, 1, 2, 2, 2, 3] and bar.bar.total == 3
