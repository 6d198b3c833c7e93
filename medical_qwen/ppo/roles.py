"""The four roles of PPO - policy, value, reference, reward - on one base wherever that is possible.

With LoRA the roles are adapters on one frozen base, and playing a role means switching adapters:

    policy      the trained adapter
    value       a second trained adapter and a scalar head
    reference   the checkpoint that PPO started from: the trained adapters are off
    reward      the frozen adapter and score head of a reward checkpoint

In full training every role is a model of its own. `loading` builds either from checkpoint directories.
"""

import contextlib
from collections.abc import Iterator

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from medical_qwen.ppo.linear import merge_on_the_fly
from medical_qwen.ppo.losses import token_entropy, token_logprobs

POLICY, VALUE, REWARD = "default", "ppo_value", "ppo_reward"  # adapter names
LOGITS_AT_A_TIME = 2**25  # logits held in float32 at once: 128 MiB


class PPOModel(nn.Module):
    """What PPO trains (policy, value model) and what it consults (reference, reward model), in one module.

    One module, so that DDP and DeepSpeed wrap it once. A role is played inside `with model.acting(role):`, the
    backward pass included: gradient checkpointing runs the layers again there and has to meet the same adapters.
    """

    _keys_to_ignore_on_save = None  # asked for by Trainer where a tied weight is missing in a checkpoint

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        adapters: dict[str, tuple[str, ...]] | None = None,
        own: dict[str, PreTrainedModel] | None = None,
        score_head: nn.Linear | None = None,
        value_start: nn.Linear | None = None,
        reward_tokenizer: PreTrainedTokenizerBase | None = None,
        reward_pad_id: int | None = None,
    ) -> None:
        """
        Args:
            policy: the causal language model; a `PeftModel` holds the adapters of the roles that share its base.
            adapters: role -> adapters that are active in it, for the roles on the policy's base.
            own: role -> model of its own, for the others.
            score_head: of the reward model. None: scores come from elsewhere.
            value_start: what the value head starts from; None: from zero.
            reward_tokenizer: when the reward model reads other tokens than the policy writes.
            reward_pad_id: the reward model scores at the last token that is not this one.
        """
        super().__init__()
        self.policy = policy
        self.own = nn.ModuleDict(own or {})
        self.score_head = score_head
        self.reward_tokenizer, self.reward_pad_id = reward_tokenizer, reward_pad_id
        self.value_head = nn.Linear(self.model("value").config.hidden_size, 1, bias=False)
        nn.init.zeros_(self.value_head.weight)
        if value_start is not None:
            self.value_head.weight.data.copy_(value_start.weight)
        self.role: str | None = None
        self._adapters = adapters or {}
        self._switches = [m for m in policy.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
        _refuse_changed_logits(policy.config)
        _disable_dropout(self)
        merge_on_the_fly(policy)

    @property
    def language_model(self) -> PreTrainedModel:
        """The policy's causal language model, its adapter layers in place."""
        return self.policy.get_base_model() if isinstance(self.policy, PeftModel) else self.policy

    def get_base_model(self) -> PreTrainedModel:
        return self.language_model

    @property
    def config(self):
        return self.language_model.config

    def model(self, role: str) -> PreTrainedModel:
        """The transformers model that plays `role`; which adapters are on is for `acting` to say."""
        return self.own[role] if role in self.own else self.language_model  # noqa: SIM401  a ModuleDict has no get

    @contextlib.contextmanager
    def acting(self, role: str) -> Iterator["PPOModel"]:
        """Play `role` until the block ends.

        PEFT's own `set_adapter` also freezes and unfreezes parameters, which an optimizer and DDP must not see: this
        only says which adapters add to the layers' outputs.
        """
        names = self._adapters.get(role, ())
        before = [(layer._active_adapter, layer._disable_adapters) for layer in self._switches]
        for layer in self._switches:
            here = names if isinstance(layer, BaseTunerLayer) else [name for name in names if name in layer._adapters]
            layer._active_adapter, layer._disable_adapters = list(here), not here
        role_before, self.role = self.role, role
        try:
            yield self
        finally:
            self.role = role_before
            for layer, (active, disabled) in zip(self._switches, before, strict=True):
                layer._active_adapter, layer._disable_adapters = active, disabled

    def forward(
        self,
        input_ids: Tensor,
        rows: Tensor,
        columns: Tensor,
        tokens: Tensor | None = None,
        temperature: float = 1.0,
        with_entropy: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What the acting role says about N positions of a batch of texts.

        Args:
            input_ids: (B, T), padded on the right. No attention mask: under causal attention nothing that is asked for
                sees the padding, and without a mask the fastest attention kernels can be used.
            rows, columns: (N,), the positions.
            tokens: (N,), policy and reference: the token that follows each position.

        Returns:
            policy, reference: log-probabilities (N,) of `tokens`; with_entropy: and the entropies (N,).
            value, reward: numbers (N,).
        """
        trunk = self.model(self.role).base_model
        hidden = trunk(input_ids=input_ids, use_cache=False).last_hidden_state[rows, columns]
        if self.role in ("value", "reward"):
            head = self.value_head if self.role == "value" else self.score_head
            with torch.autocast(hidden.device.type, enabled=False):  # one small product: worth full precision
                return head(hidden.to(head.weight.dtype)).squeeze(-1).float()
        return self._logprobs(hidden, tokens, temperature, with_entropy)

    def _logprobs(
        self, hidden: Tensor, tokens: Tensor, temperature: float, with_entropy: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        """From hidden states (N, H), in pieces: logits are never all there, nor kept for the backward pass."""
        head = self.model(self.role).get_output_embeddings()

        def piece(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
            logits = head(hidden)
            entropy = (token_entropy(logits, temperature),) if with_entropy else ()
            return token_logprobs(logits, tokens, temperature), *entropy

        size = max(1, LOGITS_AT_A_TIME // self.config.vocab_size)
        pieces = list(zip(hidden.split(size), tokens.split(size), strict=True))
        if torch.is_grad_enabled() and len(pieces) > 1:
            results = [checkpoint(piece, *inputs, use_reentrant=False) for inputs in pieces]
        else:
            results = [piece(*inputs) for inputs in pieces]
        joined = tuple(torch.cat(parts) for parts in zip(*results, strict=True))
        return joined if with_entropy else joined[0]

    def gradient_checkpointing_enable(self, **kwargs) -> None:
        self.language_model.gradient_checkpointing_enable(**kwargs)
        if "value" in self.own:
            self.own["value"].gradient_checkpointing_enable(**kwargs)

    def trained(self, part: str) -> dict[str, nn.Parameter]:
        """Name -> trained parameter of the "policy" or of the "value" model."""
        found = {name: p for name, p in self.named_parameters() if p.requires_grad}
        value = {n for n in found if n.startswith(("value_head.", "own.value.")) or f".{VALUE}." in n}
        return {name: p for name, p in found.items() if (name in value) == (part == "value")}

    def load_state_dict(self, state_dict: dict, strict: bool = True, assign: bool = False):
        """Frozen weights may be missing: checkpoints hold what is trained."""
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        missing = trained.intersection(result.missing_keys)
        if strict and (missing or result.unexpected_keys):
            raise RuntimeError(f"checkpoint lacks {sorted(missing)[:5]}, has unknown {result.unexpected_keys[:5]}")
        return result


def _refuse_changed_logits(config) -> None:
    """Log-probabilities are computed from the head's output: refuse models that change their logits after it."""
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(
                f"PPO does not know models that change their logits after the head: {config.model_type} has "
                f"{name}={getattr(config, name)}"
            )


def _disable_dropout(model: nn.Module) -> None:
    """The update has to see the network that the rollout saw."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "hidden_dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(module, name, None), float):  # for torch.nn.functional.dropout
                setattr(module, name, 0.0)
