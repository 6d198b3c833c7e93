"""PPO end to end on a tiny Llama that is made here: it learns, its roles are what they claim, it resumes exactly."""

import dataclasses
import importlib.util
import inspect
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from stage_runs import two_ranks, under_torchrun
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import GRPOConfig
from trl.generation.vllm_generation import VLLMGeneration

import ppo_training
from medical_qwen.arguments import DataArguments, ModelArguments
from medical_qwen.checkpoints import last_complete_checkpoint
from medical_qwen.lineage import resolve
from medical_qwen.models import fingerprint, load_base
from medical_qwen.ppo import PPOConfig, PPOTrainer, from_endpoint, from_functions, load_ppo_model
from medical_qwen.ppo import roles as ppo_roles
from medical_qwen.ppo.config import VLLM
from medical_qwen.ppo.loading import shared_roles
from medical_qwen.ppo.rollout import Texts, divide, write_answers
from medical_qwen.ppo.vllm_rollout import policy_weights
from medical_qwen.records import load_splits
from medical_qwen.rendering import Renderer
from medical_qwen.scoring import RewardModel
from medical_qwen.tokens import tokenize_prompts
from medical_qwen.training import _evaluated_now

ROOT = Path(__file__).resolve().parents[1]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)

# --- a tiny world --------------------------------------------------------------------------------------------------


def make_tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """One token per character."""
    words = ["<pad>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz .,!?\n"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="."))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=template,
    )
    return tokenizer


def make_config(seed: int = 0, **changes) -> LlamaConfig:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": 35, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
    # weights large enough that a LoRA adapter under the frozen head can say anything
    return LlamaConfig(**sizes | ids | {"num_key_value_heads": 2, "initializer_range": 0.1} | changes)


def shake(model: torch.nn.Module, seed: int) -> None:
    """Trained-looking LoRA weights: B is zero at first."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)


def lora(task: str = "CAUSAL_LM", rank: int = 4) -> LoraConfig:
    return LoraConfig(task_type=task, r=rank, lora_alpha=2 * rank, target_modules="all-linear")


def make_adapter(parent: Path, folder: Path, tokenizer, seed: int) -> Path:
    """An SFT-like adapter on a model directory."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(parent), lora())
    shake(model, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_reward(parent: Path, folder: Path, tokenizer, seed: int, below: Path | None = None) -> Path:
    """A reward adapter with a score head, on a model directory or on an adapter of it."""
    model = AutoModelForSequenceClassification.from_pretrained(parent, num_labels=1)
    torch.manual_seed(seed)
    model.score.weight.data.normal_(std=0.5)
    if below:
        weights = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(parent), below).merge_and_unload()
        model.model.load_state_dict(weights.model.state_dict())
    model = get_peft_model(model, lora("SEQ_CLS"))
    shake(model, seed)
    model.peft_config["default"].base_model_name_or_path = str(below or parent)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "run_summary.json").write_text(json.dumps({"stage": "reward_modeling"}))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, Path]:
    """base; sft on base; rm on base; rm_sft on sft; whole: a reward model without an adapter."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = make_tokenizer()
    base = folder / "base"
    LlamaForCausalLM(make_config()).save_pretrained(base)
    tokenizer.save_pretrained(base)
    sft = make_adapter(base, folder / "sft", tokenizer, seed=1)
    rm = make_reward(base, folder / "rm", tokenizer, seed=2)
    rm_sft = make_reward(base, folder / "rm_sft", tokenizer, seed=3, below=sft)
    whole = folder / "whole"
    model = LlamaForSequenceClassification(make_config(seed=4, num_labels=1))
    model.score.weight.data.normal_()
    model.save_pretrained(whole)
    tokenizer.save_pretrained(whole)
    return {"base": base, "sft": sft, "rm": rm, "rm_sft": rm_sft, "whole": whole}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def make_prompts(tokenizer, number: int, seed: int = 0) -> Dataset:
    dice, renderer = random.Random(seed), Renderer(tokenizer)
    rows = []
    for _ in range(number):
        content = "".join(dice.choice("abcdefgh") for _ in range(dice.randint(2, 9)))
        prompt = [{"role": "user", "content": content}]
        rows.append({"prompt": prompt, "prompt_ids": renderer.prompt(prompt)})
    return Dataset.from_list(rows)


def make_args(folder: Path, **changes) -> PPOConfig:
    defaults = {
        "per_device_train_batch_size": 4,
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "max_completion_length": 8,
        "learning_rate": 3e-3,
        "max_steps": 4,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "log_samples_steps": 0,
    }
    return PPOConfig(output_dir=str(folder), **defaults | changes)


def share_of_a(completions, **_) -> list[float]:
    return [talk[0]["content"].count("a") / max(len(talk[0]["content"]), 1) for talk in completions]


def fresh_policy(base: Path, rank: int = 4) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora(rank=rank))


def make_trainer(world, tokenizer, folder: Path, prompts: int = 20, held_out: int = 0, callbacks=None, **changes):
    model = shared_roles(fresh_policy(world["base"]), tokenizer)
    return PPOTrainer(
        model,
        make_args(folder, **changes),
        make_prompts(tokenizer, prompts),
        make_prompts(tokenizer, held_out, seed=8) if held_out else None,
        processing_class=tokenizer,
        scorer=from_functions([share_of_a]),
        callbacks=callbacks,
    )


def role_model(world, policy: str, reward: str | None, tokenizer, use_peft: bool = True):
    torch.manual_seed(0)
    args = ModelArguments(model_name_or_path=str(world[policy]), use_peft=use_peft, lora_r=4, dtype="float32")
    return load_ppo_model(args, tokenizer, str(world[reward]) if reward else None)


TEXTS = Texts([[1, 5, 6, 7], [1, 9], [1, 3, 4]], [[10, 11, 2], [12, 13, 14, 15], [2]], [True, False, True])


def by_token(model, role: str, texts: Texts = TEXTS, **kwargs):
    with model.acting(role), torch.no_grad():
        return model.eval()(**texts.layout(0, torch.device("cpu")), **kwargs)


def plain_logprobs(model, texts: Texts = TEXTS) -> torch.Tensor:
    """Row by row, without padding, by the model's own logits."""
    found = []
    for prompt, answer in zip(texts.prompts, texts.answers, strict=True):
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([prompt + answer])).logits[0]
        logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
        found.append(logprobs.gather(-1, torch.tensor(answer)[:, None])[:, 0])
    return torch.cat(found)


