"""Rows of a table that `datasets` knows by name, as dicts."""

from __future__ import annotations

from typing import Any

from llmasos_jax.errors import DataError


def dataset_rows(name: str, config: str | None, split: str) -> list[dict[str, Any]]:
    """All rows of one split of a dataset.

    Args:
      name: a folder, or a name on the Hugging Face hub.
      config: of the dataset; None is its only one.
      split: "test", "validation", "train[:100]", ...

    Raises:
      DataError: it cannot be had, or has no such split.
    """
    import datasets

    try:
        return [dict(row) for row in datasets.load_dataset(name, config, split=split)]
    except Exception as error:  # whatever a hub, a loader or a disk may raise
        line = " ".join(str(error).split())[:300]
        raise DataError(
            f'dataset "{name}" ({config or "default"}, {split}) cannot be read: {line}'
        ) from error
