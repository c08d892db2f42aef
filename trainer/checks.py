"""What can be refused before torch is imported, so that a mistake is told at once."""

import os
from pathlib import Path

from store import Storage, UserError, check_conversations, is_missing_folder
from store.hub import use_cache_without_hub
from trainer.features import Grid
from trainer.joined import open_columns
from trainer.launch import check_world
from trainer.settings import TrainConfig


def check_run(config: TrainConfig) -> None:
    """Refuse a run whose output is no folder for it, and what `check_plan` refuses.

    Raises:
        UserError: names the field.
    """
    output = Path(config.output)
    there = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"field 'output': {there} is a file; expected a folder, or the name of a new one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"field 'output': {there}: Permission denied; expected a folder that can be written")
    if (output / "checkpoint").exists() and not config.overwrite:
        raise UserError(f"field 'output': {output} holds a checkpoint; take another folder, or overwrite=true")
    check_plan(config)


def check_plan(config: TrainConfig, ranks: int | None = None, *, reads_sources: bool = True) -> None:
    """Refuse a number of ranks that does not fit, and an LLM or sources that are not there.

    Args:
        config: of the run.
        ranks: that a launcher would start; None for those it did start.
        reads_sources: whether the sources are needed.

    Raises:
        UserError: names the field.
    """
    check_world(config, ranks)
    check_llm_folder(config.model)
    if reads_sources:
        _check_sources(config)


def check_llm_folder(model: str) -> None:
    """Refuse an LLM that is a path, not a hub's name, if none is there.

    Raises:
        UserError: it is missing, or no LLM.
    """
    path = Path(model)
    if is_missing_folder(model):
        if path.name == "checkpoint":
            raise UserError(
                f"field 'model': {model} is not there: the run in {path.parent} has not ended; train it first"
            )
        raise UserError(
            f"field 'model': {model}: no such folder here; accepted: a folder of an LLM that transformers can load, "
            "or its name on the hub, such as lmsys/vicuna-7b-v1.5"
        )
    if not path.is_dir():
        use_cache_without_hub()
    elif not (path / "config.json").is_file():
        raise UserError(
            f"field 'model': {model}: has no config.json; expected a folder of an LLM as transformers saves it"
        )


def _check_sources(config: TrainConfig) -> None:
    """Refuse missing stores, columns, arrays of the run's T and K, and conversations."""
    for source in (*config.sources, *(config.evaluation.sources if config.evaluation else ())):
        storage = Storage(source.store)
        columns = open_columns(storage, config.visual, config.audio)
        Grid(config.frames, config.segments).row_types(column.spec for column in columns)
        check_conversations(storage, source.conversations)
