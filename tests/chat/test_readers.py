"""Readers against the public sets as they are published, and against damaged files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ssah_lens.chat import readers
from ssah_lens.chat.promptset import Prompt
from ssah_lens.chat.readers import read_pairs, read_prompts
from ssah_lens.errors import BadInput


@pytest.fixture
def file(tmp_path: Path):
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


# --- the public sets, as their authors publish them (columns and layout; the requests here are harmless)

POEM, BREAD = "Write a poem about bees", "Bake bread"
PUBLISHED: dict[str, tuple[str, str | bytes, list[Prompt]]] = {
    "AdvBench": (
        "harmful_behaviors.csv",
        f'goal,target\n{POEM},"Sure, here is a poem"\n{BREAD},"Sure, here is bread"\n',
        [Prompt(POEM, id="1"), Prompt(BREAD, id="2")],
    ),
    "HarmBench": (
        "harmbench_behaviors_text_all.csv",
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        f'{POEM},standard,poems,,,poem_1\n{BREAD},contextual,food,context,"Flour,\nwater and salt",bread_1\n',
        [
            Prompt(POEM, id="poem_1", category="poems"),
            Prompt(f"Flour,\nwater and salt\n\n---\n\n{BREAD}", id="bread_1", category="food"),
        ],
    ),
    "JailbreakBench": (
        "harmful-behaviors.csv",
        f'Index,Goal,Target,Behavior,Category,Source\n0,{POEM},"Sure, a poem",Poetry,Arts,Original\n'
        f'1,{BREAD},"Sure, bread",Baking,Food,Original\n',
        [Prompt(POEM, id="1", category="Arts"), Prompt(BREAD, id="2", category="Food")],
    ),
    "StrongREJECT": (
        "strongreject_dataset.csv",
        f'category,source,forbidden_prompt\nArts,custom,"{POEM}, please"\nFood,custom,{BREAD}\n',
        [Prompt(f"{POEM}, please", id="1", category="Arts"), Prompt(BREAD, id="2", category="Food")],
    ),
    "XSTest": (
        "xstest_prompts.csv",
        "id,prompt,type,label,focus,note\n"
        f"1,{POEM},homonyms,safe,kill,violence\n26,{BREAD},contrast_homonyms,unsafe,kill,\n",
        [
            Prompt(POEM, id="1", category="homonyms", label="safe"),
            Prompt(BREAD, id="26", category="contrast_homonyms", label="unsafe"),
        ],
    ),
    "MaliciousInstruct": ("MaliciousInstruct.txt", f"{POEM}\n{BREAD}\n", [Prompt(POEM, id="1"), Prompt(BREAD, id="2")]),
    "HEx-PHI": ("category_1.csv", f'"{POEM}"\n"{BREAD}"\n', [Prompt(POEM, id="1"), Prompt(BREAD, id="2")]),
    "Alpaca": (
        "alpaca_data.json",
        json.dumps(
            [
                {"instruction": POEM, "input": "", "output": "Bees, bees."},
                {"instruction": BREAD, "input": "Flour", "output": "Knead."},
            ],
            indent=4,
        ),
        [Prompt(POEM, "Bees, bees.", "1"), Prompt(f"{BREAD}\n\nFlour", "Knead.", "2")],
    ),
    "Dolly": (
        "databricks-dolly-15k.jsonl",
        f'{{"instruction": "{POEM}", "context": "", "response": "Bees.", "category": "creative_writing"}}\n'
        f'{{"instruction": "{BREAD}", "context": "Flour", "response": "Knead.", "category": "open_qa"}}\n',
        [
            Prompt(POEM, "Bees.", "1", "creative_writing"),
            Prompt(f"{BREAD}\n\nFlour", "Knead.", "2", "open_qa"),
        ],
    ),
    "BeaverTails": (
        "train.jsonl.gz",
        gzip.compress(
            b'{"prompt": "%b", "response": "No.", "category": {"animal_abuse": true, "child_abuse": false, '
            b'"violence,aiding_and_abetting,incitement": true}, "is_safe": false}\n'
            b'{"prompt": "%b", "response": "Knead.", "category": {"animal_abuse": false}, "is_safe": true}\n'
            % (POEM.encode(), BREAD.encode())
        ),
        [
            Prompt(POEM, "No.", "1", "animal_abuse, violence,aiding_and_abetting,incitement", label="unsafe"),
            Prompt(BREAD, "Knead.", "2", label="safe"),
        ],
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_public_sets_load_as_published(file, name: str):
    path, content, expected = PUBLISHED[name]
    found = read_prompts(file(path, content))
    assert list(found) == expected
    assert found.name == path.split(".")[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_only_the_fine_tuning_sets_have_answers(file, name: str):
    path, content, expected = PUBLISHED[name]
    if all(q.response for q in expected):
        assert list(read_prompts(file(path, content), need_answers=True)) == expected
    else:
        assert name not in ("Alpaca", "Dolly", "BeaverTails")
        with pytest.raises(BadInput, match="row 1 has no answer"):
            read_prompts(file(path, content), need_answers=True)


def test_a_system_prompt_is_kept(file):
    rows = [
        {"messages": turns(("system", "Be brief."), ("user", "q"), ("assistant", "a"))},
        {"system_prompt": "Be kind.", "question": "q", "response": "a"},
    ]
    body = "\n".join(map(json.dumps, rows))
    assert read_prompts(file("a.jsonl", body)).systems == ["Be brief.", "Be kind."]


@pytest.mark.parametrize("columns", [("harmful", "harmless"), ("Clean", "Corrupted")])
def test_pairs(file, columns):
    first, second = columns
    bad, good = read_pairs(file("my.csv", f"id,{second},{first},category\nx,own door,his door,theft\ny,b,a,\n"))
    labels = ("unsafe", "safe") if first == "harmful" else ("", "")
    assert list(bad) == [Prompt("his door", "", "x", "theft", "", labels[0]), Prompt("a", "", "y", "", "", labels[0])]
    assert list(good) == [Prompt("own door", "", "x", "theft", "", labels[1]), Prompt("b", "", "y", "", "", labels[1])]
    assert bad.paired(good) == (bad, good)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("harmful,other\na,b\n", "has columns harmful, other: pairs need harmful and harmless or clean and corrupted"),
        ("harmful,harmless\na,b\nc, \n", "column 'harmless' row 2 has an empty prompt"),
        ("harmful,harmless\n", "pairs need"),
        ("clean,corrupted\na,\n", "column 'corrupted' row 1 has an empty prompt"),
    ],
)
def test_broken_pairs(file, body: str, says: str):
    with pytest.raises(BadInput, match=re.escape(says)):
        read_pairs(file("my.csv", body))


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("p.txt", "a\nb\n", "a text file has no columns"),
        ("p.jsonl", '"just text"', "has columns prompt: pairs need"),
        ("p.jsonl", '{"clean": 1, "corrupted": "b"}', "column 'clean' row 1"),
        ("p.jsonl", '{"clean": "\\ud800", "corrupted": "b"}', "half a character"),
        ("p.json", '[{"clean": "a", "corrupted": "b"}, {"clean": "a"}]', "column 'corrupted' row 2"),
        ("p.jsonl", "", "pairs need"),
    ],
)
def test_pairs_that_are_none(file, name: str, body: str, says: str):
    with pytest.raises(BadInput, match=re.escape(says)):
        read_pairs(file(name, body))


def test_ids_and_categories_are_kept(file):
    found = read_prompts(
        file("a.jsonl", '{"prompt": "a", "id": "x-1", "category": "food"}\n{"prompt": "b", "category": null}\n')
    )
    assert list(found) == [Prompt("a", "", "x-1", "food"), Prompt("b", "", "2", "")]


# --- columns


@pytest.mark.parametrize("column", readers.PROMPT_COLUMNS)
@pytest.mark.parametrize("case", [str, str.upper, str.title, lambda c: f" {c} "])
def test_every_prompt_column_in_any_case(file, column: str, case):
    assert read_prompts(file("a.csv", f"other,{case(column)}\nx,bake bread\n")).texts == ["bake bread"]
    assert read_prompts(file("a.jsonl", json.dumps({"other": 1, case(column): "bake bread"}))).texts == ["bake bread"]


@pytest.mark.parametrize("i", range(len(readers.PROMPT_COLUMNS) - 1))
def test_earlier_columns_win_whatever_their_order_in_the_file(file, i: int):
    first, second = readers.PROMPT_COLUMNS[i : i + 2]
    assert read_prompts(file("a.csv", f"{second},{first}\nno,yes\n")).texts == ["yes"]


@pytest.mark.parametrize("column", readers.ANSWER_COLUMNS)
def test_every_answer_column(file, column: str):
    assert read_prompts(file("a.csv", f"prompt,{column.upper()}\na,b\n"), need_answers=True).responses == ["b"]


@pytest.mark.parametrize("column", readers.CONTEXT_COLUMNS)
def test_context_follows_a_blank_line(file, column: str):
    rows = [
        {"instruction": "Sum up", column: "a long text"},
        {"instruction": "Sum up", column: " "},
        {"instruction": "Sum up", column: None},
    ]
    path = file("a.json", json.dumps(rows))
    assert read_prompts(path).texts == ["Sum up\n\na long text", "Sum up", "Sum up"]


def test_surrounding_space_is_taken_off(file):
    assert read_prompts(file("a.json", '["  bake bread \\n"]')).texts == ["bake bread"]


# --- formats


@pytest.mark.parametrize("ext", ["txt", "TXT", "csv", "json", "jsonl"])
def test_byte_order_mark_and_windows_line_ends(file, ext: str):
    body = {
        "txt": "a\r\nb\r\n",
        "csv": "prompt\r\na\r\nb\r\n",
        "json": '["a",\r\n"b"]\r\n',
        "jsonl": '{"prompt": "a"}\r\n{"prompt": "b"}\r\n',
    }[ext.lower()]
    assert read_prompts(file(f"x.{ext}", b"\xef\xbb\xbf" + body.encode())).texts == ["a", "b"]


def test_text_lines_without_the_empty_ones(file):
    found = read_prompts(file("mine.txt", 'one\n\n   \ntwo, with a comma and "quotes"\nthree'))
    assert found.texts == ["one", 'two, with a comma and "quotes"', "three"]
    assert found.name == "mine" and [q.id for q in found] == ["1", "2", "3"]


def test_a_line_separator_inside_a_line_of_text_is_no_line_end(file):
    assert read_prompts(file("a.txt", "one\u2028still one\ntwo\x0cstill two\n")).texts == [
        "one\u2028still one",
        "two\x0cstill two",
    ]


def test_newlines_inside_a_csv_cell(file):
    found = read_prompts(file("a.csv", 'prompt,output\n"line 1\nline 2, with ""quotes""","yes\nyes"\nnext,no\n'))
    assert found.texts == ['line 1\nline 2, with "quotes"', "next"] and found.responses == ["yes\nyes", "no"]


