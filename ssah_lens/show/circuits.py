"""CircuitsVis views (github.com/TransformerLensOrg/CircuitsVis) that work offline and survive any token.

CircuitsVis itself asks a web site which script to load, inlines 1.3 MB per view into the notebook's own page and writes
tokens as markup. Here its library goes, compressed, into a frame of its own (`page.Page`), tokens are made harmless and
visible first, and what would be drawn wrongly in silence (NaN, lengths that do not fit) is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ssah_lens.errors import BadInput
from ssah_lens.show.page import Page, as_json, document, finite, packed
from ssah_lens.show.style import ROLE_COLOURS
from ssah_lens.show.tokens import no_markup, visible

POSITIVE, NEGATIVE = ROLE_COLOURS["SCU"], ROLE_COLOURS["UCU"]
"""Orange and blue: towards refusing, and away from it."""
AXIS_CHARACTERS = 24
"""Longer tokens are cut where they stand on an axis."""
DIGITS = 5
CSS = (
    # A long token wraps inside its box instead of leaving the page; each token keeps its own text direction.
    ".view span,.view button{max-width:100%;overflow-wrap:anywhere;white-space:normal;unicode-bidi:isolate}"
    ".view td,.view th{padding:2px 6px}.view{margin-bottom:10px}.view h3{font-size:13px}.view h2{font-size:15px}"
    ".row{display:grid;grid-template-columns:minmax(7em,14em) 1fr;gap:10px;align-items:baseline}"
    ".name{font-weight:600}"
)
DRAW = """
// CircuitsVis writes white on colours of middling lightness: black or white, whichever stands out more, is put instead.
const readable = () => {
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  for (const e of document.querySelectorAll(".view [style*='background']")) {
    const [r, g, b, a = 1] = (getComputedStyle(e).backgroundColor.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
    if (a === 0) continue;
    const [x, y, z] = [r, g, b].map((v) => linear((v * a + 255 * (1 - a)) / 255));
    const ink = 0.2126 * x + 0.7152 * y + 0.0722 * z > 0.179 ? "rgb(0, 0, 0)" : "rgb(255, 255, 255)";
    if (e.style.color !== ink) e.style.color = ink;
  }
};
(async () => {
  const library = document.createElement("script");
  library.textContent = await unpackText(LIBRARY);
  document.head.append(library);
  for (const [id, element, props] of PARTS) CircuitsVis.render(id, CircuitsVis[element], props);
  const changed = { childList: true, subtree: true, attributes: true, attributeFilter: ["style"] };
  for (const view of document.querySelectorAll(".view")) new MutationObserver(readable).observe(view, changed);
  readable();
  document.body.dataset.rendered = PARTS.length;
})().catch(failed);
"""


@dataclass(frozen=True)
class Part:
    """One CircuitsVis element: its name there, its properties, and what to write before it."""

    element: str
    props: dict[str, Any]
    label: str = ""


@dataclass(frozen=True)
class View:
    """What a notebook shows; also saved as a file of its own.

    Attributes:
        title: what it shows.
        words: how to read it, n included.
        parts: CircuitsVis elements, one under the other.
        height: pixels it likes in a notebook.
        still: plain HTML for where scripts do not run.
    """

    title: str
    words: str
    parts: tuple[Part, ...] = field(repr=False)
    height: int
    still: str = field(default="", repr=False)

    @property
    def page(self) -> Page:
        """The view as a page of its own."""
        return page([self], self.title)

    def _repr_html_(self) -> str:
        return self.page._repr_html_()

    def save(self, path: str | Path) -> Path:
        """Writes a self-contained HTML file."""
        return self.page.save(path)


def page(views: Sequence[View], title: str) -> Page:
    """Several views on one page, the library once.

    Raises:
        BadInput: no views.
    """
    if not views:
        raise BadInput("a page needs at least one view")
    body: list[str] = []
    parts: list[list[Any]] = []
    for view in views:
        body.append(f'<h1>{escape(view.title)}</h1><p class="words">{escape(view.words)}</p>')
        for part in view.parts:
            name = f"view-{len(parts)}"
            box = f'<div class="view" id="{name}"></div>'
            row = f'<div class="row"><div class="name">{escape(visible(part.label))}</div>{box}</div>'
            body.append(row if part.label else box)
            parts.append([name, part.element, part.props])
    script = f"const PARTS = {as_json(parts)};\nconst LIBRARY = '{_library()}';\n{DRAW}"
    still = "".join(v.still for v in views)
    return Page(title, document(title, "\n".join(body), script, CSS), sum(v.height for v in views), still)


# ---- the views


def attention(
    tokens: Sequence[str], patterns: Float[np.ndarray, "head dest src"], heads: Sequence[str], words: str = ""
) -> View:
    """Attention of some heads, from each token to the tokens before it.

    Args:
        tokens: of the prompt.
        patterns: attention, rows sum to 1.
        heads: name of each, e.g. 'L12H3'.
        words: how the heads were chosen.
    """
    patterns = finite(patterns, "attention weights")
    n = len(tokens)
    if patterns.shape != (len(heads), n, n) or not n or not heads:
        raise BadInput(f"attention of shape {patterns.shape} does not fit {len(heads)} heads and {n} tokens")
    props = {
        "tokens": [t if len(t) <= AXIS_CHARACTERS else t[:AXIS_CHARACTERS] + "…" for t in _texts(tokens)],
        "attention": _rounded(patterns),
        "attentionHeadNames": [visible(h, 20) for h in heads],
        "maxValue": 1,
        "minValue": -1,
        "positiveColor": NEGATIVE,
        "negativeColor": POSITIVE,
    }
    told = f"{words} Rows attend to columns; darker is more. n = {n} tokens, {len(heads)} heads."
    return View("Attention", told.strip(), (Part("AttentionHeads", props),), 930)


def coloured(tokens: Sequence[str], values: Float[np.ndarray, " token"], title: str, words: str) -> View:
    """Tokens coloured by a signed number: orange above zero, blue below, white at zero."""
    values = finite(values, "values")
    props = _coloured(tokens, values)
    lines = sum(map(len, props["tokens"])) // 110 + 2
    return View(title, words, (Part("ColoredTokens", props),), 130 + 30 * lines, _still(tokens, values))


def neuron_activations(
    prompts: Sequence[Sequence[str]], activations: Sequence[Float[np.ndarray, "token unit"]], units: Sequence[str]
) -> View:
    """Activation of chosen units on every token of some prompts, one unit at a time by a menu.

    Args:
        prompts: tokens of each.
        activations: of each prompt.
        units: name of each unit.
    """
    if len(prompts) != len(activations) or not prompts or not units:
        raise BadInput(f"got {len(prompts)} prompts, activations of {len(activations)} and {len(units)} units")
    shaped = []
    for i, (tokens, values) in enumerate(zip(prompts, activations, strict=True), 1):
        values = finite(values, "activations")
        if values.shape != (len(tokens), len(units)) or not len(tokens):
            raise BadInput(f"prompt {i}: activations {values.shape} for {len(tokens)} tokens and {len(units)} units")
        shaped.append(_rounded(values[:, :, None]))
    props = {
        "tokens": [_texts(t) for t in prompts],
        "activations": shaped,
        "firstDimensionName": "Unit",
        "secondDimensionName": "Shown",
        "firstDimensionLabels": [visible(u, 30) for u in units],
        "secondDimensionLabels": ["activation"],
    }
    words = f"Blue above zero, red below; hover for the number. n = {len(prompts)} prompts, {len(units)} units."
    lines = sum(sum(map(len, t)) // 110 + 2 for t in prompts[:5])
    return View("Activations", words, (Part("TextNeuronActivations", props),), 220 + 34 * lines)


def top_tokens(units: Sequence[tuple[str, Sequence[str], Float[np.ndarray, " k"]]], words: str) -> View:
    """The tokens on which each unit is most active.

    Args:
        units: (name, tokens, activations), strongest first.
        words: over which prompts, n included.
    """
    if not units:
        raise BadInput("top tokens need at least one unit")
    parts = tuple(Part("ColoredTokens", _coloured(t, finite(v, "activations")) | {"paddingBottom": 6}, name)
                  for name, t, v in units)  # fmt: skip
    still = "".join(f"<p>{escape(visible(n))}: {_still(t, np.asarray(v, dtype=float))}</p>" for n, t, v in units)
    return View("Tokens that move each unit most", words, parts, 120 + 44 * len(units), still)


def log_probs(
    before: str,
    tokens: Sequence[str],
    chosen: Float[np.ndarray, " token"],
    ranks: Int[np.ndarray, " token"],
    top: Sequence[Sequence[str]],
    top_values: Float[np.ndarray, "token k"],
) -> View:
    """A response coloured by how likely each token was; hover for what else the model might have said.

    Args:
        before: the token before the response.
        tokens: of the response.
        chosen: log-probability of each, nats.
        ranks: place of each among all tokens, 0 the likeliest.
        top, top_values: the likeliest tokens at each place, and their log-probabilities.
    """
    chosen, top_values = finite(chosen, "log-probabilities"), finite(top_values, "log-probabilities")
    n = len(tokens)
    if not n or not (chosen.shape == (n,) and len(ranks) == len(top) == n and top_values.shape == (n, len(top[0]))):
        raise BadInput(f"log-probabilities of shapes {chosen.shape}, {top_values.shape} do not fit {n} tokens")
    if (chosen > 1e-6).any() or (top_values > 1e-6).any():
        raise BadInput("a log-probability is above 0; give natural logarithms of probabilities")
    props = {
        "prompt": _texts([before, *tokens]),
        "topKLogProbs": _rounded(top_values),
        "topKTokens": [_texts(row) for row in top],
        "correctTokenRank": [int(r) for r in ranks],
        "correctTokenLogProb": _rounded(chosen),
    }
    words = f"Darker is likelier; mean {chosen.mean():.2f} nats per token, n = {n} tokens. Hover for the alternatives."
    return View(
        "Log-probabilities of the response", words, (Part("TokenLogProbs", props),), 480, _still(tokens, chosen)
    )


# ---- pieces


def _coloured(tokens: Sequence[str], values: np.ndarray) -> dict[str, Any]:
    if values.shape != (len(tokens),) or not len(tokens):
        raise BadInput(f"{len(tokens)} tokens need as many values, got shape {values.shape}")
    most = max(float(np.abs(values).max()), 1e-9)  # both ends of one size: equal colour is equal strength
    return {
        "tokens": _texts(tokens),
        "values": _rounded(values),
        "minValue": -most,
        "maxValue": most,
        "positiveColor": POSITIVE,
        "negativeColor": NEGATIVE,
    }


def _texts(tokens: Sequence[str]) -> list[str]:
    for token in tokens:
        if not isinstance(token, str):
            raise BadInput(f"tokens are texts, got {type(token).__name__}; decode token ids first")
    return [no_markup(t) for t in tokens]


def _rounded(values: np.ndarray) -> list:
    """Nested lists of five significant digits."""
    with np.errstate(divide="ignore"):
        places = DIGITS - 1 - np.floor(np.log10(np.abs(values), where=values != 0, out=np.zeros(values.shape)))
    scale = 10.0**places
    return (np.round(values * scale) / scale).tolist()


def _still(tokens: Sequence[str], values: np.ndarray) -> str:
    """Coloured tokens as plain HTML."""
    most = max(float(np.abs(values).max(initial=0.0)), 1e-9)
    return "".join(
        f'<span style="background-color:{_mixed(v / most)}" title="{v:.4g}">{escape(visible(t))}</span>'
        for t, v in zip(tokens, values, strict=True)
    )


def _mixed(share: float) -> str:
    colour = POSITIVE if share > 0 else NEGATIVE
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "rgb({},{},{})".format(*(round(255 + (p - 255) * abs(share) * 0.7) for p in parts))


@lru_cache(maxsize=1)
def _library() -> str:
    found = find_spec("circuitsvis")  # found, not imported: the package would load torch
    if found is None or not found.submodule_search_locations:
        raise BadInput("this view needs CircuitsVis: pip install 'ssah-lens[notebook]'")
    return packed((Path(found.submodule_search_locations[0]) / "dist" / "cdn" / "iife.js").read_bytes())
