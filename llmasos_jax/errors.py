"""Every error that a user can cause, each with the exit status that the command line gives it.

A message has three parts: what was got, what was expected, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LLMasOSError(Exception):
    """Base of all errors raised on purpose. `exit_status` is what the command line returns."""

    exit_status = 2


class ConfigError(LLMasOSError):
    """A config field is unknown, has the wrong type, or breaks a rule."""


class DataError(LLMasOSError):
    """A data source is missing, empty or not readable as what it claims to be."""


class TokenizerError(LLMasOSError):
    """A tokenizer is unknown, cannot be read or cannot be trained."""


class FormatError(LLMasOSError):
    """A model folder does not follow the LLMasOS format. The only error that reading one raises."""


class HubError(LLMasOSError):
    """A name is in no library, or the files of a published model cannot be had."""


class CheckpointError(LLMasOSError):
    """A checkpoint is absent, damaged or belongs to another config."""


class SaveFailedError(CheckpointError):
    """A checkpoint could not be written while the run was under way."""

    exit_status = 3


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is there, and is not what was written.

    Attributes:
      folder: of the step.
      what: is wrong with it.
    """

    def __init__(self, folder: str, what: str) -> None:
        super().__init__(
            f'checkpoint "{folder}" is damaged ({what}); `llmasos doctor` lists all that is wrong, '
            "and without that folder a run goes on from the one before"
        )
        self.folder, self.what = folder, what

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Pickled by what it was made of."""
        return type(self), (self.folder, self.what)


class GenerationError(LLMasOSError):
    """A sampling argument is out of range or a prompt does not fit the model."""


class QueueFullError(GenerationError):
    """As many texts wait for the engine as may."""


class EngineClosedError(GenerationError):
    """The engine takes no more texts: it is being shut down, or it failed."""


class EvaluationError(LLMasOSError):
    """A metric, task or comparison was given what it cannot measure."""


class MissingExtraError(LLMasOSError):
    """A feature needs an optional dependency; the message names the extra that brings it."""


class ExportError(LLMasOSError):
    """An export is not the model when the program that it is for opens it."""

    exit_status = 1


class TrainingFailedError(LLMasOSError):
    """The run itself failed: a non-finite loss, a lost host."""

    exit_status = 3


class PreemptedError(LLMasOSError):
    """The run was asked to stop, saved, and can be started again."""

    exit_status = 75


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `'; did you mean "x"?'` for the nearest known name, else a list of all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; known: {', '.join(names)}" if names else ""
