"""The named templates, rendered by Jinja alone: what they write is held against text put together by hand."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jinja2
import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from template import TEMPLATES, get_template


def chat(*texts: str, system: str | None = None) -> list[dict]:
    """Question, answer, question, …"""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}] * (system is not None) + turns


def write(jinja: str, messages: list[dict], generation: bool = False, **context) -> str:
    """What a server makes of a chat template: Hugging Face's environment, put together here from its description."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = refuse
    context = {"bos_token": "<s>", "eos_token": "</s>"} | context
    return environment.from_string(jinja).render(messages=messages, add_generation_prompt=generation, **context)


CURIOUS_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
CURIOUS_HUMAN = CURIOUS_USER.replace("user", "human").strip()
TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
HELPFUL = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
EMPTY = "<think>\n\n</think>\n\n"


def im(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def head(role: str, text: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"


def turn(role: str, text: str) -> str:
    return f"<|START_OF_TURN_TOKEN|><|{role}_TOKEN|>{text}<|END_OF_TURN_TOKEN|>"


IM = im("user", "Q") + im("assistant", "A") + im("user", "R") + "<|im_start|>assistant\n"
SYS = im("system", "S")
# name -> (the prompt for "Q" alone, the conversation system S, Q, A, R with the prompt for the next answer)
WRITTEN = {
    "vicuna": (CURIOUS_USER + "USER: Q ASSISTANT:", "S USER: Q ASSISTANT: A</s>USER: R ASSISTANT:"),
    "base": ("Q", "S\nQA</s>R"),
    "alpaca": (
        TASK + "### Instruction:\nQ\n\n### Response:\n",
        "S\n\n### Instruction:\nQ\n\n### Response:\nA</s>\n\n### Instruction:\nR\n\n### Response:\n",
    ),
    "baichuan": (
        "<reserved_102>Q<reserved_103>",
        "S<reserved_102>Q<reserved_103>A</s><reserved_102>R<reserved_103>",
    ),
    "baichuan2": (
        "<reserved_106>Q<reserved_107>",
        "S<reserved_106>Q<reserved_107>A</s><reserved_106>R<reserved_107>",
    ),
    "ziya": ("<human>:Q\n<bot>:", "S\n<human>:Q\n<bot>:A</s>\n<human>:R\n<bot>:"),
    "linly": ("User: Q\nBot:", "S\nUser: Q\nBot: A</s>\nUser: R\nBot:"),
    "chatglm": ("[Round 0]\n问：Q\n答：", "S\n[Round 0]\n问：Q\n答：A</s>\n[Round 1]\n问：R\n答："),
    "chatglm2": (
        "[Round 1]\n\n问：Q\n\n答：",
        "S\n\n[Round 1]\n\n问：Q\n\n答：A</s>\n\n[Round 2]\n\n问：R\n\n答：",
    ),
    "chatglm3": (
        "[gMASK]sop<|user|>\n Q<|assistant|>",
        "[gMASK]sop<|system|>\n S<|user|>\n Q<|assistant|>\n A<|user|>\n R<|assistant|>",
    ),
    "phoenix": (
        CURIOUS_HUMAN + "\n\nHuman: <s>Q</s>Assistant: <s>",
        "S\n\nHuman: <s>Q</s>Assistant: <s>A</s>Human: <s>R</s>Assistant: <s>",
    ),
    "belle": ("Human: Q\n\nAssistant:", "S\n\nHuman: Q\n\nAssistant: A</s>\n\nHuman: R\n\nAssistant:"),
    "aquila": (
        CURIOUS_HUMAN + "###Human: Q###Assistant:",
        "S###Human: Q###Assistant: A</s>###Human: R###Assistant:",
    ),
    "intern": (
        "<s><|User|>:Q<eoh>\n<|Bot|>:",
        "<s><|System|>:S\n<|User|>:Q<eoh>\n<|Bot|>:A<eoa>\n<|User|>:R<eoh>\n<|Bot|>:",
    ),
    "intern2": ("<s>" + im("user", "Q") + "<|im_start|>assistant\n", "<s>" + SYS + IM),
    "starchat": (
        "<|system|>\n<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>\n",
        "<|system|>\nS<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nR<|end|>\n<|assistant|>\n",
    ),
    "llama2": (
        "<s>[INST] Q [/INST]",
        "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A </s><s>[INST] R [/INST]",
    ),
    "llama3": (
        "<s>" + head("user", "Q") + "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<s>"
        + head("system", "S")
        + head("user", "Q")
        + head("assistant", "A")
        + head("user", "R")
        + "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama2-zh": (
        "<s>[INST] <<SYS>>\nYou are a helpful assistant. 你是一个乐于助人的助手。\n<</SYS>>\n\nQ [/INST]",
        "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A </s><s>[INST] R [/INST]",
    ),
    "mistral": ("<s>[INST] Q [/INST]", "<s>[INST] S\n\nQ [/INST] A</s>[INST] R [/INST]"),
    "xverse": ("Human: Q\n\nAssistant:", "S\n\nHuman: Q\n\nAssistant: A</s>Human: R\n\nAssistant:"),
    "chatml": (HELPFUL + im("user", "Q") + "<|im_start|>assistant\n", SYS + IM),
    "deepseek": ("<s>User: Q\n\nAssistant:", "<s>S\n\nUser: Q\n\nAssistant: A</s>User: R\n\nAssistant:"),
    "deepseek3": (
        "<s><｜User｜>Q<｜Assistant｜>",
        "<s>S<｜User｜>Q<｜Assistant｜>A<｜end▁of▁sentence｜><｜User｜>R<｜Assistant｜>",
    ),
    "deepseekcoder": (
        "<s>### Instruction:\nQ\n### Response:\n",
        "<s>S\n### Instruction:\nQ\n### Response:\nA\n<|EOT|>\n### Instruction:\nR\n### Response:\n",
    ),
    "yi": (im("user", "Q") + "<|im_start|>assistant\n", SYS + IM),
    "orion": (
        "<s>Human: Q\n\nAssistant: </s>",
        "<s>S\n\nHuman: Q\n\nAssistant: </s>A</s>Human: R\n\nAssistant: </s>",
    ),
    "cohere": (
        "<s>" + turn("USER", "Q") + "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<s>"
        + turn("SYSTEM", "S")
        + turn("USER", "Q")
        + turn("CHATBOT", "A")
        + turn("USER", "R")
        + "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    ),
    "qwen": (QWEN + im("user", "Q") + "<|im_start|>assistant\n", SYS + IM),
    "qwen3": (im("user", "Q") + "<|im_start|>assistant\n", SYS + IM),
    "qwen3_nothink": (
        im("user", "Q") + "<|im_start|>assistant\n" + EMPTY,
        SYS + im("user", "Q") + im("assistant", EMPTY + "A") + im("user", "R") + "<|im_start|>assistant\n" + EMPTY,
    ),
    "qwen3_5": (im("user", "Q") + "<|im_start|>assistant\n<think>\n", SYS + IM + "<think>\n"),
    "qwen3_5_nothink": (
        im("user", "Q") + "<|im_start|>assistant\n" + EMPTY,
        SYS + im("user", "Q") + im("assistant", EMPTY + "A") + im("user", "R") + "<|im_start|>assistant\n" + EMPTY,
    ),
}


NAMES = list(WRITTEN)


def test_all_names_are_known():
    assert list(TEMPLATES) == NAMES
    assert all(name == template.name for name, template in TEMPLATES.items())


@pytest.mark.parametrize("name", NAMES)
def test_writes_what_the_family_reads(name):
    alone, conversation = WRITTEN[name]
    template = get_template(name)
    assert write(template.jinja, chat("Q"), generation=True) == alone
    assert write(template.jinja, chat("Q", "A", "R", system="S"), generation=True) == conversation


@pytest.mark.parametrize("name", NAMES)
def test_another_system_prompt_changes_nothing_else(name):
    template = get_template(name)
    written = write(template.jinja, chat("Q", "A"))
    if template.system:
        assert written == write(template.jinja, chat("Q", "A", system=template.system))
        assert written.count(template.system) == 1
        assert write(template.jinja, chat("Q", "A", system="别的")) == written.replace(template.system, "别的")
    else:
        assert write(template.jinja, chat("Q", "A", system="别的")).count("别的") == 1
        assert write(template.jinja, chat("Q", "A", system="")).count("Q") == 1


@pytest.mark.parametrize("name", NAMES)
def test_what_a_user_writes_is_no_template(name):
    question = "{content} {{ 7 * 7 }} {bos} {round}\n{% raise %} a ' \" \\n"
    written = write(get_template(name).jinja, chat(question, question, question, "A"))
    assert written.count(question) == 3


@pytest.mark.parametrize("name", NAMES)
def test_beginning_of_sequence_is_written_once(name):
    template = get_template(name)
    with_bos = write(template.chat_template(bos=True), chat("Q"), generation=True, bos_token="<BOS>")
    assert with_bos.startswith("<BOS>") and with_bos.count("<BOS>") == 1
    without = write(template.chat_template(bos=False), chat("Q"), generation=True, bos_token="")
    assert with_bos == "<BOS>" + without


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_turn_ends_on_a_mark(name):
    template = get_template(name)
    last = write(template.jinja, chat("Q", "答")).rpartition("答")[2]
    more = write(template.jinja, chat("Q", "答", "R")).rpartition("答")[2]
    assert template.stop_strings and all(template.stop_strings)
    if name == "chatglm3":
        assert last == "" and more.startswith(template.stop_strings[0])
    else:
        assert "</s>" in last or any(stop in last for stop in template.stop_strings)
        assert more.startswith(last)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("qwen")])
def test_families_without_tools_refuse_them(name):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    with pytest.raises(jinja2.TemplateError, match="assistant with tool calls"):
        write(get_template(name).jinja, [*chat("Q"), call])
    with pytest.raises(jinja2.TemplateError, match="role tool"):
        write(get_template(name).jinja, [*chat("Q", "A"), {"role": "tool", "content": "R"}])


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"unknown template 'vicunna'; known: vicuna, base, .*qwen3_5_nothink"):
        get_template("vicunna")


def test_import_needs_neither_torch_nor_transformers(root):
    code = (
        "import sys, template; print(sorted({'torch', 'transformers', 'jinja2', 'medical_qwen'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- against the templates that were published

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "查药品",
            "description": "查药品说明书 <b>&'",
            "parameters": {"type": "object", "properties": {"名称": {"type": "string"}}, "required": ["名称"]},
        },
    }
]


