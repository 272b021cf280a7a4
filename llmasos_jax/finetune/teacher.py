"""The model that a fine-tuning run imitates: opened, its ids compared with the student's."""

from __future__ import annotations

import dataclasses
import hashlib

from llmasos_jax.config.build import fields_of
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, fingerprint
from llmasos_jax.errors import CheckpointError, ConfigError, FormatError, HubError
from llmasos_jax.finetune.base import Base, open_base
from llmasos_jax.train.objective import build_objective


def with_teacher(config: Config, base: Base) -> tuple[Config, Base]:
    """The config with its teacher's hash, and the base with the teacher; both as they are if none.

    Args:
      config: of the run, resolved but for this.
      base: the student.

    Raises:
      ConfigError: the objective asks no teacher anything, its ids are not the student's, or it is
        not the model whose hash the config names.
      FormatError, HubError, CheckpointError: it cannot be opened.
    """
    name = config.finetune.teacher
    if name is None:
        return config, base
    build_objective(config)  # which refuses a teacher that it has no use for, before it is read
    try:
        teacher = open_base(name, field="finetune.teacher")
    except (FormatError, HubError, CheckpointError) as error:  # the base has a name, too
        raise type(error)(f"finetune.teacher: {error}") from error
    check_same_ids(base.tokenizer, teacher.tokenizer, name)
    if teacher.parameters.vocab_size < teacher.tokenizer.vocab_size:
        raise ConfigError(
            f'finetune.teacher="{name}" scores {teacher.parameters.vocab_size} tokens, and its '
            f"tokenizer has {teacher.tokenizer.vocab_size}; give one that scores all"
        )
    given, found = config.finetune.teacher_sha256, identity(teacher)
    if given is not None and given != found:
        raise ConfigError(
            f'finetune.teacher="{name}" has weights and parameters of the hash {found[:12]}, and '
            f"finetune.teacher_sha256 is {given[:12]}; give back the model that this was written "
            "for"
        )
    finetune = dataclasses.replace(config.finetune, teacher_sha256=found)
    return dataclasses.replace(config, finetune=finetune), dataclasses.replace(
        base, teacher=teacher
    )


def identity(model: Base) -> str:
    """SHA-256 in hex of what a model computes with: its tensors and its parameters.

    Of parameters only those that differ from the schema's defaults count, so that one which a later
    version adds changes no hash.
    """
    plain = dict(fields_of(ModelConfig(vocab_size=64, embedding_dim=64, num_layers=1)))
    said = [
        (path, value)
        for path, value in fields_of(model.parameters)
        if path not in plain or plain[path] != value
    ]
    return hashlib.sha256(repr((model.sha256, sorted(said))).encode()).hexdigest()


def check_same_ids(student: Tokenizer, teacher: Tokenizer, name: str) -> None:
    """Asserts that an id stands for the same token in both.

    How a text is cut into tokens is the student's business, so merges and scores may differ.

    Args:
      student: the base's tokenizer.
      teacher: the other model's.
      name: what the user called the teacher.

    Raises:
      ConfigError: with the first id that does not.

    Example:
      >>> from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
      >>> check_same_ids(ByteTokenizer(), ByteTokenizer(), "larger")
    """
    if fingerprint(student) == fingerprint(teacher):
        return
    sizes = (student.vocab_size, teacher.vocab_size)
    for number in range(max(sizes)):
        ours, theirs = _token(student, number), _token(teacher, number)
        if ours != theirs:
            raise ConfigError(
                f'finetune.teacher="{name}" has another vocabulary than the base: id {number} is '
                f"{_said(theirs)} there and {_said(ours)} here ({sizes[1]} and {sizes[0]} ids); "
                "scores are compared id by id, so give a teacher with the base's tokenizer"
            )


def _token(tokenizer: Tokenizer, number: int) -> str | None:
    """What an id stands for; None where it is none of the tokenizer's."""
    if number >= tokenizer.vocab_size:
        return None
    token = getattr(tokenizer, "token", None)
    return tokenizer.decode([number]) if token is None else token(number)


def _said(token: str | None) -> str:
    return "nothing" if token is None else repr(token)