def plain_scores(model, texts: Texts = TEXTS) -> torch.Tensor:
    with torch.no_grad():
        rows = [torch.tensor([p + a]) for p, a in zip(texts.prompts, texts.answers, strict=True)]
        return torch.cat([model.eval()(input_ids=row).logits[:, 0] for row in rows])


def rm_scores(model, tokenizer, world_folder: Path, texts: Texts = TEXTS, rows=None) -> torch.Tensor:
    """The scores as the trainer computes them."""
    trainer = PPOTrainer(model, make_args(world_folder), make_prompts(tokenizer, 4), processing_class=tokenizer)
    rows = rows or [{"prompt": [{"role": "user", "content": "x"}]}] * len(texts)
    return trainer.experience._scores(rows, texts, tokenizer.batch_decode(texts.answers, skip_special_tokens=True))


# --- it learns -----------------------------------------------------------------------------------------------------


def test_a_computable_reward_is_driven_near_its_optimum(world, tokenizer, tmp_path):
    """Share of the letter a in the answer: 1/35 by chance, 1 at best. A KL penalty keeps it from the very end."""
    torch.set_num_threads(1)
    trainer = PPOTrainer(
        shared_roles(fresh_policy(world["base"], rank=16), tokenizer),
        make_args(
            tmp_path,
            per_device_train_batch_size=32,
            num_ppo_epochs=4,
            max_completion_length=12,
            max_steps=200,
            kl_coef=0.01,
            gradient_checkpointing=False,
            lr_scheduler_type="constant",
            logging_steps=8,
        ),
        make_prompts(tokenizer, 256),
        processing_class=tokenizer,
        scorer=from_functions([share_of_a]),
    )
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert rewards[0] < 0.15
    assert sum(rewards[-3:]) / 3 > 0.85
    last = trainer.state.log_history[-2]
    assert last["entropy"] < 1.5 and last["kl"] > 3  # it has moved, and is sure of it


# --- the roles -----------------------------------------------------------------------------------------------------


def test_logprobs_are_those_of_the_models_own_logits(world, tokenizer):
    """Padding, gathering and pieces change nothing; the reference is the checkpoint that was given."""
    model = role_model(world, "sft", "rm_sft", tokenizer)
    sft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world["base"]), world["sft"])
    expected = plain_logprobs(sft)
    torch.testing.assert_close(by_token(model, "reference"), expected)
    torch.testing.assert_close(by_token(model, "policy"), expected)  # a new adapter says what its base says
    shake(model, seed=9)
    torch.testing.assert_close(by_token(model, "reference"), expected)
    assert (by_token(model, "policy") - expected).abs().max() > 0.01


def test_temperature_and_entropy(world, tokenizer):
    model = role_model(world, "base", None, tokenizer)
    logprobs, entropy = by_token(model, "policy", temperature=0.5, with_entropy=True)
    base = AutoModelForCausalLM.from_pretrained(world["base"])
    base.lm_head.weight.data *= 2
    torch.testing.assert_close(logprobs, plain_logprobs(base))
    with torch.no_grad():
        logits = [
            base(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            for prompt, answer in zip(TEXTS.prompts, TEXTS.answers, strict=True)
        ]
    expected = torch.distributions.Categorical(logits=torch.cat(logits)).entropy()
    torch.testing.assert_close(entropy, expected, rtol=1e-4, atol=1e-5)


def test_logprobs_in_pieces_have_the_same_values_and_gradients(world, tokenizer, monkeypatch):
    model = role_model(world, "base", None, tokenizer)
    shake(model, seed=9)
    results = []
    for size in (2**25, 2 * 35):  # all at once; two tokens at a time
        monkeypatch.setattr(ppo_roles, "LOGITS_AT_A_TIME", size)
        model.zero_grad()
        with model.acting("policy"):
            logprobs = model(**TEXTS.layout(0, torch.device("cpu")))
            (logprobs * torch.arange(1.0, 9.0)).sum().backward()
        results.append((logprobs.detach(), [p.grad.clone() for p in model.trained("policy").values()]))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)  # the gradients go up to 100


@pytest.mark.parametrize(("policy", "reward"), [("sft", "rm_sft"), ("base", "rm"), ("sft", "rm"), ("base", "rm_sft")])
def test_scores_are_those_of_the_reward_checkpoint(world, tokenizer, tmp_path, policy, reward):
    """Whatever lies between the root and either adapter, one base serves both."""
    model = role_model(world, policy, reward, tokenizer)
    assert "reward" not in model.own
    expected = plain_scores(load_reward(world, reward))
    torch.testing.assert_close(rm_scores(model, tokenizer, tmp_path), expected, rtol=1e-4, atol=1e-5)
    ends = torch.tensor(
        [2, 6, 7]
    )  # the value model starts as the reward model: it agrees at the token before the last
    cut = Texts(TEXTS.prompts[:2], [a[:-1] for a in TEXTS.answers[:2]], [False, False])
    values = by_token(model, "value")[ends[:2]]
    torch.testing.assert_close(values, plain_scores(load_reward(world, reward), cut), rtol=1e-4, atol=1e-5)
    reference = AutoModelForCausalLM.from_pretrained(world["base"])
    if policy == "sft":
        reference = PeftModel.from_pretrained(reference, world["sft"])
    torch.testing.assert_close(by_token(model, "reference"), plain_logprobs(reference), rtol=1e-4, atol=1e-4)


def load_reward(world, name: str):
    """The reward model as its own stage would load it: a classification model, what is under the adapter merged."""
    if name == "whole":
        return AutoModelForSequenceClassification.from_pretrained(world["whole"])
    model = AutoModelForSequenceClassification.from_pretrained(world["base"], num_labels=1)
    if name == "rm_sft":
        below = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world["base"]), world["sft"])
        model.model.load_state_dict(below.merge_and_unload().model.state_dict())
    return PeftModel.from_pretrained(model, world[name])


def test_a_whole_reward_model_is_loaded_beside_the_base(world, tokenizer, tmp_path):
    model = role_model(world, "sft", "whole", tokenizer)
    assert "reward" in model.own
    torch.testing.assert_close(rm_scores(model, tokenizer, tmp_path), plain_scores(load_reward(world, "whole")))


