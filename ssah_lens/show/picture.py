"""A figure twice: still, for papers and for any notebook, and interactive, for a page of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ssah_lens.errors import BadInput
from ssah_lens.show.files import write_whole
from ssah_lens.show.style import png, save_png, save_still

if TYPE_CHECKING:
    import plotly.graph_objects as go

STILL = (".png", ".svg", ".pdf")
CONFIG = {"displaylogo": False, "responsive": True, "toImageButtonOptions": {"format": "svg"}}


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
            page = self.draw().to_html(include_plotlyjs=True, full_html=True, config=CONFIG)
            path.write_text(page, encoding="utf-8")
        elif suffix == ".png":
            save_png(self.figure, path)
        else:
            save_still(self.figure, path, suffix[1:])

    def _repr_png_(self) -> bytes:
        return png(self.figure)
