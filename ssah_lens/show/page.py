"""A self-contained page that a notebook shows in a frame and that a file keeps: no network, several per notebook.

A frame of its own (`<iframe srcdoc>`) keeps scripts and styles of several views apart and draws again when a trusted
notebook is reopened. In an untrusted one JupyterLab strips frames: then the words behind it say what to do.
"""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ssah_lens.errors import BadInput
from ssah_lens.files import write_whole

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:; connect-src 'none'; form-action 'none'; base-uri 'none'"
)
"""Content security policy: the page can run what it carries and can reach nothing."""
STYLE = (
    ":root{color-scheme:light}body{margin:0;padding:10px 14px;background:#fff;color:#1d2329;"
    'font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}'
    "h1{font-size:16px;margin:0 0 4px}h2{font-size:14px;margin:14px 0 4px}.words{color:#4d5761;margin:0 0 8px;"
    "max-width:70em}*{overflow-wrap:anywhere}"
)
UNPACK = """
const unpack = async (text) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
};
const unpackText = async (text) => new TextDecoder().decode(await unpack(text));
const failed = (e) => {
  const p = document.createElement("p");
  p.textContent = "This view could not be drawn (" + e + "). It needs a browser of 2023 or later.";
  p.setAttribute("role", "alert");
  document.body.prepend(p);
  throw e;
};
"""
"""JavaScript that undoes `packed`; base64 of gzip needs no escaping and is a third of the text."""
TRUST = (
    "This view runs scripts, which an untrusted notebook does not show. Run the cell again, or trust the notebook "
    "(JupyterLab: command palette, Trust Notebook)."
)


@dataclass(frozen=True)
class Page:
    """A whole HTML document and how tall it likes to be shown.

    Attributes:
        title: plain text.
        document: HTML from doctype to end.
        height: pixels of the frame in a notebook.
        still: HTML shown where the frame is not (an untrusted notebook); everything in it escaped.
    """

    title: str
    document: str = field(repr=False)
    height: int
    still: str = field(default="", repr=False)

    def _repr_html_(self) -> str:
        return (
            f'<div style="position:relative;min-height:{self.height}px;overflow:hidden;resize:vertical">'
            f'<div style="color:#4d5761">{escape(TRUST)}</div>{self.still}'
            f'<iframe title="{escape(self.title)}" sandbox="allow-scripts" srcdoc="{escape(self.document)}" '
            'style="position:absolute;top:0;left:0;width:100%;height:100%;border:0;background:#fff"></iframe></div>'
        )

    def save(self, path: str | Path) -> Path:
        """Writes the page as one file that opens offline.

        Raises:
            BadInput: the place cannot be written.
        """
        return write_whole(Path(path), lambda partial: partial.write_text(self.document, encoding="utf-8"))


def document(title: str, body: str, script: str, style: str = "") -> str:
    """A page with one script at its end.

    Args:
        title: plain text.
        body: HTML; whatever is untrusted in it is escaped already.
        script: JavaScript that holds no `</script` (data goes in through `packed` or `as_json`).
        style: CSS beside the shared one.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body>{body}\n"
        f"<script>{UNPACK}{script}</script></body></html>\n"
    )


def packed(data: bytes) -> str:
    """Bytes for `unpack` in the page: base64 of gzip, the same every time."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode("ascii")


def as_json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def finite(values: Any, what: str) -> np.ndarray:
    """An array of finite numbers.

    Raises:
        BadInput: a value that is not a number or not finite; drawn, it would look like a zero.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as e:
        raise BadInput(f"{what} are not an array of numbers: {e}") from e
    if not np.isfinite(array).all():
        n = int((~np.isfinite(array)).sum())
        raise BadInput(f"{n} of {array.size} {what} are not finite (NaN or infinite); mend or leave them out")
    return array
