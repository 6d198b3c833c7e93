"""PT and SFT through their real entry points, on a model of 100k parameters."""

import importlib
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from stage_runs import QUIET, flags, two_ranks, weights, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_pt_utils import LengthGroupedSampler

import pretraining
import supervised_finetuning
from medical_qwen.arguments import ModelArguments
from medical_qwen.checkpoints import WrittenBy, last_complete_checkpoint
from medical_qwen.lineage import resolve
from medical_qwen.models import load_base, tokenizer_for_training
from medical_qwen.perplexity import answer_likelihood
from medical_qwen.rendering import Renderer
from medical_qwen.tokens import SeededOrder, show_rows, tokenize_prompts
from medical_qwen.training import parse

ROOT = Path(__file__).resolve().parents[1]


def conversations(number: int, turns: int = 1) -> list[dict]:
    rows = []
    for i in range(number):
        messages = []
        for turn in range(turns):
            question = f"第{i}位患者问：{'头痛' * (1 + i % 3)}怎么办？" + ("还有呢？" if turn else "")
            messages += [{"role": "user", "content": question}]
            messages += [{"role": "assistant", "content": f"{i}号：" + "多休息，多喝水。" * (1 + i % 5)}]
        rows.append({"messages": messages})
    return rows


@pytest.fixture
def data(tmp_path) -> Path:
    return write_rows(tmp_path / "train.jsonl", conversations(24))


def sft(model, data, output, *more) -> dict:
    return supervised_finetuning.main(flags(model, data, output, *more))


def losses(output: Path) -> list[float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in history if "loss" in row]


def same(first: dict, second: dict, tolerance: float) -> bool:
    assert first.keys() == second.keys()
    return all(torch.allclose(first[key], second[key], atol=tolerance, rtol=0) for key in first)


def test_sft_leaves_a_complete_checkpoint(tiny_model, data, tmp_path):
    out = tmp_path / "out"
    summary = sft(tiny_model, data, out, "--use_peft", "True", "--max_steps", "6", "--validation_split_ratio", "0.25",
                  "--learning_rate", "1e-2")  # fmt: skip
    written = {path.name for path in out.iterdir()}
    expected = ("adapter_config.json adapter_model.safetensors tokenizer.json tokenizer_config.json "
                "chat_template.jinja training_args.json run_summary.json trainer_state.json loss.png")  # fmt: skip
    assert set(expected.split()) <= written
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert summary == json.loads((out / "run_summary.json").read_text())
    assert summary["stage"] == "sft" and summary["parent"] == str(tiny_model) and summary["steps"] == 6
    assert summary["data"]["files"][0]["sha256"] and summary["data"]["train"] == 18
    assert summary["tokens_per_second"] > 0 and 0 <= summary["padding_share"] < 1 and summary["peak_memory_gib"] > 0
    assert losses(out)[-1] < losses(out)[0] - 0.5
    assert summary["metrics"]["eval_perplexity"] == pytest.approx(math.exp(summary["metrics"]["eval_loss"]))


def test_evaluation_weighs_tokens_not_batches(tiny_model, tmp_path):
    """The held-out loss is that of an independent count, whatever the batch size."""
    held_out = conversations(7) + conversations(3, turns=3)
    train, test = (
        write_rows(tmp_path / "train.jsonl", conversations(30)[20:]),
        write_rows(tmp_path / "test.jsonl", held_out),
    )
    found = [
        sft(
            tiny_model,
            train,
            tmp_path / size,
            "--max_steps",
            "1",
            "--learning_rate",
            "0",
            "--validation_file_dir",
            str(test),
            "--per_device_eval_batch_size",
            size,
        )["metrics"]["eval_loss"]
        for size in ("1", "4")
    ]
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    renderer = Renderer(AutoTokenizer.from_pretrained(tiny_model))
    reference = answer_likelihood(model, renderer, [row["messages"] for row in held_out])
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert found[0] == pytest.approx(reference.nats / reference.tokens, abs=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_accumulation_gives_the_curve_of_the_large_batch(tiny_model, data, tmp_path, method):
    flags = ["--max_steps", "5", "--learning_rate", "5e-3", "--use_peft", str(method == "lora")]
    sft(tiny_model, data, tmp_path / "large", *flags, "--per_device_train_batch_size", "4")
    sft(tiny_model, data, tmp_path / "small", *flags, "--per_device_train_batch_size", "1",
        "--gradient_accumulation_steps", "4")  # fmt: skip
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "large"), abs=2e-4)
    assert same(weights(tmp_path / "small"), weights(tmp_path / "large"), 1e-3)


