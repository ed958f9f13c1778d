"""`report.html`: one page that opens offline, escapes everything and asks nothing of the network."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ssah_lens.files import write_whole
from ssah_lens.results import Results, ScoreRow, Verdict
from ssah_lens.show.section import Table
from ssah_lens.show.sections import sections
from ssah_lens.show.style import ROLE_COLOURS, ROLE_NAMES, caption_of, png
from ssah_lens.show.text import count, interval, listed

HYPOTHESES = {
    "H1": "separable: the choice is linearly readable",
    "H2": "one direction: it carries the choice causally",
    "H3": "superficial: the choice is set at the first response tokens, in every block",
    "H4": "few units: they carry the choice",
    "H5": "freezing: frozen, those units keep safety through benign fine-tuning",
    "H6": "budget: training redundant units alone aligns at less cost",
    "H7": "transfer: fine-tuning turns safety units to other use",
}
STAGES = {
    "H1": "direction",
    "H2": "direction",
    "H3": "direction",
    "H4": "ablate",
    "H5": "freeze",
    "H6": "budget",
    "H7": "transfer",
}
"""Hypothesis -> the section that tests it, where it was run."""
CHECK = "check"
"""Rows of the scorecard that are no hypothesis: what the others rest on."""
BADGES = {
    Verdict.SUPPORTED: ("supported", "✓"),
    Verdict.CONTRADICTED: ("contradicted", "✗"),
    Verdict.NOT_SETTLED: ("unsettled", "?"),
}
"""Verdict -> style class and sign; the words of the verdict stand beside the sign."""
ESTIMATE = re.compile(r"(\S+) (\[[^\]]*\]) (n=\d+)")
FACTS = {
    "seed": "seed",
    "device": "device",
    "dtype": "number format",
    "threads": "threads",
    "processors": "processors",
    "platform": "platform",
    "python": "Python",
    "git": "code revision",
    "started": "started",
    "schema": "results schema",
}


@dataclass(frozen=True)
class Picture:
    """A figure as the page needs it: `png` is base64; the caption is drawn in it, and is text beside it."""

    name: str
    alt: str
    png: str
    caption: str


def write_report(
    results: Results,
    figures: Mapping[str, Figure | Path],
    provenance: Mapping,
    path: Path,
    explorer: str | None = None,
    captions: Mapping[str, str] | None = None,
) -> Path:
    """Writes the report; one that is there stays until the new one is whole.

    Args:
        results: with their scorecard; a stage that is None is left out.
        figures: name (as `run_folder.draw` gives) -> figure, or a PNG file. A name that no section knows comes last.
        provenance: what `record.json` holds; any part may be missing.
        path: where `report.html` goes.
        explorer: name of the unit explorer's file in the same folder, to be linked.
        captions: of figures that are given as files, by name; a figure that is not a file brings its own.

    Returns:
        `path`.

    Raises:
        BadInput: the place cannot be written.
    """
    text = html(results, figures, provenance, explorer, captions)
    return write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def html(
    results: Results,
    figures: Mapping[str, Figure | Path],
    provenance: Mapping,
    explorer: str | None = None,
    captions: Mapping[str, str] | None = None,
) -> str:
    """The report's text; arguments as for `write_report`."""
    from jinja2 import Environment, StrictUndefined

    found = sections(results)
    known = {name: alt for s in found for name, alt in s.figures.items()}
    told = {n: caption_of(f) for n, f in figures.items() if isinstance(f, Figure)} | dict(captions or {})
    pictures = {
        n: Picture(n, known.get(n) or f"Figure: {_words(n)}.", _base64(f), told.get(n, "")) for n, f in figures.items()
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["estimate"] = _estimate
    template = resources.files("ssah_lens.show").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        results=results,
        lead=_lead(results),
        badges=BADGES,
        untested=_untested(results.scorecard),
        places={h: stage for h, stage in STAGES.items() if stage in {s.id for s in found}},
        sections=found,
        pictures=pictures,
        other_pictures=[p for n, p in pictures.items() if n not in known],
        roles=[(role, name, ROLE_COLOURS[role]) for role, name in ROLE_NAMES.items()],
        provenance=_provenance(provenance),
        interval=interval,
        explorer=explorer,
    )


def _estimate(text: str) -> str:
    """Marks up '0.97 [0.89, 0.99] n=60' so that it breaks between its parts only; other text is just escaped."""
    from markupsafe import Markup, escape

    found = ESTIMATE.fullmatch(text)
    if found is None:
        return escape(text)
    spans = '<span class="value whole">{}</span> <span class="whole">{}</span> <span class="whole soft">{}</span>'
    return Markup(spans).format(*found.groups())  # noqa: S704 (its format escapes what goes in)


def _lead(results: Results) -> str:
    """What was found, as a count of verdicts."""
    rows = [r for r in results.scorecard if r.id in HYPOTHESES]
    if not rows:
        return "No hypothesis has been tested yet: the stages that speak to one have not been run."
    told = [f"{r.id} ({HYPOTHESES[r.id].split(':')[0]}) is {r.verdict}" for r in rows]
    return f"By written rules, {listed(told)}.{_warned(results)}"


def _warned(results: Results) -> str:
    """The checks on which the verdicts rest and that do not hold."""
    weak = [r for r in results.scorecard if r.id == CHECK and r.verdict is not Verdict.SUPPORTED]
    if not weak:
        return ""
    claims = "; ".join(f"“{r.claim}” is {r.verdict}" for r in weak)
    return f" Read that with {count(len(weak), 'check')} in mind: {claims}."


def _untested(rows: tuple[ScoreRow, ...]) -> list[tuple[str, str]]:
    return [(name, claim) for name, claim in HYPOTHESES.items() if name not in {r.id for r in rows}]


def _base64(figure: Figure | Path | str) -> str:
    held = png(figure) if isinstance(figure, Figure) else Path(figure).read_bytes()
    return base64.b64encode(held).decode("ascii")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _provenance(record: Mapping[str, Any]) -> list[Table]:
    """What `record.json` says, as tables; what we do not know by name is shown too."""
    named = {"versions", "models", "seconds"}
    rows = [(label, str(record[key])) for key, label in FACTS.items() if record.get(key) is not None]
    rows += list(_flat({k: v for k, v in record.items() if k not in FACTS and k not in named}))
    tables = [Table("The run", ("what", "value"), tuple(rows))] if rows else []
    if seconds := record.get("seconds"):
        times = [(stage, _duration(s)) for stage, s in seconds.items()] + [
            ("together", _duration(sum(seconds.values())))
        ]
        tables.append(Table("Time per stage", ("stage", "time"), tuple(times)))
    if versions := record.get("versions"):
        tables.append(Table("Versions", ("package", "version"), tuple((n, str(v)) for n, v in versions.items())))
    if models := record.get("models"):
        tables.append(Table("Model files, by sha256", ("file", "sha256"), tuple(_flat(models))))
    return tables


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}: ")
        elif value is not None:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
