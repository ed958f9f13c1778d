"""Ways to fine-tune, behind one interface: same data, same steps, same seed, one thing changed.

| name | what is changed |
|---|---|
| full | nothing: every block matrix is trained |
| freeze | the parameters of given units are held (SSAH, arXiv 2410.10862, section 5) |
| train-only | nothing but the parameters of given units is trained (SSAH, section 6) |
| safety-layers | a contiguous range of blocks is held (Li et al. 2024, arXiv 2408.17003) |
| lora, prefix, llama-adapter | an adapter is trained instead (`adapters.py`) |
| first-token | the first response tokens are kept near the start model's (Qi et al. 2024, `objective.FirstTokens`) |
| mix-refusals | a few refusals of shipped harmful train prompts are mixed into the data (Qi et al. 2023, section 5) |

`full`, `first-token` and `mix-refusals` take units to freeze, or to train alone, beside what they change themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.train.adapters import LLAMA_ADAPTER, LORA, PREFIX, Adapted, AdapterSizes, merge, with_adapter
from ssah_lens.train.checkpoint import Checkpoints
from ssah_lens.train.data import mixed_in
from ssah_lens.train.freeze import FrozenSlices, layer_slices, other_slices, owned_slices
from ssah_lens.train.loop import Diverged, Trained, TrainSettings, Watch, train
from ssah_lens.train.objective import FirstTokens
from ssah_lens.train.trainable import Part
from ssah_lens.units import UnitSet

MIX = 0.1
"""Refusals mixed in, per row of data: what an engineer would try first (Qi et al. 2023 mix in 3 to 10 per 100)."""
SAFETY_LAYERS = (0.2, 0.45)
"""Where the safety layers are taken to be when no range is given, as shares of the depth (blocks 6-13 of 30). Li et al.
find them in the middle, in another range for every model: find your own model's before you rely on it."""


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        name: one of `METHODS`.
        freeze: units whose parameters are held.
        only: the only units whose parameters are trained.
        layers: the safety layers; `SAFETY_LAYERS` of the depth when None.
        mix: refusals to mix in, per row of data.
        sizes: of an adapter.
    """

    name: str = "full"
    freeze: UnitSet | None = None
    only: UnitSet | None = None
    layers: range | None = None
    mix: float = MIX
    sizes: AdapterSizes = field(default=AdapterSizes())


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model.

    Attributes:
        model: to be measured and saved (`adapters.save_tuned`): the same object, or one with an adapter.
        trained: what happened.
    """

    model: ChatModel
    trained: Trained


@dataclass(frozen=True)
class _Plan:
    """What a method changes about a training run."""

    rows: Sequence[Row]
    frozen: FrozenSlices | None = None
    constraint: FirstTokens | None = None
    adapter: str | None = None


def _full(model: ChatModel, rows: Sequence[Row], method: Method, seed: int) -> _Plan:
    return _Plan(rows, _held(model, method))


def _freeze(model: ChatModel, rows: Sequence[Row], method: Method, seed: int) -> _Plan:
    return _Plan(rows, _held(model, method))


def _train_only(model: ChatModel, rows: Sequence[Row], method: Method, seed: int) -> _Plan:
    return _Plan(rows, _held(model, method))


def _safety_layers(model: ChatModel, rows: Sequence[Row], method: Method, seed: int) -> _Plan:
    layers = method.layers or default_safety_layers(model.grid.n_layers)
    return _Plan(rows, FrozenSlices(layer_slices(model.anatomy, layers)))


def _first_token(model: ChatModel, rows: Sequence[Row], method: Method, seed: int) -> _Plan:
    return _Plan(rows, _held(model, method), FirstTokens.of(model, rows))


def _mix_refusals(model: ChatModel, rows: Sequence[Row], method: Method, seed: int) -> _Plan:
    return _Plan(mixed_in(model, rows, method.mix, seed), _held(model, method))


def _adapter(model: ChatModel, rows: Sequence[Row], method: Method, seed: int) -> _Plan:
    return _Plan(rows, adapter=method.name)


