"""The vocabulary: unit kinds, roles, sets of units and the table that scores them.

A unit is one input channel group of a depth-2 module's second matrix (METHOD.md section 3): an MLP neuron
or an attention head. Every mask here says True = in the set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from ssah_lens.errors import BadInput
from ssah_lens.files import write_whole

if TYPE_CHECKING:
    import pandas as pd


COLUMNS = ["kind", "layer", "index", "I_S", "I_U", "role"]
OPTIONAL_COLUMNS = ("confidence", "importance")
"""Of a units file."""
MAX_UNITS = 100_000_000
"""More than any model has; a file that says so is not one of ours."""


class Kind(StrEnum):
    """What a unit is."""

    MLP = "mlp"
    """Neuron j of layer l: input channel j of the down projection (`blocks.l.mlp.hook_post`)."""
    HEAD = "head"
    """Attention head h of layer l (`blocks.l.attn.hook_z[..., h, :]`)."""

    def hook(self, layer: int) -> str:
        """TransformerLens name of the activation that these units of a layer are."""
        return f"blocks.{layer}.mlp.hook_post" if self is Kind.MLP else f"blocks.{layer}.attn.hook_z"


class Role(StrEnum):
    """What a unit is for (SSAH, arXiv 2410.10862, section 4)."""

    SCU = "SCU"
    """Safety Critical: largest I_S - I_U; without it the model stops refusing."""
    UCU = "UCU"
    """Utility Critical: smallest I_S - I_U."""
    CU = "CU"
    """Complex: the rest; serves both."""
    RU = "RU"
    """Redundant: smallest I_S + I_U."""


@dataclass(frozen=True)
class UnitGrid:
    """The units that a model has, and the parameters they own.

    Attributes:
        n_layers: blocks.
        d_mlp: neurons per block; 0 in a mixture of experts, of which only heads are units.
        n_heads: query heads per block.
        mlp_parameters: parameters that one neuron owns (its gate and up rows with biases, its down column).
        head_parameters: parameters that one head owns (its q rows with biases, its o columns). The k and v rows
            belong to the grouped-query group and are counted in `block_parameters` only.
        block_parameters: parameters of all attention and MLP matrices and biases, the denominator of shares.
    """

    n_layers: int
    d_mlp: int
    n_heads: int
    mlp_parameters: int
    head_parameters: int
    block_parameters: int

    def width(self, kind: Kind) -> int:
        """Units of this kind in one layer."""
        return self.d_mlp if kind is Kind.MLP else self.n_heads

    def owned(self, kind: Kind) -> int:
        """Parameters that one unit of this kind owns."""
        return self.mlp_parameters if kind is Kind.MLP else self.head_parameters

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds that the model has: a mixture of experts has heads only."""
        return tuple(kind for kind in Kind if self.width(kind))

    @property
    def n_units(self) -> int:
        return self.n_layers * (self.d_mlp + self.n_heads)


Masks = Mapping[Kind, Bool[np.ndarray, "layer unit"]]


@dataclass(frozen=True)
class Share:
    """How much of a model a set is, by unit count and by owned parameters; `n` is the number of units."""

    units: float
    parameters: float
    n: int


