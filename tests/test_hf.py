"""Hugging Face folders: their files are checked, every tensor has a place, errors are one line.

That the logits are those of transformers is in `test_families.py`.
"""

import json
import logging
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from small_hf import LLAMA, read, write

from llmasos_jax.errors import FormatError
from llmasos_jax.format.names import expected
from llmasos_jax.generate.weights import Placing
from llmasos_jax.interop.hf import open_hf
from llmasos_jax.models.definition import file_def


def message(folder: Path, **options: Any) -> str:
    with pytest.raises(FormatError) as caught:
        open_hf(folder, **options)
    return str(caught.value)


def test_a_folder_is_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-llama"
    theirs = write(folder, LLAMA)
    files = open_hf(folder)
    assert files.manifest.name == "tiny-llama"
    assert files.manifest.architecture == "LLaMA"
    assert files.manifest.generation.eos_ids == (3,)
    assert files.manifest.metadata["source_format"] == "huggingface"
    assert files.tokenizer is None
    assert list(files.tensors) == list(expected(files.manifest.parameters))
    assert files.num_parameters == sum(array.size for array in theirs.values())
    q_dnh = theirs["model.layers.1.self_attn.q_proj.weight"].reshape(4, 4, 16).transpose(2, 0, 1)
    np.testing.assert_array_equal(files.tensors["layers.1.attn.q"].read(), q_dnh)
    o_nhd = theirs["model.layers.0.self_attn.o_proj.weight"].T.reshape(4, 4, 16)
    np.testing.assert_array_equal(files.tensors["layers.0.attn.o"].read(), o_nhd)


def test_weights_in_several_files(tmp_path: Path) -> None:
    theirs = write(tmp_path, LLAMA)
    whole = {n: t.read().copy() for n, t in open_hf(tmp_path).tensors.items()}
    names = sorted(theirs)
    homes = {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(homes.values()):
        save_file({n: theirs[n] for n in names if homes[n] == file}, tmp_path / file)
    (tmp_path / "model.safetensors").unlink()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": homes}))
    for name, tensor in open_hf(tmp_path).tensors.items():
        np.testing.assert_array_equal(tensor.read(), whole[name], strict=True)

    moved = {**homes, names[0]: homes[names[1]]}
    index.write_text(json.dumps({"weight_map": moved}))
    assert "do not belong together" in message(tmp_path)
    index.write_text(json.dumps({"weight_map": {**homes, "more": homes[names[0]]}}))
    assert "more is not in model-00001-of-00002.safetensors" in message(tmp_path)
    index.write_text(json.dumps({"weight_map": {**homes, "more": "../x.safetensors"}}))
    assert "is not the name of a file" in message(tmp_path)
    index.write_text(json.dumps({"weight_map": {**homes, "more": "absent.safetensors"}}))
    assert "absent.safetensors" in message(tmp_path)
    index.write_text(json.dumps({"weight_map": [1]}))
    assert '"weight_map" must say' in message(tmp_path)


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    theirs = write(tmp_path, LLAMA)
    save_file(
        {n: a.astype(ml_dtypes.bfloat16) for n, a in theirs.items()},
        tmp_path / "model.safetensors",
    )
    tensor = open_hf(tmp_path).tensors["layers.0.mlp.up"]
    assert tensor.dtype == "bfloat16" == str(tensor.read().dtype)


def test_names_without_the_prefix_of_the_class(tmp_path: Path) -> None:
    theirs = write(tmp_path, LLAMA, tie_word_embeddings=True)
    save_file(
        {n.removeprefix("model."): a for n, a in theirs.items()}, tmp_path / "model.safetensors"
    )
    assert open_hf(tmp_path).num_parameters == sum(a.size for a in theirs.values())


def test_a_tied_head_that_is_there_must_be_the_embedding(tmp_path: Path) -> None:
    theirs = write(tmp_path, LLAMA, tie_word_embeddings=True)
    file = tmp_path / "model.safetensors"
    table = theirs["model.embed_tokens.weight"]
    save_file({**theirs, "lm_head.weight": table}, file)
    assert "head.w" not in open_hf(tmp_path).tensors
    other = table.copy()
    other[-1, -1] += 1e-6
    save_file({**theirs, "lm_head.weight": other}, file)
    text = message(tmp_path)
    assert "lm_head.weight: differs from model.embed_tokens.weight" in text
    assert "tie_word_embeddings" in text
    assert "head.w" not in open_hf(tmp_path, ignore=("lm_head.weight",)).tensors


def test_buffers_are_left_out_with_a_reason_and_others_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = write(tmp_path, LLAMA)
    file = tmp_path / "model.safetensors"
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.int64)}
    save_file({**theirs, **buffer}, file)
    open_hf(tmp_path)
    save_file({**theirs, "model.layers.0.self_attn.sinks": np.ones(2, np.int64)}, file)
    assert "model.layers.0.self_attn.sinks: int64[2] has no place" in message(tmp_path)
    with caplog.at_level(logging.WARNING):
        open_hf(tmp_path, ignore=("model.layers.*.sinks",))
    assert "model.layers.0.self_attn.sinks is left out, as asked" in caplog.text
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file({**theirs, name: theirs[name].astype(np.float64)}, file)
    assert f"{name}: it is float64; weights are read from float32" in message(tmp_path)