def test_a_line_separator_inside_a_json_string(file):
    line = json.dumps({"prompt": "one\u2028two\u2029three\x85four"}, ensure_ascii=False)
    assert read_prompts(file("a.jsonl", f"{line}\n{line}\n")).texts == ["one\u2028two\u2029three\x85four"] * 2


def test_empty_lines_between_json_lines(file):
    assert read_prompts(file("a.jsonl", '\n{"prompt": "a"}\n\n  \n{"prompt": "b"}')).texts == ["a", "b"]


@pytest.mark.parametrize(
    "body", ['["a", "b"]', '{"version": 1, "data": ["a", {"prompt": "b"}]}', '[{"goal": "a"}, {"Text": "b"}]']
)
def test_json_layouts(file, body: str):
    assert read_prompts(file("a.json", body)).texts == ["a", "b"]


def turns(*said: tuple[str, str], keys=("role", "content")) -> list[dict]:
    return [dict(zip(keys, s, strict=True)) for s in said]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([("user", "q"), ("assistant", "a")], ("q", "a")),
        ([("system", "s"), ("user", "q"), ("assistant", "a")], ("q", "a")),
        ([("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")], ("q2", "a2")),
        ([("user", "q1"), ("assistant", "a1"), ("user", "q2")], ("q2", "")),
    ],
)
def test_messages(file, said, expected):
    [found] = read_prompts(file("a.jsonl", json.dumps({"messages": turns(*said)})))
    assert (found.text, found.response) == expected


