"""`python -m ablate`: show what an ablation takes, do the missing work, write the results.

All work is done by the ordinary commands, each in its own process: `featurize run`, `trainer train`, `serve heldout`.
The only state is on disk, so the same command resumes after any stop.
"""

import contextlib
import fcntl
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from rich.table import Table

from ablate.plan import Ablation, Evaluation, Point, Run
from ablate.settings import AXES, AblateConfig
from store import UserError
from store.console import console

PYTHON = (sys.executable, "-m")
SECONDS_BETWEEN_LINES = 30.0  # how often a command's last line is repeated


def dry_run(config: AblateConfig, ranks: int | None = None, device: str | None = None) -> None:
    """Show what an ablation would do and how long it takes; start nothing but `featurize estimate`.

    Args:
        config: the ablation's settings.
        ranks: processes that the launcher of a run would start.
        device: a GPU known from data sheets, such as H100; None for this machine's device.

    Raises:
        UserError: settings, columns or conversations do not fit.
        SystemExit: an estimate failed, so a run would fail too.
    """
    ablation = Ablation(config)
    if files := _show_plan(ablation):
        console.print("training: hours are foretold once the columns are there")
        if not _show_costs(config, files):
            raise SystemExit(1)
        return
    from trainer.planning.estimate import foretell, show_hours

    hours: dict[str, float] = {}  # by settings without the seed
    total, where, failed = 0.0, "", False
    for llm, run in _to_train(ablation):
        config_of_run = run.config.model_copy(update={"model": llm})  # the stage before may not have left its own yet
        without_seed = repr(config_of_run.model_copy(update={"seed": 0, "output": ""}))
        if without_seed not in hours:
            hours[without_seed] = 0.0
            try:
                forecast = foretell(config_of_run, ranks, device)
            except UserError as error:
                console.print(f"will fail: {run.folder.name}: {error}", markup=False)
                failed = True
                continue
            assert forecast, "no launcher starts a dry run"
            hours[without_seed], where = forecast.estimate.hours, f"{forecast.ranks} x {forecast.device.name}"
        total += hours[without_seed]
    if where:
        console.print(f"training: {show_hours(total)} on {where} at an assumed MFU of 0.4, asking not counted")
    if failed:
        raise SystemExit(1)


def ablate(config: AblateConfig) -> None:
    """Plan, featurize what is missing, train, evaluate, and write tables and plots into `output`.

    Raises:
        UserError: settings, columns or conversations do not fit (nothing is started then), or featurizing failed.
        SystemExit: some runs or evaluations failed; the others' results are written.
    """
    ablation = Ablation(config)
    files = _show_plan(ablation)
    _show_costs(config, files)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with _alone(output) as lock:
        for file in files:
            if subprocess.run(_featurize(config, file), check=False).returncode:
                raise UserError(f"field 'featurize': {_shown(_featurize(config, file))} failed")
        if files:
            ablation = Ablation(config)
            for need in ablation.missing():
                raise UserError(f"field 'featurize': {', '.join(files)} did not make all of {need}")
        work = _Work(ablation, lock)
        work.all_points()
    console.print(f"results: {output}/results.md, {output}/results.json, plots beside them")
    if work.failed:
        for failure in work.failed:
            console.print(f"failed: {failure['what']}: {failure['said']} ({failure['log']})", markup=False)
        raise SystemExit(1)


def _show_plan(ablation: Ablation) -> list[str]:
    """Print what is read, trained and featurized first. Returns the configurations to featurize with."""
    _show_columns(ablation)
    _show_points(ablation)
    if not ablation.missing():
        return []
    from ablate.featurizing import configurations  # imports the featurizer, which finished columns need for nothing

    files = configurations(ablation)
    for file in files:
        console.print(f"to be featurized: {_shown(_featurize(ablation.config, file))}")
    return files


def _show_costs(config: AblateConfig, files: Sequence[str]) -> bool:
    """Measure what featurizing costs; return whether every estimate succeeded."""
    status = 0
    for file in files:
        estimate = [*PYTHON, "featurize", "estimate", "--store", config.store, "--config", file]
        console.print(f"what that costs: {_shown(estimate)}")
        status |= subprocess.run(estimate, check=False).returncode
    return not status


def _to_train(ablation: Ablation) -> list[tuple[str, Run]]:
    """The runs without a checkpoint, each once, with the LLM that their first stage starts from."""
    runs: dict[str, tuple[str, Run]] = {}
    for seed in ablation.config.seeds:
        for point in ablation.points():
            stages = ablation.runs(point, seed)
            runs |= {run.digest: (stages[0].config.model, run) for run in stages if not run.checkpoint.is_dir()}
    return list(runs.values())