def test_packing_gives_the_loss_and_the_update_of_single_rows(tiny_model, tmp_path):
    """One step over all rows, packed and not: the same loss and, with plain SGD, the same weights."""
    data = write_rows(tmp_path / "train.jsonl", conversations(12, turns=2))
    flags = ["--max_steps", "1", "--optim", "sgd", "--learning_rate", "1", "--max_grad_norm", "1e9"]
    sft(tiny_model, data, tmp_path / "single", *flags, "--per_device_train_batch_size", "12")
    sft(tiny_model, data, tmp_path / "packed", *flags, "--per_device_train_batch_size", "12", "--packing", "True",
        "--max_length", "512")  # fmt: skip
    packed = json.loads((tmp_path / "packed" / "run_summary.json").read_text())
    assert packed["padding_share"] == 0
    assert losses(tmp_path / "packed")[0] == pytest.approx(losses(tmp_path / "single")[0], abs=1e-4)
    before = load_file(tiny_model / "model.safetensors")
    moved = weights(tmp_path / "single")
    assert max((moved[key] - before[key]).abs().max() for key in before) > 1e-2
    assert same(weights(tmp_path / "packed"), moved, 1e-4)


def test_neftune_noise_is_of_the_stated_size_and_off_in_evaluation(tiny_model, data, tmp_path, monkeypatch):
    """Uniform noise of alpha / sqrt(tokens * width) (arXiv 2310.05914), in training only."""
    seen = {True: [], False: []}
    forward = torch.nn.Embedding.forward

    class Trainer(supervised_finetuning.Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            embedding = model.get_input_embeddings()
            clean = forward(embedding, inputs["input_ids"])
            noise = (embedding(inputs["input_ids"]) - clean).detach()
            seen[model.training].append((noise.abs().max().item(), clean.shape[1] * clean.shape[2]))
            return super().compute_loss(model, inputs, *args, **kwargs)

    monkeypatch.setattr(supervised_finetuning, "Trainer", Trainer)
    sft(tiny_model, data, tmp_path / "out", "--max_steps", "2", "--neftune_noise_alpha", "5",
        "--validation_split_ratio", "0.25")  # fmt: skip
    assert seen[True] and seen[False]
    for largest, size in seen[True]:
        assert 0.95 * 5 / math.sqrt(size) < largest <= 5 / math.sqrt(size) + 1e-6
    assert all(largest == 0 for largest, _ in seen[False])


@pytest.mark.parametrize("bits", ["4", "8"])
def test_qlora_trains_an_adapter_on_a_quantised_base(tiny_model, data, tmp_path, bits):
    sft(tiny_model, data, tmp_path / "out", "--use_peft", "True", "--load_in_bits", bits, "--max_steps", "8",
        "--learning_rate", "1e-2")  # fmt: skip
    assert losses(tmp_path / "out")[-1] < losses(tmp_path / "out")[0] - 0.3
    assert all("lora_" in key for key in weights(tmp_path / "out"))
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size < 400_000


def test_a_chain_of_adapters_flows_from_stage_to_stage(tiny_model, data, tmp_path):
    """PT adapter -> SFT adapter on it -> QLoRA on that: each stage takes the directory of the one before."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(
        "\n\n".join(f"{i}。发热时应多饮水，注意休息，体温过高时就医。" for i in range(20)), encoding="utf-8"
    )
    flags = ["--use_peft", "True", "--max_steps", "3", "--learning_rate", "1e-2"]
    pretraining.main(["--model_name_or_path", str(tiny_model), "--train_file_dir", str(corpus), "--output_dir",
                      str(tmp_path / "pt"), "--text_documents", "paragraph", *QUIET, *flags])  # fmt: skip
    sft(tmp_path / "pt", data, tmp_path / "sft", *flags)
    sft(tmp_path / "sft", data, tmp_path / "qlora", *flags, "--load_in_bits", "4")
    lineage = resolve(str(tmp_path / "qlora"))
    assert lineage.root == str(tiny_model)
    assert [Path(path).name for path in lineage.adapters] == ["pt", "sft", "qlora"]

    moved = tmp_path / "moved"
    moved.mkdir()
    for stage in ("pt", "sft"):
        (tmp_path / stage).rename(moved / stage)
    assert [Path(path).parent for path in resolve(str(moved / "sft")).adapters] == [moved, moved]
    base, tuned = load_base(resolve(str(tiny_model))), load_base(resolve(str(moved / "sft")))
    ids = torch.tensor([[5, 6, 7]])
    assert (base(ids).logits - tuned(ids).logits).abs().max() > 1e-3


def test_an_adapter_named_apart_from_its_base_brings_its_tokenizer(tiny_model, data, tmp_path):
    """Else the next stage would see the template of the base, which the adapter was not trained on."""
    sft(tiny_model, data, tmp_path / "sft", "--use_peft", "True", "--max_steps", "1", "--template_name", "belle")
    apart = ModelArguments(model_name_or_path=str(tiny_model), adapter_name_or_path=str(tmp_path / "sft"))
    templates = [AutoTokenizer.from_pretrained(path).chat_template for path in (tiny_model, tmp_path / "sft")]
    assert tokenizer_for_training(apart).chat_template == templates[1] != templates[0]


def test_full_training_on_an_adapter_trains_every_weight(tiny_model, data, tmp_path):
    """PEFT freezes what it merges an adapter into; a run that trained nothing would end without an error."""
    sft(tiny_model, data, tmp_path / "lora", "--use_peft", "True", "--max_steps", "2", "--learning_rate", "1e-2")
    sft(tmp_path / "lora", data, tmp_path / "full", "--max_steps", "2", "--learning_rate", "1e-2",
        "--gradient_checkpointing", "True")  # fmt: skip
    before = load_base(resolve(str(tmp_path / "lora")), dtype="float32").state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype=torch.float32).state_dict()
    assert all((before[name] - after[name]).abs().max() > 1e-4 for name in before)


def test_the_first_stage_may_start_from_nothing(tiny_model, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("发热时应多饮水，注意休息。" * 200, encoding="utf-8")
    out = tmp_path / "out"
    pretraining.main(["--config_name", str(tiny_model), "--tokenizer_name_or_path", str(tiny_model),
                      "--train_file_dir", str(corpus), "--output_dir", str(out), "--max_steps", "16",
                      "--max_length", "64", "--learning_rate", "1e-2", *QUIET])  # fmt: skip
    assert losses(out)[0] > 5 and losses(out)[-1] < 3
    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() > 50_000


def test_pretraining_learns_every_token_of_a_long_document(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = "发热时应多饮水。<|im_end|>" * 20
    rows = pretraining.encode({"text": [text, "短文"]}, tokenizer, max_length=32)
    joined = [token for row in rows["input_ids"] for token in row]
    assert tokenizer.decode([token for token in joined if token != tokenizer.eos_token_id]) == text + "短文"
    assert joined.count(tokenizer.eos_token_id) == 2  # the ends of the documents, not what the text spells out
    assert max(map(len, rows["input_ids"])) == 32
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        assert labels == [-100, *ids[1:]]


@pytest.mark.parametrize("length", [31, 32, 33, 64, 65, 66])
def test_pretraining_learns_the_end_of_a_document_of_any_length(tiny_model, length):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = pretraining.encode({"text": ["1" * (length - 1)]}, tokenizer, max_length=32)
    assert [token for row in rows["input_ids"] for token in row] == [*tokenizer("1" * (length - 1)).input_ids,
                                                                     tokenizer.eos_token_id]  # fmt: skip
    assert rows["labels"][-1][-1] == tokenizer.eos_token_id and max(map(len, rows["input_ids"])) <= 32


def command(model, data, output, *more) -> list[str]:
    return [sys.executable, "supervised_finetuning.py", *flags(model, data, output, *more)]


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tiny_model, data, tmp_path):
    flags = ["--max_steps", "14", "--learning_rate", "1e-2", "--save_steps", "3", "--per_device_train_batch_size", "2",
             "--lora_dropout", "0.1", "--use_peft", "True", "--resume_from_checkpoint", "True"]  # fmt: skip
    sft(tiny_model, data, tmp_path / "whole", *flags)
    killed = tmp_path / "killed"
    process = subprocess.Popen(command(tiny_model, data, killed, *flags), cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while last_complete_checkpoint(killed, 1) is None and time.time() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "run_summary.json").exists()
    half = killed / "checkpoint-999"  # as a kill in the middle of saving leaves it
    half.mkdir()
    (half / "trainer_state.json").write_text("{")
    summary = sft(tiny_model, data, killed, *flags)
    assert summary["resumed_from"] and summary["steps"] == 14
    assert losses(killed)[-1] == losses(tmp_path / "whole")[-1]
    assert same(weights(killed), weights(tmp_path / "whole"), 0)
    whole = json.loads((tmp_path / "whole" / "run_summary.json").read_text())
    assert summary["metrics"]["train_loss"] == pytest.approx(whole["metrics"]["train_loss"], abs=1e-3)


@pytest.mark.parametrize("number", [3, 8, 90, 91])
def test_rows_grouped_by_length_come_in_random_order(number):
    """Trainer alone would go from the longest to the shortest."""
    lengths = [1 + (7 * i) % number for i in range(number)]
    args = SimpleNamespace(seed=1, data_seed=None, world_size=1)
    orders = []
    for epoch in (0, 0, 1):
        trainer = SimpleNamespace(args=args, state=SimpleNamespace(epoch=float(epoch)))
        orders.append(list(SeededOrder(LengthGroupedSampler(2, lengths=lengths), trainer)))
        torch.rand(3)
    assert orders[0] == orders[1] and sorted(orders[0]) == list(range(number))
    if number > 8:
        assert orders[0] != orders[2]
        pairs = [[lengths[row] for row in orders[0][i : i + 2]] for i in range(0, number - 1, 2)]
        assert sum(max(pair) - min(pair) for pair in pairs) / len(pairs) < number / 8  # at random: number / 3
        assert sum(a < b for a, b in itertools.pairwise(map(sum, pairs))) > len(pairs) / 4


SECOND_EPOCH = ["--num_train_epochs", "2", "--save_steps", "9", "--per_device_train_batch_size", "2",
                "--use_peft", "True", "--learning_rate", "1e-2", "--lora_dropout", "0.1",
                "--resume_from_checkpoint", "True"]  # fmt: skip


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_resume_amid_the_second_epoch_meets_the_rows_that_are_left(tiny_model, data, tmp_path, strategy):
    more = [*SECOND_EPOCH, "--train_sampling_strategy", strategy, "--save_steps", "18"]
    sft(tiny_model, data, tmp_path / "whole", *more)
    shutil.copytree(tmp_path / "whole" / "checkpoint-18", tmp_path / "resumed" / "checkpoint-18")
    torch.manual_seed(12345)
    summary = sft(tiny_model, data, tmp_path / "resumed", *more)
    assert summary["steps"] == 24 and summary["resumed_from"].endswith("checkpoint-18")
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")
    assert same(weights(tmp_path / "resumed"), weights(tmp_path / "whole"), 0)


def test_qlora_resumes_in_the_precision_it_was_trained_in(tiny_model, data, tmp_path):
    """TRL trains the adapter of a quantised model in bfloat16, and PEFT would load it in float32."""
    more = ["--max_steps", "6", "--save_steps", "3", "--use_peft", "True", "--load_in_bits", "4", "--learning_rate",
            "1e-2", "--resume_from_checkpoint", "True"]  # fmt: skip
    sft(tiny_model, data, tmp_path / "whole", *more)
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "resumed" / "checkpoint-3")
    assert sft(tiny_model, data, tmp_path / "resumed", *more)["resumed_from"].endswith("checkpoint-3")
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")
    assert {weight.dtype for weight in weights(tmp_path / "resumed").values()} == {torch.bfloat16}
    assert same(weights(tmp_path / "resumed"), weights(tmp_path / "whole"), 0)


def test_a_run_killed_after_its_last_step_makes_no_further_one(tiny_model, data, tmp_path):
    more = ["--max_steps", "4", "--save_steps", "2", "--use_peft", "True", "--learning_rate", "1e-2",
            "--lr_scheduler_type", "constant", "--resume_from_checkpoint", "True"]  # fmt: skip
    out = tmp_path / "out"
    sft(tiny_model, data, out, *more)
    ended = weights(out)
    (out / "run_summary.json").unlink()
    assert sft(tiny_model, data, out, *more)["steps"] == 4
    assert not (out / "checkpoint-5").exists() and same(weights(out), ended, 0)


def test_batches_of_balanced_length(tiny_model, data, tmp_path):
    more = ["--max_steps", "2", "--train_sampling_strategy", "batch_rebalance"]
    assert sft(tiny_model, data, tmp_path / "out", *more)["steps"] == 2


@pytest.mark.slow
def test_pretraining_on_two_ranks_with_uneven_documents(tiny_model, tmp_path):
    """`two_ranks` fails where the ranks end with different weights."""
    rows = [{"text": "发热时应多饮水，注意休息。" * (1 + i % 5)} for i in range(7)]
    out = tmp_path / "out"
    run = flags(tiny_model, write_rows(tmp_path / "texts.jsonl", rows), out, "--use_peft", "True", "--max_steps", "3",
                "--max_length", "32", "--per_device_train_batch_size", "2", "--learning_rate", "1e-2")  # fmt: skip
    two_ranks(["pretraining", *run])
    summary = json.loads((out / "run_summary.json").read_text())
    assert summary["world_size"] == 2 and summary["steps"] == 3 and losses(out)[-1] != losses(out)[0]


@pytest.mark.slow
def test_resume_amid_the_second_epoch_on_two_ranks(tiny_model, data, tmp_path):
    out = tmp_path / "out"
    run = flags(tiny_model, data, out, *SECOND_EPOCH, "--train_sampling_strategy", "group_by_length")
    two_ranks(["supervised_finetuning", *run])
    whole = losses(out), weights(out)
    shutil.rmtree(out / "checkpoint-12", ignore_errors=True)
    (out / "run_summary.json").unlink()
    two_ranks(["supervised_finetuning", *run])
    assert json.loads((out / "run_summary.json").read_text())["resumed_from"].endswith("checkpoint-9")
    assert losses(out) == whole[0] and same(weights(out), whole[1], 0)


def test_a_checkpoint_is_whole_by_the_ranks_that_wrote_it(tmp_path):
    def checkpoint(step: int, ranks: int | None, *rng: str) -> None:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        kept = {"stateful_callbacks": {"WrittenBy": WrittenBy(ranks).state()}} if ranks else {}
        (folder / "trainer_state.json").write_text(json.dumps(kept))
        for name in rng:
            (folder / name).touch()

    checkpoint(1, 1, "rng_state.pth")
    checkpoint(2, 2, "rng_state_0.pth", "rng_state_1.pth")
    checkpoint(3, 2, "rng_state_0.pth")  # the other rank was killed first
    checkpoint(4, None, "rng_state.pth")  # of an earlier version: by the ranks of now
    assert last_complete_checkpoint(tmp_path, 1) == str(tmp_path / "checkpoint-4")
    assert last_complete_checkpoint(tmp_path, 8) == str(tmp_path / "checkpoint-2")


def test_checkpoints_without_a_state_cannot_be_gone_on_with(tiny_model, data, tmp_path):
    more = ["--max_steps", "2", "--save_steps", "1", "--save_only_model", "True"]
    sft(tiny_model, data, tmp_path / "out", *more)
    (tmp_path / "out" / "run_summary.json").unlink()
    with pytest.raises(ValueError, match="checkpoints of --save_only_model hold no state to go on from"):
        sft(tiny_model, data, tmp_path / "out", *more, "--resume_from_checkpoint", "True")


def test_the_best_model_is_told_with_its_own_figures(tiny_model, data, tmp_path):
    summary = sft(tiny_model, data, tmp_path / "out", "--max_steps", "2", "--learning_rate", "0.3", "--eval_strategy",
                  "steps", "--eval_steps", "1", "--save_steps", "1", "--load_best_model_at_end", "True",
                  "--validation_split_ratio", "0.25")  # fmt: skip
    rows = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    found = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert summary["metrics"]["eval_loss"] == pytest.approx(min(found), abs=1e-6) and found[1] > min(found) + 1e-3


@pytest.mark.slow
def test_two_ranks_count_every_held_out_row_once(tiny_model, tmp_path):
    train = write_rows(tmp_path / "train.jsonl", conversations(30)[20:])
    test = write_rows(tmp_path / "test.jsonl", conversations(5))
    more = ["--max_steps", "1", "--learning_rate", "0", "--validation_file_dir", str(test),
            "--per_device_eval_batch_size", "2"]  # fmt: skip
    alone = sft(tiny_model, train, tmp_path / "one", *more)["metrics"]["eval_loss"]
    runs = {"single": [], "packed": ["--packing", "True"]}
    two_ranks(
        *(
            ["supervised_finetuning", *flags(tiny_model, train, tmp_path / name, *more, *packed)]
            for name, packed in runs.items()
        )
    )
    for name in runs:
        both = json.loads((tmp_path / name / "run_summary.json").read_text())["metrics"]["eval_loss"]
        assert both == pytest.approx(alone, abs=1e-5), name


def test_prompts_that_are_cut_are_counted_and_too_many_stop_the_run(tiny_model, tmp_path):
    renderer = Renderer(AutoTokenizer.from_pretrained(tiny_model))
    texts = ["头痛怎么办？", "头痛" * 60, "你好", "发烧呢？"]
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in texts])
    config = supervised_finetuning.SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    encoded, lost = tokenize_prompts(rows, renderer, config, 64)
    assert [len(ids) <= 64 for ids in encoded["prompt_ids"]] == [True] * 4 and lost["questions_cut"] == 1
    assert lost["prompt_tokens_cut"] == len(renderer.prompt(rows[1]["prompt"])) - len(encoded[1]["prompt_ids"])
    with pytest.raises(ValueError, match="--max_prompt_length 64 is too short: 2 of 4 questions"):
        tokenize_prompts(Dataset.from_list([rows[n] for n in (0, 1, 1, 2)]), renderer, config, 64)


@pytest.fixture(scope="module")
def divided(tiny_model, tmp_path_factory) -> Path:
    """Folder with what SFT leaves in full and with LoRA under ZeRO-2 and ZeRO-3; an uneven number of rows."""
    folder = tmp_path_factory.mktemp("deepspeed")
    data = write_rows(folder / "train.jsonl", conversations(23))
    more = ["--num_train_epochs", "2", "--per_device_train_batch_size", "2", "--learning_rate", "1e-2",
            "--save_strategy", "no"]  # fmt: skip
    two_ranks(
        *(
            [
                "supervised_finetuning",
                *flags(tiny_model, data, folder / f"{stage}-{method}", *more),
                "--deepspeed",
                f"{stage}.json",
                "--use_peft",
                str(method == "lora"),
            ]
            for stage in ("zero2", "zero3")
            for method in ("full", "lora")
        )
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_deepspeed_on_two_ranks(tiny_model, divided, stage, method):
    """Two gloo ranks with an uneven number of rows train, save once, and the model loads; the loss falls."""
    out = divided / f"{stage}-{method}"
    summary = json.loads((out / "run_summary.json").read_text())
    assert summary["world_size"] == 2 and summary["steps"] == 12
    assert losses(out)[-1] < losses(out)[0] - 0.5
    tuned = load_base(resolve(str(out)))
    ids = torch.tensor([[5, 6, 7, 8]])
    assert (tuned(ids).logits - load_base(resolve(str(tiny_model)))(ids).logits).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--no_such_flag", "1"], "unknown flag or value: --no_such_flag 1"),
        (["--template_name", "vicunna"], "vicuna"),
        (["--load_in_bits", "4"], "add --use_peft True"),
        (["--load_in_bits", "3", "--use_peft", "True"], "expected 4 or 8"),
        (["--model_name_or_path", "./no_such_model"], "no such model directory"),
        (["--validation_split_ratio", "1.5"], "--validation_split_ratio"),
        (["--max_length", "4"], "--max_length is too short"),
        (["--resume_from_checkpoint", "no_such_checkpoint"], "does not exist"),
        (["--chat_template_path", "x.jinja"], "--chat_template_path would do nothing here: --template_name"),
        (["--assistant_only_loss=True"], "--assistant_only_loss would do nothing here"),
        (["--packing", "True", "--neftune_noise_alpha", "5"], "choose one"),
        (["--packing", "True", "--packing_strategy", "wrapped"], "see each other"),
    ],
)
def test_wrong_flags_are_named_and_nothing_is_written(tiny_model, data, tmp_path, capsys, flags, message):
    out = tmp_path / "out"
    with pytest.raises((SystemExit, ValueError, FileNotFoundError)) as error:
        sft(tiny_model, data, out, *flags)
    assert message in str(error.value) + capsys.readouterr().err
    assert not out.exists()


def test_samples_are_shown_with_what_is_learned_in_green(tiny_model, capsys):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ask, good, bad = (tokenizer(text, add_special_tokens=False).input_ids for text in ("头痛", "休息", "喝水"))
    green, red = "\033[32m休息\033[0m", "\033[31m喝水\033[0m"
    for row, shown in (
        ({"input_ids": ask + good, "labels": [-100] * len(ask) + good}, f"头痛{green}\n"),
        ({"prompt_ids": ask, "chosen_ids": good, "rejected_ids": bad, "length": 9}, f"头痛{green}{red}\n"),
        ({"chosen_ids": good, "rejected_ids": bad}, f"{green}{red}\n"),
        ({"prompt_ids": ask, "prompt": "头痛"}, "头痛\n"),
    ):
        show_rows(Dataset.from_list([row]), tokenizer, 3)
        assert capsys.readouterr().out == "-" * 80 + "\n" + shown


def test_a_stage_without_a_model_says_so(data, tmp_path):
    with pytest.raises(ValueError, match="--model_name_or_path is missing"):
        supervised_finetuning.main(["--train_file_dir", str(data), "--output_dir", str(tmp_path / "out")])


def test_an_earlier_run_is_not_overwritten(tiny_model, data, tmp_path):
    out = tmp_path / "out"
    sft(tiny_model, data, out, "--max_steps", "1")
    with pytest.raises((SystemExit, ValueError), match="earlier run"):
        sft(tiny_model, data, out, "--max_steps", "1")
    shutil.rmtree(out / "checkpoint-1")
    with pytest.raises(ValueError, match="a run that is over"):
        sft(tiny_model, data, out, "--max_steps", "1", "--resume_from_checkpoint", "True")


@pytest.mark.slow
def test_a_bad_file_ends_with_a_message_and_exit_code_1(tiny_model, tmp_path):
    rows = [json.dumps(row, ensure_ascii=False) for row in conversations(20)]
    rows[16] = rows[16][:-9]
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(rows), encoding="utf-8")
    done = subprocess.run(
        command(tiny_model, bad, tmp_path / "out"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"{bad}:17" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_medicalgpt_spellings_are_aliases(tiny_model, data, tmp_path):
    old = [
        "--lora_rank",
        "4",
        "--target_modules",
        "q_proj",
        "v_proj",
        "--torch_dtype",
        "float32",
        "--model_max_length=99",
    ]
    args, _, config = parse(
        supervised_finetuning.ModelArguments, supervised_finetuning.DataArguments, supervised_finetuning.SFTConfig,
        argv=["--model_name_or_path", "x", "--train_file_dir", str(data), "--output_dir", str(tmp_path / "o"), *old],
    )  # fmt: skip
    assert (args.lora_r, args.lora_target_modules, args.dtype) == (4, ["q_proj", "v_proj"], "float32")
    assert config.max_length == 99


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("run_*.sh")))
def test_the_flags_of_a_run_script_are_those_of_its_stage(script, monkeypatch):
    """Every shipped setting parses against its script: `launch` is replaced by the script's own parser."""
    lines = (ROOT / script).read_text(encoding="utf-8")
    if "\nlaunch " not in lines:
        pytest.skip("does not launch a stage itself")
    words = [
        "bash",
        "-c",
        f"launch() {{ printf '%s\\0' \"$@\"; }}; {lines.replace('. tools/launch.sh', 'MODEL=model')}",
    ]
    out = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]

    def parsed(config):
        raise SystemExit(0)

    monkeypatch.setattr("medical_qwen.training._start", parsed)  # what comes after the flags were accepted
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(Path(out[0]).stem).main(out[1:])
    assert ended.value.code == 0


def test_the_last_evaluation_is_not_done_twice(tiny_model, data, tmp_path, monkeypatch):
    counted = []
    evaluate = supervised_finetuning.Trainer.evaluate

    def count(self, *args, **kwargs):
        counted.append(self.state.global_step)
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(supervised_finetuning.Trainer, "evaluate", count)
    summary = sft(tiny_model, data, tmp_path / "out", "--max_steps", "4", "--eval_strategy", "steps", "--eval_steps",
                  "2", "--validation_split_ratio", "0.25")  # fmt: skip
    assert counted == [2, 4]
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    last = [row for row in history if "eval_loss" in row][-1]
    assert summary["metrics"]["eval_loss"] == last["eval_loss"]
    assert summary["metrics"]["eval_perplexity"] == pytest.approx(math.exp(last["eval_loss"]))
