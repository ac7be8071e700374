"""From nothing to a player who wins: `python -m examples.guess`. Each stage is a command that a user would type."""

import subprocess
import sys
from pathlib import Path

from examples.guess.build import build

HERE = Path(__file__).parent


def main() -> None:
    """Write the data, let a model learn how games look, then how to win them."""
    build("outputs/guess")
    for verb, config in (("sft", "sft.yaml"), ("ppo", "grpo.yaml")):
        print(f"$ rlhf {verb} examples/guess/{config}", flush=True)
        command = [sys.executable, "-m", "rlhf_ray.cli", verb, str(HERE / config)]
        code = subprocess.run(command, check=False).returncode
        if code:
            sys.exit(f"rlhf {verb} failed; its message stands above")


if __name__ == "__main__":
    main()
