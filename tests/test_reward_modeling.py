"""Reward model through its real entry point on a tiny model, and scoring with what it leaves."""

import json
import math
import shutil
import sys

import pytest
import torch
from peft import PeftModel
from stage_runs import (
    ROOT,
    assistant,
    flags,
    furthest,
    history,
    kill_after_a_checkpoint,
    pairs,
    two_ranks,
    user,
    weights,
    write_rows,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import dpo_training
import reward_modeling
import supervised_finetuning
from medical_qwen.arguments import DataArguments
from medical_qwen.lineage import resolve
from medical_qwen.models import load_base
from medical_qwen.records import load_splits
from medical_qwen.rendering import Renderer
from medical_qwen.scoring import RewardModel, pair_report

sys.path.insert(0, str(ROOT / "tools"))
import reward_scores

LORA = ["--use_peft", "True", "--learning_rate", "1e-2", "--per_device_train_batch_size", "8"]


def conversations(rows: list[dict], side: str) -> list[list[dict]]:
    return [[*row["prompt"], *row[side]] for row in rows]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", pairs(40))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """Answers of lengths that training did not see, in a number that no batch size divides."""
    rows = [
        {
            "prompt": [user(f"第{i}位家属问：{'咳嗽' * (1 + i % 4)}怎么办？")],
            "chosen": [assistant("多喝水。" * (1 + i % 3))],
            "rejected": [assistant("按时吃药，多休息。" * (2 + i % 5))],
        }
        for i in range(11)
    ]
    return write_rows(tmp_path_factory.mktemp("data") / "held_out.jsonl", rows), rows


@pytest.fixture(scope="module")
def reward(tiny_model, data, held_out, tmp_path_factory):
    out = tmp_path_factory.mktemp("rm") / "out"
    more = ["--max_steps", "10", "--validation_file_dir", str(held_out[0]), "--per_device_eval_batch_size", "4",
            "--train_sampling_strategy", "group_by_length"]  # fmt: skip
    return out, reward_modeling.main(flags(tiny_model, data, out, *LORA, *more))


def test_short_answers_win_after_a_few_steps(reward, tiny_model):
    out, summary = reward
    metrics = summary["metrics"]
    assert metrics["eval_pairs"] == 11 and metrics["eval_accuracy"] > 0.9 and metrics["eval_margin"] > 1
    assert metrics["eval_accuracy_low"] < metrics["eval_accuracy"] <= metrics["eval_accuracy_high"] <= 1
    assert 0 <= metrics["eval_calibration_error"] <= 0.5
    assert history(out, "loss")[-1] < 0.3 < history(out, "loss")[0]
    assert 0 < summary["padding_share"] < 1 and summary["stage"] == "rm"
    files = {path.name for path in out.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= files
    assert {"training_args.json", "run_summary.json", "trainer_state.json", "loss.png"} <= files
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and config["base_model_name_or_path"] == str(tiny_model.resolve())
    assert [name for name in weights(out) if name.endswith("score.weight")]


def test_the_evaluation_counts_every_pair_once(reward, held_out):
    """Metrics of the trainer == what scoring with the saved checkpoint gives, pair by pair."""
    model = RewardModel.load(str(reward[0]))
    rows = held_out[1]
    chosen, rejected = (model.score(conversations(rows, side)) for side in ("chosen", "rejected"))
    ahead = [a - b for a, b in zip(chosen, rejected, strict=True)]
    metrics = reward[1]["metrics"]
    assert metrics["eval_accuracy"] == sum(x > 0 for x in ahead) / len(ahead)
    assert metrics["eval_margin"] == pytest.approx(sum(ahead) / len(ahead), abs=1e-4)
    assert metrics["eval_loss"] == pytest.approx(sum(math.log1p(math.exp(-x)) for x in ahead) / len(ahead), abs=1e-4)


def test_scores_are_those_of_the_model_that_was_trained(reward, tiny_model, held_out):
    """Against transformers' own classification model on one unpadded row at a time, ids as in training."""
    out, rows = reward[0], held_out[1]
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    model.config.pad_token_id = tokenizer.pad_token_id
    encoded = [reward_modeling.encode(row, Renderer(tokenizer), 512) for row in rows]
    expected = [model(torch.tensor([row["chosen_ids"]])).logits.item() for row in encoded]
    for scorer in (RewardModel.load(str(out)), RewardModel.of(model, tokenizer)):
        assert [scorer.encode(talk) for talk in conversations(rows, "chosen")] == [
            row["chosen_ids"] for row in encoded
        ]
        assert scorer.score(conversations(rows, "chosen")) == pytest.approx(expected, abs=1e-5)
        scorer.batch_tokens = 64  # several batches, padded
        assert scorer.score(conversations(rows, "chosen")) == pytest.approx(expected, abs=1e-5)
    assert all(row["chosen_ids"][-1] == tokenizer.eos_token_id for row in encoded)


def test_a_foreign_reward_model_is_read_before_the_end_token_that_also_pads(reward):
    """There transformers' models read, and so were trained; PPO reads there, too."""
    scorer = RewardModel.load(str(reward[0]))
    ids = [5, 6, 7, scorer.tokenizer.eos_token_id]
    apart = scorer.score_ids([ids, ids[:-1]])
    scorer.tokenizer.pad_token = scorer.tokenizer.eos_token
    assert scorer.score_ids([ids]) == pytest.approx(apart[1:], abs=1e-6) != pytest.approx(apart[:1], abs=1e-6)


def test_scores_of_a_file_whose_texts_hold_other_line_ends(reward, tmp_path):
    row = {"question": "头痛怎么办？", "prediction": "多休息。\u2028\u0085多饮水。"}
    file = write_rows(tmp_path / "answers.jsonl", [row, row])
    assert "\u2028" in file.read_text(encoding="utf-8")
    scores = reward_scores.main(["--reward_model", str(reward[0]), "--data_file", str(file)])
    assert scores["answers"]["rows"] == 2
    file.write_text("[]\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"answers.jsonl:1: expected a JSON object"):
        reward_scores.main(["--reward_model", str(reward[0]), "--data_file", str(file)])


def test_a_pair_report_by_hand():
    report = pair_report([2.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0])
    assert (report["pairs"], report["accuracy"], report["margin"]) == (4, 0.625, 0.5)
    assert report["loss"] == pytest.approx((0.126928 + 1.313262 + 0.693147 + 0.313262) / 4, abs=1e-6)
    # sigmoid: 2 -> 0.8808 (right), 1 -> 0.7311 (one wrong, one right), 0 -> 0.5 (half right)
    errors = (abs(1 - 0.880797), abs((0 - 0.731059) + (1 - 0.731059)), 0.0)
    assert report["calibration_error"] == pytest.approx(sum(errors) / 4, abs=1e-5)
    assert report["accuracy_low"] < 0.5 and report["accuracy_high"] > 0.8
    assert pair_report([1.0], [0.0], [1.0])["loss"] == pytest.approx(math.log(2))
    assert pair_report([900.0], [-900.0])["loss"] == 0


def test_the_margin_of_the_records_counts(tiny_model, tmp_path):
    rows = [row | {"margin": 3.0 * (i % 2)} for i, row in enumerate(pairs(12))]
    data = write_rows(tmp_path / "margins.jsonl", rows)
    more = ["--max_steps", "1", "--learning_rate", "0", "--use_peft", "True", "--validation_file_dir", str(data)]
    shown = write_rows(tmp_path / "train.jsonl", [row | {"prompt": [user("别的问题")], "margin": 1} for row in rows])
    with_margin = reward_modeling.main(flags(tiny_model, shown, tmp_path / "out", *more))["metrics"]
    model = RewardModel.load(str(tmp_path / "out"))
    chosen, rejected = (model.score(conversations(rows, side)) for side in ("chosen", "rejected"))
    by_hand = [math.log1p(math.exp(b - a + row["margin"])) for a, b, row in zip(chosen, rejected, rows, strict=True)]
    assert with_margin["eval_loss"] == pytest.approx(sum(by_hand) / len(rows), abs=1e-4)


@pytest.mark.parametrize("how", ["full", "4", "8"])
def test_full_training_and_qlora(tiny_model, data, tmp_path, how):
    method = ["--learning_rate", "2e-3"] if how == "full" else ["--use_peft", "True", "--learning_rate", "2e-2",
                                                                "--load_in_bits", how]  # fmt: skip
    out = tmp_path / "out"
    reward_modeling.main(
        flags(tiny_model, data, out, "--max_steps", "12", "--per_device_train_batch_size", "8", *method)
    )
    assert history(out, "loss")[-1] < 0.35 < history(out, "loss")[0]
    model = RewardModel.load(str(out))
    rows = pairs(6)
    ahead = zip(model.score(conversations(rows, "chosen")), model.score(conversations(rows, "rejected")), strict=True)
    assert all(a > b for a, b in ahead)
    if how == "full":
        config = json.loads((out / "config.json").read_text())
        assert config["architectures"] == ["LlamaForSequenceClassification"]
    else:
        assert all("lora_" in name or "score" in name for name in weights(out))


@pytest.fixture(scope="module")
def sft(tiny_model, tmp_path_factory):
    """An SFT adapter."""
    folder = tmp_path_factory.mktemp("sft")
    rows = [{"messages": [*row["prompt"], *row["chosen"]]} for row in pairs(16)]
    data = write_rows(folder / "train.jsonl", rows)
    supervised_finetuning.main(
        flags(tiny_model, data, folder / "sft", "--use_peft", "True", "--max_steps", "4", "--learning_rate", "2e-2")
    )
    return folder / "sft"


@pytest.mark.parametrize("bits", [None, "4"])
def test_an_sft_adapter_flows_into_the_reward_model(tiny_model, sft, data, tmp_path, bits, monkeypatch):
    monkeypatch.setenv("MEDICAL_QWEN_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "rm"
    quantised = ["--load_in_bits", bits] if bits else []
    reward_modeling.main(flags(sft, data, out, *LORA, "--max_steps", "3", *quantised))
    lineage = resolve(str(out))
    assert lineage.root == str(tiny_model.resolve()) and lineage.adapters == (str(sft.resolve()), str(out))
    model = RewardModel.load(str(out))

    merged = load_base(resolve(str(sft)))  # by hand: the SFT model below, the reward adapter and its head above
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1, dtype=torch.float32)
    plain.model.load_state_dict(merged.model.state_dict())
    by_hand = PeftModel.from_pretrained(plain, out).eval()
    talk = conversations(pairs(1), "chosen")
    expected = by_hand.base_model.model.model(torch.tensor([model.encode(talk[0])])).last_hidden_state[:, -1]
    expected = by_hand.base_model.model.score(expected).item()
    assert model.score(talk) == pytest.approx([expected], abs=1e-5)


def test_wrong_directories_are_refused(tiny_model, sft, reward, data, tmp_path):
    rm = str(reward[0])
    with pytest.raises(ValueError, match="is a reward model"):
        supervised_finetuning.main(flags(reward[0], tmp_path_rows(tmp_path), tmp_path / "a"))
    with pytest.raises(ValueError, match="is a reward model"):
        dpo_training.main(flags(reward[0], data, tmp_path / "b"))
    with pytest.raises(ValueError, match="is a reward model"):
        dpo_training.main(flags(tiny_model, data, tmp_path / "c", "--adapter_name_or_path", rm))
    for policy in (tiny_model, sft):
        with pytest.raises(ValueError, match="no reward model but"):
            RewardModel.load(str(policy))
    with pytest.raises(FileNotFoundError, match="neither"):
        RewardModel.load(str(tmp_path))


def tmp_path_rows(folder):
    rows = [{"messages": [*row["prompt"], *row["chosen"]]} for row in pairs(2)]
    return write_rows(folder / "sft.jsonl", rows)


def test_a_pad_token_that_ends_answers_is_replaced(tiny_model, data, tmp_path):
    """Otherwise transformers would read the reward one token too early, whatever the answer's end."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(model)
    renderer = Renderer(AutoTokenizer.from_pretrained(model))
    row = reward_modeling.encode(pairs(1)[0], renderer, None)
    assert row["chosen_ids"][-1] == tokenizer.eos_token_id == tokenizer.pad_token_id
    reward_modeling.main(flags(model, data, tmp_path / "rm", *LORA, "--max_steps", "2"))
    saved = AutoTokenizer.from_pretrained(tmp_path / "rm")
    assert saved.pad_token_id != saved.eos_token_id
    scorer = RewardModel.load(str(tmp_path / "rm"))
    ids = row["chosen_ids"]
    assert scorer.score_ids([ids]) != scorer.score_ids([ids[:-1]])
    plain = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    trained = PeftModel.from_pretrained(plain, tmp_path / "rm").eval()
    trained.config.pad_token_id = saved.pad_token_id
    longer = torch.tensor([ids + [saved.pad_token_id] * 5])
    assert trained(longer).logits.item() == pytest.approx(scorer.score_ids([ids])[0], abs=1e-5)


def test_whole_answers_or_none_and_the_same_history(tiny_model):
    renderer = Renderer(AutoTokenizer.from_pretrained(tiny_model))
    old = [user("很久以前的问题" * 10), assistant("很久以前的回答" * 10)]
    row = {"prompt": [*old, user("头痛？")], "chosen": [assistant("休息。")], "rejected": [assistant("喝水。" * 20)]}
    whole = reward_modeling.encode(row, renderer, None)
    fitted = reward_modeling.encode(row, renderer, 200)
    assert len(whole["rejected_ids"]) > 200 > len(fitted["rejected_ids"])
    assert fitted["exchanges_dropped"] == 1 and fitted["length"] == len(fitted["rejected_ids"])
    for side in ("chosen", "rejected"):
        rendered = renderer.render([row["prompt"][-1], *row[side]])
        assert fitted[f"{side}_ids"] == rendered.input_ids[: rendered.needed()]
    dropped = reward_modeling.encode(row, renderer, 60)  # less than the long answer alone
    assert dropped["chosen_ids"] == [] and dropped["left_out"]
    assert dropped["answer_tokens_lost"] == dropped["answer_tokens"] > 0


def test_rankings_expand_to_pairs(tiny_model, tmp_path):
    """The best first, or ranked; equal ranks make no pair; all pairs of a question stay on one side of the split."""
    rows = [
        {"question": "甲？", "responses": ["一", "二", "三", "四"]},
        {"prompt": [user("乙？")], "answers": ["坏", "好", "也好"], "ranks": [2, 1, 1]},
    ]
    data = write_rows(tmp_path / "ranked.jsonl", rows)
    found = load_splits(DataArguments(train_file_dir=str(data)), "preference", seed=0).train
    said = {
        (row["prompt"][-1]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in found
    }
    first = {("甲？", a, b) for a, b in ("一二", "一三", "一四", "二三", "二四", "三四")}
    assert said == first | {("乙？", "好", "坏"), ("乙？", "也好", "坏")} and len(found) == 8
    summary = reward_modeling.main(flags(tiny_model, data, tmp_path / "rm", *LORA, "--max_steps", "1"))
    assert summary["data"]["train"] == 8 and summary["data"]["files"][0]["format"] == "ranking"
    with pytest.raises(ValueError, match="ranks: expected 2 whole numbers"):
        bad = write_rows(tmp_path / "bad.jsonl", [{"question": "甲？", "responses": ["一", "二"], "ranks": [1]}])
        load_splits(DataArguments(train_file_dir=str(bad)), "preference", seed=0)


def test_rewards_are_read_in_full_precision(tiny_model, data, tmp_path):
    """On a bfloat16 base the head still computes and learns in float32."""
    out = tmp_path / "rm"
    reward_modeling.main(flags(tiny_model, data, out, *LORA, "--max_steps", "2", "--dtype", "bfloat16"))
    assert next(w for name, w in weights(out).items() if "score" in name).dtype == torch.float32
    rewards = history(out, "min_reward") + history(out, "max_reward")
    assert any(reward != torch.tensor(reward).bfloat16().item() for reward in rewards)


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tiny_model, data, tmp_path):
    more = [*LORA, "--max_steps", "12", "--save_steps", "3", "--lora_dropout", "0.1", "--disable_dropout", "False",
            "--resume_from_checkpoint", "True"]  # fmt: skip
    reward_modeling.main(flags(tiny_model, data, tmp_path / "whole", *more))
    killed = flags(tiny_model, data, tmp_path / "killed", *more)
    kill_after_a_checkpoint("reward_modeling.py", tmp_path / "killed", killed)
    summary = reward_modeling.main(killed)
    assert summary["resumed_from"] and summary["steps"] == 12
    assert furthest(weights(tmp_path / "killed"), weights(tmp_path / "whole")) == 0


@pytest.mark.slow
def test_two_ranks_with_uneven_pairs(tiny_model, tmp_path, held_out):
    """Every held-out pair counts once although the ranks get different numbers of them."""
    data = write_rows(tmp_path / "pairs.jsonl", pairs(13))
    out = tmp_path / "out"
    more = ["--num_train_epochs", "1", "--per_device_train_batch_size", "2", "--validation_file_dir", str(held_out[0]),
            "--per_device_eval_batch_size", "2", "--use_peft", "True", "--learning_rate", "1e-2"]  # fmt: skip
    two_ranks(["reward_modeling", *flags(tiny_model, data, out, *more)])
    metrics = json.loads((out / "run_summary.json").read_text())["metrics"]
    model, rows = RewardModel.load(str(out)), held_out[1]
    chosen, rejected = (model.score(conversations(rows, side)) for side in ("chosen", "rejected"))
    assert metrics["eval_pairs"] == 11
    ahead = [a - b for a, b in zip(chosen, rejected, strict=True)]
    assert metrics["eval_margin"] == pytest.approx(sum(ahead) / 11, abs=1e-4)


def test_the_run_script_names_existing_flags():
    text = (ROOT / "run_rm.sh").read_text()
    assert "reward_modeling.py" in text and text.rstrip().endswith('"$@"')
