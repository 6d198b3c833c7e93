"""Answers by vLLM (`--use_vllm`), through TRL's engine: in this process (colocate) or on a server.

Unlike those of `rollout`, these answers are no function of the seed: a resumed run goes on, but not bit by bit as the
uninterrupted one would have. The log-probabilities of the losses are the training model's in either case.
"""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from peft.utils.integrations import gather_params_ctx
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl.generation.vllm_generation import VLLMGeneration

from medical_qwen.ppo.config import VLLM, PPOConfig
from medical_qwen.ppo.roles import POLICY, PPOModel
from medical_qwen.ppo.rollout import Texts


class Engine(VLLMGeneration):
    """TRL's engine, which gets the policy's weights without a change to the base that other roles share.

    TRL itself would merge the adapter into the base and take it off again, which in bfloat16 leaves a trace in the
    reference and in the reward model, one more with every rollout.
    """

    def __init__(
        self,
        model: PPOModel,
        config: PPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        stop_ids: list[int],
    ) -> None:
        self._roles, self._stops = model, set(stop_ids)
        switches = {name: getattr(config, f"vllm_{name}") for name in VLLM}
        switches["max_model_length"] = config.vllm_max_model_length or (
            config.max_prompt_length + config.max_completion_length
        )
        super().__init__(
            model.language_model,
            accelerator,
            tokenizer,
            **switches,
            max_num_seqs=config.rollout_batch_size * config.vllm_tensor_parallel_size,
            trust_remote_code=config.trust_remote_code,
            temperature=config.temperature,
            max_completion_length=config.max_completion_length,
            logprobs=None,
            generation_kwargs={"stop_token_ids": stop_ids, "ignore_eos": True},  # ours are all that end an answer
        )

    def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
        return policy_weights(self._roles)

    @torch.no_grad()
    def write_answers(self, prompts: list[list[int]]) -> Texts:
        """Sample one answer to each prompt from the policy as it is now. Every rank calls this."""
        self.sync_weights()
        _, written, *_ = self.generate(prompts, None, num_generations=1)
        answers = [list(answer) for answer in written]
        return Texts(prompts, answers, [answer[-1] in self._stops for answer in answers])


def policy_weights(model: PPOModel) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the policy's weights as of one model without adapters; where they add, it is to a copy.

    Under ZeRO-3 a weight is gathered while it is looked at: every rank has to walk through all of them.
    """
    policy = model.language_model
    with model.acting("policy"):
        for name, parameter in policy.named_parameters():
            path, _, leaf = name.rpartition(".")
            if path.endswith(".base_layer"):
                path = path.removesuffix(".base_layer")
                layer = policy.get_submodule(path)
                active = [adapter for adapter in layer.active_adapters if adapter in layer.scaling]
                with gather_params_ctx(list(layer.parameters()), modifier_rank=None):
                    added = [layer.get_delta_weight(adapter).float() for adapter in active] if leaf == "weight" else []
                    yield f"{path}.{leaf}", (parameter.float() + sum(added)).to(parameter.dtype)
            elif plain := _without_adapters(path, policy):
                with gather_params_ctx(parameter, modifier_rank=None):
                    yield f"{plain}.{leaf}", parameter.data


def _without_adapters(path: str, policy: torch.nn.Module) -> str | None:
    """Where a module lies in a model without adapters; None for what the policy does not use, or adds elsewhere."""
    place, _, kind = path.partition(".modules_to_save.")
    if kind:  # trained in full beside an adapter
        return place if kind == POLICY else None
    place, mark, _ = path.partition(".original_module")
    if mark:
        return None if POLICY in policy.get_submodule(place).modules_to_save else place
    return None if ".lora_" in path else path
