"""Rewards: tables of strings, and the gold answers of real files, which must have full marks on every row."""

import csv
import json
from pathlib import Path

import pytest

from medical_qwen import rewards
from medical_qwen.records import render_choice
from medical_qwen.rewards import REWARDS, load_reward

OPTIONS = {"A": "高血压", "B": "糖尿病", "C": "感冒"}
CHOICE_PHRASES = [
    "{}",
    "答案：{}",
    "选{}",
    "**{}**",
    r"\boxed{{{}}}",
    "The answer is {}.",
    "<think>\n先看 A，\n再看 B\n</think>\n<answer>{}</answer>",
    "<think>可能选B</think>\n解析：……\n\n答案：{}",
]
NUMBER_PHRASES = [
    "{}",
    "答案：{}",
    "算得 1 + 1 = 2，所以结果是 {}。",
    r"\boxed{{{}}}",
    "The answer is {}.",
    "#### {}",
    "<think>\n7 × 8\n</think>\n<answer>{}</answer>",
]


def assert_full_marks(name: str, phrases: list[str], gold: list[str], **columns: list) -> None:
    for phrase in phrases:
        completions = [[{"role": "assistant", "content": phrase.format(text)}] for text in gold]
        marks = REWARDS[name](prompts=[None] * len(gold), completions=completions, **columns)
        assert len(gold) > 0 and [text for text, mark in zip(gold, marks, strict=True) if mark != 1] == [], phrase


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def exam_rows(folder: Path) -> list[dict]:
    rows = []
    for path in sorted(folder.rglob("*.csv")):
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows += [{key.lower(): value for key, value in row.items()} for row in csv.DictReader(stream)]
    return [row | {"options": {letter.upper(): row[letter] for letter in "abcd"}} for row in rows]


@pytest.mark.parametrize("name", ["mcq_ceval", "mcq_cmmlu"])
def test_gold_letters_of_public_exams(shared, name):
    rows = exam_rows(shared / "data" / "formats" / name)
    columns = {key: [row[key] for row in rows] for key in ("answer", "options")}
    assert_full_marks("choice", CHOICE_PHRASES, columns["answer"], **columns)
    restated = [f"{row['answer']}. {row['options'][row['answer']]}" for row in rows]
    assert_full_marks("choice", CHOICE_PHRASES, restated, **columns)


def test_gold_letters_and_texts_of_the_verifiable_exam(shared):
    rows = json.loads((shared / "data" / "formats" / "cot_verifiable_mcq_o1_demo.json").read_text(encoding="utf-8"))
    columns = {"answer": [row["answer_idx"] for row in rows], "options": [row["options"] for row in rows]}
    assert_full_marks("choice", CHOICE_PHRASES, columns["answer"], **columns)
    restated = [f"{row['answer_idx']}. {row['options'][row['answer_idx']]}" for row in rows]
    assert_full_marks("choice", CHOICE_PHRASES, restated, **columns)
    texts = [row["options"][row["answer_idx"]] for row in rows]
    plain = [i for i, text in enumerate(texts) if list(rows[i]["options"].values()).count(text) == 1 and text != "B"]
    assert len(plain) > 0.95 * len(rows)
    chosen = {name: [column[i] for i in plain] for name, column in columns.items()}
    assert_full_marks("choice", ["{}", "<think>x</think>{}", "答案：{}"], [texts[i] for i in plain], **chosen)


def test_gold_numbers_of_gsm8k(shared):
    rows = jsonl(shared / "data" / "formats" / "qa_gsm8k_200.jsonl")
    columns = {"answer": [row["answer"] for row in rows]}
    assert_full_marks("number", ["{}"], columns["answer"], **columns)
    numbers = [text.rpartition("####")[2].strip() for text in columns["answer"]]
    assert_full_marks("number", NUMBER_PHRASES, numbers, **columns)
    wrong = [str(float(number.replace(",", "")) + 1) for number in numbers]
    assert set(rewards.number_reward(wrong, **columns)) == {0.0}


def own_rows(root: Path, kind: str) -> list[dict]:
    rows = [row for path in sorted((root / "data" / "grpo").glob("*.jsonl")) for row in jsonl(path)]
    return [row for row in rows if ("options" in row) == (kind == "choice")]


