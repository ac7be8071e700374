"""All benchmarks, one after the other, each in a process of its own: `python -m benchmarks`."""

import subprocess
import sys

BENCHMARKS = (
    "chunked_logprobs",
    "weight_sync",
    "rollout_pool",
    "preferences",
    "ppo",
    "grpo",
    "overlap_simulated",
    "overlap",
)


def main() -> None:
    failed = []
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode:
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