def call(arguments: dict, content: str = "", **more) -> dict:
    function = {"name": "查药品", "arguments": arguments}
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"type": "function", "function": function}],
        **more,
    }


TOOL_CHAT = [
    *chat("布洛芬一天几次？", system="你是药师。"),
    call({"名称": "布洛芬", "n": [1, {"a": None}]}, "我查一下。", reasoning_content="要查"),
    {"role": "tool", "content": "一日2~3次"},
    {"role": "tool", "content": "饭后"},
    call({"名称": "x"}),
    {"role": "tool", "content": "无"},
    {"role": "assistant", "content": "饭后服，一日2~3次。"},
    *chat("谢谢", "<think>\n告别\n</think>\n\n不客气。"),
]
PLAIN = [
    chat("Q"),
    chat("Q", "A"),
    chat("  Q \n", "\nA ", "R", "B", system=" S "),
    chat("问", "答", "再问", system="系统"),
]
THINKING = [
    chat("Q", "<think>\n想\n</think>\n\n答"),
    chat("Q", "<think>\n想\n</think>\n\n答", "R", "<think>\n\n</think>\n\n\n答"),
    [*chat("Q"), {"role": "assistant", "content": "\n答", "reasoning_content": "\n想一想\n"}],
    chat("Q", "A", "<tool_response>\nR\n</tool_response>", "B"),
]


