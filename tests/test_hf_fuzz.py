"""Whatever a Hugging Face folder holds, it opens or is refused by an error of ours, and soon."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import bounded, mutated
from small_hf import written

from llmasos_jax.errors import FormatError, TokenizerError
from llmasos_jax.interop.hf import open_hf

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 24},
        **{"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "eos_token_id": 3},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32},
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "mixtral": {
        **{"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 24},
        **{"hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 1, "sliding_window": 4},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "gpt2": {
        **{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 24},
        **{"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8, "n_inner": None},
    },
    "gemma3": {
        **{"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "vocab_size": 24},
        **{"hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 2, "head_dim": 4},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 4},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "deepseek": {
        **{"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"},
        **{"vocab_size": 24, "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": None},
        **{"kv_lora_rank": 4, "qk_nope_head_dim": 2, "qk_rope_head_dim": 2, "v_head_dim": 2},
        **{"n_routed_experts": 2, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 1},
        **{"first_k_dense_replace": 1, "moe_intermediate_size": 2, "num_nextn_predict_layers": 0},
    },
    "mpt": {
        **{"architectures": ["MptForCausalLM"], "model_type": "mpt", "vocab_size": 24},
        **{"d_model": 8, "n_layers": 1, "n_heads": 2, "attn_config": {"softmax_scale": 0.5}},
    },
    "roberta": {
        **{"architectures": ["RobertaModel"], "model_type": "roberta", "vocab_size": 24},
        **{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 4, "max_position_embeddings": 8, "type_vocab_size": 1},
    },
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    base = tmp_path_factory.mktemp("fuzz")
    made = {name: written(base / name, config) for name, config in CONFIGS.items()}
    made["sharded"] = written(base / "sharded", CONFIGS["llama"], files=3)
    for folder in made.values():
        assert open_hf(folder).tensors  # imports and traces what only the first call does
    return made


@pytest.fixture
def copied(tmp_path: pathlib.Path) -> Callable[[pathlib.Path], pathlib.Path]:
    """Copies a folder to one place, over what was there."""

    def copy(folder: pathlib.Path) -> pathlib.Path:
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        return pathlib.Path(shutil.copytree(folder, tmp_path / "model"))

    return copy


def opens_or_refuses(folder: pathlib.Path) -> bool:
    """Whether it opens; if not, whether the error is one of ours is checked."""
    try:
        with bounded():
            files = open_hf(folder)
            for tensor in files.tensors.values():
                assert tensor.read().shape == tensor.shape
        return True
    except (FormatError, TokenizerError) as error:
        assert len(str(error)) < 10_000
        return False


# pytest gives one folder to all examples of a test; each example writes it anew.
KEPT = settings(SETTINGS, suppress_health_check=[HealthCheck.function_scoped_fixture])


@KEPT
@given(data=st.data())
@pytest.mark.parametrize("name", CONFIGS)
def test_any_config(name: str, data: st.DataObject, folders: dict, copied: Callable) -> None:
    folder = copied(folders[name])
    raw = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(data.draw(mutated(raw, len(raw))))
    opens_or_refuses(folder)


VALUES = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 1e-30, 1e30, -1.5, "", []]),
    st.integers(0, 5000),
    st.text(max_size=10),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=4),
    st.dictionaries(st.sampled_from(["rope_type", "type", "factor", "x"]), st.integers(-1, 3)),
)


@KEPT
@given(data=st.data())
@pytest.mark.parametrize("name", CONFIGS)
def test_any_values(name: str, data: st.DataObject, folders: dict, copied: Callable) -> None:
    """Well-formed JSON with wrong values: past the parser, into the mapping."""
    folder = copied(folders[name])
    config = json.loads((folder / "config.json").read_bytes())
    keys = st.sampled_from([*config, "tie_word_embeddings", "hidden_act", "head_dim", "new_key"])
    config.update(data.draw(st.dictionaries(keys, VALUES, min_size=1, max_size=3)))
    (folder / "config.json").write_text(json.dumps(config))
    opens_or_refuses(folder)


@KEPT
@given(data=st.data())
@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
def test_any_header(name: str, data: st.DataObject, folders: dict, copied: Callable) -> None:
    folder = copied(folders[name])
    raw = (folder / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    (folder / "model.safetensors").write_bytes(data.draw(mutated(raw, header)))
    opens_or_refuses(folder)


FILES = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@KEPT
@given(data=st.data())
@pytest.mark.parametrize("name", ["model.safetensors.index.json", *FILES])
def test_any_index_and_file_of_several(
    name: str, data: st.DataObject, folders: dict, copied: Callable
) -> None:
    folder = copied(folders["sharded"])
    raw = (folder / name).read_bytes()
    editable = len(raw) if name.endswith("json") else 8 + int.from_bytes(raw[:8], "little")
    (folder / name).write_bytes(data.draw(mutated(raw, editable)))
    opens_or_refuses(folder)


@KEPT
@given(data=st.data())
@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_any_side_file(name: str, data: st.DataObject, folders: dict, copied: Callable) -> None:
    folder = copied(folders["llama"])
    raw = b'{"eos_token_id": [3, 4], "do_sample": true, "chat_template": "{{ messages }}"}'
    (folder / name).write_bytes(data.draw(mutated(raw, len(raw))))
    opens_or_refuses(folder)


def edited(folder: pathlib.Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Changes the header of a folder's safetensors; the bytes of the tensors stay."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    edit(header)
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + raw[8 + length :])


NORM, EMBED = "model.norm.weight", "model.embed_tokens.weight"
LIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "overlap": (
        lambda h: h[NORM].update(
            data_offsets=h["model.layers.0.input_layernorm.weight"]["data_offsets"]
        ),
        "overlaps|gap",
    ),
    "swapped offsets": (lambda h: h[NORM]["data_offsets"].reverse(), "data_offsets"),
    "negative offset": (lambda h: h[NORM].update(data_offsets=[-4, 60]), "data_offsets"),
    "past the end": (lambda h: h[NORM].update(data_offsets=[2**40, 2**40 + 64]), "gap|end"),
    "absurd offset": (lambda h: h[NORM].update(data_offsets=[0, 2**200]), "data_offsets"),
    "absurd shape": (lambda h: h[NORM].update(shape=[2**40, 2**40]), "takes"),
    "shape that wraps": (lambda h: h[NORM].update(shape=[2**61, 2**3 * 2]), "takes"),
    "many axes": (lambda h: h[NORM].update(shape=[1] * 5000 + [16]), "shape"),
    "shape of floats": (lambda h: h[NORM].update(shape=[16.0]), "shape"),
    "other type": (lambda h: h[NORM].update(dtype="I32"), "int32|dtype"),
    "narrower type": (lambda h: h[NORM].update(dtype="F16"), "takes"),
    "unknown type": (lambda h: h[NORM].update(dtype="F8_E9"), "dtype"),
    "no type": (lambda h: h[NORM].pop("dtype"), "keys"),
    "missing": (lambda h: h.pop(NORM), "gap|end|model.norm.weight"),
    "other shape": (lambda h: h[EMBED].update(shape=h[EMBED]["shape"][::-1]), EMBED),
    "renamed": (
        lambda h: h.update({"model.norms.weight": h.pop(NORM)}),
        'did you mean "model.norms',
    ),
    "a thousand more": (
        lambda h: h.update(
            {f"x.{i}": dict(dtype="F32", shape=[0], data_offsets=[0, 0]) for i in range(1000)}
        ),
        "1000 problems|x.0",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_of_a_header(lie: str, folders: dict, copied: Callable) -> None:
    folder = copied(folders["llama"])
    edit, says = LIES[lie]
    edited(folder, edit)
    with pytest.raises(FormatError, match=says), bounded():
        open_hf(folder)


@pytest.mark.parametrize("length", [0, 1, 2**24, 2**32, 2**63, 2**64 - 1])
def test_absurd_length_of_a_header(length: int, folders: dict, copied: Callable) -> None:
    folder = copied(folders["llama"])
    path = folder / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(FormatError, match="model.safetensors"), bounded():
        open_hf(folder)


HUGE: dict[str, tuple[str, dict[str, Any]]] = {
    "layers": ("llama", {"num_hidden_layers": 4096}),
    "more layers": ("llama", {"num_hidden_layers": 10**9}),
    "experts": ("mixtral", {"num_local_experts": 65536, "num_hidden_layers": 4096}),
    "experts of one layer": ("mixtral", {"num_local_experts": 65536}),
    "experts of three groups": ("deepseek", {"n_routed_experts": 65535, "n_group": 3}),
    "more experts": ("mixtral", {"num_local_experts": 10**12}),
    "layer types": ("gemma3", {"layer_types": ["full_attention"] * 10**5}),
    "pattern": ("gemma3", {"num_hidden_layers": 4096, "layer_types": None}),
    "dense layers": ("deepseek", {"first_k_dense_replace": 10**12}),
    "deep": ("deepseek", {"num_hidden_layers": 4096, "n_routed_experts": 4096}),
    "heads": ("gpt2", {"n_head": 0}),
    "width": ("mpt", {"d_model": 10**30}),
    "positions": ("roberta", {"max_position_embeddings": 2}),
    "depth of nesting": ("llama", {"rope_scaling": json.loads("[" * 500 + "]" * 500)}),
    "long name": ("llama", {"x" * 10**6: 1}),
    "many keys": ("llama", {f"key{i}": i for i in range(10**4)}),
}


@pytest.mark.parametrize("case", HUGE)
def test_configs_that_ask_for_too_much(case: str, folders: dict, copied: Callable) -> None:
    name, changes = HUGE[case]
    folder = copied(folders[name])
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(FormatError), bounded():
        open_hf(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", ".."])
def test_an_index_leaves_the_folder_never(name: str, folders: dict, copied: Callable) -> None:
    folder = copied(folders["sharded"])
    shutil.copy(folder / FILES[0], folder.parent / "outside.safetensors")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_bytes())
    first = next(iter(index["weight_map"]))
    index["weight_map"][first] = name
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError, match="not the name of a file"), bounded():
        open_hf(folder)


def test_a_header_of_very_many_tensors(folders: dict, copied: Callable) -> None:
    """As many layers as the config can ask for, and tensors enough to have them."""
    folder = copied(folders["llama"])
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4096}))
    empty = dict(dtype="F32", shape=[0], data_offsets=[0, 0])
    edited(folder, lambda header: header.update({f"x.{i}": empty for i in range(5_000)}))
    with pytest.raises(FormatError, match="problems|missing"), bounded():
        open_hf(folder)


def test_a_header_of_very_many_tensors_and_biases(folders: dict, copied: Callable) -> None:
    """Wrong names and wrong shapes: neither is looked for to the end."""
    folder = copied(folders["llama"])
    config = json.loads((folder / "config.json").read_bytes())
    biases = dict(attention_bias=True, mlp_bias=True, num_hidden_layers=4096)
    (folder / "config.json").write_text(json.dumps(config | biases))
    empty = dict(dtype="F32", shape=[0], data_offsets=[0, 0])
    right = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2, 4000)]
    names = right[:2000] + [f"x.{i}" for i in range(5_000)]
    edited(folder, lambda header: header.update(dict.fromkeys(names, empty)))
    with pytest.raises(FormatError, match=r"\(\d+ or more problems\)"), bounded():
        open_hf(folder)


def test_very_many_tensors_of_which_one_is_there_twice(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "model"
    text = {k: v for k, v in CONFIGS["gemma3"].items() if k != "architectures"}
    folder.mkdir()
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
    (folder / "config.json").write_text(json.dumps({**whole, "text_config": text}))
    empty = dict(dtype="F32", shape=[0], data_offsets=[0, 0])
    names = [*(f"x.{i}" for i in range(10_000)), "model.a", "language_model.a"]
    raw = json.dumps(dict.fromkeys(names, empty)).encode()
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    with pytest.raises(FormatError, match="model.a is there twice"), bounded():
        open_hf(folder)


def test_a_link_that_leaves_the_folder_is_refused(folders: dict, copied: Callable) -> None:
    folder = copied(folders["llama"])
    shutil.move(folder / "model.safetensors", folder.parent / "outside")
    (folder / "model.safetensors").symlink_to(folder.parent / "outside")
    with pytest.raises(FormatError):
        open_hf(folder)
