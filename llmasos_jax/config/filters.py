"""Which documents are left out for what they look like."""

from __future__ import annotations

from dataclasses import dataclass

from llmasos_jax.config.require import require_finite
from llmasos_jax.errors import ConfigError


@dataclass(frozen=True)
class FiltersConfig:
    """Thresholds of documents; None does not look. What each one counts: `data/filters.py`.

    Rae et al. (2021, Gopher, arXiv 2112.11446, appendix A1) use max_bullet_lines=0.9,
    max_ellipsis_lines=0.3, max_duplicate_lines=0.3, min_word_length=3 and max_word_length=10.

    Attributes:
      min_chars, max_chars: characters of a document.
      min_letters: share of letters among the characters that are no blanks.
      min_word_length, max_word_length: mean characters of the words that blanks or marks separate.
      max_duplicate_lines: share of lines that stood in the document before.
      max_ellipsis_lines: share of lines that end in an ellipsis.
      max_bullet_lines: share of lines that begin with a bullet.
    """

    min_chars: int | None = None
    max_chars: int | None = None
    min_letters: float | None = None
    min_word_length: float | None = None
    max_word_length: float | None = None
    max_duplicate_lines: float | None = None
    max_ellipsis_lines: float | None = None
    max_bullet_lines: float | None = None


_SHARES = ("min_letters", "max_duplicate_lines", "max_ellipsis_lines", "max_bullet_lines")


def check_filters(filters: FiltersConfig) -> None:
    """Raises ConfigError for the first field of `data.filters` that breaks a rule."""
    require_finite("data.filters", filters)
    for name, value in vars(filters).items():
        if value is not None and value < 0:
            raise ConfigError(f"data.filters.{name}={value} must be at least 0")
        if value is not None and name in _SHARES and value > 1:
            raise ConfigError(f"data.filters.{name}={value} is a share; it must be at most 1")
    for what in ("chars", "word_length"):
        low, high = getattr(filters, f"min_{what}"), getattr(filters, f"max_{what}")
        if low is not None and high is not None and low > high:
            raise ConfigError(
                f"data.filters.min_{what}={low} is above data.filters.max_{what}={high}; no "
                "document would be left"
            )
