"""The chat page with the headers that go with it."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Page:
    """What is answered at `/`.

    Attributes:
      html: UTF-8.
      headers: among them the Content-Security-Policy: a browser runs the page's own script and
        style, known by their SHA-256, and nothing else, and lets it talk to its own server alone.
    """

    html: bytes
    headers: dict[str, str]


@functools.cache
def chat_page() -> Page:
    """The chat page.

    Example:
      >>> chat_page().headers["Content-Type"]
      'text/html; charset=utf-8'
    """
    html = resources.files("llmasos_jax.serve.page").joinpath("chat.html").read_bytes()
    policy = {
        "default-src": "'none'",
        "script-src": _hash_of("script", html),
        "style-src": _hash_of("style", html),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Page(html, headers)


def _hash_of(tag: str, html: bytes) -> str:
    """What stands inside the page's one <tag>, as a policy names it."""
    (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside).digest()).decode()}'"
