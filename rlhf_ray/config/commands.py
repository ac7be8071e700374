"""The verbs of the command: which module does the work, which schema its settings have."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A verb that is told by a config file."""

    module: str
    """Module whose `run(config)` does the work."""
    schema: str
    """`module:class` of its config."""
    help: str
    check: str | None = None
    """`module:function` that refuses a config whose models cannot be what they are for, before anything starts. None:
    the job has no models to look at."""


@dataclass(frozen=True)
class Tool:
    """A verb that is told by its arguments alone."""

    module: str
    """Module whose `run(config)` does the work."""
    schema: str
    """`module:class` of its settings."""
    help: str
    usage: str
    positional: str | None = None
    """Setting that takes the arguments without a name."""
    rest: bool = False
    """Whether options that are not its own follow a job's config file and go to `positional` too."""


JOBS = {
    "sft": Job(
        "rlhf_ray.jobs.supervised.sft",
        "rlhf_ray.config.jobs.supervised:SFTConfig",
        "fine-tune a language model on texts",
        check="rlhf_ray.runs.model_checks:check_supervised",
    ),
    "reward": Job(
        "rlhf_ray.jobs.supervised.reward",
        "rlhf_ray.config.jobs.supervised:RewardTrainingConfig",
        "train a reward model on rankings",
        check="rlhf_ray.runs.model_checks:check_supervised",
    ),
    "dpo": Job(
        "rlhf_ray.jobs.supervised.dpo",
        "rlhf_ray.config.jobs.dpo:DPOConfig",
        "train a policy on preferences, without engines or a reward model",
        check="rlhf_ray.runs.model_checks:check_supervised",
    ),
    "ppo": Job(
        "rlhf_ray.jobs.ppo.run",
        "rlhf_ray.config.jobs.ppo:PPOConfig",
        "train a policy against reward sources",
        check="rlhf_ray.jobs.ppo.run:check_models",
    ),
    "generate": Job(
        "rlhf_ray.jobs.inference.generate",
        "rlhf_ray.config.jobs.inference:GenerateConfig",
        "answer prompts with a model",
        check="rlhf_ray.jobs.inference.generate:check_models",
    ),
    "score": Job(
        "rlhf_ray.jobs.inference.score",
        "rlhf_ray.config.jobs.inference:ScoreConfig",
        "score answers with reward sources",
        check="rlhf_ray.runs.model_checks:check_reward_sources",
    ),
    "feedback": Job(
        "rlhf_ray.jobs.ppo.feedback",
        "rlhf_ray.config.jobs.feedback:FeedbackConfig",
        "score answers at the terminal; the policy learns from each",
        check="rlhf_ray.jobs.ppo.run:check_models",
    ),
    "evaluate": Job(
        "rlhf_ray.jobs.evaluate.run",
        "rlhf_ray.config.jobs.evaluate:EvaluateConfig",
        "compare models on held-out prompts, on one page",
        check="rlhf_ray.jobs.evaluate.answers:check_models",
    ),
    "iterate": Job(
        "rlhf_ray.pipelines.iterate",
        "rlhf_ray.config.jobs.iterate:IterateConfig",
        "rounds of collecting, labelling, reward model, PPO and evaluation",
    ),
    "data": Job(
        "rlhf_ray.jobs.data.run",
        "rlhf_ray.config.jobs.cleaning:DataJobConfig",
        "acquire, clean, classify, sample and split rows",
    ),
    "label": Job(
        "rlhf_ray.jobs.people.label",
        "rlhf_ray.config.jobs.labelling:LabelConfig",
        "rank answers in a browser, several annotators at once",
    ),
    "compare": Job(
        "rlhf_ray.jobs.people.compare",
        "rlhf_ray.config.jobs.labelling:CompareConfig",
        "choose blindly between two checkpoints in a browser",
    ),
}
TOOLS = {
    "init": Tool(
        "rlhf_ray.jobs.tools.init",
        "rlhf_ray.config.jobs.tools:InitConfig",
        "write a small project to begin with, or the examples",
        "FOLDER [--examples]",
        positional="folder",
    ),
    "schema": Tool(
        "rlhf_ray.jobs.tools.schema",
        "rlhf_ray.config.jobs.tools:SchemaConfig",
        "write JSON schemas of the configs, for editors",
        "FOLDER",
        positional="folder",
    ),
    "plan": Tool(
        "rlhf_ray.jobs.plan.run",
        "rlhf_ray.config.jobs.tools:PlanConfig",
        "show placement, memory and batches of a config; starts nothing",
        "[--gpu_gib 80] [VERB] CONFIG.yaml [--key value ...]",
        positional="job",
        rest=True,
    ),
    "doctor": Tool(
        "rlhf_ray.jobs.tools.doctor",
        "rlhf_ray.config.jobs.tools:DoctorConfig",
        "check this machine's installation, and a cluster's nodes",
        "[--setup cpu|gpu] [--address HEAD:6379 [--output FOLDER]]",
    ),
    "submit": Tool(
        "rlhf_ray.jobs.tools.submit",
        "rlhf_ray.config.jobs.tools:SubmitConfig",
        "run a job on a Ray cluster and follow its log",
        "[--address URL] VERB CONFIG.yaml [--key value ...]",
        positional="job",
        rest=True,
    ),
    "convert": Tool(
        "rlhf_ray.jobs.data.convert",
        "rlhf_ray.config.jobs.tools:ConvertConfig",
        "write data sets of other layouts as rows of this project's",
        "DATA ... --output FILE [--layout hh]",
        positional="data",
    ),
    "merge": Tool(
        "rlhf_ray.jobs.tools.merge",
        "rlhf_ray.config.jobs.tools:MergeConfig",
        "add an adapter to its model's weights, for verbs that take whole models",
        "ADAPTER --output DIRECTORY [--base MODEL]",
        positional="adapter",
    ),
    "plot": Tool(
        "rlhf_ray.jobs.tools.plot",
        "rlhf_ray.config.jobs.tools:PlotConfig",
        "draw the curves of runs again",
        "RUN ... [--output FOLDER]",
        positional="runs",
    ),
    "runs": Tool(
        "rlhf_ray.jobs.tools.runs",
        "rlhf_ray.config.jobs.tools:RunsConfig",
        "list runs: state, step, speed, what they reached",
        "[FOLDER ...] [--metrics '[NAME, ...]']",
        positional="folders",
    ),
    "completion": Tool(
        "rlhf_ray.jobs.tools.completion",
        "rlhf_ray.config.jobs.tools:CompletionConfig",
        "print what completes commands in bash, zsh or fish",
        "bash|zsh|fish",
        positional="shell",
    ),
}
