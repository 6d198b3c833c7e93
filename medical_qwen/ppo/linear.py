"""LoRA layers in float32 as one matrix product: (W + Σ s·B·A)·x in place of W·x + s·B·(A·x) (Hu et al., 2106.09685).

PEFT's layer passes over the activations several times more than a layer without an adapter, forward and backward.
With many tokens at once it is cheaper to add the small product to the weight first; where answers are written a token
at a time, to add it once. In lower precisions the sum would round the adapter away; PEFT's way stays there. So it does
under DeepSpeed: ZeRO-3 has a weight only while its own layer runs, and ZeRO-2 lost gradients of these layers.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from transformers.integrations.deepspeed import deepspeed_config

MANY = 64  # tokens; with fewer, to merge costs more than it saves


def merge_on_the_fly(model: nn.Module) -> None:
    """Let the LoRA layers of `model` compute so wherever they can."""
    if deepspeed_config() is not None:
        return
    for layer in model.modules():
        if type(layer) is Linear and type(layer.base_layer) is nn.Linear:
            layer.__class__ = MergedLinear


@contextlib.contextmanager
def kept_merged(model: nn.Module) -> Iterator[None]:
    """Merge the active adapters once, for many passes without gradients. Takes the memory of the adapted weights."""
    layers = [layer for layer in model.modules() if isinstance(layer, MergedLinear)]
    try:
        for layer in layers:
            layer.keep()
        yield
    finally:
        for layer in layers:
            layer.kept = None


class MergedLinear(Linear):
    """PEFT's linear layer with the same parameters and results, up to float32 rounding."""

    kept: Tensor | None = None  # the merged weight, within `kept_merged`

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        weight, bias = self.base_layer.weight, self.base_layer.bias
        plain = x.dtype == torch.float32 and not (args or kwargs or torch.is_autocast_enabled(x.device.type))
        if plain and self.kept is not None:
            return F.linear(x, self.kept, bias)
        if plain and x.numel() >= MANY * x.shape[-1] and self._can_merge():
            return _Merged.apply(x, weight, bias, *self._parts())
        return super().forward(x, *args, **kwargs)

    def keep(self) -> None:
        if self._can_merge():
            scalings, *factors = self._parts()
            self.kept = _merged(self.base_layer.weight, scalings, factors)

    def _active(self) -> list[str]:
        return [name for name in self.active_adapters if name in self.lora_A]

    def _parts(self) -> tuple:
        """The scalings, and A and B of each active adapter."""
        active = self._active()
        factors = [part[name].weight for name in active for part in (self.lora_A, self.lora_B)]
        return [self.scaling[name] for name in active], *factors

    def _can_merge(self) -> bool:
        weight, bias = self.base_layer.weight, self.base_layer.bias
        active = self._active()
        return (
            bool(active)
            and weight.dtype == torch.float32
            and all(self.lora_A[name].weight.dtype == torch.float32 for name in active)
            and not (weight.requires_grad or (bias is not None and bias.requires_grad))
            and not (self.disable_adapters or self.merged or self.fan_in_fan_out)
            and not any(name in self.lora_variant or self.lora_bias[name] for name in active)
            and not any(self.training and getattr(self.lora_dropout[name], "p", 0) for name in active)
        )


class _Merged(torch.autograd.Function):
    """The merged weight is made again in the backward pass: none is kept."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, scalings: list[float], *factors: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, *factors)
        ctx.scalings = scalings
        return F.linear(x, _merged(weight, scalings, factors), bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *factors = ctx.saved_tensors
        given = grad @ _merged(weight, ctx.scalings, factors) if ctx.needs_input_grad[0] else None
        x, grad = x.flatten(0, -2), grad.flatten(0, -2)
        found: list[Tensor | None] = []
        for place, scaling in enumerate(ctx.scalings):
            down, up = factors[2 * place : 2 * place + 2]
            learned = any(ctx.needs_input_grad[4 + 2 * place : 6 + 2 * place])
            found += [(scaling * (grad @ up)).T @ x, grad.T @ (scaling * (x @ down.T))] if learned else [None, None]
        return given, None, None, None, *found


def _merged(weight: Tensor, scalings: list[float], factors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    for place, scaling in enumerate(scalings):
        weight = torch.addmm(weight, factors[2 * place + 1], factors[2 * place], alpha=scaling)
    return weight