@pytest.mark.parametrize("behind", ["", "\n"])  # what the template writes behind the end token is not read
@pytest.mark.parametrize("finished", [True, False])  # an answer that was cut has no end token for the reward model
def test_a_reward_model_with_another_template_reads_its_own_tokens(world, tokenizer, tmp_path, behind, finished):
    other = make_tokenizer(PLAIN.replace("<|im_end|>", f"<|im_end|>{behind}"))
    rm = make_reward(world["base"], tmp_path / "rm", other, seed=5)
    model = role_model(world | {"rm": rm}, "base", "rm", tokenizer)
    assert model.reward_tokenizer is not None
    texts = Texts([[1, 5]], [[10, 11, 2] if finished else [10, 11]], [finished])
    rows = [{"prompt": [{"role": "user", "content": "hello"}]}]
    answer = tokenizer.decode([10, 11]) + ("<|im_end|>" if finished else "")
    ids = other(f"user hello<|im_end|>{behind}assistant {answer}", add_special_tokens=False).input_ids
    expected = plain_scores(load_reward(world | {"rm": rm}, "rm"), Texts([ids], [[]], [True]))
    torch.testing.assert_close(rm_scores(model, tokenizer, tmp_path, texts, rows), expected, rtol=1e-4, atol=1e-5)


