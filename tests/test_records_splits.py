"""load_splits: what goes into training, what is held out, and that a second run finds the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from medical_qwen.arguments import DataArguments
from medical_qwen.records import FORMS, RecordError, load_splits
from medical_qwen.records import splits as splits_module


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "medical_qwen_records"


def qa(number: int | str, answer: str = "a") -> dict:
    return {"question": f"这是第{number}个很长的医学问题吗", "answer": answer}


def write(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(form: str = "qa", seed: int = 1, **options):
    return load_splits(DataArguments(**options), form, seed)


def asked(data) -> list[str]:
    return data["question"][:]


def test_ratio_is_exact_seeded_and_disjoint(tmp_path):
    path = write(tmp_path / "a.jsonl", [qa(n) for n in range(40)])
    one = load(train_file_dir=path, validation_split_ratio=0.1)
    other = load(train_file_dir=path, validation_split_ratio=0.1, seed=2)
    assert (len(one.train), len(one.validation)) == (36, 4)
    assert set(asked(one.train)) | set(asked(one.validation)) == {qa(n)["question"] for n in range(40)}
    assert set(asked(one.validation)) != set(asked(other.validation))
    assert asked(one.train) == sorted(
        asked(one.train), key=lambda text: [qa(n)["question"] for n in range(40)].index(text)
    )
    assert load(train_file_dir=path).validation is None


def test_without_a_ratio_everything_is_trained_on(tmp_path):
    splits = load(train_file_dir=write(tmp_path / "a.jsonl", [qa(n) for n in range(5)]))
    assert splits.train[:] == {"question": [qa(n)["question"] for n in range(5)], "answer": ["a"] * 5}
    assert (splits.report.train, splits.report.validation) == (5, 0)


def test_duplicates_are_removed_and_the_same_question_stays_on_one_side(tmp_path):
    rows = [qa(n // 4, str(n % 3)) for n in range(80)]  # 20 questions, each with answers 0 1 2 and one of them again
    splits = load(train_file_dir=write(tmp_path / "a.jsonl", rows), validation_split_ratio=0.2)
    assert splits.report.duplicates == 20
    assert len(splits.train) + len(splits.validation) == 60
    assert 9 < len(splits.validation) <= 12
    assert not set(asked(splits.train)) & set(asked(splits.validation))


def test_rows_tied_by_a_later_turn_stay_together(tmp_path):
    def talk(*questions: str) -> dict:
        turns = [({"from": "human", "value": text}, {"from": "gpt", "value": "a"}) for text in questions]
        return {"conversations": [turn for pair in turns for turn in pair]}

    long = [f"关于第{n}种疾病的一个足够长的问题" for n in range(30)]
    rows = [talk("你好", long[n], "谢谢") for n in range(30)] + [talk(long[n], long[n + 1]) for n in range(0, 30, 2)]
    path = write(tmp_path / "a.jsonl", rows)
    for seed in range(5):
        splits = load("conversation", seed, train_file_dir=path, validation_split_ratio=0.2)
        train, held = (
            {m["content"] for ms in part["messages"] for m in ms} for part in (splits.train, splits.validation)
        )
        assert len(splits.validation) == 9
        assert train & held == {"你好", "谢谢", "a"}


def test_training_rows_found_in_the_validation_folder_are_left_out(tmp_path):
    train = write(
        tmp_path / "train/a.jsonl",
        [qa(1), qa(2), qa(2), {"question": "这是第 3 个很长的医学问题吗？！", "answer": "b"}],
    )
    write(tmp_path / "held/x.jsonl", [qa(3), qa(4), qa(4)])
    splits = load(train_file_dir=train, validation_file_dir=str(tmp_path / "held"))
    assert asked(splits.train) == [qa(1)["question"], qa(2)["question"]]
    assert asked(splits.validation) == [qa(n)["question"] for n in (3, 4, 4)]
    assert (splits.report.duplicates, splits.report.overlap) == (1, 1)
    text = str(splits.report)
    assert "left out: 1 × exact duplicate" in text
    assert "left out: 1 × training record that asks a question of the validation records" in text
    assert "2 training records, 3 validation records" in text


def test_texts_found_in_the_validation_folder_are_left_out(tmp_path):
    train = write(tmp_path / "train/a.jsonl", [{"text": text} for text in "abc"])
    held = write(tmp_path / "held/a.jsonl", [{"text": "b"}])
    splits = load("text", train_file_dir=train, validation_file_dir=held)
    assert splits.train["text"][:] == ["a", "c"]
    assert splits.report.overlap == 1


def test_limits(tmp_path):
    for name in "ab":
        write(tmp_path / "data" / f"{name}.jsonl", [qa(f"{name}{n}") for n in range(50)])
    options = {"train_file_dir": str(tmp_path / "data"), "validation_split_ratio": 0.2}
    splits = load(**options, max_train_samples=10, max_eval_samples=4)
    assert (len(splits.train), len(splits.validation)) == (10, 4)
    assert {text[3] for text in asked(splits.train)} == {"a", "b"}  # a sample of all files, not the first rows
    write(tmp_path / "held/a.jsonl", [qa(n) for n in range(9)])
    splits = load(
        train_file_dir=options["train_file_dir"], validation_file_dir=str(tmp_path / "held"), max_eval_samples=3
    )
    assert (len(splits.train), len(splits.validation)) == (100, 3)


def test_nothing_can_be_held_out_of_one_question(tmp_path):
    path = write(tmp_path / "a.jsonl", [qa(1, str(n)) for n in range(5)])
    with pytest.raises(ValueError, match=r"--validation_split_ratio 0\.2: all 5 records share questions"):
        load(train_file_dir=path, validation_split_ratio=0.2)
    with pytest.raises(ValueError, match=r"expected at least two records to divide, got 1"):
        load(train_file_dir=write(tmp_path / "b.jsonl", [qa(1)]), validation_split_ratio=0.2)


def test_bad_records_of_both_parts_stop_before_anything_is_kept(tmp_path, cache):
    train = write(tmp_path / "train.jsonl", [qa(1), qa(2), qa(3), {"question": "q", "answer": ""}])
    held = write(tmp_path / "held.jsonl", [qa(4), qa(5), qa(6), {"question": "q"}])
    with pytest.raises(RecordError) as caught:
        load(train_file_dir=train, validation_file_dir=held)
    assert caught.value.problems == [
        f"{held}:4: answer: expected text, got no such field",
        f"{train}:4: answer: expected text, got an empty one",
    ]
    assert "--on_bad_record skip" in str(caught.value)
    assert list(cache.iterdir()) == []
    splits = load(train_file_dir=train, validation_file_dir=held, on_bad_record="skip")
    assert (len(splits.train), len(splits.validation), splits.report.bad) == (3, 3, 2)


def test_no_record_left_is_an_error(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": False}]
    with pytest.raises(RecordError, match=r"no record is left to use"):
        load("conversation", train_file_dir=write(tmp_path / "a.jsonl", rows))
    with pytest.raises(RecordError, match=r"no record is left to use"):  # all of it is in the validation file
        same = write(tmp_path / "b.jsonl", [qa(1)])
        load(train_file_dir=same, validation_file_dir=same)


def test_a_second_run_reads_the_cache_and_says_the_same(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", [qa(n) for n in range(20)] + [qa(1), {"question": "q", "answer": ""}])
    options = {"train_file_dir": path, "validation_split_ratio": 0.1, "on_bad_record": "skip"}
    one = load(**options)
    with monkeypatch.context() as patch:
        patch.setattr(splits_module, "_build", None)  # would fail if it were called
        two = load(**options, show_samples=3)
    assert two.train[:] == one.train[:]
    assert two.validation[:] == one.validation[:]
    assert two.report.as_dict() == one.report.as_dict()
    assert str(two.report) == str(one.report)
    json.dumps(two.report.as_dict())
    assert two.train._fingerprint == one.train._fingerprint
    write(tmp_path / "a.jsonl", [qa(n, "new") for n in range(20)])
    assert set(load(**options).train["answer"][:]) == {"new"}


def test_processes_that_build_at_once_do_not_disturb_each_other(tmp_path, cache):
    path = write(tmp_path / "a.jsonl", [qa(n) for n in range(3000)])
    code = (
        "from medical_qwen.arguments import DataArguments; from medical_qwen.records import load_splits; "
        f"s = load_splits(DataArguments(train_file_dir={path!r}, validation_split_ratio=0.1), 'qa', 1); "
        "print(len(s.train), len(s.validation), s.train[2699]['question'])"
    )
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache.parent)}
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", code]
    runs = [subprocess.Popen(command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {run.communicate()[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert len(said) == 1
    assert said.pop().startswith("2700 300 这是第")
    assert len(list(cache.iterdir())) == 1  # and nothing unfinished beside it


def test_columns_and_types_do_not_depend_on_the_rows(tmp_path):
    """Empty histories, absent tools, options with other letters: T3 to T5 of the usual traps."""
    function = {"name": "f", "parameters": {"type": "object"}}
    messages = [
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, None]}}}],
        },
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "a"},
    ]
    write(tmp_path / "d/a.jsonl", [{"instruction": "q", "output": "a", "history": []}])
    write(tmp_path / "d/b.jsonl", [{"instruction": "q2", "output": "a", "history": [["x", "y"]]}])
    write(tmp_path / "d/c.jsonl", [{"messages": messages, "tools": [function]}])
    data = load("conversation", train_file_dir=str(tmp_path / "d")).train
    assert data.column_names == ["messages", "tools"]
    assert data[0] == {"messages": [messages[0], messages[3]], "tools": None}
    assert [len(row["messages"]) for row in data] == [2, 4, 4]
    assert data[2]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"x": [1, None]}
    assert data[2]["tools"] == [{"type": "function", "function": function}]
    plain = load("conversation", train_file_dir=str(tmp_path / "d/a.jsonl")).train
    assert plain.column_names == ["messages"]
    rows = [{"question": f"q{n}", "options": dict.fromkeys("ABCDE"[:n], "t"), "answer": "A"} for n in (2, 5, 3)]
    path = write(tmp_path / "choice.jsonl", rows)
    assert load("choice", train_file_dir=path).train["options"][:] == [row["options"] for row in rows]
    assert load("prompt", train_file_dir=path).train.column_names == ["prompt", "answer", "options"]


def test_map_gets_plain_objects(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"instruction": f"q{n}", "output": "a"} for n in range(5)])
    data = load("conversation", train_file_dir=path).train
    lengths = data.map(lambda row: {"turns": len(row["messages"]), "who": row["messages"][1]["role"]})
    assert (lengths["turns"][:], set(lengths["who"])) == ([2] * 5, {"assistant"})


def test_a_saved_data_set_by_name(tmp_path):
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_list([qa(n) for n in range(4)])})
    saved.save_to_disk(tmp_path / "saved")
    splits = load("conversation", dataset_name=str(tmp_path / "saved"))
    assert splits.train[3]["messages"][0] == {"role": "user", "content": qa(3)["question"]}
    assert splits.report.files[0].path == str(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"--dataset_split: .* has train, got 'dev'"):
        load(dataset_name=str(tmp_path / "saved"), dataset_split="dev")
    with pytest.raises(ValueError, match=r"save_to_disk: give it as --dataset_name"):
        load(train_file_dir=str(tmp_path / "saved"))


def test_a_folder_of_parquet_by_name(tmp_path):
    datasets.Dataset.from_list([qa(n) for n in range(4)]).to_parquet(tmp_path / "hub/train.parquet")
    assert len(load(dataset_name=str(tmp_path / "hub")).train) == 4


def test_reading_needs_no_heavy_library():
    code = "import sys, medical_qwen.records; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout == "set()\n"


def test_every_form_has_features():
    for form in FORMS:
        assert list(splits_module._features(form)) == list(FORMS[form])


def test_real_folder_with_three_files(shared):
    splits = load(
        "conversation",
        train_file_dir=str(shared / "data/medicalgpt/sft"),
        validation_split_ratio=0.05,
        on_bad_record="skip",
    )
    assert splits.report.duplicates == 43
    assert splits.report.bad == 2
    assert len(splits.train) + len(splits.validation) == 300 + 1000 + 998 - 43
    assert len(splits.validation) == round(2255 * 0.05)


def test_the_tool_prints_the_report_and_fails_on_bad_records(tmp_path):
    root = Path(__file__).resolve().parents[1]
    path = write(tmp_path / "a.jsonl", [qa(1), {"question": "q", "answer": ""}, qa(2)])

    def tool(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, root / "tools/validate_data.py", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = tool(path, "--show", "1")
    assert done.returncode == 1
    assert f"{path}:2: answer: expected text, got an empty one" in done.stdout
    assert f"{path}:1\n" in done.stdout and f"{path}:3\n" not in done.stdout
    write(tmp_path / "a.jsonl", [qa(1)])
    done = tool(path, "--form", "qa")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "all records are good")
    assert tool(str(tmp_path / "nowhere")).returncode == 1