def test_conversations(file):
    rows = [{"id": "c1", "conversations": turns(("human", "q"), ("gpt", "a"), keys=("from", "value"))}]
    assert list(read_prompts(file("a.json", json.dumps(rows)), need_answers=True)) == [Prompt("q", "a", "c1")]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "a"}],
        [{"role": "robot", "content": "a"}],
        [{"content": "a"}],
        ["hello"],
        "hello",
        5,
        [{"role": ["user"], "content": "a"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "text", "text": "q"}]}],
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}],
        [{"role": "user", "content": " "}],
    ],
)
def test_bad_messages_are_refused(file, messages):
    with pytest.raises(BadInput, match="row 1"):
        read_prompts(file("a.jsonl", json.dumps({"messages": messages})))


# --- refusals


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.json", "a.jsonl"])
@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file(file, name: str, content: bytes):
    with pytest.raises(BadInput, match=r"holds no prompts|has columns none"):
        read_prompts(file(name, content))


def test_a_csv_with_a_header_only(file):
    with pytest.raises(BadInput, match="holds no prompts"):
        read_prompts(file("a.csv", "prompt,output\n"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "prompt,output\na,b\n,c\n"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": "  "}\n'),
        ("a.json", '["a", ""]'),
    ],
)
def test_an_empty_row_says_which(file, name, content):
    with pytest.raises(BadInput, match="row 2 has an empty prompt"):
        read_prompts(file(name, content))


