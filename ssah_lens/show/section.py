"""What a section of the report is made of. No HTML here."""

from __future__ import annotations

from dataclasses import dataclass

from ssah_lens.results import Behaviour
from ssah_lens.show.text import clean

N_EXAMPLES = 6


@dataclass(frozen=True)
class Table:
    """A table of text; the first column heads its row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Examples:
    """Responses to the same prompts: (prompt, ((outcome, response) per column)). All of it is untrusted text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


@dataclass(frozen=True)
class Section:
    """One stage in the report.

    Attributes:
        id: name of the stage, also the anchor.
        title: heading.
        question: what the stage asks, in one sentence.
        figures: name of each figure -> its alt text.
        words: paragraphs computed from the results.
        control: what the numbers are compared with.
        tables: ours.
        reference: the paper's beside ours, and how far they compare.
        examples: responses.
    """

    id: str
    title: str
    question: str
    figures: dict[str, str]
    words: tuple[str, ...]
    control: str
    tables: tuple[Table, ...]
    reference: Table | None = None
    caution: str = ""
    examples: Examples | None = None


def examples(models: dict[str, Behaviour]) -> Examples | None:
    """The same prompts side by side, as far as every model answered them."""
    answers = [{clean(p): (clean(o, 20), clean(text)) for p, o, text in b.examples} for b in models.values()]
    prompts = [p for p in answers[0] if all(p in a for a in answers)][:N_EXAMPLES]
    if not prompts:
        return None
    return Examples(tuple(models), tuple((p, tuple(a[p] for a in answers)) for p in prompts))
