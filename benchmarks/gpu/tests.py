"""The tests that are marked `gpu`, where a GPU is; their equals where none is."""

import contextlib
import io
import re
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.check import is_missing
from benchmarks.gpu.report import Report

REPO = Path(__file__).parents[2]


class Errors(list[BaseException]):
    """A pytest plugin: what tests and their collection raised."""

    @pytest.hookimpl
    def pytest_exception_interact(self, call: pytest.CallInfo[object]) -> None:
        """Called by pytest for each."""
        assert call.excinfo is not None
        self.append(call.excinfo.value)


def run(report: Report, file: str) -> None:
    """Run a file of tests in this process.

    Raises:
        ImportError: every failure was a missing package.
    """
    said, errors = io.StringIO(), Errors()
    with contextlib.redirect_stdout(said):
        status = pytest.main(["-q", "-p", "no:cacheprovider", "-rf", str(REPO / "tests" / file)], [errors])
    sys.stdout.write(said.getvalue())
    if status and errors and all(map(is_missing, errors)):
        raise errors[0]
    (counts,) = re.findall(r"^((?:\d+ \w+(?:, )?)+) in [\d.]+s", said.getvalue(), re.MULTILINE)[-1:]
    report.fact(file, counts, "none failed", status == 0)
    assert status == 0, f"{file}: {counts}"


def trainer(report: Report) -> None:
    """Kernels, feeding, both stages."""
    run(report, "trainer/test_trainer_gpu.py")


def featurize(report: Report) -> None:
    """Encoders, and shards of real films."""
    run(report, "featurize/test_featurize_gpu.py")
