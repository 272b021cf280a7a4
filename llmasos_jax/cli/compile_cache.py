"""Compiled programs that outlive the process, and a count of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_COMPILED = "/jax/core/compile/backend_compile_duration"
_FOUND = "/jax/compilation_cache/cache_hits"


@dataclass
class CompileCount:
    """Programs that this process asked XLA for, and how many of them the cache had."""

    requested: int = 0
    found: int = 0

    def __str__(self) -> str:
        return f"compiled {self.requested - self.found} programs, {self.found} from the cache"


def use_compile_cache() -> CompileCount:
    """Turns JAX's persistent compilation cache on, and counts from now on.

    The folder is `$JAX_COMPILATION_CACHE_DIR`, else `llmasos/xla` in the user's cache folder
    (`$XDG_CACHE_HOME`, else `~/.cache`). Every program is kept, however fast it compiled.
    """
    import jax
    import jax.monitoring

    if not jax.config.read("jax_compilation_cache_dir"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    count = CompileCount()

    def on_duration(event: str, duration_secs: float, **_: str | int) -> None:
        del duration_secs
        count.requested += event == _COMPILED

    def on_event(event: str, **_: str | int) -> None:
        count.found += event == _FOUND

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)
    return count


def cache_folder() -> Path:
    """This program's folder in the user's cache folder, by the XDG Base Directory rules."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A relative path there is invalid and to be ignored.
    folder = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return folder / "llmasos"
