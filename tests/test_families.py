"""Folders of Hugging Face, read here: the logits and the tokens are those of transformers.

Every tensor of every tiny model is random, norms and biases too, and sequences are longer than
every window. Each tensor is then changed in the file, and taken out of it: each time it is seen.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_twins import TWINS, VOCAB, Twin
from jax import lax
from safetensors.numpy import load_file, save_file
from tolerances import SIMPLE

from llmasos_jax.errors import FormatError
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.generate.load import load_model
from llmasos_jax.generate.loop import Programs
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.sampling import Sampling
from llmasos_jax.generate.session import Request, Session
from llmasos_jax.generate.weights import Placing, Weights, place_tensors
from llmasos_jax.interop.hf import open_hf
from llmasos_jax.interop.hf.express import differences
from llmasos_jax.interop.hf.write import write_huggingface
from llmasos_jax.models.definition import empty_cache, file_def
from llmasos_jax.nn.cache import Cache

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:::(torch|transformers)")]
torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")

torch.set_num_threads(1)  # tiny products: threads only wait for each other

LENGTH = 24
NEW_TOKENS = 32
WEIGHTS = "model.safetensors"
# One of each kind of cache writes by the programs of `generate_text`, which take longer to compile.
IN_SESSION = ("llama-gqa-tied", "mistral-gqa", "bloom", "deepseek-v3", "phi3-longrope-long")


@dataclass(frozen=True)
class Case:
    """One variant, saved by transformers and opened here.

    Attributes:
      name: of the variant.
      twin: what was asked for.
      theirs: their model.
      folder: where it is saved.
      tokens: whole numbers [2, LENGTH].
      wanted: their logits; for an encoder its hidden states and what its head gives, one array.
      files: the folder, opened.
      model: the folder, loaded.
    """

    name: str
    twin: Twin
    theirs: Any
    folder: Path
    tokens: np.ndarray
    wanted: np.ndarray
    files: ModelFiles
    model: Model

    def ours(self) -> np.ndarray:
        """What our model gives where theirs gives `wanted`."""
        if self.twin.prompt:
            return np.asarray(self.model.logits(self.tokens))
        types = self.tokens % self.theirs.config.type_vocab_size
        hidden = np.stack(self.model.hidden_states(self.tokens, token_type_ids=types))
        weights, last_btd = self.model._weights, jnp.asarray(hidden[-1])
        bound = weights.definition.bind(weights.params)
        give = bound.pooled if self.model.config.head is None else bound.logits
        return joined(hidden, np.asarray(give(last_btd, weights.runtime)))

    def difference(self) -> float:
        """Of `ours` and `wanted`: the largest, relative to the largest of `wanted`."""
        return float(np.abs(self.ours() - self.wanted).max() / np.abs(self.wanted).max())


@pytest.fixture(scope="module", params=TWINS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    twin = TWINS[request.param]
    theirs = build(twin)
    folder = tmp_path_factory.mktemp("family") / request.param
    theirs.save_pretrained(folder)
    # 0 and 1 may be ids of padding, which shift positions in some families.
    tokens = np.random.default_rng(0).integers(2, VOCAB, (2, LENGTH))
    wanted = run(theirs, twin, tokens)
    files, model = open_hf(folder), load_model(folder)
    return Case(request.param, twin, theirs, folder, tokens, wanted, files, model)


def build(twin: Twin) -> Any:
    """Their model with random weights: products keep the size of what they read, scales near 1."""
    config = getattr(transformers, twin.config)(**twin.options)
    if twin.model is None:
        make = transformers.AutoModelForCausalLM.from_config
        model = make(config, attn_implementation="eager")
    else:
        model = getattr(transformers, twin.model)._from_config(config, attn_implementation="eager")
    rng = np.random.default_rng(1)
    done: set[int] = set()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if weight.data_ptr() in done or not weight.is_floating_point():
                continue
            done.add(weight.data_ptr())
            noise = rng.standard_normal(weight.shape).astype(np.float32)
            is_last = name.endswith((".norm.weight", ".norm_f.weight")) and "layers" not in name
            values = noise * size(twin, name, weight) + centre(twin, name, weight, is_last)
            if is_last:
                values = values * twin.gain
            if "embeddings_layernorm" in name:
                values = values * 0.3  # see `size`
            weight.copy_(torch.from_numpy(values))
    return model.float().eval()


def centre(twin: Twin, name: str, weight: Any, is_last: bool) -> float:
    """The mean of one of their weights: scales of norms are about 1."""
    if weight.ndim > 1 or not name.endswith("weight"):
        return 0.0
    # Gemma's norms multiply by 1 + theirs; its last one makes up for the small embeddings.
    return float(3 * is_last) if "Gemma" in twin.config else 1.0


def size(twin: Twin, name: str, weight: Any) -> float:
    """The deviation of one of their weights."""
    if weight.ndim == 1:
        # Scores of experts are below 1: a large bias would choose alone.
        return 0.1 if "correction" in name else 0.3
    if any(part in name for part in ("embed", "wte", "wpe")):
        # Smaller than what the blocks add: else a tied output layer repeats the token it reads.
        return 0.06 if "Gemma" in twin.config else 0.5
    return 1.5 / weight.shape[0 if twin.config == "GPT2Config" else -1] ** 0.5


def run(theirs: Any, twin: Twin, tokens: np.ndarray) -> np.ndarray:
    """Their logits, or all hidden states of an encoder and what its head gives."""
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        if twin.prompt:
            return theirs(ids).logits.numpy()
        types = ids % theirs.config.type_vocab_size
        out = theirs(ids, token_type_ids=types, output_hidden_states=True)
        last = out.pooler_output if "pooler_output" in out else out.logits
        return joined(torch.stack(out.hidden_states).numpy(), last.numpy())


def joined(*parts: np.ndarray) -> np.ndarray:
    """All numbers of several arrays."""
    return np.concatenate([part.ravel() for part in parts])


def test_logits_are_those_of_transformers(case: Case) -> None:
    assert case.wanted.std() >= 1
    assert all(t.dtype == "float32" for t in case.files.tensors.values())
    # A whole model is allowed WHOLE_MODEL, but exact and tanh GELU may differ by less than that.
    assert case.difference() <= SIMPLE


def test_greedy_tokens_are_those_of_transformers(case: Case) -> None:
    if not case.twin.prompt:
        pytest.skip("writes no text")
    prompt = case.tokens[:, : case.twin.prompt]
    wanted = case.theirs.generate(
        torch.from_numpy(prompt),
        attention_mask=torch.ones(prompt.shape, dtype=torch.long),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
    ).numpy()[:, case.twin.prompt :]
    write = by_session if case.name in IN_SESSION else by_loop
    assert write(case.model, prompt) == wanted.tolist()
    assert len(np.unique(wanted)) > 3  # a loop of one token would prove little


def by_loop(model: Model, prompt: np.ndarray) -> list[list[int]]:
    """The prompt into an empty cache, then the best token at each step: one program."""
    weights = model._weights
    definition, runtime = weights.definition, weights.runtime

    def run(params: Any, prompt_bt: jax.Array) -> jax.Array:
        bound = definition.bind(params)
        b, t = prompt_bt.shape

        def step(tokens_bt: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
            hidden = bound.hidden(tokens_bt, cache=cache, runtime=runtime)
            logits_btv = bound.logits(hidden.x_btd[:, -1:], runtime)
            assert hidden.cache is not None
            return jnp.argmax(logits_btv, axis=-1).astype(jnp.int32), hidden.cache

        first = step(prompt_bt, empty_cache(definition, b, t + NEW_TOKENS))

        def body(state: tuple[jax.Array, Cache], _: None) -> tuple[Any, jax.Array]:
            state = step(*state)
            return state, state[0]

        _, rest_tb1 = lax.scan(body, first, None, NEW_TOKENS - 1)
        return jnp.concatenate([first[0][None], rest_tb1])[:, :, 0].T

    # It runs once: compiling is what takes time.
    jitted = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})
    return np.asarray(jitted(weights.params, jnp.asarray(prompt, jnp.int32))).tolist()


def by_session(model: Model, prompt: np.ndarray) -> list[list[int]]:
    """As `generate_text` does it: prompts padded on the left, programs kept by shape."""
    weights = model._weights
    programs = Programs(weights.definition, weights.runtime, model.config.vocab_size)
    session = Session(programs, weights.params, (), model.config.context_length)
    requests = [Request(row.tolist(), NEW_TOKENS, Sampling(temperature=0.0)) for row in prompt]
    written = session.start(requests)
    written.advance(NEW_TOKENS)
    return written.new_ids()


def test_a_change_of_any_tensor_is_seen(case: Case) -> None:
    """Each tensor of the file is changed in place, and the same programs run with what is read."""
    rng = np.random.default_rng(2)
    placing = Placing(file_def(case.files.manifest.parameters), None)
    held = case.model._weights
    ignored = ignored_of(case)
    unseen = []
    try:
        for name, place in tensors_of(case.folder / WEIGHTS):
            inert = any(name.endswith(end) for end, _ in case.twin.inert)
            before = {n: t.read().copy() for n, t in case.files.tensors.items()} if inert else {}
            with changed(case.folder / WEIGHTS, place, rng):
                put(case.model, place_tensors(placing, case.files.tensors, None))
                if inert:
                    now = {n: t.read() for n, t in case.files.tensors.items()}
                    seen = [n for n in now if not np.array_equal(now[n], before[n])]
                    assert len(seen) == 1
                elif name not in ignored and case.difference() <= SIMPLE:
                    unseen.append(name)
    finally:
        put(case.model, held)
    assert not unseen
    assert case.difference() <= SIMPLE  # the file is as it was


def put(model: Model, weights: Weights) -> None:
    """Gives a model other weights; its compiled programs stay."""
    model._weights = model._forward._weights = weights


def test_a_tensor_taken_out_is_named(case: Case, tmp_path: Path) -> None:
    tensors = load_file(case.folder / WEIGHTS)
    (tmp_path / "config.json").write_bytes((case.folder / "config.json").read_bytes())
    ignored = ignored_of(case)
    for name in tensors:
        save_file({n: t for n, t in tensors.items() if n != name}, tmp_path / WEIGHTS)
        if name in ignored:
            open_hf(tmp_path)
        else:
            with pytest.raises(FormatError, match=stem(name)):
                open_hf(tmp_path)


def test_a_tensor_too_many_is_named(case: Case, tmp_path: Path) -> None:
    tensors = load_file(case.folder / WEIGHTS)
    (tmp_path / "config.json").write_bytes((case.folder / "config.json").read_bytes())
    name = next(iter(tensors)).replace("0", "7") + "_new"
    save_file({**tensors, name: np.ones(3, np.float32)}, tmp_path / WEIGHTS)
    with pytest.raises(FormatError, match=stem(name)):
        open_hf(tmp_path)
    assert open_hf(tmp_path, ignore=("*_new",)).tensors.keys() == case.files.tensors.keys()


def test_the_older_config_means_the_same(case: Case, tmp_path: Path) -> None:
    if case.twin.older is None:
        pytest.skip("its config.json has not changed")
    found = case.twin.older(json.loads((case.folder / "config.json").read_bytes()))
    (tmp_path / "config.json").write_text(json.dumps(found))
    (tmp_path / WEIGHTS).write_bytes((case.folder / WEIGHTS).read_bytes())
    assert open_hf(tmp_path).manifest.parameters == case.files.manifest.parameters


def ignored_of(case: Case) -> set[str]:
    """Tensors of theirs that our model has no use for, by name."""
    names = load_file(case.folder / WEIGHTS)
    return {name for name in names if any(part in name for part in case.twin.ignored)}


def stem(name: str) -> str:
    """A pattern of a name without what a class with other parts puts before it."""
    return re.escape(name.rsplit("model.", 1)[-1])


def tensors_of(path: Path) -> list[tuple[str, tuple[int, int]]]:
    """The names of a safetensors file, each with its first and its past-the-last byte."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    assert all(entry["dtype"] == "F32" for entry in header.values())
    return [
        (name, tuple(8 + length + offset for offset in entry["data_offsets"]))
        for name, entry in header.items()
    ]


