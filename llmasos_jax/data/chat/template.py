"""A model's chat template: one text of a conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

from llmasos_jax.data.text import shown
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import GenerationError, MissingExtraError

MAX_TEMPLATE = 2**20  # characters


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    add_generation_prompt: bool = True,
    bos_token: str = "",
    eos_token: str = "",
    has_clock: bool = True,
    tags: tuple[str, str] = ("", ""),
) -> str:
    r"""Runs a chat template in the sandbox; the conversation as one text comes out.

    Args:
      template: Jinja text.
      messages: one {"role": text, "content": text} after the other.
      add_generation_prompt: whether it ends with what the model's next message stands after.
      bos_token: the token that begins a text, as text.
      eos_token: the one that ends it.
      has_clock: whether `strftime_now` says the local time; else it is not defined.
      tags: written before and after what stands between `{% generation %}` and its end.

    Raises:
      GenerationError: the template is not right, refuses the messages, or goes on for too long.
      MissingExtraError: jinja2 is not installed.

    Example:
      >>> template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<bot>"
      >>> render(template, [{"role": "user", "content": "Hi"}])
      '<user>Hi\n<bot>'
    """
    if len(template) > MAX_TEMPLATE:
        raise GenerationError(
            f"the chat template has {len(template)} characters; expected at most {MAX_TEMPLATE}"
        )
    given = {
        "messages": [dict(message) for message in messages],
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        "bos_token": bos_token,
        "eos_token": eos_token,
        "generation_begins": tags[0],
        "generation_ends": tags[1],
    }
    try:
        from llmasos_jax.data.chat import sandbox
    except ImportError as error:
        raise MissingExtraError(
            "chat templates need jinja2 3.1.6 or later; pip install 'llmasos_jax[models]'"
        ) from error
    try:
        return sandbox.run(template, given, has_clock=has_clock)
    except RecursionError as error:
        raise GenerationError("the chat template is nested, or calls itself, too deep") from error
    except Exception as error:  # whatever a stranger's template raises
        raise GenerationError(
            "the chat template makes no prompt of these messages: "
            f"{shown(str(error) or type(error).__name__)}"
        ) from error


class Ends(TypedDict):
    """What templates call the tokens that begin and end a text."""

    bos_token: str
    eos_token: str


def ends_of(tokenizer: Tokenizer) -> Ends:
    """The tokens that begin and end a text, as text: what templates call bos_token and eos_token.

    They are empty where the tokenizer has none, or none that can be written (kind "bytes").
    """
    token: Callable[[int], str | None] | None = getattr(tokenizer, "token", None)
    ids = (tokenizer.bos_id, tokenizer.eos_id)
    bos, eos = ("" if token is None or n is None else token(n) or "" for n in ids)
    return {"bos_token": bos, "eos_token": eos}
