"""The bar for slow work: silent when short or piped, drawn on a terminal."""

import io

import pytest

from llmasos_jax import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "quiet_s", "is_drawn"),
    [(Terminal, 0.0, True), (Terminal, 60.0, False), (io.StringIO, 0.0, False)],
)
def test_only_slow_work_on_a_terminal_is_drawn(monkeypatch, stream, quiet_s, is_drawn):
    shown = stream()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr(progress, "QUIET_S", quiet_s)
    with progress.Progress("convert", 100, is_bytes=True) as bar:
        bar.advance(40, "embed.table")
        bar.advance(60, "head.w")
    assert ("convert" in shown.getvalue()) == is_drawn


@pytest.mark.parametrize(
    ("stream", "quiet_s", "is_drawn"),
    [(Terminal, 0.0, True), (Terminal, 60.0, False), (io.StringIO, 0.0, False)],
)
def test_a_step_is_named_once_it_is_slow(monkeypatch, stream, quiet_s, is_drawn):
    shown = stream()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr(progress, "QUIET_S", quiet_s)
    with progress.Steps("prove") as steps:
        steps.begin("reading it back")
        if is_drawn:
            steps._timer.join(10)
        steps.begin("running it")
    assert ("prove: running it" in shown.getvalue()) == is_drawn
