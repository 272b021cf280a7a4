"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServeOptions:
    """The limits of a server.

    Attributes:
      model_name: what requests call the model.
      api_keys: one of them has to be sent as a bearer token; none lets everybody in.
      max_body_bytes: of a request.
      max_tokens: that one text may ask for; None is the engine's context.
      max_texts: that one request may ask for: prompts times samples.
      timeout_s: of a request, from its arrival to its end.
      drain_s: that requests have to end in once the server was told to stop.
    """

    model_name: str
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 8 * 2**20
    max_tokens: int | None = None
    max_texts: int = 64
    timeout_s: float = 600.0
    drain_s: float = 30.0
