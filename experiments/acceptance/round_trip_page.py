"""Makes `docs/round_trips.md` of the figures of `round_trips.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "round_trips.md"
TITLES = {
    **{"orbax": "Orbax", "hf": "Hugging Face", "gguf": "GGUF", "onnx": "ONNX"},
    "stablehlo": "StableHLO",
}
HEAD = """\
# Round trips

Made by `python experiments/acceptance/round_trips.py --page` of
[`round_trips.json`](../experiments/acceptance/round_trips.json); run without `--page` it measures
anew. Do not edit.

Each model is written in a format and opened again: **=** says that the sha256 of every tensor
(dtype, shape, bytes) and the config are what they were; a letter, why the format refuses it before
a byte is written. Orbax is a training checkpoint in the layout of training. Tiny models have random
weights, their family's options, and small widths.
"""


def page(record: dict[str, Any]) -> str:
    """The page's text."""
    every = record.get("models", {})
    models = {name: every[name] for name in sorted(every, key=lambda n: (n[:5] == "real ", n))}
    reasons: dict[str, str] = {}
    lines = [HEAD, "## From LLMasOS and back", ""]
    lines += [f"| model | {' | '.join(TITLES.values())} |", "|---" * 6 + "|"]
    for name, found in models.items():
        cells = [_cell(found["pairs"].get(f"llmasos -> {to}"), reasons) for to in TITLES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *(f"- **{letter}** {text}" for text, letter in reasons.items())]
    refused = _refused(models)
    lines += ["", _pairs(models), "", *refused, *([""] if refused else [])]
    lines += ["## Types that round", ""]
    lines += [
        "How far the weights that the file holds are from the model's: root mean square of the "
        "difference as a share of that of the weights, of all numbers together, and of the worst "
        "tensor. What that does to the outputs is in each export's receipt.",
        "",
    ]
    has_real = any(name.startswith("real ") for name in models)
    for name, found in models.items():
        # Rows of tiny models are no whole blocks of 256: K types would be their fallbacks.
        if "rounded" in found and (name.startswith("real ") or not has_real):
            lines += [f"| {name} | all | worst tensor | | MB |", "|---|---|---|---|---|"]
            lines += [
                f"| {key} | {row['all']:.1e} | {row['worst_tensor']:.1e} | `{row['where']}` | "
                f"{row['bytes'] / 1e6:,.1f} |"
                for key, row in found["rounded"].items()
            ]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _cell(found: dict[str, Any] | None, reasons: dict[str, str]) -> str:
    if found is None:
        return ""
    if "refused" in found:
        text = found["refused"].replace("|", "\\|")
        return reasons.setdefault(text, _letters(len(reasons)))
    if found["wrong"] or found["config"]:
        return f"**{len(found['wrong'])} tensors, {len(found['config'])} fields differ**"
    return "="


def _refused(models: dict[str, Any]) -> list[str]:
    """Pairs that are refused where LLMasOS itself is not: what a format cannot give back."""
    titles = {"llmasos": "LLMasOS", **TITLES}
    found: dict[str, list[str]] = {}
    for name, model in models.items():
        for pair, said in model["pairs"].items():
            a, to = pair.split(" -> ")
            if "refused" in said and "refused" not in model["pairs"].get(f"llmasos -> {to}", said):
                found.setdefault(f"{titles[a]} -> {titles[to]}: {said['refused']}", []).append(name)
    return [f"- {', '.join(names)}: {text}" for text, names in found.items()]


def _letters(number: int) -> str:
    """A to z, then aa, ab.

    Example:
      >>> _letters(0), _letters(27)
      ('a', 'ab')
    """
    first, last = divmod(number, 26)
    return (_letters(first - 1) if first else "") + chr(ord("a") + last)


def _pairs(models: dict[str, Any]) -> str:
    every = [p for found in models.values() for p in found["pairs"].values()]
    refused = sum("refused" in p for p in every)
    wrong = sum(bool(p.get("wrong") or p.get("config")) for p in every)
    tensors = sum(p.get("tensors", 0) for p in every)
    return (
        f"From each of the formats to each other (real models: to LLMasOS): {len(every)} pairs "
        f"in all, {refused} refused, {wrong} that differ, {tensors:,} tensors compared."
    )
