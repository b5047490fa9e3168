"""Bytes to a plain tree: nothing guessed, nothing executed, every mistake with its line."""

from __future__ import annotations

import pytest

from agent.desired import document
from agent.errors import InvalidError


def read(data: bytes | str, file: str = "desired.yaml", max_bytes: int = 1_000_000) -> document.Document:
    return document.read(data.encode() if isinstance(data, str) else data, file=file, max_bytes=max_bytes)


def refusal(data: bytes | str, file: str = "desired.yaml", max_bytes: int = 1_000_000) -> str:
    with pytest.raises(InvalidError) as caught:
        read(data, file, max_bytes)
    return str(caught.value)


def told(data: str, file: str = "desired.yaml") -> list[str]:
    return [violation.text(file) for violation in read(data, file).violations]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("a: on", "on"),
        ("a: no", "no"),
        ("a: 017", "017"),
        ("a: 1:30", "1:30"),
        ("a: 2001-01-01", "2001-01-01"),
        ("a: 0x1f", "0x1f"),
        ("a: 1_000", "1_000"),
        ("a: 25", 25),
        ("a: -3", -3),
        ("a: 1.5", 1.5),
        ("a: 1.5e+3", 1500.0),
        ("a: 12e4", "12e4"),
        ("a: true", True),
        ("a: ~", None),
        ("a:", None),
        ("a: '25'", "25"),
        ("a: |\n  x\n", "x\n"),
    ],
)
def test_scalars_are_what_json_could_say_and_text_otherwise(written, value):
    found = read(written).value
    assert found == {"a": value}
    assert type(found["a"]) is type(value)


def test_json_and_yaml_of_the_same_text_are_the_same_tree_with_the_same_lines():
    text = '{"a": [1, {"b": "x"}],\n "c": {"d":\n [true, null, [2], {}]}, "e": []}'
    json_read, yaml_read = read(text, "x.json"), read("# a comment, so that it is YAML\n" + text)
    assert json_read.value == yaml_read.value
    paths = [(), ("a",), ("a", 0), ("a", 1), ("a", 1, "b"), ("c",), ("c", "d"), ("c", "d", 0), ("c", "d", 2, 0), ("e",)]
    lines = [json_read.line(path) for path in paths]
    assert lines == [yaml_read.line(path) - 1 for path in paths]
    assert lines == [1, 1, 1, 1, 1, 2, 2, 3, 3, 3]


def test_lines_of_json_strings_with_braces_quotes_and_escapes():
    text = '{"a{\\"": "}]\\n",\n"b": "\\u007b",\n"c": 1}'
    assert read(text, "x.json").line(("c",)) == 3


def test_a_path_that_is_not_there_has_the_line_of_what_is_around_it():
    assert read("a:\n  b: 1\n").line(("a", "b", "c")) == 2


@pytest.mark.parametrize("file", ["desired.yaml", "desired.json"])
def test_a_duplicate_key_is_told_with_its_line_and_path(file):
    assert told('{"a": {"b": 1,\n "b": 2},\n"c": 1}', file) == [f"{file}:2: a.b: duplicate key (first on line 1)"]


def test_duplicate_keys_of_yaml_are_all_told():
    assert told("a: 1\na: 2\nb: {c: 1, c: 2}\na: {x: y}\n") == [
        "desired.yaml:2: a: duplicate key (first on line 1)",
        "desired.yaml:3: b.c: duplicate key (first on line 3)",
        "desired.yaml:4: a: duplicate key (first on line 1)",
    ]


def test_tags_and_merge_keys_and_keys_that_are_not_text_are_told():
    assert told("a: !!python/object:os.system x\nb: !x [1]\n<<: {c: 1}\n25: x\ntrue: y\n") == [
        "desired.yaml:1: a: YAML tags are not read: remove 'tag:yaml.org,2002:python/object:os.system'",
        "desired.yaml:2: b: YAML tags are not read: remove '!x'",
        'desired.yaml:3: "<<": merge keys are not read: write the keys out',
        'desired.yaml:4: 25: a key must be text: write "25" in quotes',
        'desired.yaml:5: true: a key must be text: write "true" in quotes',
    ]


def test_aliases_are_followed_but_not_into_a_bomb():
    assert read("a: &x [1, 2]\nb: *x\n").value == {"a": [1, 2], "b": [1, 2]}
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )
    assert "more than 500,000 values, aliases unfolded" in refusal(bomb)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "desired.yaml: the document is empty; an empty state is written as `version: 1`"),
        (b"\xef\xbb\xbf \n", "desired.yaml: the document is empty; an empty state is written as `version: 1`"),
        (b"# only\n", "desired.yaml: the document is empty; an empty state is written as `version: 1`"),
        (b"a: 1\nb: \xff\n", "desired.yaml:2: not text: byte 8 is not UTF-8"),
        (b"a: 1\nb: [1,", "desired.yaml:2: not YAML: "),
        (b"a: 1\nb: \x00\n", "desired.yaml:2: not YAML: a character that no text file holds"),
        (b"a: 1\n---\nb: 1\n", "desired.yaml:2: a second YAML document begins here; one file is one state"),
        (b"a: *x\n", "desired.yaml:1: the alias 'x' cannot stand here"),
        (b"a: &x [*x]\n", "desired.yaml:1: the alias 'x' cannot stand here"),
        (b"[a]: 1\n", "desired.yaml:1: a key must be text, not a list or a mapping"),
        (b"a: " + b"9" * 5000, "desired.yaml: a number of 5000 digits"),
        (b"[" * 5000, "desired.yaml: nested more than 32 deep"),
        (b"- " * 5000, "desired.yaml: nested more than 32 deep"),
    ],
)
def test_what_cannot_be_read_is_one_clear_refusal(data, message):
    found = refusal(data)
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1,\n]', "x.json:2: not JSON:"),
        (b'{"a": NaN}', "x.json: NaN is not a value"),
        (b'{"a": ' + b"9" * 5000 + b"}", "x.json: a number of 5000 digits"),
        (b"[" * 50_000 + b"]" * 50_000, "x.json: nested more than 32 deep"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "x.json: nested more than 32 deep"),
    ],
)
def test_json_that_cannot_be_read_is_one_clear_refusal(data, message):
    assert refusal(data, "x.json").startswith(message)


def test_a_document_over_the_limit_is_refused_with_both_numbers():
    assert refusal(b"a" * 1001, max_bytes=1000) == (
        "desired.yaml: the document is too long; at most 1,000 bytes are read (sync.max_bytes)"
    )


def test_a_byte_order_mark_and_dos_lines_are_read():
    assert read(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n").value == {"a": 1, "b": 2}


@pytest.mark.parametrize("text", ['{"a": 1,\n}', "a: 1", "[1, 2,]", '{"a": 1}', "{a: 1}"])
def test_what_is_taken_never_depends_on_the_name_of_the_file(text: str):
    assert read(text, "x.json").value == read(text, "x.yaml").value
