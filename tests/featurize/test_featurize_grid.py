import itertools

import pytest

from featurize.grid import check_nested, frame_indices, segment_bounds


@pytest.mark.parametrize("total", [1, 3, 7, 64, 75, 1000, 107_892])
def test_coarse_grids_are_subsets_of_the_finest(total):
    """One pass at T = 64 serves every ablation only if its frames hold those of T = 4, 8, 16 and 32."""
    finest = frame_indices(total, 64)
    for coarse in (4, 8, 16, 32):
        assert (frame_indices(total, coarse) == finest[:: 64 // coarse]).all()
    assert finest[0] == 0
    assert finest.max() < total


@pytest.mark.parametrize(("samples", "count"), [(480_000, 4), (7, 4), (1_000_003, 16)])
def test_segments_cover_the_sound_evenly(samples, count):
    """A gap or an overlap would drop or double a part of the sound."""
    bounds = segment_bounds(samples, count)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == samples
    assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
    assert max(b - a for a, b in bounds) - min(b - a for a, b in bounds) <= 1


def test_grids_that_do_not_nest_are_refused():
    assert check_nested([32, 8, 8]) == (8, 32)
    with pytest.raises(ValueError, match="each divide the largest"):
        check_nested([8, 12])