def test_gold_letters_of_our_own_exam(root):
    rows = own_rows(root, "choice")
    columns = {"answer": [row["answer"] for row in rows], "options": [row["options"] for row in rows]}
    assert_full_marks("choice", CHOICE_PHRASES, columns["answer"], **columns)
    restated = ["；".join(f"{letter}. {row['options'][letter]}" for letter in row["answer"]) for row in rows]
    assert_full_marks("choice", ["答案：{}", "<answer>{}</answer>"], restated, **columns)
    assert rewards.number_reward(columns["answer"], **columns) == [None] * len(rows)
    questions = [render_choice(row["question"], row["options"]) for row in rows]
    assert set(rewards.choice_reward(questions, **columns)) == {0.0}, "the question itself is no answer"


def test_gold_numbers_of_our_own_calculations(root):
    rows = own_rows(root, "number")
    columns = {key: [row.get(key) for row in rows] for key in ("answer", "unit", "tolerance")}
    assert_full_marks("number", NUMBER_PHRASES, [str(row["answer"]) for row in rows], **columns)
    with_unit = [f"{row['answer']} {row.get('unit') or ''}".strip() for row in rows]
    assert_full_marks("number", NUMBER_PHRASES, with_unit, **columns)
    assert rewards.choice_reward(with_unit, answer=columns["answer"]) == [None] * len(rows)
    questions = [row["question"] for row in rows]
    marks = rewards.number_reward(questions, **columns)
    assert sum(marks) < 0.05 * len(marks), "the question itself is no answer"


def test_choice_and_number_leave_each_others_rows_out():
    completions = ["答案：C", "答案：0.5 g", "答案：C"]
    columns = {
        "answer": ["C", "500", None],
        "options": [OPTIONS, None, None],
        "unit": [None, "mg", None],
        "tolerance": [None, 0.01, None],
        "trainer_state": object(),
    }
    assert REWARDS["choice"](completions=completions, **columns) == [1.0, None, None]
    assert REWARDS["number"](completions=completions, **columns) == [None, 1.0, None]
    assert REWARDS["choice"](completions=["答案：C"]) == [None], "no gold column at all"
    assert REWARDS["choice"](completions=["不知道", ""], answer=["C", "C"]) == [0.0, 0.0]


@pytest.mark.parametrize(
    "completion",
    ["答案：C", [{"role": "assistant", "content": "答案：C"}]],
)
def test_completions_are_texts_or_messages(completion):
    assert rewards.choice_reward([completion], answer=["C"], options=[OPTIONS]) == [1.0]


@pytest.mark.parametrize("completion", ["", [], [{"role": "assistant", "content": None}]])
def test_an_empty_completion_earns_nothing(completion):
    columns = {"answer": ["C"], "evidence": [["一段"]]}
    for name, reward in REWARDS.items():
        marks = reward(completions=[completion], **(columns if name != "number" else {"answer": ["3"]}))
        assert marks == [0.0], name


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("<think>想</think><answer>C</answer>", 1.0),
        ("<think>\n第一步\n\n第二步\n</think>\n\n<answer>\nC\n</answer>\n", 1.0),
        ("<think>a < b 且 c > d</think><answer>C</answer>", 1.0),
        ("<think></think><answer>C</answer>", 0.0),
        ("<think>\n</think><answer>C</answer>", 0.0),
        ("<think>想</think><answer> </answer>", 0.0),
        ("<think>想</think>C", 0.0),
        ("<answer>C</answer>", 0.0),
        ("先说<think>想</think><answer>C</answer>", 0.0),
        ("<think>想</think><answer>C</answer>再说", 0.0),
        ("<think>想</think>中间<answer>C</answer>", 0.0),
        ("<think>想<think>想</think><answer>C</answer>", 0.0),
        ("<think>想</think><answer>C</answer><answer>C</answer>", 0.0),
        ("<think>想</think><answer>C", 0.0),
        ("<think>" * 5000, 0.0),
        ("<think>" + "想 \n" * 20000, 0.0),
    ],
)
def test_format(completion, reward):
    assert rewards.format_reward([completion]) == [reward]


def test_format_by_a_pattern_of_ones_own():
    reward = load_reward(r"format(format_pattern=r'.*\n答案：[A-E]+')")
    assert reward(completions=["解析\n第二行\n答案：AC", "答案：AC是对的"]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("高血压要低盐饮食。", 1.0),
        ("<think>先想想</think><answer>低盐</answer>", 1.0),
        ("复查 HbA1c", 2 / 3),
        ("血压 120/80 mmHg", 2 / 3),
        ("Low salt diet", 0.0),
        ("低盐 low salt", 0.5),
        ("高血圧のひと", 3 / 6),
        ("12345", 0.0),
    ],
)
def test_chinese(completion, reward):
    assert rewards.chinese_reward([completion]) == [pytest.approx(reward)]