def test_training_changes_policy_and_value_and_nothing_else(world, tokenizer, tmp_path):
    model = role_model(world, "sft", "rm_sft", tokenizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    reference, scores = by_token(model, "reference"), rm_scores(model, tokenizer, tmp_path)
    trainer = PPOTrainer(model, make_args(tmp_path), make_prompts(tokenizer, 20), processing_class=tokenizer)
    trainer.train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(model.trained("policy")) | set(model.trained("value"))
    assert not set(model.trained("policy")) & set(model.trained("value"))
    assert all(".default." in name for name in model.trained("policy"))
    assert all("ppo_value" in name or name == "value_head.weight" for name in model.trained("value"))
    torch.testing.assert_close(by_token(model, "reference"), reference, rtol=0, atol=0)
    torch.testing.assert_close(rm_scores(model, tokenizer, tmp_path), scores, rtol=0, atol=0)
    assert (by_token(model, "policy") - reference).abs().max() > 1e-3


@pytest.mark.parametrize("role", ["policy", "value"])
def test_gradient_checkpointing_meets_the_same_adapters(world, tokenizer, role):
    gradients = []
    for checkpointing in (False, True):
        model = role_model(world, "sft", "rm_sft", tokenizer)
        shake(model, seed=9)
        model.value_head.weight.data.fill_(0.1)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        with model.acting(role):
            (model(**TEXTS.layout(0, torch.device("cpu"))) * torch.arange(1.0, 9.0)).sum().backward()
        gradients.append({name: p.grad for name, p in model.trained(role).items()})
        assert all(p.grad is None for name, p in model.named_parameters() if name not in model.trained(role))
    assert all(g.abs().sum() > 0 for name, g in gradients[0].items() if "lora_A" in name)
    torch.testing.assert_close(*gradients)


# --- rollouts ------------------------------------------------------------------------------------------------------


def answers(model, prompts, **changes) -> Texts:
    settings = {"stop_ids": [2], "pad_id": 0, "max_length": 10, "temperature": 1e-4, "batch_size": 3}
    return write_answers(model.eval(), prompts, **settings | changes)


def test_answers_do_not_depend_on_their_batch_nor_on_the_checkpoints_sampling_defaults(world, tokenizer):
    """At a temperature of almost 0 sampling is greedy: each answer must be the one that the prompt gets alone."""
    model = AutoModelForCausalLM.from_pretrained(world["base"])
    prompts = [row["prompt_ids"] for row in make_prompts(tokenizer, 7)]
    alone = [answers(model, [prompt]).answers[0] for prompt in prompts]
    model.generation_config = GenerationConfig(repetition_penalty=9.0, top_k=1, no_repeat_ngram_size=1)
    together = answers(model, prompts)
    assert together.answers == alone
    assert together.prompts == prompts
    assert model.generation_config.repetition_penalty == 9.0
    assert len(set(map(tuple, alone))) > 1


def padded(lengths: list[int], batches: list[list[int]]) -> list[int]:
    return [len(batch) * max(lengths[row] for row in batch) for batch in batches]


def test_batches_have_the_least_padding_within_the_memory_of_even_ones():
    rng = random.Random(0)
    for _ in range(200):
        rows = rng.randint(1, 9)
        count = rng.randint(1, rows)
        lengths = [rng.randint(1, 50) for _ in range(rows)]
        room = -(-rows // count) * max(lengths)
        found = divide(lengths, count)
        assert len(found) == count and all(found) and sorted(itertools.chain(*found)) == list(range(rows))
        sizes = padded(lengths, found)
        assert max(sizes) <= room
        by_length = sorted(range(rows), key=lambda row: -lengths[row])
        borders = [(0, *cuts, rows) for cuts in itertools.combinations(range(1, rows), count - 1)]
        ways = [padded(lengths, [by_length[i:j] for i, j in itertools.pairwise(cuts)]) for cuts in borders]
        assert sum(sizes) == min(sum(way) for way in ways if max(way) <= room)


def test_many_batches_are_divided_in_no_time_and_with_less_padding_than_even_ones():
    rng = random.Random(0)
    lengths = [rng.choice((30, 500)) + rng.randint(0, 60) for _ in range(1001)]
    began = time.perf_counter()
    found = divide(lengths, 251)
    assert time.perf_counter() - began < 2
    assert len(found) == 251 and all(found) and sorted(itertools.chain(*found)) == list(range(1001))
    by_length = sorted(range(1001), key=lambda row: -lengths[row])
    even = padded(lengths, [by_length[i : i + 4] for i in range(0, 1001, 4)])
    assert sum(padded(lengths, found)) < sum(even) and max(padded(lengths, found)) <= 4 * max(lengths)


def test_answers_end_at_their_first_end_token(world, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(world["base"])
    torch.manual_seed(0)
    texts = answers(model, [[1, 5, 6]] * 40, temperature=1.0, batch_size=40, stop_ids=[2, 7])
    assert 0 < sum(texts.finished) < 40
    for answer, finished in zip(texts.answers, texts.finished, strict=True):
        assert finished == (answer[-1] in (2, 7))
        assert not {2, 7} & set(answer[:-1])
        assert finished or len(answer) == 10


def test_every_prompt_is_answered_once_per_epoch_and_short_ends_are_filled_up(world, tokenizer, tmp_path):
    trainer = make_trainer(world, tokenizer, tmp_path, prompts=20)  # 8 per rollout: 3 rollouts, 24 places
    assert trainer.rollouts_per_epoch == 3
    seen = [tuple(row["prompt_ids"]) for number in range(3) for row in trainer._prompts(number)]
    everything = {tuple(ids) for ids in trainer.train_dataset["prompt_ids"]}
    assert len(seen) == 24 and set(seen) == everything
    again = [tuple(row["prompt_ids"]) for row in trainer._prompts(3)]
    assert again != seen[:8]  # another order in the next epoch
    one_prompt = make_trainer(world, tokenizer, tmp_path, prompts=1)
    assert len(one_prompt._prompts(0)) == 8


# --- the update ----------------------------------------------------------------------------------------------------


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("splits", [(2, 4), (1, 8)])
def test_the_result_does_not_depend_on_gradient_accumulation(world, tokenizer, tmp_path, splits):
    """Rows of unequal length: only an average over the tokens of the whole mini-batch gives this."""
    results = []
    for size, accumulation in ((8, 1), splits):
        trainer = make_trainer(
            world,
            tokenizer,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            num_ppo_epochs=2,
            optim="sgd",  # Adam would hide a wrong scale
            learning_rate=1.0,
            max_grad_norm=0,
        )
        trainer.train()
        results.append(weights(trainer.model))
        start = weights(shared_roles(fresh_policy(world["base"]), tokenizer))
        assert any((results[-1][name] - start[name]).abs().max() > 1e-3 for name in start)
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_first_step_is_on_policy(world, tokenizer, tmp_path, temperature):
    """Before anything is updated the ratio is 1: nothing clipped, no distance, policy loss = -mean advantage = 0."""
    more = {"num_mini_batches": 1, "gradient_checkpointing": False, "temperature": temperature}
    trainer = make_trainer(world, tokenizer, tmp_path, max_steps=1, **more)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["clip_fraction"] == 0 and first["value_clip_fraction"] == 0
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert first["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert first["policy_loss"] == pytest.approx(0, abs=1e-5)  # whitened advantages
    wanted = {"reward", "reward_std", "entropy", "explained_variance", "response_length", "share_with_end", "kl_coef"}
    assert wanted <= set(first)
    base = AutoModelForCausalLM.from_pretrained(world["base"])
    base.lm_head.weight.data /= temperature
    mask = trainer._rollout.texts.mask(torch.device("cpu"))
    torch.testing.assert_close(trainer._rollout.logprobs[mask], plain_logprobs(base, trainer._rollout.texts))


def test_answers_are_drawn_at_the_temperature_of_the_update(world, tokenizer, tmp_path):
    """Near temperature 0 the likeliest token is drawn, and has a probability of 1 there."""
    trainer = make_trainer(world, tokenizer, tmp_path, temperature=1e-4)
    trainer._roll_out(0)
    assert trainer._rollout.logprobs.min() > -0.1


def test_an_entropy_bonus_holds_against_the_score(world, tokenizer, tmp_path):
    entropies = []
    for coef in (0.0, 1.0):
        trainer = make_trainer(
            world, tokenizer, tmp_path, held_out=8, max_steps=24, learning_rate=1e-2, entropy_coef=coef
        )
        trainer.train()
        entropies.append(trainer.evaluate()["eval_entropy"])
    assert entropies[1] > max(entropies[0] + 0.3, 3.3)  # ln 35 = 3.56 is the most


def test_learning_rates_of_their_own(world, tokenizer, tmp_path):
    trainer = make_trainer(world, tokenizer, tmp_path, value_learning_rate=0.5, lr_scheduler_type="constant")
    rates = {id(p): group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    assert {rates[id(p)] for p in trainer.model.trained("policy").values()} == {3e-3}
    assert {rates[id(p)] for p in trainer.model.trained("value").values()} == {0.5}
    assert len(rates) == len(weights(trainer.model))


def test_stops_when_the_kl_runs_away(world, tokenizer, tmp_path):
    trainer = make_trainer(world, tokenizer, tmp_path, learning_rate=1.0, max_steps=40, max_kl=2.0)
    with pytest.raises(ValueError, match=r"KL to the reference is .* more than --max_kl 2"):
        trainer.train()


def test_stops_when_the_loss_is_not_finite(world, tokenizer, tmp_path):
    trainer = make_trainer(world, tokenizer, tmp_path)
    first = trainer.experience.roll_out

    def poisoned(*args):
        rollout, *rest = first(*args)
        rollout.advantages[0, 0] = float("nan")
        return rollout, *rest

    trainer.experience.roll_out = poisoned
    before = weights(trainer.model)
    with pytest.raises(ValueError, match=r"step 0: the loss is not finite \(policy_loss nan"):
        trainer.train()
    torch.testing.assert_close(weights(trainer.model), before, rtol=0, atol=0)


def test_a_score_that_is_no_number_is_refused(world, tokenizer, tmp_path):
    trainer = make_trainer(world, tokenizer, tmp_path)
    trainer.experience.scorer = lambda rows, words, ids: [float("nan")] * len(rows)
    with pytest.raises(ValueError, match="the reward gave nan for the answer"):
        trainer.train()


def test_missing_end_costs(world, tokenizer, tmp_path):
    """The penalty reaches the returns of cut answers, not the logged score."""
    returns = []
    for penalty in (None, 5.0):
        trainer = make_trainer(world, tokenizer, tmp_path, missing_eos_penalty=penalty, lam=1.0, kl_coef=0.0)
        rollout, judged, figures = trainer.experience.roll_out(0, trainer._prompts(0), 0.0)
        returns.append(rollout.returns[:, 0])
    finished = torch.tensor(judged.texts.finished)
    assert 0 < finished.sum() < len(finished)
    torch.testing.assert_close(returns[0] - returns[1], torch.where(finished, 0.0, 5.0))
    assert figures["reward"] == pytest.approx(judged.scores.mean().item())


# --- resume --------------------------------------------------------------------------------------------------------


class Kill(TrainerCallback):
    """Stops the run the hard way, after a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("killed_at", [3, 4, 12])  # amid a rollout, at its end, at the end of an epoch
def test_resume_is_exact(world, tokenizer, tmp_path, killed_at):
    settings = {"max_steps": 14, "save_strategy": "steps", "save_steps": 1, "target_kl": 0.05, "kl_horizon": 20}
    whole = make_trainer(world, tokenizer, tmp_path / "whole", **settings | {"save_strategy": "no"})
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(world, tokenizer, tmp_path / "cut", callbacks=[Kill(killed_at)], **settings).train()
    resumed = make_trainer(world, tokenizer, tmp_path / "cut", **settings)
    torch.manual_seed(12345)  # whatever the state of the generator
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{killed_at}"))
    torch.testing.assert_close(weights(resumed.model), weights(whole.model), rtol=0, atol=1e-7)
    assert resumed.kl_controller.coef == whole.kl_controller.coef != 0.05
    timeless = ("rollout_seconds",)
    for mine, theirs in zip(
        resumed.state.log_history[killed_at:14], whole.state.log_history[killed_at:14], strict=True
    ):
        assert {k: v for k, v in mine.items() if k not in timeless} == pytest.approx(
            {k: v for k, v in theirs.items() if k not in timeless}, rel=1e-4, abs=1e-6
        )


def test_the_best_checkpoint_is_kept(world, tokenizer, tmp_path):
    settings = {"max_steps": 8, "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 2, "eval_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_reward", "greater_is_better": True}
    trainer = make_trainer(world, tokenizer, tmp_path, held_out=5, learning_rate=3e-2, **settings, **best)
    trainer.train()
    rewards = [row["eval_reward"] for row in trainer.state.log_history if "eval_reward" in row]
    assert len(set(rewards)) > 1
    assert trainer.evaluate()["eval_reward"] == pytest.approx(max(rewards))


def test_resume_refuses_a_checkpoint_of_another_stage(world, tokenizer, tmp_path):
    trainer = make_trainer(world, tokenizer, tmp_path)
    trainer.save_model(str(tmp_path / "checkpoint-2"))
    trainer.save_state()
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text((tmp_path / "trainer_state.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"no checkpoint to resume PPO from: no value_model\.safetensors"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


# --- what is left behind -------------------------------------------------------------------------------------------


def test_the_output_is_an_adapter_on_what_ppo_started_from(world, tokenizer, tmp_path):
    model = role_model(world, "sft", "rm", tokenizer)  # stacked: the SFT adapter is not under the reward model
    trainer = PPOTrainer(model, make_args(tmp_path), make_prompts(tokenizer, 20), processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]) == world["sft"]
    assert not list(tmp_path.glob("*/adapter_model.safetensors"))
    sft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world["base"]), world["sft"])
    trained = PeftModel.from_pretrained(sft.merge_and_unload(), tmp_path)
    torch.testing.assert_close(by_token(model, "policy"), plain_logprobs(trained), rtol=1e-4, atol=1e-4)


def test_qlora(world, tokenizer, tmp_path):
    """The four roles on a base in 4 bits, which training leaves as it is."""
    args = ModelArguments(model_name_or_path=str(world["base"]), use_peft=True, load_in_bits=4, lora_r=4)
    model = load_ppo_model(args, tokenizer, str(world["rm"]))
    assert "reward" not in model.own and model.language_model.is_quantized
    reference, trained = by_token(model, "reference"), weights(model)
    trainer = PPOTrainer(model, make_args(tmp_path), make_prompts(tokenizer, 20), processing_class=tokenizer)
    trainer.train()
    torch.testing.assert_close(by_token(model, "reference"), reference, rtol=0, atol=1e-6)
    assert set(trained) == set(model.trained("policy")) | set(model.trained("value"))
    assert not any(torch.equal(p, trained[name]) for name, p in weights(model).items())


def test_full_training(world, tokenizer, tmp_path):
    """Models of their own: the policy learns, the reference stays, the result loads by itself, resume is exact."""
    model = role_model(world, "sft", "rm_sft", tokenizer, use_peft=False)
    assert set(model.own) == {"reference", "value", "reward"}
    reference = by_token(model, "reference")
    torch.testing.assert_close(by_token(model, "policy"), reference)
    args = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}
    trainer = PPOTrainer(model, make_args(tmp_path, **args), make_prompts(tokenizer, 20), processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    torch.testing.assert_close(by_token(model, "reference"), reference, rtol=0, atol=0)
    assert (by_token(model, "policy") - reference).abs().max() > 1e-3
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(by_token(model, "policy"), plain_logprobs(saved), rtol=1e-4, atol=1e-4)
    again = role_model(world, "sft", "rm_sft", tokenizer, use_peft=False)
    resumed = PPOTrainer(again, make_args(tmp_path, **args), make_prompts(tokenizer, 20), processing_class=tokenizer)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(weights(again), weights(model), rtol=0, atol=1e-6)


def test_full_training_of_tied_embeddings_resumes(tokenizer, tmp_path):
    """A tied head is not in the checkpoint, on which Trainer asks the model a question."""
    base = tmp_path / "tied"
    LlamaForCausalLM(make_config(tie_word_embeddings=True)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    args = make_args(tmp_path / "out", max_steps=4, save_strategy="steps", save_steps=2)
    ended = []
    for checkpoint in (None, str(tmp_path / "out" / "checkpoint-2")):
        model = role_model({"tied": base}, "tied", None, tokenizer, use_peft=False)
        scorer = from_functions([share_of_a])
        trainer = PPOTrainer(model, args, make_prompts(tokenizer, 20), processing_class=tokenizer, scorer=scorer)
        trainer.train(resume_from_checkpoint=checkpoint)
        ended.append(weights(model))
    torch.testing.assert_close(*ended, rtol=0, atol=1e-6)


def test_evaluation_is_repeatable_and_counts_every_held_out_prompt_once(world, tokenizer, tmp_path):
    trainer = make_trainer(world, tokenizer, tmp_path, held_out=5)
    first, again = trainer.evaluate(), trainer.evaluate()
    taken = first.pop("eval_runtime") + again.pop("eval_runtime")
    assert first == again and trainer.evaluation_seconds == pytest.approx(taken, abs=1e-3)
    assert _evaluated_now(trainer)["eval_reward"] == first["eval_reward"]  # the end of a run does not evaluate again
    judged = trainer.experience.judge(list(trainer.eval_dataset), trainer.args.seed, -1, 0)
    assert first["eval_reward"] == pytest.approx(judged.scores.mean().item())
    assert first["eval_response_length"] == pytest.approx(sum(map(len, judged.texts.answers)) / 5)


def test_samples_are_logged(world, tokenizer, tmp_path, caplog):
    caplog.set_level("INFO")
    make_trainer(world, tokenizer, tmp_path, max_steps=12, log_samples_steps=8).train()
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0] * 8 + [8] * 8
    assert set(rows[0]) == {"step", "prompt", "answer", "score"}
    assert "samples at step 8" in caplog.text


# --- scores from outside -------------------------------------------------------------------------------------------


@pytest.fixture
def endpoint():
    """A reward server that counts letters, and remembers what it was sent."""
    seen: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body)
            scores = [len(talk[-1]["content"]) for talk in body["conversations"]]
            reply = {"scores": scores if self.path == "/good" else scores[:-1]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()


def test_scores_from_an_endpoint(endpoint):
    url, seen = endpoint
    talk = [
        {"role": "user", "content": "血压"},
        {"role": "assistant", "content": "?"},
        {"role": "user", "content": "b"},
    ]
    rows = [{"prompt": talk}] * 5
    score = from_endpoint(f"{url}/good", [2], batch_size=2)
    tools = [{"type": "function", "function": {"name": "dose"}}]
    score([{"prompt": talk}, {"prompt": talk, "tools": tools}, {"prompt": talk}], ["", "", ""], [[]] * 3)
    assert [body.get("tools") for body in seen] == [[None, tools], None]
    seen.clear()
    assert score(rows, ["", "x", "xx", "xxx", "高"], [[], [5, 2], [2, 5], [2], [5]]) == [0, 1, 2, 3, 1]
    assert [body["finished"] for body in seen] == [[False, True], [False, True], [False]]
    assert [len(body["conversations"]) for body in seen] == [2, 2, 1]
    assert seen[0]["conversations"][1] == [*talk, {"role": "assistant", "content": "x"}]
    with pytest.raises(ValueError, match="was sent 1 conversations; expected"):
        from_endpoint(f"{url}/bad", [2])(rows[:1], ["x"], [[]])
    with pytest.raises(ValueError, match=r"--reward_url: http://127\.0\.0\.1:9 gave no scores"):
        from_endpoint("http://127.0.0.1:9", [2])(rows[:1], ["x"], [[]])


def test_script_with_a_reward_behind_http(world, tmp_path, endpoint):
    """No role of ours gives scores; the value head starts from nothing."""
    url, seen = endpoint
    data = write_prompts(tmp_path / "train.jsonl", 12)
    run = script_flags(world, data, tmp_path / "out", "--max_steps", "2", "--reward_url", f"{url}/good")
    place = run.index("--reward_model_path")
    summary = ppo_training.main(run[:place] + run[place + 2 :])
    assert summary["steps"] == 2 and (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert all(len(body["finished"]) == len(body["conversations"]) for body in seen) and seen


def test_vllm_switches_are_those_of_grpo():
    """But for what sampling alone does not have: a grammar, and the weights of another sampler's tokens."""
    theirs = {field.name for field in dataclasses.fields(GRPOConfig) if field.name.startswith("vllm_")}
    ours = {field.name for field in dataclasses.fields(PPOConfig) if field.name.startswith("vllm_")}
    others = {name for name in theirs if "importance_sampling" in name or "structured_outputs" in name}
    assert ours == theirs - others


def test_scores_from_functions_are_weighted_and_get_the_gold_columns():
    def gold(completions, answer, **_):
        return [float(talk[0]["content"] == right) for talk, right in zip(completions, answer, strict=True)]

    def unsure(prompts, completion_ids, **_):
        return [
            None if len(ids) > 1 else float(len(prompt)) for prompt, ids in zip(prompts, completion_ids, strict=True)
        ]

    rows = [
        {"prompt": [{}], "answer": "A", "prompt_ids": []},
        {"prompt": [{}, {}, {}], "answer": "B", "prompt_ids": []},
    ]
    assert from_functions([gold, unsure], [10, 1])(rows, ["A", "A"], [[1], [1]]) == [11, 3]
    assert from_functions([gold, unsure])(rows, ["A", "B"], [[1, 2], [1]]) == [1, 4]


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl_estimator": "k2"}, "kl_estimator: expected k1 or k3, got 'k2'"),
        ({"num_ppo_epochs": 0}, "num_ppo_epochs: expected at least 1, got 0"),
        ({"temperature": 0.0}, "temperature: expected more than 0"),
        ({"lam": 1.5}, "lam: expected 0 to 1, got 1.5"),
        ({"target_kl": 500.0}, "target_kl: expected more than 0 and less than --max_kl 100"),
        ({"reward_model_path": "a", "reward_url": "b"}, "reward_model_path and --reward_url are both given"),
    ],
)
def test_wrong_options(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_args(tmp_path, **changes)


def test_a_reward_model_is_no_policy_and_a_policy_is_no_reward_model(world, tokenizer):
    for name in ("rm", "whole"):
        with pytest.raises(ValueError, match="is a reward model"):
            role_model(world, name, "rm", tokenizer)
    for name, kind in (("sft", "CAUSAL_LM"), ("base", "LlamaForCausalLM")):
        with pytest.raises(ValueError, match=f"is no reward model but {kind}: it has no score head"):
            role_model(world, "base", name, tokenizer)
    with pytest.raises(FileNotFoundError, match="holds neither"):
        role_model(world | {"rm": world["base"].parent}, "base", "rm", tokenizer)


def test_a_reward_adapter_that_does_not_fit_is_refused(world, tokenizer, tmp_path):
    """By its fingerprint, or because its weights have no place."""
    rm = make_reward(world["base"], tmp_path / "rm", tokenizer, seed=5)
    (rm / "run_summary.json").write_text(json.dumps({"stage": "reward_modeling", "base_fingerprint": "0123"}))
    with pytest.raises(ValueError, match="is an adapter of another base than"):
        role_model(world | {"rm": rm}, "base", "rm", tokenizer)
    deeper = tmp_path / "deeper"
    LlamaForCausalLM(make_config(num_hidden_layers=3)).save_pretrained(deeper)
    tokenizer.save_pretrained(deeper)
    rm = make_reward(deeper, tmp_path / "rm3", tokenizer, seed=5)
    config = json.loads((rm / "adapter_config.json").read_text())
    (rm / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(world["base"])}))
    with pytest.raises(ValueError, match=r"does not fit .* counterpart"):
        role_model(world | {"rm": rm}, "base", "rm", tokenizer)


def test_a_reward_adapter_on_other_weights_is_refused_where_it_is_loaded_apart(world, tokenizer, tmp_path):
    rm = make_reward(world["base"], tmp_path / "rm", tokenizer, seed=5)
    (rm / "run_summary.json").write_text(json.dumps({"stage": "reward_modeling", "base_fingerprint": "0123"}))
    with pytest.raises(ValueError, match="is an adapter of another base than"):
        RewardModel.load(str(rm))
    (rm / "run_summary.json").write_text(
        json.dumps({"base_fingerprint": fingerprint(load_base(resolve(str(world["base"]))))})
    )
    RewardModel.load(str(rm))


def test_dora_is_not_stacked(world, tokenizer, tmp_path):
    """Its length is that of the weights below it, so those have to be there when it is made."""
    args = ModelArguments(
        model_name_or_path=str(world["sft"]), use_peft=True, use_dora=True, lora_r=4, dtype="float32"
    )
    model = load_ppo_model(args, tokenizer, str(world["rm"]))  # plain LoRA would share the base with rm
    assert "reward" in model.own and not [name for name in model.policy.peft_config if name.startswith("policy_base")]
    trainer = PPOTrainer(model, make_args(tmp_path), make_prompts(tokenizer, 20), processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    trained = load_base(resolve(str(tmp_path)))
    torch.testing.assert_close(by_token(model, "policy"), plain_logprobs(trained), rtol=1e-4, atol=1e-4)


def test_functional_dropout_is_off_too(world, tokenizer):
    policy = fresh_policy(world["base"])
    policy.get_submodule("base_model.model.model.layers.0").dropout = 0.1
    model = shared_roles(policy, tokenizer)
    assert not [m for m in model.modules() if isinstance(getattr(m, "dropout", None), float) and m.dropout]


def test_exactly_one_reward(world, tokenizer, tmp_path):
    model = shared_roles(fresh_policy(world["base"]), tokenizer)
    with pytest.raises(ValueError, match=r"needs one reward .* none given"):
        PPOTrainer(model, make_args(tmp_path), make_prompts(tokenizer, 2), processing_class=tokenizer)


def test_models_that_change_their_logits_after_the_head_are_refused(world, tokenizer):
    policy = fresh_policy(world["base"])
    policy.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match=r"final_logit_softcapping=30"):
        shared_roles(policy, tokenizer)


# --- the script ----------------------------------------------------------------------------------------------------


def write_prompts(file: Path, number: int) -> Path:
    rows = [{"prompt": row["prompt"]} for row in make_prompts(make_tokenizer(), number)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def script_flags(world, data: Path, output: Path, *more: str) -> list[str]:
    flags = {
        "model_name_or_path": world["sft"],
        "reward_model_path": world["rm_sft"],
        "train_file_dir": data,
        "output_dir": output,
        "use_peft": True,
        "dtype": "float32",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_ppo_epochs": 2,
        "max_completion_length": 8,
        "learning_rate": 3e-3,
        "report_to": "none",
        "use_cpu": True,
    }
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))] + list(more)


