"""What this machine has and lacks for the work at hand, each finding with its remedy."""

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import yaml
from rich.text import Text

from avllm import __version__
from avllm.configs import shipped_files
from store import Storage, UserError, list_columns
from store.cache import cache_folder
from store.console import console, make_table
from store.hub import connects, hub_answers, hub_host, is_offline
from store.items import CORPUS
from store.settings import guess, yaml_fault

EXTRAS = {
    "featurize": "decoding media, encoders, Ray",
    "curate": "asking outside LLMs",
    "train": "both stages, checkpoints, adapters, ablations",
    "serve": "chat, the server, benchmarks",
    "export": "stores as HDF5 or zarr",
    "s3": "stores on S3",
    "track": "wandb and trackio",
    "flash": "flash-attn, for GPUs since Ampere",
}
FAST_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")
LOW_MEMORY_GB, LOW_DISK_GB = 8, 20


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        what: was looked at.
        found: there.
        remedy: what to do; empty where all is well.
        blocks: whether what was asked about cannot run without the remedy.
    """

    what: str
    found: str
    remedy: str = ""
    blocks: bool = False


def examine(config: str | None, store: str | None) -> bool:
    """Print all findings; return whether none of them blocks.

    Raises:
        UserError: there is no such configuration.
    """
    table = make_table("", "found", "remedy")
    sound = True
    for finding in findings(config, store):
        style = "red" if finding.blocks else "yellow" if finding.remedy else ""
        table.add_row(finding.what, Text(finding.found, style), Text(finding.remedy))
        sound = sound and not finding.blocks
    console.print(table)
    return sound


def findings(config: str | None, store: str | None) -> Iterator[Finding]:
    """Look at everything in turn."""
    yield Finding("avllm", f"{__version__}, Python {platform.python_version()}")
    yield from _extras()
    yield _processor()
    yield _memory()
    yield from _disks(store)
    yield from _gpus()
    yield _ray()
    yield _hub()
    if store:
        yield _store(store)
    if config:
        yield from _configuration(config)


def _extras() -> Iterator[Finding]:
    """The extras, each with what it lacks."""
    for extra, what in EXTRAS.items():
        missing = [name for name in _packages(extra) if not _is_installed(name)]
        remedy = f"pip install 'avllm[{extra}]'" if missing else ""
        yield Finding(f"extra {extra}: {what}", f"lacks {', '.join(missing)}" if missing else "complete", remedy)


def _packages(extra: str) -> list[str]:
    """The distributions that an extra asks for."""
    wanted = [line for line in importlib.metadata.requires("avllm") or () if re.search(rf"extra == .{extra}\W", line)]
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in wanted]
    return [name for name in names if name != "avllm"]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> Finding:
    """Cores, and whether bfloat16 is fast on them."""
    found = bfloat16_flag()
    cores = f"{len(os.sched_getaffinity(0))} cores"
    if found:
        return Finding("processor", f"{cores}, bfloat16 by {found}")
    return Finding("processor", f"{cores}, bfloat16 is slow", "on this CPU train with precision=float32")


def bfloat16_flag() -> str | None:
    """The CPU's flag of fast arithmetic in bfloat16, if it has one."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = re.findall(r"\w+", next((line for line in file if line.startswith(("flags", "Features"))), ""))
    except OSError:
        return None
    return next((flag for flag in FAST_BFLOAT16 if flag in flags), None)


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    low = "train a small LLM, such as the demo's: one of 7B takes 14 GB" if total < LOW_MEMORY_GB else ""
    return Finding("memory", f"{total:.0f} GB", low)


def _disks(store: str | None) -> Iterator[Finding]:
    """Free space here, of the cache, and of a store's disk."""
    places = {
        "this folder": (".", "name an output on another disk"),
        "cache": (str(cache_folder()), "set AVLLM_CACHE to a folder on another disk"),
    }
    if store and Storage(store).local:
        places["store"] = (store, "name a store on another disk")
    for what, (path, elsewhere) in places.items():
        there = path
        while not os.path.exists(there):
            there = os.path.dirname(os.path.abspath(there))
        free = shutil.disk_usage(there).free / 1e9
        low = f"free space, or {elsewhere}: a clip's features take 0.6 MB, a 7B checkpoint 14 GB"
        yield Finding(f"disk of {what}", f"{free:.0f} GB free", low if free < LOW_DISK_GB else "")


