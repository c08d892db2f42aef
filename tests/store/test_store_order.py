"""The order of training and the mixture."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from store import Mixture, Order, Phase, Schedule
from store.order import BLOCK, ORDER_VERSION, WINDOW

SIZES = [1, 2, 99, 100, 101, 1600, 1601, 12345]
GOLDEN = Path(__file__).parent / "golden-order-2.json"


def epoch_of(order, epoch):
    return [order[epoch * order.size + i] for i in range(order.size)]


@pytest.mark.parametrize("size", SIZES)
def test_every_epoch_is_a_permutation(size):
    """Nothing is dropped or repeated in an epoch; else some conversations are trained on twice and others never."""
    for epoch in (0, 1, 10**9):
        assert sorted(epoch_of(Order(size, 3), epoch)) == list(range(size))


@pytest.mark.parametrize("size", [s for s in SIZES if s > 2])
def test_epochs_and_seeds_differ(size):
    """Another epoch or seed is another order; else the model sees the same batches again."""
    first = epoch_of(Order(size, 3), 0)
    assert first != epoch_of(Order(size, 3), 1)
    assert first != epoch_of(Order(size, 4), 0)
    assert first != list(range(size))


@pytest.mark.parametrize("size", SIZES)
def test_a_far_seek_equals_reading_on(size):
    """The place is a pure function of the cursor, however far and in whatever order it is asked; resume rests on it."""
    start = 10**12
    forward = [Order(size, 0)[start + i] for i in range(3)]
    walked = Order(size, 0)
    assert [walked[start + i] for i in (2, 0, 1)] == [forward[i] for i in (2, 0, 1)]
    assert all(0 <= place < size for place in forward)


def test_reading_stays_nearly_sequential():
    """A window holds whole blocks of neighbours; else every sample is a seek."""
    order = Order(10 * WINDOW * BLOCK, 0)
    window = [order[i] for i in range(WINDOW * BLOCK)]
    assert len({place // BLOCK for place in window}) == WINDOW


def golden():
    return {
        f"{size}.{seed}": [Order(size, seed)[c] for start in (0, size, 10**12) for c in range(start, start + 8)]
        for size, seed in itertools.product(SIZES, (0, 7))
    }


def test_order_version_2_never_changes():
    """Old runs are repeatable: a change of the order needs a new ORDER_VERSION and a golden file of its own."""
    assert ORDER_VERSION == 2
    assert json.loads(GOLDEN.read_text()) == {"order": golden(), "schedule": golden_schedule()}


def golden_schedule():
    schedule = Schedule(8, [Phase(2, {"b": 1}), Phase(4, {"a": 5, "b": 3})], {"a": {"x": 2, "y": 1}, "b": {"z": 1}})
    return [list(schedule[place]) for place in range(48)]


WEIGHTS = [
    *itertools.product(range(1, 6), repeat=3),
    (1,), (7,), (1, 1), (13, 1), (1, 13), (12, 13), (665, 335), (6, 6, 6, 1), (1,) * 9,
    (2, 10, 6, 23, 14, 1, 14, 18, 2, 14, 14, 2, 14, 2, 23, 23, 23, 6, 23, 6, 14, 6),  # the largest deficit first fails
]  # fmt: skip


def ahead_of_share(weights):
    """For each place of a period and each pool: how far it is ahead of its share, times the period (exact)."""
    mixture, total = Mixture({str(i): w for i, w in enumerate(weights)}), sum(weights)
    taken = np.zeros((total + 1, len(weights)), np.int64)
    for place in range(total):
        name, cursor = mixture[place]
        assert cursor == taken[place, int(name)]
        taken[place + 1] = taken[place]
        taken[place + 1, int(name)] += 1
    assert (taken[-1] == weights).all()
    return taken * total - np.outer(np.arange(total + 1), weights)


@pytest.mark.parametrize("weights", [WEIGHTS[:125], *([w] for w in WEIGHTS[125:])], ids=lambda w: str(w)[:40])
def test_shares_are_exact_to_within_one(weights):
    """From the start every pool has its share to within one, in any stretch to within two; else batches drift."""
    for each in weights:
        ahead, total = ahead_of_share(each), sum(each)
        assert np.abs(ahead).max() < total
        for length in range(1, total + 1) if total < 50 else ():
            twice = np.concatenate([ahead, ahead[1:]])
            assert np.abs(twice[length:] - twice[:-length]).max() < 2 * total


@pytest.mark.parametrize("weights", [(1,), (3, 1), (5, 1, 3, 3)])
def test_cursors_are_consecutive_across_periods(weights):
    """Each pool's cursors count 0, 1, 2 ... over every period's end; else conversations are skipped or repeated."""
    mixture = Mixture({str(i): w for i, w in enumerate(weights)})
    seen = {name: [] for name in mixture.names}
    for place in range(4 * mixture.period + 1):
        name, cursor = mixture[place]
        seen[name].append(cursor)
    assert all(cursors == list(range(len(cursors))) for cursors in seen.values())
    far = 10**12 * mixture.period
    assert mixture[far] == (mixture[0][0], 10**12 * weights[int(mixture[0][0])])


PARTS = {"visual": {"a": 260, "b": 650}, "audio": {"c": 45}, "audio_visual": {"d": 85, "e": 3, "f": 777}}


@pytest.mark.parametrize("batch", [1, 3, 8, 128, 256])
def test_every_global_batch_has_its_share_of_each_group(batch):
    """Of 1,000 batches each holds every modality's share rounded down or up; running counts do not drift."""
    weights = {group: sum(pools.values()) for group, pools in PARTS.items()}
    schedule = Schedule(batch, [Phase(1000, weights)], PARTS)
    groups = {name: group for group, pools in PARTS.items() for name in pools}
    total = sum(weights.values())
    for group, weight in weights.items():
        counts = schedule.counts[:, [groups[name] == group for name in schedule.names]].sum(axis=1)
        assert set(counts) <= {batch * weight // total, -(-batch * weight // total)}
        running = np.cumsum(counts) * total - np.arange(1, 1001) * batch * weight
        assert np.abs(running).max() < 2 * total
    assert (schedule.counts.sum(axis=1) == batch).all()


def test_a_schedules_cursors_are_consecutive_and_its_phases_are_kept():
    """Each pool's cursors count on over batches and phases; else conversations are skipped or repeated."""
    phases = [Phase(5, {"audio_visual": 1}), Phase(7, {"visual": 2, "audio": 1}), Phase(3, {"audio": 1})]
    schedule = Schedule(10, phases, PARTS)
    seen = {name: [] for name in schedule.names}
    for place in range(150):
        name, cursor = schedule[place]
        seen[name].append(cursor)
    assert all(cursors == list(range(len(cursors))) for cursors in seen.values())
    assert (schedule.counts[:5, [3, 4, 5]].sum(axis=1) == 10).all()
    assert (schedule.counts[12:, 2] == 10).all()
    assert set(schedule.counts[5:12, 2]) <= {3, 4}
