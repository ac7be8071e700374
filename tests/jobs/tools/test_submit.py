"""`rlhf submit`: real submissions to a real Ray head, and the files for schedulers."""

import os
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.config.jobs.tools import SubmitConfig
from rlhf_ray.jobs.tools.submit import JobEnded, run
from tests.jobs.ppo_runs import training_rows, write_config
from tests.jobs.tools.ray_head import ROOT, Head, free_ports

FUNCTION = {"kind": "function", "function": "f.py:f"}
CONFIG = {"output": "/storage/run", "model": {"path": "gpt2"}, "data": {"path": "texts.txt"}}
ON_STORAGE = CONFIG | {"data": {"path": "/storage/texts.txt"}}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Sockets below the folder must have short names, which pytest's own folders do not give.
    folder = Path("/tmp") / f"head{os.getpid()}"
    folder.mkdir()
    started = Head(folder)
    yield started
    started.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "sft.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "texts.txt").write_text("of the working folder")
    (tmp_path / ".env").write_text("A_TOKEN=stays here")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "large").write_bytes(b"x")
    return tmp_path


@pytest.fixture
def submit_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SubmitConfig]:
    monkeypatch.chdir(folder)

    def make(*job: str, **settings: object) -> SubmitConfig:
        return SubmitConfig.model_validate({"job": list(job) or ["sft", "configs/sft.yaml"], **settings})

    return make


def test_a_job_runs_on_the_cluster_and_its_log_comes_back(head: Head, folder: Path):
    done = head.rlhf("sft", "configs/sft.yaml", "--model.dtype", "float32", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "arguments ['sft', 'configs/sft.yaml', '--model.dtype', 'float32'] in ['configs', 'texts.txt']" in done.stdout
    )
    assert "doubled [42, 42] of the working folder" in done.stdout
    if os.geteuid() == 0:
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        assert f"nice {[nice] * 2}" in done.stdout, "though the head was started as it is by default"


def test_a_job_that_fails_fails_here_too(head: Head, folder: Path):
    done = head.rlhf("--name", "once", "sft", "configs/sft.yaml", "--seed", "1", folder=folder)
    assert done.returncode == 7, "as the job's own command"
    assert "ValueError: the job's own words" in done.stdout
    assert "rlhf: once ended as FAILED with exit code 7" in done.stderr
    again = head.rlhf("--name", "once", "sft", "configs/sft.yaml", folder=folder)
    assert again.returncode == 1
    assert "did not take the job: " in again.stderr


