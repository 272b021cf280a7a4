"""A conversation as one prompt, by the model's own chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import GenerationError, MissingExtraError
from llmasos_jax.format.strict import shown

MAX_TEMPLATE = 2**20  # characters


def chat_ids(
    template: str | None, messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer, name: str
) -> list[int]:
    """The ids of a conversation, up to where the model's answer begins.

    What the template writes is all there is: a tokenizer that begins each text with a bos id adds
    none here, because templates write it out themselves.

    Args:
      template: the model's, or None if it has none.
      messages: one mapping with "role" and "content" after the other.
      tokenizer: the model's.
      name: the model's, for messages.

    Raises:
      GenerationError: there is no template, the messages are of the wrong shape, or the template
        does not make a prompt of them.
      MissingExtraError: jinja2 is not installed.
    """
    checked = check_messages(messages)
    if template is None:
        raise GenerationError(
            f'model "{name}" has no chat template; write the conversation as one text and call '
            'generate_text, or put a "chat_template" into "generation" of its model.json'
        )
    named = {
        f"{end}_token": _token(tokenizer, getattr(tokenizer, f"{end}_id")) for end in ("bos", "eos")
    }
    text = render(template, checked, **named)
    encode_marked = getattr(tokenizer, "encode_marked", None)
    ids = tokenizer.encode(text) if encode_marked is None else encode_marked(text)
    if not ids:
        raise GenerationError(
            f'the chat template of "{name}" makes an empty prompt of these messages'
        )
    return ids


def check_messages(messages: Any) -> list[dict[str, str]]:
    """The messages as a list of dicts.

    Raises:
      GenerationError: they are not a list of {"role": text, "content": text}.

    Example:
      >>> check_messages([{"role": "user", "content": "Hi"}])
      [{'role': 'user', 'content': 'Hi'}]
    """
    shape = '[{"role": "user", "content": "..."}]'
    if not isinstance(messages, (list, tuple)) or not messages:
        what = "an empty list" if isinstance(messages, (list, tuple)) else type(messages).__name__
        raise GenerationError(f"messages is {what}; expected a list such as {shape}")
    checked = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise GenerationError(
                f"messages[{i}] is a {type(message).__name__}; expected a list such as {shape}"
            )
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise GenerationError(
                    f'messages[{i}]["{key}"] is {shown(message.get(key))}; expected a text, as in '
                    f"{shape}"
                )
        if len(message) > 2:
            others = ", ".join(shown(str(k)) for k in message if k not in ("role", "content"))
            raise GenerationError(
                f"messages[{i}] has {others}; only role and content are read in this version"
            )
        checked.append({"role": message["role"], "content": message["content"]})
    return checked


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    bos_token: str = "",
    eos_token: str = "",
) -> str:
    r"""Runs a chat template in the sandbox; the prompt for the model's next message comes out.

    Args:
      template: Jinja text.
      messages: as `check_messages` gives them.
      bos_token: the token that begins a text, as text.
      eos_token: the one that ends it.

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
        "add_generation_prompt": True,
        "bos_token": bos_token,
        "eos_token": eos_token,
    }
    try:
        from llmasos_jax.generate import sandbox
    except ImportError as error:
        raise MissingExtraError(
            "chat templates need jinja2 3.1.6 or later; pip install 'llmasos_jax[models]'"
        ) from error
    try:
        return sandbox.run(template, given)
    except RecursionError as error:
        raise GenerationError("the chat template is nested, or calls itself, too deep") from error
    except Exception as error:  # whatever a stranger's template raises
        raise GenerationError(
            "the chat template makes no prompt of these messages: "
            f"{shown(str(error) or type(error).__name__)}"
        ) from error


def _token(tokenizer: Tokenizer, number: int | None) -> str:
    """The text of a special token; empty where it has none (kind "bytes")."""
    token: Callable[[int], str | None] | None = getattr(tokenizer, "token", None)
    return (token(number) or "") if token is not None and number is not None else ""
