"""Encoders in Hugging Face folders: which heads a file has, and how it makes a text's vector."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_hf import written

from llmasos_jax.config.heads import Classifier
from llmasos_jax.errors import FormatError
from llmasos_jax.interop.hf import open_hf

WEIGHTS = "model.safetensors"
WIDTHS = {
    **{"vocab_size": 24, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 12, "max_position_embeddings": 8},
}
MODERN = {**WIDTHS, "local_attention": 4}
DISTIL = {
    **{"vocab_size": 24, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12},
    **{"max_position_embeddings": 8, "model_type": "distilbert"},
}


def config(name: str, **keys: Any) -> dict[str, Any]:
    kind = "modernbert" if name.startswith("Modern") else "bert"
    widths = MODERN if kind == "modernbert" else WIDTHS
    kind = "roberta" if name.startswith("Roberta") else kind
    return {"architectures": [name], "model_type": kind, **widths, **keys}


# By class: head, pooler, next sentence, level of the classifier.
HEADS = {
    "BertForPreTraining": ("mlm", True, True, None),
    "BertForMaskedLM": ("mlm", False, False, None),
    "BertForNextSentencePrediction": (None, True, True, None),
    "BertForSequenceClassification": (None, True, False, "sequence"),
    "BertForTokenClassification": (None, False, False, "token"),
    "BertModel": (None, False, False, None),
    "RobertaForMaskedLM": ("mlm", False, False, None),
    "RobertaForSequenceClassification": (None, True, False, "sequence"),
    "RobertaForTokenClassification": (None, False, False, "token"),
    "RobertaModel": (None, False, False, None),
    "ModernBertForMaskedLM": ("mlm", False, False, None),
    "ModernBertModel": (None, False, False, None),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_class_has_its_heads(name: str, tmp_path: Path) -> None:
    keys = {"id2label": {"0": "no", "1": "yes"}}
    cfg = open_hf(written(tmp_path / "m", config(name, **keys))).manifest.parameters
    level = cfg.classifier.level if cfg.classifier.labels else None
    assert (cfg.head, cfg.pooler, cfg.next_sentence, level) == HEADS[name]
    assert cfg.classifier.labels == (("no", "yes") if level else ())


def test_heads_that_a_class_does_not_name_are_read(tmp_path: Path) -> None:
    """`bert-base-uncased` calls itself BertForMaskedLM and has all of BertForPreTraining."""
    folder = written(tmp_path / "m", config("BertForPreTraining"))
    wanted = open_hf(folder)
    (folder / "config.json").write_text(json.dumps(config("BertForMaskedLM")))
    found = open_hf(folder)
    assert found.manifest.parameters == wanted.manifest.parameters
    assert found.tensors.keys() == wanted.tensors.keys() >= {"next_sentence.w", "pooler.bias"}
    (folder / "config.json").write_text(json.dumps(config("BertModel")))
    assert open_hf(folder).manifest.parameters == wanted.manifest.parameters


def test_a_base_model_has_the_pooler_that_its_file_has(tmp_path: Path) -> None:
    folder = written(tmp_path / "m", config("BertForSequenceClassification"))
    tensors = {n: t for n, t in load_file(folder / WEIGHTS).items() if "classifier" not in n}
    save_file({n.removeprefix("bert."): np.array(t) for n, t in tensors.items()}, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config("BertModel")))
    files = open_hf(folder)
    np.testing.assert_array_equal(
        files.tensors["pooler.w"].read(), tensors["bert.pooler.dense.weight"].T
    )
    cut = {n: np.array(t) for n, t in tensors.items() if n != "bert.pooler.dense.bias"}
    save_file(cut, folder / WEIGHTS)
    with pytest.raises(FormatError, match="bert.pooler.dense.bias: missing"):
        open_hf(folder)


def test_the_product_before_robertas_classifier_is_a_pooler(tmp_path: Path) -> None:
    folder = written(tmp_path / "m", config("RobertaForSequenceClassification"))
    theirs = load_file(folder / WEIGHTS)
    tensors = open_hf(folder).tensors
    for ours, name in (("pooler.w", "dense.weight"), ("classifier.w", "out_proj.weight")):
        np.testing.assert_array_equal(tensors[ours].read(), theirs[f"classifier.{name}"].T)
    save_file({**theirs, "roberta.pooler.dense.bias": np.ones(8, np.float32)}, folder / WEIGHTS)
    assert open_hf(folder).tensors.keys() == tensors.keys()


def test_a_head_that_is_there_twice_must_be_the_same(tmp_path: Path) -> None:
    folder = written(tmp_path / "m", config("BertForMaskedLM"))
    theirs = load_file(folder / WEIGHTS)
    name = "cls.predictions.decoder.bias"
    save_file({**theirs, name: theirs["cls.predictions.bias"] + 1}, folder / WEIGHTS)
    with pytest.raises(FormatError, match=f"{name}: differs from cls.predictions.bias"):
        open_hf(folder)


def test_an_output_layer_of_its_own_is_read(tmp_path: Path) -> None:
    folder = written(tmp_path / "m", config("BertForMaskedLM", tie_word_embeddings=False))
    cfg, tensors = open_hf(folder).manifest.parameters, open_hf(folder).tensors
    assert not cfg.tie_embeddings and tensors["head.w"].shape == (8, 24)


def test_labels_without_names_are_counted(tmp_path: Path) -> None:
    name = "BertForTokenClassification"
    cfg = open_hf(written(tmp_path / "m", config(name, num_labels=3))).manifest.parameters
    assert cfg.classifier == Classifier(("LABEL_0", "LABEL_1", "LABEL_2"), "token")
    cfg = open_hf(written(tmp_path / "n", config(name))).manifest.parameters
    assert cfg.classifier.labels == ("LABEL_0", "LABEL_1")


def test_modernbert_is_read_as_what_it_computes(tmp_path: Path) -> None:
    cfg = open_hf(written(tmp_path / "m", config("ModernBertForMaskedLM"))).manifest.parameters
    assert (cfg.first_attn_norm, cfg.final_norm, cfg.embedding_norm) == (False, True, True)
    assert (cfg.norm, cfg.norm_bias, cfg.mlp, cfg.mlp_bias) == ("layernorm", False, "geglu", False)
    # Two ahead, two back, and itself: `local_attention` 4.
    assert cfg.attention_windows == (None, 3)
    assert (cfg.rope_theta, cfg.rope_theta_local) == (160000.0, 10000.0)
    older = config("ModernBertModel", num_hidden_layers=7, global_attn_every_n_layers=3)
    older |= {"global_rope_theta": 5e5, "local_rope_theta": 2e4, "reference_compile": False}
    cfg = open_hf(written(tmp_path / "n", older)).manifest.parameters
    assert cfg.attention_windows == (None, 3, 3)
    assert (cfg.rope_theta, cfg.rope_theta_local) == (5e5, 2e4)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "distilbert's classifier": (
        {**DISTIL, "architectures": ["DistilBertForSequenceClassification"]},
        "DistilBertForSequenceClassification is a BERT with another task's head",
    ),
    "labels with a gap": (
        config("BertForTokenClassification", id2label={"0": "a", "2": "b"}),
        '"id2label" = .* must name the classes 0, 1',
    ),
    "labels that are alike": (
        config("BertForTokenClassification", id2label={"0": "a", "1": "a"}),
        'labels has "a" twice',
    ),
    "a regression": (
        config("BertForSequenceClassification", problem_type="regression"),
        '"problem_type" = "regression" is not computed here .*softmax',
    ),
    "a class of one": (
        config(
            "BertForSequenceClassification",
            num_labels=1,
            problem_type="single_label_classification",
        ),
        '"problem_type" = .* is not computed here .*one label is a number',
    ),
    "several labels at once": (
        config("RobertaForSequenceClassification", problem_type="multi_label_classification"),
        '"problem_type" = "multi_label_classification" is not computed here',
    ),
    "an unknown problem": (
        config("BertForSequenceClassification", problem_type=["x"]),
        '"problem_type" = .* is not computed here',
    ),
    "another activation in the head": (
        config("RobertaForMaskedLM", hidden_act="relu"),
        '"hidden_act" = "relu" differs from the gelu of RobertaForMaskedLM',
    ),
    "an output layer without a bias": (
        config("ModernBertForMaskedLM", decoder_bias=False),
        '"decoder_bias" = false is not computed here',
    ),
    "a stretched modernbert": (
        config("ModernBertModel", rope_scaling={"rope_type": "linear", "factor": 2.0}),
        '"rope_scaling" = .* is not computed here',
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(name: str, tmp_path: Path) -> None:
    found, message = REFUSED[name]
    folder = written(tmp_path / "m", config("BertModel"))
    (folder / "config.json").write_text(json.dumps(found))
    with pytest.raises(FormatError, match=message) as caught:
        open_hf(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("problem", [None, "single_label_classification"])
def test_one_of_several_labels_is_read(problem: str | None, tmp_path: Path) -> None:
    name = "BertForSequenceClassification"
    folder = written(tmp_path / "m", config(name, problem_type=problem))
    assert open_hf(folder).manifest.parameters.classifier.labels == ("LABEL_0", "LABEL_1")


def sentence_folder(folder: Path, pooling: dict[str, Any], *more: str) -> Path:
    written(folder, config("BertModel"))
    kinds = ("Transformer", "Pooling", *more)
    names = ("", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i))
    modules = [
        {"idx": i, "name": str(i), "path": name, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, name) in enumerate(zip(kinds, names, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


MEAN = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True}
CLS = {"word_embedding_dimension": 8, "pooling_mode_cls_token": True}
POOLINGS = {"mean": MEAN, "cls": {**CLS, "pooling_mode_mean_tokens": False}}


@pytest.mark.parametrize("kind", POOLINGS)
def test_pooling_of_sentence_transformers(kind: str, tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "m", POOLINGS[kind], "Normalize")
    assert open_hf(folder).manifest.parameters.pooling == kind


@pytest.mark.parametrize(
    ("pooling", "more", "message"),
    [
        ({**MEAN, "pooling_mode_max_tokens": True}, (), "pooling_mode_max_tokens"),
        ({**MEAN, **CLS}, (), "asks for mean and cls; expected mean or cls"),
        ({"pooling_mode": "lasttoken"}, (), '"pooling_mode" = "lasttoken" is not computed'),
        ({**MEAN, "surprise": 1}, (), '"surprise" = 1: not known here'),
        (MEAN, ("Dense",), 'the module "Dense" is not computed here'),
    ],
)
def test_another_pooling_is_refused(
    pooling: dict[str, Any], more: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    folder = sentence_folder(tmp_path / "m", pooling, *more)
    with pytest.raises(FormatError, match=message) as caught:
        open_hf(folder)
    assert "\n" not in str(caught.value)
    assert open_hf(folder, ignore=("modules.json",)).manifest.parameters.pooling == "mean"
