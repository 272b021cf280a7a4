"""Which files of a repository make a model. Names and sizes alone; nothing is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llmasos_jax.errors import HubError

INDEX = "model.safetensors.index.json"
_MODEL = "model.json"
_SMALL = frozenset(
    """
    config.json generation_config.json tokenizer.json tokenizer_config.json tokenizer.model
    special_tokens_map.json added_tokens.json vocab.json vocab.txt merges.txt spiece.model
    sentencepiece.bpe.model chat_template.json chat_template.jinja
    """.split()
)
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
_MAX_PARTS = 1000
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class RemoteFile:
    """A file in a repository.

    Attributes:
      name: its path there.
      num_bytes: its size.
      sha256: of a large file, as the hub has it; None for a small one.
    """

    name: str
    num_bytes: int
    sha256: str | None


def choose(files: Mapping[str, RemoteFile], repo: str, wanted: str | None) -> tuple[str, ...]:
    """The names of the files that are needed, the weights last: where they are, all else is too.

    Args:
      files: all that the repository has, by name.
      repo: its name, for messages.
      wanted: the one .gguf file that the user chose, or None.

    Raises:
      HubError: none of them makes a model that can be read, or the user has to choose.

    Example:
      >>> names = ["README.md", "config.json", "model.safetensors", "pytorch_model.bin"]
      >>> choose({name: RemoteFile(name, 1, None) for name in names}, "org/name", None)
      ('config.json', 'model.safetensors')
    """
    every = sorted(name for name in files if name.lower().endswith(".gguf"))
    # Of a model in parts the first stands for all.
    ggufs = [name for name in every if _parts(name)[0] == name]
    if wanted is not None:
        if wanted not in files:
            raise HubError(f'{repo} has no file "{wanted}"{_listed(ggufs, files)}')
        return _whole(wanted, files, repo)
    if _MODEL in files:
        own = (n for n in files if "/" not in n and not n.lower().endswith((".md", ".bin", ".pt")))
        return _sorted(own)
    weights = [n for n in files if n == "model.safetensors" or _SHARD.fullmatch(n)]
    if "config.json" in files and weights:
        # A folder with an index names its shards there; whichever else lies about is not asked for.
        index = [INDEX] if INDEX in files else []
        shards = [n for n in weights if _SHARD.fullmatch(n)]
        kept = shards if index and shards else weights
        return _sorted([*(n for n in files if n in _SMALL), *index, *kept])
    if len(ggufs) == 1:
        return _whole(ggufs[0], files, repo)
    if ggufs:
        raise HubError(
            f"{repo} has {len(ggufs)} .gguf files; choose one as {repo}/FILE{_listed(ggufs, files)}"
        )
    has_bin = any(n.endswith((".bin", ".pt", ".pth", ".h5", ".msgpack")) for n in files)
    raise HubError(
        f"{repo} has no model that can be read (config.json with safetensors, a model.json or a "
        ".gguf)" + ("; its weights are pickled or of another framework" if has_bin else "")
    )


def is_weights(name: str) -> bool:
    """Whether a file of this name holds tensors.

    Example:
      >>> is_weights("model.safetensors"), is_weights("model.safetensors.index.json")
      (True, False)
    """
    return name.lower().endswith((".safetensors", ".gguf"))


def _parts(name: str) -> tuple[str, ...]:
    """The files of a .gguf model that this one is a part of, in order.

    Example:
      >>> _parts("m-00002-of-00002.gguf")
      ('m-00001-of-00002.gguf', 'm-00002-of-00002.gguf')
    """
    match = _PART.fullmatch(name)
    if not match or int(match[2]) > _MAX_PARTS:
        return (name,)
    return tuple(f"{match[1]}-{i:05d}-of-{match[2]}.gguf" for i in range(1, int(match[2]) + 1))


def _whole(name: str, files: Mapping[str, RemoteFile], repo: str) -> tuple[str, ...]:
    parts = _parts(name)
    for part in parts:
        if part not in files:
            raise HubError(f'{repo} has no file "{part}", a part of the model that {name} is of')
    return parts


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    # Not by size: a tokenizer.json may be as large as weights, and a cache that a broken download
    # left is called whole by its weights.
    return tuple(sorted(names, key=lambda name: (is_weights(name), name)))


def _listed(names: list[str], files: Mapping[str, RemoteFile]) -> str:
    shown = "".join(f"\n  {name}  {files[name].num_bytes / 1e9:.2f} GB" for name in names[:20])
    return f":{shown}" if shown else ""
