"""Exports to Hugging Face folders: proven in transformers, and read back bit by bit."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_hf import written

import llmasos_jax
from llmasos_jax.cli.main import main
from llmasos_jax.config.experts import Experts
from llmasos_jax.config.heads import Classifier
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ExportError, FormatError, MissingExtraError
from llmasos_jax.evals.export import huggingface as export_hf
from llmasos_jax.format.cast import cast
from llmasos_jax.format.manifest import Generation, Manifest
from llmasos_jax.format.names import expected
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.tensorfile import StoredTensor, stored
from llmasos_jax.interop.hf import open_hf
from llmasos_jax.interop.hf.express import canonical, differences, express
from llmasos_jax.interop.hf.write import write_huggingface

WIDTHS = {
    **{"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 24, "max_position_embeddings": 24},
}
DISTIL = {
    **{"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    **{"max_position_embeddings": 24, "model_type": "distilbert"},
}
LLAMA = {
    **{"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 24},
    **{"max_position_embeddings": 24},
}
LONGER = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 16,
}
LABELS = {"id2label": {"0": "no", "1": "yes", "2": "maybe"}}


def bert(name: str, **keys: Any) -> dict[str, Any]:
    kind = {"B": "bert", "R": "roberta", "X": "xlm-roberta", "M": "modernbert"}[name[0]]
    extra = {"local_attention": 6, "num_hidden_layers": 4} if kind == "modernbert" else {}
    special = {"pad_token_id": 0}
    if "roberta" in kind:
        special = {"pad_token_id": 1, "max_position_embeddings": 26}
    return {"architectures": [name], "model_type": kind, **WIDTHS, **extra, **special, **keys}


CONFIGS: dict[str, dict[str, Any]] = {
    "bert": bert("BertForPreTraining"),
    "bert-masked-lm": bert("BertForMaskedLM", hidden_act="gelu_new"),
    "bert-untied": bert("BertForMaskedLM", tie_word_embeddings=False),
    "bert-next-sentence": bert("BertForNextSentencePrediction"),
    "bert-sequence": bert("BertForSequenceClassification", **LABELS),
    "bert-token": bert("BertForTokenClassification", **LABELS),
    "bert-base": bert("BertModel"),
    "roberta": bert("RobertaForMaskedLM", type_vocab_size=1),
    "roberta-untied": bert("RobertaForMaskedLM", tie_word_embeddings=False),
    "roberta-sequence": bert("RobertaForSequenceClassification", **LABELS),
    "roberta-token": bert("RobertaForTokenClassification", **LABELS),
    "roberta-base": bert("RobertaModel"),
    "xlm-roberta": bert("XLMRobertaForMaskedLM"),
    "distilbert": {**DISTIL, "architectures": ["DistilBertForMaskedLM"]},
    "distilbert-token": {**DISTIL, "architectures": ["DistilBertForTokenClassification"], **LABELS},
    "distilbert-base": {**DISTIL, "architectures": ["DistilBertModel"]},
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **LLAMA},
    "llama-3.1": {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", **LLAMA},
        **{"rope_scaling": LONGER, "tie_word_embeddings": True, "attention_bias": True},
        **{"eos_token_id": [3, 4]},
    },
    "mistral": {
        **{"architectures": ["MistralForCausalLM"], "model_type": "mistral", **LLAMA},
        "sliding_window": 5,
    },
    "gpt2": {
        **{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 40},
        **{"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24, "n_inner": 24},
        **{"bos_token_id": None, "eos_token_id": None},
    },
    "modernbert": bert("ModernBertForMaskedLM"),
    "modernbert-base": bert("ModernBertModel", norm_bias=True, attention_bias=True, mlp_bias=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_written_and_read_back_it_is_the_same(name: str, tmp_path: Path) -> None:
    files = open_hf(written(tmp_path / "in", CONFIGS[name]))
    out = tmp_path / "out"
    out.mkdir()
    found = write_huggingface(files, out)
    back = open_hf(out)
    assert found.saved_class == CONFIGS[name]["architectures"][0]
    assert back.manifest.parameters == files.manifest.parameters
    assert back.manifest.metadata == files.manifest.metadata
    assert back.manifest.generation == files.manifest.generation
    assert back.tensors.keys() == files.tensors.keys()
    for n, tensor in files.tensors.items():
        np.testing.assert_array_equal(back.tensors[n].read(), tensor.read(), strict=True)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers)")
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_opens_it_and_gives_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra `parity`")
    source = written(tmp_path / "in", CONFIGS[name])
    result = llmasos_jax.export(source, "hf", tmp_path / "out")
    assert result.proven and result.difference is not None
    assert 0 < result.difference < 2e-5
    receipt = json.loads((tmp_path / "out" / "parity.json").read_bytes())
    assert receipt["proven"] and receipt["class"] == CONFIGS[name]["architectures"][0]
    assert 24 in receipt["rows"] and 1 in receipt["rows"]
    raw = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert receipt["files"]["model.safetensors"] == hashlib.sha256(raw).hexdigest()
    outputs = {c["output"] for c in receipt["compared"]}
    if name == "bert":
        assert outputs == {"logits", "next_sentence"}
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers)")
def test_another_model_is_kept_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="needs the extra `parity`")
    source = written(tmp_path / "in", CONFIGS["bert"])

    def spoilt(files: ModelFiles, out: Path, **options: Any) -> Any:
        name = "layers.1.mlp.down"
        tensor = files.tensors[name]
        other = StoredTensor(tensor.shape, tensor.dtype, lambda: tensor.read()[::-1])
        tensors = {**files.tensors, name: other}
        changed = ModelFiles(files.path, files.manifest, tensors, files.tokenizer)
        return write_huggingface(changed, out, **options)

    monkeypatch.setattr(export_hf, "write_huggingface", spoilt)
    with pytest.raises(
        ExportError, match="is not the model: layers.1.mlp.down is .* away.*they part at layer 1"
    ):
        llmasos_jax.export(source, "hf", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert main(["export", str(source), "--to=hf", f"--out={tmp_path / 'out'}"]) == 1
    assert "nothing was kept" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers)")
def test_rounded_weights_are_proven_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra `parity`")
    source = written(tmp_path / "in", CONFIGS["llama"])
    result = llmasos_jax.export(source, "hf", tmp_path / "out", dtype="bfloat16")
    assert result.proof is not None
    # What the program computes is exact; what rounding did is said apart.
    assert result.proof.difference < 2e-5
    assert 2.0**-11 < result.proof.rounded.worst < 2.0**-8
    assert 1e-4 < max(c.difference for c in result.proof.effect) < 0.1
    assert result.proof.greedy == 32
    assert json.loads((tmp_path / "out" / "config.json").read_bytes())["dtype"] == "bfloat16"
    back = open_hf(tmp_path / "out").tensors
    assert {tensor.dtype for tensor in back.values()} == {"bfloat16"}
    with pytest.raises(
        FormatError, match=r"holds 1e\+05, and float16 ends at 65504; take bfloat16"
    ):
        cast(
            ModelFiles(source, of(BERT), {"x": stored(np.array([1e5], np.float32))}, None),
            "float16",
        ).tensors["x"].read()


def test_without_transformers_it_has_to_be_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = written(tmp_path / "in", CONFIGS["bert"])
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtraError, match="--unproven"):
        llmasos_jax.export(source, "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    words = ["export", str(source), "--to=hf", f"--out={tmp_path / 'out'}", "--unproven"]
    assert main(words) == 0
    assert "not proven" in capsys.readouterr().out
    receipt = json.loads((tmp_path / "out" / "parity.json").read_bytes())
    assert receipt["proven"] is False and receipt["difference"] is None


def test_other_targets_and_places_are_refused(tmp_path: Path) -> None:
    source = written(tmp_path / "in", CONFIGS["bert"])
    with pytest.raises(FormatError, match='no target "hff"; did you mean "hf"'):
        llmasos_jax.export(source, "hff", tmp_path / "out")
    with pytest.raises(FormatError, match='not written as "bfloat15"; did you mean "bfloat16"'):
        llmasos_jax.export(source, "hf", tmp_path / "out", dtype="bfloat15")
    with pytest.raises(FormatError, match="not empty; name a new or empty folder"):
        llmasos_jax.export(source, "hf", tmp_path / "in")
    with pytest.raises(FormatError, match='config.json" is a file; name another'):
        llmasos_jax.export(source, "hf", tmp_path / "in" / "config.json" / "new" / "out")
    with pytest.raises(FormatError, match="cannot be a folder: File name too long; name another"):
        llmasos_jax.export(source, "hf", tmp_path / ("n" * 300))
    with pytest.raises(FormatError, match="seed=-1 is not possible; give 0 or more"):
        llmasos_jax.export(source, "hf", tmp_path / "out", seed=-1)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


BERT = ModelConfig(
    **{"vocab_size": 40, "embedding_dim": 128, "num_layers": 2, "context_length": 24},
    **{"causal": False, "head": "mlm", "norm": "layernorm", "norm_eps": 1e-12},
    **{"norm_placement": "post", "final_norm": False, "embedding_norm": True, "token_types": 2},
    **{"position": "learned", "qkv_bias": True, "attention_out_bias": True, "mlp_bias": True},
    **{"mlp": "gelu", "pooler": True, "next_sentence": True},
)  # pyright: ignore[reportArgumentType]


def of(cfg: ModelConfig, architecture: str = "Transformer", **more: Any) -> Manifest:
    return Manifest("m", cfg, architecture=architecture, **more)


def test_a_model_that_was_trained_here_finds_its_family() -> None:
    assert express(of(BERT)).saved_class == "BertForPreTraining"
    masked = BERT.replace(pooler=False, next_sentence=False)
    assert express(of(masked)).saved_class == "BertForMaskedLM"
    assert express(of(masked, "RoBERTa")).saved_class == "RobertaForMaskedLM"
    no_types = masked.replace(token_types=0)
    assert express(of(no_types)).saved_class == "DistilBertForMaskedLM"
    labels = Classifier(("a", "b"), "token")
    tagger = masked.replace(head=None, classifier=labels)
    assert express(of(tagger)).saved_class == "BertForTokenClassification"
    smallest = ModelConfig(vocab_size=40, embedding_dim=128, num_layers=2)
    assert express(of(smallest)).saved_class == "LlamaForCausalLM"
    assert express(of(smallest, "SmolLM")).saved_class == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "rmsnorm"}, "BertForPreTraining, differs in parameters.norm='rmsnorm'"),
        ({"qkv_bias": False}, "parameters.qkv_bias=False, not True"),
        ({"classifier": Classifier(("a", "b"))}, "parameters.head='mlm', not None"),
        ({"next_sentence": False}, "parameters.pooler=True, not False"),
        ({"mlp": "geglu"}, "parameters.mlp='geglu', not 'gelu'"),
        ({"attention_windows": (None, 5)}, r"parameters.attention_windows=\(None, 5\)"),
    ],
)
def test_what_no_family_says_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        express(of(BERT.replace(**changes), "BERT"))
    assert "\n" not in str(caught.value)


def test_the_nearest_class_is_of_the_same_kind() -> None:
    rotary = BERT.replace(position="rope", norm_placement="pre", final_norm=True, mlp="swiglu")
    with pytest.raises(FormatError, match="the nearest, (Bert|ModernBert)[A-Za-z]*, differs in"):
        express(of(rotary))
    post = ModelConfig(vocab_size=40, embedding_dim=128, num_layers=2, norm_placement="post")
    with pytest.raises(FormatError, match="the nearest, (Llama|Mistral)ForCausalLM, differs in"):
        express(of(post))


@pytest.mark.parametrize("folders", ["new/one", "there/new/one", "there/one"])
def test_a_failing_export_leaves_no_folder(folders: str, tmp_path: Path) -> None:
    source = written(tmp_path / "in", CONFIGS["bert"])
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")

    def fails(*_: Any, **__: Any) -> Any:
        raise ExportError("planted")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_hf, "write_huggingface", fails)
        with pytest.raises(ExportError, match="planted"):
            llmasos_jax.export(source, "hf", tmp_path / folders, unproven=True)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.parent != source) == [
        "file", "in", "there"]  # fmt: skip
    result = llmasos_jax.export(source, "hf", tmp_path / folders, unproven=True)
    assert (result.path / "parity.json").is_file()


def test_a_field_that_does_nothing_is_no_difference() -> None:
    other = BERT.replace(rope_theta=5e5, relative_buckets=64, num_heads=2, ffn_dim=512)
    assert differences(BERT, other) == []
    assert canonical(BERT).num_heads == 2
    scaled = BERT.replace(embedding_scale=8.0)
    assert differences(scaled, scaled.replace(embedding_scale=7.999999999999998)) == []
    mixture = ModelConfig(40, 16, 1, ffn_dim=24, experts=Experts(4, 2))  # as wide as the MLP
    assert differences(mixture, mixture.replace(experts=Experts(4, 2, 24))) == []
    assert differences(BERT, BERT.replace(norm_eps=1e-5)) == [
        "parameters.norm_eps=1e-12, not 1e-05"
    ]


def test_pooling_and_generation_go_along(tmp_path: Path) -> None:
    cfg = BERT.replace(head=None, next_sentence=False, pooling="cls")
    tensors = {n: stored(np.ones(s.shape, np.float32)) for n, s in expected(cfg).items()}
    manifest = of(cfg, generation=Generation(eos_ids=(3, 5), chat_template="{{ messages }}"))
    write_huggingface(ModelFiles(tmp_path, manifest, tensors, None), tmp_path)
    back = open_hf(tmp_path).manifest
    assert back.parameters == canonical(cfg).replace(num_kv_heads=None, head_dim=None)
    assert back.generation.eos_ids == (3, 5)
    assert back.generation.chat_template == "{{ messages }}"
