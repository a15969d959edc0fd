"""Class prompts that do not fit the text tower's context are named; those that it cannot tell apart are refused."""

from __future__ import annotations

import pytest

from captune.errors import DataError
from captune.model.backbone import load_backbone
from captune.model.class_prompts import class_prompts, prompts_that_fit
from captune.model.sources import TINY_DIR

LONG = "a very long name that goes on and on and on and on and on and on and on and on and on and on"


def notes_of(names: list[str], template: str = "a photo of a {}.") -> list[str]:
    return prompts_that_fit(load_backbone("tiny", device="cpu"), names, class_prompts(names, template))


def test_prompts_that_fit_say_nothing() -> None:
    assert notes_of(["one", "two", "seven"]) == []


def test_a_prompt_that_just_fits_is_not_called_cut() -> None:
    backbone = load_backbone("tiny", device="cpu")
    length = backbone.tokenize(["x"]).shape[1]
    texts = [" ".join(["7"] * count) for count in range(1, length + 3)]
    used = [int((row != 0).sum()) for row in backbone.tokenize(texts)]
    # Two of the places are the start and the end of the text.
    fitting = [text for text, text_length in zip(texts, range(1, length + 3), strict=True) if text_length + 2 <= length]
    assert used[len(fitting) - 1] == length
    assert backbone.cut_texts(texts) == list(range(len(fitting), len(texts)))


def test_a_name_that_is_cut_is_named() -> None:
    (note,) = notes_of(["one", LONG])
    assert "1 class name does not fit the 16 tokens" in note and LONG in note


def test_names_equal_once_cut_are_refused() -> None:
    with pytest.raises(DataError, match=r"must differ in the 16 tokens.*equal once cut"):
        notes_of([f"{LONG} ring", "one", f"{LONG} bar"])


@pytest.mark.parametrize("names", [["one", "One"], ["one", "two", "one"], [LONG, LONG]])
def test_names_that_are_the_same_tokens_are_named(names: list[str]) -> None:
    # ImageNet's published names hold equal ones, so they cannot be refused.
    assert f"cannot tell these classes apart by their prompts: '{names[0]}' and" in notes_of(names)[0]


def test_a_tokenizer_that_cannot_be_asked_is_taken_at_its_word() -> None:
    backbone = load_backbone(f"local-dir:{TINY_DIR}", device="cpu")
    tokenize = backbone._tokenize
    backbone.__dict__["_tokenize"] = lambda texts: tokenize(texts)
    assert backbone.cut_texts(["one", LONG]) == []
