"""docs/families.md says what the presets and the readers say. Run this file to write its tables."""

import pathlib

from llmasos_jax.format.strict import schema
from llmasos_jax.interop.gguf.config import _READERS, family
from llmasos_jax.interop.hf.families import FAMILIES
from llmasos_jax.models import zoo
from llmasos_jax.models.count import count_active_parameters, count_parameters

DOC = pathlib.Path(__file__).resolve().parent.parent / "docs" / "families.md"
# SmolLM's folders and files call themselves LLaMA's.
SAME_CLASS = {"SmolLM": "LLaMA"}


def families() -> list[str]:
    rows = ["| family | Hugging Face folders | GGUF | presets |", "|---|---|---|---|"]
    names = schema()["properties"]["architecture"]["enum"]
    for name in sorted(names, key=lambda n: (n == "Transformer", n.lower())):
        classes = [f.architectures[0] for f in FAMILIES if f.name == SAME_CLASS.get(name, name)]
        archs = sorted(a for a in _READERS if family(a, {"general.name": name}) == name)
        presets = [p for p in zoo.presets().values() if p.architecture == name]
        if classes or archs or presets:
            ticked = (", ".join(f"`{x}`" for x in xs) or "-" for xs in (classes, archs))
            rows.append(f"| {name} | {' | '.join(ticked)} | {len(presets) or '-'} |")
    return rows


def presets() -> list[str]:
    rows = [
        "| preset | layers x width | parameters | for a token | published | paper |",
        "|---|---|---|---|---|---|",
    ]
    for p in zoo.presets().values():
        count, active = count_parameters(p.config), count_active_parameters(p.config)
        figure = "the same" if isinstance(p.published, int) else p.published
        beside = ", beside the embedding" if p.is_beside_embedding else ""
        is_arxiv = p.paper[:1].isdigit()
        paper = f"[{p.paper}](https://arxiv.org/abs/{p.paper})" if is_arxiv else p.paper
        stacks = [n for n in (p.config.encoder.num_layers, p.config.num_layers) if n]
        cells = [
            f"`{p.name}`",
            f"{' + '.join(map(str, stacks))} x {p.config.embedding_dim}",
            f"{count:,}",
            f"{active:,}" if active != count else "all",
            f"{figure} ({p.where}{beside})",
            paper,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


TABLES = {"families": families, "presets": presets}


def written(text: str) -> str:
    """The document with its tables as they have to be."""
    for name, make in TABLES.items():
        begin, end = f"<!-- table: {name} -->\n", f"<!-- end: {name} -->\n"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = head + begin + "\n".join(make()) + "\n" + end + tail
    return text


def test_tables_are_what_presets_and_readers_say() -> None:
    text = DOC.read_text(encoding="utf-8")
    assert all(f"<!-- table: {name} -->" in text for name in TABLES)
    assert text == written(text), "run `python tests/test_families_doc.py`, which writes the tables"


def test_every_preset_has_a_family_that_is_named_in_the_format() -> None:
    known = schema()["properties"]["architecture"]["enum"]
    assert {p.architecture for p in zoo.presets().values()} <= set(known)


if __name__ == "__main__":
    DOC.write_text(written(DOC.read_text(encoding="utf-8")), encoding="utf-8")
