"""The Hugging Face hub, through its own client and into its own cache.

On top of the client: only the files that a model needs; a download that was cut off goes on where
it stopped, in a later process too; every file is checked against the hash that the hub names.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmasos_jax.errors import HubError, LLMasOSError, MissingExtraError
from llmasos_jax.hub import trouble
from llmasos_jax.hub.files import INDEX, RemoteFile, choose, is_weights
from llmasos_jax.hub.verify import git_sha1_of, remember, sha256_of

_LOG = logging.getLogger(__name__)
_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Remote:
    """A repository at one commit: what the hub says of it.

    Attributes:
      repo: "org/name".
      commit: 40 hexadecimal digits.
      files: the files that the model needs.
    """

    repo: str
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(file.num_bytes for file in self.files)


@dataclass(frozen=True)
class Hub:
    """A hub and its cache on this disk.

    Attributes:
      endpoint: its address; None is $HF_ENDPOINT, else https://huggingface.co.
      cache: the folder; None is the client's own ($HF_HUB_CACHE, $HF_HOME/hub).
      token: for gated and private repositories; None is $HF_TOKEN, else what `hf auth login` kept.
    """

    endpoint: str | None = None
    cache: Path | None = None
    token: str | None = None

    def fetch(self, repo: str, revision: str | None = None, file: str | None = None) -> Path:
        """The model's folder (or its one .gguf file), downloaded where it is not here yet.

        Args:
          repo: "org/name".
          revision: a branch, tag or commit; None is "main".
          file: the .gguf file to take where there are several.

        Raises:
          HubError: it cannot be had; the message says why and what to do.
        """
        client = _client()
        if client.constants.is_offline_mode():
            found = self.cached(repo, revision, file)
            if found is None:
                raise trouble.UnreachableError(trouble.offline(repo, revision))
            return found
        if _is_commit(revision) and (found := self.cached(repo, revision, file)):
            return found
        try:
            remote = self.look(repo, revision, file)
        except trouble.UnreachableError as error:
            found = self.cached(repo, revision, file)
            if found is None:
                raise
            _LOG.warning("%s; goes on with the copy in the cache, which may be older", error)
            return found
        return self._download(client, remote, revision)

    def look(self, repo: str, revision: str | None = None, file: str | None = None) -> Remote:
        """What would be downloaded.

        Raises:
          HubError: the hub cannot be reached, or has no such model.
        """
        client = _client()
        if client.constants.is_offline_mode():
            raise trouble.UnreachableError(trouble.offline(repo, revision))
        with trouble.in_words(repo, revision, self._address(client), self._has_token(client)):
            info = client.HfApi(endpoint=self.endpoint, token=self.token).model_info(
                repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_S
            )
        listed = [
            RemoteFile(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else None)
            for s in info.siblings or ()
        ]
        files = {f.name: f for f in listed}
        return Remote(repo, str(info.sha), tuple(files[n] for n in choose(files, repo, file)))

    def cached(
        self, repo: str, revision: str | None = None, file: str | None = None
    ) -> Path | None:
        """The model in the cache, if it is whole; asks nobody."""
        client = _client()
        storage = self._storage(client, repo)
        if _is_commit(revision):
            commit = revision
        else:
            commit = _read_reference(storage, revision)
        if commit is None:
            return None
        folder = storage / "snapshots" / commit
        names = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        try:
            here = {n: RemoteFile(n, 0, None) for n in names}
            chosen = choose(here, repo, file)
        except HubError:
            return None
        # They come last, so that nothing else is missing where they are.
        whole = any(map(is_weights, chosen))
        whole = whole and (INDEX not in names or _shards(names[INDEX]) <= names.keys())
        return _opened(folder, chosen) if whole else None

    def _download(self, client: Any, remote: Remote, revision: str | None) -> Path:
        folder = self._storage(client, remote.repo) / "snapshots" / remote.commit
        missing = [f for f in remote.files if not (folder / f.name).exists()]
        self._check_space(client, remote.repo, sum(f.num_bytes for f in missing))
        if missing:
            size = sum(f.num_bytes for f in missing)
            _LOG.info("downloads %s: %d files, %.2f GB", remote.repo, len(missing), size / 1e9)
        for file in remote.files:
            if not (folder / file.name).exists():
                self._get(client, remote, file)
            elif file.sha256 is not None:
                _check_kept(folder / file.name, file, remote.repo)
        # Last, so that a name never points to half a model.
        reference = _reference(self._storage(client, remote.repo), revision)
        if not _is_commit(revision) and reference is not None:
            with contextlib.suppress(OSError):  # a cache that is read-only
                reference.parent.mkdir(parents=True, exist_ok=True)
                reference.write_text(remote.commit, encoding="ascii")
        return _opened(folder, tuple(f.name for f in remote.files))

    def _get(self, client: Any, remote: Remote, file: RemoteFile) -> None:
        """Downloads one file into the cache, going on from what an earlier process left."""
        where = self._address(client)
        with trouble.in_words(
            remote.repo, remote.commit, where, self._has_token(client), file.name
        ):
            url = client.hf_hub_url(
                remote.repo, file.name, revision=remote.commit, endpoint=self.endpoint
            )
            meta = client.get_hf_file_metadata(
                url, token=self.token, timeout=_TIMEOUT_S, endpoint=self.endpoint
            )
            if not re.fullmatch(r"[\w-][\w.+-]{0,127}", str(meta.etag)):
                raise HubError(f"{where} gives {file.name} the etag {meta.etag!r}; expected a hash")
            blob = self._storage(client, remote.repo) / "blobs" / str(meta.etag)
            # Larger ones the hub sends in its own way only, which the client knows.
            is_large = (meta.size or 0) > client.constants.MAX_HTTP_DOWNLOAD_SIZE
            if not blob.exists() and not is_large:
                self._get_blob(client, remote, file, url, blob, meta.size)
            # The client finds the content there, and writes what else its cache wants.
            path = client.hf_hub_download(
                remote.repo,
                file.name,
                revision=remote.commit,
                cache_dir=self.cache,
                endpoint=self.endpoint,
                token=self.token,
            )
            if file.sha256 is not None:
                _check_kept(Path(path), file, remote.repo)

    def _get_blob(
        self, client: Any, remote: Remote, file: RemoteFile, url: str, blob: Path, size: int | None
    ) -> None:
        blob.parent.mkdir(parents=True, exist_ok=True)
        part = blob.with_name(f"{blob.name}.llmasos-incomplete")
        with _locked(part):
            if blob.exists():
                return
            _fill(client, url, part, size, self.token)
            digest = _check_new(part, file, blob.name, remote.repo)
            os.replace(part, blob)
            if digest is not None:
                remember(blob, digest)

    def _storage(self, client: Any, repo: str) -> Path:
        cache = self.cache or Path(client.constants.HF_HUB_CACHE)
        return cache / client.file_download.repo_folder_name(repo_id=repo, repo_type="model")

    def _address(self, client: Any) -> str:
        return self.endpoint or client.constants.ENDPOINT

    def _has_token(self, client: Any) -> bool:
        return bool(self.token or client.get_token())

    def _check_space(self, client: Any, repo: str, needed: int) -> None:
        folder = self.cache or Path(client.constants.HF_HUB_CACHE)
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise HubError(
                f'{repo} takes {needed / 1e9:.1f} GB, "{folder}" has {free / 1e9:.1f} GB free; '
                "make room, or set HF_HOME to a larger disk"
            )


def _client() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.file_download
    except ImportError as error:
        raise MissingExtraError(
            f"the Hugging Face hub needs the package huggingface_hub ({error}); "
            'pip install "llmasos-jax[models]"'
        ) from error
    return huggingface_hub


def _is_commit(revision: str | None) -> bool:
    return revision is not None and len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def _reference(storage: Path, revision: str | None) -> Path | None:
    """The file that says which commit a branch or tag is; None where that is outside the cache."""
    path = Path(revision or "main")
    return None if path.is_absolute() or ".." in path.parts else storage / "refs" / path


def _read_reference(storage: Path, revision: str | None) -> str | None:
    """The commit that a branch or tag was; None if that is not known here, or damaged."""
    path = _reference(storage, revision)
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            said = file.read(64).decode("utf-8", errors="replace").strip()
    except (OSError, ValueError):  # ValueError: a name with a null byte
        return None
    return said if _is_commit(said) else None


def _opened(folder: Path, names: tuple[str, ...]) -> Path:
    return folder / names[0] if names[0].lower().endswith(".gguf") else folder


def _shards(index: Path) -> set[str]:
    from llmasos_jax.format.strict import parse_json

    try:
        weight_map = parse_json(index.read_bytes(), index.name)["weight_map"]
        return set(weight_map.values())
    except (OSError, LLMasOSError, KeyError, TypeError, AttributeError):
        return set()  # whoever opens it says what is wrong with it


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[None]:
    from huggingface_hub.utils import WeakFileLock

    with WeakFileLock(part.with_name(f"{part.name}.lock")):
        yield


def _fill(client: Any, url: str, part: Path, size: int | None, token: str | None) -> None:
    """Downloads what is missing of a file."""
    here = part.stat().st_size if part.exists() else 0
    if size is not None and here > size:
        part.unlink()
        here = 0
    logger = logging.getLogger("huggingface_hub.file_download")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it tells of each attempt; we tell of the last one
    try:
        with part.open("ab") as file:
            client.file_download.http_get(
                url,
                file,
                resume_size=here,
                headers=client.utils.build_hf_headers(token=token),
                expected_size=size,
                displayed_filename=url.rpartition("/")[2],
            )
    finally:
        logger.setLevel(level)


def _check_new(part: Path, file: RemoteFile, etag: str, repo: str) -> str | None:
    """Compares what came with the hash that the hub names; keeps nothing that differs.

    Returns the sha256, if that is what was compared.
    """
    if file.sha256 is not None or len(etag) == 64:
        expected, found = file.sha256 or etag, sha256_of(part, remember=False)
    elif len(etag) == 40:
        expected, found = etag, git_sha1_of(part)
    else:
        return None
    if found != expected:
        part.unlink()
        raise HubError(trouble.wrong_hash(repo, file.name, found, expected))
    return found if len(found) == 64 else None


def _check_kept(path: Path, file: RemoteFile, repo: str) -> None:
    """The same for a file that is in the cache already."""
    found = sha256_of(path)
    if found != file.sha256:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise HubError(trouble.wrong_hash(repo, file.name, found, str(file.sha256)))
