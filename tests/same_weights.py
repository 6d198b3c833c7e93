"""Run a stage under torchrun and fail if its ranks do not end with the same weights: same_weights.py MODULE FLAGS…"""

import importlib
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(stage: str, arguments: list[str]) -> None:
    module = importlib.import_module(stage)
    finish = module.finish

    def checked(trainer, **kwargs):
        summary = finish(trainer, **kwargs)
        trained = [p.detach().double().flatten() for p in trainer.model.parameters() if p.requires_grad]
        mine = torch.cat(trained)
        theirs = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(theirs, mine)
        if not all(torch.equal(mine, other) for other in theirs):
            raise RuntimeError("the ranks end with different weights")
        return summary

    module.finish = checked
    module.main(arguments)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
