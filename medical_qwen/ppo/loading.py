"""From checkpoint directories to the four roles: who can share a base, and what is loaded beside it."""

import copy
import dataclasses
import itertools
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from medical_qwen.arguments import ModelArguments
from medical_qwen.lineage import Lineage, absolute, is_adapter, read_summary, resolve
from medical_qwen.models import (
    fingerprint,
    load_base,
    load_for_training,
    load_tokenizer,
    same_tokens,
    torch_dtype,
    undivided,
)
from medical_qwen.ppo.roles import POLICY, REWARD, VALUE, PPOModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RewardCheckpoint:
    """A directory left by the reward stage: an adapter with a score head, or a whole model."""

    path: str
    below: Lineage | None  # what its adapter was trained on; None: it is a whole model
    tokenizer: PreTrainedTokenizerBase
    trust_remote_code: bool = False

    @classmethod
    def read(cls, path: str, trust_remote_code: bool = False) -> "RewardCheckpoint":
        """What the directory says of itself; no weights are loaded."""
        file = Path(path) / ("adapter_config.json" if is_adapter(path) else "config.json")
        if not file.is_file():
            raise FileNotFoundError(f"--reward_model_path: {path} holds neither adapter_config.json nor config.json")
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = config.get("task_type") or " ".join(config.get("architectures") or [])
        if kind != "SEQ_CLS" and "SequenceClassification" not in kind:
            raise ValueError(f"--reward_model_path: {path} is no reward model but {kind}: it has no score head")
        tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
        if not is_adapter(path):
            return cls(path, None, tokenizer, trust_remote_code)
        whole = resolve(path)
        return cls(path, Lineage(whole.root, whole.adapters[:-1]), tokenizer, trust_remote_code)

    def score_head(self) -> nn.Linear:
        """The saved head, frozen, in float32."""
        tensors = {}
        for file in sorted(Path(self.path).glob("*.safetensors")):
            with safe_open(file, "pt") as weights:
                names = [name for name in weights.keys() if "score" in name.split(".")]  # noqa: SIM118
                tensors |= {name.rsplit(".", 1)[1]: weights.get_tensor(name).float() for name in names}
        weight = tensors.get("weight")
        if weight is None or weight.shape[0] != 1:
            found = "no score head" if weight is None else f"a score head with {weight.shape[0]} outputs"
            raise ValueError(f"--reward_model_path: {self.path} has {found}; expected `score` with one output")
        head = nn.Linear(weight.shape[1], 1, bias="bias" in tensors)
        head.load_state_dict(tensors)
        return head.requires_grad_(False)

    def attach(self, model: PreTrainedModel | PeftModel) -> PeftModel:
        """`model` with this adapter, frozen, under the name "reward"."""
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        expected, given = read_summary(self.path).get("base_fingerprint"), getattr(base, "base_fingerprint", None)
        if expected and expected != (given or fingerprint(base)):
            raise ValueError(
                f"--reward_model_path: {self.path} is an adapter of another base than {model.name_or_path}"
            )
        config = LoraConfig.from_pretrained(self.path)
        config.task_type, config.inference_mode = "CAUSAL_LM", True
        config.base_model_name_or_path = base.name_or_path
        config.modules_to_save = [m for m in config.modules_to_save or [] if m not in ("score", "classifier")] or None
        if isinstance(model, PeftModel):
            model.add_adapter(REWARD, config)
        else:
            model = get_peft_model(model, config, adapter_name=REWARD)
        weights = load_peft_weights(self.path, device="cpu")
        weights = {name: tensor for name, tensor in weights.items() if "score" not in name.split(".")}
        result = set_peft_model_state_dict(model, weights, adapter_name=REWARD)
        wrong = [*result.unexpected_keys, *(name for name in result.missing_keys if f".{REWARD}." in name)]
        if wrong:
            raise ValueError(
                f"--reward_model_path: {self.path} does not fit {model.name_or_path}: {len(wrong)} weights lack their "
                f"counterpart, the first is {wrong[0]}"
            )
        return model

    def trunk(self, dtype: str) -> PreTrainedModel:
        """The reward model up to its last hidden states, as a model of its own, everything merged."""
        code = {"trust_remote_code": self.trust_remote_code}
        if self.below is not None:
            with undivided():
                return self.attach(load_base(self.below, dtype=dtype, **code)).merge_and_unload().base_model
        model = AutoModelForSequenceClassification.from_pretrained(self.path, dtype=torch_dtype(dtype), **code)
        if not isinstance(getattr(model, "score", None), nn.Linear):
            raise ValueError(
                f"--reward_model_path: {self.path} is a {type(model).__name__}, which has no linear `score` head: "
                "serve it behind --reward_url"
            )
        return model.base_model