@pytest.mark.parametrize(
    ("length", "reward"), [(0, 0), (50, 0.25), (100, 0.5), (200, 1), (300, 0.5), (400, 0), (900, 0)]
)
def test_length(length, reward):
    assert load_reward("length(target_length=200)")(completions=["字" * length]) == [pytest.approx(reward)]


def test_length_needs_a_target():
    with pytest.raises(ValueError, match="target_length: expected at least 1 character, got 0"):
        rewards.length_reward(["字"], target_length=0)


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("多喝水", 1.0),
        ("多喝水，注意休息。", 1.0),
        ("哈哈哈哈哈哈哈", 1 / 4),
        ("多喝水。" * 5, 4 / 17),
        ("a b c d a b c d", 4 / 5),
    ],
)
def test_repetition(completion, reward):
    assert rewards.repetition_reward([completion]) == [pytest.approx(reward)]


EVIDENCE = ["高血压患者每日食盐摄入量应低于5克。", "二甲双胍是2型糖尿病的一线用药，肾功能不全者慎用。"]


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("高血压患者每日食盐应低于5克[1]。", 1.0),
        ("高血压患者每日食盐应低于5克。[1]", 1.0),
        ("高血压患者食盐应低于5克【1】；二甲双胍是一线用药【2】。", 1.0),
        ("高血压患者食盐应低于5克，二甲双胍是一线用药[1,2]。", 1.0),
        ("高血压患者每日食盐应低于5克[2]。", 0.0),
        ("高血压患者每日食盐应低于5克[3]。", 0.0),
        ("高血压患者每日食盐应低于5克[0]。", 0.0),
        ("高血压患者每日食盐应低于5克[1][2]。", 0.5),
        ("阿司匹林可以退烧止痛[1]。", 0.0),
        ("高血压患者每日食盐应低于5克。", 0.0),
        ("[1][2]", 0.0),
        ("<think>食盐应低于5克[1]</think>高血压患者少吃盐。", 0.0),
    ],
)
def test_citation(completion, reward):
    assert rewards.citation_reward([completion], evidence=[EVIDENCE]) == [reward]


def test_citation_without_evidence_cannot_be_judged():
    assert rewards.citation_reward(["低盐[1]", "低盐[1]"], evidence=[None, []]) == [None, None]
    assert rewards.citation_reward(["低盐[1]"]) == [None]


def test_every_reward_stays_between_0_and_1():
    texts = ["答案：C", "<think>想</think><answer>C</answer>", "a" * 5000, "[1]" * 100, "\n", "😀" * 10, "3 mg"]
    columns = {"answer": ["C"] * len(texts), "evidence": [EVIDENCE] * len(texts)}
    for reward in REWARDS.values():
        assert all(mark is None or 0 <= mark <= 1 for mark in reward(completions=texts, **columns))


def test_a_reward_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def share(completions, letter='a', **columns):\n"
        "    return [text.count(letter) / len(text) for text in completions]\n"
    )
    assert load_reward(f"{file}:share")(completions=["aab"]) == [pytest.approx(2 / 3)]
    reward = load_reward(f"{file}:share(letter='b')")
    assert reward(completions=["aab"]) == [pytest.approx(1 / 3)]
    with pytest.raises(ValueError, match="has no function 'other'; it has share"):
        load_reward(f"{file}:other")
    with pytest.raises(FileNotFoundError, match=r"none\.py does not exist"):
        load_reward(f"{tmp_path}/none.py:share")
    (tmp_path / "notes.txt").write_text("share")
    with pytest.raises(ValueError, match="expected a Python file"):
        load_reward(f"{tmp_path}/notes.txt:share")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "accuracy",
            "reward 'accuracy': expected one of choice, number, format, chinese, length, repetition, citation",
        ),
        ("length(target=3)", "unknown setting target; it has target_length"),
        ("choice(answer='C')", "unknown setting answer; it has none"),
        ("length(3)", "expected name.setting=value"),
        ("length(target_length=3", "expected name.setting=value"),
        ("length(target_length=open('x'))", "with plain values"),
    ],
)
def test_a_wrong_name_or_setting_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        load_reward(spec)


def test_names_as_the_trainer_shows_them():
    assert load_reward("choice") is rewards.choice_reward
    assert load_reward("length(target_length=9)").func is rewards.length_reward
