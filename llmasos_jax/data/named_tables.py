"""Datasets that the `datasets` library knows: by a name on the hub, or in a folder on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from llmasos_jax.config.data import DataConfig
from llmasos_jax.data.columns import hint_of_fields
from llmasos_jax.data.quiet import quiet
from llmasos_jax.errors import DataError


def read_named(data: DataConfig) -> tuple[Sequence[str | None], str]:
    """The text column of a dataset, and a key that changes with it.

    Args:
      data: `path` is a name on the hub, a folder that `save_to_disk` wrote, or one with data files;
        `subset`, `split` and `text_field` are read.

    Raises:
      DataError: it cannot be had, has no such split, or no such column of text.
    """
    table: Any = open_named(data, streaming=False)
    require_column(table.features, data)
    key = hashlib.sha256(f"{table._fingerprint} {data.text_field}".encode()).hexdigest()
    return table[data.text_field], key


def open_named(data: DataConfig, *, streaming: bool) -> Any:
    """One split: a `datasets.Dataset`, or an `IterableDataset` where it is streamed.

    Raises:
      DataError: it cannot be had, or has no such split.
    """
    if not data.path:
        raise DataError(
            'data.source="huggingface" needs data.path; set it to a name on the hub or a folder'
        )
    folder = Path(data.path).expanduser()
    with quiet():
        try:
            if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
                return _saved(folder, data, streaming)
            path = str(folder) if folder.exists() else data.path
            return datasets.load_dataset(path, data.subset, split=data.split, streaming=streaming)
        except DataError:
            raise
        except Exception as error:  # whatever a hub, a loader or a disk may raise
            line = " ".join(str(error).split())[:300]
            raise DataError(f"{_name(data)} cannot be read: {line}; check data.path") from error


def _saved(folder: Path, data: DataConfig, streaming: bool) -> Any:
    """What `save_to_disk` wrote: one split, or several by name; or a part of them."""
    found: Any = datasets.load_from_disk(str(folder))
    splits: Any = found if isinstance(found, datasets.DatasetDict) else {_split_of(found): found}
    table = _part(splits, data.split, folder)
    subset = table.info.config_name
    if data.subset not in (None, subset):
        there = f'is of subset "{subset}"' if subset else "has no subsets"
        raise DataError(
            f'{folder} was written by save_to_disk and {there}; got data.subset="{data.subset}": '
            "leave it out"
        )
    return table.to_iterable_dataset() if streaming else table


def _split_of(table: Any) -> str:
    """The name of a split that was saved alone; one without a name is "train"."""
    return "train" if table.split is None else str(table.split)


def _part(splits: Mapping[str, Any], wanted: str, folder: Path) -> Any:
    """A split by its name, or slices of it as `datasets` writes them: "train[:10%]"."""
    if wanted in splits:
        return splits[wanted]
    # A slice that was saved under its own name is what there is of that split.
    named = {name.partition("[")[0]: table for name, table in splits.items()}
    if wanted in named:
        return named[wanted]
    known = ", ".join(splits)
    try:
        lengths = {name: len(table) for name, table in splits.items()}
        slices = datasets.ReadInstruction.from_spec(wanted).to_absolute(lengths)
        parts = [splits[s.splitname].select(range(s.from_ or 0, _end(s, lengths))) for s in slices]
    except (ValueError, AssertionError, KeyError, IndexError) as error:
        why = f" ({' '.join(str(error).split())[:200]})" if "[" in wanted else ""
        raise DataError(
            f'{folder} has no split "{wanted}"{why}; set data.split to one of {known}, or to a '
            "slice of one (NAME[:1000])"
        ) from error
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _end(piece: Any, lengths: Mapping[str, int]) -> int:
    return lengths[piece.splitname] if piece.to is None else piece.to


def require_column(features: Any, data: DataConfig) -> None:
    """Refuses a dataset without a column of strings under `data.text_field`.

    Raises:
      DataError: it has none.
    """
    if data.text_field not in features:
        hint = hint_of_fields(features, data.text_field)
        raise DataError(f'{_name(data)} has no column "{data.text_field}"{hint}')
    kind = features[data.text_field]
    if getattr(kind, "dtype", None) not in ("string", "large_string"):
        raise DataError(
            f'{_name(data)}: column "{data.text_field}" holds {kind}; expected strings: name '
            "another one"
        )


def _name(data: DataConfig) -> str:
    subset = "" if data.subset is None else f"{data.subset}, "
    return f'dataset "{data.path}" ({subset}{data.split})'
