"""The LLM of a stage whose checkpoint an earlier one has yet to write, so that both can be planned together."""

from pathlib import Path

from store import UserError, load_settings
from store.console import console
from store.settings import find_config
from trainer.launch import is_first
from trainer.settings import TrainConfig


def with_first_llm(config: TrainConfig, file: str) -> TrainConfig:
    """Settings for a dry run: the model that an earlier stage starts from takes the place of its missing checkpoint.

    The earlier stage is a configuration in the folder of `file` whose `output` the checkpoint belongs to.

    Raises:
        UserError: none is beside it; says which override to give.
    """
    checkpoint = Path(config.model)
    if checkpoint.exists() or checkpoint.name != "checkpoint":
        return config
    for path in sorted(find_config(TrainConfig, file).parent.glob("*.yaml")):
        try:
            earlier = load_settings(TrainConfig, path)
        except UserError:  # some other YAML
            continue
        if Path(earlier.output) == checkpoint.parent:
            if is_first():
                console.print(f"{checkpoint} is not there yet; planned with {earlier.model}, the model of {path}")
            return config.model_copy(update={"model": earlier.model})
    raise UserError(
        f"field 'model': {checkpoint}: no such folder here; until the stage before has written it, give the model that "
        "that stage starts from: model=NAME"
    )
