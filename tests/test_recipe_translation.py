"""The pairs of `experiments/translation`: paragraphs by their place, verses without their marks."""

import importlib.util
from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parents[1] / "experiments" / "translation" / "data.py"
PAGE = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "x.dtd">
<html xmlns="http://www.w3.org/1999/xhtml"><head><link rel="up" href="{up}" /></head><body>
{body}</body></html>"""
VERSE = (
    '<div type="x-milestone" sID="1"/><title type="psalm">A Psalm by <w>David</w>.</title>'
    '<l level="1" sID="2"/><div type="x-milestone" eID="1"/>“<w lemma="strong:H0430">God</w>'
    '<note placement="foot"><reference>1:1 </reference>Or, gods.</note><w>cre</w>ated'
    '<l eID="2"/> <w>the earth</w>.”<q who="x"/>'
)


@pytest.fixture(scope="module")
def data():
    spec = importlib.util.spec_from_file_location("translation_data", RECIPE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def paragraph(text: str) -> str:
    return f'<div class="para">\n\t{text}\n</div>'


def write(folder: Path, language: str, *paragraphs: str, up: str = "apt.html") -> None:
    (folder / language).mkdir(exist_ok=True)
    text = PAGE.format(up=up, body="".join(map(paragraph, paragraphs)))
    (folder / language / "sect.html").write_text(text, "utf-8")


def test_paragraphs_are_paired_by_place(data, tmp_path):
    listing = 'See:<div class="list"><pre>ls</pre></div>'
    english = ("The <code>apt</code>\n\t command.", listing, "Nobody did this one.", "Read it.")
    write(tmp_path, "en-US", *english)
    write(tmp_path, "zh-CN", "<code>apt</code> 命令很好。", listing, english[2], "请读。")
    assert list(data.handbook(tmp_path)) == [
        ("apt.html", "The apt command.", "apt 命令很好。"),
        ("apt.html", "Read it.", "请读。"),
    ]


def test_a_chapters_first_page_is_its_own_chapter(data, tmp_path):
    write(tmp_path, "en-US", "Read it.", up="index.html")
    write(tmp_path, "zh-CN", "请读。", up="index.html")
    assert [pair.part for pair in data.handbook(tmp_path)] == ["sect.html"]


def test_pages_of_other_shapes_are_refused(data, tmp_path):
    write(tmp_path, "en-US", "One.", "Two.")
    write(tmp_path, "zh-CN", "一。")
    with pytest.raises(SystemExit, match=r"sect.html: 2 paragraphs, Chinese 1"):
        list(data.handbook(tmp_path))


def test_a_verse_keeps_its_words_alone(data):
    assert data.verse(VERSE) == "“God created the earth.”"


def test_no_text_is_on_both_sides(data):
    same = "The same words in two books, of some length."
    pairs = [
        data.Pair("Ruth", same, "Las mismas palabras."),
        data.Pair("Gen", same, "Otras palabras."),
        data.Pair("Gen", same.replace("two", "all"), "Las mismas palabras."),
        data.Pair("Gen", same.replace("two", "six"), "Unas palabras."),
        data.Pair("Gen", "Too short.", "Corto."),
    ]
    train, held = data.split(pairs, {"Ruth"})
    assert held == [pairs[0]]
    assert train == [pairs[3]]
