"""The `featurize run` configurations that make an ablation's missing arrays, checked before anything starts."""

from pathlib import Path

from ablate.plan import Ablation, RequiredArray
from ablate.settings import AblateConfig
from featurize.settings import EncoderSettings, FeaturizeConfig
from store import UserError, load_settings
from store.settings import shipped


def configurations(ablation: Ablation) -> list[str]:
    """The configurations that make the arrays which the store lacks, each once.

    Raises:
        UserError: the field `featurize` names none for a column, or one that would not make what is needed of it.
    """
    missing = ablation.missing()
    files = [_file_for(ablation.config, need) for need in missing]
    for file, need in zip(files, missing, strict=True):
        _check_makes(ablation, load_settings(FeaturizeConfig, file), file, need)
    return list(dict.fromkeys(files))


def _file_for(config: AblateConfig, need: RequiredArray) -> str:
    """The configuration that is named for a column, by its full name or without the digest."""
    for name in (need.column, _base(need)):
        if name in config.featurize:
            return config.featurize[name]
    makers = [
        f"featurize.{_base(need)}={name}" for name, path in shipped(FeaturizeConfig).items() if _makes(path, need)
    ]
    raise UserError(
        f"field 'featurize': {config.store} does not hold all of {need}; name the YAML of `featurize run` that makes "
        f"it: {' or '.join(makers) or f'featurize.{_base(need)}=FILE'}"
    )


def _makes(file: Path, need: RequiredArray) -> bool:
    columns = load_settings(FeaturizeConfig, file).columns
    return any(need.array in column.arrays for column in columns if column.column == _base(need))


def _check_makes(ablation: Ablation, made: FeaturizeConfig, file: str, need: RequiredArray) -> None:
    """Refuse a configuration that does not make an array, or makes others again that the runs read already."""
    where = f"field 'featurize.{_base(need)}': {file}"
    columns: list[EncoderSettings] = [column for column in made.columns if column.column == _base(need)]
    if not columns:
        names = ", ".join(dict.fromkeys(column.column for column in made.columns))
        raise UserError(f"{where} makes {names}, not {_base(need)}")
    arrays = [array for column in columns for array in column.arrays]
    if need.array not in arrays:
        raise UserError(f"{where} makes {', '.join(arrays)} of {_base(need)}, not {need.array}")
    if ablation.find(need):  # the column is there and lacks shards
        return
    for other in ablation.all_needs():
        held = ablation.find(other) if other.column == need.column and other.array in arrays else None
        if held:
            raise UserError(
                f"{where} makes {other.array} again, which {held.name} holds; leave it out there, or name each column "
                "with its digest"
            )


def _base(need: RequiredArray) -> str:
    return need.column.partition(".")[0]