def test_a_config_that_does_not_fit_the_weights(tmp_path: Path) -> None:
    write(tmp_path, LLAMA)
    for change, part in (
        ({"num_key_value_heads": 4}, "k_proj.weight: the file has [8, 16], the config [16, 16]"),
        ({"num_hidden_layers": 1}, "model.layers.1.mlp.up_proj.weight: float32[12,16] has no"),
        ({"num_hidden_layers": 3}, "model.layers.2.mlp.up_proj.weight: missing, it holds"),
        ({"num_hidden_layers": 4000}, "asks for 4000 layers, the files hold 21"),
        ({"num_hidden_layers": 10**9}, "must be 1 to 4096"),
        ({"tie_word_embeddings": True}, "lm_head.weight: differs from"),
        ({"attention_bias": True}, "model.layers.0.self_attn.q_proj.bias: missing"),
        ({"hidden_size": 18}, "not divisible"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **change}))
        assert part in message(tmp_path), change


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    write(tmp_path / "a", LLAMA)
    folder, config = tmp_path / "b", tmp_path / "b" / "config.json"
    folder.mkdir()
    assert "has no config.json" in message(folder)
    (folder / "adapter_config.json").write_text("{}")
    assert "open both as one" in message(folder)
    config.write_text("[]")
    assert "config.json is not a JSON object" in message(folder)
    config.write_text('{"vocab_size": 1, "vocab_size": 2}')
    assert "stands twice" in message(folder)
    config.write_text(json.dumps({"model_type": "lama"}))
    assert 'did you mean "llama"?' in message(folder)
    config.write_text(json.dumps(LLAMA | {"architectures": ["LlamaForSequenceClassification"]}))
    assert "another task's head" in message(folder)
    config.write_text(json.dumps(LLAMA | {"architectures": ["MambaForCausalLM"]}))
    config.write_text(json.dumps(LLAMA | {"model_type": "x", "architectures": ["QwenForCausalLM"]}))
    assert 'did you mean "Qwen3ForCausalLM"?' in message(folder)
    quantised = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    config.write_text(json.dumps(LLAMA | quantised))
    assert "quantised (fp8)" in message(folder)
    config.write_text(json.dumps(LLAMA))
    assert "no weights: put model.safetensors" in message(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin and no model.safetensors" in message(folder)
    assert "save_pretrained" in message(folder)
    (folder / "model.safetensors").symlink_to(tmp_path / "a" / "model.safetensors")
    assert "a link that leaves the model's folder" in message(folder)


def test_end_of_text_comes_from_generation_config(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, LLAMA)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 99]}')
    with caplog.at_level(logging.WARNING):
        assert open_hf(tmp_path).manifest.generation.eos_ids == (5,)
    assert "99] is beyond the model's 24 ids" in caplog.text
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    assert '"eos_token_id" = </s> must be ids' in message(tmp_path)


