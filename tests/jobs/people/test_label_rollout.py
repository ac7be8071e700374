"""Answers of a pool of real engines for the labelling page."""

from pathlib import Path

import pytest

from rlhf_ray.config.jobs.labelling import LabelConfig
from rlhf_ray.feedback.labelling.desk import Desk, Sheet
from rlhf_ray.jobs.people import label
from tests.browser.site import free_port
from tests.jobs.ppo_runs import write_rows

pytestmark = pytest.mark.slow


def test_a_pool_of_engines_answers_drawn_and_typed_prompts(
    workspace: Path, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": "The film"}, {"prompt": "刚收到货"}])
    config = LabelConfig.model_validate(
        {
            "store": str(tmp_path / "labels.db"),
            "port": free_port(),
            "answers": {
                "kind": "rollout",
                "model": {"path": str(workspace / "base"), "dtype": "float32"},
                "rollout": {"max_new_tokens": 8},
                "max_prompt_tokens": 32,
            },
            "prompts": {"path": str(tmp_path / "prompts.jsonl")},
            "answers_per_prompt": 4,
        }
    )
    sheets: list[Sheet | None] = []

    def visit(desk: Desk, _: object) -> None:
        sheets.extend([desk.draw("anna"), desk.draw("bob"), desk.typed("anna", "Great value")])

    monkeypatch.setattr(label, "serve", visit)
    label.run(config)
    for sheet in sheets:
        assert sheet
        assert len(set(sheet.answers)) == 4
        assert sheet.item.versions
        assert sheet.item.versions[0].startswith(f"{workspace}/base@")
    assert len({sheet.item.id for sheet in sheets if sheet}) == 3
