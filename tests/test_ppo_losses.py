"""PPO's arithmetic, against numbers worked out by hand and against plain Python written from the papers."""

import math
import random

import pytest
import torch

from medical_qwen.ppo import losses

# --- plain Python, one response at a time, no padding --------------------------------------------------------------


def plain_gae(rewards, values, gamma, lam):
    """A_t = sum_k (gamma * lam)^k * delta_{t+k}, straight from the definition (no recursion)."""
    n = len(rewards)
    following = [*values[1:], 0.0]
    delta = [r + gamma * v_next - v for r, v, v_next in zip(rewards, values, following, strict=True)]
    return [sum((gamma * lam) ** k * delta[t + k] for k in range(n - t)) for t in range(n)]


def plain_surrogate(new, old, advantage, eps):
    ratio = math.exp(new - old)
    return -min(ratio * advantage, min(max(ratio, 1 - eps), 1 + eps) * advantage)


def plain_value_loss(value, old, target, eps):
    near = min(max(value, old - eps), old + eps)
    return 0.5 * max((value - target) ** 2, (near - target) ** 2)


def plain_token_rewards(score, kl, beta):
    return [-beta * k for k in kl[:-1]] + [-beta * kl[-1] + score]


def plain_softmax(logits, tau):
    top = max(logits)
    weights = [math.exp((z - top) / tau) for z in logits]
    return [w / sum(weights) for w in weights]


def ragged(rows, longest, seed):
    """Random numbers in rows of random length 1..longest, and the same padded: values with noise behind the mask."""
    dice = random.Random(seed)
    lists = [[dice.gauss(0, 2) for _ in range(dice.randint(1, longest))] for _ in range(rows)]
    lists[0] = [dice.gauss(0, 2) for _ in range(longest)]
    mask = torch.tensor([[float(t < len(row)) for t in range(longest)] for row in lists])
    padded = torch.full((rows, longest), 77.0, dtype=torch.float64)
    for i, row in enumerate(lists):
        padded[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    return lists, padded, mask


def like(lists, seed):
    """Further random numbers in rows of the same lengths, and padded with noise."""
    dice = random.Random(seed)
    other = [[dice.gauss(0, 2) for _ in row] for row in lists]
    padded = torch.full((len(lists), max(map(len, lists))), -55.0, dtype=torch.float64)
    for i, row in enumerate(other):
        padded[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    return other, padded


def assert_rows(tensor, lists, tolerance=1e-9):
    """`tensor` holds the rows of `lists`, and zeros behind them."""
    for i, row in enumerate(lists):
        assert tensor[i, : len(row)].tolist() == pytest.approx(row, rel=tolerance, abs=tolerance)
        assert tensor[i, len(row) :].abs().sum() == 0


SHAPES = [(1, 1, 0), (3, 5, 1), (8, 17, 2), (5, 40, 3)]

# --- GAE -----------------------------------------------------------------------------------------------------------


def test_gae_by_hand():
    # gamma 0.5, lam 0.5. delta_2 = 4 - 1 = 3; delta_1 = 0 + 0.5 - 2 = -1.5; delta_0 = 1 + 1 - 1 = 1
    # A_2 = 3; A_1 = -1.5 + 0.25 * 3 = -0.75; A_0 = 1 + 0.25 * -0.75 = 0.8125
    advantages, returns = losses.generalized_advantages(
        torch.tensor([[1.0, 0.0, 4.0, 9.0]]),
        torch.tensor([[1.0, 2.0, 1.0, 9.0]]),
        torch.tensor([[1, 1, 1, 0]]),
        gamma=0.5,
        lam=0.5,
    )
    assert advantages.tolist() == [[0.8125, -0.75, 3.0, 0.0]]
    assert returns.tolist() == [[1.8125, 1.25, 4.0, 0.0]]


@pytest.mark.parametrize(("rows", "longest", "seed"), SHAPES)
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.0), (1.0, 1.0), (0.7, 0.3)])
def test_gae_is_the_definition(rows, longest, seed, gamma, lam):
    rewards, reward_tensor, mask = ragged(rows, longest, seed)
    values, value_tensor = like(rewards, seed + 100)
    advantages, returns = losses.generalized_advantages(reward_tensor, value_tensor, mask, gamma, lam)
    expected = [plain_gae(r, v, gamma, lam) for r, v in zip(rewards, values, strict=True)]
    assert_rows(advantages, expected)
    assert_rows(returns, [[a + v for a, v in zip(*rows, strict=True)] for rows in zip(expected, values, strict=True)])