def test_a_ppo_run_on_the_cluster(head: Head, folder: Path, ppo_settings: Callable[..., dict[str, Any]]):
    """Submitted from a machine that takes no part; with an engine of two tensor-parallel workers."""
    settings = ppo_settings(folder / "storage", steps=2, rollout={"tensor_parallel": 2}, evaluation={"data": None})
    write_config(folder / "configs" / "ppo.yaml", settings)
    done = head.rlhf("ppo", "configs/ppo.yaml", "--seed", "3", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"finished: the policy is in {folder / 'storage' / 'final'}" in done.stdout
    assert (folder / "storage" / "final" / "model.safetensors").exists()
    assert yaml.safe_load((folder / "storage" / "config.yaml").read_text())["seed"] == 3
    rows = training_rows(folder / "storage")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["sync/logprob_diff"] <= 1e-4
        assert row["sampling/sampling_logp_difference/max"] <= 1e-4


def test_a_job_that_is_stopped_has_the_time_to_save(head: Head, folder: Path):
    saved = folder / "saved"
    command = ("--name", "stopped", "--wait", "false", "sft", "configs/sft.yaml", "--output", str(saved), "--seed", "9")
    done = head.rlhf(*command, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    head.wait_for_log("stopped", "working")
    head.ray("job", "stop", "stopped")
    assert saved.read_text() == "whole"
    assert "Job 'stopped' was stopped" in head.ray("job", "status", "stopped")


def test_a_job_that_is_stopped_while_it_waits_for_resources_leaves_nothing(
    head: Head, folder: Path, ppo_settings: Callable[..., dict[str, Any]]
):
    storage = folder / "storage"
    settings = ppo_settings(storage, steps=2, groups={"main": {"cpus_per_node": 64}}, evaluation={"data": None})
    write_config(folder / "configs" / "ppo.yaml", settings)
    done = head.rlhf("--name", "waits", "--wait", "false", "ppo", "configs/ppo.yaml", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    head.wait_for_log("waits", "waiting for resources: ")
    assert storage.is_dir()
    head.ray("job", "stop", "waits")
    log = head.ray("job", "logs", "waits")
    assert "interrupted before the first step; nothing was written" in log
    assert not any(word in log for word in ("Traceback", "C++", "core_worker", "SystemExit")), log
    assert not storage.exists()


def test_a_wrong_token_is_refused(head: Head, folder: Path):
    done = head.rlhf("sft", "configs/sft.yaml", folder=folder, RAY_AUTH_TOKEN="f" * 64)
    assert done.returncode == 1
    assert "refused us: it asks for a token" in done.stderr


@pytest.mark.parametrize(("code", "shown"), [(2, 2), (-9, 137), (None, 1)])
def test_a_job_that_a_signal_ended_has_the_code_that_shells_report(code: int | None, shown: int):
    assert JobEnded("ended", code).exit_code == shown


@pytest.mark.parametrize(
    ("job", "file", "message"),
    [
        (
            ("--model.path", "models/base"),
            "models/base/model.safetensors",
            r"model\.path: models/base: models/base/model\.safetensors is not sent",
        ),
        (("--model.path", "outputs/sft/final"), "outputs/sft/final/config.json", r"outputs/sft/final/config\.json is"),
        (("--data.path", "own/rows.jsonl"), "own/rows.jsonl", r"data\.path: own/rows\.jsonl: own/rows\.jsonl is not"),
    ],
)
def test_files_that_stay_behind_are_named_before_anything_is_sent(
    submit_config: Callable[..., SubmitConfig], folder: Path, job: tuple[str, ...], file: str, message: str
):
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("{}")
    (folder / ".gitignore").write_text("own/\n")
    with pytest.raises(BadInput, match=message):
        run(submit_config("sft", "configs/sft.yaml", *job))


def test_nobody_answers(submit_config: Callable[..., SubmitConfig]):
    (port,) = free_ports(1)
    with pytest.raises(RlhfError, match=r"no Ray dashboard answers at .* within 1 s"):
        run(submit_config(address=f"http://127.0.0.1:{port}", connect_seconds=1))


def test_a_relative_output_would_be_lost(submit_config: Callable[..., SubmitConfig], folder: Path):
    (folder / "lost.yaml").write_text(yaml.safe_dump(CONFIG | {"output": "outputs/run"}))
    with pytest.raises(BadInput, match="output: outputs/run: on a cluster it must be an absolute path"):
        run(submit_config("sft", "lost.yaml"))


OUTPUTS: dict[str, dict[str, Any]] = {
    "evaluate": {"output": "lost", "models": {"one": {"path": "m"}}, "data": {"path": "d.jsonl"}, "oracle": FUNCTION},
    "data": {"output": "lost", "sources": [{"kind": "files", "path": "d.jsonl"}]},
    "label": {"store": "/labels.db", "answers": {"kind": "file", "path": "d.jsonl"}, "export": "lost.jsonl"},
}


@pytest.mark.parametrize("verb", OUTPUTS)
def test_every_jobs_output_must_outlive_the_copy(
    verb: str, submit_config: Callable[..., SubmitConfig], folder: Path
) -> None:
    (folder / "lost.yaml").write_text(yaml.safe_dump(OUTPUTS[verb]))
    with pytest.raises(BadInput, match=r"(output: lost|export: lost\.jsonl): on a cluster it must be an absolute path"):
        run(submit_config(verb, "lost.yaml"))


def test_a_config_outside_of_what_is_sent(submit_config: Callable[..., SubmitConfig], folder: Path):
    with pytest.raises(BadInput, match="is not within working_dir"):
        run(submit_config(working_dir="outputs"))


@pytest.mark.parametrize("settings", [{}, {"render": "slurm"}, {"render": "kuberay"}])
def test_what_a_cluster_shows_to_all_holds_no_credential(
    submit_config: Callable[..., SubmitConfig], settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    job = ("sft", "configs/sft.yaml", "--data.path", "https://me:s3same-Opens@host/rows.jsonl")
    with pytest.raises(BadInput, match="holds a credential") as caught:
        run(submit_config(*job, **settings))
    assert "s3same" not in str(caught.value) + capsys.readouterr().out


def test_a_wrong_config_is_found_before_it_is_sent(submit_config: Callable[..., SubmitConfig]):
    with pytest.raises(BadInput, match="sed"):
        run(submit_config("sft", "configs/sft.yaml", "--sed", "1"))


@pytest.mark.parametrize(("target", "file"), [("kuberay", "kuberay.yaml"), ("slurm", "slurm.sh")])
def test_the_files_in_launch_are_what_is_rendered(
    target: str, file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    run(SubmitConfig.model_validate({"job": ["ppo", "launch/ppo.yaml"], "render": target}))
    assert capsys.readouterr().out == (ROOT / "launch" / file).read_text()


def test_the_kuberay_job_has_the_nodes_of_the_groups(
    submit_config: Callable[..., SubmitConfig], folder: Path, capsys: pytest.CaptureFixture[str]
):
    groups = {"cpu": {"nodes": 3, "cpus_per_node": 1.5}, "gpu_nodes": {"gpus_per_node": 8, "cpus_per_node": 32}}
    text = yaml.safe_dump(ON_STORAGE | {"groups": groups, "trainer": {"on": "gpu_nodes"}})
    (folder / "sft.yaml").write_text(text)
    run(submit_config("sft", "sft.yaml", "--output", "/storage/it's", render="kuberay", image="rlhf:1", name="mine"))
    config, job = yaml.safe_load_all(capsys.readouterr().out)
    assert config["data"]["config.yaml"].strip() == text.strip()
    assert config["metadata"]["name"] == job["metadata"]["name"] + "-config" == "mine-config"
    spec = job["spec"]
    assert spec["entrypoint"] == """rlhf sft /etc/rlhf/config.yaml --output '/storage/it'"'"'s'"""
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    cpu, gpu = cluster["workerGroupSpecs"]
    assert (cpu["groupName"], cpu["replicas"], cpu["rayStartParams"]["num-cpus"]) == ("cpu", 3, "2")
    assert gpu["groupName"] == "gpu-nodes", "as Kubernetes takes it"
    container = gpu["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"cpu": "32", "nvidia.com/gpu": "8"}
    assert "nvidia.com/gpu" not in cpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in gpu["template"]["spec"]["volumes"]}


def test_the_pods_have_the_network_devices_and_volumes_that_are_asked_for(
    submit_config: Callable[..., SubmitConfig], folder: Path, capsys: pytest.CaptureFixture[str]
):
    config = ON_STORAGE | {"groups": {"main": {"gpus_per_node": 8}}, "environment": {"secrets": ["HF_LOGIN"]}}
    config |= {"model": {"path": "/models/big"}}
    (folder / "sft.yaml").write_text(yaml.safe_dump(config))
    options = {
        "mounts": {"/storage": "runs", "/models": "weights"},
        "host_network": True,
        "rdma": "rdma/hca",
        "pod_environment": {"NCCL_DEBUG": "INFO"},
    }
    run(submit_config("sft", "sft.yaml", render="kuberay", **options))
    _, job = yaml.safe_load_all(capsys.readouterr().out)
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
        [container] = pod["containers"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "storage" in v["name"]}
        assert {mounted[name]: claim for name, claim in claims.items()} == options["mounts"]
        variables = {one["name"]: one.get("value") for one in container["env"]}
        secrets = {"HF_LOGIN": None, "WANDB_API_KEY": None}
        assert variables == secrets | {"NCCL_DEBUG": "INFO", "RAY_worker_niceness": "0"}
    assert container["resources"]["limits"]["rdma/hca"] == "1"
    assert container["securityContext"] == {"capabilities": {"add": ["IPC_LOCK"]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"path": "texts.txt"}}, r"data\.path: texts\.txt: is relative, and pods have no such file"),
        ({"model": {"path": "./model"}}, r"model\.path: \./model: is relative"),
        ({"model": {"path": "/shared/model"}}, r"model\.path: .* is on no volume .*/shared: CLAIM"),
        ({"output": "/storage-2/run"}, r"output: .* is on no volume of the pods, which mount /storage;"),
        (
            {"groups": {"a_b": {}, "a-b": {}}, "trainer": {"on": "a_b"}},
            "groups: a-b and a_b are both a-b to Kubernetes",
        ),
    ],
)
def test_what_pods_would_lack_is_refused(
    submit_config: Callable[..., SubmitConfig], folder: Path, changes: dict[str, Any], message: str
):
    (folder / "sft.yaml").write_text(yaml.safe_dump(ON_STORAGE | changes))
    with pytest.raises(BadInput, match=message):
        run(submit_config("sft", "sft.yaml", render="kuberay"))


@pytest.mark.parametrize("code", [0, 3])
def test_the_slurm_script_starts_all_nodes_and_ends_as_the_command(
    submit_config: Callable[..., SubmitConfig], folder: Path, capsys: pytest.CaptureFixture[str], code: int
):
    """With stand-ins for Slurm's and Ray's commands that write down how they were called."""
    group = '{"main": {"nodes": 2, "cpus_per_node": 4}}'
    run(submit_config("sft", "configs/sft.yaml", "--groups", group, render="slurm"))
    (folder / "job.sh").write_text(capsys.readouterr().out)
    binaries = folder / "bin"
    binaries.mkdir()
    log = folder / "log"
    stand_ins = {
        "scontrol": "printf 'node1\\n127.0.0.2\\n'",
        "srun": f'echo "srun $*" >> {log}; exec sleep 60',
        "ray": f'test "$RAY_worker_niceness" = 0 && echo "ray $*" >> {log}',
        "rlhf": f'sleep 0.5; echo "rlhf $* at $RAY_ADDRESS with ${{#RAY_AUTH_TOKEN}}" >> {log}; exit {code}',
    }
    for name, body in stand_ins.items():
        (binaries / name).write_text(f"#!/bin/bash\n{body}\n")
        (binaries / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "41"}
    # Ray's steps must end with the command.
    done = subprocess.run(["bash", "job.sh"], cwd=folder, env=environment, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (code, b"")
    lines = sorted(log.read_text().splitlines())
    ray, rlhf, first, second = lines
    assert ray.startswith("ray health-check --address ")
    address = ray.split()[-1]
    assert address == "127.0.0.1:20041", "from which the last node is reached"
    assert rlhf.startswith("rlhf sft configs/sft.yaml --groups")
    assert rlhf.endswith(f"at {address} with 64")
    assert "--cpus-per-task=4 --nodelist=node1 ray start --head" in second
    assert f"--nodelist=127.0.0.2 ray start --address={address} --num-cpus=4 --num-gpus=0" in first


def test_the_slurm_header(submit_config: Callable[..., SubmitConfig], capsys: pytest.CaptureFixture[str]):
    groups = '{"a": {"nodes": 2, "cpus_per_node": 4}, "b": {"gpus_per_node": 8, "cpus_per_node": 1.5}}'
    run(submit_config("sft", "configs/sft.yaml", "--groups", groups, "--trainer.on", "a", render="slurm"))
    header = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#SBATCH")]
    assert (
        header
        == textwrap.dedent(
            """\
        #SBATCH --job-name=rlhf-sft
        #SBATCH --nodes=3
        #SBATCH --ntasks-per-node=1
        #SBATCH --cpus-per-task=4
        #SBATCH --gpus-per-node=8
        #SBATCH --output=%x-%j.log"""
        ).splitlines()
    )