def load_ppo_model(
    args: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    reward_path: str | None = None,
    trust_remote_code: bool = False,
) -> PPOModel:
    """The roles of a run: adapters on one base with `--use_peft`, else models of their own."""
    lineage = resolve(args.model_name_or_path, args.adapter_name_or_path)
    reward = RewardCheckpoint.read(reward_path, trust_remote_code) if reward_path else None

    def load(**changes) -> tuple[PreTrainedModel, LoraConfig | None]:
        return load_for_training(dataclasses.replace(args, **changes), tokenizer, trust_remote_code=trust_remote_code)

    if not args.use_peft:
        frozen = str(torch_dtype(args.dtype)).removeprefix("torch.")
        return separate_roles(load()[0], load(dtype=frozen)[0], load()[0], reward, tokenizer)
    share = reward is not None and reward.below is not None and _same(lineage.root, reward.below.root)
    theirs = reward.below.adapters if share else lineage.adapters
    # partitioned weights (ZeRO-3) cannot be merged into: everything is stacked
    common = () if is_deepspeed_zero3_enabled() else _common(lineage.adapters, theirs)
    above, above_reward = lineage.adapters[len(common) :], theirs[len(common) :] if share else ()
    dora = (args.use_dora and above) or (above_reward and _config(reward.path).get("use_dora"))  # it scales its base
    if dora or not all(_stacks(adapter) for adapter in (*above, *above_reward)):
        share, common, above, above_reward = False, lineage.adapters, (), ()
    below = {"model_name_or_path": (lineage.root, *common)[-1], "adapter_name_or_path": None} if above else {}
    policy = get_peft_model(*load(**below))
    policy.peft_config[POLICY].base_model_name_or_path = absolute((lineage.root, *lineage.adapters)[-1])
    return shared_roles(policy, tokenizer, reward, share=share, above=above, above_reward=above_reward)


def _same(a: str, b: str) -> bool:
    return a == b or (Path(a).exists() and Path(a).resolve() == Path(b).resolve())


def _common(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    """The longest common beginning of two chains of adapter directories."""
    return tuple(x for x, _ in itertools.takewhile(lambda pair: _same(*pair), zip(a, b, strict=False)))


def _config(adapter: str) -> dict:
    return json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))


def _stacks(adapter: str) -> bool:
    """Whether an adapter can be active beside others: plain LoRA adds up, trained modules and DoRA do not."""
    config = _config(adapter)
    return config["peft_type"] == "LORA" and not config.get("modules_to_save") and not config.get("use_dora")


def shared_roles(
    policy: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    reward: RewardCheckpoint | None = None,
    *,
    share: bool = False,
    above: tuple[str, ...] = (),
    above_reward: tuple[str, ...] = (),
) -> PPOModel:
    """The roles as adapters on the policy's base.

    Args:
        policy: with its trained adapter, "default".
        share: the reward model is an adapter of this base, too. Otherwise it is loaded as a model of its own.
        above: adapters between the base and the policy; `above_reward`: between the base and the reward adapter.
    """
    stacked = _stack(policy, above, "policy")
    roles = {"policy": (*stacked, POLICY), "reference": stacked, "value": (*stacked, VALUE)}
    own, head, start = {}, None, None
    if reward is not None:
        head = reward.score_head()
    if reward is not None and share:
        stacked = _stack(policy, above_reward, "reward")
        roles |= {"reward": (*stacked, REWARD), "value": (*stacked, VALUE)}
        policy, start = reward.attach(policy), head
    elif reward is not None:
        own["reward"] = reward.trunk("auto").requires_grad_(False)
    _add_value_adapter(policy, like=REWARD if start else POLICY)
    policy.requires_grad_(False)
    policy.set_adapter(POLICY)
    policy.set_requires_grad([POLICY, VALUE], True)
    logger.info(
        "one base: policy and value are adapters, the reference is %s, the reward model is %s",
        " + ".join(("the base", *above)),
        "an adapter" if share else "a model of its own" if own else "elsewhere",
    )
    return PPOModel(policy, roles, own, head, start, *_reading(reward, tokenizer))


def separate_roles(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    value: PreTrainedModel,
    reward: RewardCheckpoint | None,
    tokenizer: PreTrainedTokenizerBase,
) -> PPOModel:
    """Full training: a model of its own for every role. The value model starts from the reward model if it can."""
    own, head, start = {"reference": reference.requires_grad_(False), "value": value.base_model}, None, None
    if reward is not None:
        own["reward"], head = reward.trunk("auto").requires_grad_(False), reward.score_head()
        if same_tokens(reward.tokenizer, tokenizer):
            own["value"], start = reward.trunk("float32"), head
    own["value"].requires_grad_(True)
    logger.info("full training: %d models", 1 + len(own))
    return PPOModel(policy, None, own, head, start, *_reading(reward, tokenizer))


def _stack(model: PeftModel, adapters: tuple[str, ...], owner: str) -> tuple[str, ...]:
    """Load adapters, frozen, under names of their own. Returns the names."""
    names = tuple(f"{owner}_base_{number}" for number in range(len(adapters)))
    for name, adapter in zip(names, adapters, strict=True):
        model.load_adapter(adapter, name, torch_device="cpu")
    return names


def _add_value_adapter(model: PeftModel, like: str) -> None:
    """A second trained adapter. Like the reward adapter it also starts from its weights, else from nothing.

    The critic starts from the reward model as in Ouyang et al., arXiv 2203.02155, appendix C.4.
    """
    config = copy.deepcopy(model.peft_config[like])
    config.inference_mode, config.modules_to_save = False, None
    model.add_adapter(VALUE, config)
    if like == REWARD:
        weights = get_peft_model_state_dict(model, adapter_name=REWARD)
        set_peft_model_state_dict(model, weights, adapter_name=VALUE)


def _reading(
    reward: RewardCheckpoint | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedTokenizerBase | None, int | None]:
    """The reward model's tokenizer, if it differs from the policy's, and its pad token."""
    if reward is None:
        return None, None
    return None if same_tokens(reward.tokenizer, tokenizer) else reward.tokenizer, reward.tokenizer.pad_token_id
