"""Instructions hidden in documents: 30 of them (data/rag/injections.jsonl) against the prompt and real tokenizers.

What a model makes of them is measured by benchmarks/injection.py.
"""

import json

import pytest

from medical_qwen.evidence import with_documents
from medical_qwen.models import load_tokenizer
from medical_qwen.rendering import Renderer

QUESTION = "成人血小板的正常范围是多少？"
FACT = "成人血小板计数的参考范围是125～350×10⁹/L。"
TALK = [{"role": "system", "content": "你是谨慎的健康助手。"}, {"role": "user", "content": QUESTION}]
TOKENIZERS = ("chatglm3", "deepseek_v3", "internlm2", "llama3", "qwen2_5", "qwen3")  # those with a template


@pytest.fixture(scope="module")
def injections(root) -> list[dict]:
    lines = (root / "data" / "rag" / "injections.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def hidden(text: str) -> dict:
    """A passage with the text in it, and in its file name and heading as well."""
    return {"text": f"{FACT}{text}\n{FACT}", "file": f"{text}.pdf", "page": 3, "heading": text}


def test_there_are_thirty(injections):
    assert len({row["text"] for row in injections}) == 30
    assert all(row["payload"] in row["text"].replace("\u200b", "") for row in injections)


def test_every_line_of_a_document_is_quoted(injections):
    """Whatever stands in a passage, the lines that are not quoted are those of the prompt, one by one."""
    for row in injections:
        prompt = with_documents(TALK, [hidden(row["text"]), FACT])[-1]["content"]
        plain = with_documents(TALK, [FACT, FACT])[-1]["content"]
        own = [line for line in prompt.split("\n") if not line.startswith("> ")]
        expected = [line for line in plain.split("\n") if not line.startswith("> ")]
        assert [line if line[:1] != "[" else line[:3] for line in own] == expected, row


@pytest.mark.parametrize("name", TOKENIZERS)
def test_control_tokens_are_those_of_a_harmless_document(shared, injections, name):
    """With our renderer, and with a server that tokenizes the written template and would believe what it reads.

    ChatGLM3 on such a server is beyond help: the word `sop` is a control token of its.
    """
    tokenizer = load_tokenizer(str(shared / "tokenizers" / name))
    control = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    renderer = Renderer(tokenizer)

    def marks(documents: list) -> tuple[list[int], list[int]]:
        messages = with_documents(TALK, documents)
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        served = tokenizer(text, add_special_tokens=False)["input_ids"]
        return tuple([id_ for id_ in ids if id_ in control] for ids in (renderer.prompt(messages), served))

    attacked = [hidden(row["text"]) for row in injections]
    (own, served), (own_harmless, served_harmless) = marks(attacked), marks([FACT] * len(attacked))
    assert own and own == own_harmless
    assert served == served_harmless or name == "chatglm3"


def test_without_the_prompt_a_server_would_believe_them(shared, injections):
    """The test above can fail: put plainly before a question, the same texts do give control tokens."""
    tokenizer = load_tokenizer(str(shared / "tokenizers" / "qwen2_5"))
    text = "\n".join(row["text"] for row in injections)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") in ids
