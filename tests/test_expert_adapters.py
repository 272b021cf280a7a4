"""Low-rank changes of experts: each one's own, merged and not, sharded, beside PEFT and torch."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_meshes import ONE, QUICK, SMALL, assert_placed, assert_same, rows_of, trainer_of
from on_meshes import config as config_of
from safetensors.numpy import save_file
from small_hf import Json, write
from tolerances import SIMPLE
from tuned_runs import answers_of, config_on, outputs_of, probe_for, tuned

import llmasos_jax
from llmasos_jax.config.experts import Experts
from llmasos_jax.config.finetune import FinetuneConfig
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, MeshConfig
from llmasos_jax.errors import ConfigError, FormatError
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.generate.load import init_model, load_model
from llmasos_jax.hub.open import open_model
from llmasos_jax.models.adapters import Adapters
from llmasos_jax.models.answers import LOGITS
from llmasos_jax.models.definition import ModelDef, init_params
from llmasos_jax.models.layout import scan_layout
from llmasos_jax.nn.experts import assign
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.adafactor import scale_by_adafactor
from llmasos_jax.train.pretrained import (
    abstract_frozen,
    frozen_weights,
    moved_weights,
    whole_weights,
)
from llmasos_jax.train.step import make_trainer
from llmasos_jax.train.trained import is_trained, parted, together
from llmasos_jax.train.weights import by_path, map_named
from llmasos_jax.types import Tree

MIXTRAL = SMALL.replace(experts=Experts(4, 2, 16, router="softmax_chosen"))
MODELS: dict[str, ModelConfig] = {
    "stacked": MIXTRAL,
    # A layer of experts before a dense one: in the prefix, as no layers repeat.
    "prefix": MIXTRAL.replace(experts=Experts(4, 2, 16, (1,), shared_ffn_dim=16, shared_gate=True)),
    # Four bits have scales of 64 inputs: two groups of them.
    "wide": MIXTRAL.replace(embedding_dim=128, ffn_dim=64),
}
ALL = ("attn.q", "moe.*")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("stacked", {"rank": 3, "alpha": 6.0}),
    "rslora": ("stacked", {"rank": 4, "alpha": 3.0, "rank_stabilized": True}),
    "dora": ("stacked", {"rank": 2, "dora": True}),
    "int8-dora": ("prefix", {"rank": 2, "dora": True, "quantize": "int8"}),
    "int4": ("wide", {"rank": 2, "quantize": "int4"}),
}


def base_of(cfg: ModelConfig, folder: Path) -> Path:
    init_model(Manifest("base", cfg, tokenizer={"kind": "bytes"})).save(folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_merged_it_gives_what_it_gave_beside_the_weights(case: str, tmp_path: Path) -> None:
    name, options = CASES[case]
    base = base_of(MODELS[name].replace(vocab_size=260), tmp_path / "base")
    run = tuned(tmp_path / "run", base, targets=ALL, **options)
    probe = probe_for(run.config.model)
    beside, merged = run.outputs(probe), outputs_of(open_model(run.folder), probe)
    plain = outputs_of(open_model(base), probe)
    for key, wanted in beside.items():
        size = np.abs(wanted).max()
        np.testing.assert_allclose(merged[key], wanted, rtol=0, atol=SIMPLE * size)
        assert np.abs(plain[key] - wanted).max() > 0.01 * size


def test_rows_of_no_expert_stay_zero() -> None:
    chosen = jnp.array([[2, 4]] * 40 + [[2, 0]])  # 4 is none of the four
    made = assign(chosen, 4, "gpu", most=42)
    times = made.times(jnp.ones((made.token_r.size, 2)), jnp.arange(1.0, 9.0).reshape(4, 2))
    found = made.choices_of(times)
    assert found[0].tolist() == [[5, 6], [0, 0]] and found[40].tolist() == [[5, 6], [1, 2]]
    empty = np.asarray(made.expert_g) == 4
    assert empty.any() and not np.asarray(times).reshape(empty.size, -1)[empty].any()


def test_each_expert_starts_as_a_product_of_its_own() -> None:
    cfg = MIXTRAL.replace(embedding_dim=64)
    definition = ModelDef(cfg, scan_layout(cfg), Adapters(("moe.*",), 8))
    draw = jax.jit(lambda key: init_params(definition, key)["periods"]["0"]["moe"])
    drawn = draw(jax.random.key(0))
    for name, num_in in (("up_lora", 64), ("down_lora", 16), ("router_lora", 64)):
        a, b = drawn[name]["a"], drawn[name]["b"]
        assert float(a.std()) == pytest.approx((3 * num_in) ** -0.5, rel=0.1) and not b.any()
    assert drawn["up_lora"]["a"].shape == (2, 4, 64, 8)
    assert drawn["up_lora"]["b"].shape == (2, 4, 8, 16)
    assert drawn["router_lora"]["b"].shape == (2, 8, 4)


def test_what_is_no_product_is_named() -> None:
    cfg = MODELS["prefix"]
    with pytest.raises(ConfigError, match=r'"moe.shared_gate" matches no product.*moe.shared.up'):
        _ = ModelDef(cfg, scan_layout(cfg), Adapters(("moe.shared_gate",), 1)).shapes


def tuned_config(mesh: MeshConfig, finetune: dict[str, Any], **train: Any) -> Config:
    made = FinetuneConfig(base="base", rank=2, alpha=2, targets=("attn.o", "moe.*"), **finetune)
    return dataclasses.replace(config_of(MIXTRAL, mesh, **train), finetune=made)


def gradients(cfg: Config) -> Any:
    trainer = trainer_of(cfg)
    rng = np.random.default_rng(1)

    def draw(path: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return rng.integers(-100, 100, leaf.shape).astype(leaf.dtype)
        around = 1.0 if path[-1] == "magnitude" else 0.0
        size = 3e-3 if path[-1].endswith("_scales") else 0.3
        return rng.normal(around, size, leaf.shape).astype(np.float32)

    moved, frozen = parted(map_named(draw, trainer.definition.shapes), is_trained(cfg))
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract_frozen(trainer))
    shardings = trainer.state_shardings.params
    given = (jax.device_put(moved, shardings), trainer.put(rows_of(cfg)), jax.random.key(3))
    run = jax.jit(trainer.loss_and_grad, compiler_options=QUICK)
    sums, grads = run(*given, None, jax.device_put(frozen, where))
    assert_placed(grads, shardings)
    return jax.device_get(sums), jax.device_get(grads)


SHARDED: dict[str, tuple[MeshConfig, dict[str, Any], dict[str, Any]]] = {
    "int8 with dora": (
        MeshConfig(data=1, fsdp=(2,), expert=2, tensor=2),
        {"dora": True, "quantize": "int8"},
        {},
    ),
    "with a capacity": (MeshConfig(data=1, fsdp=(2,), expert=4), {}, {"expert_capacity": 0.8}),
}


@pytest.mark.parametrize("case", SHARDED)
def test_on_a_mesh_loss_and_gradients_are_one_devices(case: str) -> None:
    mesh, finetune, train = SHARDED[case]
    sums, grads = gradients(tuned_config(mesh, finetune, **train))
    wanted_sums, wanted = gradients(tuned_config(ONE, finetune, **train))
    assert_same(sums, wanted_sums)
    assert_same(grads, wanted)
    moe = by_path(wanted["periods"]["0"]["moe"])
    parts = ("a", "b", "magnitude") if finetune else ("a", "b")
    assert moe.keys() == {f"{n}_lora/{p}" for n in ("gate", "up", "down", "router") for p in parts}
    for name, grad in moe.items():
        each = np.abs(grad).reshape(*grad.shape[: 1 if "router" in name else 2], -1).max(-1)
        assert each.min() > 1e-4, name  # of every layer and expert
    if train:
        assert 0.02 < sums.extra["expert_drops"] / sums.weight_sum < 0.7


def test_a_run_starts_as_its_base_and_merges_as_it_computes(tmp_path: Path) -> None:
    folder = base_of(MIXTRAL.replace(vocab_size=260), tmp_path / "base")
    cfg, base = config_on(folder, targets=ALL, rank=2, dora=True)
    trainer = make_trainer(cfg, make_mesh(cfg.mesh, jax.devices()[:1]))
    frozen = frozen_weights(trainer, base)
    moved = moved_weights(trainer, jax.random.key(0), base, frozen)
    start = whole_weights(trainer, moved, frozen)["periods"]["0"]["moe"]
    for name, layer in itertools.product(("gate", "up", "down"), range(2)):
        wanted = base.files.tensors[f"layers.{layer}.moe.{name}"].read()
        np.testing.assert_allclose(start[name][layer], wanted, rtol=SIMPLE, atol=1e-8)
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), moved)
    layout = trainer.definition.layout
    plain, probe = ModelDef(cfg.model, layout), probe_for(cfg.model)
    merged = answers_of(plain, whole_weights(trainer, moved, frozen), probe)
    beside = answers_of(trainer.definition, together(moved, frozen), probe)
    wanted = np.asarray(beside[LOGITS])
    atol = SIMPLE * np.abs(wanted).max()
    np.testing.assert_allclose(merged[LOGITS], wanted, rtol=0, atol=atol)


def test_only_changes_have_moments() -> None:
    cfg = tuned_config(ONE, {"quantize": "int8"})
    state = trainer_of(cfg).abstract_state
    assert all("_lora" in path for path in by_path(state.params))
    num = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) <= 2 * num + 8


def test_adafactor_takes_each_experts_change_for_itself() -> None:
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 8, 2), "b": (3, 2, 6), "magnitude": (3, 6)}  # of three experts
    params, grads = (
        {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()} for _ in "pg"
    )
    optimizer = scale_by_adafactor()

    def step(module: str, params: Tree, grads: Tree) -> Tree:
        params, grads = ({"prefix": {"0": {module: {"up_lora": t}}}} for t in (params, grads))
        steps = jax.jit(optimizer.update)(grads, optimizer.init(params), params)[0]
        return steps["prefix"]["0"][module]["up_lora"]  # pyright: ignore[reportIndexIssue]

    found = step("moe", params, grads)
    for expert in range(3):
        own = [jax.tree.map(lambda x, e=expert: x[e], tree) for tree in (params, grads)]
        for name, wanted in step("mlp", *own).items():
            np.testing.assert_allclose(found[name][expert], wanted, rtol=1e-5)


def test_several_beside_one_model(tmp_path: Path) -> None:
    base = base_of(MIXTRAL.replace(vocab_size=260), tmp_path / "base")
    lora: dict[str, Any] = {"rank": 3, "targets": ("moe.down", "moe.router")}
    for name, options in (("lora", lora), ("dora", {"rank": 2, "dora": True, "targets": ALL})):
        tuned(tmp_path / name, base, **options)
    adapters = {name: tmp_path / name for name in ("lora", "dora")}
    model = load_model(base, adapters=adapters)
    tokens, options = [[3, 1, 2, 250, 7]], {"max_length": 12, "temperature": 0.0}
    texts = model.generate_text(["a", "a"], adapter=["lora", "dora"], **options)
    for name, text in zip(adapters, texts, strict=True):
        merged = load_model(tmp_path / name)
        wanted = np.asarray(merged.logits(tokens))
        found = np.asarray(model.logits(tokens, adapter=name))
        size = np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=SIMPLE * size)
        assert np.abs(np.asarray(model.logits(tokens)) - wanted).max() > 0.05 * size
        assert text == model.generate_text("a", adapter=name, **options)


EXPERTS = "experts.gate_up_proj"
SIZES: Json = {
    **{"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 48},
    **{"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32},
    **{"num_local_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.2},
    **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
}
DENSE_FIRST: Json = {
    **{key: value for key, value in SIZES.items() if key != "num_local_experts"},
    **{"architectures": ["Dots1ForCausalLM"], "model_type": "dots1", "first_k_dense_replace": 1},
    **{"n_routed_experts": 4, "moe_intermediate_size": 24, "n_shared_experts": 1, "head_dim": 8},
    **{"n_group": 1, "topk_group": 1},
}


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers|peft)")
@pytest.mark.parametrize("targets", [("attn.q", "moe.*"), ("moe.up",)])
def test_peft_gives_the_same_of_what_is_written(targets: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra `parity`")
    write(tmp_path / "base", SIZES)
    run = tuned(tmp_path / "run", tmp_path / "base", rank=2, rank_stabilized=True, targets=targets)
    result = llmasos_jax.export(run.folder, "peft", tmp_path / "adapter")
    assert result.proven and result.difference is not None and 0 < result.difference < SIMPLE
    said = json.loads((result.path / "adapter_config.json").read_bytes())
    if len(targets) == 1:  # gate_up_proj is one of both, and gate's half is zero
        assert said["target_parameters"] == ["mlp.experts.gate_up_proj"]
        assert said["rank_pattern"] == {} and said["target_modules"] == []
    else:  # gate and up, each with an A of its own, are one change of twice the rank
        names = [f"mlp.{name}" for name in ("experts.down_proj", EXPERTS, "gate.weight")]
        assert said["target_parameters"] == names and said["target_modules"] == ["q_proj"]
        assert said["rank_pattern"] == {f"mlp.{EXPERTS}": 4}
    probe = probe_for(run.config.model)
    found = outputs_of(open_model(result.path), probe)
    for key, wanted in run.outputs(probe).items():
        np.testing.assert_allclose(found[key], wanted, rtol=0, atol=SIMPLE * np.abs(wanted).max())


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers|peft)")
def test_dense_layers_and_shared_experts_are_written_so_that_peft_finds_them(
    tmp_path: Path,
) -> None:
    pytest.importorskip("peft", reason="needs the extra `parity`")
    write(tmp_path / "base", DENSE_FIRST)
    run = tuned(tmp_path / "run", tmp_path / "base", rank=2, targets=("mlp.*", "moe.shared.down"))
    result = llmasos_jax.export(run.folder, "peft", tmp_path / "adapter")
    assert result.proven and result.difference is not None and 0 < result.difference < SIMPLE
    said = json.loads((result.path / "adapter_config.json").read_bytes())
    # As modules of these names PEFT would take them for experts that transformers 4 wrote.
    assert said["target_modules"] == [] and said["target_parameters"] == [
        *(f"0.mlp.{part}_proj.weight" for part in ("down", "gate", "up")),
        "1.mlp.shared_experts.down_proj.weight",
    ]
    probe = probe_for(run.config.model)
    found, wanted = outputs_of(open_model(result.path), probe)[LOGITS], run.outputs(probe)[LOGITS]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=SIMPLE * np.abs(wanted).max())


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers|peft)")
def test_what_peft_writes_is_read(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra `parity`")
    import torch
    import transformers

    torch.manual_seed(0)
    write(tmp_path / "base", SIZES)
    parameters = [f"mlp.{name}" for name in (EXPERTS, "experts.down_proj", "gate.weight")]
    patterns: Json = {"rank_pattern": {EXPERTS: 5}, "alpha_pattern": {"gate.weight": 2}}
    cases: list[Json] = [
        # Of which PEFT makes parameters, and patterns of its own: ".*\.gate_up_proj".
        {"target_modules": "all-linear"},
        *(
            {"target_modules": ["k_proj"], "target_parameters": some, **patterns}
            for some in (parameters, parameters[:1], parameters[1:2])
        ),
    ]
    for number, case in enumerate(cases):
        model = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "base")
        config = peft.LoraConfig(r=3, lora_alpha=6, **case)
        adapted = peft.get_peft_model(model, config).eval()
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.data = 0.3 * torch.randn_like(weight)
        folder = tmp_path / str(number)
        adapted.save_pretrained(folder)
        files = open_model(folder)
        probe = probe_for(files.manifest.parameters)
        with torch.no_grad():
            wanted = adapted(torch.from_numpy(probe.tokens_bt.astype(np.int64))).logits.numpy()
        atol = SIMPLE * np.abs(wanted).max()
        np.testing.assert_allclose(outputs_of(files, probe)[LOGITS], wanted, rtol=0, atol=atol)
    beside = load_model(tmp_path / "base", adapters={"it": folder})
    found = np.asarray(beside.logits(probe.tokens_bt, adapter="it"))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers|peft)")
def test_a_linear_of_each_expert_is_read_as_peft_reads_it(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra `parity`")
    import torch
    import transformers

    write(tmp_path / "base", SIZES)
    rng, folder, tensors = np.random.default_rng(0), tmp_path / "adapter", {}
    widths = {"w1": (32, 24), "w3": (32, 24), "w2": (24, 32)}  # as transformers 4 called them
    for layer, expert, (name, (num_in, num_out)) in itertools.product(
        range(2), range(4), widths.items()
    ):
        module = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
        for part, shape in (("lora_A", (2, num_in)), ("lora_B", (num_out, 2))):
            drawn = rng.normal(0, 0.3, shape).astype(np.float32)
            tensors[f"{module}.{part}.weight"] = drawn
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "task_type": "CAUSAL_LM"}
    config |= {"base_model_name_or_path": "../base", "target_modules": list(widths)}
    said = folder / "adapter_config.json"
    said.write_text(json.dumps(config))
    model = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "base")
    files, opened = open_model(folder), peft.PeftModel.from_pretrained(model, folder).eval()
    probe = probe_for(files.manifest.parameters)
    with torch.no_grad():
        wanted = opened(torch.from_numpy(probe.tokens_bt.astype(np.int64))).logits.numpy()
    found = outputs_of(files, probe)[LOGITS]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=SIMPLE * np.abs(wanted).max())
    said.write_text(json.dumps(config | {"alpha_pattern": {"experts.1.w2": 5}}))
    with pytest.raises(FormatError, match="w2.weight has another rank or alpha than another"):
        open_model(folder)
    said.write_text(json.dumps(config))
    lost = "base_model.model.model.layers.1.block_sparse_moe.experts.3.w2.lora_"
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(lost)}
    save_file(kept, folder / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match=r"experts.3.w2.lora_A.weight are missing \(1\)"):
        open_model(folder)


def test_dora_of_experts_has_no_folder_in_peft(tmp_path: Path) -> None:
    write(tmp_path / "base", SIZES)
    run = tuned(tmp_path / "run", tmp_path / "base", rank=2, dora=True, targets=("moe.down",))
    with pytest.raises(FormatError, match="moe.down was trained with DoRA, and PEFT has LoRA"):
        llmasos_jax.export(run.folder, "peft", tmp_path / "no", unproven=True)
