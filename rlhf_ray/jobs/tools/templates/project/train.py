"""The same from Python: every stage returns its results. See docs/python.md of rlhf_ray."""

import rlhf_ray


def main() -> None:
    """Run both stages, and show what was learned."""
    rlhf_ray.run("sft.yaml", verb="sft")
    run = rlhf_ray.run("ppo.yaml")
    rewards = run.metrics.column("rewards/kindness/mean")
    print(f"reward {rewards[0]:.2f} -> {rewards[-1]:.2f}; the model is in {run.model_path}")
    for sample in run.samples[-4:]:
        print(sample["prompt"], sample["response"])


if __name__ == "__main__":
    main()
