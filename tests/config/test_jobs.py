"""What a job is stands in its config class: there is one list of verbs, and no other table of jobs."""

import ast
import inspect
from pathlib import Path

import rlhf_ray
from rlhf_ray.config.commands import JOBS
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.reading.verbs import job_schema, verb_of
from tests.config.test_bad_input_of_every_verb import CONFIGS

PACKAGE = Path(rlhf_ray.__file__).parent


def test_every_verb_has_a_config_that_says_what_its_job_is() -> None:
    for verb in JOBS:
        config = job_schema(verb).model_validate(CONFIGS[verb])
        assert verb_of(config) == verb
        assert list(config.problems()) == []
        assert set(config.held_models()) >= set(config.placements()), "the plan knows what each role holds"
        roles = {str(key[0]) for key in config.placements()}
        awake = {section for sections in config.phases().values() for section in sections}
        assert not awake or roles <= awake, "a role that is awake in no phase would never work"
        assert (config.output_folder() is None) == bool(config.output_files()) or verb in ("label", "compare")


def _jobs_of(tree: ast.Module) -> set[str]:
    """Names of config classes of jobs that a file asks an object for."""
    schemas = {schema.__name__ for verb in JOBS for schema in job_schema(verb).__mro__ if issubclass(schema, JobConfig)}
    asked: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            asked |= {inner.id for inner in ast.walk(node.args[1]) if isinstance(inner, ast.Name)}
        elif isinstance(node, ast.MatchClass) and isinstance(node.cls, ast.Name):
            asked.add(node.cls.id)
    return asked & schemas


def test_the_search_for_tables_finds_one() -> None:
    table = "if isinstance(config, PPOConfig | SFTConfig): ...\nmatch config:\n    case ScoreConfig(): ...\n"
    assert _jobs_of(ast.parse(table)) == {"PPOConfig", "SFTConfig", "ScoreConfig"}


def test_nobody_asks_which_job_a_config_is_of() -> None:
    asking = {path: _jobs_of(ast.parse(path.read_text(encoding="utf-8"))) for path in PACKAGE.rglob("*.py")}
    assert {str(path): jobs for path, jobs in asking.items() if jobs} == {}


def test_methods_of_jobs_are_not_hidden_by_fields() -> None:
    methods = {name for name, _ in inspect.getmembers(JobConfig, inspect.isfunction) if not name.startswith("_")}
    for verb in JOBS:
        assert not methods & job_schema(verb).model_fields.keys()
