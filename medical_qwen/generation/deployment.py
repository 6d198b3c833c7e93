"""What vLLM loads for a checkpoint of ours: whole weights, LoRA adapters on them, and one folder for everything else.

vLLM knows neither chains of adapters nor our templates. So a chain is merged up to its last adapter, which stays an
adapter where vLLM can apply it, and a folder is written with the tokenizer, its chat template and the tokens that end
an answer. Ids then equal those of `rendering`, with one difference: vLLM tokenizes a rendered conversation as a whole,
so a control token that is spelled out in a message would become one. The template in the folder breaks such spellings
up with an invisible character (U+200B).
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from medical_qwen.lineage import (
    ADAPTER_CONFIG,
    Lineage,
    check_same_base,
    find_adapter,
    read_summary,
    refuse_reward_model,
    resolve,
)
from medical_qwen.models import (
    cache_folder,
    choose_tokenizer,
    load_tokenizer,
    make_savable,
    merged_directory,
    save_atomically,
)
from medical_qwen.rendering import Renderer

logger = logging.getLogger(__name__)

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM's --max-lora-rank takes
# Settings of an adapter that vLLM refuses or does not read.
_NOT_IN_VLLM = ("modules_to_save", "use_dora", "rank_pattern", "alpha_pattern", "layer_replication", "lora_bias",
                "trainable_token_indices", "target_parameters")  # fmt: skip


@dataclass(frozen=True)
class Deployment:
    """`model`: directory or hub id of whole weights; `adapters`: names and directories of LoRA adapters on it.

    `tokenizer` is a directory with tokenizer, chat template and generation_config.json.
    """

    model: str
    name: str
    tokenizer: str
    adapters: dict[str, str]

    @property
    def lora_rank(self) -> int:
        """The smallest rank that vLLM can be told and that no adapter exceeds."""
        largest = max(_config(adapter)["r"] for adapter in self.adapters.values())
        return next(rank for rank in LORA_RANKS if rank >= largest)

    def flags(self) -> list[str]:
        """For vLLM's server, beside the model itself."""
        flags = ["--served-model-name", self.name]
        flags += ["--tokenizer", self.tokenizer, "--generation-config", self.tokenizer]
        flags += ["--chat-template-content-format", "string"]
        if self.adapters:
            modules = [json.dumps({"name": name, "path": path}) for name, path in self.adapters.items()]
            flags += ["--enable-lora", "--max-lora-rank", str(self.lora_rank), "--max-loras", str(len(modules))]
            flags += ["--lora-modules", *modules]
        return flags


def deploy(model: str, modules: dict[str, str] | None = None, template_name: str | None = None) -> Deployment:
    """Resolve, merge where needed, and write the tokenizer's folder.

    Args:
        model: merged model, hub id or adapter directory.
        modules: adapters by the names that clients call them. They were trained on `model`; where that is an adapter
            itself, they may also stand beside it, on the same base.

    Raises ValueError for an adapter that vLLM cannot apply or that belongs to another base.
    """
    lineage = resolve(model)
    modules = {name: find_adapter(path) for name, path in (modules or {}).items()}
    for path in modules.values():
        check_same_base(model, path)
    for path in (lineage.root, *lineage.adapters, *modules.values()):
        refuse_reward_model(path)
    for name, path in modules.items():
        if reason := _not_a_lora(path):
            raise ValueError(f"{name}={path}: vLLM cannot apply this adapter ({reason}): serve it as the model itself")
    base = _base_of_all(lineage, modules)
    if base != lineage:
        modules = {_name(model): model, **modules}
    whole = merged_directory(base) if base.adapters else base.root
    name = _name(base.adapters[-1] if base.adapters else base.root)
    if name in modules:
        raise ValueError(f"two models are called {name}: name the adapter otherwise, as in other={modules[name]}")
    own = (choose_tokenizer(model, path, None) for path in modules.values())
    tokenizers = [load_tokenizer(path, template_name) for path in dict.fromkeys((model, *own))]
    if len({tokenizer.chat_template for tokenizer in tokenizers}) > 1:
        raise ValueError(
            f"{model} and its adapters {', '.join(modules)} have different chat templates, and a server has one: "
            "serve them apart, or choose one with --template_name"
        )
    adapters = {name: str(Path(path).resolve()) for name, path in modules.items()}
    return Deployment(whole, name, tokenizer_folder(tokenizers[0], lineage.root), adapters)


