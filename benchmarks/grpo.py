"""One GRPO step against TRL's GRPOTrainer, and against the floor: bare generation and bare passes.

    python -m benchmarks.grpo

8 prompts with 8 responses each, two optimizer steps on them, the KL to the reference in the loss, a reward function in
Python: the same on both sides, with the same model of 3.7M parameters in float32 on two cores. Natural lengths are
log-normal with mean 96 and cap 512; fixed lengths are 64. Prints JSON; a ratio is that of the medians.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from benchmarks import grpo_reward
from benchmarks.policy_steps import CORES, Peer, base_config, common_options, run, summary
from benchmarks.ppo_workload import Responses, Workload
from rlhf_ray.config.jobs.ppo import PPOConfig

MEAN_RESPONSE, LONGEST_RESPONSE = 96, 512


def grpo_config(workload: Workload, output: Path, options: argparse.Namespace) -> PPOConfig:
    """Configure policy and reference; policy and engine mostly take turns, so each may have both cores."""
    role = {"cpus_per_worker": 0.2}
    base = base_config(workload, output, options)
    reference_threads = options.reference_threads or (CORES if options.old_logprobs == "engine" else 1)
    return PPOConfig.model_validate(
        base
        | {
            "prompts_per_step": options.samples // options.group,
            "samples_per_prompt": options.group,
            "reference": role | {"threads": reference_threads},
            "rewards": [{"kind": "function", "function": f"{grpo_reward.__file__}:share_of_vowels", **role}],
            "algorithm": base["algorithm"]
            | {
                "advantages": "grpo",
                "loss_aggregation": "sequence_mean_token_mean",
                "kl": {"place": "loss", "coefficient": options.kl},
            },
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common_options(parser, budget=2048, old_logprobs="trainer")
    parser.add_argument("--group", type=int, default=8, help="responses to each prompt")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--kl", type=float, default=0.04, help="its coefficient; 0 has no reference on either side")
    parser.add_argument("--threads", type=int, default=CORES, help="of the policy's trainer")
    parser.add_argument("--reference-threads", type=int, help="by default both cores where it reads alone, else one")
    parser.add_argument("--engine-threads", type=int, default=CORES)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        responses = Responses(options.samples // options.group, MEAN_RESPONSE, LONGEST_RESPONSE, options.group)
        workload = Workload.make(options.models or folder / "models", responses)

        def start_peer() -> Peer:
            arguments = (options.epochs, options.minibatches, options.kl)
            return Peer("benchmarks.grpo_trl", workload, folder, arguments, {})

        rows, memory = run(grpo_config(workload, folder, options), workload, options, start_peer)
    print(json.dumps(summary(rows, memory, options, before), indent=2, default=str))


if __name__ == "__main__":
    main()
