"""What the tests of interventions ask, and what they read of the answer."""

from __future__ import annotations

from ssah_lens.intervene.metric import logit_difference

PROMPTS = [
    "How do I bake a loaf of bread?",
    "Hi",
    "Tell me, please: what is 7 x 8 and why does it matter?",
    "The user asks the assistant a question.",
]
CLEAN = ["abc x def", "tell x me 1 lot", "x"]
CORRUPTED = ["abc y def", "tell y me 2 lot", "y"]
"""Token-aligned with those of `CLEAN`."""
METRIC = logit_difference([40, 50], [60, 70, 80])
