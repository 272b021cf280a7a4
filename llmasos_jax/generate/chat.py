"""A conversation as one prompt, by the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmasos_jax.data.chat.template import ends_of, render
from llmasos_jax.data.text import shown
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, encode_marked
from llmasos_jax.errors import GenerationError


def chat_text(
    template: str | None, messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer, name: str
) -> str:
    """A conversation as one text with special tokens written out, up to where the answer begins.

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
    return render(template, checked, add_generation_prompt=True, **ends_of(tokenizer))


def chat_ids(
    template: str | None, messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer, name: str
) -> list[int]:
    """The ids of `chat_text`.

    What the template writes is all there is: a tokenizer that begins each text with a bos id adds
    none here, because templates write it out themselves.

    Raises:
      GenerationError: as `chat_text` does, or the template makes no token of these messages.
      MissingExtraError: jinja2 is not installed.
    """
    ids = encode_marked(tokenizer, chat_text(template, messages, tokenizer, name))
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
