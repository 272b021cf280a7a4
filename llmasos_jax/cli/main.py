"""`llmasos VERB ...`. Nothing heavy is imported before the verb is known, so help is fast."""

from __future__ import annotations

import argparse
import atexit
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from llmasos_jax import __version__
from llmasos_jax.cli import interrupt
from llmasos_jax.errors import LLMasOSError, PreemptedError, SaveFailedError, did_you_mean

# Each verb is `llmasos_jax.cli.<verb>` with `add_arguments(parser)` and `run(args) -> int | None`.
VERBS = {
    "train": "trains a config, or goes on where its folder stopped",
    "finetune": "the same from a pretrained model",
    "sweep": "runs many runs over one config, and compares them",
    "launch": "writes what starts a config on a cluster",
    "convert": "makes an LLMasOS model of anything that can be read",
    "export": "writes a model in another program's format, and proves it there",
    "generate": "continues prompts, streamed to a terminal",
    "chat": "answers in a conversation, streamed to a terminal",
    "serve": "a model over HTTP, as OpenAI's clients speak it",
    "bench": "how fast a model is here: prompts and new tokens a second",
    "eval": "asks a model what tasks ask, and compares results",
    "card": "writes a model card from the folder of a run",
    "data": "shows what a config reads and how it is cut; prepares it",
    "models": "lists the models that have a name: licence, size, where they are",
    "plan": "says what a run needs and takes on a TPU pod, without one",
    "parity": "says where two models part, and why",
    "verify-resume": "shows that a run, killed and started again, is the run never killed",
    "inspect": "says what is inside a model, a training folder or a checkpoint",
    "doctor": "examines checkpoints: each file's hash, each leaf's sum",
    "diff": "lists the leaves in which two checkpoints or models differ",
}

EPILOG = """\
`llmasos VERB --help` lists a verb's options.
exit status: 0 done, 1 the answer is no, 2 wrong input, 3 the run failed,
             75 preempted and saved"""

RUN_FAILED = 3
INTERRUPTED = 130  # 128 + SIGINT, as shells count
PIPE_CLOSED = 141  # 128 + SIGPIPE


class UsageError(LLMasOSError):
    """The command line itself is wrong."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one line, with the nearest name."""

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError` where argparse would print its usage and exit."""
        raise UsageError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: the process's) and returns its exit status.

    Example:
      >>> main(["--version"])
      0.1.0.dev0
      0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    if argv is None:
        interrupt.install()
    try:
        try:
            status = _dispatch(words)
        except SystemExit as exit_:  # argparse leaves so after --help
            status = exit_.code if isinstance(exit_.code, int) else 0
        sys.stdout.flush()
        return status
    except SaveFailedError as error:
        status = _report(error, error.exit_status, debug)
        return _left_at_once(status) if argv is None else status
    except LLMasOSError as error:
        return _report(error, error.exit_status, debug)
    except KeyboardInterrupt:
        return _interrupted(is_process=argv is None)
    except BrokenPipeError:
        # The reader (`| head`) has left. Python flushes stdout once more at exit: give it a sink.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        return _report(error, LLMasOSError.exit_status, debug)
    except Exception as error:
        # Not an error that we foresaw, so it is a fault of ours and worth a traceback.
        return _report(error, RUN_FAILED, debug or not _is_out_of_memory(error))


def _dispatch(words: list[str]) -> int:
    verb = next((word for word in words if not word.startswith("-")), None)
    if verb is None:
        return _top(words)
    if verb not in VERBS:
        raise UsageError(f'there is no verb "{verb}"{did_you_mean(verb, VERBS)}')
    words.remove(verb)
    module = importlib.import_module(f"llmasos_jax.cli.{verb.replace('-', '_')}")
    parser = Parser(
        prog=f"llmasos {verb}",
        description=module.__doc__,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return module.run(parse(parser, words)) or 0


def _top(words: list[str]) -> int:
    width = max(map(len, VERBS))
    parser = Parser(
        prog="llmasos",
        usage="llmasos VERB ...",
        description="Train, keep and run language models on JAX.\n\nverbs:\n"
        + "\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()),
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    if parse(parser, words).version:
        print(__version__)
        return 0
    if words:
        raise UsageError("no verb; see `llmasos --help`")
    parser.print_help()
    return 0


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parses `words`; overrides like `--config.train.steps=100` go to `args.overrides`.

    Raises:
      UsageError: an unknown flag (with the nearest name), or a value that does not fit.
    """
    rest, overrides = split_overrides(words)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    if overrides and "--config" not in flags and not parser.get_default("takes_overrides"):
        first = next(iter(overrides))
        raise UsageError(f"--config.{first}: `{parser.prog}` takes no --config")
    # Before argparse looks: a flag that is misspelt is better news than a flag that is missing.
    for word in rest[: rest.index("--")] if "--" in rest else rest:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in flags:
            raise UsageError(
                f"there is no option {flag}{did_you_mean(flag.replace('_', '-'), flags)}"
            )
    args, unknown = parser.parse_known_intermixed_args(rest)
    if unknown:
        raise UsageError(f"{unknown[0]!r} is one argument too many; see `{parser.prog} --help`")
    args.overrides = overrides
    return args


def split_overrides(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.a.b=1` and `--config.a.b 1` out of a command line.

    Example:
      >>> split_overrides(["--workdir=w", "--config.train.steps=20", "--config.mesh.tensor", "2"])
      (['--workdir=w'], {'train.steps': '20', 'mesh.tensor': '2'})
    """
    rest: list[str] = []
    overrides: dict[str, str] = {}
    pending = iter(words)
    for word in pending:
        if word == "--":
            rest += [word, *pending]
        elif word.startswith("--config."):
            path, equals, text = word.removeprefix("--config.").partition("=")
            value = text if equals else next(pending, None)
            if value is None:
                raise UsageError(f"{word} has no value; write {word}=VALUE")
            overrides[path] = value
        else:
            rest.append(word)
    return rest, overrides


def _report(error: BaseException, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    # One line, and one more for each thing that the message lists (tensors, leaves, fields).
    message, *listed = (" ".join(part.split()) for part in str(error).split("\n  "))
    if _is_out_of_memory(error):
        message += "; take a smaller model, batch or sequence, or more devices (config.mesh)"
    elif not isinstance(error, LLMasOSError | OSError):
        message = f"{type(error).__name__}: {message}"
    kind = "" if isinstance(error, PreemptedError) else "error: "
    print("\n  ".join([f"llmasos: {kind}{message}", *listed]), file=sys.stderr)
    return status


def _interrupted(is_process: bool) -> int:
    print("llmasos: interrupted", file=sys.stderr)
    if is_process:
        # XLA's threads may be at work still, and some do not survive the end of the interpreter.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    return INTERRUPTED


def _left_at_once(status: int) -> NoReturn:
    """Ends this process after a save that failed.

    Orbax's threads wait ten minutes for the rest of it, and Python would wait for them.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _is_out_of_memory(error: BaseException) -> bool:
    # XLA's error is told by its words: importing JAX for its class would take a second.
    return isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED")
