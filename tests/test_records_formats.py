"""Formats: real public files end as they should, invented rows cover what no real file at hand has."""

import json
from pathlib import Path

import pytest

from medical_qwen.records import FORMATS, RecordError, Report, read_records, stream

REAL = [  # file of ../shared/data, form, format found, rows, good records
    ("medicalgpt/sft/medical_sft_1K_format.jsonl", "conversation", "sharegpt", 1000, 1000),
    ("medicalgpt/sft/sharegpt_zh_1K_format.jsonl", "conversation", "sharegpt", 1000, 998),
    ("medicalgpt/sft/glaive_toolcall_zh_demo.jsonl", "conversation", "sharegpt", 300, 300),
    ("medicalgpt/reward/dpo_zh_500.jsonl", "preference", "conversation-pair", 500, 500),
    ("medicalgpt/reward/toolcall_dpo_zh_demo.jsonl", "preference", "conversation-pair", 11, 11),
    ("medicalgpt/grpo/sample.jsonl", "prompt", "question-answer", 32, 32),
    ("medicalgpt/pretrain/en_article_tail500.txt", "text", "text", 1, 1),
    ("medicalgpt/rag/medical_corpus.txt", "qa", "question-answer", 87, 87),
    ("medicalgpt/history/alpaca_belle_1k.json", "conversation", "alpaca", 1000, 1000),
    ("medicalgpt/history/reward_question_response_100.json", "preference", "question-pair", 100, 100),
    ("medicalgpt/history/dpo_zh_history_response_429.jsonl", "preference", "question-pair", 429, 429),
    ("medicalgpt/history/dpo_zh_history_chosen_200.jsonl", "preference", "question-pair", 200, 200),
    ("medicalgpt/history/toolcall_dpo_array_11.json", "preference", "conversation-pair", 11, 11),
    ("medicalgpt/history/sharegpt_zh_id_lang_200.json", "conversation", "sharegpt", 200, 199),
    ("medicalgpt/history/numina_cot_sharegpt_200.jsonl", "conversation", "sharegpt", 200, 200),
    ("toyhom/neike_5000-6000_sample.csv", "conversation", "question-answer", 7644, 7644),
    ("toyhom/neike_5000-6000_sample.csv", "qa", "question-answer", 7644, 7644),
    ("bentsao/llama_data.json", "conversation", "alpaca", 8658, 8658),
    ("bentsao/liver_cancer.json", "conversation", "alpaca", 998, 998),
    ("doctorglm/GenMedGPT-5k-ch.json", "conversation", "alpaca", 5397, 5397),
    ("doctorglm/GenMedGPT-5k.json", "conversation", "alpaca", 5452, 5452),
    ("formats/alpaca_array_zh.json", "conversation", "alpaca", 1000, 1000),
    ("formats/alpaca_array_en_input.json", "conversation", "alpaca", 399, 399),
    ("formats/alpaca_with_text_column.json", "conversation", "alpaca", 46, 46),
    ("formats/alpaca_literal_newline.jsonl", "conversation", "alpaca", 10, 10),
    ("formats/belle_3.5m_from_assistant.jsonl", "conversation", "sharegpt", 2, 2),
    ("formats/belle_alpaca_excerpts.jsonl", "conversation", "alpaca", 2, 2),
    ("formats/belle_multiturn_text.jsonl", "conversation", "alpaca", 1, 1),
    ("formats/guanaco_transcript.jsonl", "conversation", "alpaca", 3, 3),
    ("formats/cot_verifiable_mcq_o1_demo.json", "choice", "choice", 198, 198),
    ("formats/input_output.jsonl", "conversation", "alpaca", 6, 6),
    ("formats/input_target.jsonl", "conversation", "alpaca", 1, 1),
    ("formats/mcq_ceval/physician_val.csv", "choice", "choice", 49, 49),
    ("formats/mcq_cmmlu/test/college_medical_statistics.csv", "choice", "choice", 106, 106),
    ("formats/messages_content_parts.jsonl", "conversation", "openai", 199, 199),
    ("formats/messages_label_kto.json", "conversation", "openai", 195, 105),
    ("formats/messages_xtuner.jsonl", "conversation", "openai", 200, 200),
    ("formats/pair_conversations_dict_zh.json", "preference", "conversation-pair", 300, 300),
    ("formats/pair_openai_firefly.jsonl", "preference", "openai-pair", 16, 16),
    ("formats/qa_gsm8k_200.jsonl", "prompt", "question-answer", 200, 200),
    ("formats/rl_prompt_reward_model.jsonl", "prompt", "prompt", 100, 100),
    ("formats/sharegpt_array_identity.json", "conversation", "sharegpt", 500, 500),
    ("formats/text_firefly.jsonl", "text", "text", 45, 45),
]


