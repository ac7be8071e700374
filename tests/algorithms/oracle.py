"""The formulas as their papers write them: float64, plain loops over tokens and rows, nothing vectorised."""

import math
from collections.abc import Sequence

Rows = Sequence[Sequence[float]]
Masks = Sequence[Sequence[bool]]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def clamp(x: float, low: float, high: float) -> float:
    return max(low, min(high, x))


def gae(rewards: Rows, values: Rows, written: Masks, gamma: float, decay: float) -> tuple[list, list]:
    """Schulman et al. 2016, equation 16, over the tokens that the policy wrote."""
    advantages, returns = [], []
    for row_rewards, row_values, mask in zip(rewards, values, written, strict=True):
        steps = [t for t, own in enumerate(mask) if own]
        row_advantages, row_returns = [0.0] * len(mask), [0.0] * len(mask)
        for i, t in enumerate(steps):
            total = 0.0
            for power, k in enumerate(range(i, len(steps))):
                following = row_values[steps[k + 1]] if k + 1 < len(steps) else 0.0
                delta = row_rewards[steps[k]] + gamma * following - row_values[steps[k]]
                total += (gamma * decay) ** power * delta
            row_advantages[t], row_returns[t] = total, total + row_values[t]
        advantages.append(row_advantages)
        returns.append(row_returns)
    return advantages, returns


def token_rewards(scores: Sequence[float], kl: Rows, written: Masks, coefficient: float) -> list:
    """Ziegler et al. 2019, equation 2, token by token."""
    rewards = []
    for score, row, mask in zip(scores, kl, written, strict=True):
        out = [-coefficient * k if own else 0.0 for k, own in zip(row, mask, strict=True)]
        if any(mask):
            out[max(t for t, own in enumerate(mask) if own)] += score
        rewards.append(out)
    return rewards


def whiten(values: Rows, written: Masks) -> list:
    chosen = [v for row, mask in zip(values, written, strict=True) for v, own in zip(row, mask, strict=True) if own]
    mean = sum(chosen) / len(chosen) if chosen else 0.0
    variance = sum((v - mean) ** 2 for v in chosen) / (len(chosen) - 1) if len(chosen) > 1 else 0.0
    return [
        [(v - mean) / math.sqrt(variance + 1e-8) if own else 0.0 for v, own in zip(row, mask, strict=True)]
        for row, mask in zip(values, written, strict=True)
    ]


def kl(logprob: float, reference: float, estimator: str) -> float:
    """Schulman 2020, "Approximating KL divergence"."""
    d = logprob - reference
    if estimator == "k3":
        d = clamp(d, -20, 20)
        return clamp(math.exp(-d) - 1 + d, -10, 10)
    return {"k1": d, "abs": abs(d), "k2": d * d / 2}[estimator]


def token_weights(mode: str, learned: Masks, constant: float) -> list:
    tokens = sum(sum(mask) for mask in learned)
    filled = sum(any(mask) for mask in learned)
    weights = []
    for mask in learned:
        weight = {
            "token_mean": 1 / max(tokens, 1),
            "token_sum": 1.0,
            "sequence_mean_token_mean": 1 / max(filled, 1) / max(sum(mask), 1),
            "sequence_mean_token_sum": 1 / max(filled, 1),
            "sequence_mean_token_sum_norm": 1 / max(filled, 1) / constant,
        }[mode]
        weights.append([weight if own else 0.0 for own in mask])
    return weights


def clipped(ratio: float, advantage: float, low: float, high: float, dual: float | None) -> float:
    """Schulman et al. 2017, equation 7; Ye et al. 2020, equation 5."""
    loss = -min(ratio * advantage, clamp(ratio, 1 - low, 1 + high) * advantage)
    return min(loss, -dual * advantage) if dual is not None and advantage < 0 else loss


def value_loss(value: float, old: float, target: float, clip: float | None) -> float:
    error = (value - target) ** 2
    if clip is not None:
        error = max(error, (clamp(value, old - clip, old + clip) - target) ** 2)
    return error / 2


