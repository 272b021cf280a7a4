"""Ctrl-C that comes while the garbage collector runs, or while modules are imported."""

import contextlib
import gc
import importlib
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from llmasos_jax.cli import interrupt


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt.install()
    yield
    signal.signal(signal.SIGINT, before)


def test_it_is_heard_after_a_callback_that_drops_what_it_raises() -> None:
    sent: list[str] = []

    def callback(phase: str, info: dict[str, Any]) -> None:
        if not sent:
            sent.append(phase)
            signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(callback)
    try:
        with pytest.raises(KeyboardInterrupt):
            gc.collect()
            assert sent  # and nothing was raised there
            time.sleep(5)
    finally:
        gc.callbacks.remove(callback)


class Watched:
    pass


def in_a_weak_dictionary() -> None:
    """A value whose end is a signal, dropped with its key."""

    def value() -> Iterator[None]:
        try:
            yield
        finally:
            signal.raise_signal(signal.SIGINT)

    key, dropped = Watched(), value()
    next(dropped)
    kept = weakref.WeakKeyDictionary({key: dropped})
    del dropped, key
    assert not kept


def in_a_finalizer() -> None:
    watched = Watched()
    weakref.finalize(watched, signal.raise_signal, signal.SIGINT)
    del watched


@pytest.mark.parametrize("go", [in_a_weak_dictionary, in_a_finalizer])
def test_it_is_heard_after_a_weak_reference_is_told(go: Callable[[], None]) -> None:
    gone = False
    with pytest.raises(KeyboardInterrupt):
        go()
        gone = True  # and nothing was raised there
        time.sleep(5)
    assert gone


def test_it_is_heard_after_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which numpy calls a broken installation where it is interrupted."""
    module = (
        "import signal\nsignal.raise_signal(signal.SIGINT)\nfor _ in range(9): pass\ndone = 1\n"
    )
    (tmp_path / "imported_whole.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    imported = None
    with pytest.raises(KeyboardInterrupt):
        imported = importlib.import_module("imported_whole")
        time.sleep(5)
    assert imported is not None and imported.done


def test_it_is_heard_in_an_import_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "_LOADING_S", 0.2)
    module = "import signal\nsignal.raise_signal(signal.SIGINT)\nwhile True: pass\n"
    (tmp_path / "imported_never.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module("imported_never")


def test_it_is_heard_after_the_lock_of_an_import_goes() -> None:
    """Python's own weak reference, which is told when the last import of a module is over."""
    told: list[str] = []

    def profile(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_name == "cb" and "importlib" in code.co_filename:
            told.append(event)
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    gone = False
    try:
        with pytest.raises(KeyboardInterrupt):
            sys.setprofile(profile)
            with contextlib.suppress(ImportError):
                importlib.import_module("no_module_of_this_name")
            gone = True  # and nothing was raised there
            time.sleep(5)
    finally:
        sys.setprofile(None)
    assert gone and told


class Output:
    """What a traced function gives."""


def test_it_is_heard_after_jax_has_named_what_a_function_gives() -> None:
    sent: list[str] = []

    def flatten(_: Output) -> tuple[tuple[()], None]:
        callers = {code.co_name for code in interrupt._codes(sys._getframe())}
        if "paths" in callers and not sent:
            sent.append("while it is named")
            signal.raise_signal(signal.SIGINT)
        return (), None

    jax.tree_util.register_pytree_node(Output, flatten, lambda _, __: Output())
    gone = False
    with pytest.raises(KeyboardInterrupt):
        jax.jit(Output).trace()
        gone = True  # and nothing was raised there
        time.sleep(5)
    assert gone and sent


def test_elsewhere_it_is_heard_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_another_handler_stays() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt.install()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
