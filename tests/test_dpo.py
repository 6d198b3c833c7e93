"""DPO and its relatives through the real entry point on a tiny model."""

import json
import math
import sys

import pytest
import torch
from stage_runs import (
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
from transformers import AutoTokenizer

import dpo_training
import supervised_finetuning
from medical_qwen.lineage import resolve
from medical_qwen.models import load_base
from medical_qwen.rendering import Renderer

LORA = ["--use_peft", "True", "--learning_rate", "1e-2"]
EIGHT = ["--per_device_train_batch_size", "8"]
LOSSES = ("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
          "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm")  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", pairs(24))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    rows = [row | {"prompt": [user(f"第{i}位家属问：咳嗽怎么办？")]} for i, row in enumerate(pairs(7))]
    return write_rows(tmp_path_factory.mktemp("data") / "held_out.jsonl", rows), rows


@pytest.fixture(scope="module")
def sft(tiny_model, tmp_path_factory):
    """An SFT adapter."""
    folder = tmp_path_factory.mktemp("sft")
    rows = [{"messages": [*row["prompt"], *row["rejected"]]} for row in pairs(16)]
    data = write_rows(folder / "train.jsonl", rows)
    supervised_finetuning.main(
        flags(tiny_model, data, folder / "sft", "--use_peft", "True", "--max_steps", "4", "--learning_rate", "2e-2")
    )
    return folder / "sft"


@pytest.fixture
def trainers(monkeypatch):
    """The trainers that the script makes, to look into."""
    made = []

    class Seen(dpo_training.Trainer):
        def __init__(self, *args, **kwargs):
            made.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(dpo_training, "Trainer", Seen)
    return made


def logps(model: torch.nn.Module, renderer: Renderer, rows: list[dict], side: str) -> list[float]:
    """Log-probability of each answer, one unpadded row at a time."""
    found = []
    for row in rows:
        pair, _ = renderer.pair(row["prompt"], [row[side]])
        prompt, [answer] = pair
        ids = torch.tensor([[*prompt, *answer]])
        logs = model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        found.append(logs.gather(1, torch.tensor(answer)[:, None]).sum().item())
    return found


def test_margins_rise_and_the_figures_are_those_of_the_equation(tiny_model, sft, data, held_out, tmp_path, trainers):
    """Eq. 7 of the paper, with the SFT adapter as reference, recomputed from the checkpoints alone."""
    out, rows = tmp_path / "dpo", held_out[1]
    more = ["--max_steps", "8", "--beta", "0.2", "--validation_file_dir", str(held_out[0]),
            "--per_device_eval_batch_size", "3", "--precompute_ref_log_probs", "False"]  # fmt: skip
    metrics = dpo_training.main(flags(sft, data, out, *LORA, *EIGHT, *more))["metrics"]
    assert history(out, "loss")[0] == pytest.approx(math.log(2), abs=1e-5)  # policy == reference
    assert history(out, "rewards/margins")[-1] > 1 and history(out, "rewards/accuracies")[-1] == 1
    [trainer] = trainers
    assert trainer.ref_model is None and set(trainer.model.peft_config) == {"default"}

    lineage = resolve(str(out))
    assert lineage.root == str(tiny_model.resolve()) and lineage.adapters == (str(sft.resolve()), str(out))
    renderer = Renderer(AutoTokenizer.from_pretrained(out))
    policy, reference = load_base(lineage).eval(), load_base(resolve(str(sft))).eval()
    moved = {}
    for side in ("chosen", "rejected"):
        both = zip(logps(policy, renderer, rows, side), logps(reference, renderer, rows, side), strict=True)
        moved[side] = [after - before for after, before in both]
    margins = [0.2 * (a - b) for a, b in zip(moved["chosen"], moved["rejected"], strict=True)]
    assert metrics["eval_rewards/margins"] == pytest.approx(sum(margins) / 7, abs=1e-3)
    assert metrics["eval_rewards/accuracies"] == pytest.approx(sum(x > 0 for x in margins) / 7)
    assert metrics["eval_loss"] == pytest.approx(sum(math.log1p(math.exp(-x)) for x in margins) / 7, abs=1e-3)


def test_reference_logprobs_ahead_give_the_same_run(tiny_model, sft, data, tmp_path, trainers):
    """LoRA and full training, computed once or in every step; in full training the reference is the SFT adapter."""
    for method in (LORA, ["--learning_rate", "2e-3"]):
        curves = []
        for ahead in ("True", "False"):
            out = tmp_path / f"{len(method)}-{ahead}"
            more = ["--max_steps", "6", "--precompute_ref_log_probs", ahead]
            dpo_training.main(flags(sft, data, out, *method, *EIGHT, *more))
            curves.append(history(out, "loss"))
        assert curves[0] == pytest.approx(curves[1], abs=1e-4)
        assert curves[0][0] == pytest.approx(math.log(2), abs=1e-5) and curves[0][-1] < 0.5
    precomputed, reference = trainers[2], trainers[3].ref_model
    assert precomputed.ref_model is None and "ref_chosen_logps" in precomputed.train_dataset.column_names
    start = load_base(resolve(str(sft))).state_dict()
    held = {name: tensor for name, tensor in reference.state_dict().items() if name in start}
    assert furthest(held, start) == 0 and not any(p.requires_grad for p in reference.parameters())


@pytest.mark.parametrize(
    ("given", "use_peft", "expected"),
    [
        (["--num_train_epochs", "1"], True, False),  # as many passes of the reference either way
        (["--num_train_epochs", "2"], True, True),
        (["--num_train_epochs", "1"], False, True),  # as many passes, and no second model in memory
        (["--max_steps", "10"], True, False),  # 80 of 100 rows
        (["--max_steps", "10"], False, False),
        (["--max_steps", "100"], True, True),
        (["--num_train_epochs", "2", "--ld_alpha", "0.5"], True, False),
        (["--num_train_epochs", "2", "--precompute_ref_log_probs", "False"], True, False),
        (["--num_train_epochs", "1", "--precompute_ref_log_probs", "True"], True, True),
    ],
)
def test_the_reference_is_read_ahead_where_that_is_cheaper(tmp_path, given, use_peft, expected):
    [config] = dpo_training.parse(dpo_training.Config, argv=["--output_dir", str(tmp_path), *EIGHT, *given])
    assert dpo_training.precomputes(config, use_peft, rows=100) is expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--eval_strategy", "no"], False),  # evaluated once, at the end
        (["--eval_strategy", "epoch"], False),
        (["--eval_strategy", "steps", "--eval_steps", "0.2"], True),  # five times
        (["--eval_strategy", "steps", "--eval_steps", "4"], True),
        (["--eval_strategy", "steps", "--eval_steps", "8", "--max_steps", "8"], False),
    ],
)
def test_the_reference_reads_the_held_out_rows_in_every_evaluation(tmp_path, given, expected):
    more = ["--output_dir", str(tmp_path), *EIGHT, "--num_train_epochs", "1", *given]
    [config] = dpo_training.parse(dpo_training.Config, argv=more)
    assert dpo_training.precomputes(config, True, rows=100, held_out=10) is expected


