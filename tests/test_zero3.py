"""LoRA under DeepSpeed's ZeRO-3, which divides the weights over the ranks, does what it does under DDP."""

import json

import pytest
from stage_runs import flags, furthest, history, pairs, under_torchrun, weights, write_rows

import supervised_finetuning
from medical_qwen.lineage import resolve
from medical_qwen.models import fingerprint, load_base

STAGES = ("supervised_finetuning", "reward_modeling", "dpo_training", "grpo_training")
REWARD = "def share(completions, **_):\n    return [talk[0]['content'].count('e') for talk in completions]\n"
LORA = ["--use_peft", "True", "--lora_r", "4", "--learning_rate", "1e-2", "--per_device_train_batch_size", "2",
        "--max_steps", "3", "--save_strategy", "no"]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory):
    """Folder with `STAGE-ddp` and `STAGE-zero3` of every stage, each on top of an adapter."""
    folder = tmp_path_factory.mktemp("zero3")
    data = {name: write_rows(folder / f"{name}.jsonl", pairs(13)) for name in STAGES}
    talks = [{"messages": [*row["prompt"], *row["chosen"]]} for row in pairs(13)]
    write_rows(data["supervised_finetuning"], talks)
    write_rows(data["grpo_training"], [{"question": f"第{i}题？", "answer": "甲"} for i in range(7)])
    (folder / "mine.py").write_text(REWARD)
    only = {"grpo_training": ["--reward_module", f"{folder / 'mine.py'}:share", "--num_generations", "4",
                              "--per_device_train_batch_size", "4", "--max_completion_length", "8"]}  # fmt: skip
    supervised_finetuning.main(flags(tiny_model, data[STAGES[0]], folder / "sft", *LORA))
    under_torchrun(
        *(
            [
                stage,
                *flags(folder / "sft", data[stage], folder / f"{stage}-{kind}", *LORA, *only.get(stage, []), *more),
            ]
            for kind, more in (("ddp", []), ("zero3", ["--deepspeed", "zero3.json"]))
            for stage in STAGES
        ),
        MEDICAL_QWEN_CACHE=str(folder / "cache"),
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_lora_under_zero3_does_what_it_does_under_ddp(runs, stage):
    ours, theirs = (runs / f"{stage}-{kind}" for kind in ("zero3", "ddp"))
    for figure in ("loss", "grad_norm"):
        assert history(ours, figure) == pytest.approx(history(theirs, figure), rel=1e-3, abs=1e-5)
    assert all(norm > 0 for norm in history(ours, "grad_norm"))
    assert furthest(weights(ours), weights(theirs)) < 1e-4
    summaries = [json.loads((folder / "run_summary.json").read_text()) for folder in (ours, theirs)]
    for name in ("base_fingerprint", "embedding_rows", "tokens_seen"):
        assert summaries[0].get(name) == summaries[1].get(name)
    assert summaries[0]["base_fingerprint"] == fingerprint(load_base(resolve(str(runs / "sft"))))
