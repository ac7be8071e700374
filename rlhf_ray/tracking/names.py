"""Every metric that a job may log: what it is, its unit, and the panel of the curves that shows it.

Names are TRL's where TRL has one (`reward`, `kl`, `completions/mean_length`; for PPO those of its PPO trainer, as
`objective/kl`). An evaluation's metrics have the prefix `eval_`. This table is what the docs and the report print.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

EVALUATION_PREFIX = "eval_"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `name` may hold `*` for a part that a run chooses, such as the name of a reward source."""

    name: str
    meaning: str
    unit: str
    panel: str
    label: str = ""
    """Short form for legends; the name itself where empty."""
    log_scale: bool = False


METRICS = (
    # What the run is for.
    Metric("reward", "mean reward of the batch, all sources weighed together", "", "Reward", "reward"),
    Metric("reward_std", "standard deviation of that reward", "", "Reward spread", "all sources"),
    Metric("objective/rlhf_reward", "mean score less the KL penalty of the response", "", "Reward", "score - KL"),
    Metric(
        "objective/scores", "mean score of the reward sources, penalties and clipping applied", "", "Reward", "score"
    ),
    Metric("objective/non_score_reward", "mean KL penalty of a response", "", "KL penalty", "penalty"),
    Metric("rewards/*/mean", "mean score of one reward source", "", "Reward by source", "*"),
    Metric("rewards/*/std", "standard deviation of one source's scores", "", "Reward spread", "*"),
    Metric("rewards/*/failed", "samples that the source could not score; they are masked", "samples", "Failures", "*"),
    Metric(
        "frac_reward_zero_std",
        "share of groups whose rewards are all equal, so that nothing is learned from comparing them",
        "share",
        "Groups without a difference",
        "share",
    ),
    # Episodes with an environment.
    Metric("episodes/turns", "turns that the policy took in an episode, mean", "turns", "Turns", "mean"),
    Metric("episodes/out_of_turns", "share of episodes that had all their turns", "share", "Out of turns", "episodes"),
    Metric("episodes/failed", "episodes whose environment failed; they are masked", "samples", "Failures", "episodes"),
    Metric("filter/prompts", "prompts answered for the step, those of dropped groups too", "prompts", "Prompts", "all"),
    # Costs beside rewards, under safe-rlhf's names.
    Metric("cost", "mean cost of the batch, all cost sources weighed together", "", "Cost", "cost"),
    Metric("episode_cost", "mean cost of the newest episodes, by which lambda moves", "", "Cost", "newest episodes"),
    Metric("lambda", "weight of costs against rewards", "", "Lambda", "lambda"),
    Metric("reward_advantage", "mean advantage of the rewards alone", "", "Advantages", "reward"),
    Metric("cost_advantage", "mean advantage of the costs alone", "", "Advantages", "cost"),
    Metric("cost_return", "mean return of the costs", "", "Values of costs", "return"),
    Metric("cost_value", "mean value that the cost critic gave to a state", "", "Values of costs", "value"),
    # Distance to the reference, and between policies.
    Metric("kl", "mean KL to the reference", "nats", "KL to the reference", "KL"),
    Metric(
        "objective/kl",
        "KL to the reference, summed over a response, mean of responses",
        "nats",
        "KL to the reference",
        "KL",
    ),
    Metric("objective/kl_coefficient", "weight of the KL penalty", "", "KL coefficient", "coefficient"),
    Metric(
        "policy/approxkl_avg",
        "KL of the updated policy to the one that wrote the samples, per token",
        "nats",
        "Update size",
        "KL of the update",
    ),
    Metric(
        "policy/clipfrac_avg", "share of tokens whose probability ratio was clipped", "share", "Clipped share", "policy"
    ),
    Metric("val/clipfrac_avg", "share of tokens whose value was clipped", "share", "Clipped share", "value"),
    Metric("val/cost_clipfrac_avg", "the same of the cost critic", "share", "Clipped share", "cost"),
    Metric("val/mean", "mean value that the critic gives to a state", "", "Critic's values", "mean value"),
    Metric("val/cost_mean", "mean value that the cost critic gives to a state", "", "Critic's values", "mean cost"),
    Metric("val/ratio", "mean probability ratio of updated to old policy", "", "Probability ratio", "mean"),
    Metric("val/ratio_var", "variance of that ratio", "", "Ratio variance", "variance"),
    Metric("policy/kl_avg", "mean log-ratio of old to updated policy, per token", "nats", "Update size", "log-ratio"),
    Metric(
        "policy/dual_clipfrac_avg", "share of tokens held by the second clip", "share", "Clipped share", "second clip"
    ),
    Metric("policy/optimizer_steps", "optimizer steps of the policy in the step", "", "Optimizer steps", "steps"),
    # Losses.
    Metric("loss", "training loss", "", "Loss", "loss"),
    Metric("loss/policy_avg", "clipped policy loss", "", "Policy loss", "policy loss"),
    Metric("loss/kl_avg", "KL to the reference as the policy's loss counts it, per token", "nats", "KL loss", "KL"),
    Metric(
        "loss/ptx_avg", "negative log-likelihood of the texts that are mixed in, per token", "nats", "Texts", "texts"
    ),
    Metric("loss/value_avg", "clipped value loss", "", "Value loss", "value loss"),
    Metric("loss/cost_value_avg", "clipped value loss of the cost critic", "", "Value loss", "cost critic"),
    Metric(
        "value/explained_variance",
        "share of the returns' variance that the critic explains",
        "share",
        "Explained variance",
        "critic",
    ),
    Metric(
        "value/cost_explained_variance",
        "share of the variance of the costs' returns that their critic explains",
        "share",
        "Explained variance",
        "cost critic",
    ),
    Metric("perplexity", "exponential of the mean loss of a token", "", "Perplexity", "perplexity", log_scale=True),
    # Preferences.
    Metric("rewards/chosen", "mean score of the better response", "", "Chosen and rejected", "chosen"),
    Metric("rewards/rejected", "mean score of the worse response", "", "Chosen and rejected", "rejected"),
    Metric("rewards/margins", "mean score difference of better and worse", "", "Margin", "margin"),
    Metric(
        "rewards/accuracies",
        "share of pairs in which the better response scores higher",
        "share",
        "Accuracy",
        "accuracy",
    ),
    Metric("exact_list_accuracy", "share of lists ranked just as people did", "share", "Whole lists", "exact"),
    Metric("kendall_tau", "agreement of rankings, from -1 to 1", "", "Rank agreement", "Kendall's tau"),
    Metric("logps/chosen", "mean log-probability of the better response", "nats", "Log-probabilities", "chosen"),
    Metric("logps/rejected", "mean log-probability of the worse response", "nats", "Log-probabilities", "rejected"),
    Metric("loss/preference_avg", "preference loss, without the likelihood term", "", "Loss", "preferences"),
    Metric(
        "nll_loss",
        "negative log-likelihood of a token of what is imitated: answers, or the better responses of pairs",
        "nats",
        "Negative log-likelihood",
        "per token",
    ),
    Metric(
        "accuracy_sign", "share of answers whose cost has the sign of their label", "share", "Accuracy", "sign of costs"
    ),
    Metric("mean_cost", "mean cost", "", "Scores", "mean cost"),
    Metric("accuracy", "share of pairs in which the better response scores higher", "share", "Accuracy", "accuracy"),
    Metric("margin", "mean score difference of better and worse", "", "Margin", "margin"),
    # Rounds of `rlhf iterate`.
    Metric("win_rate/*", "share of prompts won against the first model, ties half", "share", "Win rate", "*"),
    Metric(
        "alignment_tax", "loss on held-out texts above the first model's, per token", "nats", "Alignment tax", "tax"
    ),
    Metric("rankings", "rankings of the round", "", "Rankings", "new"),
    Metric("rankings_used", "rankings that the reward model learned from", "", "Rankings", "learned from"),
    Metric("reward_accuracy", "held-out accuracy of the reward model", "share", "Accuracy", "reward model"),
    Metric("mean_reward", "mean score", "", "Scores", "mean"),
    # How the policy writes.
    Metric("entropy", "mean entropy of the policy's next token", "nats", "Entropy", "entropy"),
    Metric(
        "objective/entropy",
        "negative log-probability summed over a response, mean of responses",
        "nats",
        "Response entropy",
        "entropy",
    ),
    Metric("policy/entropy_avg", "mean entropy of the policy's next token", "nats", "Entropy", "entropy"),
    Metric("completions/mean_length", "mean length of the responses", "tokens", "Response length", "mean"),
    Metric("completions/min_length", "shortest response", "tokens", "Response length", "shortest"),
    Metric("completions/max_length", "longest response", "tokens", "Response length", "longest"),
    Metric(
        "completions/clipped_ratio", "share of responses cut at the longest length", "share", "Cut responses", "cut"
    ),
    Metric(
        "completions/distinct_2",
        "share of different bigrams among all bigrams of the batch",
        "share",
        "Diversity",
        "distinct-2",
    ),
    Metric("val/num_eos_tokens", "end-of-sequence tokens in the batch", "tokens", "End tokens", "EOS"),
    # Optimizer.
    Metric("learning_rate", "learning rate", "", "Learning rate", "learning rate"),
    Metric("lr", "learning rate of the policy", "", "Learning rate", "policy"),
    Metric("learning_rate/*", "learning rate of one trained role", "", "Learning rate", "*"),
    Metric("grad_norm", "norm of the gradient before clipping", "", "Gradient norm", "gradient norm", log_scale=True),
    Metric(
        "grad_norm/*", "gradient norm of one trained role before clipping", "", "Gradient norm", "*", log_scale=True
    ),
    # Engines against trainer.
    Metric(
        "sampling/sampling_logp_difference/mean",
        "mean difference of the engine's and the trainer's log-probabilities; not where the engine's are the old ones",
        "nats",
        "Engine against trainer",
        "mean",
        log_scale=True,
    ),
    Metric(
        "sampling/sampling_logp_difference/max",
        "largest of those",
        "nats",
        "Engine against trainer",
        "largest",
        log_scale=True,
    ),
    Metric(
        "sampling/unscored_tokens",
        "tokens that came without a log-probability, so that nothing was learned from them; only where there are some",
        "tokens",
        "Tokens without log-probability",
        "tokens",
    ),
    Metric(
        "sampling/effective_sample_size",
        "share of the tokens that the weighted ones are worth",
        "share",
        "Effective tokens",
        "share",
    ),
    Metric(
        "sampling/out_of_bounds",
        "share of tokens whose importance weight is out of bounds",
        "share",
        "Out of bounds",
        "share",
    ),
    Metric("sampling/weight_mean", "mean importance weight", "", "Importance weight", "mean"),
    Metric(
        "sampling/mismatch_kl_k1",
        "KL of the engine's distribution to the trainer's, per token, by the log-ratio",
        "nats",
        "Mismatch KL",
        "k1",
    ),
    Metric(
        "sampling/mismatch_kl_k3",
        "the same by k3, which is never negative",
        "nats",
        "Mismatch KL",
        "k3",
    ),
    Metric("staleness/mean", "versions by which tokens are older than the weights that learn", "", "Staleness", "mean"),
    Metric("staleness/max", "age of the oldest token, in versions", "", "Staleness", "oldest"),
    Metric(
        "staleness/mixed", "share of responses that several versions wrote", "share", "Several versions", "responses"
    ),
    Metric(
        "sync/logprob_diff",
        "largest log-probability difference on the probe texts after the weight sync",
        "nats",
        "Sync check",
        "difference",
        log_scale=True,
    ),
    Metric("sync/tolerance", "difference at which the run stops", "nats", "Sync check", "tolerance", log_scale=True),
    Metric(
        "sync/logprob_diff_mean",
        "mean log-probability difference on the probe texts",
        "nats",
        "Sync check",
        "mean difference",
        log_scale=True,
    ),
    Metric(
        "sync/tolerance_mean",
        "mean difference at which the run stops",
        "nats",
        "Sync check",
        "tolerance of the mean",
        log_scale=True,
    ),
    Metric("sync/largest_logit", "largest logit on the probe texts, which the tolerances follow", "", "", "logit"),
    Metric(
        "sync/compared_exactly",
        "share of the layers whose weights were compared bit by bit",
        "",
        "",
        "share",
    ),
    Metric("sync/version", "weight version that the engines hold", "", "", "version"),
    # Time.
    Metric(
        "time/generate",
        "wait for engines: all that they write, or, with max_staleness, what is not written by the time",
        "seconds",
        "Time of a step",
        "generate",
    ),
    Metric(
        "time/score",
        "reward sources, reference, critics and old log-probabilities",
        "seconds",
        "Time of a step",
        "score",
    ),
    Metric("time/train", "optimizer steps", "seconds", "Time of a step", "train"),
    Metric("time/sync", "weights to the engines", "seconds", "Time of a step", "sync"),
    Metric("time/evaluate", "held-out prompts", "seconds", "Time of a step", "evaluate"),
    Metric(
        "time/checkpoint",
        "copy models and optimizers to host memory; a checkpoint is written while the run goes on",
        "seconds",
        "Time of a step",
        "checkpoint",
    ),
    Metric("time/idle", "nothing runs", "seconds", "Time of a step", "idle"),
    Metric(
        "engines/idle",
        "time in which an engine had nothing to write, mean of engines",
        "seconds",
        "Idle engines",
        "idle",
    ),
    Metric("time/step", "time of the whole step", "seconds", ""),
    Metric("time/*", "another part of a step", "seconds", "Time of a step", "*"),
    Metric(
        "sync/gather", "collect the weights of all ranks, while others travel", "seconds", "Time of a sync", "gather"
    ),
    Metric("sync/send", "weights are on the wire", "seconds", "Time of a sync", "send"),
    Metric("sync/load", "engines take them in, as they arrive", "seconds", "Time of a sync", "load"),
    Metric(
        "sync/pause",
        "engines answer no request: from the first weights that they load to the last",
        "seconds",
        "Time of a sync",
        "pause",
    ),
    Metric("sync/verify", "compare both sides: log-probabilities, weights", "seconds", "Time of a sync", "verify"),
    Metric("sync/total", "the whole sync", "seconds", ""),
    Metric(
        "sync/bytes_per_second/*",
        "bytes of the weights, as they travel, over the seconds of one part",
        "bytes/s",
        "Weights per second",
        "*",
        log_scale=True,
    ),
    Metric("step_time", "time of the whole step", "seconds", "", "step"),
    Metric(
        "tokens_per_second",
        "tokens of the step over its time: responses in PPO, all that was learned from elsewhere",
        "tokens/s",
        "Throughput",
        "whole step",
    ),
    # Progress.
    Metric("episode", "samples seen since the run began", "samples", "", "samples"),
    Metric("epoch", "passes over the data", "", "", "epochs"),
    Metric("eps", "samples per second since the run began", "samples/s", "", "samples per second"),
)

