"""Ctrl-C that comes while the garbage collector runs."""

import gc
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

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


def test_elsewhere_it_is_heard_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_another_handler_stays() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt.install()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