@contextlib.contextmanager
def changed(path: Path, place: tuple[int, int], rng: np.random.Generator) -> Iterator[None]:
    """One tensor of a file with each number multiplied by a random one, as long as this lasts."""
    with path.open("r+b") as file:
        file.seek(place[0])
        raw = file.read(place[1] - place[0])
        numbers = np.frombuffer(raw, np.float32)
        other = numbers * np.exp(0.5 * rng.standard_normal(numbers.shape)).astype(np.float32)
        file.seek(place[0])
        file.write(other.tobytes())
        file.flush()
        try:
            yield
        finally:
            file.seek(place[0])
            file.write(raw)


def test_exported_it_is_the_same_model_there(case: Case, tmp_path: Path) -> None:
    found = write_huggingface(case.files, tmp_path)
    back = open_hf(tmp_path)
    assert differences(case.files.manifest.parameters, back.manifest.parameters) == []
    assert back.tensors.keys() == case.files.tensors.keys()
    for name, tensor in case.files.tensors.items():
        np.testing.assert_array_equal(back.tensors[name].read(), tensor.read(), strict=True)
    again, info = getattr(transformers, found.saved_class).from_pretrained(
        tmp_path,
        local_files_only=True,
        attn_implementation="eager",
        dtype=torch.float32,
        output_loading_info=True,
    )
    assert not any(info.values())
    wanted = run(case.theirs, case.twin, case.tokens)
    np.testing.assert_array_equal(run(again.eval(), case.twin, case.tokens), wanted)