PANELS = tuple(dict.fromkeys(metric.panel for metric in METRICS if metric.panel))
"""Titles of the curves' panels in the order in which they are shown."""

_EXACT = {metric.name: metric for metric in METRICS if "*" not in metric.name}
_PATTERNS = tuple(metric for metric in METRICS if "*" in metric.name)


def describe(name: str) -> Metric:
    """Look a metric up; `eval_` is looked through, and an unknown name gets a panel of its own."""
    plain = name.removeprefix(EVALUATION_PREFIX)
    known = _EXACT.get(plain) or next((metric for metric in _PATTERNS if fnmatchcase(plain, metric.name)), None)
    if known is None:
        return Metric(name, "", "", plain, plain)
    label = known.label
    if label == "*":
        # The part of the name that a config chose.
        before, after = known.name.split("*")
        label = plain[len(before) : len(plain) - len(after)]
    meaning = known.meaning if plain == name else f"held out: {known.meaning}"
    return Metric(name, meaning, known.unit, known.panel, label or plain, known.log_scale)


INTRODUCTION = """# Metrics

Written from the table of names by `make docs`; do not edit.

What the lines of a run's `metrics.jsonl` hold, and wandb and TensorBoard show; a job writes those that it knows. `*`
stands for a name of your config: of a reward source, a critic, a judge. On rows and prompts kept aside, names begin
with `eval_`.
"""


def metrics_page() -> str:
    """Write the whole page as Markdown."""
    return "\n".join([INTRODUCTION, "| metric | what it is | unit |", "|---|---|---|", *map(_row, METRICS), ""])


def _row(metric: Metric) -> str:
    cells = (f"`{metric.name}`", metric.meaning, metric.unit)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(metrics_page(), end="")