@pytest.mark.parametrize(
    "loss", [pytest.param(x, marks=[pytest.mark.slow] if i > 2 else []) for i, x in enumerate(LOSSES)]
)
def test_every_loss_of_dpo_is_reachable(tiny_model, data, tmp_path, loss):
    smoothing = ["--label_smoothing", "0.001"] if loss in ("exo_pair", "robust") else []
    out = tmp_path / "out"
    dpo_training.main(flags(tiny_model, data, out, *LORA, *EIGHT, "--max_steps", "5", "--loss_type", loss, *smoothing))
    margins = history(out, "rewards/margins")
    assert all(map(math.isfinite, history(out, "loss")))
    assert margins[-1] > margins[0] or loss == "sft"


def test_losses_can_be_added(tiny_model, data, tmp_path):
    both = ["--loss_type", "sigmoid", "sft", "--loss_weights", "1", "0.5", "--max_steps", "1"]
    dpo_training.main(flags(tiny_model, data, tmp_path / "both", *LORA, *EIGHT, *both))
    dpo_training.main(
        flags(tiny_model, data, tmp_path / "sft", *LORA, *EIGHT, "--loss_type", "sft", "--max_steps", "1")
    )
    sft_loss = history(tmp_path / "sft", "loss")[0]
    assert history(tmp_path / "both", "loss")[0] == pytest.approx(math.log(2) + 0.5 * sft_loss, abs=1e-4)


@pytest.mark.parametrize("method", ["kto", "orpo", "simpo", "cpo"])
def test_other_methods_learn_the_preference(tiny_model, data, held_out, tmp_path, method):
    out = tmp_path / method
    more = ["--method", method, "--max_steps", "16", "--validation_file_dir", str(held_out[0]),
            *(["--beta", "0.01", "--cpo_alpha", "0.01"] if method == "cpo" else [])]  # fmt: skip
    summary = dpo_training.main(flags(tiny_model, data, out, *LORA, *EIGHT, *more))
    margins = history(out, "rewards/margins")
    assert summary["stage"] == method and summary["padding_share"] > 0 and summary["tokens_seen"] > 0
    assert sum(margins[-6:]) > sum(margins[:6]) and summary["metrics"]["eval_rewards/margins"] > 0
    assert resolve(str(out)).root == str(tiny_model.resolve())


def test_simpo_is_the_loss_of_its_paper(tiny_model, data, held_out, tmp_path):
    """arXiv 2405.14734, eq. 6: mean log-probabilities, no reference, a target margin."""
    out, rows = tmp_path / "out", held_out[1]
    more = ["--method", "simpo", "--max_steps", "3", "--beta", "2", "--simpo_gamma", "0.7",
            "--validation_file_dir", str(held_out[0]), "--per_device_eval_batch_size", "7"]  # fmt: skip
    metrics = dpo_training.main(flags(tiny_model, data, out, *LORA, *EIGHT, *more))["metrics"]
    renderer = Renderer(AutoTokenizer.from_pretrained(out))
    model = load_base(resolve(str(out))).eval()
    mean = {}
    for side in ("chosen", "rejected"):
        lengths = [len(renderer.pair(row["prompt"], [row[side]])[0].completion_ids[0]) for row in rows]
        mean[side] = [x / n for x, n in zip(logps(model, renderer, rows, side), lengths, strict=True)]
    by_hand = [
        math.log1p(math.exp(-(2 * (a - b) - 0.7))) for a, b in zip(mean["chosen"], mean["rejected"], strict=True)
    ]
    assert metrics["eval_loss"] == pytest.approx(sum(by_hand) / 7, abs=1e-4)


