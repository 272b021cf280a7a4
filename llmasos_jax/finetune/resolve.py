"""From a fine-tuning config as it is written to the whole config of a run."""

from __future__ import annotations

import dataclasses

from llmasos_jax.config.build import Source, build, finetune_of, with_model
from llmasos_jax.config.schema import Config
from llmasos_jax.errors import ConfigError
from llmasos_jax.finetune.base import Base, open_base
from llmasos_jax.finetune.teacher import with_teacher


def resolve(source: Source) -> tuple[Config, Base]:
    """The config with its base's parameters, template and hash, and the base; a teacher likewise.

    What the file sets in `config.model` goes beside the base's parameters: a classifier, mostly.

    Raises:
      ConfigError: there is no base, the config is wrong, the base is not the one that it names, or
        its teacher cannot be one.
      FormatError, HubError, CheckpointError: base or teacher cannot be opened.
    """
    name = finetune_of(source).base
    if name is None:
        raise ConfigError(
            "finetune.base is not set, so there is nothing to fine-tune; set it to a model, or "
            "start from random weights with `llmasos train`"
        )
    base = open_base(name)
    resolved = build(with_model(source, base.files.manifest.parameters))
    given = resolved.finetune.base_sha256
    if given is not None and given != base.sha256:
        raise ConfigError(
            f'finetune.base="{name}" has the weights {base.sha256[:12]}, and finetune.base_sha256 '
            f"is {given[:12]}; give back the model that this was written for"
        )
    generation = base.files.manifest.generation
    template = resolved.finetune.chat_template
    finetune = dataclasses.replace(
        resolved.finetune,
        base_sha256=base.sha256,
        chat_template=generation.chat_template if template is None else template,
    )
    return with_teacher(dataclasses.replace(resolved, finetune=finetune), base)