def test_experts_one_by_one_or_together(tmp_path: Path) -> None:
    config = LLAMA | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 6,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "mlp_only_layers": [0],
        "head_dim": 4,
    }
    theirs = write(tmp_path, config)
    whole = {n: t.read().copy() for n, t in open_hf(tmp_path).tensors.items()}
    assert whole["layers.1.moe.gate"].shape == (4, 16, 6) and "layers.0.mlp.up" in whole
    stem = "model.layers.1.mlp.experts."
    gate, up, down = (
        np.stack([theirs.pop(f"{stem}{e}.{part}_proj.weight") for e in range(4)])
        for part in ("gate", "up", "down")
    )
    theirs |= {
        f"{stem}gate_up_proj": np.concatenate([gate, up], axis=1),
        f"{stem}down_proj": down,
    }
    save_file(theirs, tmp_path / "model.safetensors")
    for name, tensor in open_hf(tmp_path).tensors.items():
        np.testing.assert_array_equal(tensor.read(), whole[name], strict=True)
    del theirs[f"{stem}down_proj"]
    save_file(theirs, tmp_path / "model.safetensors")
    assert "layers.1.moe.down" in message(tmp_path)


def test_gemma_3_for_images_gives_its_text_part(tmp_path: Path) -> None:
    text = {k: v for k, v in LLAMA.items() if k not in ("architectures", "eos_token_id")}
    text |= {"model_type": "gemma3_text", "head_dim": 4, "sliding_window": 8}
    inner = text | {"architectures": ["Gemma3ForCausalLM"]}
    theirs = write(tmp_path, inner)
    whole = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": {"hidden_size": 8},
        "mm_tokens_per_image": 4,
        "eos_token_id": [1, 6],
    }
    (tmp_path / "config.json").write_text(json.dumps(whole))
    images = {"vision_tower.x": np.ones(1, np.float32), "multi_modal_projector.y": np.ones(1)}
    for prefix, rest in (("language_model.model.", ""), ("model.language_model.", "model.")):
        named = {prefix + n.removeprefix("model."): a for n, a in theirs.items()}
        named |= {rest + n: a for n, a in images.items()}
        save_file(named, tmp_path / "model.safetensors")
        files = open_hf(tmp_path)
        assert files.manifest.generation.eos_ids == (1, 6)
        assert files.manifest.parameters == read(inner)
        assert files.num_parameters == sum(a.size for a in theirs.values())
    (tmp_path / "config.json").write_text(json.dumps(whole | {"text_config": text | {"nope": 1}}))
    assert '"text_config.nope" = 1' in message(tmp_path)


def test_products_are_blocks_of_the_file_as_a_cpu_reads_them(tmp_path: Path) -> None:
    """Output axes first, they need one copy into memory: not a transpose of it too."""
    write(tmp_path, LLAMA)
    files = open_hf(tmp_path)
    turns = Placing(file_def(files.manifest.parameters), None).turns()
    for name, tensor in files.tensors.items():
        array = tensor.read()
        assert not array.flags.owndata
        assert turns[name](array).flags.c_contiguous, name


def test_the_layer_that_guesses_ahead_is_left_out_and_no_other(tmp_path: Path) -> None:
    config = LLAMA | {
        **{"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"},
        **dict(kv_lora_rank=8, q_lora_rank=6, qk_rope_head_dim=4, qk_nope_head_dim=2),
        **dict(v_head_dim=3, n_routed_experts=4, n_group=2, topk_group=1, first_k_dense_replace=1),
        **dict(num_experts_per_tok=2, moe_intermediate_size=6, num_nextn_predict_layers=1),
    }
    theirs = write(tmp_path, config)
    file, ahead = tmp_path / "model.safetensors", np.ones(3, np.float32)
    save_file({**theirs, "model.layers.2.eh_proj.weight": ahead}, file)
    files = open_hf(tmp_path)
    assert files.num_parameters == sum(array.size for array in theirs.values())
    # Keys and values stand head by head in one tensor: [N, 2 + 3, 8].
    fused = theirs["model.layers.1.self_attn.kv_b_proj.weight"].reshape(4, 5, 8)
    np.testing.assert_array_equal(
        files.tensors["layers.1.attn.v"].read(), fused[:, 2:].transpose(2, 0, 1)
    )
    save_file({**theirs, "model.layers.1.eh_proj.weight": ahead}, file)
    assert "model.layers.1.eh_proj.weight: float32[3] has no place" in message(tmp_path)
