"""ONNX graphs of every family and every option, in onnxruntime beside ours; and read back."""

import dataclasses
import functools
import json
import pathlib
import tempfile
from typing import Any

import numpy as np
import pytest
from onnx_options import BASE, CASES, OPTIONS
from tolerances import SIMPLE

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.heads import Classifier, Encoder
from llmasos_jax.config.latent import LatentAttention
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.rope import RopeScaling
from llmasos_jax.errors import ExportError, FormatError
from llmasos_jax.evals.export.ours import OurModel, Outputs, compare, compiled
from llmasos_jax.evals.export.proof import prove
from llmasos_jax.evals.parity.probe import Probe
from llmasos_jax.format.cast import cast
from llmasos_jax.format.manifest import Generation, Manifest
from llmasos_jax.format.names import expected
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.hub.open import kind_of, open_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from llmasos_jax.evals.export.onnx import Onnx, OpenedGraphs  # noqa: E402
from llmasos_jax.interop.onnx import open_onnx, write_onnx  # noqa: E402
from llmasos_jax.interop.onnx.model import build  # noqa: E402

QUICK = {"xla_backend_optimization_level": 0}


def random_files(cfg: ModelConfig, seed: int = 0) -> ModelFiles:
    """A model whose every tensor is random, scales and biases too."""
    rng = np.random.default_rng(seed)
    arrays = {
        name: (rng.normal(size=spec.shape) * 0.3).astype(np.float32)
        for name, spec in expected(cfg).items()
    }
    start = 0 if cfg.encoder.num_layers else None
    manifest = Manifest("tiny", cfg, generation=Generation(decoder_start_id=start))
    return ModelFiles(pathlib.Path(), manifest, {n: stored(x) for n, x in arrays.items()}, None)