@pytest.mark.parametrize(("name", "form", "known", "rows", "good"), REAL)
def test_real_files(shared, name, form, known, rows, good):
    report = Report(form)
    records = [read.record for read in stream(shared / "data" / name, form, on_bad_record="skip", report=report)]
    (file,) = report.files
    assert (file.format, file.rows, file.records, len(records)) == (known, rows, good, good)
    for record in records:
        for message in (record.get("messages") or record.get("prompt") or []) + (record.get("chosen") or []):
            assert message["role"] in ("system", "user", "assistant", "tool")
            assert message["content"] == message["content"].strip("\n")
            assert message["content"] or message.get("tool_calls")
        if form == "conversation":
            assert record["messages"][-1]["role"] == "assistant"
        if form in ("preference", "prompt"):
            assert record["prompt"][-1]["role"] in ("user", "tool")


def first(shared: Path, name: str, form: str, **options) -> dict:
    return next(record for record, _ in read_records(shared / "data" / name, form, **options))


def turns(*texts: str) -> list[dict]:
    return [
        {"role": role, "content": text} for role, text in zip(("user", "assistant") * len(texts), texts, strict=False)
    ]


def test_real_rows_are_converted_to_the_letter(shared):
    record = first(shared, "medicalgpt/sft/glaive_toolcall_zh_demo.jsonl", "conversation")
    assert [message["role"] for message in record["messages"]] == ["user", "assistant", "tool", "assistant"]
    (call,) = record["messages"][1]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "generate_invoice"
    assert call["function"]["arguments"]["items"][1] == {"name": "香蕉", "quantity": 3, "price": 0.5}
    assert record["messages"][2]["content"].startswith('{"invoice_id": "INV12345"')
    assert record["tools"][0]["type"] == "function"
    assert record["tools"][0]["function"]["name"] == "generate_invoice"

    record = first(shared, "medicalgpt/history/toolcall_dpo_array_11.json", "preference")
    assert record["prompt"] == turns("北京今天天气怎么样？")
    assert record["chosen"] == [
        {"role": "assistant", "content": 'Action: get_weather\nAction Input: {"city": "北京"}'}
    ]
    assert record["tools"][0]["function"]["parameters"]["required"] == ["city"]

    record = first(shared, "medicalgpt/history/reward_question_response_100.json", "preference")
    assert record["prompt"] == turns("肛门病变可能是什么疾病的症状?")
    assert record["chosen"] == [{"role": "assistant", "content": "食管克罗恩病"}]
    assert record["rejected"] == [{"role": "assistant", "content": "肛门病变可能与多种不同类型的病症有关。"}]

    question, answer = first(shared, "doctorglm/GenMedGPT-5k-ch.json", "conversation")["messages"]
    assert question["content"].startswith("如果您是医生，请根据患者的描述回答医学问题。\n\n医生,我一直在经历突然")
    assert answer["content"].startswith("根据你告诉我的情况")

    record = first(shared, "toyhom/neike_5000-6000_sample.csv", "qa")
    assert record["question"].startswith("高血压患者能吃党参吗？\n我有高血压这两天女婿来的时候")
    assert record["answer"].startswith("高血压病人可以口服党参的。")

    record = first(shared, "formats/mcq_cmmlu/dev/college_medical_statistics.csv", "prompt")
    stem = "只有各年龄组的发病率资料，用()方法计算标化发病率。"
    assert record["prompt"] == turns(f"{stem}\nA. 倒求法\nB. 间接法\nC. 直接法\nD. 等比法")
    assert record["answer"] == "C"
    assert record["options"] == {"A": "倒求法", "B": "间接法", "C": "直接法", "D": "等比法"}

    record = first(shared, "formats/rl_prompt_reward_model.jsonl", "prompt")
    assert record["prompt"][0]["content"].startswith("Natalia sold clips to 48 of her friends")
    assert record["answer"] == "72"

    record = first(shared, "formats/pair_openai_firefly.jsonl", "preference")
    assert record["prompt"] == turns("how can i develop a habit of drawing daily")
    assert [message["role"] for message in record["chosen"] + record["rejected"]] == ["assistant", "assistant"]

    record = first(shared, "formats/messages_content_parts.jsonl", "conversation")
    assert record["messages"][0] == {"role": "user", "content": "hi"}
    assert record["messages"][1]["content"].startswith("Hello! I am {{name}}")

    record = first(shared, "formats/alpaca_literal_newline.jsonl", "conversation")
    assert record["messages"] == turns(
        "用一句话描述地球为什么是独一无二的。", "地球上有适宜生命存在的条件和多样化的生命形式。"
    )


