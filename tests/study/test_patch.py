"""From pairs of prompts to labelled maps and files, on micro models."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.patching import activation_patching
from ssah_lens.intervene.runners import Replayed
from ssah_lens.intervene.sites import Site
from ssah_lens.study import openings
from ssah_lens.study.openings import Openings, find_openings
from ssah_lens.study.patch import FILES, given_pairs, patch, patch_heatmap, run_patch

CLEAN, CORRUPTED = ["abc x def", "tell x me 1 lot"], ["abc y def", "tell y me 2 lot"]
OPENINGS = Openings((40, 50), (60, 70, 80))
AXES = {
    "resid": ("layer", "pos"), "attn": ("layer", "pos"), "mlp": ("layer", "pos"), "head": ("layer", "unit"),
    "neuron": ("layer", "unit"),
}  # fmt: skip


@pytest.mark.parametrize("site", list(Site))
@pytest.mark.parametrize("noising", [False, True])
def test_a_map_is_what_patching_found_with_labels(micro: ChatModel, site: Site, noising: bool):
    got = patch(micro, CLEAN, CORRUPTED, str(site), OPENINGS, noising, layers=[0, 1])
    raw = activation_patching(micro, CLEAN, CORRUPTED, OPENINGS.metric, site, noising=noising)
    values = np.array(got.values, dtype=float)
    np.testing.assert_allclose(values, raw.effect, atol=1e-6)
    assert got.axes == AXES[site] and values.shape == tuple(len(got.labels[a]) for a in got.axes)
    low, high = (np.array(v, dtype=float) for v in (got.low, got.high))
    known = ~np.isnan(values)
    assert (low[known] <= values[known] + 1e-9).all() and (values[known] <= high[known] + 1e-9).all()
    assert got.n == 2 and got.clean.n == 2 and got.clean.low is not None
    assert "clean" in got.estimand if not noising else "corrupted" in got.estimand
    assert json.loads(json.dumps(asdict(got), allow_nan=False))["axes"] == list(got.axes)


def test_a_single_pair_names_both_tokens_where_they_differ(micro: ChatModel):
    got = patch(micro, CLEAN[0], CORRUPTED[0], openings=OPENINGS)
    both = [t for t in got.labels["pos"] if "|" in t and "im_" not in t]
    assert len(both) == 1 and both[0].split("|")[0].strip() == "x" and both[0].split("|")[1].strip() == "y"
    at = got.labels["pos"].index(both[0])
    assert got.values[0][at] == pytest.approx(1.0, abs=1e-4), "all of the difference enters there"
    assert all(v == 0 for v in got.values[1][:at]), "nothing differs before"
    assert got.low is None and got.clean.low is None


def test_a_guessed_map_says_so(micro: ChatModel):
    exact, guess = (patch(micro, CLEAN, CORRUPTED, openings=OPENINGS, steps=steps) for steps in (None, 0))
    assert (exact.method, guess.method) == ("exact", "attribution patching")
    assert exact.labels == guess.labels and exact.values != guess.values and guess.cells_run == 0


def test_neurons_take_the_layer_that_moves_most(micro: ChatModel):
    told: list[str] = []
    got = patch(micro, CLEAN, CORRUPTED, "neuron", OPENINGS, note=told.append)
    mlp = activation_patching(micro, CLEAN, CORRUPTED, OPENINGS.metric, Site.MLP, by_position=False)
    assert got.labels["layer"] == (str(np.abs(mlp.effect).argmax()),) and "--layers" in told[0]
    assert np.array(got.values).shape == (1, micro.grid.d_mlp)


def test_what_a_reader_must_know_is_said(micro: ChatModel):
    told: list[str] = []
    patch(micro, CLEAN[0], CORRUPTED[0], "attn", OPENINGS, note=told.append)
    got = patch(micro, CORRUPTED[0], CLEAN[0], "attn", OPENINGS, note=told.append)
    assert got.clean.value == pytest.approx(patch(micro, CLEAN[0], CORRUPTED[0], "attn", OPENINGS).corrupted.value)
    assert sum("leans less to refusing" in t for t in told) == 1, "in exactly one of the two directions"


@pytest.mark.parametrize(
    ("clean", "corrupted", "match"),
    [
        ("abc", "abc def ghi", r"the pair is not token-aligned: \d+ and \d+ tokens for micro-llama; patching needs"),
        (["abc", "a", "b"], ["abd", "a b c d", "x y z z"], r"pair 2 is not .* \(2 of 3 pairs are not: 2, 3\)"),
        (["abc", "a"], ["abd", "a"], "pair 2: both prompts are the same tokens"),
        (["abc"], [], "got 1 clean and 0 corrupted"),
    ],
)
def test_pairs_that_cannot_be_patched_are_named(micro: ChatModel, clean, corrupted, match: str):
    with pytest.raises(BadInput, match=match):
        patch(micro, clean, corrupted, openings=OPENINGS)


def test_unknown_sites_and_layers_are_refused(micro: ChatModel):
    with pytest.raises(BadInput, match="no site 'norm': allowed are resid"):
        patch(micro, "x", "y", "norm", OPENINGS)
    with pytest.raises(BadInput, match="no layer 2: the model has layers 0-1"):
        patch(micro, "x", "y", "resid", OPENINGS, layers=range(3))


def test_a_result_is_three_files_and_is_not_overwritten(micro: ChatModel, tmp_path: Path):
    out = tmp_path / "deep" / "out"
    work = lambda: run_patch(lambda: micro, CLEAN, CORRUPTED, out, "head", False, None, 0, lambda text: None)
    found = work()
    assert {p.name for p in out.iterdir()} == set(FILES)
    kept = json.loads((out / "patching.json").read_text())
    assert kept["values"] == found.values and kept["labels"]["unit"] == list("0123")
    assert (out / "patching.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (out / "patching.html").read_text()[:200]
    with pytest.raises(BadInput, match="holds a patching result already"):
        work()


@pytest.mark.parametrize("site", ["resid", "neuron"])
def test_a_killed_command_goes_on_with_the_cells_that_are_left(
    micro: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: str
):
    monkeypatch.setattr("ssah_lens.study.patch.find_openings", lambda *args: OPENINGS)
    monkeypatch.setattr("ssah_lens.intervene.room.CHUNK_TOKENS", 40)
    ran, real = [], Replayed._chunk

    def chunk(self, edits):
        ran.append(len(edits))
        if len(ran) == stop:
            raise KeyboardInterrupt
        return real(self, edits)

    monkeypatch.setattr(Replayed, "_chunk", chunk)
    work = lambda name: run_patch(
        lambda: micro, CLEAN, CORRUPTED, tmp_path / name, site, False, None, 0, lambda text: None
    )
    stop = 0
    whole = work("whole")
    n, ran[:] = len(ran), []
    stop = n - 1
    with pytest.raises(KeyboardInterrupt):
        work("killed")
    assert [p.name for p in (tmp_path / "killed").iterdir()] == [".cells"]
    stop, ran[:] = 0, []
    assert work("killed") == whole and len(ran) == 2 < n
    assert {p.name for p in (tmp_path / "killed").iterdir()} == set(FILES)


def test_a_command_that_cannot_be_done_leaves_nothing(micro: ChatModel, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("ssah_lens.study.patch.find_openings", lambda *args: OPENINGS)
    work = lambda: run_patch(lambda: micro, CLEAN, CORRUPTED, tmp_path / "o", "resid", False, None, 0, print)
    with monkeypatch.context() as broken, pytest.raises(BadInput, match="nothing was left there"):
        broken.setattr("ssah_lens.study.patch.picture", lambda found: (_ for _ in ()).throw(OSError("full")))
        work()
    assert not (tmp_path / "o").exists()


def test_a_folder_that_cannot_be_made_is_told_before_the_model_is_loaded(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be made|exists already"):
        run_patch(lambda: pytest.fail("loaded"), ["x"], ["y"], tmp_path / "file" / "x", "resid", False, None, 0, print)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ((None, None, None), "needs two prompts"),
        (("a", None, None), "needs two prompts"),
        (("a", " ", None), "is empty"),
        (("a", "b", Path("p.csv")), "exclude each other"),
        ((None, None, Path("p.csv")), "no prompt file"),
    ],
)
def test_half_given_pairs_are_refused(given, match: str):
    with pytest.raises(BadInput, match=match):
        given_pairs(*given, None, 0)


def test_both_sides_of_a_file_are_sampled_alike(tmp_path: Path):
    file = tmp_path / "p.csv"
    file.write_text("clean,corrupted\n" + "".join(f"a{i},b{i}\n" for i in range(9)))
    clean, corrupted = given_pairs(None, None, file, 4, 1)
    assert len(clean) == 4 and [c[1:] for c in clean] == [c[1:] for c in corrupted]


def test_openings_are_disjoint_and_never_empty(micro: ChatModel):
    """A random model neither refuses nor answers: the published openings stand in."""
    found = find_openings(micro)
    assert found.refusing and found.fulfilling and not set(found.refusing) & set(found.fulfilling)
    assert found == openings._find(micro, 0), "the same again from the same seed"


def test_openings_are_found_once_as_long_as_the_model_stays_as_it_is(micro_copy: ChatModel, monkeypatch):
    asked, find = [], openings._find
    monkeypatch.setattr(openings, "_find", lambda model, seed: asked.append(seed) or find(model, seed))
    assert find_openings(micro_copy) == find_openings(micro_copy) and asked == [0]
    find_openings(micro_copy, 1)
    assert asked == [0, 1]
    with torch.no_grad():
        next(micro_copy.plain.parameters()).mul_(1.01)
    find_openings(micro_copy, 1)
    assert asked == [0, 1, 1], "weights that were written make it another model"
    with micro_copy.bridge.hooks(fwd_hooks=[("blocks.0.mlp.hook_out", lambda x, hook: x)]):
        find_openings(micro_copy, 1)
    assert asked == [0, 1, 1, 1], "and so do hooks"


def test_one_line_makes_a_picture(micro: ChatModel, tmp_path: Path):
    shown = patch_heatmap(micro, CLEAN[0], CORRUPTED[0], openings=OPENINGS)
    assert shown._repr_png_().startswith(b"\x89PNG")
    (heat,) = shown.interactive().data
    assert heat.type == "heatmap" and np.array(heat.z).shape[0] == micro.grid.n_layers
    assert shown.save(tmp_path / "a.svg").read_text().startswith("<?xml")
