"""What the paper reports (SSAH, arXiv 2410.10862, 7-8B models), to be read beside ours (METHOD.md section 9)."""

from __future__ import annotations

PAPER_ABLATION = (
    ("Llama-2-7B-chat", "SCU", "1.3%", "10.0 → 66.0", "-1.3"),
    ("Llama-2-7B-chat", "UCU", "13.3%", "10.0 → 28.3", "-15.6"),
    ("Llama-2-7B-chat", "RU", "14.8%", "10.0 → 14.6", "-2.8"),
    ("Llama-3-8B-Instruct", "SCU", "1.4%", "15.5 → 86.5", "-3.6"),
    ("Llama-3-8B-Instruct", "UCU", "6.8%", "15.5 → 20.0", "-16.8"),
    ("Llama-3-8B-Instruct", "RU", "6.6%", "15.5 → 12.5", "-0.4"),
    ("Mistral-7B-Instruct-v0.2", "SCU", "2%", "14.5 → 62.5", "-2.9"),
    ("Mistral-7B-Instruct-v0.2", "UCU", "1.3%", "14.5 → 20.0", "-26.2"),
    ("Mistral-7B-Instruct-v0.2", "RU", "13.4%", "14.5 → 13.0", "-2.1"),
)
"""Model, role, share of units, attack success (percent) before and after ablation, change of task accuracy (points)."""
PAPER_SCU = ((0.013, 0.34), (0.014, 0.135), (0.02, 0.375))
"""SCU as a share of units, and the share of harmful prompts that do not succeed without them (100 - attack success)."""
PAPER_FREEZING = (
    ("Llama-2-7B-chat on Alpaca", "nothing frozen", "0.19 → 5.3"),
    ("Llama-2-7B-chat on Alpaca", "SCU and top 6% CU frozen", "0.19 → 2.96"),
    ("Llama-2-7B-chat on Alpaca", "SCU and all CU frozen", "0.19 → 2.1"),
    ("Llama-2-7B-chat on Dolly", "nothing frozen", "0.19 → 11.92"),
    ("Llama-2-7B-chat on Dolly", "SCU and top 6% CU frozen", "0.19 → 3.65"),
    ("Llama-2-7B-chat on Dolly", "SCU and all CU frozen", "0.19 → 2.88"),
)
"""Model and data, method, AdvBench attack success in percent by keywords, before and after."""
CAUTION = (
    "The paper gives attack success by its own judges; the rows of this run give all that is not refused, incoherent "
    "responses included. Models and prompts differ too, and the paper has no random control, no seeds and no interval: "
    "compare directions, not digits."
)
