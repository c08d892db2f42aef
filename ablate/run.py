"""`avllm ablate`: show what an ablation takes, do the missing work, write the results.

All work is done by the ordinary commands, each in its own process: `featurize run`, `trainer train`, `serve heldout`,
`serve evaluate`. The only state is on disk, so the same command resumes after any stop.
"""

import contextlib
import fcntl
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from ablate.plan import Ablation, Run
from ablate.settings import AXES, AblateConfig
from ablate.work import PYTHON, Work, as_typed
from store import UserError
from store.console import console


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
    from trainer.planning.estimate import MFU, forecast, show_hours

    hours: dict[str, float] = {}  # by settings without the seed
    total, where, failed = 0.0, "", False
    for llm, run in _to_train(ablation):
        config_of_run = run.config.model_copy(update={"model": llm})  # the stage before may not have left its own yet
        without_seed = repr(config_of_run.model_copy(update={"seed": 0, "output": ""}))
        if without_seed not in hours:
            hours[without_seed] = 0.0
            try:
                foreseen = forecast(config_of_run, ranks, device)
            except UserError as error:
                console.print(f"will fail: {run.folder.name}: {error}", markup=False)
                failed = True
                continue
            assert foreseen, "no launcher starts a dry run"
            hours[without_seed], where = foreseen.estimate.hours, f"{foreseen.ranks} x {foreseen.device.name}"
        total += hours[without_seed]
    if where:
        console.print(f"training: {show_hours(total)} on {where} at an assumed MFU of {MFU}, asking not counted")
    if failed:
        raise SystemExit(1)


def ablate(config: AblateConfig) -> None:
    """Plan, featurize what is missing, train, evaluate, and write tables and plots into `output`.

    Raises:
        UserError: settings, columns or conversations do not fit (nothing is started then), or featurizing failed.
        SystemExit: some runs or evaluations failed; the others' results are written.
    """
    _show_costs(config, _show_plan(Ablation(config)))  # a cost that cannot be measured is no reason not to try
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with _alone(output) as lock:
        files = _to_featurize(Ablation(config))  # planned anew, as another ablation may have been waited for
        for file in files:
            if subprocess.run(_featurize(config, file), check=False).returncode:
                raise UserError(f"field 'featurize': {as_typed(_featurize(config, file))} failed")
        ablation = Ablation(config)
        for need in ablation.missing():
            raise UserError(f"field 'featurize': {', '.join(files)} did not make all of {need}")
        work = Work(ablation, lock)
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
    files = _to_featurize(ablation)
    for file in files:
        console.print(f"to be featurized: {as_typed(_featurize(ablation.config, file))}")
    return files


def _to_featurize(ablation: Ablation) -> list[str]:
    """The configurations to featurize with."""
    if not ablation.missing():
        return []
    from ablate.featurizing import configurations  # imports the featurizer, which finished columns need for nothing

    return configurations(ablation)


def _show_costs(config: AblateConfig, files: Sequence[str]) -> bool:
    """Measure what featurizing costs; return whether every estimate succeeded."""
    status = 0
    for file in files:
        estimate = [*PYTHON, "featurize", "estimate", "--store", config.store, "--config", file]
        console.print(f"what that costs: {as_typed(estimate)}")
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