def test_kto_sees_both_answers_of_each_pair_and_a_foreign_one(tiny_model, data, tmp_path, monkeypatch):
    seen = []

    class Seen(dpo_training.UnpairedTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            seen.append(self.train_dataset)

    monkeypatch.setattr(dpo_training, "UnpairedTrainer", Seen)
    more = ["--method", "kto", "--max_steps", "1", *EIGHT]
    dpo_training.main(flags(tiny_model, data, tmp_path / "out", *LORA, *more))
    [rows] = seen
    assert len(rows) == 48 and sum(rows["label"]) == 24
    assert 1 <= sum(rows["label"][:8]) <= 7  # mixed, since KTO reads them in order
    first = rows.select(range(8))
    assert first["KL_completion_ids"][1:] == first["completion_ids"][:-1]
    assert first["KL_completion_ids"][0] == first["completion_ids"][-1]


def test_lengths_are_in_tokens_and_both_answers_keep_the_same_history(tiny_model):
    renderer = Renderer(AutoTokenizer.from_pretrained(tiny_model))
    old = [user("很久以前的问题" * 10), assistant("很久以前的回答" * 10)]
    row = {"prompt": [*old, user("头痛？")], "chosen": [assistant("休息。")], "rejected": [assistant("喝水。" * 20)]}
    fitted = dpo_training.encode(row, renderer, 200)
    assert fitted["length"] == len(fitted["prompt_ids"]) + len(fitted["rejected_ids"]) <= 200
    assert fitted["prompt_ids"] == renderer.prompt(row["prompt"][-1:]) and fitted["exchanges_dropped"] == 1
    ids = fitted["prompt_ids"] + fitted["chosen_ids"]
    rendered = renderer.render([row["prompt"][-1], *row["chosen"]])
    assert ids == rendered.input_ids[: rendered.needed()]


def test_qlora(tiny_model, data, tmp_path):
    out = tmp_path / "out"
    dpo_training.main(flags(tiny_model, data, out, *LORA, *EIGHT, "--max_steps", "8", "--load_in_bits", "4"))
    assert history(out, "loss")[-1] < 0.5 and all("lora_" in name for name in weights(out))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--method", "grpo"], "invalid choice: 'grpo'"),
        (["--method", "kto", "--f_divergence_type", "js_divergence"], "unknown flag or value: --f_divergence_type"),
        (["--ld_alpha", "0.5", "--precompute_ref_log_probs", "True"], "--ld_alpha"),
    ],
)
def test_wrong_flags_are_named(tiny_model, data, tmp_path, capsys, given, message):
    with pytest.raises((SystemExit, ValueError)) as error:
        dpo_training.main(flags(tiny_model, data, tmp_path / "out", *LORA, *given))
    assert message in str(error.value) + capsys.readouterr().err


def test_a_method_that_trl_does_not_offer_is_a_plain_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl.experimental.orpo", None)
    with pytest.raises(ValueError, match=r"--method orpo: TRL .* does not offer it"):
        dpo_training.classes("orpo")


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tiny_model, data, tmp_path):
    more = [*LORA, "--max_steps", "12", "--save_steps", "3", "--per_device_train_batch_size", "2",
            "--resume_from_checkpoint", "True", "--precompute_ref_log_probs", "True"]  # fmt: skip
    dpo_training.main(flags(tiny_model, data, tmp_path / "whole", *more))
    killed = flags(tiny_model, data, tmp_path / "killed", *more)
    kill_after_a_checkpoint("dpo_training.py", tmp_path / "killed", killed)
    summary = dpo_training.main(killed)
    assert summary["resumed_from"] and summary["steps"] == 12
    assert history(tmp_path / "killed", "loss")[-1] == history(tmp_path / "whole", "loss")[-1]
    assert furthest(weights(tmp_path / "killed"), weights(tmp_path / "whole")) == 0


@pytest.mark.slow
def test_two_ranks_with_uneven_pairs(tiny_model, tmp_path, held_out):
    data = write_rows(tmp_path / "pairs.jsonl", pairs(13))
    more = ["--num_train_epochs", "2", "--per_device_train_batch_size", "2",
            "--validation_file_dir", str(held_out[0]), *LORA]  # fmt: skip
    methods = ("dpo", "kto", "orpo")
    runs = [flags(tiny_model, data, tmp_path / method, "--method", method, *more) for method in methods]
    two_ranks(*(["dpo_training", *run] for run in runs))
    for method in methods:
        summary = json.loads((tmp_path / method / "run_summary.json").read_text())
        assert summary["world_size"] == 2 and summary["metrics"]["eval_rewards/margins"] > 0
