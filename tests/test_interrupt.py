"""Ctrl-C that comes while the garbage collector runs."""

import gc
import signal
import time
from collections.abc import Iterator
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


def test_elsewhere_it_is_heard_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_another_handler_stays() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt.install()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
