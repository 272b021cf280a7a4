"""Records: their shapes, where they stand, on which side, and what is said of wrong ones."""

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from llmasos_jax.config.schema import DataConfig
from llmasos_jax.data.records.read import Record, read_records
from llmasos_jax.data.records.shapes import dialogues, preferences
from llmasos_jax.data.records.sides import read_sides
from llmasos_jax.errors import ConfigError, DataError

Json = dict[str, Any]


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def bot(text: str) -> Json:
    return {"role": "assistant", "content": text}


def jsonl(folder: Path, *rows: Json | str, name: str = "a.jsonl") -> DataConfig:
    """A config of a file with these lines."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return DataConfig(source="jsonl", path=str(folder / name))


TURNS = [user("Hi"), bot("Yes")]
READ: dict[str, tuple[Json, list[Json]]] = {
    "messages": ({"messages": TURNS, "id": 7}, TURNS),
    "sharegpt": (
        {
            "conversations": [
                {"from": "system", "value": "S"},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Yes"},
            ]
        },
        [{"role": "system", "content": "S"}, *TURNS],
    ),
    "completion": ({"prompt": "Hi", "completion": "Yes", "source": "me"}, TURNS),
    "alpaca": ({"instruction": "Hi", "input": "", "output": "Yes"}, TURNS),
    "alpaca, input": (
        {"instruction": "Hi", "input": "all", "output": "Yes"},
        [user("Hi\n\nall"), bot("Yes")],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_shapes(name: str, tmp_path: Path) -> None:
    record, turns = READ[name]
    found = dialogues(read_records(jsonl(tmp_path, "", record)))
    assert [list(dialogue.messages) for dialogue in found] == [turns]
    assert found[0].where == f"{tmp_path}/a.jsonl:2"


ASKED = [{"role": "system", "content": "S"}, user("a"), bot("b"), user("c")]


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": "c", "chosen": "Yes", "rejected": "No"}, [user("c")]),
        ({"prompt": ASKED, "chosen": [bot("Yes")], "rejected": [bot("No")]}, ASKED),
        ({"prompt": ASKED, "chosen": "Yes", "rejected": [*ASKED, bot("No")]}, ASKED),
        ({"prompt": "c", "chosen": [user("c"), bot("Yes")], "rejected": [bot("No")]}, [user("c")]),
    ],
)
def test_preferences(record: Json, prompt: list[Json]) -> None:
    pair = preferences([Record(record, "a:1")])[0]
    assert list(pair.chosen.messages) == [*prompt, bot("Yes")]
    assert list(pair.rejected.messages) == [*prompt, bot("No")]


WRONG: list[tuple[Json | str, str]] = [
    ("{", 'not JSON (Expecting property name enclosed in double quotes: line 2 co...); write one'
          ' object per line, as json.dumps does'),
    ("[1]", "a JSON list; expected one object per line"),
    ('{"prompt": "a", "prompt": "b"}', 'the key "prompt" stands twice; take one out'),
    (
        {"prompt": "Hi"},
        'it has "prompt" and no "completion"; expected {"prompt", "completion"}: add it',
    ),
    (
        {"text": "Hi"},
        'its keys ("text") are none that are read; expected one of {"messages"}, '
        '{"conversations"}, {"prompt", "completion"}, {"instruction", "output", "input"?}, '
        '{"prompt", "chosen", "rejected"}',
    ),
    (
        {"messages": TURNS, "tools": []},
        '"tools" is not read; a record of {"messages"} has these keys, and may have id, idx, index,'
        ' source, dataset, category, language, meta, metadata: take it out, or put it into '
        '"metadata"',
    ),
    (
        {"prompt": "Hi", "completion": "Yes"},
        'a record of {"prompt", "completion"}, and FOLDER/a.jsonl:1 is one of {"messages"}; keep '
        "one shape in a data set",
    ),
    (
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
        'a record of {"prompt", "chosen", "rejected"}; this objective reads {"messages"} or '
        '{"conversations"} or {"prompt", "completion"} or {"instruction", "output", "input"?}: '
        'set objective.name="dpo", or write it so',
    ),
    (
        {"messages": []},
        "messages is an empty conversation; expected messages that end with the assistant's: take "
        "the record out",
    ),
    (
        {"messages": "Hi"},
        'messages is a text; expected a list of messages, such as {"role": "assistant", "content": '
        '"..."}',
    ),
    (
        {"messages": ["Hi"]},
        'messages[0] is a text; expected {"role": ..., "content": ...}',
    ),
    (
        {"messages": [user("Hi")]},
        "the last message of messages is the user's; the model learns to write the assistant's: "
        "end with one of the assistant",
    ),
    (
        {"messages": [user("Hi"), user("you"), bot("Yes")]},
        "messages[1] is the user's, as the one before it; roles take turns: join the two, or put "
        "in what is missing",
    ),
    (
        {"messages": [user("Hi"), {"role": "system", "content": "S"}, bot("Yes")]},
        "messages[1] is the system's; it stands first, or not at all: move it",
    ),
    (
        {"messages": [{"role": "human", "content": "Hi"}, bot("Yes")]},
        'messages[0].role is "human", which is no role; known: assistant, system, user',
    ),
    (
        {"messages": [{"role": "user"}, bot("Yes")]},
        'messages[0] has no "content"; expected {"role": ..., "content": ...}',
    ),
    (
        {"messages": [user("Hi"), {**bot("Yes"), "weight": 0}]},
        'messages[1] has "weight", which is not read; a message is {"role": ..., "content": ...}: '
        "take it out",
    ),
    (
        {"messages": [user("Hi"), {"role": "assistant", "content": ["Yes"]}]},
        "messages[1].content is a list; expected a text: write it as one",
    ),
    (
        {"messages": [user("Hi"), {"role": "assistant", "content": None}]},
        "messages[1].content is null; expected a text: write it as one",
    ),
    (
        {"messages": [user("Hi"), bot(" \n")]},
        "messages[1].content has no text in it; write some, or take the record out",
    ),
    (
        '{"messages": [{"role": "user", "content": "\\ud800"}]}',
        "messages[0].content holds half of a surrogate pair at character 0; take it out",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("row", "said"), WRONG)
def test_a_wrong_record_is_named_with_its_line(row: Json | str, said: str, tmp_path: Path) -> None:
    data = jsonl(tmp_path, {"messages": TURNS}, row)
    with pytest.raises(DataError) as error:
        dialogues(read_records(data))
    expected = f"{tmp_path}/a.jsonl:2: {said}".replace("FOLDER", str(tmp_path))
    if row == "{":  # JSON's own words differ between versions of Python
        assert str(error.value).startswith(f"{tmp_path}/a.jsonl:2: not JSON (")
        assert str(error.value).endswith("; write one object per line, as json.dumps does")
    else:
        assert str(error.value) == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"rejected": "Yes"},
            '"chosen" and "rejected" are equal, so there is nothing to prefer; take the record out',
        ),
        (
            {"chosen": TURNS},
            'chosen has 2 messages after "prompt"; expected one, the assistant\'s: put those before'
            ' it into "prompt"',
        ),
        (
            {"prompt": TURNS},
            "the last message of prompt is the assistant's; the model answers the user's: end with "
            "one of the user",
        ),
        (
            {"rejected": 3},
            'rejected is a number; expected a list of messages, such as {"role": "assistant", '
            '"content": "..."}, or a text',
        ),
    ],
)
def test_a_wrong_preference(change: Json, said: str) -> None:
    record = {"prompt": "Why", "chosen": "Yes", "rejected": "No", **change}
    with pytest.raises(DataError) as error:
        preferences([Record(record, "a:1")])
    assert str(error.value) == f"a:1: {said}"


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not UTF-8: byte 0xff; convert"):
        read_records(DataConfig(source="jsonl", path=str(tmp_path)))


def test_a_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "a", "completion": "b"}\n'))
    with pytest.raises(DataError) as error:
        read_records(DataConfig(source="jsonl", path=str(path)))
    assert str(error.value) == f"{path}:1: the file is compressed; gunzip it"


def test_text_is_not_records_and_nothing_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='data.source="stdlib" is text, and this objective'):
        read_records(DataConfig())
    with pytest.raises(DataError, match="has no record; expected at least one"):
        read_records(jsonl(tmp_path, "", ""))


def test_parquet_is_read_like_lines_and_null_is_absent(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"instruction": "a", "input": None, "output": "b", "metadata": {"k": 1}},
        {"instruction": "c", "input": "d", "output": "e", "metadata": None},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read_records(DataConfig(source="parquet", path=str(tmp_path)))
    assert [dict(record.values) for record in found] == [
        {"instruction": "a", "output": "b"},
        {"instruction": "c", "input": "d", "output": "e"},
    ]
    assert found[1].where == f"{tmp_path}/a.parquet:2"


GIVEN = [{"prompt": f"p{i % 40}", "completion": "c", "id": i} for i in range(50)]


def given(data: DataConfig) -> list[Json]:
    return GIVEN


def test_sides_depend_on_the_record_not_on_its_place(tmp_path: Path) -> None:
    data = DataConfig(source="test_records:given", heldout_fraction=0.25)
    sides = read_sides(data)
    assert sorted(sides.train + sides.heldout) == list(range(50))
    assert sides.records[49].where == "test_records:given:50"
    named = lambda side, found: {dict(found.records[i].values)["prompt"] for i in side}
    train, heldout = named(sides.train, sides), named(sides.heldout, sides)
    assert (
        len(heldout) == 10 and not train & heldout
    )  # equal ones, whatever their id, stay together
    back = read_sides(dataclasses.replace(jsonl(tmp_path, *GIVEN[::-1]), heldout_fraction=0.25))
    assert named(back.heldout, back) == heldout
    order = lambda found: [dict(found.records[i].values)["prompt"] for i in found.train]
    assert order(back) == order(sides) != sorted(order(sides))


def test_a_file_of_its_own_is_held_out_and_what_is_in_both_is_not_trained_on(
    tmp_path: Path,
) -> None:
    data = jsonl(tmp_path, *GIVEN[:6])
    jsonl(tmp_path, GIVEN[2], GIVEN[45], name="b.jsonl")
    data = dataclasses.replace(data, heldout_path=str(tmp_path / "b.jsonl"))
    sides = read_sides(data)
    assert sorted(sides.train) == [0, 1, 3, 4]  # 45 is equal to 5
    assert sorted(sides.heldout) == [6, 7] and sides.counts == {"held out, too": 2}
    with pytest.raises(DataError, match="hold out others than those that are trained on"):
        read_sides(dataclasses.replace(data, heldout_path=data.path))


def test_heldout_records_are_shuffled_once(tmp_path: Path) -> None:
    """A sorted file: the first batch of an evaluation has of both kinds, whatever the order."""
    rows = [{"prompt": f"{kind}{i:02d}", "completion": "x"} for kind in "ab" for i in range(40)]
    apart = [{"prompt": f"{kind}{i:02d}", "completion": "y"} for kind in "ab" for i in range(10)]

    def prompts(rows: list[Json], apart: list[Json] | None = None) -> list[str]:
        data = dataclasses.replace(jsonl(tmp_path, *rows), heldout_fraction=0.25)
        if apart is not None:
            jsonl(tmp_path, *apart, name="b.jsonl")
            data = dataclasses.replace(data, heldout_path=str(tmp_path / "b.jsonl"))
        sides = read_sides(data)
        return [dict(sides.records[i].values)["prompt"] for i in sides.heldout]

    for first, back in (
        (prompts(rows), prompts(rows[::-1])),
        (prompts(rows, apart), prompts(rows, apart[::-1])),
    ):
        assert len(first) == 20 and first == back != sorted(first)
        assert {prompt[0] for prompt in first[:6]} == {"a", "b"}
