"""Metrics give what the reference tools give, for a whole corpus, its parts and samples of it.

The fixtures hold what pycocoevalcap 1.2 says of captions invented for these tests.
"""

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.evals.bleu import BleuCounts, count_bleu
from serve.evals.cider import DocumentFrequencies, cider
from serve.evals.rouge import rouge
from serve.evals.words import tokenize

REPO = Path(__file__).parent.parent.parent
FIXTURES = Path(__file__).parent / "fixtures"
CORPORA = sorted(path.stem for path in FIXTURES.glob("corpus_*.json"))
EXACT = {"rtol": 0, "atol": 1e-9}
WORDS = st.lists(st.sampled_from(["a", "man", "dog", "runs", "3\xa01/2", "red"]), max_size=8)
ITEMS = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=6)


def load(name):
    return json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


def whole_cider(predictions, references):
    """CIDEr-D of items that are the whole corpus."""
    return cider(predictions, references, DocumentFrequencies.of(references))


@pytest.fixture(params=["given tokens", "own tokens"])
def corpus(request):
    """A function from a corpus's name to its predictions, references and fixture."""

    def read(name):
        found = load(name)
        items = found["per_item"]
        if request.param == "own tokens":
            predictions = [tokenize(item["prediction"]) for item in items]
            return predictions, [[tokenize(text) for text in item["references"]] for item in items], found
        predictions = [item["prediction_tokens"].split(" ") for item in items]
        return predictions, [[text.split(" ") for text in item["reference_tokens"]] for item in items], found

    return read


@pytest.mark.parametrize("name", CORPORA)
def test_cider_is_the_references(corpus, name):
    predictions, references, found = corpus(name)
    scores = whole_cider(predictions, references)
    np.testing.assert_allclose(scores, [item["scores"]["CIDEr"] for item in found["per_item"]], **EXACT)
    np.testing.assert_allclose(scores.mean(), found["scores"]["CIDEr"], **EXACT)


@pytest.mark.parametrize("name", CORPORA)
def test_bleu_is_the_references(corpus, name):
    predictions, references, found = corpus(name)
    counts = count_bleu(predictions, references)
    wanted = [[item["scores"][f"BLEU_{n}"] for n in (1, 2, 3, 4)] for item in found["per_item"]]
    np.testing.assert_allclose(counts.scores(), wanted, **EXACT)
    np.testing.assert_allclose(counts.sums().scores(), [found["scores"][f"BLEU_{n}"] for n in (1, 2, 3, 4)], **EXACT)


@pytest.mark.parametrize("name", CORPORA)
def test_rouge_is_the_references(corpus, name):
    predictions, references, found = corpus(name)
    scores = rouge(predictions, references)
    np.testing.assert_allclose(scores, [item["scores"]["ROUGE_L"] for item in found["per_item"]], **EXACT)
    np.testing.assert_allclose(scores.mean(), found["scores"]["ROUGE_L"], **EXACT)


def plain_cider(predictions, references, corpus):
    """CIDEr-D as its paper writes it, one pair and one order at a time."""

    def grams(tokens, n):
        words = " ".join(tokens).split()
        return Counter(zip(*(words[i:] for i in range(n)), strict=False))

    def one(prediction, reference, n):
        def weigh(tokens):
            return {g: c * (math.log(len(corpus)) - math.log(max(1, held[n][g]))) for g, c in grams(tokens, n).items()}

        ours, theirs = weigh(prediction), weigh(reference)
        norms = [math.sqrt(sum(w * w for w in weights.values())) for weights in (ours, theirs)]
        apart = max(grams(prediction, 1).total() - 1, 0) - max(grams(reference, 1).total() - 1, 0)
        dot = sum(min(weight, theirs.get(gram, 0)) * theirs.get(gram, 0) for gram, weight in ours.items())
        return math.exp(-(apart**2) / 72) * (dot / (norms[0] * norms[1]) if all(norms) else 0)

    held = {n: Counter(g for texts in corpus for g in {g for t in texts for g in grams(t, n)}) for n in (1, 2, 3, 4)}
    return [
        10 * sum(one(prediction, text, n) for text in texts for n in (1, 2, 3, 4)) / 4 / len(texts)
        for prediction, texts in zip(predictions, references, strict=True)
    ]


@given(ITEMS, ITEMS)
def test_cider_is_its_definition(items, others):
    predictions, references = zip(*items, strict=True)
    corpus = [*references, *(texts for _, texts in others)]
    scores = cider(predictions, references, DocumentFrequencies.of(corpus))
    np.testing.assert_allclose(scores, plain_cider(predictions, references, corpus), **EXACT)


@given(ITEMS, st.data())
def test_a_part_of_a_corpus_scores_as_in_the_whole(items, data):
    """A limited run that counted its own items' documents would score 3 to 35 points beside the whole."""
    predictions, references = zip(*items, strict=True)
    part = sorted(data.draw(st.sets(st.sampled_from(range(len(items))), min_size=1)))
    scores = cider([predictions[i] for i in part], [references[i] for i in part], DocumentFrequencies.of(references))
    np.testing.assert_allclose(scores, whole_cider(predictions, references)[part], **EXACT)


@given(ITEMS, st.data())
def test_bleu_of_drawn_items_is_that_of_a_corpus_of_them(items, data):
    """Bootstrap samples are scored from sums, all at once."""
    draws = data.draw(st.lists(st.lists(st.sampled_from(range(len(items))), min_size=1), min_size=1, max_size=4))
    predictions, references = zip(*items, strict=True)
    weights = np.array([np.bincount(drawn, minlength=len(items)) for drawn in draws], np.float64)
    scores = count_bleu(predictions, references).sums(weights).scores()
    assert scores.shape == (len(draws), 4)
    for drawn, score in zip(draws, scores, strict=True):
        alone = count_bleu([predictions[i] for i in drawn], [references[i] for i in drawn])
        np.testing.assert_allclose(alone.sums().scores(), score, **EXACT)


def test_bleu_takes_any_leading_dimensions():
    counts = BleuCounts(np.ones((2, 3, 4)), np.ones((2, 3, 4)), np.ones((2, 3)), np.ones((2, 3)))
    assert counts.scores().shape == (2, 3, 4)


@pytest.mark.parametrize("metric", [whole_cider, count_bleu, rouge])
@pytest.mark.parametrize("references", [[[]], [], [[["a"]], [["b"]]]])
def test_an_item_without_a_reference_or_a_prediction_is_an_error(metric, references):
    with pytest.raises(ValueError, match="one prediction and at least one reference"):
        metric([["a"]], references)


def test_metrics_and_parsers_need_no_torch():
    """Scoring again what was answered runs, and starts at once, where no model could."""
    modules = ("words", "cider", "bleu", "rouge", "choices", "judge_replies", "matching")
    code = f"import sys, {', '.join(f'serve.evals.{name}' for name in modules)}\n"
    code += "sys.exit(bool({'torch', 'transformers', 'serve.engine'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, check=False).returncode == 0