def sapo(ratio: float, advantage: float, positive: float, negative: float) -> float:
    tau = positive if advantage > 0 else negative
    return -sigmoid(tau * (ratio - 1)) * 4 / tau * advantage


def group_advantage(kind: str, scores: Sequence[float], groups: Sequence[int], lengths: Sequence[int]) -> list:
    out = []
    for i, score in enumerate(scores):
        members = [j for j in range(len(scores)) if groups[j] == groups[i]]
        own = [scores[j] for j in members]
        mean = sum(own) / len(own)
        if len(own) == 1 or max(own) == min(own):
            out.append(0.0)
        elif kind == "grpo":
            deviation = math.sqrt(sum((s - mean) ** 2 for s in own) / (len(own) - 1))
            out.append((score - mean) / (deviation + 1e-6))
        elif kind == "dr_grpo":
            out.append(score - mean)
        elif kind == "rloo":
            out.append(score - (sum(own) - score) / (len(own) - 1))
        else:
            total = sum(lengths[j] for j in members)
            out.append(score - sum(scores[j] * lengths[j] for j in members) / max(total, 1))
    return out


def ranking(scores: Sequence[float], groups: Sequence[int], ranks: Sequence[int], by_list: bool) -> float:
    """Ouyang et al. 2022, equation 1 (`by_list`); Stiennon et al. 2020 otherwise."""
    lists: dict[int, list[float]] = {}
    for i in range(len(scores)):
        for j in range(len(scores)):
            if groups[i] == groups[j] and ranks[i] < ranks[j]:
                lists.setdefault(groups[i], []).append(-log_sigmoid(scores[i] - scores[j]))
    if not lists:
        return 0.0
    if by_list:
        return sum(sum(own) / len(own) for own in lists.values()) / len(lists)
    every = [loss for own in lists.values() for loss in own]
    return sum(every) / len(every)


def smoothed(x: float, e: float) -> float:
    return -(1 - e) * log_sigmoid(x) - e * log_sigmoid(-x)


def preference(kind: str, c: float, r: float, beta: float, e: float) -> float:
    """c and r as the formula takes them: log-ratios, or log-probabilities if the kind has no reference."""
    x = beta * (c - r)
    match kind:
        case "sigmoid" | "cpo":
            return smoothed(x, e)
        case "ipo":
            return (c - r - 1 / (2 * beta)) ** 2
        case "hinge":
            return max(0.0, 1 - x)
        case "robust":
            return (-(1 - e) * log_sigmoid(x) + e * log_sigmoid(-x)) / (1 - 2 * e)
        case "exo":
            p = sigmoid(x)
            return p * math.log(p / (1 - e)) + (1 - p) * math.log((1 - p) / e)
        case "nca":
            return -log_sigmoid(beta * c) - log_sigmoid(-beta * c) / 2 - log_sigmoid(-beta * r) / 2
        case "bco_pair":
            return -log_sigmoid(beta * c) - log_sigmoid(-beta * r)
        case "sppo":
            return (c - 0.5 / beta) ** 2 + (r + 0.5 / beta) ** 2
        case "apo_zero":
            return 1 - sigmoid(beta * c) + sigmoid(beta * r)
        case "apo_down":
            return sigmoid(beta * c) + 1 - sigmoid(x)
        case "discopop":
            k = sigmoid(x / 0.05)
            return (1 - k) * -log_sigmoid(x) + k * math.exp(-x)
        case "simpo":
            return smoothed(x - 0.5, e)
        case "orpo":
            odds = math.log(math.exp(c) / (1 - math.exp(c))) - math.log(math.exp(r) / (1 - math.exp(r)))
            return -beta * log_sigmoid(odds)
    raise ValueError(kind)


def clip_choice(left: Sequence[float], right: Sequence[float], left_share: float, floor: float) -> float:
    """Christiano et al. 2017, equation 1 and its third remark: rewards of the steps of two clips, and the choice."""
    largest = max(sum(left), sum(right))
    powers = [math.exp(sum(side) - largest) for side in (left, right)]
    chosen = [(1 - floor) * power / sum(powers) + floor / 2 for power in powers]
    return -left_share * math.log(chosen[0]) - (1 - left_share) * math.log(chosen[1])