def _base_of_all(lineage: Lineage, modules: dict[str, str]) -> Lineage:
    """What is merged and served whole: everything, or all but the last adapter, which is then a module too."""
    below = Lineage(lineage.root, lineage.adapters[:-1])
    if not modules:
        reason = _not_a_lora(lineage.adapters[-1]) if lineage.adapters else None
        if reason:
            logger.warning("%s is merged: vLLM cannot apply it as an adapter (%s)", lineage.adapters[-1], reason)
        return lineage if reason else below
    chains = {name: _trained_on(path) for name, path in modules.items()}
    for base in (lineage, below):
        if all(chain in (None, _absolute(base.adapters)) for chain in chains.values()):
            return base
    given = " + ".join((lineage.root, *lineage.adapters))
    shown = "; ".join(f"{name} on {' + '.join(chain or ()) or 'a whole model'}" for name, chain in chains.items())
    raise ValueError(f"the adapters were trained on other weights than {given} ({shown})")


def _trained_on(adapter: str) -> tuple[str, ...] | None:
    """The adapters below this one. None where its base lies elsewhere: then the given model is taken for it."""
    try:
        return _absolute(resolve(adapter).adapters[:-1])
    except FileNotFoundError:
        return None


def _absolute(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(Path(path).resolve()) for path in paths)


def _config(adapter: str) -> dict:
    return json.loads((Path(adapter) / ADAPTER_CONFIG).read_text(encoding="utf-8"))


def _not_a_lora(adapter: str) -> str | None:
    """Why vLLM cannot apply an adapter without merging it; None if it can."""
    config = _config(adapter)
    if config.get("peft_type") != "LORA":
        return f"peft_type {config.get('peft_type')}"
    if config.get("bias", "none") != "none":
        return f"bias {config['bias']}"
    if config["r"] > LORA_RANKS[-1]:
        return f"rank {config['r']}"
    if read_summary(adapter).get("embedding_rows"):
        return "it has tokens of its own"
    return next((name for name in _NOT_IN_VLLM if config.get(name)), None)


def _name(path: str) -> str:
    """A hub id as it is, a directory's own name."""
    return Path(path).resolve().name if Path(path).is_dir() else path


def tokenizer_folder(tokenizer: PreTrainedTokenizerBase, root: str) -> str:
    """A folder in the cache with the tokenizer as it is to be served and a generation_config.json.

    `root` is the model whose own generation settings are kept, except for the tokens that end an answer.
    """
    renderer = Renderer(tokenizer)
    if renderer.stop_strings:
        texts = ", ".join(map(repr, renderer.stop_strings))
        logger.warning(
            "this template also ends answers at %s, which a server does not: clients pass them as stop", texts
        )
    config = AutoConfig.from_pretrained(root)  # vLLM reads there which kind of model the tokenizer is for
    try:
        settings = GenerationConfig.from_pretrained(root)
    except OSError:  # it has none
        settings = GenerationConfig.from_model_config(config)
    make_savable(settings)
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    settings.eos_token_id = sorted({*renderer.stop_token_ids, *ends} - {None})
    tokenizer.chat_template = shielding(renderer) + tokenizer.get_chat_template()
    parts = (tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, str(settings), str(config))
    target = cache_folder() / "serving" / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    if not target.is_dir():
        save_atomically(tokenizer, target, settings, config)
    return str(target)


def shielding(renderer: Renderer) -> str:
    """The beginning of a chat template under which no message holds a control token.

    What the assistant said may hold those that mark no turn (`<think>`).
    """
    always, others = [], []
    for text, marks_turn in renderer.control_tokens.items():
        if len(text) > 1:
            old, new = json.dumps(text), json.dumps(f"{text[0]}\u200b{text[1:]}")
            (always if marks_turn else others).append(f"{{%- set safe.text = safe.text | replace({old}, {new}) -%}}")
    return (
        "{%- set safe = namespace(messages=[], text='') -%}{%- for message in messages -%}"
        "{%- if message.content is string -%}{%- set safe.text = message.content -%}"
        f"{''.join(always)}{{%- if message.role != 'assistant' -%}}{''.join(others)}{{%- endif -%}}"
        "{%- set message = dict(message, content=safe.text) -%}{%- endif -%}"
        "{%- set safe.messages = safe.messages + [message] -%}{%- endfor -%}{%- set messages = safe.messages -%}"
    )
