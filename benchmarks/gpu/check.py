"""Run every part of the GPU check in its own process; print and save the measurements after each.

    python -m benchmarks.gpu            # all parts, on a machine with a GPU; needs no network and no other files
    python -m benchmarks.gpu --tiny     # the same parts on CPUs, in tiny shapes: proves the check, measures nothing

A part whose packages are missing is left out. One that fails or exceeds its time limit does not stop the next.
This file imports the standard library alone, so that it runs whatever is missing.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import signal
import subprocess
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import LeftOutError, Report, write_json

OURS = {"benchmarks", "store", "featurize", "trainer", "serve", "tests"}
TRAINING = ("pydantic", "torch", "transformers", "trainer.stage")
DEEPSPEED = (*TRAINING, "deepspeed")
ENCODERS = ("pydantic", "torch", "av", "featurize.shard_job")
TOTAL_SECONDS = 480.0
TINY_SECONDS = 120.0
AT_ONCE = 2  # parts that run at once in a tiny check, where nothing is timed


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        name: its name on the command line.
        function: `module:function` that measures it.
        needs: modules without which it is left out.
        seconds: its time limit.
    """

    name: str
    function: str
    needs: tuple[str, ...]
    seconds: float


PARTS = (
    Part("attention", "attention:measure", TRAINING, 60),
    Part("tests-trainer", "tests:trainer", (*TRAINING, "pytest"), 90),
    Part("zero", "zero:measure", DEEPSPEED, 120),
    Part("stage1", "training:stage1", TRAINING, 150),
    Part("feeding", "training:feeding", TRAINING, 45),
    Part("stage2", "training:stage2", TRAINING, 60),
    Part("lora", "training:lora", (*TRAINING, "peft"), 75),
    Part("offload", "training:offload", (*DEEPSPEED, "psutil"), 120),
    Part("tests-featurize", "tests:featurize", (*ENCODERS, "open_clip", "torchlibrosa", "laion_clap", "pytest"), 60),
    Part("images", "encoders:images", (*ENCODERS, "open_clip"), 60),
    Part("sounds", "encoders:sounds", (*ENCODERS, "torchlibrosa", "laion_clap"), 60),
    Part("films", "films:measure", (*ENCODERS, "open_clip"), 90),
    Part("answering", "answering:measure", (*TRAINING, "av"), 75),
)
FOUND_ONLY = ("laion_clap",)  # importing it contacts a model hub; our encoder only reads its files


def missing(needs: Sequence[str]) -> str | None:
    """Why a part cannot run here: the first module that cannot be imported, or None."""
    for name in needs:
        try:
            if name in FOUND_ONLY:
                if importlib.util.find_spec(name) is None:
                    return f"{name} is not installed"
            else:
                importlib.import_module(name)
        except ImportError as error:
            if not is_missing(error):
                raise
            return f"{name} cannot be imported: {error}"
    return None


def is_missing(error: BaseException) -> bool:
    """Whether an error means that somebody else's package is missing, or lacks a package that it needs."""
    if not isinstance(error, ImportError):
        before = error.__cause__ or error.__context__
        return before is not None and is_missing(before)
    return (error.name or "").split(".")[0] not in OURS


