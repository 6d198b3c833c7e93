"""GRPO (arXiv 2402.03300): reinforcement learning from rewards that can be computed, without a value model.

    python grpo_training.py \\
        --model_name_or_path outputs/sft --train_file_dir data/grpo --reward_funcs choice number repetition \\
        --reward_weights 1 1 0.2 --use_peft True --learning_rate 2e-5 --num_generations 8 \\
        --max_completion_length 256 --output_dir outputs/grpo

    ... --reward_funcs choice format --system_prompt "先在 <think></think> 中思考，再在 <answer></answer> 中回答。"
    ... --reward_module my_rewards.py:brevity         # your own function, in TRL's form
    ... --reward_model_path outputs/rm                # a reward checkpoint
    ... --judge_url http://127.0.0.1:8000/v1 --judge_model Qwen3-8B
    ... --use_vllm True --vllm_mode colocate          # or server: answers by vLLM

Several answers to each prompt are compared with each other only. `medical_qwen/rewards.py` lists the rewards by name;
with several sources the order of `--reward_weights` is functions, modules, reward checkpoint, judge. Records may be
exam questions, questions with a numeric answer (GSM8K), or any with a gold answer. Every option of TRL's `GRPOConfig`
is a flag here too; `bash run_grpo.sh` holds settings that work.
"""

import logging
from dataclasses import dataclass, field

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from medical_qwen.arguments import DataArguments, ModelArguments
from medical_qwen.checkpoints import Resumable
from medical_qwen.lineage import resolve
from medical_qwen.models import load_for_training, same_tokens, tokenizer_for_training, whole_directory
from medical_qwen.records import load_splits
from medical_qwen.rendering import Renderer
from medical_qwen.rewards import REWARDS, Reward, check_gold, load_reward
from medical_qwen.scoring import Judge, RewardModel, without_gaps
from medical_qwen.tokens import SeededOrder, show_rows, tokenize_prompts
from medical_qwen.training import finish, parse, run

logger = logging.getLogger(__name__)

IDLE_GROUPS = 0.7  # share of groups with equal rewards above which a warning is due


@dataclass
class RewardArguments:
    """What an answer is rewarded for."""

    reward_funcs: list[str] = field(
        default_factory=list,
        metadata={"help": f"By name ({', '.join(REWARDS)}), with settings where needed: length(target_length=200)."},
    )
    reward_module: list[str] = field(default_factory=list, metadata={"help": "Your own: my_rewards.py:function."})
    reward_model_path: str | None = field(default=None, metadata={"help": "Directory of a reward checkpoint."})
    judge_url: str | None = field(
        default=None, metadata={"help": "OpenAI-compatible server whose model marks answers: http://host:port/v1."}
    )
    judge_model: str | None = field(default=None, metadata={"help": "Name of the model behind --judge_url."})
    system_prompt: str | None = field(
        default=None, metadata={"help": "For prompts that have no system turn of their own: the form of answers, say."}
    )
    max_prompt_length: int = field(
        default=1024,
        metadata={"help": "In tokens. A longer prompt loses its oldest turns."},
    )

    def __post_init__(self) -> None:
        if bool(self.judge_url) != bool(self.judge_model):
            raise ValueError("--judge_url and --judge_model go together")
        if not (self.reward_funcs or self.reward_module or self.reward_model_path or self.judge_url):
            raise ValueError("no reward: give --reward_funcs, --reward_module, --reward_model_path or --judge_url")


@dataclass
class Config(GRPOConfig):
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenize the prompts."})


class Trainer(Resumable, GRPOTrainer):
    """TRL's trainer. The prompts come tokenized: what is in a text stays text, and the ids are those of inference."""

    def _generate_and_score_completions(self, inputs):
        self._prompt_ids = [row["prompt_ids"] for row in inputs]
        return super()._generate_and_score_completions(inputs)

    def _get_train_sampler(self, *args, **kwargs):
        return SeededOrder(super()._get_train_sampler(*args, **kwargs), self)

    def _tokenize_prompts(self, prompts):
        return self._prompt_ids, None, {}


class IdleGroups(TrainerCallback):
    """Warns when most groups of answers have one and the same reward: they teach nothing."""

    warned = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        idle = (logs or {}).get("frac_reward_zero_std")
        if idle is None:  # a log of something else
            return
        if idle > IDLE_GROUPS and not self.warned:
            logger.warning(
                "step %d: in %.0f %% of the groups all answers have the same reward, nothing is learned from them. "
                "Prompts that are always or never answered right do that: choose others, add a graded reward, raise "
                "--num_generations or --temperature",
                state.global_step,
                100 * idle,
            )
        self.warned = idle > IDLE_GROUPS


def open_with(row: dict, system_prompt: str) -> dict:
    first = [] if row["prompt"][0]["role"] == "system" else [{"role": "system", "content": system_prompt}]
    return {"prompt": [*first, *row["prompt"]]}


