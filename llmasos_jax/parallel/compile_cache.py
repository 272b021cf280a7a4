"""Compiled programs that outlive the process, and a count of them."""

from __future__ import annotations

from dataclasses import dataclass

from llmasos_jax.config.files import cache_folder

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

    if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
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
