"""One PPO step against TRL's experimental PPO trainer, and against the floor: bare generation and bare passes.

    python -m benchmarks.ppo

The product runs through its own driver, roles and loop. All three contenders live through the whole run and take turns
after each of its steps: the same models in float32, the same prompts, each with the same response length, epochs and
minibatches, on two cores. Natural lengths are log-normal with mean 64 and cap 256; fixed lengths are 64. Prints JSON;
a ratio is that of the medians.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.policy_steps import CORES, Peer, base_config, common_options, run, summary
from benchmarks.ppo_workload import Responses, Workload
from rlhf_ray.config.jobs.ppo import PPOConfig

TRL = "1.10.0"
"""The last release with a PPO trainer."""
MEAN_RESPONSE, LONGEST_RESPONSE = 64, 256


def ppo_config(workload: Workload, output: Path, options: argparse.Namespace) -> PPOConfig:
    """Configure all four networks, of one thread each: those that learn work side by side, one on each core."""
    base = base_config(workload, output, options)
    role = {"cpus_per_worker": 0.2, "threads": options.threads}
    return PPOConfig.model_validate(
        base
        | {
            "prompts_per_step": options.samples,
            "critics": {"value": base["policy"]},
            "reference": role,
            "rewards": [{"kind": "model", "path": str(workload.reward), "dtype": "float32", **role}],
        }
    )


def install_trl(directory: Path) -> Path:
    """Install TRL alone, beside the packages that it finds in this environment."""
    if not (directory / f"trl-{TRL}.dist-info").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--target", str(directory), f"trl=={TRL}"], check=True)
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common_options(parser, budget=1024, old_logprobs="engine")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="of each role but the engine")
    parser.add_argument("--engine-threads", type=int, default=CORES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--trl",
        type=Path,
        default=Path.home() / ".cache" / "rlhf_ray" / f"trl-{TRL}",
        help="where TRL is, or is put by pip",
    )
    options = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workload = Workload.make(
            options.models or folder / "models", Responses(options.samples, MEAN_RESPONSE, LONGEST_RESPONSE)
        )

        def start_peer() -> Peer:
            variables = {"PYTHONPATH": f"{install_trl(options.trl)}{os.pathsep}{Path(__file__).parents[1]}"}
            arguments = (options.epochs, options.minibatches)
            return Peer("benchmarks.ppo_trl", workload, folder, arguments, variables)

        rows, memory = run(ppo_config(workload, folder, options), workload, options, start_peer)
    print(json.dumps(summary(rows, memory, options, before), indent=2, default=str))


if __name__ == "__main__":
    main()