def load_rewards(args: RewardArguments, config: GRPOConfig, renderer: Renderer) -> list[Reward]:
    """The reward functions, in the order of `--reward_weights`."""
    prompt = renderer.tokenizer.decode(renderer.prompt([{"role": "user", "content": "?"}])).rstrip()
    begun = {"opened": "<think>"} if prompt.endswith("<think>") else {}
    functions = [load_reward(name, **begun) for name in (*args.reward_funcs, *args.reward_module)]
    count = len(functions) + bool(args.reward_model_path) + bool(args.judge_url)
    if config.reward_weights and len(config.reward_weights) != count:
        raise ValueError(f"--reward_weights: expected one for each of {count} rewards, got {config.reward_weights}")
    if args.reward_model_path:
        model = RewardModel.load(args.reward_model_path, "auto", config.device, config.trust_remote_code)
        functions.append(by_model(model, renderer))
    if args.judge_url:
        functions.append(by_judge(Judge(args.judge_url, args.judge_model)))
    return functions


def by_model(model: RewardModel, renderer: Renderer) -> Reward:
    reads_ids, stops = same_tokens(model.tokenizer, renderer.tokenizer), set(renderer.stop_token_ids)

    def reward_model(prompts, completions, completion_ids, prompt_ids, **columns) -> list[float]:
        if reads_ids:
            return model.score_ids([[*a, *b] for a, b in zip(prompt_ids, completion_ids, strict=True)])
        finished = [bool(ids) and ids[-1] in stops for ids in completion_ids]
        return model.score([[*a, *b] for a, b in zip(prompts, completions, strict=True)], finished=finished)

    return reward_model


def by_judge(the_judge: Judge) -> Reward:
    def judge(prompts, completions, answer=None, **columns) -> list[float | None]:
        questions = ["\n\n".join(turn["content"] for turn in prompt if turn["role"] != "system") for prompt in prompts]
        marks = the_judge.score(questions, [completion[-1]["content"] for completion in completions], answer)
        if unread := marks.count(None):
            logger.warning("the judge gave no mark to %d of %d answers", unread, len(marks))
        return without_gaps(questions, marks)

    return judge


def load_policy(
    args: ModelArguments, config: GRPOConfig, tokenizer: PreTrainedTokenizerBase, stop_ids: list[int]
) -> tuple[PreTrainedModel, object, str]:
    """The policy, the adapter to train on it, and the base that the adapter is to name."""
    model, adapter = load_for_training(args, tokenizer, trust_remote_code=config.trust_remote_code)
    model.generation_config.eos_token_id = stop_ids
    if config.use_vllm:
        config.generation_kwargs = {"stop_token_ids": stop_ids, **(config.generation_kwargs or {})}
    base, lineage = model.name_or_path, resolve(args.model_name_or_path, args.adapter_name_or_path)
    if lineage.adapters and (config.use_vllm or (config.beta and not args.use_peft)):
        # vLLM, and TRL for the reference of full training, read a whole model from a directory.
        source = {"revision": args.model_revision, "trust_remote_code": config.trust_remote_code}
        model.name_or_path = model.config._name_or_path = whole_directory(lineage, tokenizer, **source)
    return model, adapter, base


def main(argv: list[str] | None = None) -> dict:
    model_args, data_args, reward_args, config = parse(
        ModelArguments, DataArguments, RewardArguments, Config, argv=argv
    )
    tokenizer = tokenizer_for_training(model_args, config.trust_remote_code)
    renderer = Renderer(tokenizer)
    rewards = load_rewards(reward_args, config, renderer)
    splits = load_splits(data_args, "prompt", config.seed)
    check_gold(splits.train, reward_args.reward_funcs)

    def tokenized(rows: Dataset | None) -> tuple[Dataset | None, dict]:
        if rows is not None and reward_args.system_prompt:
            prompt = {"system_prompt": reward_args.system_prompt}
            rows = rows.map(open_with, fn_kwargs=prompt, features=rows.features, desc="system prompt")
        return tokenize_prompts(rows, renderer, config, reward_args.max_prompt_length)

    (train, truncation), (held_out, _) = map(tokenized, (splits.train, splits.validation))
    if len(train) < (prompts := config.generation_batch_size // config.num_generations):
        raise ValueError(
            f"{len(train)} prompts are too few for a batch of {config.generation_batch_size} answers, which takes "
            f"{prompts}: lower --per_device_train_batch_size or --gradient_accumulation_steps"
        )
    size, answers = config.per_device_eval_batch_size, config.num_generations_eval or config.num_generations
    if held_out is not None and size * config.world_size % answers:
        raise ValueError(
            f"--per_device_eval_batch_size {size}: on all ranks together expected a multiple of {answers} generations"
        )
    show_rows(train, tokenizer, data_args.show_samples)
    model, adapter, base = load_policy(model_args, config, tokenizer, renderer.stop_token_ids)
    trainer = Trainer(
        model=model,
        reward_funcs=rewards,
        args=config,
        peft_config=adapter,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        callbacks=[IdleGroups()],
    )
    if adapter:
        trainer.model.peft_config["default"].base_model_name_or_path = base
    data = splits.report.as_dict() | {"truncation": truncation}
    return finish(trainer, stage="grpo", parent=model_args.model_name_or_path, data=data)


if __name__ == "__main__":
    run(main)
