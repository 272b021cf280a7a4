"""A page that asks for nothing else: its styles and plots are in it. Light and dark."""

from __future__ import annotations

import html
from collections.abc import Sequence

# Told apart on white and on black, also by most who see fewer colours: the lightness differs too.
COLOURS = (
    *("#4269d0", "#efb118", "#3ca951", "#ff725c", "#a463f2"),
    *("#9c6b4e", "#6cc5b0", "#ff8ab7", "#97bbf5", "#0b8a84"),
)
_STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0; text-align: left;
  vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.interval, .note { opacity: .7; font-size: .9em; }
.better { color: #2a8a3a; } .worse { color: #c8402a; }
details { border-bottom: 1px solid var(--line); padding: .4rem 0; }
summary { cursor: pointer; }
pre { white-space: pre-wrap; background: var(--soft); padding: .6rem; overflow-wrap: anywhere; }
svg { max-width: 100%; height: auto; } svg text { fill: currentColor; font-size: 13px; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .4em; }
"""


def document(title: str, parts: Sequence[str], style: str = "") -> str:
    """The whole page.

    Args:
      title: plain text.
      parts: HTML of its body.
      style: further rules.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title><style>{_STYLE}{style}</style></head><body>",
            *parts,
            "</body></html>\n",
        ]
    )
