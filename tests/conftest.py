"""Fixtures that several test files share."""

import gc
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SLOWEST = ("test_ppo", "test_gradio_demo", "test_training", "test_retrieval_index", "test_dpo", "test_inference",
           "test_reward_modeling", "test_zero3", "test_multigpu", "test_grpo", "test_library")  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def imported_for_good():
    """Every trainer collects garbage first; the half million objects of the imports are no garbage: 0.3 s a run."""
    gc.freeze()


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real public models, tokenizers and data that are used in tests and not shipped."""
    if not SHARED.is_dir():
        pytest.skip("../shared (real models, tokenizers and data) is not on this machine")
    return SHARED


SENTENCES = (
    "高血压患者应当低盐饮食，规律运动，按时服药，定期测量血压。",
    "糖尿病的典型表现是多饮、多尿、多食和体重下降，应当到医院查血糖。",
    "感冒多由病毒引起，一般一周左右好转，不需要使用抗生素。",
    "胸痛伴出汗、放射到左臂时，请立即拨打急救电话。",
    "Drink enough water, rest well, and see a doctor if the fever lasts more than three days.",
)


def make_tiny_model(folder: Path, seed: int = 0, **settings) -> Path:
    """A random Llama of some 100k parameters with a byte-level tokenizer and a ChatML template: trains in seconds."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from template import get_template

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=special
    )
    tokenizer.chat_template = get_template("chatml").jinja
    torch.manual_seed(seed)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **({"num_key_value_heads": 2, "tie_word_embeddings": True} | shape | settings),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))
