"""tools/merge_peft_adapter.py: chains, tied and resized embeddings, refusal of a merge that changes the model."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_model
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import mixin

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import merge_peft_adapter as tool

from medical_qwen.generation.deployment import deploy
from medical_qwen.lineage import resolve
from medical_qwen.models import attach, load_base, load_tokenizer, save_atomically

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def adapter_on(base: Path, folder: Path, new_tokens: int = 0, **settings) -> torch.Tensor:
    """Save a random adapter on `base` (a model or an adapter directory) and return its unmerged logits."""
    torch.manual_seed(len(folder.name))
    model = load_base(resolve(str(base)))
    tokenizer = load_tokenizer(str(base))
    if new_tokens:
        tokenizer.add_tokens([f"新词{i}" for i in range(new_tokens)])
        model.resize_token_embeddings(len(tokenizer))
    model.name_or_path = str(base)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", **settings))
    for name, weight in adapted.named_parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1 if "lora" in name else 0.5)
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if new_tokens:
        (folder / "run_summary.json").write_text(json.dumps({"embedding_rows": len(tokenizer)}))
    return logits(adapted)


def test_a_chain_is_merged_into_one_model(tiny_model, tmp_path):
    adapter_on(tiny_model, tmp_path / "pt")
    expected = adapter_on(tmp_path / "pt", tmp_path / "sft")
    found = tool.merge(str(tmp_path / "sft"), None, tmp_path / "merged", None, 1e-4)
    assert len(found) == 3 and max(found.values()) < 1e-5
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert (logits(base) - expected).abs().max() > 0.1
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
        == load_tokenizer(str(tiny_model)).chat_template
    )


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_that_grew_survive(tmp_path, tied):
    base = make_tiny_model(tmp_path / "base", tie_word_embeddings=tied)
    modules = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    expected = adapter_on(base, tmp_path / "sft", new_tokens=7, modules_to_save=modules, ensure_weight_tying=tied)
    tool.merge(str(tmp_path / "sft"), None, tmp_path / "merged", None, 1e-4)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert merged.get_input_embeddings().weight.shape[0] == len(AutoTokenizer.from_pretrained(tmp_path / "merged"))
    assert merged.config.tie_word_embeddings is tied
    assert (
        merged.get_input_embeddings().weight.data_ptr() == merged.get_output_embeddings().weight.data_ptr()
    ) is tied
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=0)


def test_a_temperature_without_sampling_is_no_obstacle(tiny_model, tmp_path):
    """vicuna-7b-v1.5 has such settings, which transformers loads and refuses to save."""
    base = shutil.copytree(tiny_model, tmp_path / "base")
    (base / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}')
    adapter_on(base, tmp_path / "sft")
    tool.merge(str(tmp_path / "sft"), None, tmp_path / "merged", None, 1e-4)
    settings = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert (settings["temperature"], settings["do_sample"]) == (0.9, True)
    assert deploy(str(base)).model == str(base)


def test_an_adapter_without_a_tokenizer_goes_on_the_given_base(tiny_model, tmp_path):
    adapter_on(tiny_model, adapter := tmp_path / "adapter")
    for file in adapter.glob("token*"):
        file.unlink()
    (adapter / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/elsewhere"}))
    tool.merge(str(tiny_model), str(adapter), tmp_path / "merged", None, 1e-4)
    assert deploy(str(tiny_model), {"a": str(adapter)}).adapters == {"a": str(adapter)}


def test_an_adapter_comes_with_those_that_it_was_trained_on(tiny_model, tmp_path):
    adapter_on(tiny_model, tmp_path / "pt")
    expected = adapter_on(tmp_path / "pt", tmp_path / "sft")
    adapter_on(tiny_model, tmp_path / "other")
    pt, sft, other = (str(tmp_path / name) for name in ("pt", "sft", "other"))
    for base in (str(tiny_model), pt, sft):
        assert resolve(base, sft).adapters == (pt, sft)
    torch.testing.assert_close(logits(load_base(resolve(str(tiny_model), sft))), expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=f"was trained on .*pt, not on .*other: the base to name is {pt}"):
        resolve(other, sft)
    with pytest.raises(ValueError, match="was trained on"):
        resolve(str(make_tiny_model(tmp_path / "another")), sft)


def test_saving_in_half_precision_is_checked_with_its_own_tolerance(tiny_model, tmp_path):
    adapter_on(tiny_model, tmp_path / "sft")
    found = tool.merge(str(tiny_model), str(tmp_path / "sft"), tmp_path / "merged", "bfloat16", 1e-4)
    assert 1e-4 < found["saved"] < 6e-2
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16


def test_a_merge_that_changes_the_logits_is_refused(tiny_model, tmp_path, monkeypatch):
    """A base that differs from what the adapter runs on after merging, as a broken merge leaves it."""
    adapter_on(tiny_model, tmp_path / "sft")

    def broken(model, path):
        adapted = attach(model, path)
        merge = adapted.merge_and_unload

        def merge_badly():
            merged = merge()
            merged.get_input_embeddings().weight.data[5] += 1
            return merged

        adapted.merge_and_unload = merge_badly
        return adapted

    monkeypatch.setattr(tool, "attach", broken)
    with pytest.raises(ValueError, match="not merged"):
        tool.merge(str(tmp_path / "sft"), None, tmp_path / "merged", None, 1e-4)
    assert not (tmp_path / "merged").exists()


def test_what_cannot_be_merged_is_named(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="nothing to merge"):
        tool.merge(str(tiny_model), None, tmp_path / "merged", None, 1e-4)
    adapter_on(tiny_model, tmp_path / "sft")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        tool.merge(str(tmp_path / "sft"), None, tmp_path / "full", None, 1e-4)


def test_a_reward_model_is_no_language_model(tiny_model, tmp_path):
    adapter_on(tiny_model, tmp_path / "rm")
    settings = json.loads((tmp_path / "rm" / "adapter_config.json").read_text())
    (tmp_path / "rm" / "adapter_config.json").write_text(json.dumps(settings | {"task_type": "SEQ_CLS"}))
    with pytest.raises(ValueError, match="reward model"):
        tool.merge(str(tmp_path / "rm"), None, tmp_path / "merged", None, 1e-4)


def test_a_folder_that_another_process_has_made_meanwhile_stays(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "first").touch()

    class Model:
        def save_pretrained(self, folder):
            folder.mkdir()

    save_atomically(Model(), tmp_path / "made")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["first"]


def test_whichever_rank_is_first_writes_the_merged_copy(tiny_model, tmp_path, monkeypatch):
    """transformers would leave an empty folder on all ranks but the first."""
    monkeypatch.setattr(mixin, "_is_torch_distributed_initialized", lambda: True)
    monkeypatch.setattr(mixin, "_get_torch_distributed_rank", lambda: 1)
    model = load_base(resolve(str(tiny_model)))
    (tmp_path / "made").mkdir()  # as such a rank has left it
    save_atomically(model, tmp_path / "made")
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "made").iterdir()}


def test_a_base_elsewhere_is_taken_for_a_copy_and_that_is_said(tiny_model, tmp_path, caplog):
    """The fingerprint is of the embeddings: a model with something merged in has that of its base."""
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    adapter_on(tiny_model, tmp_path / "sft")
    assert resolve(str(copy), str(tmp_path / "sft")).root == str(copy)
    assert f"was trained on {tiny_model}" in caplog.text and f"{copy} is taken for a copy of it" in caplog.text
    caplog.clear()
    resolve(str(tiny_model), str(tmp_path / "sft"))
    assert not caplog.text


def test_an_adapter_of_another_base_is_refused(tiny_model, tmp_path):
    adapter_on(tiny_model, tmp_path / "sft")
    (tmp_path / "sft" / "run_summary.json").write_text(json.dumps({"base_fingerprint": "0" * 16}))
    with pytest.raises(ValueError, match="another base model"):
        load_base(resolve(str(tiny_model), str(tmp_path / "sft")))
