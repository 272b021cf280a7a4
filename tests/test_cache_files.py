"""Folders of the cache: whole or not there, and nothing of killed processes stays."""

import os
import time
from pathlib import Path

import pytest

from llmasos_jax.data.files import build_folder


def write(folder: Path) -> None:
    (folder / "x").write_text("whole")


def old(folder: Path) -> Path:
    folder.mkdir()
    (folder / "half").write_text("ha")
    long_ago = time.time() - 3600
    os.utime(folder, (long_ago, long_ago))
    return folder


def test_what_a_killed_process_left_goes_and_what_is_alive_stays(tmp_path: Path) -> None:
    path = tmp_path / "corpus-12"
    old(tmp_path / "corpus-12abcd.tmp")
    other = old(tmp_path / "corpus-34abcd.tmp")
    new = tmp_path / "corpus-12new.tmp"
    new.mkdir()

    def slow(folder: Path) -> None:
        write(folder)
        long_ago = time.time() - 3600
        os.utime(folder, (long_ago, long_ago))
        # A second process builds the same; the first is not done, and loses nothing.
        build_folder(path, write)
        assert (folder / "x").read_text() == "whole"

    build_folder(path, slow)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus-12", new.name, other.name]
    assert (path / "x").read_text() == "whole"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        write(folder)
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        build_folder(tmp_path / "deep" / "corpus", fails)
    assert [*(tmp_path / "deep").iterdir()] == []