def test_script(world, tmp_path):
    data = write_prompts(tmp_path / "train.jsonl", 24)
    flags = ("--validation_split_ratio", "0.25", "--max_steps", "3")
    summary = ppo_training.main(script_flags(world, data, tmp_path / "out", *flags))
    assert summary["stage"] == "ppo" and summary["parent"] == str(world["sft"]) and summary["steps"] == 3
    assert summary["data"]["train"] == 18 and summary["tokens_seen"] > 0
    assert {"eval_reward", "eval_kl", "eval_share_with_end"} <= set(summary["metrics"])
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "tokenizer.json", "run_summary.json", "training_args.json"} <= written
    assert "value_model.safetensors" not in written
    load_base(resolve(str(tmp_path / "out")))  # the chain base <- sft <- ppo resolves


@pytest.mark.slow
def test_script_killed_and_resumed_equals_uninterrupted(world, tmp_path):
    data = write_prompts(tmp_path / "train.jsonl", 24)
    more = ["--max_steps", "20", "--save_steps", "3", "--resume_from_checkpoint", "True"]
    ppo_training.main(script_flags(world, data, tmp_path / "whole", *more))
    killed = tmp_path / "killed"
    command = [sys.executable, "ppo_training.py", *script_flags(world, data, killed, *more)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.time() + 240
    while last_complete_checkpoint(killed, 1) is None and time.time() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "run_summary.json").exists()
    summary = ppo_training.main(script_flags(world, data, killed, *more))
    assert summary["resumed_from"] and summary["steps"] == 20
    whole = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    torch.testing.assert_close(load_file(killed / "adapter_model.safetensors"), whole, rtol=0, atol=1e-7)


