"""A model card, written from the folder of a run: what is said in it, a file there says too.

Mitchell et al., 2019, arXiv 1810.03993. The sections that no file can fill (what a model is for,
whom it may hurt) say so, and stay to be written by people.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmasos_jax import __version__
from llmasos_jax.config.build import build as build_config
from llmasos_jax.config.build import default_config, differences, from_dict, to_dict
from llmasos_jax.config.schema import Config
from llmasos_jax.errors import EvaluationError
from llmasos_jax.format.training import config_sha256
from llmasos_jax.models.count import count_parameters, flops_per_token
from llmasos_jax.train.hooks import metrics_path, read_metrics
from llmasos_jax.train.result import TrainResult, read_result

_RECEIPT = "parity.json"
_UNKNOWN = "not recorded"


def model_card(
    workdir: str | os.PathLike[str],
    *,
    receipts: Sequence[str | os.PathLike[str]] = (),
    results: Sequence[str | os.PathLike[str]] = (),
    limits: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
) -> str:
    """The card of a training run, Markdown.

    Args:
      workdir: a training folder.
      receipts: `parity.json` of exports, or their folders; those below `workdir` are found.
      results: JSON files of `llmasos eval`.
      limits: what is known of the model's limits, one sentence each; nothing is made up.
      out: where it is written; None writes nothing.

    Raises:
      EvaluationError: the folder holds no run, or a file is not what it is given as.
    """
    folder = Path(workdir)
    config = _config(folder)
    result, lines = read_result(folder), read_metrics(metrics_path(folder))
    found = sorted(folder.rglob(_RECEIPT))
    given = [path / _RECEIPT if path.is_dir() else path for path in map(Path, receipts)]
    sections = [
        _head(config, result),
        _data(config),
        _config_section(config),
        _compute(config, result, lines),
        _metrics(result, lines),
        _results([(path, _json(path)) for path in map(Path, results)]),
        _receipts([(path, _json(path)) for path in dict.fromkeys((*found, *given))]),
        _limits(config, result, limits),
        f"---\nWritten by llmasos {__version__} from `{folder.name}`.",
    ]
    text = "\n\n".join(sections) + "\n"
    if out is not None:
        Path(out).write_text(text, encoding="utf-8")
    return text


def _config(folder: Path) -> Config:
    path = folder / "config.json"
    if not path.exists():
        raise EvaluationError(f"{folder} holds no run: there is no config.json; give a --workdir")
    found = _json(path)
    return from_dict(found)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise EvaluationError(f"{path} holds no JSON object; give a receipt or a result")
    return found


def _head(config: Config, result: TrainResult | None) -> str:
    model = config.model
    kind = "encoder-decoder" if model.encoder.num_layers else "decoder"
    kind = kind if model.causal or model.encoder.num_layers else "encoder"
    steps = _UNKNOWN if result is None else f"{result.step:,} of {config.train.steps:,} steps"
    tuned, made = config.finetune, "Trained"
    if tuned.base is not None:
        # The folder alone: where the base lay on one machine says nothing on another.
        moved = {"lora": f"by low-rank changes of rank {tuned.rank}", "full": "in all its weights"}
        made = (
            f"Fine-tuned from {Path(tuned.base).name} (SHA-256 of its weights "
            f"`{str(tuned.base_sha256)[:16]}`) {moved.get(tuned.method, 'in its head alone')}"
        )
    if tuned.teacher is not None:
        made += (
            f", with {Path(tuned.teacher).name} as its teacher (SHA-256 "
            f"`{str(tuned.teacher_sha256)[:16]}`),"
        )
    return (
        f"# {config.name}\n\nA {kind} with {count_parameters(model):,} parameters: "
        f"{model.num_layers} layers of width {model.embedding_dim}, {model.vocab_size:,} tokens, a "
        f"context of {model.context_length:,}. {made} with llmasos: {steps}.\n\n"
        "**Intended use.** To be written by those who publish it: no file of the run says."
    )


def _data(config: Config) -> str:
    data, tokenizer = config.data, config.tokenizer
    rows = {
        "source": data.source if data.path is None else f"{data.source}: {Path(data.path).name}",
        "documents at most": "all" if data.max_documents is None else f"{data.max_documents:,}",
        "held out": f"{data.heldout_fraction:.2%} of the documents, never trained on",
        "sequence": f"{data.sequence_length:,} tokens",
        "order": f"seed {data.seed}",
        "tokenizer": tokenizer.kind,
        "objective": config.objective.name,
    }
    return f"## Data\n\n{_table(rows)}"


def _config_section(config: Config) -> str:
    usual: Any = default_config()
    for name in ("vocab_size", "embedding_dim", "num_layers"):  # have no default
        usual.model[name] = getattr(config.model, name)
    changed = [
        line for line in differences(build_config(usual), config) if not line.startswith("name")
    ]
    # A card is for others: what a file is called, not where it lies on this disk.
    mixed = [part.path for part in config.data.mixture.values()]
    for path in filter(None, (config.data.path, config.tokenizer.path, *mixed)):
        changed = [line.replace(path, Path(path).name) for line in changed]
    listed = "\n".join(f"- `{line}`" for line in changed) or "- none"
    return (
        f"## Config\n\nSHA-256 of the resolved config: `{config_sha256(to_dict(config))}`. Fields "
        f"that are not at their defaults (default -> here):\n\n{listed}"
    )


def _compute(config: Config, result: TrainResult | None, lines: Sequence[dict[str, Any]]) -> str:
    share = config.objective.mask_rate if config.objective.name.startswith("mlm") else 1.0
    each = flops_per_token(config.model, config.data.sequence_length, share)
    speeds = sorted(line["tokens_per_s"] for line in lines if line.get("tokens_per_s"))
    rows: dict[str, Any] = {
        "mesh": ", ".join(f"{k} {v}" for k, v in _mesh(config).items()) or "one device",
        "precision": config.precision.dtype,
        "tokens": _UNKNOWN if result is None else f"{result.tokens:,}",
        "floating-point operations of a token": f"{each:.3g}",
        "floating-point operations": _UNKNOWN if result is None else f"{each * result.tokens:.3g}",
        "seconds": _UNKNOWN if result is None else f"{result.seconds:,.0f} of the last part",
        "tokens per second": f"{speeds[len(speeds) // 2]:,.0f} (median)" if speeds else _UNKNOWN,
        "devices, energy, emissions": _UNKNOWN,
    }
    return f"## Compute\n\n{_table(rows)}"


def _mesh(config: Config) -> Mapping[str, Any]:
    values = to_dict(config)["mesh"]
    return {
        k: v for k, v in values.items() if isinstance(v, int) and not isinstance(v, bool) and v > 1
    }


def _metrics(result: TrainResult | None, lines: Sequence[dict[str, Any]]) -> str:
    rows: dict[str, Any] = {}
    held = [line for line in lines if "heldout_loss" in line]
    trained = [line for line in lines if "loss" in line]
    if trained:
        rows["training loss"] = (
            f"{trained[-1]['loss']:.4f} nats per token, step {trained[-1]['step']}"
        )
    if held:
        last = held[-1]
        rows |= {
            name.replace("_", " "): f"{value:.4f}, step {last['step']}"
            for name, value in last.items()
            if name.startswith("heldout_") and isinstance(value, float)
        }
    if result is not None:
        for name in ("unigram_perplexity", "bigram_perplexity", "most_frequent_accuracy"):
            value = getattr(result, name)
            if value is not None:
                rows[f"{name.replace('_', ' ')} (baseline)"] = f"{value:.4f}"
    body = _table(rows) if rows else "Nothing was measured: the folder has no metrics."
    return f"## Metrics of the run\n\n{body}"


def _results(found: Sequence[tuple[Path, dict[str, Any]]]) -> str:
    if not found:
        return "## Evaluation\n\nNo result of `llmasos eval` was given."
    rows = {}
    for path, result in found:
        metrics = result.get("metrics")
        if not isinstance(metrics, dict) or "task" not in result:
            raise EvaluationError(
                f"{path} is no result of llmasos eval: it has no task and metrics"
            )
        for name, figure in metrics.items():
            held = f"{figure['value']:.4g} [{figure['low']:.4g}, {figure['high']:.4g}]"
            more = (
                f"{result.get('num_examples')} examples, "
                f"task `{result.get('task_hash', '')[:12]}`, "
                f"model {result.get('model', _UNKNOWN)} `{result.get('model_hash', '')[:12]}`"
            )
            rows[f"{result['task']}: {name}"] = f"{held} ({more})"
    return f"## Evaluation\n\nWith 95% bootstrap intervals.\n\n{_table(rows)}"


def _receipts(found: Sequence[tuple[Path, dict[str, Any]]]) -> str:
    if not found:
        return "## Receipts\n\nNo export of this model was proven, or none was given."
    rows = {}
    for path, receipt in found:
        if "proven" not in receipt or "target" not in receipt:
            raise EvaluationError(f"{path} is no receipt of an export: it has no target and proven")
        apart = receipt.get("difference")
        said = "not proven"
        if receipt["proven"] and apart is not None:
            said = f"proven: outputs differ by {apart:.1e} of the largest"
        rows[f"{receipt['target']}, {receipt.get('dtype')}"] = f"{said} (`{path.parent.name}`)"
    return f"## Receipts\n\nEach export was opened by the program that it is for.\n\n{_table(rows)}"


def _limits(config: Config, result: TrainResult | None, given: Sequence[str]) -> str:
    known = list(given)
    if result is None:
        known.append("The run did not end: figures are those of its last lines.")
    elif result.step < config.train.steps:
        known.append(f"The run stopped at step {result.step:,} of {config.train.steps:,}.")
    if config.data.heldout_fraction == 0:
        known.append("Nothing was held out, so nothing says how it does on text that is new to it.")
    known.append(
        f"It read at most {config.data.sequence_length:,} tokens at a time in training; what it "
        "does with longer texts was not measured by the run."
    )
    known.append("Bias and safety: see `llmasos_jax.evals.bias`; this card has no figures of it.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in known)


def _table(rows: Mapping[str, Any]) -> str:
    escaped = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    lines = [f"| {escaped(name)} | {escaped(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
