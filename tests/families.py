"""What micro models are made of: a chat template, and the architectures that units are told apart in."""

from __future__ import annotations

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6},
    "phi3": {},
    "gpt2": {"n_inner": 12},
    "gpt_neox": {},
    "olmo2": {},
    "stablelm": {"partial_rotary_factor": 0.5},
}
"""Architectures that units are told apart in, with what their micro models need beside the common sizes."""
EXPERTS = {
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2, "intermediate_size": 16},
    "qwen2_moe": {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "mlp_only_layers": [0],
                  "shared_expert_intermediate_size": 8},
    "qwen3_moe": {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
}  # fmt: skip
"""Mixtures of experts: heads are units, expert neurons are not. The first layer of this Qwen2-MoE is dense."""
