"""The tests marked `gpu`; in a tiny check the first of each file alone, since `make test` runs them all."""

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
    """A pytest plugin that collects what tests and their collection raise.

    Args:
        only_first: run the first test of a file alone.
    """

    def __init__(self, only_first: bool) -> None:
        super().__init__()
        self._only_first = only_first

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Called by pytest before the tests run."""
        del items[1 if self._only_first else len(items) :]

    @pytest.hookimpl
    def pytest_exception_interact(self, call: pytest.CallInfo[object]) -> None:
        """Called by pytest for each exception."""
        assert call.excinfo is not None
        self.append(call.excinfo.value)


def run(report: Report, file: str) -> None:
    """Run a file of tests in this process.

    Raises:
        ImportError: every failure was a missing package.
    """
    output, errors = io.StringIO(), Errors(only_first=report.tiny)
    with contextlib.redirect_stdout(output):
        status = pytest.main(["-q", "-p", "no:cacheprovider", "-rf", str(REPO / "tests" / file)], [errors])
    sys.stdout.write(output.getvalue())
    if status and errors and all(map(is_missing, errors)):
        raise errors[0]
    (counts,) = re.findall(r"^((?:\d+ \w+(?:, )?)+) in [\d.]+s", output.getvalue(), re.MULTILINE)[-1:]
    report.fact(file, counts, "none failed", status == 0)
    assert status == 0, f"{file}: {counts}"


def trainer(report: Report) -> None:
    """Kernels, feeding, both stages."""
    run(report, "trainer/test_trainer_gpu.py")


def featurize(report: Report) -> None:
    """Encoders, and shards of real films."""
    run(report, "featurize/test_featurize_gpu.py")
