"""The families of models that Hugging Face folders are read as, one short file per group."""

from __future__ import annotations

from llmasos_jax.interop.hf.families import (
    bert,
    bloom,
    cohere,
    deepseek,
    distilbert,
    gemma,
    gpt2,
    gpt_neox,
    gptj,
    llama,
    modernbert,
    mpt,
    olmo,
    opt,
    phi,
    qwen,
    t5,
)
from llmasos_jax.interop.hf.families.family import Family

FAMILIES: tuple[Family, ...] = (
    *llama.FAMILIES,
    *qwen.FAMILIES,
    *gemma.FAMILIES,
    *phi.FAMILIES,
    *olmo.FAMILIES,
    *deepseek.FAMILIES,
    *gpt2.FAMILIES,
    *gptj.FAMILIES,
    *gpt_neox.FAMILIES,
    *bloom.FAMILIES,
    *mpt.FAMILIES,
    *opt.FAMILIES,
    *cohere.FAMILIES,
    *bert.FAMILIES,
    *distilbert.FAMILIES,
    *modernbert.FAMILIES,
    *t5.FAMILIES,
)
# What looks like one of them and is not, by `model_type`; with the reason.
NOT_READ = {
    "umt5": "each of its layers has a table of relative positions of its own, T5 has one for all",
}