def test_what_was_repaired_in_a_real_file_is_said(shared):
    report = Report("conversation")
    path = shared / "data/medicalgpt/sft/sharegpt_zh_1K_format.jsonl"
    list(stream(path, "conversation", on_bad_record="skip", report=report))
    assert report.repairs == {"turns after the last answer dropped": 6}  # 7 rows end on the user, one has no answer
    assert report.bad == 2
    assert "repaired: 6 × turns after the last answer dropped" in str(report)


SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
OPENAI = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SYSTEM = {"role": "system", "content": "你是护士"}
REPLIES = {"chosen": [{"role": "assistant", "content": "c"}], "rejected": [{"role": "assistant", "content": "r"}]}
OPTIONS = {"A": "甲", "B": "乙", "C": "丙"}
INVENTED = [  # row, form, format, record without its empty columns
    ({"completion": "某湖", "source": "wikipedia.zh2307"}, "text", "text", {"text": "某湖"}),
    (
        {"conversations": SHAREGPT, "system_prompt": "你是护士"},
        "conversation",
        "sharegpt",
        {"messages": [SYSTEM, *OPENAI]},
    ),
    (
        {"conversations": [{"from": "Human", "value": " q\n"}, {"from": "bing", "value": "a"}]},
        "conversation",
        "sharegpt",
        {"messages": OPENAI},
    ),
    ({"messages": OPENAI, "system": ""}, "conversation", "openai", {"messages": OPENAI}),
    ({"messages": OPENAI}, "prompt", "openai", {"prompt": OPENAI[:1], "answer": "a"}),
    ({"messages": OPENAI[:1]}, "prompt", "openai", {"prompt": OPENAI[:1]}),
    ({"messages": [*turns("q0", "a0"), *OPENAI]}, "qa", "openai", {"question": "q", "answer": "a"}),
    (
        {"instruction": "q", "input": "", "output": "a", "history": [["q0", "a0"]], "system": "你是护士"},
        "conversation",
        "alpaca",
        {"messages": [SYSTEM, *turns("q0", "a0"), *OPENAI]},
    ),
    (
        {"instruction": "译成英文", "input": "输入：你好", "output": "Hello"},
        "conversation",
        "alpaca",
        {"messages": turns("译成英文\n\n你好", "Hello")},
    ),
    ({"instruction": "q"}, "prompt", "alpaca", {"prompt": turns("q")}),
    ({"question": "q", "answer": 4}, "qa", "question-answer", {"question": "q", "answer": "4"}),
    ({"questions": [["q", "q again"]], "answers": ["a"]}, "qa", "question-answer", {"question": "q", "answer": "a"}),
    (
        {"Open-ended Verifiable Question": "q", "Ground-True Answer": "Scurvy"},
        "prompt",
        "question-answer",
        {"prompt": turns("q"), "answer": "Scurvy"},
    ),
    ({"prompt": "q"}, "prompt", "question-answer", {"prompt": turns("q")}),
    (
        {"question": "q", "responses": ["worse", "better"], "ranks": [1, 0]},
        "preference",
        "ranking",
        {"prompt": turns("q"), "chosen": turns("", "better")[1:], "rejected": turns("", "worse")[1:]},
    ),
    (
        {"title": "头痛", "ask": "头痛怎么办", "answer": "a"},
        "qa",
        "question-answer",
        {"question": "头痛怎么办", "answer": "a"},
    ),
    ({"prompt": OPENAI[:1], "solution": "4"}, "prompt", "prompt", {"prompt": OPENAI[:1], "answer": "4"}),
    (
        {
            "system": "你是护士",
            "history": [["q0", "a0"]],
            "question": "q",
            "response_chosen": "c",
            "response_rejected": "r",
        },
        "preference",
        "question-pair",
        {"prompt": [SYSTEM, *turns("q0", "a0", "q")], **REPLIES},
    ),
    (
        {"prompt": "q", "chosen": "c", "rejected": "r", "margin": "0.5"},
        "preference",
        "plain-pair",
        {"prompt": turns("q"), **REPLIES, "margin": 0.5},
    ),
    (
        {"instruction": "i", "input": "j", "chosen": "c", "reject": "r"},
        "preference",
        "plain-pair",
        {"prompt": turns("i\n\nj"), **REPLIES},
    ),
    (
        {
            "conversations": SHAREGPT[:1],
            "chosen": {"from": "gpt", "value": "c"},
            "rejected": [{"role": "assistant", "content": "r"}],
        },
        "preference",
        "conversation-pair",
        {"prompt": turns("q"), **REPLIES},
    ),
    (
        {"conversations": SHAREGPT[:1], "chosen": "c", "rejected": "r"},
        "prompt",
        "conversation-pair",
        {"prompt": turns("q")},
    ),
    ({"prompt": OPENAI[:1], **REPLIES}, "preference", "openai-pair", {"prompt": turns("q"), **REPLIES}),
    (
        {"question": "q", "option": {**OPTIONS, "D": " "}, "answer": "CA"},
        "choice",
        "choice",
        {"question": "q", "options": OPTIONS, "answer": "AC"},
    ),
    (
        {"Question": "q", "Options": "A 甲\nB 乙\nC 丙", "Answer": "B"},
        "choice",
        "choice",
        {"question": "q", "options": OPTIONS, "answer": "B"},
    ),
    (
        {
            "question": "q",
            "options": [{"key": key, "value": text} for key, text in OPTIONS.items()],
            "answer_idx": "A",
            "answer": "甲",
        },
        "choice",
        "choice",
        {"question": "q", "options": OPTIONS, "answer": "A"},
    ),
    (
        {"question": "q", "choices": ["甲", "乙", "丙"], "answer": 2},
        "choice",
        "choice",
        {"question": "q", "options": OPTIONS, "answer": "C"},
    ),
    (
        {"question": "q", "options": OPTIONS, "answer": "乙"},
        "choice",
        "choice",
        {"question": "q", "options": OPTIONS, "answer": "B"},
    ),
    (
        {"question": "q", **OPTIONS, "answer": "a、c"},
        "choice",
        "choice",
        {"question": "q", "options": OPTIONS, "answer": "AC"},
    ),
]