def test_gae_with_lambda_one_is_return_minus_value():
    rewards, reward_tensor, mask = ragged(4, 9, 5)
    _, value_tensor = like(rewards, 6)
    _, returns = losses.generalized_advantages(reward_tensor, value_tensor, mask, gamma=1.0, lam=1.0)
    assert_rows(returns, [[sum(row[t:]) for t in range(len(row))] for row in rewards])


# --- the two clipped losses ----------------------------------------------------------------------------------------


def test_surrogate_by_hand():
    # ratios 1.5, 1.5, 0.5, 0.5, 1.1 with eps 0.2: clipped where it would pay to go on (1.5 with A > 0, 0.5 with A < 0)
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    loss, clipped = losses.clipped_surrogate(
        ratio.log(), torch.zeros(5), torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0]), cliprange=0.2
    )
    assert loss.tolist() == pytest.approx([-2.4, 3.0, -1.0, 1.6, -2.2])
    assert clipped.tolist() == [True, False, False, True, False]


def test_surrogate_gradient_is_the_policy_gradient_at_the_old_policy_and_nothing_where_clipped():
    advantages = torch.tensor([0.7, -1.3, 2.0])
    new = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    old = torch.tensor([-1.0, -2.0, -1.5])  # the third has ratio e, clipped
    loss, _ = losses.clipped_surrogate(new, old, advantages, cliprange=0.2)
    loss.sum().backward()
    assert new.grad.tolist() == pytest.approx([-0.7, 1.3, 0.0])


@pytest.mark.parametrize(("rows", "longest", "seed"), SHAPES)
def test_clipped_losses_are_the_definition(rows, longest, seed):
    new, new_tensor, mask = ragged(rows, longest, seed)
    old, old_tensor = like(new, seed + 1)
    target, target_tensor = like(new, seed + 2)
    for function, plain, eps in (
        (losses.clipped_surrogate, plain_surrogate, 0.3),
        (losses.clipped_value_loss, plain_value_loss, 0.5),
    ):
        loss, _ = function(new_tensor, old_tensor, target_tensor, eps)
        expected = [
            [plain(*numbers, eps) for numbers in zip(*rows, strict=True)]
            for rows in zip(new, old, target, strict=True)
        ]
        assert_rows(torch.where(mask.bool(), loss, 0), expected)


def test_value_loss_by_hand():
    # V 2, V_old 1, eps 0.2: V_clip 1.2. R 3: max(1, 3.24) / 2 = 1.62, clipped. R 0: max(4, 1.44) / 2 = 2, not.
    loss, clipped = losses.clipped_value_loss(torch.full((2,), 2.0), torch.ones(2), torch.tensor([3.0, 0.0]), 0.2)
    assert loss.tolist() == pytest.approx([1.62, 2.0])
    assert clipped.tolist() == [True, False]


# --- KL ------------------------------------------------------------------------------------------------------------


def test_kl_by_hand():
    logprobs, reference = torch.tensor([math.log(0.5), math.log(0.2)]), torch.tensor([math.log(0.25), math.log(0.4)])
    assert losses.kl_estimate(logprobs, reference, "k1").tolist() == pytest.approx([math.log(2), -math.log(2)])
    # r = 0.5 and 2: k3 = -0.5 + ln 2 and 1 - ln 2
    assert losses.kl_estimate(logprobs, reference, "k3").tolist() == pytest.approx(
        [math.log(2) - 0.5, 1 - math.log(2)]
    )


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators_have_the_true_kl_as_their_mean(estimator):
    policy = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    reference = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    true = sum(p * math.log(p / q) for p, q in zip(policy.tolist(), reference.tolist(), strict=True))
    estimate = losses.kl_estimate(policy.log(), reference.log(), estimator)
    assert (policy * estimate).sum().item() == pytest.approx(true)
    if estimator == "k3":
        assert (estimate >= 0).all()


