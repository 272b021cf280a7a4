"""Reads the text of a program compiled for TPU, loops multiplied out."""

from llmasos_jax.plan.hlo.collectives import COLLECTIVES, Collective
from llmasos_jax.plan.hlo.program import Kernel, Program, read_program

__all__ = ["COLLECTIVES", "Collective", "Kernel", "Program", "read_program"]
