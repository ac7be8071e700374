"""Golden cases: numbers that established systems computed, and which of their conventions are ours."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"

NO_BOOTSTRAP_IN_GAPS = "tokens that the policy did not write would decay and bootstrap; ours are skipped"
WHITENED_BY_ROW = "whitening row by row takes away what distinguishes one response from another"
ONE_AFTER_LAST = "the score would stand on padding, one place after the last written token"
RAW_SINGLETON = "a group of one has nothing to compare with; its raw score would be a large biased advantage"
CLAMPED_EVERYWHERE = "a clamp of k1 and k2 biases the penalty; only k3, which is exponential, is clamped"
TOKEN_WISE = "our reward and cost models score the last token; its loss would also train on padding of the shorter text"

NOT_OFFERED: dict[str, dict[str, str]] = {
    # Cases of these conventions whose rows have no gaps agree with ours, and are compared.
    "gae": {
        "gaps_zero_convention": NO_BOOTSTRAP_IN_GAPS,
        "length_adaptive_lambda": "VAPO's lambda for each length comes with a second lambda for the critic's returns",
    },
    "masked_stats": dict.fromkeys(("padded_biased_row", "gaps_biased_row", "full_biased_row"), WHITENED_BY_ROW),
    "kl_estimators": {
        **{f"extreme_{kind}_{peer}": CLAMPED_EVERYWHERE for kind in ("k1", "k2") for peer in ("nemo", "openrlhf")},
        "extreme_k3_openrlhf": "output clamp without an input clamp; the exponential can overflow before it",
        "extreme_low_var_kl_slime": "output clamp without an input clamp; the exponential can overflow before it",
    },
    "token_rewards": {"dschat_one_after_last": ONE_AFTER_LAST, "trl_one_after_last": ONE_AFTER_LAST},
    "explained_variance": {"verl": "1e-5 added to the variance shrinks the result for small returns"},
    "group_advantages": {
        "grpo_leave_one_out": "unbounded where all other scores agree, and unscaled where they agree exactly",
        "ragged_grpo": RAW_SINGLETON,
        "ragged_rloo_singleton_raw": RAW_SINGLETON,
        "rloo_batch_normalised": "`whiten_advantages` does the same over tokens, for every estimator",
    },
    "reinforce_pp": {
        "gaps_discounted_openrlhf": NO_BOOTSTRAP_IN_GAPS,
        "gaps_skyrl": "the return would restart at each gap, so the score would not reach earlier turns",
    },
    "dpo_losses": {"wpo": "needs the sum of squared probabilities of each token, which the model does not compute"},
    "kto": {"paired_in_batch_kl": "gradients would flow through the baseline, which KTO takes as a constant"},
    "is_weights": {"opsm": "drops answers left far behind; max_staleness bounds their age, and target_kl ends a step"},
    "overlong_shaping": dict.fromkeys(
        ("stop_properly_0.3", "stop_properly_0.0", "stop_properly_-0.5"), "missing_eos_penalty is for the same answers"
    ),
    "policy_loss_ppo": {"reinforce_no_ratio": "with one update on each batch the clipped loss has its gradient"},
    "reward_model": {"token_wise": TOKEN_WISE},
    "safe_rlhf_cost": {"token_wise": TOKEN_WISE},
}


@dataclass(frozen=True)
class Case:
    name: str
    inputs: dict[str, Any]
    params: dict[str, Any]
    expected: dict[str, Any]
    rtol: float
    atol: float

    def flat(self, name: str, grad: bool = False) -> Tensor:
        """An input as one float64 vector, rows end to end, padding included."""
        return torch.tensor(self.inputs[name], dtype=torch.float64).reshape(-1).requires_grad_(grad)

    @property
    def shape(self) -> tuple[int, int]:
        matrix = next(v for v in self.inputs.values() if isinstance(v, list) and isinstance(v[0], list))
        return len(matrix), len(matrix[0])

    @property
    def mask(self) -> Tensor:
        """Tokens that count; padding and gaps look the same to us."""
        if "mask" not in self.inputs:
            return torch.ones(self.shape, dtype=torch.bool).reshape(-1)
        return self.flat("mask").bool()

    @property
    def offsets(self) -> Tensor:
        rows, length = self.shape
        return torch.arange(0, rows * length + 1, length)

    @property
    def rows(self) -> Tensor:
        rows, length = self.shape
        return torch.arange(rows).repeat_interleave(length)

    def check(self, key: str, actual: Tensor, mask: Tensor | None = None) -> None:
        """Compare with `expected[key]` where the mask is true; the result must be finite there."""
        expected = torch.tensor(self.expected[key], dtype=torch.float64).reshape(-1)
        actual = actual.detach().double().reshape(-1)
        if mask is not None:
            expected, actual = expected[mask], actual[mask]
        torch.testing.assert_close(actual, expected, rtol=self.rtol, atol=self.atol, msg=lambda m: f"{key}: {m}")


@cache
def all_cases(file: str) -> dict[str, Case]:
    data = json.loads((GOLDEN / f"{file}.json").read_text(encoding="utf-8"))
    return {
        case["name"]: Case(
            case["name"],
            case["inputs"],
            case["params"],
            case["expected"],
            **{key: {**data["tolerance"], **case.get("tolerance", {})}[key] for key in ("rtol", "atol")},
        )
        for case in data["cases"]
    }


def golden(file: str, *names: str) -> Callable:
    """Run a test on every offered case of a file, or on the named ones."""
    offered = {name: case for name, case in all_cases(file).items() if name not in NOT_OFFERED.get(file, {})}
    chosen = [offered[name] for name in names] if names else list(offered.values())
    return pytest.mark.parametrize("case", chosen, ids=[case.name for case in chosen])