def test_kl_estimator_unknown():
    with pytest.raises(ValueError, match="expected k1 or k3, got 'k9'"):
        losses.kl_estimate(torch.zeros(1), torch.zeros(1), "k9")


def test_kl_controller():
    fixed = losses.KLController(0.05)
    fixed.update(1e9, 512)
    assert fixed.coef == 0.05
    steered = losses.KLController(0.2, target=6.0, horizon=10_000)
    steered.update(60.0, 500)  # far above: +20 % of 500 / 10000
    assert steered.coef == pytest.approx(0.2 * 1.01)
    steered.update(6.6, 500)  # 10 % above
    assert steered.coef == pytest.approx(0.2 * 1.01 * 1.005)
    steered.update(-3.0, 1000)  # k1 can be negative: far below
    assert steered.coef == pytest.approx(0.2 * 1.01 * 1.005 * 0.98)


# --- rewards -------------------------------------------------------------------------------------------------------


def test_token_rewards_by_hand():
    rewards = losses.token_rewards(
        scores=torch.tensor([3.0, -1.0, 8.0]),
        kl=torch.tensor([[1.0, 2.0, 4.0], [1.0, 50.0, 50.0], [9.0, 9.0, 9.0]]),
        mask=torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]]),
        kl_coef=0.5,
    )
    assert rewards.tolist() == [[-0.5, -1.0, 1.0], [-1.5, 0.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(("rows", "longest", "seed"), SHAPES)
def test_token_rewards_are_the_definition(rows, longest, seed):
    kl, kl_tensor, mask = ragged(rows, longest, seed)
    scores = [random.Random(i).gauss(0, 1) for i in range(rows)]
    rewards = losses.token_rewards(torch.tensor(scores, dtype=torch.float64), kl_tensor, mask, 0.3)
    assert_rows(rewards, [plain_token_rewards(s, k, 0.3) for s, k in zip(scores, kl, strict=True)])


def test_missing_eos_penalty():
    scores = losses.missing_eos_penalty(torch.tensor([1.0, 1.0]), torch.tensor([True, False]), 2.5)
    assert scores.tolist() == [1.0, -1.5]


# --- statistics ----------------------------------------------------------------------------------------------------


def test_whitening_by_hand():
    """Mean 2, variance 1; what is outside the mask is left out."""
    x, mask = torch.tensor([[1.0, 3.0, 9.0]], dtype=torch.float64), torch.tensor([[True, True, False]])
    whitened = losses.masked_whiten(x, mask)
    assert whitened[0, :2].tolist() == pytest.approx([-1, 1], abs=1e-6)
    kept = losses.masked_whiten(x, mask, shift_mean=False)
    assert kept[0, :2].tolist() == pytest.approx([1, 3], abs=1e-6)


@pytest.mark.parametrize(("rows", "longest", "seed"), SHAPES)
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimates_are_the_definition(rows, longest, seed, estimator):
    policy, ours_padded, mask = ragged(rows, longest, seed)
    reference, theirs_padded = like(policy, seed + 1)
    expected = [
        [a - b if estimator == "k1" else math.exp(b - a) - 1 - (b - a) for a, b in zip(ours, theirs, strict=True)]
        for ours, theirs in zip(policy, reference, strict=True)
    ]
    found = losses.kl_estimate(ours_padded, theirs_padded, estimator)
    assert_rows(torch.where(mask.bool(), found, 0.0), expected)


def test_kl_controller_over_a_run_is_the_definition():
    controller, beta = losses.KLController(0.1, 6.0, 1000), 0.1
    random_ = random.Random(0)
    for _ in range(50):
        kl, answers = random_.uniform(0, 30), random_.randint(1, 300)
        beta = beta + beta * max(-0.2, min(0.2, (kl - 6.0) / 6.0)) * answers / 1000
        controller.update(kl, answers)
        assert controller.coef == pytest.approx(beta)


@pytest.mark.parametrize(("rows", "longest", "seed"), SHAPES[1:])
@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening(rows, longest, seed, shift_mean):
    lists, padded, mask = ragged(rows, longest, seed)
    numbers = [x for row in lists for x in row]
    mean = sum(numbers) / len(numbers)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in numbers) / len(numbers))
    keep = 0 if shift_mean else mean
    whitened = losses.masked_whiten(padded, mask, shift_mean)
    assert_rows(whitened, [[(x - mean) / deviation + keep for x in row] for row in lists], 1e-6)


