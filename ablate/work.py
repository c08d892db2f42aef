"""The work of an ablation: trains and evaluates what is not done yet, each by a command in its own process."""

import contextlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from ablate.outcomes import is_done
from ablate.plan import Ablation, Evaluation, Point, Run
from ablate.settings import ASKED, Benchmark
from serve.evals.tasks import TASKS
from store.console import console

PYTHON = (sys.executable, "-m")
LEDGER = "judgements.jsonl"  # of all points: equal answers are judged once
SECONDS_BETWEEN_LINES = 30.0  # how often a command's last line is repeated


class Work:
    """The runs and evaluations of an ablation, done one after the other.

    Args:
        ablation: the plan.
        lock: descriptor of the lock of its folder, which the commands inherit.

    Attributes:
        failed: a record of each command that failed; of a run that points share, one for each of them.
    """

    def __init__(self, ablation: Ablation, lock: int) -> None:
        self.failed: list[dict[str, object]] = []
        self._ablation, self._lock = ablation, lock
        self._tried: dict[str, dict[str, object] | None] = {}  # by digest of a run, how it failed

    def all_points(self) -> None:
        """Do every point with every seed; write the results after each."""
        for seed in self._ablation.config.seeds:
            for point in self._ablation.points():
                self._point(point, seed)
                self._write()

    def _point(self, point: Point, seed: int) -> None:
        for run in self._ablation.runs(point, seed):
            if not self._train(run, f"{point}, seed {seed}"):
                return
        for evaluation in self._ablation.evaluations(point, seed):
            self._ask(evaluation)

    def _train(self, run: Run, what: str) -> bool:
        """Start a run unless it is finished or was tried; the trainer resumes it. Returns whether it is finished."""
        what = f"{what}: {run.folder.name}"
        if not run.checkpoint.is_dir() and run.digest not in self._tried:
            run.folder.mkdir(parents=True, exist_ok=True)
            settings = run.folder / "train.yaml"
            settings.write_text(yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False))
            words = [*(self._ablation.config.launcher or PYTHON), "trainer", "train", str(settings)]
            self._tried[run.digest] = self._start(words, run.folder / "train.log", what)
        elif failure := self._tried.get(run.digest):
            self.failed.append(failure | {"what": what})
        finished = run.checkpoint.is_dir()
        if finished:
            shutil.rmtree(run.folder / "steps", ignore_errors=True)  # each is as large as three checkpoints
        return finished

    def _ask(self, evaluation: Evaluation) -> None:
        if is_done(evaluation, self._ablation.config.judge):
            return
        evaluation.file.parent.mkdir(parents=True, exist_ok=True)
        words = self._task_words(evaluation) if evaluation.task else self._held_out_words(evaluation)
        what = f"{evaluation.run.folder.name}, {evaluation.benchmark}, {ASKED[evaluation.sense]}"
        self._start([*PYTHON, "serve", *words], evaluation.log, what)

    def _held_out_words(self, evaluation: Evaluation) -> list[str]:
        config = self._ablation.config
        benchmark = config.benchmarks[evaluation.benchmark]
        words = ["heldout", str(evaluation.run.checkpoint), config.store, benchmark.stored]
        words += ["--out", str(evaluation.file), *_limit(benchmark)]
        return [*words, "--ask", evaluation.sense] if evaluation.sense else words

    def _task_words(self, evaluation: Evaluation) -> list[str]:
        """The command that asks a task; one that is asked otherwise than it is built in stands in a file."""
        config, task = self._ablation.config, evaluation.task
        assert task
        benchmark, folder = config.benchmarks[evaluation.benchmark], evaluation.file.parent
        words = ["evaluate", str(evaluation.run.checkpoint), config.store, f"{task.name}={benchmark.stored}"]
        words += ["--out", str(folder), "--failed", benchmark.failed, *_limit(benchmark)]
        if evaluation.file.exists():  # the models are asked nothing for another judge
            words += ["--only", "scores"]
        if TASKS.get(task.name) != task:
            words += ["--tasks", _yaml(folder / "task.yaml", {"tasks": [task.model_dump(mode="json")]})]
        if task.judged and config.judge:
            output = Path(config.output)
            judge = {"judges": [config.judge.model_dump(mode="json")]}
            words += ["--judges", _yaml(output / "judge.yaml", judge), "--ledger", str(output / LEDGER)]
        return words

    def _start(self, words: Sequence[str], log: Path, what: str) -> dict[str, object] | None:
        """Run a command with its output in a log, print its last line now and then; record and return a failure."""
        console.print(f"{what}, log: {log}", markup=False)
        with open(log, "ab") as output:
            output.write(f"$ {as_typed(words)}\n".encode())
            output.flush()
            process = subprocess.Popen(words, stdout=output, stderr=output, pass_fds=[self._lock])
            status, last = None, _last_line(log)
            try:
                while status is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        status = process.wait(SECONDS_BETWEEN_LINES)
                    line = _last_line(log)
                    if line != last:
                        console.print(f"  {line}", markup=False)
                    last = line
            finally:
                if status is None:
                    process.kill()
                    process.wait()
        if not status:
            return None
        command = as_typed(words)
        failure: dict[str, object] = {"what": what, "said": last, "status": status, "log": str(log), "command": command}
        self.failed.append(failure)
        return failure

    def _write(self) -> None:
        from ablate.tables import Results

        Results(self._ablation, self.failed).write(Path(self._ablation.config.output))


def _limit(benchmark: Benchmark) -> list[str]:
    return ["--limit", str(benchmark.limit)] if benchmark.limit else []


def _yaml(path: Path, content: object) -> str:
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return str(path)


def _last_line(log: Path) -> str:
    return [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1]


def as_typed(words: Sequence[str]) -> str:
    """A command, as one types it."""
    return shlex.join("python" if word == sys.executable else word for word in words)