@dataclass(frozen=True, eq=False)
class UnitSet:
    """A set of units of one model shape.

    Attributes:
        grid: the shape of the model.
        masks: one boolean array [layer, unit] per kind; True = in the set.
    """

    grid: UnitGrid
    masks: Masks

    def __post_init__(self) -> None:
        for kind in Kind:
            want = (self.grid.n_layers, self.grid.width(kind))
            if kind not in self.masks or self.masks[kind].shape != want:
                got = self.masks[kind].shape if kind in self.masks else None
                raise BadInput(f"mask of kind '{kind}' has shape {got}; the model has {want} (layers, units)")

    @classmethod
    def empty(cls, grid: UnitGrid) -> UnitSet:
        return cls(grid, {k: np.zeros((grid.n_layers, grid.width(k)), dtype=bool) for k in Kind})

    @classmethod
    def of(cls, grid: UnitGrid, units: Iterable[tuple[Kind, int, int]]) -> UnitSet:
        """From (kind, layer, index) triples."""
        out = cls.empty(grid)
        for kind, layer, index in units:
            if kind not in grid.kinds:
                raise BadInput(f"no {kind} units: the model is a mixture of experts, of which only heads are units")
            if not (0 <= layer < grid.n_layers and 0 <= index < grid.width(kind)):
                last = grid.n_layers - 1, grid.width(kind) - 1
                raise BadInput(f"no {kind} unit {index} in layer {layer}: layers 0-{last[0]}, units 0-{last[1]}")
            out.masks[kind][layer, index] = True
        return out

    def __len__(self) -> int:
        return int(sum(m.sum() for m in self.masks.values()))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, UnitSet)
            and self.grid == other.grid
            and all(np.array_equal(self.masks[k], other.masks[k]) for k in Kind)
        )

    def __or__(self, other: UnitSet) -> UnitSet:
        return self._combine(other, np.logical_or)

    def __and__(self, other: UnitSet) -> UnitSet:
        return self._combine(other, np.logical_and)

    def __sub__(self, other: UnitSet) -> UnitSet:
        return self._combine(other, lambda a, b: a & ~b)

    def _combine(self, other: UnitSet, op) -> UnitSet:
        if self.grid != other.grid:
            raise BadInput("the two unit sets belong to models of different shape")
        return UnitSet(self.grid, {k: op(self.masks[k], other.masks[k]) for k in Kind})

    @property
    def share(self) -> Share:
        """Share of all units, and of all block parameters, that the set's units own."""
        owned = sum(int(m.sum()) * self.grid.owned(k) for k, m in self.masks.items())
        return Share(len(self) / self.grid.n_units, owned / self.grid.block_parameters, len(self))

    def random_twin(self, seed: int) -> UnitSet:
        """A random set with the same count in every layer and kind, disjoint from this one where it fits.

        Where a layer has fewer units outside the set than inside (as for CU), all of the outside is taken and
        the remainder is drawn from the set; `(set & twin)` is then the overlap to report.
        """
        rng = np.random.default_rng(seed)
        masks = {}
        for kind, mask in self.masks.items():
            twin = np.zeros_like(mask)
            for row, out in zip(mask, twin, strict=True):
                outside, inside = np.flatnonzero(~row), np.flatnonzero(row)
                fresh = rng.choice(outside, min(inside.size, outside.size), replace=False)
                out[fresh] = True
                out[rng.choice(inside, inside.size - fresh.size, replace=False)] = True
            masks[kind] = twin
        return UnitSet(self.grid, masks)


def top_units(grid: UnitGrid, ranking: Mapping[Kind, Float[np.ndarray, "layer unit"]], share: float) -> UnitSet:
    """The `share` of each kind's units that have the largest value in `ranking`.

    Units are ranked within their kind, so that both kinds hold the same share of the set (METHOD.md section 4). A value
    of -inf is never chosen. Ties are broken by layer, then index, so that a set is reproducible.
    """
    masks = {}
    for kind in Kind:
        scores = ranking[kind]
        n = round(share * scores.size)
        order = np.argsort(-scores, axis=None, kind="stable")[:n]
        mask = np.zeros(scores.size, dtype=bool)
        mask[order] = scores.ravel()[order] > -np.inf
        masks[kind] = mask.reshape(scores.shape)
    return UnitSet(grid, masks)


