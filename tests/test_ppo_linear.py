"""One product per LoRA layer: the numbers and gradients of PEFT's layer, and PEFT's layer itself where it must be."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import nn

from medical_qwen.ppo import linear
from medical_qwen.ppo.linear import MANY, MergedLinear, kept_merged, merge_on_the_fly


class Two(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 32, bias=bias), nn.Linear(32, 8, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def make(bias: bool = True, dtype: torch.dtype = torch.float32, **settings) -> nn.Module:
    """Two adapters on one base, `below` frozen, both active."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["first", "second"], **settings)
    model = get_peft_model(Two(bias).to(dtype), config, adapter_name="below")
    model.add_adapter("above", LoraConfig(r=6, lora_alpha=3, target_modules=["first", "second"], **settings))
    for layer in lora_layers(model):
        layer._active_adapter = ["below", "above"]
        for name in ("below", "above"):
            nn.init.normal_(layer.lora_B[name].weight, std=0.3)
            for part in (layer.lora_A[name], layer.lora_B[name]):
                part.to(dtype).requires_grad_(name == "above")
    return model


def lora_layers(model: nn.Module) -> list[Linear]:
    return [layer for layer in model.modules() if isinstance(layer, Linear)]


def results(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    output = model(x)
    output.square().sum().backward()
    found = {"output": output.detach(), "x": x.grad}
    return found | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def merges(monkeypatch) -> list[int]:
    """Counts the products that were merged."""
    calls, merged = [], linear._merged
    monkeypatch.setattr(linear, "_merged", lambda *args: calls.append(1) or merged(*args))
    return calls


@pytest.mark.parametrize("bias", [True, False])
def test_numbers_and_gradients_of_peft(bias, merges):
    x = torch.randn(3, 40, 24)
    expected = results(make(bias), x)
    model = make(bias)
    merge_on_the_fly(model)
    assert all(type(layer) is MergedLinear for layer in lora_layers(model))
    torch.testing.assert_close(results(model, x), expected, rtol=1e-4, atol=1e-4)
    assert len(merges) == 4  # two layers, forward and backward
    assert {name.split(".")[-2] for name in expected if "lora" in name} == {"above"}


def test_no_weight_is_kept_for_the_backward_pass():
    kept = []
    model = make()
    merge_on_the_fly(model)
    own = {p.data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(torch.randn(2, MANY, 24, requires_grad=True))
    assert not [t.shape for t in kept if t.data_ptr() not in own and t.shape in ((32, 24), (8, 32))]


CASES = ("few tokens", "dropout", "bfloat16", "autocast", "adapters off", "DoRA", "trained base", "merged for good")


@pytest.mark.parametrize("case", CASES)
def test_where_peft_computes(case, merges):
    settings = {"dropout": {"lora_dropout": 0.5}, "DoRA": {"use_dora": True}}.get(case, {})
    dtype = torch.bfloat16 if case == "bfloat16" else torch.float32
    x = torch.randn(1, MANY - 1 if case == "few tokens" else MANY, 24, dtype=dtype)
    plain, model = (make(dtype=dtype, **settings) for _ in range(2))
    merge_on_the_fly(model)
    for one in (plain, model):
        for layer in lora_layers(one):
            layer._disable_adapters = case == "adapters off"
            layer.base_layer.weight.requires_grad_(case == "trained base")
            if case == "merged for good":
                layer.merge()
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        torch.manual_seed(1)
        expected = plain(x)
        torch.manual_seed(1)
        assert torch.equal(model(x), expected)
    assert not merges


def test_dropout_is_no_matter_in_evaluation(merges):
    model = make(lora_dropout=0.5)
    merge_on_the_fly(model)
    model.eval()(torch.randn(1, MANY, 24))
    assert len(merges) == 2


def test_kept_weights_serve_single_tokens_and_are_forgotten(merges):
    plain, model = make(), make()
    merge_on_the_fly(model)
    x = torch.randn(1, 1, 24)
    with torch.no_grad(), kept_merged(model):
        for _ in range(3):
            torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)
    assert len(merges) == 2  # one a layer
    assert all(layer.kept is None for layer in lora_layers(model))
    for layer in lora_layers(model):
        nn.init.zeros_(layer.lora_B["above"].weight)
    assert not torch.allclose(model(x), plain(x))


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"dtype": torch.bfloat16}], ids=["DoRA", "bfloat16"])
def test_nothing_is_kept_where_peft_computes(settings, merges):
    model = make(**settings)
    merge_on_the_fly(model)
    with torch.no_grad(), kept_merged(model):
        assert all(layer.kept is None for layer in lora_layers(model))


def test_deepspeed_keeps_pefts_layers(monkeypatch):
    monkeypatch.setattr(linear, "deepspeed_config", lambda: {"zero_optimization": {"stage": 2}})
    model = make()
    merge_on_the_fly(model)
    assert all(type(layer) is Linear for layer in lora_layers(model))
