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
        "rlhf_ray.jobs.sft",
        "rlhf_ray.config.supervised:SFTConfig",
        "fine-tune a language model on texts",
    ),
    "reward": Job(
        "rlhf_ray.jobs.reward", "rlhf_ray.config.supervised:RewardTrainingConfig", "train a reward model on rankings"
    ),
    "dpo": Job(
        "rlhf_ray.jobs.dpo",
        "rlhf_ray.config.dpo:DPOConfig",
        "train a policy on preferences, without engines or a reward model",
    ),
    "ppo": Job(
        "rlhf_ray.jobs.ppo",
        "rlhf_ray.config.ppo:PPOConfig",
        "train a policy against reward sources",
    ),
    "generate": Job(
        "rlhf_ray.jobs.generate", "rlhf_ray.config.inference:GenerateConfig", "answer prompts with a model"
    ),
    "score": Job(
        "rlhf_ray.jobs.score",
        "rlhf_ray.config.inference:ScoreConfig",
        "score answers with reward sources",
    ),
    "feedback": Job(
        "rlhf_ray.jobs.feedback",
        "rlhf_ray.config.feedback:FeedbackConfig",
        "score answers at the terminal; the policy learns from each",
    ),
    "evaluate": Job(
        "rlhf_ray.jobs.evaluate",
        "rlhf_ray.config.evaluate:EvaluateConfig",
        "compare models on held-out prompts, on one page",
    ),
    "iterate": Job(
        "rlhf_ray.pipelines.iterate",
        "rlhf_ray.config.iterate:IterateConfig",
        "rounds of collecting, labelling, reward model, PPO and evaluation",
    ),
    "data": Job(
        "rlhf_ray.jobs.data",
        "rlhf_ray.config.cleaning:DataJobConfig",
        "acquire, clean, classify, sample and split rows",
    ),
    "label": Job(
        "rlhf_ray.jobs.label",
        "rlhf_ray.config.labelling:LabelConfig",
        "rank answers in a browser, several annotators at once",
    ),
    "compare": Job(
        "rlhf_ray.jobs.compare",
        "rlhf_ray.config.labelling:CompareConfig",
        "choose blindly between two checkpoints in a browser",
    ),
}
TOOLS = {
    "init": Tool(
        "rlhf_ray.jobs.init",
        "rlhf_ray.config.init:InitConfig",
        "write a small project to begin with, or the examples",
        "FOLDER [--examples]",
        positional="folder",
    ),
    "schema": Tool(
        "rlhf_ray.jobs.schema",
        "rlhf_ray.config.editing:SchemaConfig",
        "write JSON schemas of the configs, for editors",
        "FOLDER",
        positional="folder",
    ),
    "plan": Tool(
        "rlhf_ray.jobs.plan",
        "rlhf_ray.config.plan:PlanConfig",
        "show placement, memory and batches of a config; starts nothing",
        "[--gpu_gib 80] [VERB] CONFIG.yaml [--key value ...]",
        positional="job",
        rest=True,
    ),
    "doctor": Tool(
        "rlhf_ray.jobs.doctor",
        "rlhf_ray.config.doctor:DoctorConfig",
        "check this machine's installation",
        "[--setup cpu|gpu]",
    ),
    "submit": Tool(
        "rlhf_ray.jobs.submit",
        "rlhf_ray.config.submit:SubmitConfig",
        "run a job on a Ray cluster and follow its log",
        "[--address URL] VERB CONFIG.yaml [--key value ...]",
        positional="job",
        rest=True,
    ),
    "convert": Tool(
        "rlhf_ray.jobs.convert",
        "rlhf_ray.config.convert:ConvertConfig",
        "write data sets of other layouts as rows of this project's",
        "DATA ... --output FILE [--layout hh]",
        positional="data",
    ),
    "merge": Tool(
        "rlhf_ray.jobs.merge",
        "rlhf_ray.config.merge:MergeConfig",
        "add an adapter to its model's weights, for verbs that take whole models",
        "ADAPTER --output DIRECTORY [--base MODEL]",
        positional="adapter",
    ),
    "plot": Tool(
        "rlhf_ray.jobs.plot",
        "rlhf_ray.config.plot:PlotConfig",
        "draw the curves of runs again",
        "RUN ... [--output FOLDER]",
        positional="runs",
    ),
    "completion": Tool(
        "rlhf_ray.jobs.completion",
        "rlhf_ray.config.editing:CompletionConfig",
        "print what completes commands in bash, zsh or fish",
        "bash|zsh|fish",
        positional="shell",
    ),
}
