"""The model that a stage starts with: its LLM, and projectors from a checkpoint or from the statistics of columns."""

from typing import Any

import torch

from store import UserError
from store.console import console
from trainer.checkpoint.folder import check_llm, load_projectors
from trainer.checkpoint.info import is_checkpoint, read_info
from trainer.data import TrainingData
from trainer.launch import is_first
from trainer.model import AudioVisualLM, ColumnStatistics, initialize_projectors
from trainer.settings import TrainConfig
from trainer.trainable import choose_trained

STATISTICS_ITEMS = 512  # of a column, from which its projectors' statistics are computed


def build_model(config: TrainConfig, data: TrainingData, llm: Any) -> AudioVisualLM:
    """The model of a stage: projectors from a checkpoint, those that it lacks initialized from column statistics."""
    model = AudioVisualLM(llm, data.widths)
    trained: dict[str, torch.Tensor] = {}
    if is_checkpoint(config.model):
        check_checkpoint(config, data)
        check_llm(config.model, read_info(config.model), llm)
        trained = load_projectors(config.model)
    known = {name.split(".")[0] for name in trained}
    if missing := data.widths.keys() - known:
        statistics = ColumnStatistics()
        for arrays in data.items(STATISTICS_ITEMS):
            statistics.add(arrays)
        initialize_projectors(model, statistics, config.seed, missing)
    model.projectors.load_state_dict(
        {name: w for name, w in trained.items() if name.split(".")[0] in data.widths}, strict=False
    )
    choose_trained(config, model)
    return model


def check_checkpoint(config: TrainConfig, data: TrainingData) -> None:
    """Refuse to train a checkpoint further on other columns; print what else differs from how it was trained.

    Raises:
        UserError: a column is not the one it was trained on.
    """
    info = read_info(config.model)
    then, now = (
        {"frames": info.frames, "segments": info.segments},
        {"frames": config.frames, "segments": config.segments},
    )
    differences = [f"{field} {then[field]} (now {now[field]})" for field in then if then[field] != now[field]]
    if differences and is_first():
        console.print(
            f"warning: {config.model} was trained with {', '.join(differences)}; its projectors know that grid"
        )
    for modality, spec in data.specs.items():
        trained = info.columns.get(modality)
        if trained is None:
            if is_first():
                console.print(f"{config.model} was trained without {modality}: this run starts to read {spec.folder}")
        elif trained != spec:
            raise UserError(
                f"field {modality!r}: {config.model} was trained on {trained.folder}, this run reads {spec.folder}"
            )
    for modality in sorted(info.columns.keys() - data.specs.keys()):
        if is_first():
            console.print(f"{config.model} also reads {info.columns[modality].folder}; this run leaves that out")