@dataclass(frozen=True, eq=False)
class UnitTable:
    """Scores and roles of all units of a model, with their provenance; what `units.parquet` holds.

    Attributes:
        grid: the shape of the model.
        safety: I_S per kind, [layer, unit].
        utility: I_U per kind, [layer, unit].
        roles: one set per role; they are disjoint and cover all units.
        provenance: score, model, seed, prompts, thresholds: whatever repeats the table.
        importance: how much each unit matters to either, RU being its smallest; None where the score has only I_S, I_U.
        confidence: share of bootstrap samples of the calibration prompts in which each unit keeps its role; None where
            that was not measured.
    """

    grid: UnitGrid
    safety: Mapping[Kind, Float[np.ndarray, "layer unit"]]
    utility: Mapping[Kind, Float[np.ndarray, "layer unit"]]
    roles: Mapping[Role, UnitSet]
    provenance: dict = field(default_factory=dict)
    confidence: Mapping[Kind, Float[np.ndarray, "layer unit"]] | None = None
    importance: Mapping[Kind, Float[np.ndarray, "layer unit"]] | None = None

    def units(self, roles: Iterable[Role]) -> UnitSet:
        """The union of the named roles."""
        out = UnitSet.empty(self.grid)
        for role in roles:
            out = out | self.roles[role]
        return out

    def frame(self) -> pd.DataFrame:
        """One row per unit: kind, layer, index, I_S, I_U, role and, where there are such, confidence, importance."""
        import pandas as pd

        parts = []
        for kind in Kind:
            layer, index = np.indices(self.safety[kind].shape).reshape(2, -1)
            role = np.full(layer.size, "", dtype=object)
            for name, units in self.roles.items():
                role[units.masks[kind].ravel()] = str(name)
            columns = {
                "kind": str(kind),
                "layer": layer.astype(np.int32),
                "index": index.astype(np.int32),
                "I_S": self.safety[kind].ravel(),
                "I_U": self.utility[kind].ravel(),
                "role": role,
            }
            optional = ((name, getattr(self, name)) for name in OPTIONAL_COLUMNS)
            columns |= {name: values[kind].ravel() for name, values in optional if values is not None}
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)

    def save(self, path: Path) -> None:
        """Writes Parquet, grid and provenance in the file's metadata.

        Raises:
            BadInput: the place cannot be written.
        """
        import json

        import pyarrow as pa
        import pyarrow.parquet as pq

        meta = {b"ssah_lens": json.dumps({"grid": asdict(self.grid), "provenance": self.provenance}).encode()}
        table = pa.Table.from_pandas(self.frame(), preserve_index=False)
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **meta})
        write = lambda partial: pq.write_table(table, partial, write_page_checksum=True)
        write_whole(path, write, "choose another --out")

    @classmethod
    def load(cls, path: Path, grid: UnitGrid | None = None) -> UnitTable:
        """Reads a units file; with `grid`, refuses one that belongs to a model of another shape.

        Raises:
            BadInput: not a units file, damaged, or another model's shape.
        """
        import json

        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                meta = json.loads(file.schema_arrow.metadata[b"ssah_lens"])
                own = _whole_grid(UnitGrid(**meta["grid"]))
                if file.metadata.num_rows != own.n_units:  # asked first: a small file can unpack to any size
                    raise ValueError(f"{file.metadata.num_rows} rows, expected {own.n_units}")
                also = [c for c in OPTIONAL_COLUMNS if c in file.schema_arrow.names]
                frame = file.read(columns=[*COLUMNS, *also]).to_pandas(ignore_metadata=True)
            columns = {k: frame[frame["kind"] == k] for k in Kind}
            safety = {k: _grid_column(own, k, columns[k], "I_S", np.float64) for k in Kind}
            utility = {k: _grid_column(own, k, columns[k], "I_U", np.float64) for k in Kind}
            role = {k: _grid_column(own, k, columns[k], "role", object) for k in Kind}
            if not all(np.isin(r.astype(str), list(Role)).all() for r in role.values()):
                raise ValueError("a unit without a role")
            provenance = _whole_provenance(meta["provenance"], own)
            extra = {c: {k: _grid_column(own, k, columns[k], c, np.float64) for k in Kind} for c in also}
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, IndexError, RecursionError) as e:
            raise BadInput(
                f"'{path}' is not a whole units file ({type(e).__name__}); "
                "make one with: ssah-lens units MODEL --out FILE.parquet"
            ) from e
        if grid is not None and grid != own:
            raise BadInput(
                f"'{path}' belongs to a model with {own.n_layers} layers of {own.d_mlp} neurons, {own.n_heads} heads; "
                f"this one has {grid.n_layers} of {grid.d_mlp} and {grid.n_heads}; make a units file for this model"
            )
        roles = {r: UnitSet(own, {k: role[k] == str(r) for k in Kind}) for r in Role}
        return cls(own, safety, utility, roles, provenance, **extra)


def _whole_grid(grid: UnitGrid) -> UnitGrid:
    if not all(type(value) is int and value >= 0 for value in vars(grid).values()):
        raise ValueError("a grid of no whole numbers")
    if not 1 <= grid.n_units <= MAX_UNITS or grid.block_parameters < 1:
        raise ValueError(f"{grid.n_units} units, {grid.block_parameters} parameters")
    return grid


def _whole_provenance(said: object, grid: UnitGrid) -> dict:
    """What others read of it must be what they expect; the rest is only shown."""
    if not isinstance(said, dict):
        raise ValueError("provenance is no object of named values")
    layers = said.get("layers")
    if layers is not None:
        start, stop = layers
        if type(start) is not int or type(stop) is not int or not 0 <= start < stop <= grid.n_layers:
            raise ValueError(f"layers {layers}")
    return said


def _grid_column(grid: UnitGrid, kind: Kind, frame: pd.DataFrame, column: str, dtype) -> np.ndarray:
    shape = (grid.n_layers, grid.width(kind))
    if len(frame) != shape[0] * shape[1]:
        raise ValueError(f"{len(frame)} rows of kind {kind}, expected {shape[0] * shape[1]}")
    if (frame[["layer", "index"]] < 0).any(axis=None) or frame.duplicated(["layer", "index"]).any():
        raise ValueError(f"not one row for each unit of kind {kind}")
    out = np.empty(shape, dtype=dtype)
    out[frame["layer"].to_numpy(), frame["index"].to_numpy()] = frame[column].to_numpy()
    return out


def parse_roles(text: str) -> list[Role]:
    """'SCU,CU' -> [Role.SCU, Role.CU].

    Raises:
        BadInput: a name that is no role.
    """
    names = [t.strip().upper() for t in text.split(",") if t.strip()]
    bad = [n for n in names if n not in Role.__members__]
    if bad or not names:
        raise BadInput(f"no role '{', '.join(bad) or text}': allowed are {', '.join(Role)}, separated by commas")
    return [Role(n) for n in names]


def unit_name(kind: Kind, layer: int, index: int) -> str:
    """'L12N345' for a neuron, 'L12H3' for a head."""
    return f"L{layer}{'N' if kind is Kind.MLP else 'H'}{index}"
