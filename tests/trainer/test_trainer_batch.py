import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.batch import Sample, fill_passes, pack
from trainer.loader import RankBatch
from trainer.prompt import ROW, Tokens

BUDGET = 60
LENGTHS = st.lists(st.integers(1, BUDGET), min_size=1, max_size=40)


def fewest(lengths, rooms=()):
    """The least number of passes that hold samples of these lengths, by trying all."""
    if not lengths:
        return len(rooms)
    first, *rest = lengths
    fits = {room for room in rooms if room >= first}
    tried = [fewest(rest, (*_without(rooms, room), room - first)) for room in fits]
    return min([*tried, fewest(rest, (*rooms, BUDGET - first))])


def _without(rooms, room):
    place = rooms.index(room)
    return rooms[:place] + rooms[place + 1 :]


@given(LENGTHS)
def test_samples_are_shared_out_once_within_the_budget(lengths):
    """A sample lost or doubled would change the loss; a pass above the budget could run out of memory."""
    passes = fill_passes(lengths, BUDGET)
    assert sorted(n for numbers in passes for n in numbers) == list(range(len(lengths)))
    assert all(numbers and sum(lengths[n] for n in numbers) <= BUDGET for numbers in passes)
    assert passes == fill_passes(lengths, BUDGET)


@given(LENGTHS)
def test_no_two_passes_would_fit_into_one(lengths):
    """So all but one are more than half full."""
    rows = sorted(sum(lengths[n] for n in numbers) for numbers in fill_passes(lengths, BUDGET))
    assert len(rows) == 1 or rows[0] + rows[1] > BUDGET


@given(st.lists(st.integers(1, BUDGET), min_size=1, max_size=8))
def test_passes_are_few(lengths):
    """The bound that is proved for best fit, the longest first: 11/9 of the fewest possible and 6/9."""
    assert len(fill_passes(lengths, BUDGET)) <= math.floor(11 / 9 * fewest(lengths) + 6 / 9)


SAMPLES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=12)


@given(SAMPLES, st.data())
def test_passes_are_split_where_another_rank_needs_more(drawn, data):
    """Every rank takes part in as many passes as any other: each is what packing its own samples gives."""
    rng = np.random.default_rng(0)
    samples = []
    for temporal, prompt, response in drawn:  # a still has one frame's row, a text none
        arrays = {"temporal": rng.random((temporal, 2), np.float32), "spatial": rng.random((2, 2), np.float32)}
        rows = temporal + 2
        ids = [1, *[ROW] * rows, *range(2, 2 + prompt + response)]
        answers = [False] * (1 + rows + prompt) + [True] * response
        samples.append(Sample(Tokens(ids, answers, [("visual", 1)]), arrays))
    widths = {"temporal": 2, "spatial": 2, "audio": 3}
    shares = fill_passes([len(sample.tokens.ids) for sample in samples], BUDGET)
    passes = [pack([samples[n] for n in numbers], widths, BUDGET) for numbers in shares]
    count = data.draw(st.integers(1, len(samples)))
    found = RankBatch(passes, passes, 0, []).split(count)
    assert len(found) == max(count, len(shares))
    while len(shares) < count:
        numbers = max(range(len(shares)), key=lambda p: (len(shares[p]), p))
        kept = -(-len(shares[numbers]) // 2)
        shares.append(shares[numbers][kept:])
        shares[numbers] = shares[numbers][:kept]
    for batch, numbers in zip(found, shares, strict=True):
        alone = pack([samples[n] for n in numbers], widths, BUDGET)
        assert batch.packing.lengths == alone.packing.lengths
        assert all(torch.equal(a, b) for a, b in zip(batch.tensors(), alone.tensors(), strict=True))
