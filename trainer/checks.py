"""What can be refused before torch is imported, so that a mistake is told at once."""

from pathlib import Path

from store import Storage, UserError, check_conversations, is_missing_folder
from trainer.features import Grid
from trainer.joined import open_columns
from trainer.launch import check_world
from trainer.settings import TrainConfig


def check_run(config: TrainConfig) -> None:
    """Refuse a run whose output is there already, and what `check_plan` refuses.

    Raises:
        UserError: names the field.
    """
    if (Path(config.output) / "checkpoint").exists() and not config.overwrite:
        raise UserError(f"field 'output': {config.output} holds a checkpoint; take another folder, or overwrite=true")
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
    """Refuse an LLM that is a path, not a hub's name, if nothing is there.

    Raises:
        UserError: it is missing.
    """
    if is_missing_folder(model):
        raise UserError(
            f"field 'model': {model}: no such folder here; accepted: a folder of an LLM that transformers can load, "
            "or its name on the hub, such as lmsys/vicuna-7b-v1.5"
        )


def _check_sources(config: TrainConfig) -> None:
    """Refuse missing stores, columns, arrays of the run's T and K, and conversations."""
    for source in (*config.sources, *(config.evaluation.sources if config.evaluation else ())):
        storage = Storage(source.store)
        columns = open_columns(storage, config.visual, config.audio)
        Grid(config.frames, config.segments).row_types(column.spec for column in columns)
        check_conversations(storage, source.conversations)
