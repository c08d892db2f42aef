"""Replies are read by the rules of the fixtures, and no reply breaks or stalls a parser."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.evals.choices import choose
from serve.evals.judge_replies import (
    Judgement,
    Unusable,
    parse_score,
    parse_verdict,
    published_score,
    published_verdict,
)
from serve.evals.matching import matches, matches_leniently

FIXTURE = Path(__file__).parent / "fixtures" / "parsing.json"
JUDGED = st.text(st.sampled_from(list("{}'\":, predscoyn0459.‘”\n")), max_size=60)


def cases(kind):
    found = json.loads(FIXTURE.read_text(encoding="utf-8"))["cases"]
    return [pytest.param(case, id=case["id"]) for case in found if case["kind"] == kind]


@pytest.mark.parametrize("case", cases("multiple_choice"))
def test_choices_are_read_by_the_rules(case):
    expected = case["expected"]
    assert choose(case["reply"], case["options"]) == (None if expected is None else "ABCDE".index(expected))


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("The answer is B because they sit.", 1),
        ("The answer is a clap", 2),
        ("**Answer:** (d)", 3),
        ("Answer: A or B", None),
        ("A/B", None),
        ("Option B. No, option C.", None),
        ("person(s) clap", 2),
        ("(B) sit down, not (C)", None),
        ("They clap and clap.", 2),
        ("Answer: I think they clap", 2),
        ("Both A and B, so they clap", None),
    ],
)
def test_articles_pairs_and_contradictions_are_no_letters(reply, expected):
    assert choose(reply, ["run away", "pick up the ball", "clap", "sit down", "wave"]) == expected


@pytest.mark.parametrize("case", cases("judge_qa"))
def test_verdicts_are_read_by_the_rules(case):
    assert parse_verdict(case["reply"]) == Judgement(**case["expected"])
    published = case["video_chatgpt"]
    wanted = Unusable(published) if isinstance(published, str) else Judgement(**published)
    assert published_verdict(case["reply"]) == wanted


@pytest.mark.parametrize("case", cases("judge_score"))
def test_scores_are_read_by_the_rules(case):
    assert parse_score(case["reply"]) == case["expected"]["score"]
    published = case["video_chatgpt"]
    wanted = Unusable(published) if isinstance(published, str) else published["score"]
    assert published_score(case["reply"]) == wanted


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"result": {"pred": "yes", "score": 4}}', ("yes", 4)),
        ("{'why': 'uses {x}, score: 2, it isn't', 'pred': 'no', 'score': 1}", ("no", 1)),
        ("{'pred': 'yes', 'score': 4} {'pred': 'yes', 'score': 4}", ("yes", 4)),
        ("<think>{'pred': 'yes', 'score': 4}", (None, None)),
        ("so no.</think>{'pred': 'yes', 'score': 4}", ("yes", 4)),
        ("{'pred': 'yes', 'pred': 'no', 'score': 4}", (None, 4)),
        ("{'pred': 'yes', 'score': True}", ("yes", None)),
    ],
)
def test_what_a_dict_holds_counts_and_what_a_string_or_a_thought_holds_does_not(reply, expected):
    assert parse_verdict(reply) == Judgement(*expected)


@pytest.mark.parametrize("case", cases("music_avqa"))
def test_short_answers_match_by_both_rules(case):
    found = {"faithful": matches, "lenient": matches_leniently}
    assert {name: rule(case["reply"], case["answer"]) for name, rule in found.items()} == case["expected"]


@given(st.one_of(st.text(), JUDGED), st.lists(st.text(max_size=5), max_size=5))
def test_no_reply_breaks_a_parser(reply, options):
    choose(reply, options)
    parse_verdict(reply)
    parse_score(reply)
    published_verdict(reply)
    published_score(reply)
    matches_leniently(reply, "yes")


@pytest.mark.parametrize(
    "part", ["{", "{'", "{'pred': ", "<think>", "</think>", "(", "(A", "answer ", "a ", "-", "[", " "]
)
def test_long_replies_take_time_in_proportion(part):
    reply = part * (500_000 // len(part))
    started = time.perf_counter()
    for read in (parse_verdict, parse_score, published_verdict, lambda text: choose(text, ["run", "sit"])):
        read(reply)
    assert time.perf_counter() - started < 10  # a quadratic reader takes hours
