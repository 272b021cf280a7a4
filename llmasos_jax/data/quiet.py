"""Keeps `datasets` from speaking for itself."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import datasets


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars and no second copy of an error while `datasets` works; both as before afterwards."""
    logger = logging.getLogger("datasets")
    level, had_bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not had_bars:
            datasets.enable_progress_bars()