def ppo_run(world, data: Path, output: Path, *more: str) -> list[str]:
    return ["ppo_training", *script_flags(world, data, output, *more)]


def test_two_ranks_end_with_the_same_weights(world, tmp_path):
    """13 prompts on 2 x 4 places per rollout, 7 held out of which one rank has fewer: nobody waits for anybody."""
    data = write_prompts(tmp_path / "train.jsonl", 20)
    more = ["--max_steps", "3", "--num_mini_batches", "1", "--validation_split_ratio", "0.35"]
    folders = {checkpointing: tmp_path / checkpointing for checkpointing in ("True", "False")}
    under_torchrun(*(ppo_run(world, data, out, *more, "--gradient_checkpointing", on) for on, out in folders.items()))
    start = role_model(world, "sft", "rm_sft", make_tokenizer())
    for out in folders.values():
        ended = torch.load(out / "trained.pt")
        moved = {name: (p - ended[name]).abs().max() for name, p in start.trained("value").items()}
        assert min(moved.values()) > 1e-4
        assert all(tensor.abs().max() > 1e-4 for name, tensor in ended.items() if "lora_B.default" in name)
        summary = json.loads((out / "run_summary.json").read_text())
        assert summary["world_size"] == 2 and summary["data"]["train"] == 13
        assert_evaluated_once(world, data, out, more, summary)


