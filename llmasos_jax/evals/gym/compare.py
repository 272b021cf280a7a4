"""Several agents in the same environments: one seed is one episode, the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.gym.agents import Agent
from llmasos_jax.evals.metrics.intervals import Difference, Interval, bootstrap, permutation


@dataclass(frozen=True)
class Comparison:
    """What came out. It prints as a table, and shows itself in a notebook.

    Attributes:
      returns: by agent, float64 [S]: the sum of rewards of each seed's episode.
      means: by agent, with a bootstrap interval over seeds.
      ranking: agents, the best mean first.
      steps: of neighbours in the ranking, the better less the other, tested in pairs of seeds.
    """

    returns: dict[str, np.ndarray]
    means: dict[str, Interval]
    ranking: tuple[str, ...]
    steps: tuple[Difference, ...]

    def __str__(self) -> str:
        lines = []
        for i, name in enumerate(self.ranking):
            more = f"; ahead of the next by {self.steps[i]}" if i < len(self.steps) else ""
            lines.append(f"{i + 1}. {name}: {self.means[name]}{more}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def compare(
    agents: Mapping[str, Agent],
    make: Callable[[], Any],
    seeds: Sequence[int],
    *,
    max_steps: int = 1000,
    samples: int = 2000,
) -> Comparison:
    """Lets agents act in the same episodes.

    Args:
      agents: by name, two or more.
      make: makes a fresh environment, of one reader or writer.
      seeds: one episode each; all run side by side, so that a model acts on one batch.
      max_steps: of an episode; a longer one is cut.
      samples: of the bootstrap and the permutations.

    Raises:
      EvaluationError: fewer than two agents or seeds.
    """
    if len(agents) < 2 or len(seeds) < 2:
        raise EvaluationError(
            f"{len(agents)} agents, {len(seeds)} seeds; a comparison needs two of each at least"
        )
    returns = {name: play(agent, make, seeds, max_steps) for name, agent in agents.items()}
    means = {name: bootstrap(each, samples=samples) for name, each in returns.items()}
    ranking = tuple(sorted(returns, key=lambda name: -means[name].value))
    steps = tuple(
        permutation(returns[worse], returns[better], samples=samples)
        for better, worse in zip(ranking, ranking[1:], strict=False)
    )
    return Comparison(returns, means, ranking, steps)


def play(
    agent: Agent, make: Callable[[], Any], seeds: Sequence[int], max_steps: int = 1000
) -> np.ndarray:
    """The sum of rewards of each seed's episode, float64 [S].

    Each agent draws from a generator of its own seeds, so two runs are the same.
    """
    envs = [make() for _ in seeds]
    seen = [env.reset(seed=int(seed))[0] for env, seed in zip(envs, seeds, strict=True)]
    rng = np.random.default_rng(list(seeds))
    total, live = np.zeros(len(seeds)), np.ones(len(seeds), bool)
    for _ in range(max_steps):
        if not live.any():
            break
        # Of all, those that ended too: one shape, and each seed's noise is where it was.
        actions = agent.act(seen, envs[0].action_space, rng)
        for i in map(int, np.flatnonzero(live)):
            seen[i], reward, ended, cut, _ = envs[i].step(actions[i])
            total[i] += reward
            live[i] = not (ended or cut)
    for env in envs:
        env.close()
    return total
