import math

from hypothesis import given
from hypothesis import strategies as st

from trainer.batch import share_out

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


@given(LENGTHS, st.data())
def test_samples_are_shared_out_once_within_the_budget(lengths, data):
    """A sample lost or doubled would change the loss; a pass above the budget could run out of memory."""
    at_least = data.draw(st.integers(1, len(lengths)))
    passes = share_out(lengths, BUDGET, at_least)
    assert sorted(n for numbers in passes for n in numbers) == list(range(len(lengths)))
    assert all(numbers and sum(lengths[n] for n in numbers) <= BUDGET for numbers in passes)
    assert len(passes) >= at_least
    assert passes == share_out(lengths, BUDGET, at_least)


@given(LENGTHS)
def test_no_two_passes_would_fit_into_one(lengths):
    """So all but one are more than half full."""
    rows = sorted(sum(lengths[n] for n in numbers) for numbers in share_out(lengths, BUDGET))
    assert len(rows) == 1 or rows[0] + rows[1] > BUDGET


@given(st.lists(st.integers(1, BUDGET), min_size=1, max_size=8))
def test_passes_are_few(lengths):
    """The bound that is proved for best fit, the longest first: 11/9 of the fewest possible and 6/9."""
    assert len(share_out(lengths, BUDGET)) <= math.floor(11 / 9 * fewest(lengths) + 6 / 9)


@given(LENGTHS, st.data())
def test_more_passes_are_made_only_where_another_rank_needs_them(lengths, data):
    """Every rank takes part in as many passes as any other, and in no more."""
    own = len(share_out(lengths, BUDGET))
    at_least = data.draw(st.integers(1, len(lengths)))
    assert len(share_out(lengths, BUDGET, at_least)) == max(own, at_least)
