"""Tokens are those of the reference tokenizer.

The fixtures hold what pycocoevalcap 1.2 (Stanford CoreNLP 3.4.1) makes of captions invented for these tests.
"""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.evals.words import _read, tokenize

FIXTURES = Path(__file__).parent / "fixtures"
ODD = st.text(st.sampled_from(list("aB.c I5/-'’&@#<>(:)!?…“é😀\n\t\r,$%_=日½")), max_size=24)
NEAR = st.text(st.sampled_from(list("abA I.,;:!?'\"-n tcmos")), max_size=30)


def load(name):
    return json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


def agreement(items):
    wrong = [item["caption"] for item in items if tokenize(item["caption"]) not in accepted(item)]
    return 1 - len(wrong) / len(items), wrong


def accepted(item):
    return item["tokens"], item.get("tokens_as_last_line")


def test_tokens_of_ordinary_captions_are_the_references():
    assert agreement([item for item in load("tokens")["items"] if item["category"] == "plain"]) == (1, [])


@pytest.mark.parametrize("name", ["tokens", "tokens_mixed"])
def test_tokens_of_odd_captions_are_the_references(name):
    share, wrong = agreement(load(name)["items"])
    assert share >= 0.99, wrong


@given(ODD)
def test_blanks_around_a_caption_change_nothing(caption):
    tokens = tokenize(caption)
    assert tokenize(f" \n{caption}\t ") == tokens
    assert all(token and not set(token) & set(" \t\n\r") for token in tokens)


@given(NEAR)
def test_reading_a_caption_part_by_part_changes_nothing(caption):
    """Parts between blanks are remembered; that must not cut a token that reaches over a blank."""
    text = caption.replace("\n", " ")
    assert tokenize(caption) == _read(text, text)


@given(st.text())
def test_any_text_has_tokens(caption):
    tokenize(caption)


@pytest.mark.parametrize("control", ["\n", "\r", "\v", "\f", "\x85", "\u2028", "\u2029"])
def test_line_ends_inside_a_caption_are_blanks(control):
    """The reference starts the next caption at each, and scores all later captions against wrong items."""
    assert tokenize(f"a{control}man") == ["a", "man"]


def test_a_token_may_hold_a_blank():
    assert tokenize("3 1/2 cups") == ["3\xa01/2", "cups"]


@pytest.mark.parametrize("part", ["a,", "a'", "“", "~", "a#", "<a ", "( ", "1 ", " ", "a@", "é’", "http://", "+"])
def test_long_text_takes_time_in_proportion(part):
    started = time.perf_counter()
    tokenize((part * 30_000)[:30_000])
    assert time.perf_counter() - started < 5  # a quadratic pattern takes minutes
