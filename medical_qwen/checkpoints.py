"""The checkpoints of a run: which of them is whole, and how a trainer goes on from one."""

import contextlib
import json
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


def last_complete_checkpoint(folder: Path, world_size: int) -> str | None:
    """The newest `checkpoint-N` that was written to its end: a killed run may leave a half one behind."""

    def complete(checkpoint: Path, state: dict) -> bool:
        kept = state.get("stateful_callbacks", {}).get("WrittenBy", {}).get("attributes", {})
        return len(list(checkpoint.glob("rng_state*.pth"))) >= kept.get("ranks", world_size)

    whole = [path for path, state in checkpoints(folder).items() if complete(path, state)]
    return str(max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")))) if whole else None


def checkpoints(folder: Path) -> dict[Path, dict]:
    """Every `checkpoint-N` with a whole trainer_state.json, which the main process writes last."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        if path.name.removeprefix("checkpoint-").isdigit():
            with contextlib.suppress(OSError, ValueError):
                found[path] = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    return found


class WrittenBy(TrainerCallback, ExportableState):
    """Leaves in each checkpoint how many ranks it is of: a run may go on with more of them, or with fewer."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def state(self) -> dict:
        return {"args": {"ranks": self.ranks}, "attributes": {"ranks": self.ranks}}


class Resumable:
    """Mixed into a trainer: a resumed run is the uninterrupted one where Trainer's would differ from it."""

    def _load_from_checkpoint(self, *args, **kwargs):
        """Adapters keep their precision: TRL trains those of quantised models in bfloat16, PEFT loads float32."""
        dtypes = {name: weight.dtype for name, weight in self.model.named_parameters() if weight.requires_grad}
        super()._load_from_checkpoint(*args, **kwargs)
        for name, weight in self.model.named_parameters():
            if name in dtypes:
                weight.data = weight.data.to(dtypes[name])

    def _run_epoch(self, **kwargs):
        """No step beyond the last: Trainer makes one before it looks, when killed between that and its end."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)
