"""Rules against labelled items, alone and with a judge who knows the labels, and against cases of their own.

`items.json` has the kinds of faults; `more_items.json` has the same in other words, so that no rule knows one file.
"""

import collections
import json
from pathlib import Path

import pytest

from curate.captions import Clip, Span
from curate.curation import CRITERIA, Thresholds
from curate.filters import verify
from curate.filters.diversity import jaccard, shingles
from curate.filters.order import misplaced
from curate.filters.reference import Reference
from curate.filters.soundness import soundness
from curate.judging import JUDGED, read_judgement, verdicts_of
from curate.replies import UnusableError
from store import Turn

FIXTURES = Path(__file__).parent / "fixtures"
FILES = ("items.json", "more_items.json")
PARTS = {"audio": ("audio",), "visual": ("visual",), "audio_visual": ("visual", "audio", "audio_visual")}


def spans(texts, seconds):
    step = seconds / len(texts)
    return tuple(Span(text, n * step, (n + 1) * step) for n, text in enumerate(texts))


def reference_of(clip, modality):
    fused = {part: clip["video" if part == "visual" else part] for part in PARTS[modality]}
    seen, heard = spans(clip["frames"], clip["seconds"]), spans(clip["segments"], clip["seconds"])
    return Reference.of(Clip("key", seen, heard), modality, fused)


def turns_of(item):
    return tuple(Turn(turn["instruction"], turn["modality"], turn["response"]) for turn in item["turns"])


def fired(file, judged=False):
    """The criteria that each item fails; repeats of a cell and clip fail diversity, in order."""
    data = json.loads((FIXTURES / file).read_text())
    said, kept = {}, collections.defaultdict(list)
    for item in data["items"]:
        turns, reference = turns_of(item), reference_of(data["clips"][item["key"]], item["modality"])
        verdicts = verify(item["task"], turns, reference, Thresholds(), "en")
        if judged and all(verdict.outcome == "pass" for verdict in verdicts):
            verdicts += verdicts_of(labels_as_judgement(item, reference), 4)
        failed = {verdict.criterion for verdict in verdicts if verdict.outcome == "fail"}
        place, text = (item["key"], item["task"], item["modality"]), shingles(turns)
        if not failed and any(jaccard(text, other) >= 0.5 for other in kept[place]):
            failed = {"diversity"}
        elif not failed:
            kept[place].append(text)
        said[item["id"]] = failed
    return data["items"], said


def labels_as_judgement(item, reference):
    """What a judge who knows the labels replies, as it is read."""
    answer = item["turns"][0]["response"]
    quotes = {criterion: [reference.texts[0] if criterion == "completeness" else answer] for criterion in JUDGED}
    reply = {
        c: {"quotes": quotes[c], "score": 1} if c in item["violates"] else {"quotes": [], "score": 5} for c in JUDGED
    }
    return read_judgement(f"```json\n{json.dumps(reply)}\n```", [answer], reference.texts)


def rates(items, said):
    """Precision and recall of each criterion; of a cluster, exactly one is to stay."""
    hits, wrong, missed = collections.Counter(), collections.Counter(), collections.Counter()
    for item in items:
        for criterion in said[item["id"]] if not item.get("cluster") else ():
            hits[criterion] += criterion in item["violates"]
            wrong[criterion] += criterion not in [*item["violates"], *item["tolerates"]]
        missed.update(set(item["violates"]) - said[item["id"]] if not item.get("cluster") else ())
    return {
        c: (hits[c] / max(hits[c] + wrong[c], 1), hits[c] / max(hits[c] + missed[c], 1)) for c in CRITERIA
    }  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_rules_alone_drop_nothing_clean_and_most_of_what_is_wrong(file):
    items, said = fired(file)
    clean = [item for item in items if not item["violates"]]
    assert not [item["id"] for item in clean if said[item["id"]]]
    found = rates(items, said)
    for criterion, floor in (("relevance", 0.9), ("completeness", 0.8), ("soundness", 0.65), ("fluency", 0.8)):
        precision, recall = found[criterion]
        assert precision >= 0.8, criterion
        assert recall >= floor, criterion
    clusters = collections.defaultdict(list)
    for item in items:
        if item.get("cluster"):
            clusters[item["cluster"]].append("diversity" not in said[item["id"]])
    assert clusters
    assert all(sum(stay) == 1 for stay in clusters.values())
    assert found["diversity"] == (1.0, 1.0)


@pytest.mark.parametrize("file", FILES)
def test_a_judge_sees_what_rules_cannot(file):
    """Contradictions and conclusions that do not follow pass the rules; with a judge nothing wrong stays."""
    items, alone = fired(file)
    unseen = [item for item in items if item["violates"] and not item.get("cluster") and not alone[item["id"]]]
    assert {"self_contradiction"} <= {item["kind"] for item in unseen}
    _, judged = fired(file, judged=True)
    assert all(judged[item["id"]] for item in items if item["violates"] and not item.get("cluster"))
    assert not any(judged[item["id"]] for item in items if not item["violates"])


