"""Which weights: tokenizer, base model, quantisation, LoRA.

Loading merges the adapters of a lineage into the root's weights in memory: a stage that starts from an adapter trains
a *new* adapter on top of it, so that "the adapter switched off" is exactly the checkpoint that the stage started from
(the reference model of DPO and PPO).
"""

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock
from peft import LoraConfig, PeftModel
from peft.utils.integrations import gather_params_ctx
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import deepspeed as deepspeed_integration
from transformers.integrations import is_deepspeed_zero3_enabled

from medical_qwen.arguments import ModelArguments
from medical_qwen.lineage import Lineage, absolute, is_adapter, read_summary, refuse_reward_model, resolve
from medical_qwen.rendering import check_tokenizer, set_template

logger = logging.getLogger(__name__)


def fingerprint(model: PreTrainedModel) -> str:
    """Short hash of a few embedding rows in bfloat16: the same for one base in bfloat16, float32 or quantised.

    Weights in float16 have lost small values, and so have a fingerprint of their own.
    """
    weight = model.get_input_embeddings().weight
    with gather_params_ctx(weight, modifier_rank=None):  # under ZeRO-3 a rank holds nothing of it
        rows = weight[::997].detach().to(torch.bfloat16).view(torch.int16).cpu()
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16]


def load_tokenizer(
    path: str, template_name: str | None = None, revision: str = "main", trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """A fast tokenizer with a chat template and a pad token.

    Args:
        path: model directory, adapter directory (its base's tokenizer if it has none of its own) or hub id.
        template_name: replaces the checkpoint's chat template; a tokenizer without a template gets `vicuna`.
    """
    if Path(path).is_dir() and is_adapter(path) and not (Path(path) / "tokenizer_config.json").is_file():
        path = resolve(path).root
    tokenizer = _from_pretrained(AutoTokenizer, path, revision=revision, trust_remote_code=trust_remote_code)
    if not tokenizer.is_fast:
        raise ValueError(f"{path}: only a slow tokenizer; a tokenizer.json (fast tokenizer) is needed")
    check_tokenizer(tokenizer, path)
    if template_name or not tokenizer.chat_template:
        if not template_name:
            logger.warning("%s has no chat template: using vicuna (choose another with --template_name)", path)
        set_template(tokenizer, template_name or "vicuna")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def same_tokens(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers make the same ids of a conversation."""
    return first.chat_template == second.chat_template and first.get_vocab() == second.get_vocab()


def choose_tokenizer(model: str | None, adapter: str | None, named: str | None) -> str | None:
    """Where the tokenizer is: as named, else with the adapter if it has one, else with the model."""
    own = adapter and (Path(adapter) / "tokenizer_config.json").is_file()
    return named or (adapter if own else model)


def tokenizer_for_training(args: ModelArguments, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of the checkpoint that a stage starts from, or the one that was named instead."""
    path = choose_tokenizer(args.model_name_or_path, args.adapter_name_or_path, args.tokenizer_name_or_path)
    if not path:
        raise ValueError("--model_name_or_path is missing: the model directory or hub id to start from")
    return load_tokenizer(path, args.template_name, args.model_revision, trust_remote_code)


def load_base(
    lineage: Lineage,
    *,
    dtype: str = "auto",
    bits: int | None = None,
    auto_class: type = AutoModelForCausalLM,
    merge: bool = True,
    **kwargs,
) -> PreTrainedModel:
    """The root's weights with every adapter of the lineage merged in.

    Args:
        dtype: auto (bfloat16 on a GPU that has it, else float32) or a torch dtype's name.
        bits: 4 or 8 to quantise with bitsandbytes. Adapters below are merged in full precision first (a copy of the
            merged weights in the cache folder), since merging into quantised weights loses precision; so they are
            under ZeRO-3, where no rank holds a whole matrix to merge into.
        merge: False leaves the last adapter active and unmerged (as small as it was saved).
        kwargs: for `from_pretrained`.
    """
    for path in (lineage.root, *lineage.adapters):
        refuse_reward_model(path)
    if (bits or is_deepspeed_zero3_enabled()) and lineage.adapters:
        keep = 0 if merge else 1
        merged = lineage.adapters[: len(lineage.adapters) - keep]
        source = {name: kwargs[name] for name in ("revision", "trust_remote_code") if name in kwargs}
        root = merged_directory(Lineage(lineage.root, merged), auto_class, **source) if merged else lineage.root
        lineage = Lineage(root, lineage.adapters[len(merged) :])
    model = _from_pretrained(
        auto_class, lineage.root, dtype=torch_dtype(dtype), quantization_config=quantization(bits), **kwargs
    )
    make_savable(getattr(model, "generation_config", None))  # a classification model has none
    for number, adapter in enumerate(lineage.adapters, 1):
        logger.info("adapter %d of %d: %s", number, len(lineage.adapters), adapter)
        model = attach(model, adapter)
        if merge or number < len(lineage.adapters):
            model = model.merge_and_unload()
    return model


def make_savable(settings: GenerationConfig | None) -> None:
    """Older checkpoints name a temperature without `do_sample`: transformers loads that, and refuses to save it."""
    try:
        if settings is not None:
            settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True


def merged_directory(lineage: Lineage, auto_class: type = AutoModelForCausalLM, **source) -> str:
    """A directory with the lineage merged into one model, made once and kept in the cache folder.

    One process of a machine makes it, the others wait. `source`: the root's `revision` and `trust_remote_code`.
    """
    digest = hashlib.sha256(f"{lineage.root} {source.get('revision') or 'main'}".encode())
    for adapter in lineage.adapters:
        digest.update((Path(adapter) / "adapter_model.safetensors").read_bytes())
    target = cache_folder() / "merged" / digest.hexdigest()[:16]
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not (target / "config.json").is_file():
            logger.info("merging %s into a copy of the base: %s", " + ".join(lineage.adapters), target)
            with undivided():
                save_atomically(load_base(lineage, auto_class=auto_class, **source), target)
    return str(target)


def whole_directory(lineage: Lineage, tokenizer: PreTrainedTokenizerBase, **source) -> str:
    """A directory or hub id with the whole model and a tokenizer, for engines that read one themselves (vLLM)."""
    if not lineage.adapters:
        return lineage.root
    folder = merged_directory(lineage, **source)
    tokenizer.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def undivided() -> Iterator[None]:
    """Models that are loaded in here are whole on every rank, under ZeRO-3 too, which else divides them at once."""
    before = deepspeed_integration._hf_deepspeed_config_weak_ref
    deepspeed_integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed_integration._hf_deepspeed_config_weak_ref = before


def cache_folder() -> Path:
    """Where this project keeps what it can make again: $MEDICAL_QWEN_CACHE, or ~/.cache/medical_qwen."""
    return Path(os.environ.get("MEDICAL_QWEN_CACHE") or Path.home() / ".cache" / "medical_qwen")


def save_atomically(model: PreTrainedModel, target: Path, *others) -> None:
    """`save_pretrained` of the model and others (tokenizer) into a folder that appears whole or not at all.

    Where another process was faster, its folder stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "should_save_on_this_rank"):  # transformers writes on rank 0 alone, elsewhere an empty folder
        model.should_save_on_this_rank = lambda is_main_process: True
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        for part in (model, *others):
            part.save_pretrained(Path(folder) / "model")
        try:
            os.replace(Path(folder) / "model", target)
        except OSError:
            if not target.is_dir():
                raise


def attach(model: PreTrainedModel, adapter: str, trainable: bool = False) -> PeftModel:
    """`model` with the adapter on it; the embeddings grow first if the adapter was trained with more tokens."""
    rows = read_summary(adapter).get("embedding_rows")
    if rows and rows != model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows)
    expected = read_summary(adapter).get("base_fingerprint")
    if expected and not rows and expected != fingerprint(model):
        raise ValueError(
            f"{adapter} is an adapter of another base model than {model.name_or_path} (float16 copies are others)"
        )
    return PeftModel.from_pretrained(model, adapter, is_trainable=trainable)


def _from_pretrained(auto_class: type, path: str, **kwargs):
    """`auto_class.from_pretrained`, with an error that says what is missing where."""
    if Path(path).is_dir():
        needed = "tokenizer.json" if auto_class is AutoTokenizer else "config.json"
        if not (Path(path) / needed).is_file() and not kwargs.get("trust_remote_code"):
            raise FileNotFoundError(f"{path}: no {needed} in this directory")
    elif Path(path).is_absolute() or path.startswith("."):
        raise FileNotFoundError(f"{path}: no such model directory")
    try:
        return auto_class.from_pretrained(path, **kwargs)
    except OSError as error:
        raise FileNotFoundError(f"{path}: neither a directory nor a model that could be fetched ({error})") from error


def torch_dtype(name: str) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that has it and float32 elsewhere: a CPU computes bfloat16 slowly."""
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32


def quantization(bits: int | None) -> BitsAndBytesConfig | None:
    """QLoRA's settings (arXiv 2305.14314): nf4 with double quantisation, or LLM.int8."""
    if bits is None:
        return None
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch_dtype("auto"),
    )


def load_for_training(
    args: ModelArguments, tokenizer: PreTrainedTokenizerBase, auto_class: type = AutoModelForCausalLM, **kwargs
) -> tuple[PreTrainedModel, LoraConfig | None]:
    """The model that a stage starts from, and the adapter to train on it (None: all weights are trained).

    Full training keeps float32 weights under bfloat16 autocast ("AMP"); a frozen base stays in bfloat16 (on a CPU: if
    it computes in bfloat16, where that is twice as fast), or quantised.
    """
    lineage = resolve(args.model_name_or_path, args.adapter_name_or_path)
    model = load_base(
        lineage,
        dtype=_training_dtype(args),
        bits=args.load_in_bits,
        auto_class=auto_class,
        revision=args.model_revision,
        attn_implementation=args.attn_implementation,
        **kwargs,
    )
    if not args.use_peft:
        model.requires_grad_(True)  # PEFT freezes what it merges an adapter into
    model.base_fingerprint = fingerprint(model)
    model.name_or_path = absolute(lineage.adapters[-1] if lineage.adapters else lineage.root)
    grown = fit_embeddings(model, tokenizer)
    return model, lora_config(args, model, train_embeddings=grown) if args.use_peft else None


def _training_dtype(args: ModelArguments) -> str:
    if args.dtype != "auto":
        return args.dtype
    fast_on_cpu = not torch.cuda.is_available() and torch.cpu._is_avx512_bf16_supported()
    return "float32" if not args.use_peft else "bfloat16" if fast_on_cpu else "auto"


def load_from_config(config_name: str, tokenizer: PreTrainedTokenizerBase, **kwargs) -> PreTrainedModel:
    """A model with fresh weights, for pretraining from scratch. `config_name`: directory or hub id of a config."""
    config = AutoConfig.from_pretrained(config_name, **kwargs)
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    logger.info("fresh weights: %.1fM parameters", model.num_parameters() / 1e6)
    return model


def fit_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Grow the embeddings when the tokenizer has more tokens than the model has rows. True if they grew."""
    rows = model.get_input_embeddings().num_embeddings  # not of its weight, which is empty under ZeRO-3
    if len(tokenizer) <= rows:
        return False
    logger.info("embeddings: %d rows -> %d, the size of the tokenizer", rows, len(tokenizer))
    model.resize_token_embeddings(len(tokenizer))
    model.embedding_rows = len(tokenizer)
    return True


def lora_config(args: ModelArguments, model: PreTrainedModel, train_embeddings: bool = False) -> LoraConfig:
    """A LoRA adapter (arXiv 2106.09685) for `model`; a classification model's head is trained and saved with it.

    New embedding rows mean nothing until they are trained, so grown embeddings are trained and saved in full.
    """
    modules = list(args.lora_modules_to_save or [])
    tied = bool(model.config.tie_word_embeddings)
    if train_embeddings and not modules:
        modules = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
        logger.info("new tokens: %s trained in full and saved with the adapter", " and ".join(modules))
    targets = args.lora_target_modules
    return LoraConfig(
        task_type="SEQ_CLS" if "SequenceClassification" in type(model).__name__ else "CAUSAL_LM",
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules="all-linear" if targets in (["all-linear"], ["all"]) else targets,
        modules_to_save=modules or None,
        ensure_weight_tying=tied and bool(modules),
        use_rslora=args.use_rslora,
        use_dora=args.use_dora,
    )
