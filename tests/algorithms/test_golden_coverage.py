"""Every golden case is either compared or listed as a convention that we do not offer, with its reason."""

import re
from pathlib import Path

import test_golden_preferences as preferences
import yaml
from golden_cases import GOLDEN, NOT_OFFERED, all_cases

from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.jobs.supervised import RewardTrainingConfig
from rlhf_ray.config.preferences import PreferenceLossConfig

PPO = {
    "output": "run",
    "model": {"path": "model"},
    "data": {"path": "prompts.jsonl"},
    "samples_per_prompt": 4,
    "rewards": [{"kind": "model", "path": "reward"}],
}
FILES = sorted(path.stem for path in GOLDEN.glob("*.json"))


def test_every_file_has_a_test() -> None:
    written = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_golden_*.py"))
    assert [file for file in FILES if f'@golden("{file}"' not in written] == []


def test_every_convention_left_out_exists_and_has_a_reason() -> None:
    for file, cases in NOT_OFFERED.items():
        assert set(cases) <= set(all_cases(file))
        assert all(cases.values())


def test_counts() -> None:
    """Changing what is offered must show here."""
    total = sum(len(all_cases(file)) for file in FILES)
    left_out = sum(len(cases) for cases in NOT_OFFERED.values())
    assert (total, left_out) == (229, 29)


def test_dpo_cases_are_divided_among_its_tests() -> None:
    offered = set(all_cases("dpo_losses")) - set(NOT_OFFERED["dpo_losses"])
    assert offered == set(preferences.SUMMED) | set(preferences.BY_TOKEN)


def test_the_docs_list_every_convention_left_out() -> None:
    docs = (GOLDEN.parents[1] / "docs" / "algorithms.md").read_text(encoding="utf-8")
    left_out = docs[docs.index("## Conventions not offered") :]
    assert [name for cases in NOT_OFFERED.values() for name in cases if f"`{name}`" not in left_out] == []
    total, missing = sum(len(all_cases(file)) for file in FILES), sum(map(len, NOT_OFFERED.values()))
    assert f"{total - missing} of {total} golden cases" in docs


def test_settings_in_the_docs_exist() -> None:
    docs = (GOLDEN.parents[1] / "docs" / "algorithms.md").read_text(encoding="utf-8")
    snippets = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", docs, flags=re.DOTALL)]
    assert snippets
    for snippet in snippets:
        if set(snippet) & {"algorithm", "policy", "ptx", "rewards"}:
            assert not list(PPOConfig.model_validate(PPO | snippet).problems())
        elif isinstance(snippet.get("loss"), dict):
            PreferenceLossConfig.model_validate(snippet["loss"])
        else:
            RewardTrainingConfig.model_validate(
                {"output": "o", "model": {"path": "m"}, "data": {"path": "d"}} | snippet
            )
