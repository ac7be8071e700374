"""`rlhf init`: what it writes works as it stands; the stages themselves are tested in their own rooms."""

import importlib.util
import itertools
import json
from pathlib import Path

import pytest
import yaml

import rlhf_ray
from rlhf_ray import cli
from rlhf_ray.config.reading.verbs import load_job
from rlhf_ray.jobs.tools import init
from rlhf_ray.jobs.tools.schema import json_schema

STAGES = ("sft", "ppo", "generate", "score")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("somewhere") / "kind words"
    assert cli.main(["init", str(folder)]) == 0
    return folder


def test_nothing_is_left_beside_it(project: Path) -> None:
    assert [path.name for path in project.parent.iterdir()] == ["kind words"]
    assert project.joinpath("README.md").read_text().startswith("# kind words\n")


def test_its_first_config_runs_as_it_stands_and_the_others_after_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    load_job("sft", ["sft.yaml"])
    for before, verb in itertools.pairwise(STAGES):
        with pytest.raises(rlhf_ray.BadInput) as error:
            load_job(verb, [f"{verb}.yaml"])
        made = load_job(before, [f"{before}.yaml"], check_files=False).output  # type: ignore[attr-defined]
        # All that is missing is what the stage before it makes.
        assert [made in line for line in str(error.value).splitlines()] == [True]


def test_each_config_names_its_schema(project: Path) -> None:
    for verb in STAGES:
        line = (project / f"{verb}.yaml").read_text().splitlines()[0]
        assert line == f"# yaml-language-server: $schema=schemas/{verb}.json"
        assert json.loads((project / "schemas" / f"{verb}.json").read_text()) == json_schema(verb)


def test_its_reward_tells_what_its_demonstrations_hold_apart(project: Path) -> None:
    spec = importlib.util.spec_from_file_location("reward", project / "reward.py")
    assert spec is not None
    assert spec.loader is not None
    reward = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reward)
    with (project / "data" / "demonstrations.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    scores = reward.kindness([row["prompt"] for row in rows], [row["completion"] for row in rows])
    assert sorted(set(scores)) == [-1, 1]
    assert sum(scores) == 0


def test_its_commands_and_python_name_what_is_there(project: Path) -> None:
    page = (project / "README.md").read_text()
    for verb in STAGES:
        assert f"rlhf {verb} {verb}.yaml" in page
        settings = yaml.safe_load((project / f"{verb}.yaml").read_text())
        for source in settings.get("rewards", []):
            assert (project / source["function"].split(":")[0]).is_file()
    compile((project / "train.py").read_text(), "train.py", "exec")


def test_the_examples_come_with_their_presets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["init", str(tmp_path / "all"), "--examples"]) == 0
    root = Path(__file__).parents[3]
    for name in init.EXAMPLES:
        wanted = {path.relative_to(root) for path in (root / name).rglob("*") if "__pycache__" not in path.parts}
        assert wanted == {path.relative_to(tmp_path / "all") for path in (tmp_path / "all" / name).rglob("*")}
    assert "examples.reviews.demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}"], "rlhf: folder: {folder} exists already; name a new one\n"),
        (["a", "b"], "rlhf: folder: one at a time, not 2\n"),
        ([], "rlhf: nothing is given: rlhf init FOLDER [--examples]; all settings: rlhf init --help\n"),
        (["{folder}/file/new"], "rlhf: folder: cannot write {folder}/file/new: Not a directory\n"),
    ],
)
def test_what_it_does_not_write(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["init", *(word.format(folder=tmp_path) for word in arguments)]) in {1, 2}
    assert capsys.readouterr().err == message.format(folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
