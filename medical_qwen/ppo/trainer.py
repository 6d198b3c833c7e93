"""PPO on `transformers.Trainer`: rollouts, and several optimizer steps on each.

Trainer's loop stays as it is, and with it checkpoints, resume, accumulation, trackers, DDP and DeepSpeed. Its data
loader only counts: so many optimizer steps make up a rollout, and which prompts a rollout has is a function of (seed,
number of the rollout, rank). So nothing has to be rewound on resume, every rank has as many batches as the others,
whatever the size of the data set, and a checkpoint in mid-rollout carries the rollout with it.

Where this departs from the textbook:
* the policy's backward pass runs before the value model's forward pass, so that only one graph is alive at a time;
* both losses are averaged over the tokens of a whole mini-batch, all ranks and accumulation steps together;
* dropout is off: the update has to see the network that the rollout saw.
"""

import contextlib
import functools
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast
from datasets import Dataset
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import get_last_checkpoint

from medical_qwen.checkpoints import Resumable
from medical_qwen.ppo import losses
from medical_qwen.ppo.config import PPOConfig
from medical_qwen.ppo.experience import Experience, Judged
from medical_qwen.ppo.roles import POLICY, PPOModel
from medical_qwen.ppo.rollout import Rollout, order
from medical_qwen.ppo.samples import log_samples
from medical_qwen.ppo.scoring import Scorer

logger = logging.getLogger(__name__)

VALUE_FILE = "value_model.safetensors"
UPDATE_FIGURES = ("policy_loss", "value_loss", "clip_fraction", "value_clip_fraction", "approx_kl")


class Diverged(ValueError):
    """The run has left the road: to go on would waste the time."""


