"""Micro models: tiny random chat models with a real byte-level tokenizer, made at once and without a download."""

from __future__ import annotations

import copy
import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
import torch
from families import CHATML, EXPERTS, FAMILIES
from hypothesis import HealthCheck, settings

from ssah_lens.chat.model import ChatModel

settings.register_profile(
    "ssah", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ssah")

LONGEST = ("study/test_engine.py", "study/test_kill.py", "test_cli.py", "notebooks/test_notebooks.py")
"""Files with few tests that take long. Begun last, one of them would keep one processor while the others wait."""


def pytest_configure(config: pytest.Config) -> None:
    """Files are given to processes (`--dist loadfile`) in the order below, not those of many tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


SENTENCES = [
    "How do I bake a loaf of bread at home?",
    "Sorry, I cannot help with that request.",
    "Sure, here is how you can do that.",
    "The user asks the assistant a question, and the assistant answers.",
]


@pytest.fixture(scope="session", autouse=True)
def quiet_and_deterministic() -> Iterator[None]:
    """No progress bars, only errors of transformers; one thread, since micro models lose time on two."""
    import transformers

    from ssah_lens.progress import quiet

    transformers.logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with quiet():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def libraries_are_no_garbage() -> None:
    """Every training collects garbage: a quarter of a second, if the objects of libraries are searched."""
    import transformers.models.llama.modeling_llama  # noqa: F401 (what most tests import)

    import ssah_lens.study.runner  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Whatever a test draws without a seed of its own, it draws the same every time."""
    torch.manual_seed(0)


SHARED = ("micro", "micro_qwen", "any_family", "any_experts")


@pytest.fixture(autouse=True)
def shared_models_are_left_alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that leaves its mark on a shared model fails itself, not whichever test runs after it."""
    models = [request.getfixturevalue(name) for name in SHARED if name in request.fixturenames]
    before = [state_of(model) for model in models]
    yield
    for model, (weights, rest) in zip(models, before, strict=True):
        now, others = state_of(model)
        changed = [name for name, value in now.items() if not torch.equal(value, weights[name])]
        assert not changed and others == rest, f"the test has changed the shared {model.name}: {changed or others}"


def state_of(model: ChatModel) -> tuple[dict[str, torch.Tensor], list]:
    """The weights, and what else a test could leave behind: gradients, a mode, a share of memory.

    Not hooks: transformers leaves its own the first time that attentions are asked for.
    """
    named = dict(model.plain.named_parameters())
    marks = [n for n, p in named.items() if p.grad is not None or not p.requires_grad or p._post_accumulate_grad_hooks]
    weights = {name: p.detach().clone() for name, p in named.items()}
    return weights, [marks, model.plain.training, model.room.share]


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable:
    """Builds a byte-level BPE tokenizer (any text round-trips), ChatML unless told otherwise."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    def make(template: str | None = CHATML, bos: str | None = None, pad: str | None = "<|pad|>"):
        specials = ["<|im_start|>", "<|im_end|>", "<|pad|>", *([bos] if bos else [])]
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(SENTENCES, trainer)
        if bos:  # as Llama and Gemma do: every encoding with special tokens begins with it
            inner.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, inner.token_to_id(bos))]
            )
        out = PreTrainedTokenizerFast(
            tokenizer_object=inner,
            eos_token="<|im_end|>",
            pad_token=pad,
            bos_token=bos,
            additional_special_tokens=["<|im_start|>"],
            clean_up_tokenization_spaces=False,
        )
        out.chat_template = template
        return out

    return make


@pytest.fixture(scope="session")
def make_llama() -> Callable:
    """A random two-layer Llama with grouped-query attention: 4 heads of width 4 share 2 key-value heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(tokenizer, seed: int = 0):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            max_position_embeddings=512,
            attn_implementation="eager",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return LlamaForCausalLM(config).float()

    return make


@pytest.fixture(scope="session")
def micro(make_llama: Callable, make_tokenizer: Callable) -> ChatModel:
    """The shared micro Llama. Leave its weights alone; take `micro_copy` to change them."""
    tokenizer = make_tokenizer()
    return ChatModel(make_llama(tokenizer), tokenizer, "micro-llama")


@pytest.fixture(scope="session")
def micro_qwen(make_tokenizer: Callable) -> ChatModel:
    """A micro Qwen2: biases on q, k and v (here not zero), embeddings tied to the unembedding."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        attn_implementation="eager",
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    plain = Qwen2ForCausalLM(config).float()
    for name, p in plain.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.3)
    return ChatModel(plain, tokenizer, "micro-qwen2")


@pytest.fixture(scope="session")
def make_family(make_tokenizer: Callable) -> Callable:
    """Builds a random two-layer ChatModel of a named architecture; biases are not zero."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(family: str, seed: int = 0) -> ChatModel:
        tokenizer = make_tokenizer()
        torch.manual_seed(seed)
        common = {
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4 if family in ("gpt2", "gpt_neox") else 2,
            "head_dim": 4,
            "max_position_embeddings": 512,
            "initializer_range": 0.3,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        config = AutoConfig.for_model(family, **common | (FAMILIES | EXPERTS)[family])
        plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
        plain.config.architectures = [type(plain).__name__]
        for name, p in plain.named_parameters():
            if name.endswith("bias") or "gate.weight" in name:  # a router of zeros would send all tokens one way
                torch.nn.init.normal_(p, std=0.3)
        return ChatModel(plain, tokenizer, f"micro-{family}")

    return make


@pytest.fixture(scope="session", params=list(FAMILIES))
def any_family(request: pytest.FixtureRequest, make_family: Callable) -> ChatModel:
    """One micro model of every architecture. Leave its weights alone."""
    return make_family(request.param)


@pytest.fixture(scope="session", params=list(EXPERTS))
def any_experts(request: pytest.FixtureRequest, make_family: Callable) -> ChatModel:
    """One micro model of every mixture of experts. Leave its weights alone."""
    return make_family(request.param)


def copied(model: ChatModel, tokenizer) -> ChatModel:
    """Another ChatModel with weights and tokenizer of its own."""
    return ChatModel(copy.deepcopy(model.plain), tokenizer, model.name)


@pytest.fixture
def micro_copy(micro: ChatModel, make_tokenizer: Callable) -> ChatModel:
    """A micro Llama to change."""
    return copied(micro, make_tokenizer())


@pytest.fixture
def qwen_copy(micro_qwen: ChatModel, make_tokenizer: Callable) -> ChatModel:
    """A micro Qwen2 to change."""
    return copied(micro_qwen, make_tokenizer())


@pytest.fixture(scope="session")
def micro_folder(micro: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared micro Llama as a folder. Leave its files alone."""
    from ssah_lens.chat.save import save_model

    return save_model(micro, tmp_path_factory.mktemp("models") / "micro")


@dataclass(frozen=True)
class Said:
    """What a command left: its exit status and its streams."""

    code: int
    out: str
    err: str


@pytest.fixture
def lens(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """The command line in this process: `lens("models", "--json")`. Whatever a library writes is caught as well."""
    from ssah_lens.cli import main

    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):  # a command sets them for its process
        monkeypatch.setenv(name, os.environ.get(name, "error" if name.startswith("T") else "1"))

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["ssah-lens", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            main()
        out, err = capfd.readouterr()
        return Said(int(done.value.code), out, err)

    return run