def probe(cfg: ModelConfig) -> Probe:
    """Rows of three lengths, past windows and distances, padded on the right."""
    length = min(24, cfg.context_length)
    lengths = np.array([length, length // 2 - 1, 3])
    mask = (np.arange(length)[None] < lengths[:, None]).astype(np.int32)
    rng = np.random.default_rng(1)
    types = rng.integers(0, max(1, cfg.token_types), mask.shape).astype(np.int32)
    tokens = rng.integers(0, cfg.vocab_size, mask.shape).astype(np.int32)
    return Probe(tokens * mask, mask, types if cfg.token_types else None)


def ours(files: ModelFiles) -> list[Outputs]:
    """What we compute, with whatever stands for a text in addition."""
    cfg = files.manifest.parameters
    model = OurModel(cfg, {n: np.asarray(t.read()) for n, t in files.tensors.items()}, 0)
    model._run = compiled.__wrapped__(cfg, compiler_options=QUICK)
    return model.outputs([probe(cfg)])


def opened(files: ModelFiles, folder: pathlib.Path) -> OpenedGraphs:
    write_onnx(files, folder)
    found = OpenedGraphs(folder, files.manifest.parameters)
    found.bound = SIMPLE
    return found


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_ours(case: str, tmp_path: pathlib.Path) -> None:
    """At once, padded on either side, and one by one through the cache; then read back."""
    cfg = CASES[case]()
    files = random_files(cfg)
    runtime = opened(files, tmp_path)
    wanted, found = ours(files), runtime.outputs([probe(cfg)])
    for one in compare(wanted, found, [probe(cfg)], pads_count=cfg.encoder.num_layers > 0):
        assert one.difference <= SIMPLE and one.largest > 0.1, one
    if "vector" in found[0] and "last_hidden_state" in wanted[0]:
        hidden, mask = wanted[0]["last_hidden_state"], probe(cfg).mask_bt[:, :, None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        text = hidden[:, 0] if cfg.pooling == "cls" else mean
        unit = text / np.linalg.norm(text, axis=1, keepdims=True)
        np.testing.assert_allclose(found[0]["vector"], unit, atol=SIMPLE)
    for path in tmp_path.glob("*.onnx"):
        onnx.checker.check_model(str(path), full_check=True)
    assert kind_of(tmp_path) == "onnx"
    back = open_model(tmp_path)
    assert back.manifest.parameters == cfg and list(back.tensors) == list(files.tensors)
    for name, tensor in files.tensors.items():
        np.testing.assert_array_equal(back.tensors[name].read(), tensor.read())


def test_greedy_goes_through_the_cache(tmp_path: pathlib.Path) -> None:
    """Token by token it is what the whole text gives, each time."""
    cfg = BASE.replace(**OPTIONS["most of a decoder"])
    runtime = opened(random_files(cfg), tmp_path)
    prompt = [5, 7, 11]
    ids = list(prompt)
    for _ in range(6):
        tokens = np.array([ids], np.int32)
        logits = runtime.outputs([Probe(tokens, np.ones_like(tokens))])[0]["logits"]
        ids.append(int(logits[0, -1].argmax()))
    assert runtime.greedy(prompt, 6) == ids[3:]
    assert len(set(ids[3:])) > 1


def test_longrope_goes_by_each_tokens_place(tmp_path: pathlib.Path) -> None:
    """A short row of a batch has short factors; past the first context each token has long ones."""
    cfg = BASE.replace(**OPTIONS["longrope"])
    runtime = opened(random_files(cfg), tmp_path)
    tokens = np.arange(1, 21, dtype=np.int64)[None]
    ones = np.ones_like(tokens)
    short, past = runtime._step(tokens[:, :12], ones[:, :12], None)
    alone, _ = runtime._step(tokens[:, :12], ones[:, :12], None)
    whole, _ = runtime._step(tokens, ones, None)
    assert np.abs(short - alone).max() == 0 < np.abs(short - whole[:, :12]).max()
    after, _ = runtime._step(tokens[:, 12:13], ones[:, :13], past)
    assert np.isfinite(after).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_weights_are_computed_in_float32(dtype: str, tmp_path: pathlib.Path) -> None:
    cfg = BASE.replace(**OPTIONS["experts in groups"])
    files = cast(random_files(cfg), dtype)
    runtime = opened(files, tmp_path)
    for one in compare(ours(files), runtime.outputs([probe(cfg)]), [probe(cfg)]):
        assert one.difference <= SIMPLE
    held = Onnx().stored(tmp_path)
    assert {str(x.dtype) for x in held.values()} == {dtype}
    total = sum(t.nbytes for t in files.tensors.values())
    assert (tmp_path / "model.onnx.data").stat().st_size < total + 4096 * len(held)


class Watch:
    """Configs that write down which of their fields are read."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def of(self, config: Any) -> Any:
        kind, seen = type(config), self.seen
        names = {f.name for f in dataclasses.fields(kind)}

        class Watched(kind):
            def __post_init__(self) -> None:
                pass

            def __getattribute__(self, name: str) -> Any:
                if name in names:
                    seen.add(f"{kind.__name__}.{name}")
                return super().__getattribute__(name)

        values = {name: getattr(config, name) for name in names}
        groups = (Experts, Classifier, Encoder, LatentAttention, RopeScaling)
        return Watched(**{n: self.of(v) if isinstance(v, groups) else v for n, v in values.items()})


def test_every_field_of_a_model_is_looked_at() -> None:
    """A new option has to be said in the graph, or refused, before this passes."""
    from llmasos_jax.interop.onnx.check import check_onnx

    watch, groups = Watch(), (ModelConfig, Experts, Classifier, Encoder, LatentAttention)
    for changes in OPTIONS.values():
        cfg = BASE.replace(**changes)
        watched = watch.of(cfg)
        check_onnx(watched)
        if not cfg.encoder.num_layers:
            build(watched, random_files(cfg).tensors)
    every = {f"{k.__name__}.{f.name}" for k in groups for f in dataclasses.fields(k)}
    every |= {f"RopeScaling.{f.name}" for f in dataclasses.fields(RopeScaling)}
    assert every - watch.seen == set()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prefix_lm": True}, "prefix_lm=True"),
        ({"token_types": 2}, "token_types=2 in a decoder"),
        ({"mlp": "jax.nn:gelu"}, 'mlp="jax.nn:gelu", which is code'),
        ({"attention": "small:attend"}, 'attention="small:attend"'),
        ({"norm": "small:norm"}, 'norm="small:norm"'),
    ],
)
def test_what_a_graph_cannot_say_is_refused(changes: dict, said: str) -> None:
    cfg = BASE.replace(**changes)
    files = ModelFiles(pathlib.Path(), Manifest("tiny", cfg), {}, None)
    with pytest.raises(FormatError) as caught:
        Onnx().check(files, None)
    assert said in str(caught.value) and "\n" not in str(caught.value)


PLANTED: dict[str, dict[str, Any]] = {
    "rope layout": {"rope_interleaved": True},
    "eps": {"norm_eps": 1e-3},
    "scale": {"attention_scale": 0.3},
    "window": {"attention_windows": (6,)},
    "offset of norms": {"norm_unit_offset": True},
    "activation": {"mlp": "geglu"},
    "theta": {"rope_theta": 5000.0},
    "embedding scale": {"embedding_scale": 1.01},
}
SWAPPED = {
    "gate and up": ("layers.0.mlp.gate", "layers.0.mlp.up"),
    "layers": ("layers.0.attn.o", "layers.1.attn.o"),
}
CHECKED = BASE.replace(qkv_bias=True)


@functools.cache
def right() -> tuple[ModelFiles, list[Outputs]]:
    files = random_files(CHECKED)
    return files, ours(files)


@pytest.mark.parametrize("fault", [*PLANTED, *SWAPPED, "missing bias", "permuted heads"])
def test_planted_faults_are_far_away(fault: str, tmp_path: pathlib.Path) -> None:
    """By more than the bound of a proof, which then refuses them."""
    files, wanted = right()
    tensors = dict(files.tensors)
    manifest = files.manifest.replace(parameters=CHECKED.replace(**PLANTED.get(fault, {})))
    if fault in SWAPPED:
        a, b = SWAPPED[fault]
        tensors[a], tensors[b] = tensors[b], tensors[a]
    elif fault == "missing bias":
        tensors["layers.1.attn.v_bias"] = stored(np.zeros((2, 12), np.float32))
    elif fault == "permuted heads":
        tensors["layers.0.attn.q"] = stored(files.tensors["layers.0.attn.q"].read()[:, ::-1])
    runtime = opened(dataclasses.replace(files, manifest=manifest, tensors=tensors), tmp_path)
    found = compare(wanted, runtime.outputs([probe(CHECKED)]), [probe(CHECKED)])
    assert max(one.difference for one in found) > 2 * Onnx().bound(files, None)


def test_a_proof_takes_the_model_and_no_other(tmp_path: pathlib.Path) -> None:
    files, target = right()[0], Onnx()
    for folder, changes in (("right", {}), ("wrong", {"norm_eps": 1e-3})):
        (tmp_path / folder).mkdir()
        manifest = files.manifest.replace(parameters=CHECKED.replace(**changes))
        changed = dataclasses.replace(files, manifest=manifest)
        written = target.write(changed, tmp_path / folder, None, lambda name, size: None)
        ask = functools.partial(prove, target, files, tmp_path / folder, written, None, 0)
        if changes:
            with pytest.raises(ExportError, match="ONNX decoder.* gives logits that differ"):
                ask()
        else:
            proof = ask()
            assert proof.difference <= SIMPLE and proof.greedy > 0 == proof.rounded.tensors


def test_a_cache_that_is_not_the_prompts_is_refused(tmp_path: pathlib.Path) -> None:
    """A graph that forgets what it has seen is not what it gives at once."""
    write_onnx(right()[0], tmp_path)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Concat" and "past_key_values.1.value" in node.input:
            now = node.input[1]
            node.input[0], node.input[1] = now, "past_key_values.1.value"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="by its cache"):
        OpenedGraphs(tmp_path, CHECKED).outputs([probe(CHECKED)])


def test_graphs_that_are_not_ours_are_refused(tmp_path: pathlib.Path) -> None:
    write_onnx(right()[0], tmp_path)
    graph, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    raw, model = graph.read_bytes(), onnx.load(graph, load_external_data=False)
    onnx.checker.check_model(str(graph))
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]

    def refused(changed: Any, said: str) -> None:
        graph.write_bytes(changed if isinstance(changed, bytes) else changed.SerializeToString())
        with pytest.raises(FormatError, match=said):
            open_onnx(tmp_path)
        graph.write_bytes(raw)

    foreign, renamed, elsewhere, longer = (onnx.ModelProto.FromString(raw) for _ in range(4))
    del foreign.metadata_props[:]
    refused(foreign, "was not written by llmasos_jax")
    outside = next(t for t in renamed.graph.initializer if t.name == "final_norm.scale")
    outside.name = "final_norm.scales"
    refused(renamed, "final_norm.scales")
    first = lambda m: next(t for t in m.graph.initializer if t.external_data)
    first(elsewhere).external_data[0].value = "../secret"
    refused(elsewhere, "in another file than")
    first(longer).external_data[1].value = str(data.stat().st_size)
    refused(longer, "cut off")
    refused(b"\x00" * 50, "no ONNX graph|was not written")
    assert open_onnx(tmp_path).manifest.name == "tiny"
    with pytest.raises(FormatError, match="everything is read"):
        open_model(tmp_path, ignore=["x"])


def test_genai_reads_the_folder(tmp_path: pathlib.Path) -> None:
    """onnxruntime-genai's own loop gives the same tokens, a batch padded on the left too."""
    genai = pytest.importorskip("onnxruntime_genai")
    cfg = BASE.replace(attention_windows=(6, None), qk_norm="head")
    runtime = opened(random_files(cfg), tmp_path)
    said = json.loads((tmp_path / "genai_config.json").read_text())["model"]
    assert (said["vocab_size"], said["decoder"]["num_key_value_heads"]) == (90, 2)
    model = genai.Model(str(tmp_path))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=14, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens([3, 1, 4, 1, 5])
    while not generator.is_done():
        generator.generate_next_token()
    found = [int(i) for i in generator.get_sequence(0)]
    assert found == [3, 1, 4, 1, 5, *runtime.greedy([3, 1, 4, 1, 5], 9)]


def test_writing_takes_one_tensor_of_memory() -> None:
    """Each tensor is read once, and given back before the next."""
    import weakref

    cfg, alive = BASE.replace(num_layers=6), []

    def watched(array: np.ndarray) -> Any:
        def read() -> np.ndarray:
            assert not any(one() is not None for one in alive)
            copy = array.copy()
            alive.append(weakref.ref(copy))
            return copy

        return dataclasses.replace(stored(array), read=read)

    files = random_files(cfg)
    tensors = {n: watched(t.read()) for n, t in files.tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        written = write_onnx(dataclasses.replace(files, tensors=tensors), pathlib.Path(folder))
    assert written.num_tensors == len(alive) == len(files.tensors)
