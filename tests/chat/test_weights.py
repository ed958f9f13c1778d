"""Weights: the real built-in model, then folders, files and hub ids, and every refusal, on a tiny model made here."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssah_lens.chat import built_in, weights
from ssah_lens.chat.weights import Source
from ssah_lens.errors import BadInput

WORDS = ["<unk>", "<s>", "</s>", "a", "b", "c"]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def tiny_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama, as save_pretrained writes it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("saved") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tiny_saved: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_saved, tmp_path / "tiny"))


def test_built_in_loads_in_eval_mode_with_eager_attention() -> None:
    source = weights.resolve("smollm2-135m")  # fetches it into the default cache unless it is there
    assert source == Source("built-in", "smollm2-135m", built_in.cached_folder("smollm2-135m"))
    record = json.loads((source.path / built_in.RECORD).read_text())
    assert weights.file_hashes(source) == {name: facts["sha256"] for name, facts in record["files"].items()}
    model, tokenizer = weights.load_plain(source, "bfloat16")
    assert not model.training and model.config._attn_implementation == "eager" and model.dtype == torch.bfloat16
    assert tokenizer.chat_template


def test_a_built_in_model_that_is_not_cached_is_fetched_only_if_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSAH_LENS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BadInput, match="not in the cache yet: run: ssah-lens fetch"):
        weights.resolve("smollm2-135m", fetch_missing=False)


# --- folders, files and names


def test_a_folder_loads_with_the_same_weights(tiny: Path) -> None:
    from transformers import LlamaForCausalLM

    source = weights.resolve(str(tiny))
    assert source == Source("folder", "tiny", tiny)
    model, tokenizer = weights.load_plain(source, torch.float32)
    before = LlamaForCausalLM.from_pretrained(tiny).state_dict()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert tokenizer("a b c")["input_ids"] == [3, 4, 5]
    hashes = weights.file_hashes(source)
    assert hashes["model.safetensors"] == sha256(tiny / "model.safetensors") and "config.json" in hashes


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"\xff" * 64 + data[64:], lambda data: b""]
)
def test_a_corrupt_weight_file_is_named(damage, tiny: Path) -> None:
    file = tiny / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(BadInput, match=r"model\.safetensors is corrupt") as caught:
        weights.load_plain(weights.resolve(str(tiny)), torch.float32)
    assert "\n" not in str(caught.value)


def test_a_missing_weight_is_refused_instead_of_made_up(tiny: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(tiny / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"1 weights .* missing .*layers\.1\.mlp\.up_proj"):
        weights.load_plain(weights.resolve(str(tiny)), torch.float32)


@pytest.mark.parametrize("change", [{"hidden_size": 32}, {"model_type": "unheard-of"}, {"vocab_size": "many"}])
def test_a_config_that_does_not_fit_is_bad_input(change: dict, tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text()) | change
    (tiny / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="cannot load tiny: ") as caught:
        weights.load_plain(weights.resolve(str(tiny)), torch.float32)
    assert "\n" not in str(caught.value)


def test_code_that_comes_with_a_model_is_never_run(tiny: Path) -> None:
    (tiny / "own.py").write_text(f"open({str(tiny / 'ran')!r}, 'w')\nclass Own: ...\n")
    config = json.loads((tiny / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (tiny / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="cannot load tiny: "):
        weights.load_plain(weights.resolve(str(tiny)), torch.float32)
    assert not (tiny / "ran").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickled_weights_are_refused(name: str, tiny: Path) -> None:
    (tiny / "model.safetensors").rename(tiny / name)
    with pytest.raises(BadInput, match=f"pickled weights .{name}.*safetensors"):
        weights.resolve(str(tiny))
    with pytest.raises(BadInput, match="neither a folder nor a .gguf file"):
        weights.resolve(str(tiny / name))


def test_a_folder_must_hold_a_model(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no model"):
        weights.resolve(str(tmp_path / "empty"))
    (tiny / "config.json").unlink()
    with pytest.raises(BadInput, match=r"no config\.json"):
        weights.resolve(str(tiny))


def test_a_file_that_only_claims_to_be_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"<html>not found</html>")
    with pytest.raises(BadInput, match="is not a GGUF file"):
        weights.resolve(str(tmp_path / "x.gguf"))
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\xff" * 40)
    with pytest.raises(BadInput, match=r"cannot load x\.gguf"):
        weights.load_plain(weights.resolve(str(tmp_path / "x.gguf")), torch.float32)


@pytest.mark.parametrize(
    "model",
    ["", "nonsense", "a/b/c", "../nowhere", "owner/", "ow ner/name", "no/gone.gguf", "~nobody", "x" * 5000, "a\0b"],
)
def test_unknown_names_say_what_is_allowed(model: str) -> None:
    with pytest.raises(BadInput, match="no model .*built-in name .smollm2-135m.*folder.*gguf.*owner/name"):
        weights.resolve(model)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def no_network(self, *args, **kwargs):
        raise ConnectionError("Name or service not known\nlast of many lines")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_network)


def test_a_hub_that_cannot_be_reached_is_bad_input_at_once(no_hub: None) -> None:
    source = weights.resolve("owner/no-such-model")
    assert source == Source("hub", "owner/no-such-model") and weights.file_hashes(source) == {}
    with pytest.raises(BadInput, match="not known: .*hub could not be reached or has no such model.*smollm2") as caught:
        weights.load_plain(source, torch.float32)
    assert "\n" not in str(caught.value)


def test_a_hub_id_in_the_local_hub_cache_needs_no_hub(
    no_hub: None, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    copy, commit = tmp_path / "hub" / "models--owner--tiny", "0" * 40
    shutil.copytree(tiny, copy / "snapshots" / commit)
    (copy / "refs").mkdir()
    (copy / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    source = weights.resolve("owner/tiny")
    model, tokenizer = weights.load_plain(source, torch.float32)
    assert model.config.num_hidden_layers == 2 and tokenizer("c")["input_ids"] == [5]
    assert weights.file_hashes(source) == {"commit": commit}


def test_the_module_itself_imports_nothing_heavy() -> None:
    code = "import sys, ssah_lens.chat.weights; print(sorted({'torch', 'transformers', 'gguf'} & set(sys.modules)))"
    root = Path(weights.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