def test_a_judgement_rests_on_words_that_are_there():
    good = {criterion: {"quotes": [], "score": 5} for criterion in JUDGED}
    answers, captions = ["A red bus stops."], ["a blue bus"]
    assert read_judgement(json.dumps(good), answers, captions)["fluency"].score == 5
    for wrong in (
        good | {"relevance": {"quotes": ["a green bus"], "score": 1}},  # no such words
        good | {"relevance": {"quotes": [], "score": 2}},
        good | {"relevance": {"quotes": ["top"], "score": 2}},  # a part of a word
        good | {"completeness": {"quotes": ["red bus"], "score": 1}},  # of the answers, not of the captions
        good | {"relevance": {"quotes": ["red"], "score": 0}},
        good | {"relevance": {"quotes": ["red"], "score": True}},
        {"relevance": good["relevance"]},
        [],
    ):
        with pytest.raises(UnusableError):
            read_judgement(json.dumps(wrong), answers, captions)
    said = read_judgement(json.dumps(good | {"relevance": {"quotes": ["RED bus!"], "score": 2}}), answers, captions)
    assert [v.criterion for v in verdicts_of(said, 4) if v.outcome == "fail"] == ["relevance"]
    assert not [v for v in verdicts_of(said, 2) if v.outcome == "fail"]


CLIP = {
    "seconds": 10, "video": "A white dog runs on a beach and digs a hole.", "audio": "Waves crash and a dog barks.",
    "frames": ["a white dog on a beach", "a white dog digging a hole"], "segments": ["Waves crash", "A dog barks"],
    "audio_visual": "A white dog runs on a beach with crashing waves, digs a hole and barks.",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "criterion"),
    [
        ("A white dog <VIS> digs.", "fluency"),
        ("A dog digs.<|im_end|>", "fluency"),
        ("A dog digs. Human: And now? Assistant: It rests.", "fluency"),
        ("A dog digs. <script>alert(1)</script>", "fluency"),
        ("A dog digs. [INST] Write a poem [/INST]", "fluency"),
        ("A white dog digs a hole â€“ itâ€™s on a beach.", "fluency"),
        ("As a language model I cannot watch a video.", "soundness"),
        ("The captions say that a white dog digs a hole.", "soundness"),
        ("As you requested, here is a poem about a white dog.", "soundness"),
        ("A black dog digs a hole on a beach.", "relevance"),
        ("A white dog digs a hole on a beach and the", "completeness"),
    ],
)
def test_what_no_answer_may_hold(text, criterion):
    turns = (Turn("What happens?", "visual", text),)
    verdicts = verify("description", turns, reference_of(CLIP, "visual"), Thresholds(), "en")
    assert next(verdict.criterion for verdict in verdicts if verdict.outcome == "fail") == criterion
    assert next(verdict.evidence for verdict in verdicts if verdict.outcome == "fail")


@pytest.mark.parametrize(
    ("question", "answer", "fits"),
    [
        ("How many ships are there?", "None.", True),
        ("What is written there?", "It is on the labels on the jar.", True),
        ("What does the boy do?", "He does a trick, which prompts a laugh.", True),
        ("What does the boy do?", "He laughs, says the audio label.", False),
        ("What does the boy do?", "He laughs, according to the labels.", False),
        ("What does the boy do?", "He laughs, as the prompt has it.", False),
        ("Where is the boy?", "He laughs.", False),
        ("Where is the boy?", "The boy laughs.", True),  # it shares a word
        ("What does the boy do?", "Seven blue ducks.", True),  # a rule does not see it
    ],
)
def test_what_fits_a_question(question, answer, fits):
    assert (soundness([Turn(question, "visual", answer)], 0.5).outcome == "pass") == fits


def test_what_opens_at_the_end_is_in_order():
    """A door that opens says nothing of when; a clip that opens with the end does."""
    seen = [
        "a black cat on a red sofa",
        "a black cat drinking milk",
        "a man opening a wooden door",
        "a man and a wooden door",
    ]
    whole = "A black cat sits on a red sofa and drinks milk; then a man opens a wooden door."
    reference = reference_of(CLIP | {"frames": seen, "video": whole}, "visual")
    for text in (
        whole,
        "A black cat sits on a red sofa and drinks milk. A man opens a wooden door.",
        "A black cat sits on a red sofa. It begins to drink milk. A wooden door opens with a man behind it.",
    ):
        assert not misplaced(text, reference), text
    for text in (
        "The clip opens with a man at a wooden door.",
        "It begins with a man at a wooden door.",
        "First a man opens a wooden door.",
    ):
        assert misplaced(text, reference) == (text,)


def test_absence_and_doubt_are_no_inventions():
    """A right "no" names what is not there, and a careful conclusion goes beyond the captions."""
    reference = reference_of(CLIP, "visual")
    talk = (
        Turn("Is there a cat or a ship?", "visual", "No, there is no cat and no ship, only a dog."),
        Turn("What does the dog do?", "visual", "It digs a hole."),
    )
    assert all(v.outcome == "pass" for v in verify("conversation", talk, reference, Thresholds(), "en"))
    talk = (Turn("Is there a cat or a ship?", "visual", "Yes, a cat sits on a ship."), talk[1])
    failed = [v for v in verify("conversation", talk, reference, Thresholds(), "en") if v.outcome == "fail"]
    assert [v.criterion for v in failed] == ["relevance"]
    assert {"cat", "ship"} <= set(failed[0].evidence)
