"""Gymnasium: what its checker asks for, seeds that repeat, models ranked as they should be."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium", reason="needs the extra `eval`")

from gymnasium.utils.env_checker import check_env  # noqa: E402
from small_model import small_model  # noqa: E402

from llmasos_jax.config.model import ModelConfig  # noqa: E402
from llmasos_jax.errors import ConfigError, EvaluationError  # noqa: E402
from llmasos_jax.evals.gym.agents import ChanceAgent, TextAgent, TokenAgent  # noqa: E402
from llmasos_jax.evals.gym.compare import compare, play  # noqa: E402
from llmasos_jax.evals.gym.next_token import NextTokenEnv, NextTokenVectorEnv  # noqa: E402
from llmasos_jax.evals.gym.registered import NEXT_TOKEN, TEXT_TASK  # noqa: E402
from llmasos_jax.evals.gym.text_task import TextTaskEnv, prefix  # noqa: E402
from llmasos_jax.generate.model import Model  # noqa: E402

VOCAB = 300
LETTERS = "".join(chr(0x4E00 + i) for i in range(VOCAB))


class Letters:
    """A tokenizer whose tokens are letters, so that every text comes back as its ids."""

    vocab_size = VOCAB
    bos_id = eos_id = None
    adds_bos = False

    def encode(self, text: str) -> list[int]:
        return [(ord(letter) - 0x4E00) % VOCAB for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(LETTERS[i] for i in ids)

    def save(self, folder: Path) -> dict[str, Any]:
        raise NotImplementedError


def model_of(seed: int) -> Model:
    cfg = ModelConfig(VOCAB, 32, 1, context_length=64, num_heads=2, tie_embeddings=False)
    model = small_model(cfg, seed=seed)
    model.tokenizer = Letters()
    return model


MODEL = model_of(0)
TASKS = [("Say yes:", "yes"), ("Say 是:", "是")]


@pytest.mark.parametrize("name", [NEXT_TOKEN, TEXT_TASK])
@pytest.mark.filterwarnings("ignore:.*render.*")
def test_the_checker_is_content(name: str) -> None:
    env = gymnasium.make(name, render_mode="ansi")
    check_env(env.unwrapped)
    env.reset(seed=0)
    assert isinstance(env.render(), str)
    env.close()


@pytest.mark.filterwarnings("ignore:.*render.*")
def test_the_checker_is_content_with_models_as_the_world() -> None:
    check_env(NextTokenEnv(["a", "b"], model=MODEL, world=MODEL, horizon=4), skip_render_check=True)
    check_env(TextTaskEnv(["1 + 1 ="], world=MODEL, max_length=4), skip_render_check=True)


def test_a_world_that_is_silent_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    env = NextTokenEnv(["a"], world=MODEL, model=MODEL)
    monkeypatch.setattr(type(MODEL), "generate_text", lambda _, prompt, *words, **options: prompt)
    with pytest.raises(EvaluationError, match="wrote nothing after 'a', which is 1 token"):
        env.reset(seed=0)


def episode(env: Any, seed: int, actions: Any) -> list[Any]:
    found = [env.reset(seed=seed)[0]]
    for action in actions:
        found.append(env.step(action)[:4])
        if found[-1][2]:
            break
    return found


def test_one_seed_is_one_episode_and_another_is_another() -> None:
    make = [
        lambda: NextTokenEnv(["ab", "c"], world=MODEL, model=MODEL, horizon=6),
        lambda: TextTaskEnv(),
    ]
    for new, actions in zip(make, ([3] * 6, ["a"] * 4), strict=True):
        one, same, other = (repr(episode(new(), seed, actions)) for seed in (1, 1, 2))
        assert one == same != other


def test_rewards_are_for_the_right_token() -> None:
    env = NextTokenEnv(["abc"], context=4, horizon=9)
    seen, _ = env.reset(seed=0)
    assert seen.tolist() == [259, 259, 259, 256]
    rewards = []
    for token in b"axc":
        seen, reward, ended, cut, info = env.step(token)
        rewards.append(reward)
    assert rewards == [1, 0, 1] and ended and not cut and info == {"token": ord("c")}
    assert seen.tolist() == [256, *b"abc"]


def test_answers_are_judged() -> None:
    env = TextTaskEnv(TASKS, questions=2)
    question, _ = env.reset(seed=3)
    right = dict(TASKS)[question]
    question, reward, ended, _, info = env.step(f" {right} ")
    assert (reward, ended, info["answer"]) == (1.0, False, right)
    assert env.step("no")[1:3] == (0.0, True)
    assert env.action_space.contains("是") and not env.action_space.contains("水")
    graded = TextTaskEnv(TASKS, reward="test_gym:prefix")
    graded.reset(seed=0)
    assert prefix("yet", "yes") == pytest.approx(2 / 3) and graded.step("")[1] == 0.0
    with pytest.raises(ConfigError, match="reward="):
        TextTaskEnv(TASKS, reward="nothing")
    with pytest.raises(EvaluationError, match="questions of yours"):
        TextTaskEnv(world=MODEL)


def test_readers_in_step_are_readers_alone() -> None:
    envs = gymnasium.make_vec(
        NEXT_TOKEN, num_envs=3, vectorization_mode="vector_entry_point", context=8, horizon=5
    )
    assert isinstance(envs.unwrapped, NextTokenVectorEnv)
    seen, _ = envs.reset(seed=7)
    alone = [NextTokenEnv(context=8, horizon=5) for _ in range(3)]
    firsts = [env.reset(seed=7 + i)[0] for i, env in enumerate(alone)]
    np.testing.assert_array_equal(seen, firsts)
    assert envs.observation_space.contains(seen)
    for step in range(12):
        actions = np.full(3, 101)
        seen, rewards, ended, _, _ = envs.step(actions)
        for i, env in enumerate(alone):
            if step % 6 == 5:  # its text ended in the step before
                expected, reward, over = env.reset()[0], 0.0, False
            else:
                expected, reward, over, _, _ = env.step(101)
            np.testing.assert_array_equal(seen[i], expected)
            assert (rewards[i], ended[i]) == (reward, over)


def test_models_are_ranked_by_what_they_know() -> None:
    """In a world that a model writes greedily, that model knows what comes next."""
    text = MODEL.generate_text("a", 24, 0.0, echo=True)
    make = lambda: NextTokenEnv([text], model=MODEL, context=64, horizon=24)
    other = model_of(5)
    agents = {"chance": ChanceAgent(), "other": TokenAgent(other), "writer": TokenAgent(MODEL)}
    found = compare(agents, make, range(6), samples=200)
    assert found.ranking[0] == "writer" and found.returns["writer"].tolist() == [24.0] * 6
    assert found.steps[0].value > 6 and found.steps[0].p < 0.1
    assert found.means["chance"].value < 2 and "1. writer" in str(found)
    again = compare(agents, make, range(6), samples=200)
    assert json.dumps({k: v.tolist() for k, v in found.returns.items()}) == json.dumps(
        {k: v.tolist() for k, v in again.returns.items()}
    )
    with pytest.raises(EvaluationError, match="two of each"):
        compare({"one": ChanceAgent()}, make, [0])


def test_a_model_answers_in_text_and_chance_draws_letters() -> None:
    make = lambda: TextTaskEnv(
        ["a"], world=MODEL, questions=2, max_length=6, reward="prefix", charset=LETTERS
    )
    writer = play(TextAgent(MODEL, 6), make, [0, 1])
    assert writer.tolist() == [2.0, 2.0]
    assert 1 > play(ChanceAgent(), make, [0, 1]).mean()
    with pytest.raises(EvaluationError, match="another number"):
        TokenAgent(small_model()).act(np.zeros((1, 4), int), NextTokenEnv().action_space, None)