METHODS: dict[str, Callable[[ChatModel, Sequence[Row], Method, int], _Plan]] = {
    "full": _full,
    "freeze": _freeze,
    "train-only": _train_only,
    "safety-layers": _safety_layers,
    LORA: _adapter,
    PREFIX: _adapter,
    LLAMA_ADAPTER: _adapter,
    "first-token": _first_token,
    "mix-refusals": _mix_refusals,
}
LR = {LORA: 1e-4, PREFIX: 1e-2, LLAMA_ADAPTER: 1e-2}
"""Peak learning rates of the SSAH paper's adapters (7B models); the others share `FULL_LR`."""
FULL_LR = 5e-5


def check_method(name: str) -> None:
    """Raises BadInput for an unknown method, before any model is loaded."""
    if name not in METHODS:
        raise BadInput(f"no method '{name}': allowed are {', '.join(METHODS)}")


def default_lr(name: str) -> float:
    """The learning rate when none is given."""
    return LR.get(name, FULL_LR)


def default_safety_layers(n_layers: int) -> range:
    """`SAFETY_LAYERS` of the depth, at least one block."""
    first, last = (int(share * n_layers) for share in SAFETY_LAYERS)
    return range(first, max(first, last) + 1)


def tune(
    model: ChatModel,
    rows: Sequence[Row],
    settings: TrainSettings,
    method: Method,
    what: str = "fine-tuning",
    look: Callable[[ChatModel], Mapping[str, float]] | None = None,
    every: int = 0,
    checkpoints: Checkpoints | None = None,
) -> Tuned:
    """Fine-tunes by a method, in place; an adapter that cannot be merged leaves the model's own weights alone.

    Args:
        model: the start model.
        rows: prompts with answers.
        settings: the same for all methods that are compared.
        method: which way.
        what: label of the progress bar.
        look: measures the model as it is being trained (adapter included) every `every` steps.
        every: 0 for never.
        checkpoints: where to keep the state.

    Raises:
        BadInput: an unknown method, units that it cannot hold, data that cannot be trained on.
        Diverged: the loss is not finite; its `model` has the last good weights.
    """
    check_method(method.name)
    check_units(method)
    plan = METHODS[method.name](model, rows, method, settings.seed)
    adapted = with_adapter(model, plan.adapter, method.sizes, settings.seed) if plan.adapter else None
    trained_model = adapted or model
    watch = Watch(every, lambda: look(trained_model)) if look and every else None
    parts = [Part(p) for p in adapted.adapter_parameters] if adapted else None
    try:
        done = train(
            trained_model,
            plan.rows,
            settings,
            plan.frozen,
            what,
            constraint=plan.constraint,
            parts=parts,
            watch=watch,
            checkpoints=checkpoints,
        )
    except Diverged as e:
        e.model = _finished(model, adapted, plan)
        raise
    return Tuned(_finished(model, adapted, plan), done)


def _finished(model: ChatModel, adapted: Adapted | None, plan: _Plan) -> ChatModel:
    if adapted is None:
        return model
    return merge(adapted) if plan.adapter == LORA else adapted


@contextmanager
def weights_put_back(model: ChatModel) -> Iterator[None]:
    """Whatever training does to the model inside, its weights are as before afterwards."""
    kept = [(p, p.detach().clone()) for p in model.plain.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, values in kept:
                p.copy_(values)


def _held(model: ChatModel, method: Method) -> FrozenSlices | None:
    if method.freeze is not None and method.only is not None:
        raise BadInput("--freeze and --train-only exclude each other; give one of them")
    if method.freeze is not None:
        return FrozenSlices(owned_slices(model.anatomy, method.freeze))
    if method.only is not None:
        return FrozenSlices(other_slices(model.anatomy, method.only))
    return None


def check_units(method: Method) -> None:
    """Raises BadInput when a method lacks the units that it needs, or is given units that it cannot hold."""
    if method.name == "freeze" and method.freeze is None:
        raise BadInput("method freeze needs units to freeze (--freeze UNITS)")
    if method.name == "train-only" and method.only is None:
        raise BadInput("method train-only needs units to train (--train-only UNITS)")
    given = method.freeze is not None or method.only is not None
    if given and METHODS[method.name] in (_safety_layers, _adapter):
        raise BadInput(
            f"method {method.name} cannot hold single units (it changes whole matrices or blocks); "
            "leave out --freeze and --train-only, or use full, first-token or mix-refusals"
        )
