"""What has to be right about a tokenizer before anything is rendered with it: its ids, its chat template."""

import re
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from template import get_template

_PROBE = "高血压患者饮食上应该注意什么？二甲双胍 Metformin 500 mg，每日两次。"


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    """Compare with `tokenizer.json` of `path` (directory or hub id); `ValueError` if Chinese comes out differently.

    transformers rebuilds some tokenizers from their class name and gets them wrong (DeepSeek-V3: Chinese vanishes; Yi:
    a space before every text). Nothing to compare, nothing to complain about: a checkpoint may have no such file.
    """
    options = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}  # it has just been loaded
    file = cached_file(str(path), "tokenizer.json", **options)
    if file is None:
        return
    expected = Tokenizer.from_file(str(file)).encode(_PROBE, add_special_tokens=False).ids
    got = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    if got != expected:
        raise ValueError(
            f"{path}: the loaded tokenizer ({type(tokenizer).__name__}) turns {_PROBE[:12]!r}… into {got[:8]}…, "
            f"its own tokenizer.json into {expected[:8]}…. "
            'Set "tokenizer_class": "PreTrainedTokenizerFast" in its tokenizer_config.json'
        )


def set_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give the tokenizer the named template of `template.py`.

    With its beginning-of-sequence token if a plain call of the tokenizer adds one. Role marks that the vocabulary has
    but the tokenizer splits (Yi's `<|im_start|>`, Baichuan2's `<reserved_106>`) become the single tokens they are.
    """
    template = get_template(name)
    bos = tokenizer.bos_token_id
    tokenizer.chat_template = template.chat_template(bos is not None and tokenizer("a")["input_ids"][:1] == [bos])
    vocabulary = tokenizer.get_vocab()
    marks = [
        mark
        for mark in dict.fromkeys(re.findall(r"<[^<>\s']+>", template.jinja))
        if mark in vocabulary and len(tokenizer(mark, add_special_tokens=False)["input_ids"]) > 1
    ]
    if marks:
        tokenizer.add_tokens(marks, special_tokens=True)
