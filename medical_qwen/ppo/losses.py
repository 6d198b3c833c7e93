"""The arithmetic of PPO on token sequences: pure functions on tensors, each with its equation and its paper.

Shapes: B responses, T token positions. A `mask` is 1 where a response has a token and 0 on the padding behind it;
values outside the mask are ignored and come back as 0. Nothing here knows of models, devices or ranks: where a figure
has to cover all ranks, the caller passes `reduce`, a function that sums a tensor over the ranks.

Where the formulas of the papers leave room, this is what is done here:
* the value after the last token of a response is 0, also for a response that was cut at the length limit;
* the per-token KL penalty is part of the reward (Stiennon et al.), not of the loss;
* the surrogate and the value loss come back per token, so that the caller can average over the tokens of a whole
  mini-batch, whatever its split over accumulation steps and ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Reduce = Callable[[Tensor], Tensor]


def masked_sum(values: Tensor, mask: Tensor, reduce: Reduce | None = None) -> Tensor:
    """Sum of `values` (any shape) where `mask` (same shape) is set. Scalar."""
    total = torch.where(mask.bool(), values, 0).sum()
    return reduce(total) if reduce else total


def masked_mean(values: Tensor, mask: Tensor, reduce: Reduce | None = None) -> Tensor:
    """Mean of `values` where `mask` is set; 0 for an empty mask. Scalar."""
    count = masked_sum(torch.ones_like(values), mask, reduce)
    return masked_sum(values, mask, reduce) / count.clamp(min=1)


def masked_whiten(
    values: Tensor, mask: Tensor, shift_mean: bool = True, reduce: Reduce | None = None, eps: float = 1e-8
) -> Tensor:
    """`values` at variance 1 and, with `shift_mean`, mean 0 over the mask (biased variance); 0 outside the mask.

    x' = (x - mean) / sqrt(variance + eps), as advantages are normalised (Andrychowicz et al., arXiv 2006.05990).
    """
    mean = masked_mean(values, mask, reduce)
    variance = masked_mean((values - mean) ** 2, mask, reduce)
    whitened = (values - mean) * torch.rsqrt(variance + eps)
    return torch.where(mask.bool(), whitened if shift_mean else whitened + mean, 0)


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns by GAE (Schulman et al., arXiv 1506.02438, eq. 16).

        delta_t = r_t + gamma * V(s_{t+1}) - V(s_t)
        A_t     = delta_t + gamma * lam * A_{t+1}
        R_t     = A_t + V(s_t)

    Args:
        rewards, values: (B, T); `values[:, t]` is V of the state in which token t is chosen.
        mask: (B, T), ones first, then zeros.

    Returns:
        advantages (B, T) and returns (B, T), 0 outside the mask.
    """
    on = mask.bool()
    values = torch.where(on, values, 0)
    rewards = torch.where(on, rewards, 0)
    advantages = torch.zeros_like(values)
    following_value = following_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following_advantage = torch.where(on[:, t], delta + gamma * lam * following_advantage, 0)
        following_value = values[:, t]
        advantages[:, t] = following_advantage
    return advantages, advantages + values


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate objective, as a loss (Schulman et al., arXiv 1707.06347, eq. 7).

        rho_t = exp(log pi(a_t|s_t) - log pi_old(a_t|s_t))
        L_t   = -min(rho_t * A_t, clip(rho_t, 1 - eps, 1 + eps) * A_t)

    Args:
        logprobs, old_logprobs, advantages: any one shape. Gradients flow through `logprobs`.

    Returns:
        losses, and where the clip was in force (bool), both of that shape.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(plain, clipped), clipped > plain


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float
) -> tuple[Tensor, Tensor]:
    """Squared error of the value, pessimistic about steps longer than the clip range.

        V_clip = V_old + clip(V - V_old, -eps, eps)
        L_t    = 1/2 * max((V - R)^2, (V_clip - R)^2)

    Source: OpenAI Baselines' PPO2, described in Engstrom et al., arXiv 2005.12729, section 3.

    Returns:
        losses, and where the clip was in force (bool), both of the inputs' shape.
    """
    near = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    return 0.5 * torch.maximum(plain, clipped), clipped > plain


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    """Per-token estimate of KL(pi || pi_ref) from tokens of pi (Schulman, "Approximating KL Divergence", 2020).

        r  = pi_ref(a) / pi(a)
        k1 = -log r               unbiased, may be negative
        k3 = (r - 1) - log r      unbiased, never negative, smaller variance

    Args:
        logprobs, ref_logprobs: any one shape.
        estimator: "k1" or "k3".
    """
    log_ratio = ref_logprobs - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k3":
        return torch.expm1(log_ratio) - log_ratio
    raise ValueError(f"kl_estimator: expected k1 or k3, got {estimator!r}")


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """The reward of every token: the KL penalty everywhere, the response's score at its last token.

        r_t = -beta * kl_t + [t is the last token] * score

    Source: Stiennon et al., arXiv 2009.01325; Ziegler et al., arXiv 1909.08593, eq. 2.

    Args:
        scores: (B,).
        kl: (B, T), from `kl_estimate`.
        mask: (B, T), ones first, then zeros.

    Returns:
        (B, T). A row without tokens gets no score.
    """
    on = mask.bool()
    rewards = torch.where(on, -kl_coef * kl, 0)
    last = on & ~functional.pad(on[:, 1:], (0, 1), value=False)
    return rewards + torch.where(last, scores[:, None].to(rewards.dtype), 0)