def run_part(part: Part, tiny: bool, folder: Path) -> None:
    """Measure a part in this process; its output goes to `<part>.log`."""
    os.setsid()  # its own process group, so that all it starts is killed with it
    log = os.open(folder / f"{part.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    module, function = part.function.split(":")
    report = Report(folder / f"{part.name}.json", tiny)
    try:
        if why := missing(part.needs):
            raise LeftOutError(why)
        report.look_for_gpu()
        getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(report)
        report.end("ran")
    except LeftOutError as error:
        report.end("left out", str(error))
    except BaseException as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        report.end("left out" if is_missing(error) else "failed", reason)


class Running:
    """A part that is measured in its own process.

    A tiny check forks it, since this process has imported everything already; CUDA does not survive a fork.
    """

    def __init__(self, part: Part, tiny: bool, folder: Path, limit: float) -> None:
        self._part, self._limit, self._path = part, limit, folder / f"{part.name}.json"
        self._path.unlink(missing_ok=True)
        self._began = time.monotonic()
        start_method: Any = multiprocessing.get_context("fork" if tiny else "spawn")
        self.process: Any = start_method.Process(target=run_part, args=(part, tiny, folder))
        self.process.start()

    @property
    def left(self) -> float:
        """Seconds until its time limit."""
        return self._began + self._limit - time.monotonic()

    def end(self) -> dict[str, Any]:
        """Kill the part's process group. Returns its result."""
        late = self.process.is_alive()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        result = json.loads(self._path.read_text()) if self._path.exists() else {"status": "running", "rows": []}
        if late:
            result |= {"status": "failed", "reason": f"not done after {self._limit:.0f} s"}
        elif result["status"] == "running":
            result |= {"status": "failed", "reason": f"its process ended with {self.process.exitcode}"}
        return {"part": self._part.name, **result, "took": time.monotonic() - self._began}


def measure(parts: Sequence[Part], tiny: bool, folder: Path, patience: float) -> Iterator[dict[str, Any]]:
    """Run the parts. Yields each one's result as it ends; each has a time limit, and so have all together."""
    deadline = time.monotonic() + patience * (TINY_SECONDS if tiny else TOTAL_SECONDS)
    waiting = list(parts)
    running: list[Running] = []
    while waiting or running:
        while waiting and len(running) < (AT_ONCE if tiny else 1):
            part = waiting.pop(0)
            if (left := deadline - time.monotonic()) <= 0:
                yield {"part": part.name, "status": "failed", "reason": "no time was left", "rows": [], "took": 0.0}
            else:
                running.append(Running(part, tiny, folder, min(patience * part.seconds, left)))
        if running:
            soonest = max(0.0, min(child.left for child in running))
            multiprocessing.connection.wait([child.process.sentinel for child in running], soonest)
        for child in [child for child in running if child.left <= 0 or not child.process.is_alive()]:
            running.remove(child)
            yield child.end()


def markdown(result: dict[str, Any], tiny: bool) -> str:
    """A part's table of measurements and targets."""
    head = f"### {result['part']}: {result['status']}" + (f" ({result['reason']})" if result.get("reason") else "")
    lines = [head if tiny else f"{head}, {result['took']:.0f} s"]
    if result["rows"]:
        lines += ["", "| what | measured | asked |", "| --- | --- | --- |"]
        for row in result["rows"]:
            unmet = "" if row["met"] in (None, True) or tiny else " **not met**"
            lines.append(f"| {row['what']} | {row['value']} | {row['asked']}{unmet} |")
    return "\n".join([*lines, ""])


def machine() -> dict[str, Any]:
    """The hardware and package versions here, as far as they can be found."""
    from importlib.metadata import PackageNotFoundError, version

    facts: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "cores": os.cpu_count()}
    facts["python"] = platform.python_version()
    for name in ("torch", "transformers", "flash-attn", "deepspeed", "open-clip-torch", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            facts[name] = version(name)
    cards = ""
    with contextlib.suppress(OSError):
        words = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        cards = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return {**facts, "cards": cards}


def arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Measure all that runs on a GPU.")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on CPUs: proves the check, measures nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for gpu.json, gpu.md and logs")
    names = [part.name for part in PARTS]
    parser.add_argument("--only", action="append", choices=names, metavar="PART", help=f"one of {', '.join(names)}")
    parser.add_argument("--patience", type=float, default=1.0, help="times the limits, which were set for an H100")
    return parser.parse_args()


def check(tiny: bool, out: Path, only: Sequence[str] | None, patience: float) -> int:
    """Measure the parts. Returns 1 if one failed; a figure that misses its target is marked, and fails nothing.

    Args:
        tiny: use tiny shapes on CPUs.
        out: output folder.
        only: names of parts; None runs all.
        patience: factor on the time limits.
    """
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if tiny else "true")
    chosen = [part for part in PARTS if not only or part.name in only]
    if tiny:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        for need in dict.fromkeys(need for part in chosen for need in part.needs):
            missing([need])  # imports it before the forks
    about = machine()
    print(f"{', '.join(f'{name} {value}' for name, value in about.items() if value)}\n", flush=True)
    results: list[dict[str, Any]] = []
    for result in measure(chosen, tiny, out, patience):
        results.append(result)
        print(markdown(result, tiny), flush=True)
        (out / "gpu.md").write_text("\n".join(markdown(ended, tiny) for ended in results))
        write_json(out / "gpu.json", {"machine": about, "tiny": tiny, "parts": results})
    failed = [result["part"] for result in results if result["status"] == "failed"]
    left_out = [result["part"] for result in results if result["status"] == "left out"]
    short = [row["what"] for result in results for row in result["rows"] if row["met"] is False]
    print(f"{len(results) - len(failed) - len(left_out)} parts ran, {len(left_out)} left out, {len(failed)} failed; "
          f"{len(short)} figures fall short; {out / 'gpu.json'}")  # fmt: skip
    for name in failed:
        print(f"failed: {name}: see {out / name}.log")
    return int(bool(failed))
