"""YAML as people write it: numbers, words, and what is ambiguous by its line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captune.errors import ConfigError
from captune.plain_yaml import dump_yaml, parse_yaml
from tests.slow import in_one_test


def parsed(text: str, **options: bool) -> Any:
    return parse_yaml(text, where="file.yaml", what="a file", **options)


@in_one_test(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), ("-3e+2", -300.0), (".5", 0.5), ("5.", 5.0), ("-.5e3", -500.0), ("1.0e-4", 1e-4),
        ("12", 12), ("1_000", 1000), ("0x1F", 31), ("-7", -7), (".inf", float("inf")),
        ("12:30", "12:30"), ("2024-01-01", "2024-01-01"), ("010", "010"), ("e4", "e4"), ("1e", "1e"), ("v1.5", "v1.5"),
        ("true", True), ("False", False), ("~", None), ("null", None), ("", None), ("'1e-4'", "1e-4"),
    ],
)  # fmt: skip
def test_scalars_are_what_they_look_like(text: str, value: object) -> None:
    got = parsed(f"key: {text}")["key"]
    assert got == value and type(got) is type(value)


@in_one_test(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: 'a' again, first in line 1"),
        ("a:\n  b: {c: 1, c: 2}\n", "line 2: 'c' again, first in line 2"),
        ("a: 1\nlog: yes\n", "line 2: 'yes' .*Write true, or quote it"),
        ("a: 1\nlog: Off\n", "line 2: 'Off' .*Write false, or quote it"),
        ("a:\n\tb: 1\n", "line 2: a tab.*Indent with spaces"),
        ("a: [1,\nb: 2", "valid YAML.*line"),
        ("a: &x [*x]\n", "line 1: a part that holds itself"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1.*could not determine a constructor"),
        ("a: " + "[" * 300 + "]" * 300, "within each other|nesting depth"),
        ("a: \0", "valid YAML"),
        ("a: " + "9" * 6000, "valid YAML"),
        ("? [1]\n: 2\n", "unhashable key"),
    ],
)
def test_what_is_ambiguous_or_none_is_named_by_its_line(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){says}"):
        parsed(text)


def test_yes_and_no_are_words_where_words_are_expected() -> None:
    assert parsed("- yes\n- no\n- on\n", words=True) == ["yes", "no", "on"]
    assert parsed("log: 'yes'") == {"log": "yes"}


def test_a_text_that_unfolds_to_millions_is_refused_before_it_does() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{now}: &{now} [{', '.join([f'*{last}'] * 9)}]" for last, now in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    with pytest.raises(ConfigError, match="once unfolded"):
        parsed("\n".join(lines))


def test_anchors_and_merged_keys_go_on_working() -> None:
    assert parsed("base: &b {low: 1}\nother: {<<: *b, high: 2}\n")["other"] == {"low": 1, "high": 2}


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(plain)
def test_what_is_written_is_read_back_unchanged(values: Any) -> None:
    assert parsed(dump_yaml({"values": values}))["values"] == values


@in_one_test("text", ["1e-4", "1e5", ".5e3", "yes", "010", "12:30", "2024-01-01", "true", "~", "", "# no comment"])
def test_text_that_looks_like_something_else_is_quoted(text: str) -> None:
    assert parsed(dump_yaml({"key": text})) == {"key": text}
