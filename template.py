"""The named prompt templates: which text stands around the words of system, user and assistant.

Every template is complete Jinja for `tokenizer.chat_template`, so a checkpoint that carries it works in any server
that reads chat templates. A family is one row of the table at the end, written in a small notation:

    {content}  the message             {system}  the system message, wrapped, in front of the first question
    {trimmed}  the message, trimmed    {round}   number of the question, from 0 ({round1}: from 1)
    {bos}      the tokenizer's beginning-of-sequence token       {eos}  its end-of-sequence token

An assistant turn ends with the token on which the family stops. Where a family has only text between turns (`###`, a
blank line), the turn ends with {eos}: a learned token stops generation reliably, a learned piece of text does not.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """A prompt template: Jinja for `tokenizer.chat_template`, texts that end an answer, the default system prompt."""

    name: str
    jinja: str
    stop_strings: tuple[str, ...]
    system: str = ""

    def chat_template(self, bos: bool) -> str:
        """The Jinja for a tokenizer whose plain call adds a beginning-of-sequence token (`bos`), or does not.

        A chat template is rendered before tokenization without special tokens, so it has to write that token itself.
        Families whose published template writes it do so anyway; it is never written twice.
        """
        return self.jinja if not bos or "bos_token" in self.jinja else "{{- bos_token -}}" + self.jinja


_NAMES = {
    "content": "message['content']",
    "trimmed": "message['content'] | trim",
    "bos": "bos_token",
    "eos": "eos_token",
    "round": "(loop.index0 // 2)",
    "round1": "(loop.index0 // 2 + 1)",
    "system": "(opening if loop.first else '')",
}


def _expression(notation: str, content: str = "") -> str:
    """Jinja expression for one text of the notation, `content` naming what {content} and {trimmed} stand for."""
    parts = []
    for piece in re.split(r"(\{\w+\})", notation):
        if piece.startswith("{") and piece.endswith("}"):
            name = _NAMES[piece[1:-1]]
            parts.append(f"({name.replace(_NAMES['content'], content) if content else name})")
        elif piece:
            parts.append(repr(piece))
    return " ~ ".join(parts) or "''"


_TURNS = """\
{%- if messages[0]['role'] == 'system' -%}
    {%- set system, turns = messages[0]['content'], messages[1:] -%}
{%- else -%}
    {%- set system, turns = DEFAULT, messages -%}
{%- endif -%}
{%- set opening = SYSTEM if system or ALWAYS else '' -%}
{{- HEAD -}}
{%- for message in turns -%}
    {%- if message['role'] == 'user' -%}
        {{- USER -}}
    {%- elif message['role'] == 'assistant' and not message['tool_calls'] -%}
        {{- ASSISTANT -}}
    {%- else -%}
        {{- raise_exception('no place for role ' ~ message['role'] ~ (' with tool calls' if message['tool_calls'])) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- GENERATION -}}
{%- endif -%}
"""


def _turns(
    user: str,
    assistant: str,
    system: str = "",
    default: str = "",
    head: str = "",
    generation: str | None = None,
    always: bool = False,
) -> tuple[str, str]:
    """Jinja and default system prompt of a family that is a text around each role.

    `system` is written once, before the first turn or where `user` says {system}; `always` even when empty.
    Unless `generation` says otherwise, the model goes on from the assistant's header without trailing spaces: the
    space in front of a word belongs to the word's token in most vocabularies.
    """
    if generation is None:
        generation = re.split(r"\{content\}|\{trimmed\}", assistant)[0].rstrip(" ")
    opening = "" if "{system}" in user else " ~ opening"
    fills = {
        "DEFAULT": repr(default),
        "SYSTEM": _expression(system, "system"),
        "ALWAYS": str(always).lower(),
        "HEAD": _expression(head) + opening,
        "USER": _expression(user),
        "ASSISTANT": _expression(assistant),
        "GENERATION": _expression(generation),
    }
    return re.sub("|".join(fills), lambda match: fills[match[0]], _TURNS), default


# ---- The Qwen families: ChatML with tools and thinking

_QWEN = """\
{%- set system = messages[0].content if messages[0].role == 'system' else DEFAULT -%}
{%- if tools -%}
    {{- '<|im_start|>system\\n' -}}
    TOOLS
    {{- '<|im_end|>\\n' -}}
{%- elif system is not none -%}
    {{- '<|im_start|>system\\n' ~ system TRIM ~ '<|im_end|>\\n' -}}
{%- endif -%}
{%- set ns = namespace(query=messages | length - 1, found=false) -%}
{%- for message in messages | reverse -%}
    {%- if not ns.found and message.role == 'user' -%}
        {%- set text = message.content | trim -%}
        {%- if not (text.startswith('<tool_response>') and text.endswith('</tool_response>')) -%}
            {%- set ns.found = true -%}
            {%- set ns.query = loop.revindex0 -%}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- set content = (message.content if message.content is string else '') TRIM -%}
    {%- if message.role == 'assistant' -%}
        THINK
        {{- '<|im_start|>assistant\\n' ~ thought ~ content -}}
        {%- for call in message.tool_calls or [] -%}
            {%- set call = call.function or call -%}
            CALL
        {%- endfor -%}
        {{- '<|im_end|>\\n' -}}
    {%- elif message.role == 'tool' -%}
        {%- if loop.first or loop.previtem.role != 'tool' -%}
            {{- '<|im_start|>user' -}}
        {%- endif -%}
        {{- '\\n<tool_response>\\n' ~ content ~ '\\n</tool_response>' -}}
        {%- if loop.last or loop.nextitem.role != 'tool' -%}
            {{- '<|im_end|>\\n' -}}
        {%- endif -%}
    {%- elif message.role == 'user' or not loop.first -%}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' ~ GENERATION -}}
{%- endif -%}
"""

# What the published models were trained to read: the wording is part of the format.
_HERMES_TOOLS = r"""
    {{- (system ~ '\n\n' if system else '') ~ '# Tools\n\nYou may call one or more functions to assist with ' -}}
    {{- 'the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>' -}}
    {%- for tool in tools -%}
        {{- '\n' ~ tool | tojson -}}
    {%- endfor -%}
    {{- '\n</tools>\n\nFor each function call, return a json object with function name and arguments within ' -}}
    {{- '<tool_call></tool_call> XML tags:\n<tool_call>\n' -}}
    {{- '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>' -}}