def _gpus() -> Iterator[Finding]:
    """Each GPU: its memory, and whether it computes in bfloat16."""
    if not _is_installed("torch"):
        yield Finding("GPU", "torch is missing", "pip install 'avllm[train]'")
        return
    import torch

    if not torch.cuda.is_available():
        remedy = "install a driver that fits this torch" if shutil.which("nvidia-smi") else ""
        yield Finding("GPU", f"none that torch {torch.__version__} can use", remedy)
        return
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        found = f"{device.name}, {total / 1e9:.0f} GB, {free / 1e9:.0f} GB of it free"
        old = "bfloat16 needs Ampere or newer: precision=float32" if device.major < 8 else ""
        yield Finding(f"GPU {number}", found, old)


def _ray() -> Finding:
    """The cluster that a run would join."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Finding("Ray", "RAY_ADDRESS is not set: workers are processes of this machine")
    if address in ("auto", "local"):
        return Finding("Ray", f"RAY_ADDRESS={address}")
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    if connects(parts.hostname or "", parts.port or 10001):
        return Finding("Ray", f"{address} answers")
    return Finding("Ray", f"{address} does not answer", "start the cluster, or unset RAY_ADDRESS")


def _hub() -> Finding:
    """Whether a model hub can be reached."""
    if is_offline():
        return Finding("model hub", "HF_HUB_OFFLINE is set: only what is in its cache")
    if hub_answers():
        return Finding("model hub", f"{hub_host()} answers")
    return Finding(
        "model hub", f"{hub_host()} does not answer", "name models and weights by folder, or set HF_ENDPOINT"
    )


def _store(store: str) -> Finding:
    storage = Storage(store)
    try:
        if not storage.exists(CORPUS):
            return Finding(
                "store", f"{store}: not there yet", f"avllm featurize plan MEDIA --store {store}", blocks=True
            )
        names = [column.name for column in list_columns(storage)]
    except UserError as error:
        return Finding("store", str(error), "avllm store verify says more", blocks=True)
    return Finding("store", f"columns: {', '.join(names) or 'none yet'}")


def _configuration(name: str) -> Iterator[Finding]:
    """What a configuration of any command needs: the model, weights and stores that it names."""
    try:
        with open(_path_of(name)) as file:
            data = yaml.safe_load(file)
    except OSError as error:
        near = guess(name, (each.partition("/")[2] for each in shipped_files()))
        raise UserError(f"{name}: {error.strerror}{near}; avllm configs lists those that are shipped") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not YAML: {yaml_fault(error)}") from None
    fields = data if isinstance(data, dict) else {}
    if "model" in fields:
        yield _named("model", str(fields["model"]))
    for column in fields.get("columns", ()):
        weights = str(column.get("encoder")).partition("/")[2]
        if weights != "random":
            yield _named("weights", weights)
    for store in {str(source.get("store")): None for source in fields.get("sources", ())}:
        yield _store(store)


def _path_of(name: str) -> str | Path:
    """The file of a configuration: a path as it is, or one that is shipped.

    Raises:
        UserError: several packages ship one of that name.
    """
    if os.path.isfile(name):
        return name
    known = {each: path for each, path in shipped_files().items() if name in (each, each.partition("/")[2])}
    if len(known) > 1:
        raise UserError(f"{name}: give PACKAGE/NAME: {' or '.join(known)}")
    return next(iter(known.values()), name)


def _named(what: str, name: str) -> Finding:
    """A model or weights: a folder or file that is there, or a name on the hub."""
    if os.path.exists(name):
        return Finding(what, f"{name} is here")
    if name.count("/") > 1 or name.startswith((".", "/")) or os.path.exists(name.partition("/")[0]):
        return Finding(what, f"{name} is not here", f"make it, or name another: {what}=...", blocks=True)
    hub = _hub()
    return Finding(what, f"{name}: no such folder here; from a hub: {hub.found}", hub.remedy, blocks=bool(hub.remedy))
