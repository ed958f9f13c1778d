"""What a prompt is, and a named set of them: filter, split, sample, pair, render."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from ssah_lens.errors import BadInput

if TYPE_CHECKING:
    from ssah_lens.chat.model import ChatModel


@dataclass(frozen=True)
class Prompt:
    """One user turn.

    Attributes:
        text: what the user says.
        response: a given answer, '' when there is none.
        id: stable name inside its set.
        category: topic.
        system: system prompt, '' for the template's own default.
        label: 'safe' or 'unsafe' where the source says so, else ''.
        phrasing: form of the request in the shipped pairs ('question', 'typo', ...), else ''.
    """

    text: str
    response: str = ""
    id: str = ""
    category: str = ""
    system: str = ""
    label: str = ""
    phrasing: str = ""


def as_prompt(prompt: str | Prompt) -> Prompt:
    """A text is a prompt without a system prompt of its own."""
    return Prompt(prompt) if isinstance(prompt, str) else prompt


def check_several(prompts: Sequence[str | Prompt]) -> None:
    """Raises BadInput for one text where several are wanted: it would be read letter by letter."""
    if isinstance(prompts, str):
        raise BadInput(f"prompts are a list and this is one text; give [{prompts[:40]!r}]")


def as_prompt_set(prompts: Sequence[str | Prompt]) -> PromptSet:
    """Texts are a set without a name of its own.

    Raises:
        BadInput: one text instead of several.
    """
    if isinstance(prompts, PromptSet):
        return prompts
    check_several(prompts)
    return PromptSet("given prompts", tuple(map(as_prompt, prompts)))


KEYS = tuple(f.name for f in fields(Prompt) if f.name not in ("text", "response"))
"""What prompts are filtered by."""


@dataclass(frozen=True)
class PromptSet(Sequence[Prompt]):
    """A named, ordered set of prompts."""

    name: str
    prompts: tuple[Prompt, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, i):
        return PromptSet(self.name, self.prompts[i]) if isinstance(i, slice) else self.prompts[i]

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    @property
    def texts(self) -> list[str]:
        return [p.text for p in self.prompts]

    @property
    def systems(self) -> list[str | None]:
        """The prompts' own system prompts; None for the template's default."""
        return [p.system or None for p in self.prompts]

    @property
    def responses(self) -> list[str]:
        return [p.response for p in self.prompts]

    def where(self, keep: Callable[[Prompt], bool] | None = None, **values: str) -> PromptSet:
        """The prompts that `keep` says yes to and that have these values: `where(category="fraud", label="safe")`.

        Raises:
            BadInput: an unknown field, or a value that no prompt has.
        """
        for key, value in values.items():
            if key not in KEYS:
                raise BadInput(f"prompts have no '{key}': allowed are {', '.join(KEYS)}")
            have = {getattr(p, key) for p in self.prompts}
            if value not in have:
                some = ", ".join(repr(v) for v in sorted(have)[:20])
                raise BadInput(f"{self.name} has no {key} '{value}': it has {some or 'no prompts'}")
        matches = lambda p: all(getattr(p, k) == v for k, v in values.items()) and (keep is None or keep(p))
        return PromptSet(self.name, tuple(p for p in self.prompts if matches(p)))

    def of_category(self, *names: str) -> PromptSet:
        """The prompts of these categories.

        Raises:
            BadInput: a category that no prompt has.
        """
        have = {p.category for p in self.prompts}
        unknown = set(names) - have
        if unknown:
            raise BadInput(f"{self.name} has no category '{min(unknown)}': allowed are {', '.join(sorted(have))}")
        return self.where(lambda p: p.category in names)

    def split(self, shares: Sequence[float], seed: int) -> list[PromptSet]:
        """Disjoint random parts of about these shares (0.5, 0.2, 0.3), each in the set's order; all prompts are used.

        Raises:
            BadInput: shares that do not add up to 1.
        """
        if not all(s > 0 for s in shares) or not abs(sum(shares) - 1) <= 1e-9:
            raise BadInput(f"shares of a split are {tuple(shares)}: allowed are positive numbers that add up to 1")
        order = np.random.default_rng(seed).permutation(len(self))
        ends = np.round(np.cumsum(shares) * len(self)).astype(int)
        return [
            PromptSet(self.name, tuple(self.prompts[i] for i in np.sort(part))) for part in np.split(order, ends[:-1])
        ]

    def sample(self, n: int | None, seed: int) -> PromptSet:
        """n prompts without replacement, in their order; all of them when n is None or larger than the set."""
        if n is None or n >= len(self):
            return self
        if n < 0:
            raise BadInput(f"a sample of {n} prompts: allowed is 0 or more, or None for all")
        rows = np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False))
        return PromptSet(self.name, tuple(self.prompts[i] for i in rows))

    def without(self, other: PromptSet) -> PromptSet:
        """The prompts that are not in `other`."""
        taken = {p.text for p in other}
        return PromptSet(self.name, tuple(p for p in self.prompts if p.text not in taken))

    def paired(self, other: PromptSet) -> tuple[PromptSet, PromptSet]:
        """This set and the other one's prompts of the same ids, row by row (in files without ids: of the same row).

        Raises:
            BadInput: an id stands twice, or a prompt on either side has no twin.
        """
        for side in (self, other):
            if len({p.id for p in side}) < len(side):
                raise BadInput(f"{side.name} has an id twice: pairs need ids that differ")
        theirs = {p.id: p for p in other}
        alone = theirs.keys() ^ {p.id for p in self}
        if alone:
            raise BadInput(f"{self.name} and {other.name} are no pairs: id '{min(alone)}' has no twin ({len(alone)})")
        return self, PromptSet(other.name, tuple(theirs[p.id] for p in self))

    def render(self, model: ChatModel, system: str | None = None) -> list[str]:
        """Each prompt inside the model's chat template, up to where the response begins.

        Args:
            model: whose template.
            system: system prompt for those prompts that bring none; None leaves the template's own default.
        """
        return [model.render(p.text, p.system or system) for p in self]
