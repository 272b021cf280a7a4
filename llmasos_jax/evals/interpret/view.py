"""Interactive views: pages of their own, with nothing to load from elsewhere.

In a notebook a page stands in a frame (`srcdoc`): its script runs there whatever the notebook
allows in its own page, and cannot touch it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

_STYLE = """
body{font:14px sans-serif;margin:12px} table{border-collapse:collapse;font:12px monospace}
td,th{border:1px solid #ddd;min-width:18px;height:18px;padding:1px 4px;white-space:pre}
th{background:#f6f6f6;font-weight:normal} span.t{font:14px monospace;white-space:pre-wrap;
padding:2px 1px;border-radius:2px} #say{min-height:1.4em;color:#333;margin:6px 0}
div.scroll{overflow:auto;max-height:70vh}
"""
# Text goes into the page by textContent alone: a token may hold markup.
_SCRIPT = """
const say=document.getElementById('say'),at=document.getElementById('at');
const make=(tag,text)=>{const e=document.createElement(tag);e.textContent=text;return e};
const shade=(v,most)=>{if(v===null)return '#ddd';const s=Math.min(1,Math.abs(v)/(most||1));
 const f=v>=0?[20,80,180]:[190,40,30];
 return 'rgb('+f.map(p=>Math.round(255+s*(p-255))).join(',')+')'};
const ink=(v,most)=>v!==null&&Math.abs(v)/(most||1)>0.6?'white':'black';
const most=rows=>Math.max(...rows.flat().filter(v=>v!==null).map(Math.abs),0);
const paint=(e,v,m,text)=>{e.style.background=shade(v,m);e.style.color=ink(v,m);
 e.onmouseenter=()=>{say.textContent=text}};
function matrix(k){at.replaceChildren();const rows=data.values[k],m=most(rows);
 const table=make('table',''),head=make('tr','');head.append(make('th',''));
 data.cols.forEach(c=>head.append(make('th',c)));table.append(head);
 rows.forEach((row,i)=>{const tr=make('tr','');tr.append(make('th',data.rows[i]));
  row.forEach((v,j)=>{const td=make('td',data.texts?data.texts[i][j]:'');
   paint(td,v,m,data.rows[i]+' | '+data.cols[j]+': '+(v===null?'-':v.toPrecision(4)));
   tr.append(td)});
  table.append(tr)});
 const box=make('div','');box.className='scroll';box.append(table);at.append(box)}
function tokens(){const m=most([data.values]);data.tokens.forEach((t,i)=>{
 const e=make('span',t);e.className='t';paint(e,data.values[i],m,t+': '+data.details[i]);
 at.append(e)})}
if(data.names){const pick=document.getElementById('pick');
 data.names.forEach((n,i)=>{const o=make('option',n);o.value=i;pick.append(o)});
 pick.hidden=data.names.length<2;pick.onchange=()=>matrix(+pick.value);matrix(0)}else tokens();
"""


def matrix_page(
    title: str,
    names: Sequence[str],
    rows: Sequence[str],
    cols: Sequence[str],
    values: np.ndarray,
    *,
    texts: Sequence[Sequence[str]] | None = None,
) -> str:
    """A page with one of K matrices, which a menu chooses; values are under the pointer.

    Args:
      title: of the page.
      names: K of them.
      rows: R names.
      cols: C names.
      values: [K, R, C].
      texts: R rows of C texts in the cells; None leaves them empty.
    """
    data = {
        "names": list(names),
        "rows": list(rows),
        "cols": list(cols),
        "values": _numbers(values),
        "texts": None if texts is None else [list(row) for row in texts],
    }
    return _page(title, data)


def text_page(title: str, tokens: Sequence[str], values: np.ndarray, details: Sequence[str]) -> str:
    """A page with T tokens, coloured by values [T]; details are under the pointer."""
    data = {"tokens": list(tokens), "values": _numbers(values), "details": list(details)}
    return _page(title, data)


def framed(page: str, height: int = 480) -> str:
    """A page in a frame, for a notebook's `_repr_html_`."""
    frame = f'style="width:100%;height:{height}px;border:0" sandbox="allow-scripts"'
    return f'<iframe {frame} srcdoc="{escape(page, quote=True)}"></iframe>'


def _numbers(values: np.ndarray) -> Any:
    """Lists with four digits; what is no number is null, which JSON has."""
    array = np.asarray(values, np.float64)
    if array.ndim > 1:
        return [_numbers(part) for part in array]
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in array]


def _page(title: str, data: dict[str, Any]) -> str:
    # "</script>" inside of a token must not end the script.
    text = json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")
    return (
        f'<!doctype html><html><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h3>{escape(title)}</h3>"
        '<select id="pick" hidden></select><div id="say"></div><div id="at"></div>'
        f"<script>const data={text};{_SCRIPT}</script></body></html>"
    )
