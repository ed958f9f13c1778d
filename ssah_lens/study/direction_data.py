"""The prompts behind stage `direction`, split by what they are for."""

from __future__ import annotations

from dataclasses import dataclass

from ssah_lens.chat.prompts import PromptSet, borderline, instructions, pairs
from ssah_lens.config import DirectionConfig, MeasureConfig, limit

Pair = tuple[PromptSet, PromptSet]


@dataclass(frozen=True)
class DirectionData:
    """Prompts by split; row i of a pair's first side is the twin of row i of the second.

    Attributes:
        train, validation, test: (harmful, harmless twins).
        train_ordinary, validation_ordinary, ordinary: ordinary instructions.
        harmful: harmful test prompts to steer; those of `test` unless the user brings others.
        safe, unsafe: borderline prompts, and their unsafe contrasts.
        aligned_train, aligned_test: all pairs of the splits, from which token-aligned ones are taken.
        others: the prompts of another origin that the user brings, harmful and harmless; None without. The shipped sets
            have none to offer: what is not used here already is for alignment training.
    """

    train: Pair
    train_ordinary: PromptSet
    validation: Pair
    validation_ordinary: PromptSet
    test: Pair
    ordinary: PromptSet
    harmful: PromptSet
    safe: PromptSet
    unsafe: PromptSet
    aligned_train: Pair
    aligned_test: Pair
    others: Pair | None = None


def direction_data(
    config: DirectionConfig,
    measure: MeasureConfig,
    seed: int,
    harmful: PromptSet | None = None,
    ordinary: PromptSet | None = None,
) -> DirectionData:
    """The shipped prompts at the configured sizes.

    Args:
        config, measure: sizes; test prompts are sampled as the rest of the study samples them.
        seed: seed.
        harmful, ordinary: the user's test prompts instead of the shipped ones; with one side given, the shipped other
            side stands beside it.
    """
    n, m = limit(config.train), limit(config.validation)

    def both(split: str, n: int | None) -> Pair:
        harmful_side, harmless_side = pairs(split)
        return harmful_side.sample(n, seed), harmless_side.sample(n, seed)

    test = both("test", limit(measure.harmful))
    edge = limit(config.borderline)
    given = harmful is not None or ordinary is not None
    ordinary = ordinary or instructions("test").sample(limit(measure.ordinary), seed)
    harmful = harmful or test[0]
    return DirectionData(
        both("train", n),
        instructions("train").sample(n, seed),
        both("validation", m),
        instructions("validation").sample(m, seed),
        test,
        ordinary,
        harmful,
        borderline().sample(edge, seed),
        borderline(safe=False).sample(edge, seed),
        pairs("train"),
        pairs("test"),
        (harmful, ordinary) if given else None,
    )
