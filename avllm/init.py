"""`avllm init`: configuration files for a store, an LLM and GPUs, which need no overrides."""

import math
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import typer
import yaml

from avllm.doctor import bfloat16_flag
from avllm.reference import meanings
from featurize.settings import FeaturizeConfig, TokenSettings
from store import Storage, UserError, is_missing_folder, list_columns, list_conversations, load_settings, parse_settings
from store.console import console
from store.conversation import count_conversations
from store.items import CORPUS
from store.settings import guess, shipped
from trainer.settings import TrainConfig

T = TypeVar("T")
STAGES = (1, 2)
GB_OF_WEIGHT, GB_OF_TRAINED = 2, 16  # of a billion: bfloat16; float32 with its gradient and AdamW's two moments
GB_OFFLOADED = 30  # of host memory for a billion trained weights (docs/recipes.md)
WORKING_GB = 8  # activations and gathered layers at these files' batch_tokens (docs/recipes.md)
FEWEST_STEPS = 20  # of an epoch: small data gets small batches
SMALL_LLM, SMALL_LLM_LR = 1, 2e-4  # billions of weights; the demo's rate
UNKNOWN_LLM = 7.0
FEW_STEPS = 100  # that teach little


class Machine(NamedTuple):
    """What trains.

    Attributes:
        gpus: how many; 0 for a CPU.
        memory: GB of each.
        host: GB of main memory.
    """

    gpus: int
    memory: float
    host: float


def write(
    folder: Path, store: str | None, conversations: str | None, model: str | None, gpus: int | None, memory: int | None
) -> None:
    """Write the files into a new folder, and print the commands that take them.

    Raises:
        UserError: a value is not given and there is no terminal to ask at, or the folder has such files already.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder, or the name of a new one")
    for name in ("featurize.yaml", *(f"stage{number}.yaml" for number in STAGES)):
        if (folder / name).exists():
            raise UserError(f"{folder / name} exists; remove it, or give another folder")
    storage = Storage(store or _ask("store", "Store (a folder or a URL)", "runs/store"))
    conversations = conversations or _choose(storage)
    if (names := list_conversations(storage)) and conversations not in names:
        near = guess(conversations, names)
        raise UserError(f"--conversations {conversations}: the store has {', '.join(names)}{near}")
    model = model or _ask("model", "LLM (a Hugging Face folder, or a name on the hub)", "lmsys/vicuna-7b-v1.5")
    _check_model(model)
    gpus = _ask("gpus", "GPUs that train (0 for a CPU)", 1) if gpus is None else gpus
    memory = _ask("memory", "GB of each GPU", 80) if gpus and memory is None else memory
    machine = Machine(gpus, memory or 0, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
    encoders = None if list_columns(storage) else "paper" if gpus else "demo"
    files = {"featurize.yaml": shipped(FeaturizeConfig)[encoders].read_text()} if encoders else {}
    files |= _stages(folder, storage, conversations, model, machine, _columns(storage, encoders))
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    _say_next(folder, storage, encoders, machine)


def _stages(
    folder: Path, storage: Storage, conversations: str, model: str, machine: Machine, columns: dict[str, Any]
) -> dict[str, str]:
    """The files of both stages, by name; stage 2 starts from the checkpoint of stage 1."""
    size, count = _billions(model), _count(storage, conversations)
    if not machine.gpus and size > SMALL_LLM:
        console.print(
            f"a CPU takes weeks for {size:.1f} billion weights; choose an LLM below {SMALL_LLM} billion for it"
        )
    files, folder = {}, folder.absolute()
    model = str(Path(model).absolute()) if Path(model).is_dir() else model
    for number in STAGES:
        name = f"stage{number}"
        fields = _stage(number, machine, size, count) | columns
        fields["sources"] = [{"store": storage.url, "conversations": conversations}]
        fields["model"] = model if number == STAGES[0] else str(folder / "stage1" / "checkpoint")
        fields["output"] = str(folder / name)
        parse_settings(TrainConfig, fields, f"{name}.yaml")
        steps = math.ceil(count * fields["epochs"] / fields["global_batch"]) if count else FEW_STEPS
        if steps < FEW_STEPS:
            console.print(f"stage {number}: {steps} steps for {count} conversations teach little; epochs=10 has more")
        files[f"{name}.yaml"] = _commented(fields)
    return files


def _ask(option: str, question: str, default: T) -> T:
    if not sys.stdin.isatty():
        raise UserError(f"--{option}: give it; there is no terminal to ask at")
    answer: T = typer.prompt(question, default=default, type=type(default))
    return answer


def _check_model(model: str) -> None:
    """Refuse a path where no LLM is; a name on the hub is `owner/name` or `name`."""
    path = Path(model).expanduser()
    if is_missing_folder(os.path.expanduser(model)):
        raise UserError(f"--model {model}: no such folder; expected one in Hugging Face form, or a name on the hub")
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"--model {model}: has no config.json; expected a folder in Hugging Face form")


def _choose(storage: Storage) -> str:
    names = list_conversations(storage)
    there = f"; there are {', '.join(names)}" if names else " that will be planned"
    return names[0] if len(names) == 1 else _ask("conversations", f"Conversations{there}", "train")


def _count(storage: Storage, conversations: str) -> int | None:
    return count_conversations(storage, conversations) if conversations in list_conversations(storage) else None


def _columns(storage: Storage, encoders: str | None) -> dict[str, Any]:
    """The columns to read, with their most frames and segments: the store's, or those that a configuration makes."""
    if encoders:
        made = load_settings(FeaturizeConfig, encoders).columns
        arrays = {c.column: c.arrays for c in made if isinstance(c, TokenSettings)}
    else:
        specs = [column.spec for column in list_columns(storage)]
        arrays = {spec.name: tuple(spec.features) for spec in specs}
    found: dict[str, Any] = {"visual": None, "audio": None}
    for field, count, mark in (("visual", "frames", "spatial.t"), ("audio", "segments", "audio.k")):
        counts = {name: _most(names, mark) for name, names in arrays.items() if _most(names, mark)}
        if counts:
            found[field] = max(counts, key=lambda name: counts[name])
            found[count] = counts[found[field]]
            if len(counts) > 1:
                console.print(f"{field}: {found[field]} is taken; there are: {', '.join(counts)}")
    return found