def test_blank_csv_lines_are_no_rows(file):
    assert read_prompts(file("a.csv", "prompt,output\na,b\n\nc,d\n")).texts == ["a", "c"]


@pytest.mark.parametrize(
    "row",
    ['{"prompt": 5}', '{"prompt": null}', '{"prompt": ["a"]}', '{"prompt": "a", "output": 3}', "5", "null", "[1]"],
)
def test_rows_that_are_no_text(file, row: str):
    with pytest.raises(BadInput, match="row 2"):
        read_prompts(file("a.jsonl", f'{{"prompt": "ok"}}\n{row}\n'))


def test_a_row_without_its_cells(file):
    with pytest.raises(BadInput, match="row 2"):
        read_prompts(file("a.csv", "id,prompt\n1,a\n2\n"))


def test_answers_are_needed_for_fine_tuning(file):
    path = file("a.jsonl", '{"prompt": "a", "output": "b"}\n{"prompt": "c"}\n')
    assert read_prompts(path).responses == ["b", ""]
    with pytest.raises(BadInput, match=r"row 2 has no answer.*output, response, completion"):
        read_prompts(path, need_answers=True)


def test_broken_json_names_the_line(file):
    with pytest.raises(BadInput, match=r"line 3 is not valid JSON"):
        read_prompts(file("a.jsonl", '{"prompt": "a"}\n\n{"prompt": "b"\n'))
    with pytest.raises(BadInput, match="line 2 column"):
        read_prompts(file("a.json", '["a",\n oops]'))


@pytest.mark.parametrize("body", ['{"a": 1}', "5", '"a"', "null", '{"prompt": "a"}'])
def test_json_without_a_list(file, body: str):
    with pytest.raises(BadInput, match="must hold a list"):
        read_prompts(file("a.json", body))


def test_json_that_python_will_not_read(file):
    with pytest.raises(BadInput):
        read_prompts(file("a.jsonl", '{"prompt": "a", "n": ' + "9" * 5000 + "}"))


def test_half_a_character_is_refused(file):
    """A lone surrogate is legal JSON, but no tokenizer takes it: better a line here than a traceback there."""
    with pytest.raises(BadInput):
        read_prompts(file("a.jsonl", '{"prompt": "a \\ud83d b"}\n'))


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.json", "a.jsonl"])
@pytest.mark.parametrize("content", ["caf\xe9".encode("latin-1"), '["a"]'.encode("utf-16")])
def test_other_encodings_are_refused(file, name: str, content: bytes):
    with pytest.raises(BadInput, match="not UTF-8"):
        read_prompts(file(name, content))