def test_statistics_over_ranks_are_those_of_all_rows():
    """Two ranks, played by two halves of one batch: `reduce` adds what the other half would send."""
    lists, padded, mask = ragged(6, 11, 9)
    _, targets = like(lists, 10)
    halves = [slice(0, 2), slice(2, 6)]

    def both(function):
        """Run `function` on both halves in lock step, exchanging sums as an all-reduce does."""
        calls = [[], []]
        for _ in range(20):  # each pass knows one more of the other's sums
            results = []
            for rank, half in enumerate(halves):
                sums = []

                def reduce(x, sums=sums, rank=rank):
                    other = calls[1 - rank]
                    sums.append(x)
                    return x + (other[len(sums) - 1] if len(other) >= len(sums) else 0)

                results.append(function(half, reduce))
                calls[rank] = sums
        return results

    whole = losses.masked_whiten(padded, mask)
    for half, result in zip(
        halves, both(lambda half, reduce: losses.masked_whiten(padded[half], mask[half], reduce=reduce)), strict=True
    ):
        torch.testing.assert_close(result, whole[half])
    explained = losses.explained_variance(padded, targets, mask)
    for result in both(
        lambda half, reduce: losses.explained_variance(padded[half], targets[half], mask[half], reduce=reduce)
    ):
        torch.testing.assert_close(result, explained)


def test_explained_variance():
    returns = torch.tensor([[1.0, 2.0, 3.0, 99.0]])
    mask = torch.tensor([[1, 1, 1, 0]])
    assert losses.explained_variance(returns, returns, mask) == 1
    assert losses.explained_variance(torch.full((1, 4), 5.0), returns, mask) == pytest.approx(0, abs=1e-6)
    # V = 0, 4, 3: errors 1, -2, 0 with mean -1/3, variance 14/9; variance of R 2/3; 1 - 7/3
    values = torch.tensor([[0.0, 4.0, 3.0, 0.0]])
    assert losses.explained_variance(values, returns, mask) == pytest.approx(-4 / 3)
    assert losses.explained_variance(values, torch.ones(1, 4), mask) == 0


def test_masked_mean_of_nothing_is_zero_and_ignores_not_a_number_outside():
    assert losses.masked_mean(torch.tensor([float("nan")]), torch.tensor([0])) == 0
    assert losses.masked_mean(torch.tensor([2.0, float("nan")]), torch.tensor([1, 0])) == 2


# --- log-probabilities ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_logprobs_and_entropy_are_the_definition(temperature):
    dice = random.Random(3)
    logits = [[dice.gauss(0, 3) for _ in range(7)] for _ in range(5)]
    tokens = [dice.randrange(7) for _ in range(5)]
    logprobs = losses.token_logprobs(torch.tensor(logits), torch.tensor(tokens), temperature)
    entropy = losses.token_entropy(torch.tensor(logits), temperature)
    for i, row in enumerate(logits):
        p = plain_softmax(row, temperature)
        assert logprobs[i].item() == pytest.approx(math.log(p[tokens[i]]), rel=1e-4)
        assert entropy[i].item() == pytest.approx(-sum(x * math.log(x) for x in p), rel=1e-4)


def test_logprobs_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)]])  # p = 1/4, 3/4
    assert losses.token_logprobs(logits, torch.tensor([1])).item() == pytest.approx(math.log(0.75))
    assert losses.token_entropy(logits).item() == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))


def test_logprobs_of_bfloat16_logits_are_computed_in_float32():
    torch.manual_seed(0)
    logits = torch.randn(4, 1000).bfloat16()
    tokens = torch.tensor([0, 1, 2, 3])
    logprobs = losses.token_logprobs(logits, tokens)
    expected = torch.log_softmax(logits.float(), -1).gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected)
