"""The lm-evaluation-harness on a micro model: its accuracy is the one counted by hand, and hooks act inside."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from ssah_lens.errors import BadInput
from ssah_lens.intervene.hooks import ablated
from ssah_lens.measure import utility
from ssah_lens.measure.harness import _metrics, harness
from ssah_lens.stats import Estimate
from ssah_lens.units import Kind, UnitSet

WORDS = ["bread", "user", "door", "cannot", "home", "sure", "key", "help", "mat", "sky", "loaf", "question"]
RNG = np.random.default_rng(0)
ITEMS = [
    {
        "question": " ".join(["The", *RNG.choice(WORDS, 2), "is"]),
        "options": RNG.choice(WORDS, 3, replace=False).tolist(),
        "answer": int(RNG.integers(3)),
    }
    for _ in range(40)
]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in ITEMS))
    (tmp_path / "mine.yaml").write_text(
        f"""task: mine
dataset_path: json
dataset_kwargs:
  data_files:
    test: {tmp_path}/items.jsonl
  cache_dir: {tmp_path}/cache
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""
    )
    return tmp_path


def correct_by_hand(model) -> np.ndarray:
    """Sum of log-probabilities of each option after a blank, largest wins: the harness's `acc`."""
    contexts = [i["question"] for i in ITEMS for _ in i["options"]]
    options = [" " + o for i in ITEMS for o in i["options"]]
    nll = utility.losses(model, model.text_rows(contexts, options)).nll.reshape(len(ITEMS), 3)
    return nll.argmin(1) == [i["answer"] for i in ITEMS]


def test_accuracy_is_the_one_counted_by_hand(micro, task: Path):
    pytest.importorskip("lm_eval")
    expected = correct_by_hand(micro)
    got = harness(micro, ["mine"], folder=task)["mine"]["acc"]
    assert 0 < expected.mean() < 1 and got.value == pytest.approx(expected.mean()) and got.n == len(ITEMS)
    assert got.low == pytest.approx(got.value - 1.96 * expected.std(ddof=1) / len(ITEMS) ** 0.5)
    few = harness(micro, ["mine"], limit=4, folder=task)["mine"]["acc"]
    assert few.n == 4 and few.value == pytest.approx(expected[:4].mean())


def test_hooks_act_inside(micro, task: Path):
    """Without any of its units the model counts other items right, in the harness as by hand."""
    pytest.importorskip("lm_eval")
    everything = UnitSet(micro.grid, {k: np.ones((micro.grid.n_layers, micro.grid.width(k)), dtype=bool) for k in Kind})
    whole = correct_by_hand(micro)
    with ablated(micro, everything, "zero"):
        expected = correct_by_hand(micro)
        got = harness(micro, ["mine"], folder=task)["mine"]["acc"]
    assert got.value == pytest.approx(expected.mean()) and list(expected) != list(whole)


def test_mean_ablation_is_refused_inside(micro, task: Path):
    pytest.importorskip("lm_eval")

    def hook(activation, hook):
        return activation + 0 * micro.positions_of(activation.shape[1])[..., None]

    with micro.bridge.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", hook)]), pytest.raises(BadInput, match="positions?"):
        harness(micro, ["mine"], limit=2, folder=task)


def test_the_tokenizer_is_left_alone(micro, task: Path):
    pytest.importorskip("lm_eval")
    before = (micro.tokenizer.padding_side, micro.tokenizer.pad_token_id, micro.tokenizer.truncation_side)
    harness(micro, ["mine"], limit=2, folder=task)
    assert (micro.tokenizer.padding_side, micro.tokenizer.pad_token_id, micro.tokenizer.truncation_side) == before


def test_unknown_tasks_and_folders(micro, task: Path):
    pytest.importorskip("lm_eval")
    with pytest.raises(BadInput, match=r"no task 'yours': 1 are known \(mine"):
        harness(micro, ["yours"], folder=task)
    with pytest.raises(BadInput, match="no task ''"):
        harness(micro, [], folder=task)
    with pytest.raises(BadInput, match="no folder of tasks"):
        harness(micro, ["mine"], folder=task / "none")


def test_data_that_is_not_there(micro, task: Path):
    pytest.importorskip("lm_eval")
    (task / "items.jsonl").unlink()
    with pytest.raises(BadInput, match="tasks mine cannot be run"):
        harness(micro, ["mine"], folder=task)


def test_a_missing_extra_says_what_to_install(micro, monkeypatch: pytest.MonkeyPatch):
    for name in [m for m in sys.modules if m.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # Python's own way to say that a module is not there
    with pytest.raises(BadInput, match=r"pip install 'ssah-lens\[eval\]'"):
        harness(micro, ["mine"])


def test_metrics():
    values = {
        "alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.1, "ppl,none": 3, "ppl_stderr,none": "N/A",
        "exact_match,strict": 1.0, "exact_match_stderr,strict": 0.0,
    }  # fmt: skip
    assert _metrics(values, 7) == {
        "acc": Estimate(0.5, pytest.approx(0.304), pytest.approx(0.696), 7),
        "ppl": Estimate(3.0, None, None, 7),
        "exact_match,strict": Estimate(1.0, 1.0, 1.0, 7),
    }