"""
_HERMES_CALL = r"""
            {{- '\n' if content or not loop.first -}}
            {{- '<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' -}}
            {{- call.arguments if call.arguments is string else call.arguments | tojson -}}
            {{- '}\n</tool_call>' -}}
"""
_XML_TOOLS = r"""
    {{- '# Tools\n\nYou have access to the following functions:\n\n<tools>' -}}
    {%- for tool in tools -%}
        {{- '\n' ~ tool | tojson -}}
    {%- endfor -%}
    {{- '\n</tools>\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:\n\n' -}}
    {{- '<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n' -}}
    {{- '<parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\n' -}}
    {{- 'multiple lines\n</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n' -}}
    {{- '- Function calls MUST follow the specified format: an inner <function=...></function> block must be ' -}}
    {{- 'nested within <tool_call></tool_call> XML tags\n- Required parameters MUST be specified\n' -}}
    {{- '- You may provide optional reasoning for your function call in natural language BEFORE the function ' -}}
    {{- 'call, but NOT after\n- If there is no function call available, answer the question like normal with your ' -}}
    {{- 'current knowledge and do not tell the user about function calls\n</IMPORTANT>' -}}
    {{- '\n\n' ~ system | trim if system and system | trim else '' -}}
"""
_XML_CALL = r"""
            {{- ('\n\n' if content else '') if loop.first else '\n' -}}
            {{- '<tool_call>\n<function=' ~ call.name ~ '>\n' -}}
            {%- for key, value in (call.arguments or {}) | items -%}
                {{- '<parameter=' ~ key ~ '>\n' -}}
                {{- value | tojson if value is mapping or (value is sequence and value is not string) else value -}}
                {{- '\n</parameter>\n' -}}
            {%- endfor -%}
            {{- '</function>\n</tool_call>' -}}
