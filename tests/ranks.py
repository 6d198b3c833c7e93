"""Stages, one after another, on several ranks.

    torchrun --nproc_per_node 2 tests/ranks.py '[[MODULE, FLAG, …], …]'
    python tests/ranks.py           # reads requests, a line each, and forks ranks for each: imports everything once

Every rank has to end with the same weights, which are left in `--output_dir` as `trained.pt`. New adapters and score
heads start from numbers that depend on their names alone, so that runs under DDP and DeepSpeed can be compared.
"""

import faulthandler
import gc
import importlib
import json
import os
import socket
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


STAGES = ("pretraining", "supervised_finetuning", "reward_modeling", "dpo_training", "grpo_training", "ppo_training")


def serve() -> list[list[str]]:
    """Fork ranks for each request on stdin, {"runs": …, "logs": [file of each rank]}; say which codes they end with.

    Returns in the ranks, with the runs; the server itself ends with its input.
    """
    for stage in (*STAGES, "torch._dynamo"):  # the optimizer would import it in every rank
        importlib.import_module(stage)
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks: dict[int, int] = {}
        for rank, log in enumerate(request["logs"]):
            ranks[os.fork()] = rank
            if 0 in ranks:
                become(rank, len(request["logs"]), port, log)
                return request["runs"]
        codes: dict[int, int] = {}
        while len(codes) < len(ranks):
            process, status = os.wait()
            codes[ranks[process]] = os.waitstatus_to_exitcode(status)
            for other in ranks if codes[ranks[process]] else ():  # it would wait for the other forever
                if ranks[other] not in codes:
                    os.kill(other, 15)
        print(json.dumps({"codes": codes}), flush=True)
    sys.exit()


def become(rank: int, world_size: int, port: int, log: str) -> None:
    """This process as torchrun would have started it."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ |= {name: str(number) for name, number in numbers.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 1)
    os.dup2(target, 2)
    faulthandler.enable()


if __name__ == "__main__":
    for words in json.loads(sys.argv[1]) if sys.argv[1:] else serve():
        run(*words)
        forget()
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # DDP keeps gloo's threads alive beyond the group. In the seconds that an interpreter with torch takes to end, they
    # aborted a rank in 2 of some hundreds of runs, with everything saved; and those seconds are not what is tested.
    os._exit(0)
