"""Registers the environments as it is imported, which is how Gymnasium's packages do it.

`gymnasium.make("llmasos_jax.evals.gym.registered:LLMasOS/NextToken-v0")` imports it by itself.
"""

from __future__ import annotations

from llmasos_jax.evals.gym.library import gymnasium

NEXT_TOKEN, TEXT_TASK = "LLMasOS/NextToken-v0", "LLMasOS/TextTask-v0"
_HERE = "llmasos_jax.evals.gym"

if NEXT_TOKEN not in gymnasium.registry:
    gymnasium.register(
        id=NEXT_TOKEN,
        entry_point=f"{_HERE}.next_token:NextTokenEnv",
        vector_entry_point=f"{_HERE}.next_token:NextTokenVectorEnv",
    )
    gymnasium.register(id=TEXT_TASK, entry_point=f"{_HERE}.text_task:TextTaskEnv")
