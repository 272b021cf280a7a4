"""How fast a model is on these devices, as llama-bench tells it: prompts and new tokens a second.

    pp512       a prompt of 512 tokens is read
    tg128       128 tokens are drawn, one after the other, from an empty context
    tg128 b8    the same by 8 texts at once; tokens of all of them count

The programs are the engine's own. Each test runs once before it is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_jax.engine.options import EngineOptions, sizes_of
from llmasos_jax.engine.refusals import require_engine
from llmasos_jax.engine.runner import Runner, Seat
from llmasos_jax.errors import GenerationError
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.sampling import Sampling, require_whole
from llmasos_jax.generate.weights import Weights

STEPS = 16  # between two looks at the clock
GREEDY = Sampling(temperature=0.0)
MATRIX = 8192  # a side of the matrix that measures the memory: 256 MiB in float32


@dataclass(frozen=True)
class Test:
    """One row of the table.

    Attributes:
      name: "pp512" or "tg128".
      batch: texts at once.
      rates: tokens a second of each repetition.
    """

    __test__ = False  # no test of pytest's

    name: str
    batch: int
    rates: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Tokens a second."""
        return statistics.fmean(self.rates)

    @property
    def deviation(self) -> float:
        """Of the repetitions, tokens a second (n - 1 in the denominator); 0 of one alone."""
        return statistics.stdev(self.rates) if len(self.rates) > 1 else 0.0

    @property
    def label(self) -> str:
        """With its batch, if that is not 1."""
        return self.name if self.batch == 1 else f"{self.name} b{self.batch}"


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes:
      model: its name.
      size_bytes: of the weights.
      num_parameters: of the model.
      backend: kind of the devices.
      num_devices: devices; of a CPU its cores.
      dtype: of the weights.
      tests: in the order in which they ran.
      memory_gb_s: bandwidth that a large product of a matrix and a vector reaches; None if nobody
        decoded alone.
      memory_share: of that bandwidth, what decoding one text reaches by reading its weights; None
        likewise.
    """

    model: str
    size_bytes: int
    num_parameters: int
    backend: str
    num_devices: int
    dtype: str
    tests: tuple[Test, ...]
    memory_gb_s: float | None
    memory_share: float | None


def measure(
    model: Model,
    prompts: Sequence[int] = (512,),
    news: Sequence[int] = (128,),
    batches: Sequence[int] = (1,),
    repetitions: int = 5,
    on_run: Callable[[str], None] | None = None,
) -> Bench:
    """Times a model.

    Args:
      model: a decoder.
      prompts: lengths of prompts, in tokens.
      news: numbers of tokens to draw.
      batches: texts at once, for those that are drawn.
      repetitions: of each test.
      on_run: called before each run, the one that is not timed included.

    Raises:
      GenerationError: a number that cannot be, or that the model's context does not hold.
    """
    require_engine(model)
    for name, numbers in (("prompt", prompts), ("new", news), ("batch", batches)):
        for number in numbers:
            require_whole(name, number, 1)
    require_whole("repetitions", repetitions, 1)
    runner = _runner(model, [*prompts, *(new + 1 for new in news)], batches)
    say = on_run or (lambda what: None)
    tests = []
    for num in prompts:
        rates = _rates(lambda num=num: _read(runner, num), num, repetitions, f"pp{num}", say)
        tests.append(Test(f"pp{num}", 1, rates))
    for num in news:
        for batch in batches:
            run = lambda num=num, batch=batch: _draw(runner, num, batch)
            label = Test(f"tg{num}", batch, ()).label
            tests.append(Test(f"tg{num}", batch, _rates(run, num * batch, repetitions, label, say)))
    weights = model.weights
    alone = [test for test in tests if test.name.startswith("tg") and test.batch == 1]
    memory = share = None
    if alone:
        say("memory")
        memory = memory_gb_s()
        share = alone[0].mean * bytes_a_token(weights) / 1e9 / memory
    mesh = weights.placing.mesh
    return Bench(
        model=model.manifest.name,
        size_bytes=held_bytes(weights),
        num_parameters=model.num_parameters,
        backend=weights.placing.platform,
        num_devices=1 if mesh is None else mesh.size,
        dtype=str(jnp.dtype(weights.runtime.dtype)),
        tests=tuple(tests),
        memory_gb_s=memory,
        memory_share=share,
    )


def num_runs(prompts: Sequence[int], news: Sequence[int], batches: Sequence[int], each: int) -> int:
    """Calls of `on_run`."""
    return (len(prompts) + len(news) * len(batches)) * (each + 1) + (1 in batches and bool(news))


def held_bytes(weights: Weights) -> int:
    """Bytes of the weights; codes of four bits are held two in a byte."""
    leaves = jax.tree.leaves(weights.params)
    return sum(-(-leaf.size * _bits(leaf.dtype) // 8) for leaf in leaves)


def _bits(dtype: jnp.dtype) -> int:
    number = jnp.iinfo(dtype) if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype)
    return number.bits


def bytes_a_token(weights: Weights) -> int:
    """Bytes of the weights that one step reads: all, but of a table of tokens one row."""
    total = held_bytes(weights)
    if weights.definition.cfg.tie_embeddings:
        return total  # the table is the output layer
    table = weights.params["embed"]["table"]
    return total - table.nbytes + table.nbytes // table.shape[0]


def memory_gb_s() -> float:
    """What a float32 matrix of 256 MiB times a vector reaches on the first device, in GB/s."""
    matrix = jnp.ones((MATRIX, MATRIX), jnp.float32)
    vector = jnp.ones((1, MATRIX), jnp.float32)
    multiply = jax.jit(lambda x, w: jax.lax.dot_general(x, w, (((1,), (1,)), ((), ()))))
    jax.block_until_ready(multiply(vector, matrix))
    times_s = []
    for _ in range(9):
        start_s = time.perf_counter()
        jax.block_until_ready(multiply(vector, matrix))
        times_s.append(time.perf_counter() - start_s)
    return matrix.nbytes / 1e9 / statistics.median(times_s)


def _runner(model: Model, lengths: Sequence[int], batches: Sequence[int]) -> Runner:
    """The engine's programs, with pages for the longest test and texts that never end."""
    longest, own = max(lengths), model.config.context_length
    if longest > own:
        raise GenerationError(
            f"a test of {longest} tokens does not fit the model's context of {own}; give a shorter "
            "one"
        )
    page = EngineOptions().page_size
    table = -(-longest // page)
    options = EngineOptions(
        tuple(batches),
        num_pages=max(batches) * table + 1,
        context=longest,
        max_steps=STEPS,
    )
    sizes = sizes_of(options, model.weights)
    return Runner(model.weights, model.weights, model.num_ids, (), sizes)


def _rates(
    run: Callable[[], None], num_tokens: int, repetitions: int, label: str, say: Callable
) -> tuple[float, ...]:
    say(label)
    run()  # compiles
    rates = []
    for _ in range(repetitions):
        say(label)
        start_s = time.perf_counter()
        run()
        rates.append(num_tokens / (time.perf_counter() - start_s))
    return tuple(rates)


def _ids(runner: Runner, num: int) -> list[int]:
    return np.random.default_rng(0).integers(0, runner.num_ids, num).tolist()


def _read(runner: Runner, num: int) -> None:
    """Reads a prompt, page by page."""
    page, ids = runner.sizes.page_size, _ids(runner, num)
    pages = list(range(1, runner.sizes.pages_of(num) + 1))
    for first in range(0, num, page):
        logits = runner.read(ids[first : first + page], pages, first, num)
    jax.block_until_ready(logits)


def _draw(runner: Runner, num: int, batch: int) -> None:
    """Draws tokens behind one."""
    each = runner.sizes.pages_of(num + 1)
    table_bm = runner.table([[1 + row * each + i for i in range(each)] for row in range(batch)])
    for row, token in enumerate(_ids(runner, batch)):
        runner.seat(batch, row, Seat([token], [token], num + 1, GREEDY, wants=False))
    live_b = np.ones(batch, bool)
    for done in range(0, num, STEPS):
        drawn = runner.step(batch, table_bm, live_b, {}, min(STEPS, num - done))
        np.asarray(drawn.num_b)
