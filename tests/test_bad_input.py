"""Wrong uses of the command line, each told in one line with exit status 2, and nothing written.

They run in this process, through the entry point itself; `test_cli.py` meets some more as a user does, in a process of
their own.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ssah_lens.chat.model import ChatModel
from ssah_lens.score.base import Scores
from ssah_lens.score.roles import Sizes, assign
from ssah_lens.units import Kind, Role, UnitGrid, UnitSet, UnitTable

LONG = "x" * 5000
DEEP = "[" * 20_000 + "]" * 20_000

FILES = {
    "good.txt": "How do I bake bread?\nHow do I draw a map?\n",
    "long.txt": "bread " * 600,
    "utf16.txt": "How do I bake bread?\n".encode("utf-16"),
    "nul.jsonl": '{"prompt": "a\0b"}',
    "cut.jsonl.gz": gzip.compress(b'{"prompt": "a"}\n' * 99)[:-9],
    "ragged.csv": "prompt,id\nhello,1,2\n",
    "twice.csv": "prompt,Prompt\na,b\n",
    "deep.json": DEEP,
    "several.json": '{"train": ["a"], "test": ["b"]}',
    "number.json": "7",
    "no_prompt.jsonl": '{"prompt": "a"}\n{"prompt": "  "}\n',
    "same_id.jsonl": '{"prompt": "a", "id": "7"}\n{"prompt": "b", "id": "7"}\n',
    "half.jsonl": '{"prompt": "\\ud83d"}\n',
    "turns.jsonl": '{"messages": [{"role": "narrator", "content": "a"}]}\n',
    "list.jsonl": '{"prompt": ["a"]}\n',
    "pairs.txt": "a\nb\n",
    "lonely.jsonl": '{"clean": "a"}\n',
    "same.csv": "clean,corrupted\nhello,hello\n",
    "unequal.csv": "clean,corrupted\na b c,a\n",
    "tune.jsonl": "".join(json.dumps({"prompt": f"Say {i}", "response": f"{i} it is"}) + "\n" for i in range(12)),
    "unanswered.jsonl": '{"prompt": "a", "response": "b"}\n{"prompt": "c", "response": " "}\n',
    "overlong.jsonl": json.dumps({"prompt": "a", "response": "bread " * 600}) + "\n",
    "few.txt": "".join(f"number {i}\n" for i in range(5)),
    "broken.toml": "[align\n",
    "deep.toml": "a = " + "[" * 9000,
    "latin.toml": 'model = "\xe9"'.encode("latin-1"),
    "huge.toml": "# " + "x" * 100_000,
    "section.toml": "align = 3\n",
    "endless.toml": "[freeze]\nlr = inf\n",
    "nan.toml": "[align]\nanchor = nan\n",
    "absurd.toml": "[align]\nsteps = 1000000000000\n",
    "negative.toml": "seed = -1\n",
    "score.toml": '[units]\nscore = "luck"\n',
    "scores.toml": '[tuning]\nscores = ["wanda", "luck"]\n',
    "page.gguf": b"<html>not found</html>",
    "cut.gguf": b"GGUF" + b"\xff" * 40,
    "empty.parquet": b"",
    "text.parquet": "prompt\nhello\n",
    "pickle.parquet": pickle.dumps({"grid": 1}),
}


# ---- models that cannot be used


def _damaged(name: str) -> Callable[[Callable], Callable]:
    def add(damage: Callable[[Path], None]) -> Callable[[Path], None]:
        DAMAGED[name] = damage
        return damage

    return add


DAMAGED: dict[str, Callable[[Path], None]] = {}
WEIGHTS = "model.safetensors"


def _change(file: Path, change: Callable[[dict], None]) -> None:
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))


def _tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@_damaged("cut")
def _(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


@_damaged("garbled")
def _(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\xff" * 64)


@_damaged("pickled")
def _(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


@_damaged("posing")
def _(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps({"weight": 1}))


@_damaged("sharded")
def _(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../pytorch_model.bin"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


@_damaged("nan")
def _(folder: Path) -> None:
    _tensors(folder, lambda t: t["model.layers.1.mlp.up_proj.weight"][3].fill_(float("nan")))


@_damaged("infinite")
def _(folder: Path) -> None:
    _tensors(folder, lambda t: t["model.embed_tokens.weight"][7, 7].fill_(float("inf")))


@_damaged("missing")
def _(folder: Path) -> None:
    _tensors(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))


@_damaged("misshapen")
def _(folder: Path) -> None:
    _change(folder / "config.json", lambda c: c.update(intermediate_size=20))


@_damaged("unheard")
def _(folder: Path) -> None:
    _change(folder / "config.json", lambda c: c.update(model_type="unheard-of"))


@_damaged("no_config")
def _(folder: Path) -> None:
    (folder / "config.json").unlink()


@_damaged("bad_config")
def _(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@_damaged("no_tokenizer")
def _(folder: Path) -> None:
    for file in [*folder.glob("tokenizer*"), *folder.glob("chat_template*"), *folder.glob("special*")]:
        file.unlink()


@_damaged("bad_tokenizer")
def _(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 3}')


@_damaged("another_tokenizer")
def _(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["bread"])
    tokenizer.save_pretrained(folder)


def _template(text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = text
        tokenizer.save_pretrained(folder)

    return damage


DAMAGED["half_template"] = _template("{% for m in messages %}{{ m['content']")
DAMAGED["silent_template"] = _template("<|im_start|>Hello!<|im_end|>")
DAMAGED["raising_template"] = _template("{{ raise_exception('not with me') }}")
DAMAGED["prying_template"] = _template("{{ ''.__class__.__mro__[1].__subclasses__() }}")


# ---- units files


def units_of(grid: UnitGrid, provenance: dict, seed: int = 0) -> UnitTable:
    rng = np.random.default_rng(seed)
    values = [{k: rng.normal(size=(grid.n_layers, grid.width(k))) for k in Kind} for _ in range(2)]
    return UnitTable(grid, *values, assign(grid, Scores(*values, signed=True), Sizes(0.2, 0.3, 0.1)), provenance)


def without_scu(table: UnitTable) -> UnitTable:
    roles = {**table.roles, Role.SCU: UnitSet.empty(table.grid), Role.CU: table.units([Role.SCU, Role.CU])}
    return UnitTable(table.grid, table.safety, table.utility, roles, table.provenance)


def rewrite(file: Path, change: Callable[[dict], object]) -> None:
    """Another set of metadata in a units file."""
    import pyarrow.parquet as pq

    old = pq.read_table(file)
    meta = json.loads(old.schema.metadata[b"ssah_lens"])
    changed = change(meta)
    text = changed if isinstance(changed, str) else json.dumps(meta)
    pq.write_table(old.replace_schema_metadata({b"ssah_lens": text.encode()}), file)


@pytest.fixture(scope="module")
def yard(micro: ChatModel, micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder full of files that are wrong in one way each, beside some good ones."""
    import pandas as pd

    yard = tmp_path_factory.mktemp("yard")
    for name, content in FILES.items():
        (yard / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with (yard / "gigabyte.txt").open("wb") as f:
        f.truncate(1_000_000_000)  # sparse
    (yard / "folder.txt").mkdir()
    (yard / "empty").mkdir()
    (yard / "taken").mkdir()
    (yard / "taken" / "mine").write_text("mine")
    (yard / "patched").mkdir()
    (yard / "patched" / "patching.json").write_text("{}")
    (yard / "loop").symlink_to("loop")
    shutil.copytree(micro_folder, yard / "micro")
    for name, damage in DAMAGED.items():
        damage(Path(shutil.copytree(micro_folder, yard / name)))

    table = units_of(micro.grid, {"model": "micro", "score": "mask", "signed": True})
    table.save(yard / "u.parquet")
    without_scu(table).save(yard / "no_scu.parquet")
    units_of(micro.grid, {"score": "wifv", "signed": True}).save(yard / "wifv.parquet")
    units_of(UnitGrid(3, 10, 2, 30, 60, 2000), {"score": "mask"}).save(yard / "other.parquet")
    half = (yard / "u.parquet").read_bytes()
    (yard / "half.parquet").write_bytes(half[: len(half) // 2])
    pd.DataFrame({"a": [1, 2]}).to_parquet(yard / "table.parquet")
    for name, change in {
        "deep": lambda meta: '{"grid": ' + DEEP,
        "endless": lambda meta: meta["grid"].update(n_layers=10**15),
        "nothing": lambda meta: meta["grid"].update(block_parameters=0),
        "listed": lambda meta: meta.update(provenance=[1, 2]),
        "layers": lambda meta: meta["provenance"].update(layers=["a"]),
    }.items():
        shutil.copy(yard / "u.parquet", yard / f"{name}.parquet")
        rewrite(yard / f"{name}.parquet", change)
    _runs(yard)
    return yard


def _runs(yard: Path) -> None:
    """Run folders: one of another configuration, and damaged ones."""
    from ssah_lens.config import study_config
    from ssah_lens.study.record import RunFolder

    for name in ("run", "run_config", "run_bytes", "run_record", "run_listed", "run_stage", "run_schema"):
        RunFolder.open(yard / name, study_config(model="micro", seed=7))
    (yard / "run_config" / "config.toml").write_text("seed = \n")
    (yard / "run_bytes" / "config.toml").write_bytes(b"\xff\xfe\x00")
    (yard / "run_record" / "record.json").write_text('{"seed": ')
    (yard / "run_listed" / "record.json").write_text("[1]")
    (yard / "run_stage" / "stages" / "units.json").write_bytes(b"\xff")
    (yard / "run_schema" / "record.json").write_text('{"schema": 99}')


# ---- the table


FREEZE = "finetune micro --data tune.jsonl --out t --freeze"
ABLATE = "ablate micro --harmful good.txt --harmless good.txt --units"
STUDY = "study --model micro --out s --config"
PATCH = "patch micro --out p"
BREAD = "--clean 'bake bread' --corrupted 'make bread'"
REFUSAL = {
    # prompt files
    "micro --harmful utf16.txt": "is not UTF-8 but UTF-16",
    "micro --harmful nul.jsonl": "holds NUL bytes",
    "micro --harmful cut.jsonl.gz": "is no whole gzip file",
    "micro --harmful ragged.csv": "row 1 has 3 cells for 2 columns",
    "micro --harmful twice.csv": "has two columns 'prompt'",
    "micro --harmful deep.json": "is not valid JSON",
    "micro --harmful several.json": "it holds several (train, test)",
    "micro --harmful number.json": "must hold a list of prompts",
    "micro --harmful no_prompt.jsonl": "row 2 has an empty prompt",
    "micro --harmful same_id.jsonl": "row 2 has the id '7' of row 1",
    "micro --harmful half.jsonl": "holds half a character",
    "micro --harmful turns.jsonl": "messages must be a list of",
    "micro --harmful list.jsonl": "is not text",
    "micro --harmful folder.txt": "no prompt file 'folder.txt'",
    "micro --harmful gigabyte.txt": "holds more than 200 MB",
    "micro --harmful {long}.txt": "no prompt file",
    "micro --harmful loop": "no prompt file or set 'loop'",
    "micro --harmful /dev/null": "no prompt file or set '/dev/null'",
    "micro --harmful harmful:dev": "no split 'dev': allowed are train, validation, test",
    "micro --harmful borderline:test": "'borderline' has no splits",
    "micro --harmful hub:a/b/c": "the form is hub:owner/name",
    "micro --harmful long.txt": "are more than the context of micro holds (512)",
    "micro --harmful good.txt --max-new-tokens 500": "or lower --max-new-tokens",
    # options
    "micro --harmful good.txt --limit 0": "--limit",
    "micro --harmful good.txt --limit some": "--limit",
    "micro --harmful good.txt --max-new-tokens 0": "--max-new-tokens",
    "micro --harmful good.txt --max-new-tokens 99999": "--max-new-tokens",
    "micro --harmful good.txt --seed -1": "--seed",
    "micro --harmful good.txt --seed 4294967296": "--seed",
    "micro --harmful good.txt --device abacus": "device 'abacus' cannot be used",
    "micro --harmful good.txt --device meta": "device 'meta' cannot be used",
    "micro --harmful good.txt --device cuda:99": "device 'cuda:99' cannot be used",
    "micro --harmful good.txt --dtype float8": "no dtype 'float8': allowed are float32",
    # models
    "good.txt --harmful good.txt": "is neither a folder nor a .gguf file",
    "empty --harmful good.txt": "holds no model",
    "nowhere --harmful good.txt": "no model 'nowhere'",
    "'' --harmful good.txt": "no model ''",
    "{long} --harmful good.txt": "no model",
    "page.gguf --harmful good.txt": "is not a GGUF file",
    "cut.gguf --harmful good.txt": "cannot load cut.gguf",
    "no_config --harmful good.txt": "has no config.json",
    "bad_config --harmful good.txt": "cannot load bad_config",
    "unheard --harmful good.txt": "cannot load unheard",
    "misshapen --harmful good.txt": "cannot load misshapen",
    "missing --harmful good.txt": "1 weights that its config asks for are missing",
    "cut --harmful good.txt": "model.safetensors is corrupt",
    "garbled --harmful good.txt": "model.safetensors is corrupt",
    "posing --harmful good.txt": "model.safetensors is corrupt",
    "pickled --harmful good.txt": "holds pickled weights (pytorch_model.bin)",
    "sharded --harmful good.txt": "names '../pytorch_model.bin', which is no safetensors file of that folder",
    "nan --harmful good.txt": "1 weights hold numbers that are not finite (first: model.layers.1.mlp.up_proj.weight)",
    "infinite --harmful good.txt": "not finite (first: model.embed_tokens.weight)",
    "no_tokenizer --harmful good.txt": "cannot load no_tokenizer",
    "bad_tokenizer --harmful good.txt": "cannot load bad_tokenizer",
    "another_tokenizer --harmful good.txt": "it has another model's tokenizer",
    "half_template --harmful good.txt": "the chat template of half_template ",
    "silent_template --harmful good.txt": "leaves out what the",
    "raising_template --harmful good.txt": "not with me",
    "prying_template --harmful good.txt": "the chat template of prying_template ",
}
FINETUNE = {
    "--data unanswered.jsonl": "row 2 has no answer",
    "--data overlong.jsonl": "the context of micro holds 512",
    "--data harmful:test": "'harmful:test' has no answers",
    "--data tune.jsonl --epochs 0": "--epochs",
    "--data tune.jsonl --epochs nan": "--epochs",
    "--data tune.jsonl --epochs inf": "--epochs is inf",
    "--data tune.jsonl --epochs 1e12": "allowed is above 0 and at most 1000",
    "--data tune.jsonl --lr nan": "--lr is nan",
    "--data tune.jsonl --lr -1": "--lr is -1.0",
    "--data tune.jsonl --lr much": "--lr",
    "--data tune.jsonl --batch-size 0": "--batch-size",
    "--data tune.jsonl --curve-every -1": "--curve-every",
    "--data tune.jsonl --method mix-refusals --mix nan": "--mix is nan",
    "--data tune.jsonl --method mix-refusals --mix 3": "--mix is 3.0",
    "--data tune.jsonl --method freeze": "needs units to freeze",
    "--data tune.jsonl --method lora --layers 0-1": "--layers belongs to --method safety-layers",
    "--data tune.jsonl --method safety-layers --layers 1-5": "layers 1-5 are not in the model",
    "--data tune.jsonl --layers two": "is not A-B",
    "--data tune.jsonl --roles SCU": "give --freeze UNITS",
    "--data tune.jsonl --top-cu 0.1": "give --freeze UNITS",
    "--data tune.jsonl --freeze u.parquet --top-cu 2": "--top-cu",
    "--data tune.jsonl --freeze u.parquet --top-cu nan": "--top-cu",
    "--data tune.jsonl --freeze u.parquet --roles SCU,XX": "no role 'XX'",
    "--data tune.jsonl --freeze u.parquet --roles SCU,UCU,CU,RU": "every parameter is frozen",
    "--data tune.jsonl --freeze u.parquet --train-only u.parquet": "exclude each other",
    "--data tune.jsonl --freeze u.parquet --method lora": "cannot hold single units",
    "--data tune.jsonl --train-only no_scu.parquet --roles SCU": "nothing would be trained",
    "--data tune.jsonl --freeze other.parquet": "make a units file for this model",
    "--data tune.jsonl --checkpoint good.txt": "'good.txt' is a file",
}
BAD = {
    **{f"refusal {words}": says for words, says in REFUSAL.items()},
    **{f"finetune micro --out t {words}": says for words, says in FINETUNE.items()},
    # output folders
    "finetune micro --data tune.jsonl --out taken": "output folder 'taken' exists already",
    "finetune micro --data tune.jsonl --out good.txt/t": "cannot be made",
    "finetune micro --data tune.jsonl --out {long}": "cannot be made: File name too long",
    "align micro --out taken": "output folder 'taken' exists already",
    "units micro --out empty": "'empty' is a folder",
    "units micro --out good.txt/u.parquet": "cannot be written",
    f"{PATCH}/x/{{long}} {BREAD}": "File name too long",
    f"patch micro --out patched {BREAD}": "holds a patching result already",
    # units files
    f"{ABLATE} none.parquet": "is not a whole units file",
    f"{ABLATE} empty.parquet": "is not a whole units file",
    f"{ABLATE} text.parquet": "is not a whole units file",
    f"{ABLATE} pickle.parquet": "is not a whole units file",
    f"{ABLATE} half.parquet": "is not a whole units file",
    f"{ABLATE} table.parquet": "is not a whole units file",
    f"{ABLATE} folder.txt": "is not a whole units file",
    f"{ABLATE} deep.parquet": "is not a whole units file",
    f"{ABLATE} endless.parquet": "is not a whole units file",
    f"{ABLATE} nothing.parquet": "is not a whole units file",
    f"{ABLATE} listed.parquet": "is not a whole units file",
    f"{ABLATE} {{long}}": "is not a whole units file",
    f"{ABLATE} other.parquet": "belongs to a model with 3 layers of 10 neurons, 2 heads",
    f"{ABLATE} no_scu.parquet": "has no units of role SCU",
    f"{ABLATE} u.parquet --controls 0": "--controls",
    f"{ABLATE} u.parquet --roles ,": "no role ','",
    "transfer u.parquet other.parquet": "belong to models of different shape",
    "transfer u.parquet wifv.parquet": "scored by 'mask' and 'wifv'",
    "transfer u.parquet layers.parquet": "is not a whole units file",
    "transfer u.parquet u.parquet --null none.parquet": "'none.parquet' is not a whole units file",
    "align micro --out a --train-only other.parquet": "make a units file for this model",
    "align micro --out a --steps 0": "--steps",
    "align micro --out a --steps 999999999999": "--steps",
    "align micro --out a --lr nan": "--lr is nan",
    "align micro --out a --lr 2": "--lr is 2.0",
    "align micro --out a --harmful long.txt": "the context of micro holds 512",
    # scores
    "units micro --out n.parquet --limit 3": "--limit",
    "units micro --out n.parquet --safety few.txt": "scores and sizes need at least 16",
    "units micro --out n.parquet --layers 1-9": "the model has layers 0-1",
    "units micro --out n.parquet --layers 0-99999999999999": "the model has layers 0-1",
    "units micro --out n.parquet --score contrast": "name that with --unaligned",
    "units micro --out n.parquet --unaligned nowhere": "no model 'nowhere'",
    "units micro --out n.parquet --unaligned another_tokenizer": "has another vocabulary than 'micro'",
    # patching
    f"{PATCH}": "give --clean TEXT and --corrupted TEXT",
    f"{PATCH} {BREAD} --pairs same.csv": "exclude each other",
    f"{PATCH} --clean '' --corrupted a": "is empty",
    f"{PATCH} --pairs pairs.txt": "a text file has no columns",
    f"{PATCH} --pairs lonely.jsonl": "has columns clean: pairs need harmful and harmless or clean and corrupted",
    f"{PATCH} --pairs same.csv": "both prompts are the same tokens",
    f"{PATCH} --pairs unequal.csv": "is not token-aligned",
    f"{PATCH} --pairs none.csv": "no prompt file 'none.csv'",
    f"{PATCH} --pairs {{long}}.csv": "no prompt file",
    f"{PATCH} {BREAD} --layers 0-99999999999999": "no layer 2: the model has layers 0-1",
    # the study
    f"{STUDY} none.toml": "cannot be read",
    f"{STUDY} empty": "cannot be read",
    f"{STUDY} broken.toml": "is not valid TOML",
    f"{STUDY} deep.toml": "is not valid TOML",
    f"{STUDY} latin.toml": "is not valid TOML",
    f"{STUDY} huge.toml": "holds more than 16 kB",
    f"{STUDY} /dev/zero": "holds more than 16 kB",
    f"{STUDY} section.toml": "configuration: align",
    f"{STUDY} endless.toml": "configuration: freeze.lr",
    f"{STUDY} nan.toml": "configuration: align.anchor",
    f"{STUDY} absurd.toml": "configuration: align.steps",
    f"{STUDY} negative.toml": "configuration: seed",
    f"{STUDY} score.toml": "no score 'luck'",
    f"{STUDY} scores.toml": "no score 'luck'",
    "study --model nowhere --out s": "no model 'nowhere'",
    "study --model micro --unaligned nowhere --out s": "no model 'nowhere'",
    "study --model micro --out s --stages ,": "no stage",
    "study --model micro --out run": "holds a run with another configuration",
    "study --model micro --seed 7 --out run --stages ablate": "stage 'ablate' needs 'units'",
    "study --model micro --seed 7 --out run_record": "record.json' is damaged",
    "study --model micro --seed 7 --out run_listed": "record.json' is damaged",
    "study --model micro --seed 7 --out run_schema": "was written by schema 99",
    "report empty": "is not a run folder",
    "report {long}": "is not a run folder",
    "report run_config": "config.toml' is not valid TOML",
    "report run_bytes": "config.toml' is not valid TOML",
    "report run_stage": "units.json' is damaged",
}
KEPT = ("run", "run_stage", "run_record", "run_listed", "run_schema")
"""Run folders that are a run's own: its lock and its log may be written."""


def tree(folder: Path) -> dict[str, str]:
    """Every file with its contents; what a run writes about itself left out."""
    out = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink() or path.is_dir():
            out[name] = "folder"
        elif path.stat().st_size < 10**8 and not (
            name.split("/")[0] in KEPT and path.suffix in ("", ".jsonl", ".json")
        ):
            out[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return out


@pytest.mark.parametrize("command", BAD)
def test_one_line_and_nothing_written(command: str, yard: Path, lens: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(yard)
    before = tree(yard)
    said = lens(*shlex.split(command.replace("{long}", LONG)), "--quiet")
    assert said.code == 2, said.err
    assert said.err.count("\n") == 1 and said.err.startswith("ssah-lens: "), said.err
    assert BAD[command] in said.err and "Traceback" not in said.err and said.out == ""
    assert tree(yard) == before


def test_there_are_enough():
    assert len(BAD) >= 60


def test_the_good_files_are_good(yard: Path, lens: Callable, monkeypatch: pytest.MonkeyPatch):
    """What the wrong uses above have in common works, so each fails for the reason that it names."""
    monkeypatch.chdir(yard)
    said = lens("refusal", "micro", "--harmful", "good.txt", "--max-new-tokens", "2", "--json", "--quiet")
    assert said.code == 0 and json.loads(said.out)["harmful"]["refused"]["n"] == 2 and said.err == ""
    said = lens("transfer", "u.parquet", "u.parquet", "--json")
    assert said.code == 0 and json.loads(said.out)["n_units"] == 32
    monkeypatch.setenv("TQDM_DISABLE", "1")
    words = "finetune micro --data tune.jsonl --out ../tuned --freeze u.parquet --roles SCU --json --quiet"
    said = lens(*words.split())
    assert said.code == 0 and json.loads(said.out)["frozen"]["unchanged"] is True, said.err
    assert os.path.isfile(yard.parent / "tuned" / "model.safetensors")
