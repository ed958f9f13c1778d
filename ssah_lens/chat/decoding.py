"""What is done with the logits of each step of a generation, and how a token is drawn from them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


class AtDecision:
    """Hands on the first step's logits of a generation, unchanged."""

    def __init__(self, rows: list[int], tell: Callable[[list[int], Tensor], None]) -> None:
        self.rows, self.tell, self.told = rows, tell, False

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        if not self.told:
            self.tell(self.rows, logits)
            self.told = True
        return logits


class Drawn:
    """Makes greedy decoding a draw from the model's own distribution, the same however a batch is cut."""

    def __init__(self, seed: int, whole: list[int], rows: list[int], device: torch.device) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        self.n, self.places = len(whole), [whole.index(i) for i in rows]

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        return race(logits.softmax(-1), noise(self.n, logits, self.generator)[self.places])


def noise(n: int, like: Float[Tensor, "row vocab"], generator: torch.Generator) -> Float[Tensor, "n vocab"]:
    """Exponential noise for n draws, as wide as `like`, of its type and on its device."""
    return like.new_empty(n, like.shape[-1]).exponential_(generator=generator)


def race(p: Float[Tensor, "row vocab"], noise: Float[Tensor, "row vocab"]) -> Float[Tensor, "row vocab"]:
    """Values that are largest at a token that is a draw from p, as `torch.multinomial` draws: p / exponential noise."""
    return p / noise
