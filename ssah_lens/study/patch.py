"""Activation patching for people: from two prompts, or a file of pairs, to a labelled map and its pictures.

The pairs are run by `intervene.patching` (exact); here the metric is found from the model itself, the pairs are checked
before anything is run, and the numbers get the tokens that they stand at.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ssah_lens import stats
from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.readers import read_pairs
from ssah_lens.chat.save import check_free
from ssah_lens.errors import BadInput
from ssah_lens.intervene.attribution_patching import attribution_patching
from ssah_lens.intervene.edits import check_layers
from ssah_lens.intervene.patching import Patched, activation_patching, aligned_rows
from ssah_lens.intervene.sites import Site, parse_site
from ssah_lens.results import PatchMap
from ssah_lens.show.patching_figures import picture
from ssah_lens.show.picture import Picture
from ssah_lens.stats import Estimate
from ssah_lens.study.openings import Openings, find_openings

UNDER_WAY = ".cells"
"""Folder of what is found while a map is made."""
FILES = ("patching.json", "patching.png", "patching.html")
SHOWN_TOKENS = 12
"""Opening tokens of each side that a result names."""
Texts = str | Sequence[str]


def patch(
    model: ChatModel,
    clean: Texts,
    corrupted: Texts,
    site: str = "resid",
    openings: Openings | None = None,
    noising: bool = False,
    layers: Sequence[int] | None = None,
    by_position: bool | None = None,
    seed: int = 0,
    note: Callable[[str], None] = lambda text: None,
    steps: int | None = None,
    kept: Path | None = None,
) -> PatchMap:
    """Patches one site of every layer between matched prompts.

    Args:
        model: the model.
        clean: prompts whose metric is effect 1, by habit the harmful ones; a text or several.
        corrupted: their twins, effect 0; each has as many tokens as its clean prompt.
        site: 'resid', 'attn', 'mlp' (one vector per position), 'head' or 'neuron' (all positions at once).
        openings: first tokens of refusals and answers; found from the model (some seconds) when None.
        noising: put corrupted activations into the clean run instead.
        layers: which layers. All when None; for neurons the one whose MLP output moves the metric most.
        by_position: an axis of positions; None for the habit of the site.
        seed: of the openings and the bootstrap.
        note: told what was decided.
        steps: None for the exact effect; 0 guesses it by attribution patching (seconds), m >= 1 by integrated
            gradients at m points.
        kept: a folder that finished cells of an exact map are kept in; the same call resumes there.

    Raises:
        BadInput: an unknown site or layer, pairs that are not token-aligned, or that have nothing to explain.
    """
    place = parse_site(site)
    ones, others = ([t] if isinstance(t, str) else list(t) for t in (clean, corrupted))
    rows = aligned_rows(model, ones, others)
    check_layers(model, layers)
    if place is Site.NEURON:
        model.anatomy.check_neurons()
    openings = openings or find_openings(model, seed)
    asked = ones, others, noising, by_position
    if place is Site.NEURON and layers is None:
        whole = activation_patching(
            model, ones, others, openings.metric, Site.MLP, False, noising, store=_cells(kept, asked, Site.MLP, None)
        )
        effect = 1 - whole.effect if noising else whole.effect
        layers = [int(np.nanargmax(np.abs(effect)))]
        note(f"neurons of layer {layers[0]}, whose MLP output moves the metric most; --layers chooses others")
    given = model, ones, others, openings.metric, place, by_position, noising, layers
    store = _cells(kept, asked, place, layers)
    found = activation_patching(*given, store=store) if steps is None else attribution_patching(*given, steps)
    _warn(found, note)
    return patch_map(model, found, openings, rows, seed)


def patch_map(
    model: ChatModel, found: Patched, openings: Openings, rows: tuple[list[Row], list[Row]], seed: int = 0
) -> PatchMap:
    """Labels what `activation_patching` found.

    Args:
        model: the model that was patched.
        found: the patched metric.
        openings: what its metric reads.
        rows: clean and corrupted rows.
        seed: of the bootstrap over pairs.
    """
    n = len(found.clean)
    low, high = found.interval(seed) if n > 1 else (None, None)
    decoded = lambda ids: tuple(model.tokenizer.decode([i]) for i in ids[:SHOWN_TOKENS])
    labels = dict(found.labels)
    if n == 1 and "pos" in labels:
        labels["pos"] = _both_tokens(model, rows[0][0], rows[1][0])
    mean = lambda values: stats.mean(values, seed) if n > 1 else Estimate(float(values[0]), None, None, 1)
    return PatchMap(
        model=model.name,
        site=str(found.site),
        noising=found.noising,
        metric=found.metric,
        refusing=decoded(openings.refusing),
        fulfilling=decoded(openings.fulfilling),
        estimand=found.estimand,
        axes=found.axes,
        labels=labels,
        values=_listed(found.effect),
        low=None if low is None else _listed(low),
        high=None if high is None else _listed(high),
        clean=mean(found.clean),
        corrupted=mean(found.corrupted),
        n=n,
        cells=found.cells,
        cells_run=found.cells_run,
        method=found.method,
    )


def patch_heatmap(model: ChatModel, clean: Texts, corrupted: Texts, site: str = "resid", **options) -> Picture:
    """`patch` and its picture: `patch_heatmap(model, harmful, harmless)`. Options are those of `patch`."""
    return picture(patch(model, clean, corrupted, site, **options))


def given_pairs(
    clean: str | None, corrupted: str | None, pairs: Path | None, limit: int | None, seed: int
) -> tuple[list[str], list[str]]:
    """The two sides that the command line named, before any model is loaded.

    Raises:
        BadInput: neither a pair nor a file, both, half a pair, or a file that holds no pairs.
    """
    if pairs is not None and (clean is not None or corrupted is not None):
        raise BadInput("--pairs and --clean/--corrupted exclude each other; give one of them")
    if pairs is not None:
        sides = [side.sample(limit, seed) for side in read_pairs(pairs)]
        return sides[0].texts, sides[1].texts
    if clean is None or corrupted is None:
        raise BadInput("patching needs two prompts: give --clean TEXT and --corrupted TEXT, or --pairs FILE")
    if not clean.strip() or not corrupted.strip():
        raise BadInput("--clean or --corrupted is empty; give two prompts of the same number of tokens")
    return [clean], [corrupted]


def run_patch(
    load: Callable[[], ChatModel],
    clean: Texts,
    corrupted: Texts,
    out: Path,
    site: str,
    noising: bool,
    layers: Sequence[int] | None,
    seed: int,
    note: Callable[[str], None],
    steps: int | None = None,
) -> PatchMap:
    """`ssah-lens patch`: writes `patching.json`, `patching.png` and `patching.html` into a folder.

    Cells are kept there while it runs: the same command goes on where it was killed.

    Args:
        load: loads the model, after everything that needs no model was checked.
        out: a folder; it is made where it is not there.
        site, noising, layers, seed, note, steps: as for `patch`.

    Raises:
        BadInput: as `patch`, and a folder that cannot be written or that holds such a result.
    """
    parse_site(site)
    _check_folder(out)
    made, kept = not out.exists(), out / UNDER_WAY
    try:
        found = patch(load(), clean, corrupted, site, None, noising, layers, None, seed, note, steps, kept)
        _write(found, out)
    except (BadInput, OSError):
        shutil.rmtree(kept, ignore_errors=True)
        with suppress(OSError):
            out.rmdir() if made else None
        raise
    shutil.rmtree(kept, ignore_errors=True)
    return found


def _cells(kept: Path | None, asked: tuple, site: Site, layers: Sequence[int] | None) -> Path | None:
    """The file of the cells of one map; other pairs, sites or layers have files of their own."""
    if kept is None:
        return None
    named = repr((asked, str(site), None if layers is None else list(layers)))
    return kept / f"{site}-{hashlib.sha256(named.encode()).hexdigest()[:12]}.npy"


def _write(found: PatchMap, out: Path) -> None:
    """All files or none: they are made in a hidden folder and moved when the last one is whole."""
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=out, prefix=".patching-") as scratch:
            drawn = picture(found)
            for name in FILES[1:]:
                drawn.save(Path(scratch) / name)
            text = json.dumps(asdict(found), allow_nan=False)
            (Path(scratch) / FILES[0]).write_text(text, encoding="utf-8")
            for name in FILES:
                (Path(scratch) / name).replace(out / name)
    except (BadInput, OSError) as e:
        if made:
            out.rmdir()
        what = getattr(e, "strerror", None) or e.__cause__ or e
        raise BadInput(f"cannot write into '{out}': {what}; nothing was left there, choose another --out") from e


def _check_folder(out: Path) -> None:
    """Raises BadInput when files cannot be made there; leaves nothing behind."""
    if any((out / name).exists() for name in FILES):
        raise BadInput(f"'{out}' holds a patching result already; choose another --out, or delete it")
    if not out.is_dir():
        check_free(out)
        return
    try:
        with tempfile.TemporaryDirectory(dir=out):
            pass
    except OSError as e:
        raise BadInput(f"output folder '{out}' cannot be written: {e.strerror}; choose another --out") from e


def _warn(found: Patched, note: Callable[[str], None]) -> None:
    """What a reader of the map must know: that the two sides hardly differ in the choice itself."""
    clean, corrupted = float(np.mean(found.clean)), float(np.mean(found.corrupted))
    both = f"metric {clean:.2f} clean, {corrupted:.2f} corrupted"
    if clean < corrupted:
        note(f"note: the clean side leans less to refusing than the corrupted one ({both}); effect 1 is still clean")
    elif clean * corrupted > 0:
        likelier = "refusing" if clean > 0 else "fulfilling"
        note(f"note: {likelier} is the likelier opening of both sides ({both}); effects are shares of that difference")


def _both_tokens(model: ChatModel, clean: Row, corrupted: Row) -> tuple[str, ...]:
    text = lambda i: model.tokenizer.decode([i])
    return tuple(text(a) if a == b else f"{text(a)} |{text(b)}" for a, b in zip(clean.ids, corrupted.ids, strict=True))


def _listed(values: np.ndarray) -> list:
    """Nested lists, None for NaN."""
    out = values.astype(object)
    out[np.isnan(values)] = None
    return out.tolist()
