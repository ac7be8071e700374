"""docs/metrics.md, written from the table of names: `make docs`."""

from rlhf_ray.tracking.names import METRICS, Metric

INTRODUCTION = """# Metrics

Written from the table of names by `make docs`; do not edit.

What the lines of a run's `metrics.jsonl` hold, and wandb and TensorBoard show; a job writes those that it knows. `*`
stands for a name of your config: of a reward source, a critic, a judge. On rows and prompts kept aside, names begin
with `eval_`.
"""


def metrics_page() -> str:
    """The whole page as Markdown."""
    return "\n".join([INTRODUCTION, "| metric | what it is | unit |", "|---|---|---|", *map(_row, METRICS), ""])


def _row(metric: Metric) -> str:
    cells = (f"`{metric.name}`", metric.meaning, metric.unit)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(metrics_page(), end="")
