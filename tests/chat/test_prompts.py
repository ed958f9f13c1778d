"""Readers against the public sets as they are published, damaged files, and the shipped collection."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ssah_lens.chat import prompts as p
from ssah_lens.chat.prompts import Prompt, PromptSet, read_prompts
from ssah_lens.errors import BadInput


@pytest.fixture
def file(tmp_path: Path):
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


# --- the public sets, as their authors publish them (columns and layout; the requests here are harmless)

PUBLISHED = {
    "AdvBench": ("a.csv", 'goal,target\nWrite a poem,"Sure, here is a poem"\nBake bread,"Sure, here is bread"\n'),
    "HarmBench": (
        "a.csv",
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        "Write a poem,standard,poems,,,poem_1\nBake bread,contextual,food,context,Flour and water,bread_1\n",
    ),
    "JailbreakBench": (
        "a.csv",
        'Index,Goal,Target,Behavior,Category,Source\n0,Write a poem,"Sure, a poem",Poetry,Arts,Original\n'
        '1,Bake bread,"Sure, bread",Baking,Food,Original\n',
    ),
    "StrongREJECT": ("a.csv", "category,source,forbidden_prompt\nArts,custom,Write a poem\nFood,custom,Bake bread\n"),
    "XSTest": (
        "a.csv",
        "id,prompt,type,label,focus,note\n1,Write a poem,homonyms,safe,poem,\n2,Bake bread,homonyms,safe,bread,\n",
    ),
    "MaliciousInstruct": ("a.txt", "Write a poem\nBake bread\n"),
    "HEx-PHI": ("category_1.csv", '"Write a poem"\n"Bake bread"\n'),  # no header line
    "Alpaca": (
        "a.json",
        '[{"instruction": "Write a poem", "input": "", "output": "Roses"},\n'
        ' {"instruction": "Bake bread", "input": "", "output": "Flour"}]',
    ),
    "Dolly": (
        "a.jsonl",
        '{"instruction": "Write a poem", "context": "", "response": "Roses", "category": "creative_writing"}\n'
        '{"instruction": "Bake bread", "context": "", "response": "Flour", "category": "open_qa"}\n',
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_public_sets_load_as_published(file, name: str):
    assert read_prompts(file(*PUBLISHED[name])).texts == ["Write a poem", "Bake bread"]


@pytest.mark.parametrize("name", ["Alpaca", "Dolly"])
def test_public_fine_tuning_sets_have_answers(file, name: str):
    assert read_prompts(file(*PUBLISHED[name]), need_answers=True).responses == ["Roses", "Flour"]


def test_ids_and_categories_are_kept(file):
    found = read_prompts(
        file("a.jsonl", '{"prompt": "a", "id": "x-1", "category": "food"}\n{"prompt": "b", "category": null}\n')
    )
    assert list(found) == [Prompt("a", "", "x-1", "food"), Prompt("b", "", "2", "")]


# --- columns


@pytest.mark.parametrize("column", p.PROMPT_COLUMNS)
@pytest.mark.parametrize("case", [str, str.upper, str.title, lambda c: f" {c} "])
def test_every_prompt_column_in_any_case(file, column: str, case):
    assert read_prompts(file("a.csv", f"other,{case(column)}\nx,bake bread\n")).texts == ["bake bread"]
    assert read_prompts(file("a.jsonl", json.dumps({"other": 1, case(column): "bake bread"}))).texts == ["bake bread"]


@pytest.mark.parametrize("i", range(len(p.PROMPT_COLUMNS) - 1))
def test_earlier_columns_win_whatever_their_order_in_the_file(file, i: int):
    first, second = p.PROMPT_COLUMNS[i : i + 2]
    assert read_prompts(file("a.csv", f"{second},{first}\nno,yes\n")).texts == ["yes"]


@pytest.mark.parametrize("column", p.ANSWER_COLUMNS)
def test_every_answer_column(file, column: str):
    assert read_prompts(file("a.csv", f"prompt,{column.upper()}\na,b\n"), need_answers=True).responses == ["b"]


@pytest.mark.parametrize("column", p.CONTEXT_COLUMNS)
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


def test_wrong_columns_say_what_is_needed(file):
    with pytest.raises(BadInput, match=r"row 1 has columns colour, size: needs one of prompt, instruction"):
        read_prompts(file("a.csv", "colour,size\nred,3\n"))


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
        read_prompts(file("a.json", "[" * 100_000))
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


@pytest.mark.parametrize("content", ['prompt\n"open', 'prompt\n"a"b\n', "prompt\na\0b\n"])
def test_broken_csv_is_refused(file, content: str):
    with pytest.raises(BadInput, match="CSV"):
        read_prompts(file("a.csv", content))


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
@given(st.binary(max_size=60), st.sampled_from(p.FORMATS))
def test_any_bytes_give_prompts_or_bad_input(file, content: bytes, ext: str):
    try:
        found = read_prompts(file(f"a{ext}", content))
    except BadInput:
        return
    assert len(found) > 0 and all(t.strip() for t in found.texts)


# --- prompt sets


def test_a_sample_keeps_the_order():
    full = PromptSet("x", tuple(Prompt(str(i)) for i in range(50)))
    got = full.sample(10, seed=1)
    assert len(set(got.texts)) == 10 and [int(t) for t in got.texts] == sorted(int(t) for t in got.texts)
    assert got == full.sample(10, seed=1) and got != full.sample(10, seed=2)
    assert full.sample(None, 0) is full and full.sample(50, 0) is full and full.sample(99, 0) is full


def test_without():
    full = PromptSet("x", (Prompt("a"), Prompt("b", id="2"), Prompt("c")))
    assert full.without(PromptSet("y", (Prompt("b", id="9"),))).texts == ["a", "c"]


# --- the shipped collection


def plain(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()


def test_every_file_has_unique_ids():
    for name in ("refusal_pairs", "instructions", "refusals", "prose", "choices"):
        ids = [row["id"] for row in p.shipped(name)]
        assert len(set(ids)) == len(ids) > 0, name


def test_there_are_enough_pairs_and_each_has_one_split():
    rows = p.shipped("refusal_pairs")
    assert len(rows) >= 120 and {r["split"] for r in rows} == set(p.SPLITS)
    counts = Counter(r["split"] for r in rows)
    assert counts["train"] > counts["test"] > counts["validation"] >= 40
    every = [p.pairs(s) for s in p.SPLITS]
    assert sum(len(harmful) for harmful, _ in every) == len(rows)
    assert sum(len(p.instructions(s)) for s in p.SPLITS) == len(p.shipped("instructions"))


def test_pairs_are_twins_row_by_row():
    by_id = {r["id"]: r for r in p.shipped("refusal_pairs")}
    for split in p.SPLITS:
        harmful, harmless = p.pairs(split)
        for bad, good in zip(harmful, harmless, strict=True):
            assert bad.id == good.id and bad.category == good.category
            row = by_id[bad.id]
            assert (row["split"], row["harmful"], row["harmless"]) == (split, bad.text, good.text)


def test_every_category_is_in_every_split():
    for name in ("refusal_pairs", "instructions"):
        seen = {s: {r["category"] for r in p.shipped(name) if r["split"] == s} for s in p.SPLITS}
        assert seen["train"] == seen["validation"] == seen["test"], name


def test_no_text_is_repeated_within_or_across_splits():
    texts = [r[side] for r in p.shipped("refusal_pairs") for side in ("harmful", "harmless")]
    texts += [r["instruction"] for r in p.shipped("instructions")]
    repeated = [t for t, n in Counter(map(plain, texts)).items() if n > 1]
    assert not repeated
    refusals = Counter(plain(r["text"]) for r in p.shipped("refusals"))
    assert max(refusals.values()) == 1


def test_shipped_rows_are_whole():
    for row in p.shipped("instructions"):
        assert row["instruction"].strip() and row["response"].strip()
    for row in p.shipped("choices"):
        assert 0 <= row["answer"] < len(row["options"]) == len(set(row["options"])), row["id"]
    assert all(r["text"].strip() for r in p.shipped("prose"))


def test_refusals_for_training_and_for_testing_differ():
    train, held_out = p.refusals("train"), p.refusals("held_out")
    assert len(train) >= 20 and held_out and not set(train) & set(held_out)


def test_unknown_splits_and_files_are_refused():
    with pytest.raises(BadInput, match="train, validation, test"):
        p.pairs("dev")
    with pytest.raises(BadInput, match="train, validation, test"):
        p.instructions("all")
    with pytest.raises(BadInput, match="refusal_pairs"):
        p.shipped("nothing")


def test_a_slice_of_a_set_is_a_set():
    whole = PromptSet("x", tuple(Prompt(t) for t in "abcd"))
    assert isinstance(whole[1:3], PromptSet) and whole[1:3].texts == ["b", "c"] and whole[0] == Prompt("a")