def read(tmp_path: Path, form: str, *rows: dict, **options) -> tuple[list[dict], Report]:
    """Records of rows, without the columns that they leave empty."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = Report(form)
    reads = stream(path, form, report=report, **options)
    return [{k: v for k, v in read.record.items() if v is not None} for read in reads], report


def problem(tmp_path: Path, form: str, *rows: dict, **options) -> str:
    with pytest.raises(RecordError) as caught:
        read(tmp_path, form, *rows, **options)
    assert caught.value.total == 1
    return caught.value.problems[0].replace(str(tmp_path) + "/", "")


@pytest.mark.parametrize(("row", "form", "known", "record"), INVENTED)
def test_invented_rows(tmp_path, row, form, known, record):
    records, report = read(tmp_path, form, row)
    assert records == [record]
    assert report.files[0].format == known


TALK = ("你好", "你好。", "讲个笑话", "从前……")
DIALOGUES = [
    {"instruction": "Human:你好\nAssistant:你好。\nHuman:讲个笑话\nAssistant:", "input": "", "output": "从前……"},
    {"instruction": "User:你好Assistant:你好。", "input": "User:讲个笑话", "output": "从前……"},
    {"instruction": " <user>: 你好 <bot>: 你好。 <user>: 讲个笑话", "input": "", "output": "从前……"},
]


@pytest.mark.parametrize("row", DIALOGUES, ids=["belle", "guanaco", "bentsao"])
def test_a_dialogue_in_one_text_becomes_turns(tmp_path, row):
    ((record,), _) = read(tmp_path, "conversation", row)
    roles = ("user", "assistant") * 2
    assert record["messages"] == [{"role": r, "content": t} for r, t in zip(roles, TALK, strict=True)]


def test_a_dialogue_as_the_prompt_of_a_pair_becomes_turns(tmp_path):
    row = {"prompt": "\n\nHuman: 你好\n\nAssistant: 你好。\n\nHuman: 讲个笑话：\n甲：乙\n\nAssistant:"}
    ((record,), _) = read(tmp_path, "preference", row | {"chosen": "从前……", "rejected": "不"})
    assert [m["content"] for m in record["prompt"]] == ["你好", "你好。", "讲个笑话：\n甲：乙"]


@pytest.mark.parametrize(
    "text", ["User interface 是什么？", "人类：起源", "System: Linux", "助手：怎么当？", "Human:"]
)
def test_a_heading_is_no_dialogue(tmp_path, text):
    ((record,), _) = read(tmp_path, "conversation", {"instruction": text, "output": "a"})
    assert [message["content"] for message in record["messages"]] == [text, "a"]


def test_a_dialogue_out_of_order_is_refused(tmp_path):
    row = {"instruction": "Human: 一\nHuman: 二\nAssistant: 三\nAssistant:", "output": "a"}
    assert "alternate and end on the user, got user → user → assistant" in problem(tmp_path, "conversation", row)


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"question": "q", "options": {"a": "甲", "b": "乙"}, "answer": None}, {"A": "甲", "B": "乙"}),
        ({"Question": "q", "A": "甲", "B": "乙"}, {"A": "甲", "B": "乙"}),
        ({"Question": "q", "A": "甲", "B": "乙", "Answer": " "}, {"A": "甲", "B": "乙"}),
        ({"question": "q", "answer": None}, None),
    ],
)
def test_what_has_no_gold_can_still_be_asked(tmp_path, row, record):
    ((prompt,), _) = read(tmp_path, "prompt", row)
    assert prompt.get("answer") is None and prompt.get("options") == record
    form = "choice" if record else "qa"
    assert "answer: expected" in problem(tmp_path, form, row)


@pytest.mark.parametrize("options", [{"1": "甲", "2": "乙"}, [{"key": 1, "value": "甲"}, {"key": 2, "value": "乙"}]])
def test_numbers_name_no_options(tmp_path, options):
    row = {"question": "q", "options": options, "answer": "1"}
    assert "options: expected a letter for each option" in problem(tmp_path, "choice", row)


def test_an_index_counts_blank_options_too(tmp_path):
    row = {"question": "q", "choices": ["甲", "", "丙", "丁"]}
    assert [read(tmp_path, "choice", row | {"answer": n})[0][0]["answer"] for n in (0, 2, 3)] == ["A", "C", "D"]
    assert "letters out of ACD, got 1" in problem(tmp_path, "choice", row | {"answer": 1})


def test_neighbouring_answers_are_one_gold(tmp_path):
    said = [("human", "q"), ("gpt", "a"), ("gpt", "b")]
    row = {"conversations": [{"from": who, "value": text} for who, text in said]}
    ((prompt,), _) = read(tmp_path, "prompt", row)
    assert prompt["prompt"] == [{"role": "user", "content": "q"}] and prompt["answer"].split() == ["a", "b"]


@pytest.mark.parametrize("evidence", ["低盐", ["低盐"], [{"text": "低盐"}]])
def test_evidence_is_a_list_of_texts(tmp_path, evidence):
    row = {"question": "q", "answer": "a", "evidence": evidence}
    assert read(tmp_path, "prompt", row)[0][0]["evidence"] == ["低盐"]
    assert "evidence: expected a list of texts" in problem(tmp_path, "prompt", row | {"evidence": [1]})


@pytest.mark.parametrize(("cell", "tolerance"), [("0.01", 0.01), ("", None), (0, 0.0)])
def test_a_tolerance_may_be_a_cell_of_a_table(tmp_path, cell, tolerance):
    row = {"question": "14.8 kg，15 mg/kg，多少？", "answer": "222", "tolerance": cell}
    assert read(tmp_path, "prompt", row)[0][0].get("tolerance") == tolerance
    for wrong in ("约1%", 5, -0.1, True):
        assert "tolerance: expected a relative error from 0 to below 1" in problem(
            tmp_path, "prompt", row | {"tolerance": wrong}
        )


def test_a_prompt_keeps_what_its_reward_needs(tmp_path):
    turn = [{"role": "user", "content": "14.8 kg，15 mg/kg，多少？"}]
    gold = {
        "answer": "222",
        "unit": "mg",
        "tolerance": 0.01,
        "evidence": ["15 mg/kg"],
        "options": {"A": "1", "B": "2"},
    }
    records, _ = read(tmp_path, "prompt", {"prompt": turn, **gold})
    assert records == [{"prompt": turn, **gold}]


def test_a_question_and_its_answer_keep_the_turns_before(tmp_path):
    row = {"system": "只用英语回答。", "history": [["咳嗽？", "Rest."]], "question": "发烧呢？", "answer": "Drink."}
    said = ["只用英语回答。", "咳嗽？", "Rest.", "发烧呢？", "Drink."]
    (record,), _ = read(tmp_path, "conversation", row)
    assert [turn["content"] for turn in record["messages"]] == said
    (record,), _ = read(tmp_path, "prompt", row)
    assert [turn["content"] for turn in record["prompt"]] == said[:-1] and record["answer"] == "Drink."


def test_tool_calls_in_every_spelling(tmp_path):
    function = {"name": "w", "arguments": {"city": "北京"}}
    encoded = {"name": "w", "arguments": json.dumps(function["arguments"])}
    call = {"type": "function", "function": function}
    question, result, answer = {"role": "user", "content": "q"}, {"role": "tool", "content": "20"}, OPENAI[1]
    expected = [question, {"role": "assistant", "content": "", "tool_calls": [call]}, result, answer]
    schema = {"name": "w", "parameters": {}}
    spoken = [{"from": "human", "value": "q"}, {"from": "observation", "value": "20"}, {"from": "gpt", "value": "a"}]
    for value in (json.dumps(function), json.dumps(encoded), json.dumps([function])):
        conversation = [spoken[0], {"from": "function_call", "value": value}, *spoken[1:]]
        rows = [{"conversations": conversation, "tools": tools} for tools in (json.dumps([schema]), [schema])]
        for record in read(tmp_path, "conversation", *rows)[0]:
            assert record == {"messages": expected, "tools": [{"type": "function", "function": schema}]}
    row = {
        "messages": [question, {"role": "assistant", "content": None, "tool_calls": [call]}, result, answer],
        "tools": "[]",
    }
    assert read(tmp_path, "conversation", row)[0] == [{"messages": expected}]
    twice = [question, *[{"role": "assistant", "content": "", "tool_calls": [call]}] * 2, result, result, answer]
    both = [question, {"role": "assistant", "content": "", "tool_calls": [call, call]}, result, result, answer]
    assert read(tmp_path, "conversation", {"messages": twice})[0] == [{"messages": both}]


def test_repairs_are_made_and_counted(tmp_path):
    def row(*said: tuple[str, str]) -> dict:
        return {"conversations": [{"from": role, "value": text} for role, text in said]}

    rows = [
        row(("gpt", "hello"), ("human", "q"), ("gpt", "a")),
        row(("human", "q"), ("gpt", "a"), ("human", "more"), ("human", "")),
        row(("human", "one"), ("human", "two"), ("gpt", "a"), ("gpt", "b")),
        row(("system", ""), ("human", "q"), ("gpt", "a")),
    ]
    records, report = read(tmp_path, "conversation", *rows)
    merged = turns("one\n\ntwo", "a\n\nb")
    assert [record["messages"] for record in records] == [OPENAI, OPENAI, merged, OPENAI]
    assert report.bad == 0
    assert report.repairs == {
        "turns before the first user turn dropped": 1,
        "turns after the last answer dropped": 1,
        "neighbouring turns of one role merged": 2,
    }


def test_edges_are_stripped_but_not_the_indent_of_code(tmp_path):
    rows = [{"question": " \n q \n", "answer": "\n    if x:\n        y\n"}, {"question": "q", "answer": " Apple"}]
    records, _ = read(tmp_path, "qa", *rows)
    assert [record["answer"] for record in records] == ["    if x:\n        y", "Apple"]
    assert records[0]["question"] == "q"


def test_half_a_surrogate_pair_does_not_stop_the_run(tmp_path):
    records, _ = read(tmp_path, "text", {"text": "a\ud83d"}, {"text": "\ud83d\ude00"})
    assert [record["text"] for record in records] == ["a\ufffd", "😀"]


def test_answers_marked_as_bad_are_not_learned(tmp_path):
    rows = [{"messages": OPENAI, "label": label} for label in (True, False, True)]
    records, report = read(tmp_path, "conversation", *rows)
    assert len(records) == 2
    assert report.left_out == {"answer marked as bad (label: false)": 1}
    assert read(tmp_path, "prompt", *rows)[0][1] == {"prompt": OPENAI[:1]}  # to ask again, but not as gold


@pytest.mark.parametrize(
    ("row", "form", "expected"),
    [
        (
            {"conversations": [SHAREGPT[0], {"from": "gpt", "value": ""}]},
            "conversation",
            "conversations[1].value: expected an answer, got an empty text",
        ),
        (
            {"conversations": [SHAREGPT[0], {"from": "gpt", "value": None}]},
            "conversation",
            "conversations[1].value: expected an answer, got an empty text",
        ),
        (
            {"conversations": [SHAREGPT[0], {"from": "gpt"}]},
            "conversation",
            "conversations[1].value: expected text, got no such field (the message has from)",
        ),
        (
            {"conversations": [{"from": "human", "value": " "}, SHAREGPT[1]]},
            "conversation",
            "conversations[0].value: expected a question, got an empty text",
        ),
        (
            {"conversations": [{"from": "doctor", "value": "q"}, SHAREGPT[1]]},
            "conversation",
            "conversations[0].from: expected one of system, user, human, ",
        ),
        ({"conversations": [SHAREGPT[0]]}, "conversation", "messages: expected an answer of the assistant, got user"),
        (
            {"conversations": [SHAREGPT[1]]},
            "conversation",
            "messages: expected a question before an answer, got assistant",
        ),
        ({"conversations": []}, "conversation", "conversations: expected a list of messages, got list []"),
        (
            {"id": 1, "lang": "zh"},
            "conversation",
            "conversations: expected a list of messages, got no such field (the record has id, lang)",
        ),
        ({"conversations": [SHAREGPT[0], "a"]}, "conversation", "conversations[1]: expected a message, got 'a'"),
        (
            {"conversations": [*SHAREGPT, {"from": "system", "value": "s"}, *SHAREGPT]},
            "conversation",
            "conversations[2].value: expected system as the first message only, got a later one",
        ),
        (
            {"conversations": [SHAREGPT[0], {"from": "function_call", "value": "call()"}, SHAREGPT[1]]},
            "conversation",
            "conversations[1].value: expected a tool call {name, arguments}, got 'call()'",
        ),
        ({"conversations": SHAREGPT, "tools": "{"}, "conversation", "tools: expected a JSON list of tools, got '{'"),
    ],
)
def test_a_bad_row_is_told_with_line_field_expected_and_got(tmp_path, row, form, expected):
    good = {"conversations": SHAREGPT}
    assert problem(tmp_path, form, good, good, row).startswith(f"rows.jsonl:3: {expected}")
    assert len(read(tmp_path, form, good, good, row, on_bad_record="skip")[0]) == 2


@pytest.mark.parametrize(
    ("row", "form", "expected"),
    [
        ({"instruction": "q", "input": ""}, "conversation", "output: expected an answer of the assistant, got user"),
        ({"instruction": "q", "output": ""}, "conversation", "output: expected an answer, got an empty text"),
        ({"instruction": "q", "output": None}, "conversation", "output: expected text, got null"),
        ({"instruction": "q", "output": ["a"]}, "conversation", "output: expected text, got list ['a']"),
        (
            {"instruction": "q", "output": "a", "history": ["q0"]},
            "conversation",
            "history: expected a list of [question, answer], got",
        ),
        ({"question": "q"}, "qa", "answer: expected text, got no such field"),
        ({"question": "q", "answer": ""}, "qa", "answer: expected text, got an empty one"),
        ({"text": ""}, "text", "text: expected text, got an empty one"),
        ({"text": ["x"]}, "text", "text: expected text, got list ['x']"),
        (
            {"prompt": "q", "chosen": "c"},
            "preference",
            "rejected: expected text, got no such field (the record has prompt, chosen)",
        ),
        (
            {"prompt": "q", "chosen": "", "rejected": "r"},
            "preference",
            "chosen: expected an answer, got an empty text",
        ),
        (
            {"prompt": "q", "chosen": "c", "rejected": " c"},
            "preference",
            "rejected: expected another reply than chosen, got the same one",
        ),
        (
            {"prompt": "q", "chosen": "c", "rejected": "r", "margin": "much"},
            "preference",
            "margin: expected a number, got 'much'",
        ),
        (
            {"conversations": SHAREGPT, "chosen": "c", "rejected": "r"},
            "preference",
            "prompt: expected messages that end on the user, got user → assistant",
        ),
        (
            {"question": "q", "options": OPTIONS, "answer": "E"},
            "choice",
            "answer: expected letters out of ABC, got 'E'",
        ),
        ({"question": "q", "options": OPTIONS}, "choice", "answer: expected letters out of ABC, got null"),
        (
            {"question": "q", "options": {"A": "甲"}, "answer": "A"},
            "choice",
            "options: expected at least two options, got dict {'A': '甲'}",
        ),
    ],
)
def test_a_field_that_is_missing_empty_or_of_the_wrong_kind(tmp_path, row, form, expected):
    assert problem(tmp_path, form, row).startswith(f"rows.jsonl:1: {expected}")


def test_a_form_that_cannot_be_made_names_both(tmp_path):
    found = problem(tmp_path, "preference", {"conversations": SHAREGPT})
    assert "records to make `preference` of, got sharegpt records" in found
    found = problem(tmp_path, "conversation", {"conversations": SHAREGPT[:1], "chosen": "c", "rejected": "r"})
    assert "records to make `conversation` of, got conversation-pair records" in found
    found = problem(tmp_path, "qa", {"question": "q", "options": OPTIONS, "answer": "A"})
    assert "got choice records" in found  # not the bare stem with the letter as its answer
    found = problem(tmp_path, "text", {"foo": 1, "bar": 2})
    assert found == "rows.jsonl: columns: expected one of: text [text], got foo, bar"


def test_the_caller_may_name_the_format(tmp_path):
    row = {"question": "q", "options": OPTIONS, "answer": "A"}
    assert read(tmp_path, "qa", row, record_format="question-answer")[0] == [{"question": "q", "answer": "A"}]
    with pytest.raises(ValueError, match=r"--record_format: expected one of .*sharegpt, .*got 'sharegbt'"):
        read(tmp_path, "qa", row, record_format="sharegbt")
    with pytest.raises(ValueError, match="--record_format text: text records make no qa"):
        read(tmp_path, "qa", row, record_format="text")
    with pytest.raises(ValueError, match=r"form: expected one of text, .*got 'chat'"):
        read(tmp_path, "chat", row)


def test_the_format_is_found_for_each_file_and_checked_in_every_row(tmp_path):
    for name, row in (("a.jsonl", {"instruction": "q", "output": "a"}), ("b.jsonl", {"conversations": SHAREGPT})):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    report = Report("conversation")
    assert [read.record["messages"] for read in stream(tmp_path, "conversation", report=report)] == [OPENAI, OPENAI]
    assert [file.format for file in report.files] == ["alpaca", "sharegpt"]
    rows = [{"conversations": SHAREGPT}] * 3 + [{"instruction": "q", "output": "a"}]
    assert problem(tmp_path, "conversation", *rows).startswith(
        "rows.jsonl:4: conversations: expected a list of messages"
    )


def test_every_format_is_met_above():
    assert {known for *_, known, _, _ in REAL} | {known for _, _, known, _ in INVENTED} == set(FORMATS)


@pytest.mark.parametrize(("bad", "good"), [(2, 1), (3, 0)])
def test_a_file_that_is_mostly_bad_is_not_skipped(tmp_path, bad, good):
    rows = [{"question": "q", "answer": ""}] * bad + [{"question": "q", "answer": "a"}] * good
    with pytest.raises(RecordError, match=f"{bad} of {bad + good} records are bad: too many to skip"):
        read(tmp_path, "qa", *rows, on_bad_record="skip")
    assert (
        len(read(tmp_path, "qa", *rows, *[{"question": "q", "answer": "a"}] * 3, on_bad_record="skip")[0]) == good + 3
    )
