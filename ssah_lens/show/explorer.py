"""The unit explorer: every neuron and head on one map, searched, filtered and opened; one file that works offline.

Scores travel as float32, compressed (about 1 MB for 46,000 units, 7 MB for 300,000), and are drawn pixel by pixel on a
canvas. Texts on which a unit is active come along for the units that matter (`UnitContext`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources

import numpy as np
from jaxtyping import Float

from ssah_lens.errors import BadInput
from ssah_lens.results import Snippet, UnitContext
from ssah_lens.show.page import Page, as_json, document, packed
from ssah_lens.show.style import ROLE_COLOURS, ROLE_NAMES
from ssah_lens.show.text import clean
from ssah_lens.show.tokens import visible
from ssah_lens.units import Kind, Role, UnitTable, unit_name

HEIGHT = 980
DARK = {"SCU": "#A84400", "UCU": "#005C91", "CU": "#96487A", "RU": "#006E50"}
"""The roles' colours as a ground for white text (contrast above 4.5)."""
MISSING = (
    "No texts are kept for this unit. In a notebook: ssah_lens.unit_contexts(model, [(kind, layer, index)]) finds them."
)
Effects = Mapping[str, Mapping[Kind, Float[np.ndarray, "layer unit"]]]


def explorer(
    table: UnitTable, contexts: Sequence[UnitContext] = (), effects: Effects | None = None, title: str = "Units"
) -> Page:
    """The explorer as a page: the last value of a notebook cell, or `.save(path)`.

    Args:
        table: scores and roles; importance, and confidence in the role, are columns where there are such.
        contexts: for the units that matter.
        effects: further columns by name, e.g. the exact effect of each unit; NaN where not measured.
        title: above the map.

    Raises:
        BadInput: a column that does not fit the table, or a context of a unit that the model does not have.
    """
    columns = {
        "I_S - I_U": {k: table.safety[k] - table.utility[k] for k in Kind},
        "I_S (safety)": table.safety,
        "I_U (utility)": table.utility,
        **({} if table.importance is None else {"importance": table.importance}),
        **({} if table.confidence is None else {"confidence": table.confidence}),
        **(effects or {}),
    }
    blob = b"".join(_flat(table, name, values, np.float32) for name, values in columns.items())
    roles = {k: _role_numbers(table, k) for k in Kind}
    blob += _flat(table, "roles", roles, np.uint8)
    texts = _Texts()
    found = {_name(table, c): _context(table, c, texts) for c in contexts}
    score = table.provenance.get("score", "unknown")
    model = table.provenance.get("model")
    of = f" of {clean(str(model), 60)}" if model else ""
    head = {
        "title": clean(title),
        "words": f"All {table.grid.n_units:,} units{of}, scored by {clean(str(score), 40)}. I_S: importance for "
        "safety; I_U: for utility, in the units of that score. Each point is a neuron (small) or an attention head "
        "(large).",
        "layers": table.grid.n_layers,
        "kinds": [{"name": str(k), "width": table.grid.width(k)} for k in table.grid.kinds],
        "columns": [clean(c, 60) for c in columns],
        "roles": [{"name": str(r), "meaning": ROLE_NAMES[r], "colour": ROLE_COLOURS[r], "dark": DARK[r]} for r in Role],
        "counts": [len(table.roles[r]) for r in Role],
        "contexts": found,
        "tokens": texts.known,
        "missing": MISSING,
    }
    read = lambda name: resources.files("ssah_lens.show").joinpath(name).read_text(encoding="utf-8")
    data = f"const HEAD = '{packed(as_json(head).encode())}';\nconst UNITS = '{packed(blob)}';\n"
    still = f"<p>{table.grid.n_units:,} units: " + ", ".join(f"{r} {len(table.roles[r]):,}" for r in Role) + "</p>"
    page = document(clean(title), read("explorer.html"), data + read("explorer.js"), read("explorer.css"))
    return Page(clean(title), page, HEIGHT, still)


class _Texts:
    """Tokens by number, each written once."""

    def __init__(self) -> None:
        self.known: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, token: str) -> int:
        shown = visible(token)
        if shown not in self._numbers:
            self._numbers[shown] = len(self.known)
            self.known.append(shown)
        return self._numbers[shown]


def _flat(table: UnitTable, name: str, values: Mapping[Kind, np.ndarray], dtype: type) -> bytes:
    for kind in Kind:
        want = table.safety[kind].shape
        if kind not in values or np.shape(values[kind]) != want:
            raise BadInput(f"column '{name}' has no {kind} values of shape {want} (layers, units)")
    return np.concatenate([np.asarray(values[k]).ravel() for k in Kind]).astype(dtype).tobytes()


def _role_numbers(table: UnitTable, kind: Kind) -> np.ndarray:
    out = np.zeros(table.safety[kind].shape, dtype=np.uint8)
    for number, role in enumerate(Role):
        out[table.roles[role].masks[kind]] = number
    return out


def _name(table: UnitTable, c: UnitContext) -> str:
    kind = Kind(c.kind)
    if not (0 <= c.layer < table.grid.n_layers and 0 <= c.index < table.grid.width(kind)):
        raise BadInput(f"a context is of {c.kind} {c.index} in layer {c.layer}, which the model does not have")
    return unit_name(kind, c.layer, c.index)


def _context(table: UnitTable, c: UnitContext, texts: _Texts) -> dict:
    return {
        "direct": None if c.direct is None or not np.isfinite(c.direct) else _round(c.direct),
        "examples": {clean(side, 40): [_snippet(s, texts) for s in found] for side, found in c.examples.items()},
        "neighbours": [[unit_name(Kind(k), a, b), round(cosine, 3)] for k, a, b, cosine in c.neighbours],
    }


def _snippet(s: Snippet, texts: _Texts) -> dict:
    if len(s.tokens) != len(s.values) or not 0 <= s.peak < len(s.tokens) or not np.isfinite(s.values).all():
        raise BadInput(f"a snippet of {len(s.tokens)} tokens has {len(s.values)} values, peak {s.peak}, or NaN")
    return {"t": [texts.number(t) for t in s.tokens], "v": [_round(v) for v in s.values], "p": s.peak}


def _round(value: float) -> float:
    return float(f"{value:.3g}")
