"""Where a checkpoint comes from: the chain of adapters below a directory, down to its root model.

A checkpoint is a directory. An adapter directory names its base in `adapter_config.json`; that base may be an adapter
directory itself (SFT on top of PT). `resolve` walks such a chain to the root. No weights are read here.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Lineage:
    """A root model and the adapters on it, the oldest first."""

    root: str
    adapters: tuple[str, ...] = ()


def resolve(model: str, adapter: str | None = None) -> Lineage:
    """The root and adapters behind a model directory, hub id or adapter directory.

    Args:
        model: what `--model_name_or_path` or `--base_model` names.
        adapter: a further adapter on top, directory or hub id (`--lora_model`). The adapters that it was trained on
            come with it where `model` is the root of both.

    Raises:
        ValueError: the adapter was trained on other adapters than those of `model`.
    """
    if not is_adapter(model):
        lineage = Lineage(model)
    else:
        config = json.loads((Path(model) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        below = resolve(_base_of(Path(model), config["base_model_name_or_path"]))
        lineage = Lineage(below.root, (*below.adapters, model))
    if adapter is None:
        return lineage
    adapter = find_adapter(adapter)
    check_same_base(model, adapter)
    try:
        own = resolve(adapter)
    except (FileNotFoundError, ValueError):  # its base lies elsewhere: the given model is taken for it
        return Lineage(lineage.root, (*lineage.adapters, adapter))
    given, trained = (tuple(map(absolute, chain)) for chain in (lineage.adapters, own.adapters))
    same_root = absolute(own.root) == absolute(lineage.root)
    if given == trained[:-1]:
        if not (given or same_root):
            logger.warning("%s was trained on %s; %s is taken for a copy of it", adapter, own.root, lineage.root)
        return Lineage(lineage.root, own.adapters)
    if given == trained[: len(given)] and (given or same_root):
        logger.info("%s comes with what it was trained on: %s", adapter, " + ".join(own.adapters[:-1]))
        return own
    raise ValueError(
        f"{adapter} was trained on {' + '.join((own.root, *own.adapters[:-1]))}, "
        f"not on {' + '.join((lineage.root, *lineage.adapters))}: the base to name is {(own.root, *own.adapters)[-2]}"
    )


def find_adapter(adapter: str) -> str:
    """The directory of an adapter; one that is no path here is taken for a hub id and fetched."""
    if not (Path(adapter).exists() or Path(adapter).is_absolute() or adapter.startswith(".")):
        try:
            adapter = snapshot_download(adapter)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"{adapter}: no such directory, and the hub has no such adapter ({error})"
            ) from error
    if not is_adapter(adapter):
        raise FileNotFoundError(f"{adapter}: not an adapter directory, {ADAPTER_CONFIG} is missing")
    return adapter


def is_adapter(path: str) -> bool:
    return (Path(path) / ADAPTER_CONFIG).is_file()


def _base_of(adapter: Path, name: str) -> str:
    """Where the adapter's base lies now: as written, or beside the adapter when the whole folder was moved."""
    if not name:
        raise ValueError(f"{adapter / ADAPTER_CONFIG}: base_model_name_or_path is empty, the base is unknown")
    if Path(name).exists() or not Path(name).is_absolute():
        return name
    moved = adapter.parent / Path(name).name
    if moved.exists():
        return str(moved)
    raise FileNotFoundError(f"{adapter / ADAPTER_CONFIG}: the base {name} does not exist, nor does {moved}")


def check_same_base(model: str, adapter: str) -> None:
    """Refuse an adapter that was trained on other weights than `model` (compared by the weights' fingerprint)."""
    trained_on = read_summary(adapter).get("base_fingerprint")
    given = read_summary(model).get("base_fingerprint") if is_adapter(model) else None
    if trained_on and given and trained_on != given:
        raise ValueError(f"{adapter} is an adapter of another base model than {model}")


def read_summary(path: str) -> dict:
    """`run_summary.json` of a checkpoint directory, or an empty dict where there is none."""
    file = Path(path) / "run_summary.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def refuse_reward_model(path: str) -> None:
    """A reward model gives scores, not text: say so instead of loading it as a language model."""
    for name in (ADAPTER_CONFIG, "config.json"):
        file = Path(path) / name
        if not file.is_file():
            continue
        config = json.loads(file.read_text(encoding="utf-8"))
        heads = config.get("architectures") or []
        if config.get("task_type") == "SEQ_CLS" or any("SequenceClassification" in head for head in heads):
            raise ValueError(f"{path} is a reward model (it scores answers); a language model is needed here")


def absolute(path: str) -> str:
    """An existing path made absolute; a hub id as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path
