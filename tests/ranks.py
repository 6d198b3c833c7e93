"""Stages, one after another, on the ranks of torchrun: ranks.py '[[MODULE, FLAG, …], …]'.

Every rank has to end with the same weights, which are left in `--output_dir` as `trained.pt`. New adapters and score
heads start from numbers that depend on their names alone, so that runs under DDP and DeepSpeed can be compared.
"""

import importlib
import json
import os
import sys
from pathlib import Path
from zlib import crc32

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from peft.utils.integrations import gather_params_ctx
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def same_start(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("lora_A.default" in name or "score." in name):
            with gather_params_ctx(parameter):
                parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(crc32(name.encode())))


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with gather_params_ctx(parameter, modifier_rank=None):
                found[name] = parameter.detach().clone()
    return found


def run(stage: str, *arguments: str) -> None:
    module = importlib.import_module(stage)
    finish = module.finish

    def checked(trainer, **kwargs):
        same_start(trainer.model)
        summary = finish(trainer, **kwargs)
        weights = trained(trainer.model)
        mine = torch.cat([tensor.double().flatten() for tensor in weights.values()])
        theirs = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(theirs, mine)
        if not all(torch.equal(mine, other) for other in theirs):
            raise RuntimeError("the ranks end with different weights")
        if trainer.is_world_process_zero():
            torch.save(weights, Path(trainer.args.output_dir) / "trained.pt")
        return summary

    module.finish = checked
    try:
        module.main(list(arguments))
    finally:
        module.finish = finish


def forget() -> None:
    """What accelerate and transformers remember of the last run, so that the next may be of another kind."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    unset_hf_deepspeed_config()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)


if __name__ == "__main__":
    for words in json.loads(sys.argv[1]):
        run(*words)
        forget()
    dist.barrier()
    dist.destroy_process_group()