"""

# The thought is a field of its own or stands in front of the answer; only the turns after the last question show it.
_SPLIT = r"""
        {%- set thought = message.reasoning_content if message.reasoning_content is string else '' -%}
        {%- if message.reasoning_content is not string and '</think>' in content -%}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
            {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
        {%- endif -%}
"""
_NO_THOUGHT = "{%- set thought = '' -%}"
_OPEN = (
    _SPLIT
    + r"""
        {%- if loop.index0 > ns.query and (loop.last or thought) -%}
            {%- set thought = '<think>\n' ~ thought.strip('\n') ~ '\n</think>\n\n' -%}
            {%- set content = content.lstrip('\n') -%}
        {%- else -%}
            {%- set thought = '' -%}
        {%- endif -%}
"""
)
_OPEN_TRIMMED = (
    _SPLIT
    + r"""
        {%- set thought = '<think>\n' ~ thought | trim ~ '\n</think>\n\n' if loop.index0 > ns.query else '' -%}
"""
)
_CLOSED = _SPLIT + r"{%- set thought = '<think>\n\n</think>\n\n' -%}"
_EMPTY_BLOCK = r"'<think>\n\n</think>\n\n'"
_IF_OFF = "({} if enable_thinking is defined and enable_thinking is false else {})"


def _qwen(
    think: str = _NO_THOUGHT, generation: str = "''", default: str | None = None, xml: bool = False
) -> tuple[str, str]:
    """Jinja and default system prompt of a Qwen generation. `xml`: Qwen3.5 (tool calls as XML, texts trimmed)."""
    fills = {
        "DEFAULT": repr(default).lower() if default is None else repr(default),
        "TOOLS": _XML_TOOLS if xml else _HERMES_TOOLS,
        "TRIM": "| trim" if xml else "",
        "THINK": think,
        "CALL": _XML_CALL if xml else _HERMES_CALL,
        "GENERATION": generation,
    }
    return re.sub("|".join(rf"\b{name}\b" for name in fills), lambda match: fills[match[0]], _QWEN), default or ""


_CURIOUS = (
    "A chat between a curious {human} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {human}'s questions."
)
_CHATML = {
    "system": "<|im_start|>system\n{content}<|im_end|>\n",
    "user": "<|im_start|>user\n{content}<|im_end|>\n",
    "assistant": "<|im_start|>assistant\n{content}<|im_end|>\n",
}
_LLAMA2_SYSTEM = "<<SYS>>\n{content}\n<</SYS>>\n\n"

# name -> (Jinja and default system prompt, texts that end an answer)
_FAMILIES: dict[str, tuple[tuple[str, str], tuple[str, ...]]] = {
    "vicuna": (
        _turns("USER: {content} ", "ASSISTANT: {content}{eos}", "{content} ", _CURIOUS.replace("{human}", "user")),
        ("</s>",),
    ),
    "base": (_turns("{content}", "{content}{eos}", "{content}\n"), ("</s>",)),
    "alpaca": (
        _turns(
            "### Instruction:\n{content}\n\n",
            "### Response:\n{content}{eos}\n\n",
            "{content}\n\n",
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.",
        ),
        ("\n\n###",),
    ),
    "baichuan": (_turns("<reserved_102>{content}", "<reserved_103>{content}{eos}", "{content}"), ("</s>",)),
    "baichuan2": (_turns("<reserved_106>{content}", "<reserved_107>{content}{eos}", "{content}"), ("</s>",)),
    "ziya": (_turns("<human>:{content}\n", "<bot>:{content}{eos}\n", "{content}\n"), ("</s>",)),
    "linly": (_turns("User: {content}\n", "Bot: {content}{eos}\n", "{content}\n"), ("\nUser:",)),
    "chatglm": (_turns("[Round {round}]\n问：{content}\n", "答：{content}{eos}\n", "{content}\n"), ("\n问：",)),
    "chatglm2": (
        _turns("[Round {round1}]\n\n问：{content}\n\n", "答：{content}{eos}\n\n", "{content}\n\n"),
        ("\n\n问：",),
    ),
    # Turns end with nothing: the model stops by writing the next role mark.
    "chatglm3": (
        _turns(
            "<|user|>\n {content}",
            "<|assistant|>\n {content}",
            "<|system|>\n {content}",
            head="[gMASK]sop",
            generation="<|assistant|>",
        ),
        ("<|user|>", "<|observation|>"),
    ),
    "phoenix": (
        _turns(
            "Human: <s>{content}</s>",
            "Assistant: <s>{content}</s>",
            "{content}\n\n",
            _CURIOUS.replace("{human}", "human"),
        ),
        ("</s>",),
    ),
    "belle": (_turns("Human: {content}\n\n", "Assistant: {content}{eos}\n\n", "{content}\n\n"), ("\n\nHuman:",)),
    "aquila": (
        _turns(
            "Human: {content}###", "Assistant: {content}{eos}###", "{content}###", _CURIOUS.replace("{human}", "human")
        ),
        ("###",),
    ),
    "intern": (
        _turns("<|User|>:{content}<eoh>\n", "<|Bot|>:{content}<eoa>\n", "<|System|>:{content}\n", head="{bos}"),
        ("<eoa>",),
    ),
    "intern2": (_turns(**_CHATML, head="{bos}"), ("<|im_end|>",)),
    "starchat": (
        _turns(
            "<|user|>\n{content}<|end|>\n",
            "<|assistant|>\n{content}<|end|>\n",
            "<|system|>\n{content}<|end|>\n",
            always=True,
        ),
        ("<|end|>",),
    ),
    "llama2": (_turns("{bos}[INST] {system}{content} [/INST]", " {content} {eos}", _LLAMA2_SYSTEM), ("</s>",)),
    "llama3": (
        _turns(
            "<|start_header_id|>user<|end_header_id|>\n\n{trimmed}<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n{trimmed}<|eot_id|>",
            "<|start_header_id|>system<|end_header_id|>\n\n{trimmed}<|eot_id|>",
            head="{bos}",
        ),
        ("<|eot_id|>",),
    ),
    "llama2-zh": (
        _turns(
            "{bos}[INST] {system}{content} [/INST]",
            " {content} {eos}",
            _LLAMA2_SYSTEM,
            "You are a helpful assistant. 你是一个乐于助人的助手。",
        ),
        ("</s>",),
    ),
    "mistral": (
        _turns("[INST] {system}{content} [/INST]", " {content}{eos}", "{content}\n\n", head="{bos}"),
        ("</s>",),
    ),
    "xverse": (_turns("Human: {content}\n\n", "Assistant: {content}{eos}", "{content}\n\n"), ("<|endoftext|>",)),
    "chatml": (_turns(**_CHATML, default="You are a helpful assistant."), ("<|im_end|>",)),
    "deepseek": (
        _turns("User: {content}\n\n", "Assistant: {content}{eos}", "{content}\n\n", head="{bos}"),
        ("<｜end▁of▁sentence｜>",),
    ),
    "deepseek3": (
        _turns("<｜User｜>{content}", "<｜Assistant｜>{content}<｜end▁of▁sentence｜>", "{content}", head="{bos}"),
        ("<｜end▁of▁sentence｜>",),
    ),
    # The published default refuses whatever is not about computers; a medical assistant starts without it.
    "deepseekcoder": (
        _turns("### Instruction:\n{content}\n", "### Response:\n{content}\n<|EOT|>\n", "{content}\n", head="{bos}"),
        ("<|EOT|>",),
    ),
    "yi": (_turns(**_CHATML), ("<|im_end|>",)),
    "orion": (
        _turns("Human: {content}\n\n", "Assistant: {eos}{content}{eos}", "{content}\n\n", head="{bos}"),
        ("</s>",),
    ),
    "cohere": (
        _turns(
            "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{trimmed}<|END_OF_TURN_TOKEN|>",
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{trimmed}<|END_OF_TURN_TOKEN|>",
            "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{content}<|END_OF_TURN_TOKEN|>",
            head="{bos}",
        ),
        ("<|END_OF_TURN_TOKEN|>",),
    ),
    "qwen": (
        _qwen(default="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        ("<|im_end|>",),
    ),
    "qwen3": (_qwen(_OPEN, _IF_OFF.format(_EMPTY_BLOCK, "''")), ("<|im_end|>",)),
    "qwen3_nothink": (_qwen(_CLOSED, _EMPTY_BLOCK), ("<|im_end|>",)),
    "qwen3_5": (_qwen(_OPEN_TRIMMED, _IF_OFF.format(_EMPTY_BLOCK, r"'<think>\n'"), xml=True), ("<|im_end|>",)),
    "qwen3_5_nothink": (_qwen(_CLOSED, _EMPTY_BLOCK, xml=True), ("<|im_end|>",)),
}

TEMPLATES = {
    name: Template(name, jinja, stop_strings, system) for name, ((jinja, system), stop_strings) in _FAMILIES.items()
}


def get_template(name: str) -> Template:
    """The template of this name; `ValueError` with the known names otherwise."""
    if name not in TEMPLATES:
        raise ValueError(f"--template_name: unknown template {name!r}; known: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