def published(shared: Path, folder: str) -> dict:
    return json.loads((shared / "tokenizers" / folder / "tokenizer_config.json").read_text(encoding="utf-8"))


def text(token: str | dict | None) -> str:
    return token["content"] if isinstance(token, dict) else token or ""


@pytest.mark.parametrize(
    ("name", "folder", "conversations"),
    [
        ("qwen", "qwen2_5", PLAIN),
        ("qwen3", "qwen3", PLAIN + THINKING),
        ("llama3", "llama3", PLAIN),
        ("deepseek3", "deepseek_v3", PLAIN),
        ("intern2", "internlm2", PLAIN),
        ("chatglm3", "chatglm3", PLAIN),
    ],
)
@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
def test_same_text_as_the_published_template(shared, name, folder, conversations, options):
    config = published(shared, folder)
    context = {"bos_token": text(config.get("bos_token")), "eos_token": text(config["eos_token"]), **options}
    for messages in conversations:
        # The published Llama 3 template writes the header of the next answer unasked.
        for generation in (True,) if name == "llama3" else (False, True):
            ours = write(get_template(name).jinja, messages, generation, **context)
            assert ours == write(config["chat_template"], messages, generation, **context)


@pytest.mark.parametrize(("name", "folder"), [("qwen", "qwen2_5"), ("qwen3", "qwen3")])
def test_same_tools_as_the_published_template(shared, name, folder):
    config = published(shared, folder)
    for messages in (TOOL_CHAT, TOOL_CHAT[1:], TOOL_CHAT[:2], TOOL_CHAT[:4], TOOL_CHAT[:8]):
        for generation in (False, True):
            ours = write(get_template(name).jinja, messages, generation, tools=TOOLS)
            theirs = write(config["chat_template"], messages, generation, tools=TOOLS)
            assert ours == theirs and "查药品" in ours


@pytest.mark.parametrize(
    ("name", "file", "conversations", "options"),
    [
        ("cohere", "cohere", PLAIN, {}),
        ("deepseek3", "deepseekv3", PLAIN, {}),
        ("qwen", "qwen2_5", [*PLAIN, TOOL_CHAT], {"tools": TOOLS}),
        ("qwen3", "qwen3", [*PLAIN, *THINKING, TOOL_CHAT], {"tools": TOOLS}),
        ("qwen3_5", "qwen3_5_think", [*PLAIN, *THINKING, TOOL_CHAT], {}),
        ("qwen3_5", "qwen3_5_think", [*PLAIN, *THINKING, TOOL_CHAT], {"tools": TOOLS}),
        ("qwen3_5", "qwen3_5_think", PLAIN, {"enable_thinking": False}),
    ],
)
def test_same_text_as_the_copies_that_trl_carries(name, file, conversations, options):
    folder = Path(find_spec("trl").submodule_search_locations[0]) / "chat_templates"
    theirs = (folder / f"{file}.jinja").read_text(encoding="utf-8")
    for messages in conversations:
        for generation in (False, True):
            written = write(get_template(name).jinja, messages, generation, **options)
            if name == "deepseek3" and generation:  # the newer revision opens a thought
                written += "<think>\n"
            assert written == write(theirs, messages, generation, **options)