def _featurize(config: AblateConfig, file: str) -> list[str]:
    return [*PYTHON, "featurize", "run", "--store", config.store, "--config", file]


def _shown(words: Sequence[str]) -> str:
    return shlex.join("python" if word == sys.executable else word for word in words)


def _show_columns(ablation: Ablation) -> None:
    table = Table("column", "array", "shards", "", title="What is read")
    for need in sorted(ablation.all_needs(), key=lambda need: (need.column, len(need.array), need.array)):
        column = ablation.find(need)
        written, planned = ablation.shards(column) if column else (0, 0)
        state = "there" if column and written == planned else "to be featurized"
        shards = f"{written} of {planned}" if column else ""
        table.add_row(column.name if column else need.column, need.array, shards, state)
    console.print(table)


def _show_points(ablation: Ablation) -> None:
    config = ablation.config
    table = Table("axis", "value", "runs", title="What is trained: one axis at a time around the base")
    base = ", ".join(f"{axis} {ablation.base_value(axis)}" for axis in AXES if ablation.rows(axis))
    seen: set[str] = set()
    for point in ablation.points():
        runs = [run for seed in config.seeds for run in ablation.runs(point, seed)]
        new = [run for run in runs if run.digest not in seen]
        seen |= {run.digest for run in new}
        states = [_state(run) for run in new]
        counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        counts += [f"{len(runs) - len(new)} shared"] if len(runs) > len(new) else []
        table.add_row(point.axis or "base", str(point.value or base), ", ".join(counts))
    for sense in config.axes.ask:
        benchmarks = [name for name in config.benchmarks if sense in ablation.senses(name)]
        table.add_row("ask", f"{sense} only", f"none: the base's model is asked {', '.join(benchmarks) or 'nothing'}")
    console.print(table)


def _state(run: Run) -> str:
    if run.checkpoint.is_dir():
        return "finished"
    return "stopped" if (run.folder / "steps").is_dir() else "to run"


class _Work:
    """The runs and evaluations of an ablation, done one after the other.

    Attributes:
        failed: a record of each command that failed.
    """

    def __init__(self, ablation: Ablation, lock: int) -> None:
        self.failed: list[dict[str, object]] = []
        self._ablation, self._lock = ablation, lock
        self._tried: set[str] = set()

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
        if not run.checkpoint.is_dir() and run.digest not in self._tried:
            self._tried.add(run.digest)
            run.folder.mkdir(parents=True, exist_ok=True)
            settings = run.folder / "train.yaml"
            settings.write_text(yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False))
            words = [*(self._ablation.config.launcher or PYTHON), "trainer", "train", str(settings)]
            self._start(words, run.folder / "train.log", f"{what}: {run.folder.name}")
        finished = run.checkpoint.is_dir()
        if finished:
            shutil.rmtree(run.folder / "steps", ignore_errors=True)  # each is as large as three checkpoints
        return finished

    def _ask(self, evaluation: Evaluation) -> None:
        if evaluation.file.exists():  # reports appear whole, so it is finished
            return
        evaluation.file.parent.mkdir(exist_ok=True)
        benchmark = self._ablation.config.benchmarks[evaluation.benchmark]
        words = [*PYTHON, "serve", "heldout", str(evaluation.run.checkpoint), self._ablation.config.store]
        words += [benchmark.conversations, "--out", str(evaluation.file)]
        words += ["--ask", evaluation.sense] if evaluation.sense else []
        words += ["--limit", str(benchmark.limit)] if benchmark.limit else []
        self._start(words, evaluation.file.with_suffix(".log"), f"{evaluation.run.folder.name}, {evaluation.file.stem}")

    def _start(self, words: Sequence[str], log: Path, what: str) -> None:
        """Run a command with its output in a log, print its last line now and then, and record a failure."""
        console.print(f"{what}, log: {log}", markup=False)
        with open(log, "ab") as output:
            output.write(f"$ {_shown(words)}\n".encode())
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
        if status:
            failure = {"what": what, "said": last, "status": status, "log": str(log), "command": _shown(words)}
            self.failed.append(failure)

    def _write(self) -> None:
        from ablate.tables import Results

        Results(self._ablation, self.failed).write(Path(self._ablation.config.output))


def _last_line(log: Path) -> str:
    return [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Lock a folder. Yields the lock's descriptor; child processes that inherit it hold the lock until they end.

    So if only this process is killed, the same command waits for the stage it had started to end, and then resumes.
    """
    with open(folder / ".lock", "ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(
                f"another ablation, or a stage that a killed one has started, is at work in {folder}; waiting"
            )
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle.fileno()
