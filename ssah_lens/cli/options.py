"""What the commands share: option types, how to talk to the user, how to load a model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ssah_lens.errors import BadInput
from ssah_lens.show.text import printable

Model = Annotated[str, typer.Argument(help="built-in name, folder, .gguf file or hub id")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no notes and no progress bars")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps, auto")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16; float32 is the most exact")]
System = Annotated[
    Optional[str], typer.Option("--system", help="system prompt of prompts that bring none; else the template's own")
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="seed of everything random")]
IDLE = "without effect here; every command takes it"
AnyDevice = Annotated[str, typer.Option("--device", help=IDLE)]
AnyDtype = Annotated[str, typer.Option("--dtype", help=IDLE)]
AnySeed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help=IDLE)]
OptionalFile = Annotated[
    Optional[Path], typer.Option(help="prompt file, set or hub id; the shipped collection when not given")
]
PROMPTS = "prompt file, shipped set (harmful:test) or hub id (hub:owner/name)"
SCORES = "attribution, attribution-ig, contrast (needs --unaligned), exact, mask, snip, wanda, wifv"
Roles = Annotated[str, typer.Option("--roles", help="SCU, UCU, CU, RU; several separated by commas")]


@dataclass(frozen=True)
class Shell:
    """How to talk to the user."""

    json: bool
    quiet: bool

    def note(self, text: str) -> None:
        if not self.quiet:
            print(printable(text), file=sys.stderr, flush=True)

    def answer(self, result: Any, table: Callable[[], None]) -> None:
        """The JSON object, or a table for people."""
        if self.json:
            print(json.dumps(result if isinstance(result, dict) else asdict(result), allow_nan=False))
        else:
            table()


def run(shell: Shell, work: Callable[[], Any]) -> Any:
    """Runs with progress bars on or off, and transformers' own chatter off."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from ssah_lens.progress import quiet

    with quiet(shell.quiet):
        return work()


def loader(shell: Shell, device: str, dtype: str, system: str | None = None) -> Callable[[str], Any]:
    """What loads a model by name as the options say, and tells the user so."""

    def load(name: str):
        from transformers.utils import logging

        from ssah_lens.chat.model import ChatModel

        logging.disable_progress_bar()
        shell.note(f"loading {name} ...")
        return ChatModel.load(name, device, dtype, shell.note, system)

    return load


def layer_span(text: str | None) -> range | None:
    """Layers A to B of 'A-B' or 'A'; None for all.

    Raises:
        BadInput: something else.
    """
    if text is None:
        return None
    first, _, last = text.partition("-")
    try:
        span = range(int(first), int(last or first) + 1)
    except ValueError:
        raise BadInput(f"--layers '{text}' is not A-B, for example 10-20") from None
    if not len(span) or span.start < 0:
        raise BadInput(f"--layers '{text}' is empty; give A-B with A at most B")
    return span