def missing_eos_penalty(scores: Tensor, has_end: Tensor, penalty: float) -> Tensor:
    """`scores` (B,) less `penalty` where the response did not end by itself, `has_end` (B,) being false.

        s' = s - penalty * [no end]

    As in TRL. Without it a policy can gain by never stopping; Huang et al., arXiv 2403.17031, give such responses a
    fixed low score instead.
    """
    return scores - penalty * (~has_end.bool()).to(scores.dtype)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, reduce: Reduce | None = None) -> Tensor:
    """Share of the returns' variance that the values explain: 1 - Var(R - V) / Var(R). Scalar.

    1 is a perfect critic, 0 one that is as good as a constant; negative is worse than a constant. 0 if the returns do
    not vary.
    """

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask, reduce)) ** 2, mask, reduce)

    total = variance(returns)
    return torch.where(total > 0, 1 - variance(returns - values) / total.clamp(min=1e-12), 0)


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token, in nats: log p_a = z_a / tau - logsumexp(z / tau).

    Args:
        logits: (..., V), any floating type; computed in float32.
        tokens: (...).

    Returns:
        (...), float32.
    """
    scaled = _scaled(logits, temperature)
    return scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - torch.logsumexp(scaled, dim=-1)


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of each position's distribution, in nats: H = logsumexp(z / tau) - sum_a p_a * z_a / tau.

    PPO's bonus S (Schulman et al., arXiv 1707.06347, eq. 9).

    Args:
        logits: (..., V), any floating type; computed in float32.

    Returns:
        (...), float32.
    """
    scaled = _scaled(logits, temperature)
    return torch.logsumexp(scaled, dim=-1) - (torch.softmax(scaled, dim=-1) * scaled).sum(-1)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.float()
    return logits if temperature == 1.0 else logits / temperature


@dataclass
class KLController:
    """The coefficient of the KL penalty: fixed, or steered towards a target.

        e     = clip(KL / KL_target - 1, -0.2, 0.2)
        beta <- beta * (1 + e * n / horizon)

    Source: Ziegler et al., arXiv 1909.08593, section 2.2 (their K_beta is n / horizon).

    Attributes:
        coef: beta.
        target: wanted KL in nats per response; None keeps `coef` as it is.
        horizon: number of responses over which `coef` can change by about 20 %.
    """

    coef: float
    target: float | None = None
    horizon: float = 10_000.0

    def update(self, kl: float, responses: int) -> None:
        """Take note of the mean KL per response, measured on so many responses."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * responses / self.horizon
