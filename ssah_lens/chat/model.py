"""`ChatModel`: one set of weights seen twice, plain (to train and save) and bridged (to hook and measure).

The bridged view is a meta-device twin that is given the plain model's own tensors, so an edit or a training step
is seen in both. Tokens come from our own tokenizer and always travel with their attention mask; padding is on the
left, so the decision position (the last prompt token) is the last column of every batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssah_lens.chat import weights
from ssah_lens.chat.anatomy import Anatomy, anatomy
from ssah_lens.chat.batch import BATCH_TOKENS, FORWARD_OVERHEAD, STEP_OVERHEAD, Batch, Position, Row, by_length, pad
from ssah_lens.chat.decoding import AtDecision, Drawn
from ssah_lens.chat.device import check_device, check_room
from ssah_lens.chat.fits import check_fits
from ssah_lens.chat.memory import Batches, Room
from ssah_lens.chat.precision import bfloat16_if_fast, rounding
from ssah_lens.chat.promptset import Prompt, as_prompt, check_several
from ssah_lens.chat.template import Template, as_list
from ssah_lens.chat.views import bridged, check_bridge, check_views
from ssah_lens.errors import BadInput
from ssah_lens.units import UnitGrid

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import DynamicCache


class ChatModel:
    """A chat model and its tokenizer.

    Attributes:
        plain: the transformers model; train and save this one.
        tokenizer: its tokenizer, left-padding; never the bridge's (which prepends a second BOS).
        name: what to call the model in results.
        system: system prompt of all prompts that bring none of their own; None leaves the template's default.
        anatomy: its matrices; `grid` is the shape of its units.
        template: its chat template.
        turn_end: id of the token that ends an assistant turn in the chat template.
        room: how large batches may be.
    """

    def __init__(self, plain: torch.nn.Module, tokenizer, name: str, system: str | None = None) -> None:
        self.plain = plain.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.system = system
        self.room = Room()
        self.anatomy: Anatomy = anatomy(plain)
        self.grid: UnitGrid = self.anatomy.grid
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.template = Template(tokenizer, name)
        self.turn_end = self.template.turn_end
        if system:
            self.render("a")  # a template without a place for it is refused now
        self._positions: Int[Tensor, "batch pos"] | None = None

    @classmethod
    def load(
        cls,
        model: str,
        device: str = "cpu",
        dtype: str = "float32",
        note: Callable[[str], None] | None = None,
        system: str | None = None,
    ) -> ChatModel:
        """Loads a built-in name, a folder, a GGUF file or a hub id.

        Args:
            model: what to load.
            device: where to: 'cpu', 'cuda', 'cuda:1', 'mps', or 'auto' for the best of these.
            dtype: 'float32', 'bfloat16' or 'float16'.
            note: called with a line of text when something slow (a first download) happens, and with `notes`.
            system: system prompt of all prompts that bring none of their own.

        Raises:
            BadInput: no such model, damaged or unsupported weights, an unknown device or dtype, not enough memory.
        """
        dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        if dtype not in dtypes:
            raise BadInput(f"no dtype '{dtype}': allowed are {', '.join(dtypes)}")
        where = check_device(device)
        source = weights.resolve(model, note=note)
        check_room(source, dtypes[dtype], where)
        plain, tokenizer = weights.load_plain(source, dtypes[dtype])
        check_bridge(plain)
        out = cls(plain.to(where), tokenizer, source.name, system)
        _ = out.bridge  # what the two views do not agree on is refused now
        if note:
            for line in out.notes:
                note(f"note: {line}")
        return out

    def copy(self) -> ChatModel:
        """An independent model with the same weights."""
        return ChatModel(copy.deepcopy(self.plain), self.tokenizer, self.name, self.system)

    @property
    def notes(self) -> list[str]:
        """What a reader of this model's numbers must know, a sentence each."""
        out = self.template.notes
        if self.system:
            out.append(f"every prompt without a system prompt of its own is asked under this one: {self.system!r}")
        if self.anatomy.n_experts:
            out.append(
                f"{self.name} is a mixture of {self.anatomy.n_experts} experts: its heads are units, the experts' "
                "neurons are not (they are not scored, ablated or frozen; training moves them unless units are chosen)"
            )
        return out + rounding(self.plain.dtype)

    @property
    def has_chat_template(self) -> bool:
        """False for a base model, which is asked in a plain form."""
        return self.template.given

    @property
    def device(self) -> torch.device:
        return next(self.plain.parameters()).device

    @cached_property
    def bridge(self) -> TransformerBridge:
        """The TransformerLens view: the same tensors, with hook points."""
        bridge = bridged(self.plain, self.tokenizer, self.name)
        check_views(self, bridge)
        return bridge

    # ---- text to tokens

    def render(self, prompt: str, system: str | None = None) -> str:
        """The chat template around one user turn, up to the generation prompt."""
        return self.template.render(prompt, system or self.system)

    def prompt_tokens(self, prompt: str, system: str | None = None) -> tuple[list[int], list[int]]:
        """Token ids of the rendered prompt and the `Position` of each."""
        text = self.render(prompt, system)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # Templates may strip the user's text, and may hold the same words: the last occurrence before the tail counts.
        start = text.rfind(prompt.strip(), 0, len(text) - len(self.template.after(system or self.system)))
        if start < 0:
            raise BadInput(f"the chat template of {self.name} changes the prompt {prompt[:40]!r}: its place is unknown")
        end = start + len(prompt.strip())
        positions = [
            Position.POST_INSTRUCTION if low >= end else Position.INSTRUCTION if high > start else Position.TEMPLATE
            for low, high in encoded["offset_mapping"]
        ]
        return encoded["input_ids"], [int(p) for p in positions]

    def response_tokens(self, text: str, ended: bool = True) -> list[int]:
        """Token ids of a response as the model would write it; `ended` adds the token that ends the turn."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids + [self.turn_end] if ended else ids

    def rows(
        self,
        prompts: Sequence[str | Prompt],
        responses: Sequence[Sequence[int]] | None = None,
        system: str | Sequence[str | None] | None = None,
    ) -> list[Row]:
        """Chat-templated prompts, each followed by its response's token ids when given; one system prompt or many.

        A `Prompt` (a `PromptSet` is a sequence of them) may bring its own system prompt: it goes before one given here.

        Raises:
            BadInput: one text instead of several.
        """
        check_several(prompts)
        systems = [system] * len(prompts) if system is None or isinstance(system, str) else system
        out = []
        for i, prompt in enumerate(map(as_prompt, prompts)):
            ids, positions = self.prompt_tokens(prompt.text, prompt.system or systems[i])
            answer = list(responses[i]) if responses is not None else []
            out.append(Row(ids + answer, positions + [int(Position.RESPONSE)] * len(answer)))
        return out

    def text_rows(self, contexts: Sequence[str], continuations: Sequence[str]) -> list[Row]:
        """Plain text, no chat template: continuation tokens count as RESPONSE, context tokens as INSTRUCTION."""
        out = []
        bos = self.template.bos()
        for context, continuation in zip(contexts, continuations, strict=True):
            before = self.tokenizer(bos + context, add_special_tokens=False)["input_ids"] or [self.turn_end]
            after = self.tokenizer(continuation, add_special_tokens=False)["input_ids"]
            out.append(
                Row(before + after, [int(Position.INSTRUCTION)] * len(before) + [int(Position.RESPONSE)] * len(after))
            )
        return out

    def batches(
        self,
        rows: Sequence[Row],
        batch_tokens: int = BATCH_TOKENS,
        share_prefix: bool = True,
        overhead: int = FORWARD_OVERHEAD,
    ) -> Batches:
        """Batches of similar length, longest first, each with the indices of its rows.

        Args:
            rows: from `rows` or `text_rows`.
            batch_tokens: padded tokens per batch, as long as memory lasts (`memory.Batches.room`).
            share_prefix: run a common prefix once per batch; hooks then see it in a forward pass of its own.
            overhead: what a batch costs beside its tokens, in tokens.
        """
        cuts = by_length(rows, batch_tokens, overhead, share_prefix and not self.slides)
        return Batches(rows, cuts, batch_tokens, lambda some: self.pad(some, share_prefix), self.room)

    def pad(self, rows: Sequence[Row], share_prefix: bool = False) -> Batch:
        """One left-padded batch of these rows, in their order.

        Raises:
            BadInput: a row that is longer than the context, or tokens that the model has no embedding for.
        """
        check_fits(self.plain, rows, self.name)
        return pad(rows, self.tokenizer.pad_token_id, share_prefix and not self.slides).to(self.device)

    @cached_property
    def slides(self) -> bool:
        """True when some layers attend to a window only: their cache forgets, so no prefix is run apart."""
        config = self.plain.config.get_text_config()
        layers = getattr(config, "layer_types", None)
        if layers is not None:
            return "sliding_attention" in layers
        return getattr(config, "sliding_window", None) is not None

    # ---- running

    @contextmanager
    def reading(self, batch: Batch) -> Iterator[None]:
        """Makes the batch's position classes known to hooks while it runs."""
        before, self._positions = self._positions, batch.positions
        try:
            yield
        finally:
            self._positions = before

    def positions_of(self, n_pos: int) -> Int[Tensor, "batch pos"]:
        """Position classes of the tokens in the forward pass under way; a decoding step is all RESPONSE.

        Raises:
            BadInput: nothing runs through this ChatModel, so positions are unknown.
        """
        if self._positions is None:
            raise BadInput(
                "position classes are known only inside ChatModel.logits() and generate(); run the model through them"
            )
        if self._positions.shape[1] == n_pos:
            return self._positions
        return torch.full((self._positions.shape[0], n_pos), int(Position.RESPONSE), device=self._positions.device)

    def logits(self, batch: Batch, keep: int = 1) -> Float[Tensor, "batch keep vocab"]:
        """Logits of the last `keep` positions only: the unembedding of a small model costs as much as its blocks."""
        model = self.bridge.original_model
        return self._forward(model, model, batch, logits_to_keep=keep).logits

    def response_logits(self, batch: Batch, plain: bool = False) -> Float[Tensor, "token vocab"]:
        """Logits that predict each response token, in the order of `batch.response`; no others are computed.

        Args:
            batch: rows with responses.
            plain: run the plain model (for training) instead of the bridged one (for hooks).
        """
        model = self.plain if plain else self.bridge.original_model
        hidden = self._forward(model, model.get_decoder(), batch).last_hidden_state
        return unembed(model, hidden[:, :-1][batch.response[:, 1:]])

    def _forward(self, model: torch.nn.Module, module: torch.nn.Module, batch: Batch, **options):
        cache, mask = self._run_prefix(model, batch)
        with self.reading(batch):
            return module(
                input_ids=batch.ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, -batch.ids.shape[1] :],
                past_key_values=cache,
                use_cache=cache is not None,
                **options,
            )

    def _run_prefix(
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[DynamicCache | None, Int[Tensor, "batch whole"]]:
        """Keys and values of the shared prefix, one copy per row, and the mask of prefix and rows together.

        Gradients flow through them: training with a shared prefix is training with whole rows.
        """
        if batch.prefix is None:
            return None, batch.mask
        from transformers import DynamicCache

        one = self.pad([batch.prefix])
        cache = DynamicCache(config=self.plain.config)
        with self.reading(one):
            model.get_decoder()(input_ids=one.ids, attention_mask=one.mask, past_key_values=cache, use_cache=True)
        n = batch.ids.shape[0]
        cache.batch_repeat_interleave(n)
        return cache, torch.cat([one.mask.expand(n, -1), batch.mask], 1)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str | Prompt],
        max_new_tokens: int = 24,
        batch_tokens: int = BATCH_TOKENS,
        system: str | Sequence[str | None] | None = None,
        what: str = "generating",
        sample_seed: int | None = None,
        prefix: Sequence[int] = (),
        at_decision: Callable[[list[int], Float[Tensor, "batch vocab"]], None] | None = None,
        rough: bool = False,
    ) -> list[list[int]]:
        """Responses as token ids, in the order of the prompts; the token that ends the turn is left out.

        Args:
            prompts: user turns, with their own system prompts or without.
            max_new_tokens: longest response.
            batch_tokens: padded prompt tokens per batch.
            system: system prompt, or one per prompt; None leaves the template's own default.
            what: label of the progress bar.
            sample_seed: None for greedy decoding; a seed samples from the model's own distribution (temperature 1).
            prefix: token ids that every response is made to begin with; they are part of what is returned.
            at_decision: called once per batch with its prompts' indices and the logits of the first new token; again
                where a batch did not fit in memory.
            rough: without the hooks of the bridged view, in bfloat16 where the processor has it: for text to train on,
                never to measure.

        Raises:
            BadInput: a prompt that leaves no room for the response in the model's context.
        """
        from transformers import GenerationConfig

        from ssah_lens.progress import progress

        # A fresh configuration: a model's own may sample or punish repetition.
        stop = sorted({self.turn_end, *as_list(self.tokenizer.eos_token_id)})
        config = GenerationConfig(
            max_new_tokens=max_new_tokens - len(prefix),
            eos_token_id=stop,
            pad_token_id=self.tokenizer.pad_token_id,
            do_sample=False,
        )
        out: list[list[int]] = [[] for _ in prompts]
        rows = self.rows(prompts, [prefix] * len(prompts), system)
        texts = [as_prompt(p).text for p in prompts]
        check_fits(self.plain, rows, self.name, max_new_tokens - len(prefix), texts)
        batches = self.batches(rows, batch_tokens, overhead=FORWARD_OVERHEAD + STEP_OVERHEAD * max_new_tokens)
        model = self.plain if rough else self.bridge.original_model
        for chosen, batch in progress(batches, what):
            with batches.room(), bfloat16_if_fast(self.device, rough):
                cache, mask = self._run_prefix(model, batch)
                shared = torch.tensor(batch.prefix.ids if batch.prefix else [], dtype=torch.long, device=self.device)
                steps: list[Callable[[Tensor, Tensor], Tensor]] = []
                if at_decision is not None:
                    steps.append(AtDecision(chosen, at_decision))
                if sample_seed is not None:
                    steps.append(Drawn(sample_seed, batches.whole, chosen, self.device))
                with self.reading(batch):
                    tokens = model.generate(
                        input_ids=torch.cat([shared.expand(len(chosen), -1), batch.ids], 1),
                        attention_mask=mask,
                        past_key_values=cache,
                        generation_config=config,
                        logits_processor=steps,
                    )
                for i, row in zip(chosen, tokens[:, mask.shape[1] :].tolist(), strict=True):
                    ends = [k for k, t in enumerate(row) if t in stop]
                    out[i] = [*prefix, *(row[: ends[0]] if ends else row)]
        return out

    def text(self, tokens: Sequence[int]) -> str:
        """Decoded response text."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def unembed(
    plain: torch.nn.Module, final: Float[Tensor, "*any d_model"], columns: Int[Tensor, " column"] | None = None
) -> Float[Tensor, "*any vocab"]:
    """Logits from states that have been through the final norm; only some vocabulary columns when given."""
    head = plain.get_output_embeddings()
    if columns is None:
        out = head(final)
    else:
        out = torch.nn.functional.linear(final, head.weight[columns], None if head.bias is None else head.bias[columns])
    cap = getattr(plain.config.get_text_config(), "final_logit_softcapping", None)
    return out if cap is None else torch.tanh(out / cap) * cap