def assert_evaluated_once(world, data: Path, out: Path, flags: list[str], summary: dict) -> None:
    """Of two ranks that answer four of seven prompts each, the last answer of the second does not count."""
    tokenizer = make_tokenizer()
    model = load_ppo_model(ModelArguments(model_name_or_path=str(out), use_peft=True, lora_r=4, dtype="float32"),
                           tokenizer, str(world["rm_sft"]))  # fmt: skip
    _, data_args, config = ppo_training.parse(
        ModelArguments, DataArguments, PPOConfig, argv=script_flags(world, data, out / "again", *flags)
    )
    splits = load_splits(data_args, "prompt", config.seed)
    held_out, _ = tokenize_prompts(splits.validation, Renderer(tokenizer), config, config.max_prompt_length)
    assert len(held_out) == 7
    trainer = PPOTrainer(model, config, held_out, processing_class=tokenizer)
    scores = []
    for rank in (0, 1):
        rows = [held_out[i % 7] for i in range(4 * rank, 4 * rank + 4)]
        scores += trainer.experience.judge(rows, config.seed, -1, rank).scores[: 4 - rank].tolist()
    assert summary["metrics"]["eval_reward"] == pytest.approx(sum(scores) / 7, abs=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_with_more_ranks(world, tmp_path):
    """The checkpoint is amid a rollout, of which the new rank has no part; the KL coefficient is that of the run."""
    data, out = write_prompts(tmp_path / "train.jsonl", 24), tmp_path / "out"
    more = ["--save_steps", "1", "--target_kl", "0.05", "--kl_horizon", "20", "--logging_steps", "1"]
    ppo_training.main(script_flags(world, data, out, *more, "--max_steps", "3"))
    (out / "run_summary.json").unlink()
    two_ranks(ppo_run(world, data, out, *more, "--max_steps", "5", "--resume_from_checkpoint", "True"))
    summary = json.loads((out / "run_summary.json").read_text())
    assert summary["resumed_from"].endswith("checkpoint-3") and summary["steps"] == 5 and summary["world_size"] == 2
    coefs = [torch.load(out / "checkpoint-5" / f"ppo_state_{rank}.pth")["kl_coef"] for rank in (0, 1)]
    assert coefs[0] == coefs[1] != 0.05


def figures(out: Path) -> list[dict]:
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    names = ("reward", "kl", "policy_loss", "value_loss", "clip_fraction", "explained_variance", "grad_norm")
    return [{name: row[name] for name in names if name in row} for row in history if "policy_loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("peft", ["True", "False"])
def test_deepspeed_does_what_ddp_does_and_resumes(world, tmp_path, peft):
    """ZeRO-2 and ZeRO-3 on two gloo ranks: figures and weights of DDP; resumed, those of the uninterrupted run."""
    data = write_prompts(tmp_path / "train.jsonl", 13)
    more = ["--use_peft", peft, "--max_steps", "6", "--learning_rate", "5e-4"]
    ddp, zero2, zero3 = folders = [tmp_path / name for name in ("ddp", "zero2", "zero3")]
    plans = {out: ["--deepspeed", f"{out.name}.json", "--save_steps", "3"] for out in (zero2, zero3)}
    two_ranks(*(ppo_run(world, data, out, *more, *plans.get(out, [])) for out in folders))
    expected = figures(ddp)
    assert len(expected) == 6 and len(expected[2]) == 7
    whole = {out: weights_of(out) for out in folders}
    for out in (zero2, zero3):
        for mine, theirs in zip(figures(out), expected, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
        torch.testing.assert_close(whole[out], whole[ddp], rtol=0, atol=1e-4)
        shutil.rmtree(out / "checkpoint-6")
    resumed = ["--resume_from_checkpoint", "True"]
    two_ranks(*(ppo_run(world, data, out, *more, *plans[out], *resumed) for out in (zero2, zero3)))
    for out in (zero2, zero3):
        assert json.loads((out / "run_summary.json").read_text())["resumed_from"]
        torch.testing.assert_close(weights_of(out), whole[out], rtol=0, atol=1e-6)
        load_base(resolve(str(out)))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


# --- vLLM ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("base", {}),
        ("sft", {}),
        ("base", {"lora_modules_to_save": ["lm_head"]}),
        ("base", {"use_peft": False}),
    ],
)
def test_vllm_gets_the_policy_as_inference_would_load_it(world, tokenizer, tmp_path, policy, options):
    """Names and values, of stacked adapters too ("sft" is not under the reward model); the roles do not change."""
    options = {"use_peft": True, "lora_r": 4, "dtype": "float32"} | options
    model = load_ppo_model(
        ModelArguments(model_name_or_path=str(world[policy]), **options), tokenizer, str(world["rm"])
    )
    generator = torch.Generator().manual_seed(9)
    for parameter in model.trained("policy").values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sent = {name: tensor.clone() for name, tensor in policy_weights(model)}
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    PPOTrainer(model, make_args(tmp_path), make_prompts(tokenizer, 4), processing_class=tokenizer).save_model()
    merged = load_base(resolve(str(tmp_path)))
    torch.testing.assert_close(sent, {name: p.detach() for name, p in merged.named_parameters()})


def test_vllm_takes_the_switches_of_grpo(world, tmp_path, monkeypatch):
    assert set(VLLM) <= set(inspect.signature(VLLMGeneration).parameters)
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(ImportError, match=r"pip install vllm==0\.31\.0"):
            make_args(tmp_path, use_vllm=True)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: find("json" if name == "vllm" else name, *more)
    )
    assert make_args(tmp_path, use_vllm=True, vllm_server_base_url="http://127.0.0.1:8000").vllm_mode == "colocate"
    with pytest.raises(ValueError, match="vllm_mode: expected colocate or server, got 'remote'"):
        make_args(tmp_path, use_vllm=True, vllm_mode="remote")
    data = write_prompts(tmp_path / "train.jsonl", 4)
    with pytest.raises(ValueError, match=r"--use_vllm knows plain LoRA .* not --load_in_bits"):
        ppo_training.main(script_flags(world, data, tmp_path / "out", "--use_vllm", "True", "--load_in_bits", "4"))