def _most(arrays: tuple[str, ...], mark: str) -> int:
    return max((int(name.removeprefix(mark)) for name in arrays if name.startswith(mark)), default=0)


def _billions(model: str) -> float:
    """Weights of an LLM in billions: by the bytes of its files, else by its name."""
    files = [path for ending in ("safetensors", "bin") for path in Path(model).glob(f"*.{ending}")]
    if files:
        return sum(path.stat().st_size for path in files) / GB_OF_WEIGHT / 1e9
    named = re.search(r"(\d+(?:\.\d+)?)([bBmM])(?![a-zA-Z])", model)
    if named:
        return float(named[1]) / (1000 if named[2] in "mM" else 1)
    console.print(f"{model}: its size is not known; planned as {UNKNOWN_LLM:.0f} billion weights")
    return UNKNOWN_LLM


def _stage(number: int, machine: Machine, size: float, count: int | None) -> dict[str, Any]:
    """The paper's settings of a stage, as this machine can run them."""
    fields = _plain(f"paper-stage{number}")
    if not machine.gpus:
        fields |= {"zero": None, "gradient_checkpointing": False, "save_every": 50}
        fields |= {} if bfloat16_flag() else {"precision": "float32"}
    elif number == 1:
        tight = GB_OF_WEIGHT * size + WORKING_GB > machine.memory
        if machine.gpus > 1:
            fields["zero"] = {"stage": 3 if tight else 2}
        else:  # alone it has nobody to share with, and what offload moves is small in stage 1: smaller passes help
            fields |= {"zero": None} | ({"batch_tokens": fields["max_tokens"]} if tight else {})
    elif GB_OF_TRAINED * size / machine.gpus + WORKING_GB < machine.memory:
        fields["zero"] = {"stage": 3} if machine.gpus > 1 else None
    elif GB_OFFLOADED * size < machine.host:
        fields["zero"] = {"stage": 3, "offload": True}
    else:
        fields |= _plain("paper-lora") | {"zero": {"stage": 2} if machine.gpus > 1 else None}
    if size < SMALL_LLM and number == 2:
        fields["lr"] = SMALL_LLM_LR
    fields["global_batch"] = _batch(fields["global_batch"], max(1, machine.gpus), count)
    return fields


def _batch(paper: int, ranks: int, count: int | None) -> int:
    """The paper's batch, or less, so that ranks divide it and an epoch has some steps; at least `ranks`."""
    batch = max(ranks, paper // ranks * ranks)
    while count and count < FEWEST_STEPS * batch and batch > ranks:
        batch = max(ranks, batch // 2 // ranks * ranks)
    return batch


def _plain(name: str) -> dict[str, Any]:
    fields: dict[str, Any] = yaml.safe_load(shipped(TrainConfig)[name].read_bytes())
    return fields


def _commented(fields: dict[str, Any]) -> str:
    """YAML with what each field means above it."""
    meaning = meanings(TrainConfig)
    parts = []
    for name in TrainConfig.model_fields:
        if name in fields:
            value = yaml.safe_dump(fields[name], default_flow_style=True, sort_keys=False).removesuffix("...\n")
            parts.append(f"# {name}: {meaning[name]}\n{name}: {value}")
    return "\n".join(parts)


def _say_next(folder: Path, storage: Storage, encoders: str | None, machine: Machine) -> None:
    """Print the commands, in their order."""
    console.print(f"{folder}: look at the files, then:")
    if encoders:
        if not storage.exists(CORPUS):
            console.print(f"  avllm featurize plan MEDIA --store {storage.url}")
        console.print(f"  avllm featurize run --store {storage.url} --config {folder / 'featurize.yaml'}")
    for number in STAGES:
        file = folder / f"stage{number}.yaml"
        zero = load_settings(TrainConfig, file).zero
        starter = f"torchrun --nproc-per-node {machine.gpus} -m trainer" if zero else "avllm trainer"
        console.print(f"  {starter} train {file}")
    console.print(
        f"  avllm serve chat --checkpoint {folder / 'stage2' / 'checkpoint'} --media CLIP 'What happens here?'"
    )
