"""The folder of an evaluation, and what all answers in it have in common."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

from store import Settings, Storage, UserError, parse_settings
from store.publish import publishing
from trainer.checkpoint.info import CheckpointInfo

FREE = ("path", "version")  # of what answers have in common, may differ


class RunInfo(Settings):
    """What all answers in a folder have in common; answers of anything else are refused.

    Attributes:
        path: folder of the checkpoint; it may move.
        checkpoint: digest of its weights.
        columns: fingerprint of each column it reads, by sense.
        store: the store of the conversations and features.
        engine: what generates, and in which precision.
        version: of avllm, and a digest of the code that asks and scores; both may differ.
    """

    path: str = ""
    checkpoint: str
    columns: dict[str, str]
    store: str
    engine: str
    version: str


def folder_of(checkpoint: str, out: Path | None) -> Path:
    """The folder that `--out` names; else `evaluation` beside the checkpoint."""
    return out or Path(checkpoint).resolve().parent / "evaluation"


def info_of(checkpoint: str, info: CheckpointInfo, store: str, vllm: str | None) -> RunInfo:
    """What answers of a checkpoint have in common."""
    import torch

    from trainer.checkpoint.folder import checkpoint_digest

    precision = "bfloat16" if torch.cuda.is_available() else "float32"
    return RunInfo(
        path=str(Path(checkpoint).resolve()),
        checkpoint=checkpoint_digest(checkpoint, info),
        columns={sense: spec.fingerprint for sense, spec in sorted(info.columns.items())},
        store=Storage(store).url,
        engine=f"vllm, prompts in {precision}" if vllm else f"transformers, {precision}",
        version=f"{version('avllm')}, code {_code_digest()}",
    )


def _code_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def claim(folder: Path, run: RunInfo) -> None:
    """Write what the answers will have in common, or check that it is what they have, if there are any.

    Raises:
        UserError: the folder holds answers of something else.
    """
    path = folder / "run.json"
    if path.exists() and any(answers.stat().st_size for answers in folder.glob("answers*.jsonl")):
        before = read_run(folder)
        fields = (name for name in RunInfo.model_fields if name not in FREE)
        if differing := next((name for name in fields if getattr(before, name) != getattr(run, name)), None):
            theirs, ours = (_shown(each, differing) for each in (before, run))
            raise UserError(
                f"{folder}: holds answers of another {differing}: {theirs}, not {ours}; name another folder with --out"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    with publishing(path) as temporary:
        temporary.write_text(run.model_dump_json(indent=1))


def _shown(run: RunInfo, field: str) -> str:
    value = getattr(run, field)
    return f"{run.path} ({value})" if field == "checkpoint" and run.path else str(value)


def read_run(folder: Path) -> RunInfo:
    """What the answers in a folder have in common.

    Raises:
        UserError: it is no folder of an evaluation.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: no evaluation: there is no run.json in it; avllm serve evaluate ... --out {folder} makes one"
        )
    return parse_settings(RunInfo, json.loads(path.read_text()), str(path))
