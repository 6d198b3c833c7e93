"""What can be asked of PPO: its own options beside those of `transformers.TrainingArguments`."""

import importlib.util
from dataclasses import dataclass, field, fields, make_dataclass

import torch
from transformers import TrainingArguments
from trl import GRPOConfig

# GRPO's switches for vLLM that PPO has, too, each as `--vllm_NAME`
VLLM = ("mode", "model_impl", "enable_sleep_mode", "server_base_url", "server_host", "server_port", "server_timeout",
        "group_port", "gpu_memory_utilization", "max_model_length", "tensor_parallel_size")  # fmt: skip

VLLMSwitches = make_dataclass(
    "VLLMSwitches",
    [
        (switch.name, switch.type, field(default=switch.default, metadata=switch.metadata))
        for switch in fields(GRPOConfig)
        if switch.name == "use_vllm" or switch.name.removeprefix("vllm_") in VLLM
    ],
)


@dataclass
class PPOConfig(VLLMSwitches, TrainingArguments):
    """Options of `PPOTrainer`.

    In one rollout every rank answers `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches`
    prompts. They are learned from in `num_ppo_epochs` passes of `num_mini_batches` optimizer steps each; `max_steps`,
    `logging_steps`, `eval_steps` and `save_steps` count optimizer steps. A forward pass takes as many texts as have
    room where `per_device_train_batch_size` of the longest would: few long or many short ones, for less padding.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "Of the policy."})
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the value model. Default: --learning_rate."}
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the prompts."})
    logging_steps: float = field(default=1, metadata={"help": "Log every so many optimizer steps."})
    gradient_checkpointing: bool = field(
        default=True, metadata={"help": "Recompute activations in the backward pass: slower, much less memory."}
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "bfloat16 mixed precision. Default: on where the GPU has it."}
    )

    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a model."})
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenize."})

    max_prompt_length: int = field(
        default=1024,
        metadata={"help": "In tokens. A longer prompt loses its oldest turns; history is kept otherwise."},
    )
    max_completion_length: int = field(default=256, metadata={"help": "Length limit of an answer, in tokens."})
    temperature: float = field(
        default=1.0, metadata={"help": "Of sampling; the log-probabilities of the losses are taken at it, too."}
    )
    rollout_batch_size: int = field(
        default=32,
        metadata={"help": "Answers generated at a time, per rank (judged: --per_device_eval_batch_size). Speed only."},
    )

    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each rollout."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps per pass over a rollout."})
    cliprange: float = field(default=0.2, metadata={"help": "Clip range of the policy's probability ratio."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip range of the value's change."})
    vf_coef: float = field(
        default=0.1, metadata={"help": "Weight of the value loss (as against the policy loss = 1)."}
    )
    entropy_coef: float = field(
        default=0.0, metadata={"help": "Weight of the policy's entropy, in nats per token, as a bonus."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalized advantage estimation."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Scale token rewards to variance 1 per rollout."})
    whiten_advantages: bool = field(
        default=True, metadata={"help": "Scale advantages to mean 0, variance 1 per rollout (over all ranks)."}
    )

    kl_coef: float = field(default=0.05, metadata={"help": "Weight of the KL penalty; the start, if it adapts."})
    kl_estimator: str = field(default="k1", metadata={"help": "k1 (unbiased) or k3 (never negative)."})
    target_kl: float | None = field(
        default=None,
        metadata={"help": "Adapt --kl_coef to hold this KL, in nats per answer. Default: --kl_coef is fixed."},
    )
    kl_horizon: float = field(
        default=10_000, metadata={"help": "Answers over which an adapting --kl_coef may change by about a fifth."}
    )
    max_kl: float = field(
        default=100.0, metadata={"help": "Stop when a rollout's mean KL is above this, in nats per answer."}
    )
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken from the score of an answer that is cut at the length limit."}
    )

    reward_model_path: str | None = field(
        default=None, metadata={"help": "Reward checkpoint directory: an adapter (it shares the base) or a model."}
    )
    reward_url: str | None = field(
        default=None,
        metadata={"help": 'HTTP endpoint: POST {"conversations": [...], "finished": [...]} -> {"scores": [...]}.'},
    )
    log_samples_steps: int = field(
        default=50, metadata={"help": "Log a table of prompts, answers and scores every so many steps; 0: never."}
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = not self.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        self.remove_unused_columns = False  # the rows are prompts with gold columns, not model inputs
        self.ddp_find_unused_parameters = True  # a forward pass uses the policy's parameters or the value model's
        super().__post_init__()
        self._check()

    def _check(self) -> None:
        """Refuse what cannot work, before a model loads."""
        for name in ("num_ppo_epochs", "num_mini_batches", "rollout_batch_size", "max_prompt_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("temperature", "max_completion_length", "cliprange", "cliprange_value", "kl_horizon", "max_kl"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name}: expected more than 0, got {getattr(self, name)}")
        if self.entropy_coef < 0:
            raise ValueError(f"--entropy_coef: expected at least 0, got {self.entropy_coef}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name}: expected 0 to 1, got {getattr(self, name)}")
        if self.kl_estimator not in ("k1", "k3"):
            raise ValueError(f"--kl_estimator: expected k1 or k3, got {self.kl_estimator!r}")
        if self.target_kl is not None and not 0 < self.target_kl < self.max_kl:
            raise ValueError(
                f"--target_kl: expected more than 0 and less than --max_kl {self.max_kl:g}, got {self.target_kl:g}"
            )
        if self.reward_model_path and self.reward_url:
            raise ValueError("--reward_model_path and --reward_url are both given: choose one")
        if self.vllm_mode not in ("colocate", "server"):
            raise ValueError(f"--vllm_mode: expected colocate or server, got {self.vllm_mode!r}")
        if self.use_vllm and importlib.util.find_spec("vllm") is None:
            raise ImportError("--use_vllm: the package vllm is missing: pip install vllm==0.31.0")
        if self.fsdp:
            raise ValueError("PPO runs under DDP or DeepSpeed (--deepspeed zero2.json / zero3.json), not under --fsdp")
        if self.auto_find_batch_size:
            raise ValueError("--auto_find_batch_size would change the rollout in mid-run: set the batch size yourself")

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps that learn from one rollout."""
        return self.num_ppo_epochs * self.num_mini_batches

    @property
    def local_rollout_size(self) -> int:
        """Prompts that one rank answers in one rollout."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_mini_batches
