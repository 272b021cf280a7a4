"""The families of models that Hugging Face folders are read as, one short file per group."""

from __future__ import annotations

from llmasos_jax.interop.families import deepseek, gemma, llama, olmo, phi, qwen
from llmasos_jax.interop.families.family import Family

FAMILIES: tuple[Family, ...] = (
    *llama.FAMILIES,
    *qwen.FAMILIES,
    *gemma.FAMILIES,
    *phi.FAMILIES,
    *olmo.FAMILIES,
    *deepseek.FAMILIES,
)