class PPOTrainer(Resumable, Trainer):
    """Proximal policy optimisation (Schulman et al., arXiv 1707.06347) of a language model against a reward.

    Args:
        model: the roles.
        args: see `PPOConfig`.
        train_dataset, eval_dataset: rows with `prompt` (messages) and `prompt_ids`; further columns go to the reward.
        processing_class: the policy's tokenizer.
        scorer: where scores come from; None: from the model's reward role.
    """

    def __init__(
        self,
        model: PPOModel,
        args: PPOConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        scorer: Scorer | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if (scorer is None) == (model.score_head is None):
            raise ValueError(
                f"PPO needs one reward (--reward_model_path, --reward_url or reward functions), "
                f"{'none' if scorer is None else 'two'} given"
            )
        if args.n_gpu > 1:
            raise ValueError("PPO on several GPUs runs under torchrun: one process per GPU")
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=lambda rows: {},
            callbacks=callbacks,
        )
        self.experience = Experience(model, args, processing_class, self.accelerator, scorer)
        self.kl_controller = losses.KLController(args.kl_coef, args.target_kl, args.kl_horizon)
        self.tokens_real = self.tokens_padded = 0
        self.evaluation_seconds = 0.0
        self._rollout: Rollout | None = None
        self._micro_step = 0  # within the current optimizer step
        self._sums = torch.zeros(len(UPDATE_FIGURES), device=args.device)
        self._figures: dict[str, list[float]] = defaultdict(list)  # since the last log

    # --- rollouts ------------------------------------------------------------------------------------------------

    @property
    def rollouts_per_epoch(self) -> int:
        return math.ceil(len(self.train_dataset) / (self.args.local_rollout_size * self.args.world_size))

    def get_train_dataloader(self) -> DataLoader:
        steps = self.rollouts_per_epoch * self.args.steps_per_rollout * self.args.gradient_accumulation_steps
        return DataLoader(range(steps), batch_size=1, collate_fn=self.data_collator)

    def num_examples(self, dataloader: DataLoader) -> int:
        return len(self.train_dataset)

    def _prompts(self, number: int) -> list[dict[str, Any]]:
        """This rank's rows in rollout `number`. An epoch's last rollout is filled up from the epoch's beginning."""
        epoch, place = divmod(number, self.rollouts_per_epoch)
        shuffled = order(len(self.train_dataset), self.args.seed, epoch)
        size = self.args.local_rollout_size
        first = (place * self.args.world_size + self.args.process_index) * size
        return [self.train_dataset[shuffled[i % len(shuffled)]] for i in range(first, first + size)]

    def _roll_out(self, number: int) -> None:
        rows = self._prompts(number)
        self._rollout, judged, figures = self.experience.roll_out(number, rows, self.kl_controller.coef)
        self._note(figures | {"kl_coef": self.kl_controller.coef})
        self.kl_controller.update(figures["kl"], len(rows) * self.args.world_size)
        self._show(rows, judged)
        if figures["kl"] > self.args.max_kl:
            raise Diverged(
                f"PPO stopped at step {self.state.global_step}: the KL to the reference is {figures['kl']:.1f} nats "
                f"per answer, more than --max_kl {self.args.max_kl:g}. Lower --learning_rate or --num_ppo_epochs, "
                f"raise --kl_coef or set --target_kl{self._before()}"
            )

    def _show(self, rows: list[dict[str, Any]], judged: Judged) -> None:
        """Samples, when a rollout is the first one at or after a multiple of `log_samples_steps`."""
        every, step = self.args.log_samples_steps, self.state.global_step
        due = every and (step % every < self.args.steps_per_rollout or every <= self.args.steps_per_rollout)
        if due and self.is_world_process_zero():
            prompts = [row["prompt"][-1]["content"] for row in rows]
            file = Path(self.args.output_dir) / "samples.jsonl"
            log_samples(file, step, prompts, judged.words, judged.scores.tolist())

    # --- update --------------------------------------------------------------------------------------------------

    def training_step(
        self, model: torch.nn.Module, inputs: dict, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro-batch: policy forward and backward, then value forward and backward."""
        number, step = divmod(self.state.global_step, self.args.steps_per_rollout)
        if self._rollout is None or self._rollout.number != number:
            self._roll_out(number)
        epoch, part = divmod(step, self.args.num_mini_batches)
        rows = self.experience.mini_batch(number, epoch, part, self._rollout.texts)
        parts = self._rollout.texts.select(rows).batches(self.args.gradient_accumulation_steps)
        share = self.args.world_size / self._rollout.tokens_per_step[epoch, part]
        batch = self._batch([rows[i] for i in parts[self._micro_step]], share)
        if self._micro_step == 0 and is_deepspeed_zero3_enabled():
            # ZeRO-3 forgets the last step's gradients in the first backward pass, but only those that it meets there
            self.model_wrapped.optimizer.grad_partitions_flat_buffer.zero_()
        self._micro_step = (self._micro_step + 1) % self.args.gradient_accumulation_steps

        model.train()
        with self.model.acting("policy"), self._without_sync(model):
            policy_loss = self._policy_loss(model, batch)
            self._backward(policy_loss)
        with self.model.acting("value"):
            value_loss = self._value_loss(model, batch)
            if self._micro_step == 0:
                self._close_step()
            self._backward(value_loss)
        return (policy_loss + value_loss).detach()

    def _batch(self, rows: list[int], share: Tensor) -> dict[str, Tensor]:
        """The texts and the numbers, (N,) each, of all answer tokens of some rows; and the weight of a token."""
        rollout, texts = self._rollout, self._rollout.texts.select(rows)
        mask = rollout.texts.mask(self.args.device)[rows]
        layout = texts.layout(self.processing_class.pad_token_id, self.args.device)
        self.tokens_padded += layout["input_ids"].numel()
        self.tokens_real += sum(len(p) + len(a) for p, a in zip(texts.prompts, texts.answers, strict=True))
        numbers = {
            name: getattr(rollout, name)[rows][mask] for name in ("logprobs", "values", "advantages", "returns")
        }
        return layout | numbers | {"share": share}

    def _policy_loss(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The clipped surrogate less the entropy bonus (Schulman et al., arXiv 1707.06347, eq. 9)."""
        bonus, entropy = self.args.entropy_coef, 0.0
        places = [batch[name] for name in ("input_ids", "rows", "columns", "tokens")]
        with self.accelerator.autocast():
            new = model(*places, temperature=self.args.temperature, with_entropy=bonus > 0)
        if bonus:
            new, entropy = new
        loss, clipped = losses.clipped_surrogate(new, batch["logprobs"], batch["advantages"], self.args.cliprange)
        moved = losses.kl_estimate(batch["logprobs"], new.detach(), "k3")
        self._sums[0] += loss.detach().sum() * batch["share"]
        self._sums[2] += clipped.sum() * batch["share"]
        self._sums[4] += moved.sum() * batch["share"]
        return (loss - bonus * entropy).sum() * batch["share"]

    def _value_loss(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with self.accelerator.autocast():
            new = model(batch["input_ids"], batch["rows"], batch["columns"])
        loss, clipped = losses.clipped_value_loss(new, batch["values"], batch["returns"], self.args.cliprange_value)
        self._sums[1] += loss.detach().sum() * batch["share"]
        self._sums[3] += clipped.sum() * batch["share"]
        return self.args.vf_coef * loss.sum() * batch["share"]

    def _close_step(self) -> None:
        """Figures of a finished mini-batch over all ranks. Every rank sees the same ones, so all stop or none does."""
        figures = (self.experience.sum(self._sums) / self.args.world_size).tolist()
        self._sums = torch.zeros_like(self._sums)
        figures = dict(zip(UPDATE_FIGURES, figures, strict=True))
        if not all(map(math.isfinite, figures.values())):
            raise Diverged(
                f"PPO stopped at step {self.state.global_step}: the loss is not finite "
                f"({', '.join(f'{name} {value:g}' for name, value in figures.items())}). Lower --learning_rate or "
                f"--max_grad_norm{self._before()}"
            )
        self._note(figures)

    def _before(self) -> str:
        """What there is to go back to, for a message."""
        last = get_last_checkpoint(self.args.output_dir)
        return f"; {last} is from before" if last else ""

    def _backward(self, loss: Tensor) -> None:
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))

    @contextlib.contextmanager
    def _without_sync(self, model: torch.nn.Module) -> Iterator[None]:
        """Gradients stay on the rank: the value model's backward pass of the same micro-batch sends both."""
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            with self.accelerator.no_sync(model):
                yield
            return
        state = self.accelerator.gradient_state
        last = state.sync_gradients
        state._set_sync_gradients(False)  # DeepSpeed steps in the backward pass that is marked as the last
        try:
            yield
        finally:
            state._set_sync_gradients(last)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimizer, with a learning rate of its own for the value model."""
        if self.optimizer is None:
            kind, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            decayed = set(self.get_decay_parameter_names(self.model))
            rates = {"policy": self.args.learning_rate, "value": self.args.value_learning_rate}
            groups = [
                {
                    "params": [p for name, p in self.model.trained(part).items() if (name in decayed) == decays],
                    "weight_decay": self.args.weight_decay if decays else 0.0,
                    "lr": self.args.learning_rate if rate is None else rate,
                }
                for part, rate in rates.items()
                for decays in (True, False)
            ]
            self.optimizer = kind([group for group in groups if group["params"]], **kwargs)
        return self.optimizer

    # --- figures -------------------------------------------------------------------------------------------------

    def _note(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._figures[name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's figures and the means of ours since the last log."""
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self._figures.items()}
            self._figures.clear()
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Answer the held-out prompts, always with the same random numbers, and score the answers."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        ranks, rank, started = self.args.world_size, self.args.process_index, time.perf_counter()
        each = math.ceil(len(data) / ranks)  # all ranks do the same work; what is too much is not counted
        rows = [data[i % len(data)] for i in range(rank * each, (rank + 1) * each)]
        counted = min(max(len(data) - rank * each, 0), each)
        judged = self.experience.judge(rows, self.args.seed, -1, rank)
        metrics = {f"{metric_key_prefix}_{name}": x for name, x in self.experience.figures(judged, counted).items()}
        seconds = time.perf_counter() - started
        self.evaluation_seconds += seconds
        metrics[f"{metric_key_prefix}_runtime"] = round(seconds, 4)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: dict) -> int:
        return 0  # Trainer's estimate knows one forward and backward pass per batch, not this

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The policy alone, as any other stage leaves it."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        only = {"selected_adapters": [POLICY]} if isinstance(self.model.policy, PeftModel) else {}
        if state_dict is not None:
            state_dict = {k.removeprefix("policy."): v for k, v in state_dict.items() if k.startswith("policy.")}
        self.model.policy.save_pretrained(folder, state_dict=state_dict, **only)
        self.processing_class.save_pretrained(folder)
        torch.save(self.args, folder / "training_args.bin")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """And the value model, which only training needs. DeepSpeed saves all that is trained, and only that."""
        if self.is_deepspeed_enabled:
            save = self.model_wrapped.save_checkpoint
            self.model_wrapped.save_checkpoint = functools.partial(save, exclude_frozen_parameters=True)
            super()._save_optimizer_and_scheduler(output_dir)
            self.model_wrapped.save_checkpoint = save
            return
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            value = {name: p.detach().contiguous() for name, p in self.model.trained("value").items()}
            save_file(value, Path(output_dir) / VALUE_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        policy = self.model.policy
        if isinstance(policy, PeftModel):
            set_peft_model_state_dict(policy, load_peft_weights(resume_from_checkpoint, device="cpu"), POLICY)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, policy)
        file = Path(resume_from_checkpoint) / VALUE_FILE
        if not file.is_file():
            raise FileNotFoundError(f"{resume_from_checkpoint} is no checkpoint to resume PPO from: no {VALUE_FILE}")
        saved = load_file(file)
        for name, parameter in self.model.trained("value").items():
            parameter.data.copy_(saved[name])

    def _load_best_model(self) -> None:
        """`--load_best_model_at_end`: Trainer would look for one whole model, ours are a policy and a value model."""
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        """And this rank's rollout, if its update is not over, and the KL coefficient."""
        super()._save_rng_state(output_dir)
        done = self.state.global_step % self.args.steps_per_rollout == 0
        rollout = None if done else self._rollout.state_dict()
        state = {"kl_coef": self.kl_controller.coef, "ranks": self.args.world_size, "rollout": rollout}
        torch.save(state, self._state_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        file, ranks = self._state_file(checkpoint), self.args.world_size
        state = torch.load(file, weights_only=True, map_location="cpu") if file.is_file() else {}
        # all ranks do the same: a new rank has no file, and what is left of a rollout is worth nothing to fewer ranks
        fits = torch.tensor(float(state.get("ranks") == ranks), device=self.args.device)
        coef = torch.tensor(state.get("kl_coef", math.nan), dtype=torch.float64, device=self.args.device)
        coef = broadcast(coef, from_process=0).item()
        if math.isfinite(coef):
            self.kl_controller.coef = coef
        if self.experience.sum(fits).item() < ranks:
            logger.warning(
                "%s is not of %d ranks: its rollout is not gone on with, a new one is made", checkpoint, ranks
            )
        elif state["rollout"]:
            self._rollout = Rollout.from_state_dict(state["rollout"], self.args.device)

    def _state_file(self, folder: str) -> Path:
        return Path(folder) / f"ppo_state_{self.args.process_index}.pth"
