"""A figure twice: still, for papers and for any notebook, and interactive, for a page of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ssah_lens.errors import BadInput
from ssah_lens.files import write_whole
from ssah_lens.show.page import POLICY, STYLE
from ssah_lens.show.style import png, save_png, save_still

if TYPE_CHECKING:
    import plotly.graph_objects as go

STILL = (".png", ".svg", ".pdf")
CONFIG = {"displaylogo": False, "responsive": True, "toImageButtonOptions": {"format": "svg"}}


MARGIN = 24
"""Pixels above an interactive drawing whose title stands outside it."""


@dataclass(frozen=True)
class Picture:
    """What a notebook shows for a figure.

    It displays itself as PNG, which a saved notebook still shows when it is reopened, trusted or not, and on the web.

    Attributes:
        figure: matplotlib's.
        draw: makes the plotly figure.
    """

    figure: Figure
    draw: Callable[[], go.Figure] = field(repr=False)

    def interactive(self) -> go.Figure:
        """The same with hover and zoom; as the last value of a cell it displays itself."""
        return self.draw()

    def save(self, path: str | Path) -> Path:
        """Writes .png, .svg or .pdf (still; no browser is needed), or .html (interactive, opens offline).

        Raises:
            BadInput: another ending, or a place that cannot be written.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in (*STILL, ".html"):
            raise BadInput(f"'{path}' is no picture file: allowed are {', '.join(STILL)}, .html")
        return write_whole(path, lambda partial: self._write(partial, suffix))

    def _write(self, path: Path, suffix: str) -> None:
        if suffix == ".html":
            path.write_text(_document(self.draw()), encoding="utf-8")
        elif suffix == ".png":
            save_png(self.figure, path)
        else:
            save_still(self.figure, path, suffix[1:])

    def _repr_png_(self) -> bytes:
        return png(self.figure)


def _document(figure: go.Figure) -> str:
    """A page whose title and caption are text, so that they wrap on a phone and are read aloud; the drawing below."""
    told = figure.layout.meta
    gone = figure.layout.margin.t - MARGIN
    figure.layout.annotations = ()
    figure.update_layout(title=None, margin_t=MARGIN, height=figure.layout.height - gone)
    drawing = figure.to_html(include_plotlyjs=True, full_html=False, config=CONFIG)
    heading, words = escape(told["heading"]), escape(told["words"])
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><meta name="referrer" content="no-referrer">'
        f"<title>{heading}</title><style>{STYLE}</style></head>\n"
        f'<body><h1>{heading}</h1><p class="words">{words}</p>\n{drawing}\n</body></html>\n'
    )
