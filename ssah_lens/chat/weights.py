"""Where a model's weights come from: built-in names, folders, GGUF files and hub ids.

Everything is read as safetensors or GGUF only: pickled weights and a model's own code are refused.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ssah_lens.chat import built_in
from ssah_lens.chat.built_in import BUILT_IN, Note, first_line, read_plain
from ssah_lens.errors import BadInput

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*",
               "special_tokens_map.json", "vocab*", "merges.txt", "chat_template*")  # fmt: skip
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Source:
    """Where a model is read from.

    Attributes:
        kind: one of the four.
        name: for display: the built-in name, the folder's or file's own name, or the hub id.
        path: the folder that holds the files; None for a hub id.
        gguf_file: the file's name within `path`; None unless `kind` is "gguf".
    """

    kind: Literal["built-in", "folder", "gguf", "hub"]
    name: str
    path: Path | None = None
    gguf_file: str | None = None


def resolve(model: str, fetch_missing: bool = True, note: Note | None = None) -> Source:
    """Say where `model` is: a built-in name, a folder, a `.gguf` file or a hub id, tried in this order.

    A cached built-in model is checked each time (a quick `built_in.verify`; of the largest, only `file_hashes` and a
    full `verify` read every byte).

    Args:
        fetch_missing: fetch a built-in model that is not in the cache; if False, refuse.
        note: told of the steps of a fetch.

    Raises:
        BadInput: nothing of that name, a damaged cache, pickled weights, or a folder that holds no model.
    """
    if model in BUILT_IN:
        if not fetch_missing and not built_in.is_cached(model):
            raise BadInput(f"the built-in model {model} is not in the cache yet: run: ssah-lens fetch {model}")
        folder = built_in.fetch(model, note)
        built_in.verify(model, quick=True)
        return Source("built-in", model, folder)
    path = Path(os.path.expanduser(model))  # os.path, unlike Path, takes any string without raising
    if model and os.path.isdir(path):
        return _folder_source(path)
    if os.path.isfile(path):
        return _file_source(path)
    if HUB_ID.fullmatch(model) and not model.lower().endswith(".gguf"):
        return Source("hub", model)
    raise BadInput(
        f"no model {model!r}: give a built-in name ({', '.join(BUILT_IN)}), a folder, a .gguf file "
        "or a hub id owner/name"
    )


def load_plain(source: Source, dtype: torch.dtype | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the plain transformers model and its tokenizer: eval mode, eager attention, on the CPU.

    Only a hub id may reach the network; see `built_in.read_plain` for what is never done.

    Args:
        dtype: of the weights, as a torch dtype or its name ("auto": as they are stored).

    Raises:
        BadInput: the files are corrupt or incomplete, or the hub cannot be reached or has no such model.
    """
    where: Path | str | None = source.path
    advice = "give a folder as save_pretrained writes it, or a .gguf file"
    if where is None:
        advice = (
            "there is no folder of that name here, and the hub could not be reached or has no such model in "
            f"safetensors: check the name and the network, or use a built-in name ({', '.join(BUILT_IN)})"
        )
        try:
            where = _hub_or_copy(source.name)
        except Exception as error:  # of the HTTP client, or the hub's own: no such model, not allowed, switched off
            raise BadInput(f"cannot load {source.name}: {first_line(error)}: {advice}") from error
    if isinstance(where, Path) and source.gguf_file is None:
        _check_headers(where)
    return read_plain(source.name, where, dtype, source.gguf_file, advice=advice)


def file_hashes(source: Source) -> dict[str, str]:
    """What a run was done on: file name -> sha256 of the local model files (weights, configuration, tokenizer).

    For a hub id: `{"commit": ...}` of the copy in the local hub cache, or {} when there is none.
    """
    if source.path is None:
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(source.name, "config.json")
        return {"commit": Path(config).parent.name} if isinstance(config, str) else {}
    patterns = MODEL_FILES if source.gguf_file is None else (source.gguf_file,)
    names = sorted({path.name for pattern in patterns for path in source.path.glob(pattern) if path.is_file()})
    return {name: built_in.sha256(source.path / name) for name in names}


def _folder_source(path: Path) -> Source:
    suffixes = {file.suffix: file.name for file in path.iterdir() if file.is_file()}
    if ".safetensors" not in suffixes:
        for suffix in PICKLED:
            if suffix in suffixes:
                raise BadInput(
                    f"{path} holds pickled weights ({suffixes[suffix]}), which can run code when they are read, and no "
                    "safetensors: save the model with save_pretrained of a recent transformers and give that folder"
                )
        raise BadInput(f"{path} holds no model: give a folder with config.json and *.safetensors, or a .gguf file")
    if not (path / "config.json").is_file():
        raise BadInput(f"{path} has no config.json: give a folder as save_pretrained writes it, tokenizer included")
    return Source("folder", path.resolve().name, path)


def _file_source(path: Path) -> Source:
    if path.suffix.lower() != ".gguf":
        raise BadInput(f"{path} is neither a folder nor a .gguf file: give a folder with config.json and *.safetensors")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BadInput(f"{path} is not a GGUF file (it does not begin with GGUF): download it again")
    return Source("gguf", path.name, path.parent, path.name)


def _check_headers(folder: Path) -> None:
    """Name the damaged file: a cut or garbled safetensors file has a header that does not fit its length.

    An index may name safetensors files of its own folder only: transformers would unpickle any other.
    """
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors.index.json")):
        try:
            shards = set(json.loads(path.read_bytes())["weight_map"].values())
            wrong = [s for s in shards if not s.endswith(".safetensors") or Path(s).name != s]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadInput(f"{path} is corrupt ({first_line(error)}): copy or fetch it again") from error
        if wrong:
            raise BadInput(f"{path} names '{min(wrong)}', which is no safetensors file of that folder: save it again")
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{path} is corrupt ({first_line(error)}): copy or fetch it again") from error


def _hub_or_copy(name: str) -> Path | str:
    """The hub id when the hub serves it, else the copy in the local hub cache: handed the id of a hub that cannot be
    reached, transformers would try for most of a minute, even when told to use local files only."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        HfApi().model_info(name, timeout=20)
    except Exception as unreachable:
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except LocalEntryNotFoundError:
            raise unreachable from None
    return name