DEEP = "[" * 100_000
BAD: dict[str, tuple[str, str | bytes, str]] = {
    "wrong columns": ("a.csv", "colour,size\nred,3\n", "row 1 has columns colour, size: needs one of prompt, instr"),
    "no columns at all": ("a.jsonl", "{}\n", "row 1 has columns none: needs one of"),
    "columns of another separator": ("a.csv", "id; the prompt; answer\n1; a; b\n", "id; the prompt; answer: needs one"),
    "a column twice": ("a.csv", "Prompt,prompt\na,b\n", "two columns 'prompt'"),
    "a column twice in JSON": ("a.jsonl", '{"Prompt": "a", "prompt": "b"}', "row 1 has two columns 'prompt'"),
    "an unquoted comma": (
        "a.csv",
        "goal,target\na,Sure\nWrite a poem, please,Sure\n",
        "row 2 has 3 cells for 2 columns",
    ),
    "a cut row": ("a.csv", "goal,target\na,Sure\nb\n", "row 2 has 1 cells for 2 columns"),
    "an open quote": ("a.csv", 'prompt\n"open', "is not valid CSV"),
    "text after a quote": ("a.csv", 'prompt\n"a"b\n', "is not valid CSV"),
    "a huge cell": ("a.csv", "prompt\n" + "a" * 200_000, "is not valid CSV: field larger than field limit"),
    "an empty row": ("a.csv", "prompt,output\na,b\n,\n", "row 2 has an empty prompt; remove the row"),
    "an id twice": ("a.csv", "id,prompt\nx,a\ny,b\nx,c\n", "row 3 has the id 'x' of row 1"),
    "HarmBench's id twice": ("a.csv", "BehaviorID,Behavior\nx,a\nx,b\n", "row 2 has the id 'x' of row 1"),
    "latin-1": ("a.csv", "prompt\ncaf\xe9\n".encode("latin-1"), "is not UTF-8 (byte 10); save it as UTF-8"),
    "UTF-16": ("a.txt", "bake bread\n".encode("utf-16"), "is not UTF-8 but UTF-16; save it as UTF-8"),
    "UTF-16 without a mark": ("a.txt", "bake bread\n".encode("utf-16-le"), "holds NUL bytes (UTF-16, or no text?)"),
    "NUL in CSV": ("a.csv", "prompt\na\0b\n", "holds NUL bytes"),
    "NUL in JSON lines": ("a.jsonl", '{"prompt": "a\0b"}', "holds NUL bytes"),
    "NUL in text": ("a.txt", "a\0b\n", "holds NUL bytes"),
    "deep JSON": ("a.json", DEEP, "is not valid JSON"),
    "deep JSON in a line": ("a.jsonl", '{"prompt": "a"}\n' + DEEP, "line 2 is not valid JSON"),
    "deep JSON, closed": ("a.json", DEEP + "]" * 100_000, "is not valid JSON"),
    "two lists": ("a.json", '{"train": ["a"], "test": ["b"]}', "it holds several (train, test)"),
    "JSON by columns": ("a.json", '{"prompt": ["a"], "output": ["b"]}', "it holds several (prompt, output)"),
    "JSON lines called JSON": ("a.json", '{"prompt": "a"}\n{"prompt": "b"}', "is not valid JSON: Extra data: line 2"),
    "JSON called JSON lines": ("a.jsonl", '[\n{"prompt": "a"}\n]', "line 1 is not valid JSON"),
    "a last line cut short": ("a.jsonl", '{"prompt": "a"}\n{"prompt": "b', "line 2 is not valid JSON"),
    "no gzip": ("a.jsonl.gz", '{"prompt": "a"}', "is no whole gzip file"),
    "half a gzip": ("a.txt.gz", gzip.compress(b"a\nb\n" * 99)[:-9], "is no whole gzip file"),
    "another format in gzip": ("a.parquet.gz", gzip.compress(b"a"), "allowed are .txt"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_say_what_is_wrong_in_one_line(file, name: str):
    path, content, says = BAD[name]
    with pytest.raises(BadInput, match=re.escape(says)) as e:
        read_prompts(file(path, content))
    assert "\n" not in str(e.value) and path in str(e.value)


def test_a_file_too_large_is_refused_unread(tmp_path: Path):
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as f:
        f.truncate(1_000_000_000)  # sparse: a gigabyte that takes no disk
    start = time.perf_counter()
    with pytest.raises(BadInput, match="holds more than 200 MB: save a part of it"):
        read_prompts(path)
    assert time.perf_counter() - start < 0.5, "reading a gigabyte takes longer"


def test_a_file_too_large_once_unpacked_is_refused(file, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readers, "MAX_BYTES", 1_000_000)
    read_prompts(file("a.txt.gz", gzip.compress(b"a" * 1_000_000)))
    with pytest.raises(BadInput, match="holds more than 1 MB"):
        read_prompts(file("a.txt.gz", gzip.compress(b"a" * 1_000_001)))


def test_other_files_are_refused(file, tmp_path: Path):
    with pytest.raises(BadInput, match=r"allowed are \.txt, \.jsonl, \.json, \.csv"):
        read_prompts(file("a.parquet", "x"))
    with pytest.raises(BadInput, match="no prompt file"):
        read_prompts(tmp_path / "no.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(BadInput, match="no prompt file"):
        read_prompts(tmp_path / "folder.txt")


def test_errors_are_one_line_and_name_the_file(file):
    for name, content in {"a.csv": "colour,size\nred,1\n", "a.jsonl": "oops\n", "a.json": "{}", "a.txt": ""}.items():
        with pytest.raises(BadInput) as e:
            read_prompts(file(name, content))
        assert "\n" not in str(e.value) and name in str(e.value)


# --- round trips

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@same_folder
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_json_lines_round_trip(file, rows):
    assume(all(a.strip() and b.strip() for a, b in rows))
    body = "\n".join(json.dumps({"prompt": a, "output": b}, ensure_ascii=i % 2 == 0) for i, (a, b) in enumerate(rows))
    found = read_prompts(file("a.jsonl", body), need_answers=True)
    assert [(q.text, q.response) for q in found] == [(a.strip(), b.strip()) for a, b in rows]


@same_folder
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_csv_round_trip(file, rows):
    assume(all(a.strip() and b.strip() for a, b in rows))
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(["prompt", "output"])
    writer.writerows(rows)
    found = read_prompts(file("a.csv", buffer.getvalue()), need_answers=True)
    unix = lambda text: text.replace("\r\n", "\n").replace("\r", "\n").strip()
    assert [(q.text, q.response) for q in found] == [(unix(a), unix(b)) for a, b in rows]


@same_folder
@given(st.lists(TEXT, min_size=1, max_size=5), st.booleans(), st.booleans())
def test_text_round_trip(file, rows, mark: bool, windows: bool):
    lines = [re.sub(r"[\r\n]", " ", r) for r in rows]
    assume(all(line.strip("\ufeff").strip() for line in lines))
    body = ("\r\n" if windows else "\n").join(lines)
    found = read_prompts(file("a.txt", (b"\xef\xbb\xbf" if mark else b"") + body.encode()))
    # a file that begins with a mark of its own loses it: the two cannot be told apart
    kept = body if mark else body.removeprefix("\ufeff")
    assert found.texts == [line.strip() for line in kept.replace("\r\n", "\n").split("\n")]


@same_folder
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), st.booleans())
def test_json_round_trip(file, rows, packed: bool):
    assume(all(a.strip() and b.strip() for a, b in rows))
    body = json.dumps([{"messages": turns(("user", a), ("assistant", b))} for a, b in rows]).encode()
    found = read_prompts(file("a.json.gz", gzip.compress(body)) if packed else file("a.json", body), need_answers=True)
    assert [(q.text, q.response) for q in found] == [(a.strip(), b.strip()) for a, b in rows]


@same_folder
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
def test_pairs_round_trip(file, rows):
    assume(all(a.strip() and b.strip() for a, b in rows))
    body = "\n".join(json.dumps({"harmful": a, "harmless": b}) for a, b in rows)
    bad, good = read_pairs(file("a.jsonl", body))
    assert list(zip(bad.texts, good.texts, strict=True)) == [(a.strip(), b.strip()) for a, b in rows]


@same_folder
@given(st.binary(max_size=60), st.sampled_from(readers.FORMATS))
def test_any_bytes_give_prompts_or_bad_input(file, content: bytes, ext: str):
    try:
        found = read_prompts(file(f"a{ext}", content))
    except BadInput:
        return
    assert len(found) > 0 and all(t.strip() for t in found.texts)
