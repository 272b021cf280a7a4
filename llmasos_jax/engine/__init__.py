"""Many texts at once: requests join and leave between steps, over pages that they share.

Example:
  >>> from llmasos_jax.engine import EngineOptions
  >>> EngineOptions().batch_sizes
  (1, 16)
"""

from llmasos_jax.engine.engine import Engine, EngineStats
from llmasos_jax.engine.options import EngineOptions
from llmasos_jax.engine.replicas import Replicas, start_engine
from llmasos_jax.engine.request import Ask, Piece, Ticket, TokenLogprob

__all__ = [
    "Ask",
    "Engine",
    "EngineOptions",
    "EngineStats",
    "Piece",
    "Replicas",
    "Ticket",
    "TokenLogprob",
    "start_engine",
]
