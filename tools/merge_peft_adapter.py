"""Merge an adapter, or a chain of adapters, into one model directory that needs no PEFT to load.

    python tools/merge_peft_adapter.py --model outputs/sft --output_dir outputs/sft-merged
    python tools/merge_peft_adapter.py --model Qwen/Qwen3-0.6B --adapter outputs/sft --output_dir outputs/sft-merged

Merging happens in float32. The logits on a probe text are compared before and after each merge and again after the
saved model was read back; a difference above the tolerance stops the tool, and nothing is left behind.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import AutoConfig, AutoModelForCausalLM

from medical_qwen.lineage import refuse_reward_model, resolve
from medical_qwen.models import attach, choose_tokenizer, fit_embeddings, load_base, load_tokenizer, torch_dtype
from medical_qwen.training import run

PROBE = "患者，男，58岁，反复胸闷、气短三年，加重一周。 The patient denies fever. 血压 150/95 mmHg。"
ROUNDING = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}  # of saving in this precision


@torch.no_grad()
def logits_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """float32 logits of the probe, shape (tokens, vocabulary)."""
    return model.eval()(ids).logits[0].float()


def difference(before: torch.Tensor, after: torch.Tensor) -> float:
    """Relative: the norm of the change over the norm of the logits."""
    width = min(before.shape[-1], after.shape[-1])
    return ((before[:, :width] - after[:, :width]).norm() / before[:, :width].norm()).item()


def merge(model_path: str, adapter: str | None, output: Path, dtype: str | None, tolerance: float) -> dict[str, float]:
    """Merge and save. Returns the relative logit difference of each merge and of the saved model.

    Raises:
        ValueError: there is nothing to merge, `output` is not empty, or a difference is above its tolerance.
    """
    lineage = resolve(model_path, adapter)
    if not lineage.adapters:
        raise ValueError(f"{model_path} is not an adapter and no --adapter is given: there is nothing to merge")
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"--output_dir {output} is not empty")
    for path in lineage.adapters:
        refuse_reward_model(path)
    tokenizer = load_tokenizer(choose_tokenizer(model_path, lineage.adapters[-1], None))
    ids = tokenizer(PROBE, return_tensors="pt", add_special_tokens=False).input_ids
    model = load_base(type(lineage)(lineage.root), dtype="float32")
    differences = {}
    for path in lineage.adapters:
        with_adapter = attach(model, path)
        before = logits_of(with_adapter, ids)
        model = with_adapter.merge_and_unload()
        differences[path] = difference(before, logits_of(model, ids))
        _check(path, differences[path], tolerance)
    fit_embeddings(model, tokenizer)
    saved_in = torch_dtype(dtype) if dtype else _stored_dtype(lineage.root)
    before = logits_of(model, ids)
    model = model.to(saved_in)
    model.config.dtype = saved_in
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        whole = Path(folder) / "model"
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        read_back = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
        differences["saved"] = difference(before, logits_of(read_back, ids))
        _check(f"saving in {saved_in}", differences["saved"], max(tolerance, ROUNDING[saved_in]))
        if output.exists():
            output.rmdir()
        whole.rename(output)
    return differences


def _check(what: str, found: float, tolerance: float) -> None:
    if not found <= tolerance:  # NaN fails too
        raise ValueError(f"{what}: the logits change by {found:.2e} (relative), more than {tolerance:.0e}: not merged")


def _stored_dtype(root: str) -> torch.dtype:
    return AutoConfig.from_pretrained(root).dtype or torch.float32


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", "--base_model", required=True, help="adapter directory, or the base of --adapter")
    parser.add_argument("--adapter", "--lora_model", help="adapter on --model, when that is a base")
    parser.add_argument("--output_dir", required=True, type=Path, help="a folder that does not exist or is empty")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: as the base is stored")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest relative change of the logits")
    args = parser.parse_args(argv)
    for what, found in merge(args.model, args.adapter, args.output_dir, args.dtype, args.tolerance).items():
        print(f"{found:.2e}  relative change of the logits: {what}")
    print(f"merged model: {args.output_dir}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    run(main)
