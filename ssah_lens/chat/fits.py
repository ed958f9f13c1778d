"""What a model can be given: no more tokens than its context holds, and only tokens that it has embeddings for.

Beyond its context a model with learnt positions fails, and one with rotary positions answers as if nothing were wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ssah_lens.chat.batch import Row
from ssah_lens.errors import BadInput

SHOWN = 40
"""Characters of a prompt that an error repeats."""


def context_length(plain: nn.Module) -> int | None:
    """Tokens that the model was built for; None where its configuration does not say."""
    return getattr(plain.config.get_text_config(), "max_position_embeddings", None)


def check_fits(plain: nn.Module, rows: Sequence[Row], name: str, room: int = 0, texts: Sequence[str] = ()) -> None:
    """Refuses what the model would fail on, or silently misread.

    Args:
        plain: the transformers model.
        rows: what it is to be given.
        name: what to call the model.
        room: tokens that it may add.
        texts: what the rows were made of, to name one.

    Raises:
        BadInput: a row too long for the context, or a token beyond the embeddings.
    """
    longest = context_length(plain)
    known = plain.get_input_embeddings().weight.shape[0]
    for i, row in enumerate(rows):
        of = f" (of '{texts[i][:SHOWN]}...')" if texts else ""
        if longest is not None and len(row.ids) + room > longest:
            more = f" and a response of up to {room}" if room else ""
            raise BadInput(
                f"{len(row.ids)} tokens{of}{more} are more than the context of {name} holds ({longest}): "
                f"shorten or remove the prompt{', or lower --max-new-tokens' if room else ''}"
            )
        if max(row.ids, default=0) >= known:
            raise BadInput(
                f"token {max(row.ids)}{of} is beyond {name}'s {known} embeddings: it has another model's tokenizer; "
                "give a folder whose tokenizer files were saved with these weights"
            )
