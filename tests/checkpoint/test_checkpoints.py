from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_ray.checkpoint import checkpoints as room
from rlhf_ray.checkpoint import parts as parts_room
from rlhf_ray.checkpoint import storage
from rlhf_ray.checkpoint.checkpoints import Checkpoint, Checkpoints, Manifest, read_manifest, write_manifest
from rlhf_ray.checkpoint.parts import Part
from rlhf_ray.checkpoint.storage import CheckpointError, entries, join
from rlhf_ray.runs.saving import restore_newest
from tests.checkpoint.files import write_bytes

ROLES = {"policy": 2, "value": 1}


def save(checkpoints: Checkpoints, step: int, after_write: Callable[[], None] = lambda: None) -> None:
    directory = checkpoints.begin(step)
    parts: dict[str, list[Part]] = {}
    for role, ranks in ROLES.items():
        for rank in range(ranks):
            data = f"{role} {rank} at {step}".encode() * 10
            parts.setdefault(role, []).append(write_bytes(join(directory, role), f"rank_{rank}.safetensors", data))
            after_write()
    checkpoints.commit(step, parts, {"step": step, "kl": 0.1})


def checked(checkpoint: Checkpoint | None) -> int:
    """The step of a checkpoint all of whose parts were read, as those who load it do."""
    if checkpoint is None:
        return 0
    for role in ROLES:
        checkpoint.check(role)
    return checkpoint.step


def damage(folder: str, step: int) -> None:
    fs, inner = fsspec.core.url_to_fs(join(folder, f"step_{step}", "policy", "rank_1.safetensors"))
    content = fs.cat_file(inner)
    fs.pipe_file(inner, b"X" + content[1:])


def test_what_was_committed_is_found(folder: str):
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.latest() is None
    save(checkpoints, 5)
    save(checkpoints, 10)
    latest = Checkpoints(folder, keep=2).latest()
    assert latest is not None
    assert (latest.step, latest.state) == (10, {"step": 10, "kl": 0.1})
    assert entries(latest.role("policy")) == ["rank_0.safetensors", "rank_1.safetensors"]
    assert sorted(entries(latest.directory)) == ["manifest.json", "policy", "value"]
    with pytest.raises(CheckpointError, match=r"holds no critic \(roles in it: policy, value\)"):
        latest.role("critic")


def test_the_oldest_go(folder: str):
    checkpoints = Checkpoints(folder, keep=2)
    for step in (9, 10, 11, 100):
        save(checkpoints, step)
    assert checkpoints.steps() == [11, 100]
    assert entries(folder) == ["step_100", "step_11"]


def test_steps_count_as_numbers_and_foreign_names_stay(folder: str):
    checkpoints = Checkpoints(folder, keep=1)
    write_bytes(folder, "notes.txt", b"mine")
    write_bytes(join(folder, "step_old"), "manifest.json", b"{}")
    save(checkpoints, 9)
    save(checkpoints, 10)
    assert entries(folder) == ["notes.txt", "step_10", "step_old"]


def test_the_driver_hashes_no_part(folder: str, monkeypatch: pytest.MonkeyPatch):
    """Of a large model that would take as long as to read it, which its ranks do together."""
    checkpoints = Checkpoints(folder, keep=2)
    save(checkpoints, 1)

    def hashes(path: str) -> str:
        raise AssertionError(f"{path} is read on the driver")

    monkeypatch.setattr(parts_room, "hash_file", hashes)
    assert checkpoints.latest() is not None
    assert Checkpoints(folder, keep=2).saved(1)


def test_a_damaged_one_is_skipped_and_reported(folder: str, caplog: pytest.LogCaptureFixture):
    checkpoints = Checkpoints(folder, keep=3)
    save(checkpoints, 1)
    save(checkpoints, 2)
    damage(folder, 2)
    assert restore_newest(checkpoints, checked) == 1
    assert "checkpoint of step 2 is damaged" in caplog.text
    assert "rank_1.safetensors does not have the hash" in caplog.text


def test_a_part_that_is_cut_short_is_seen_without_reading_it(folder: str):
    checkpoints = Checkpoints(folder, keep=3)
    save(checkpoints, 1)
    save(checkpoints, 2)
    write_bytes(join(folder, "step_2", "policy"), "rank_1.safetensors", b"short")
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.step == 1


def test_the_run_goes_on_after_a_damaged_one_without_losing_the_whole(folder: str):
    checkpoints = Checkpoints(folder, keep=1)
    save(checkpoints, 10)
    # Had the run stopped before the rotation, both would be there.
    Checkpoints(folder, keep=2).begin(20)
    save(Checkpoints(folder, keep=2), 20)
    damage(folder, 20)
    assert restore_newest(checkpoints, checked) == 10
    save(checkpoints, 15)
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.step == 15
    save(checkpoints, 20)
    assert checkpoints.steps() == [20]
    assert checkpoints.saved(20)


def test_all_damaged_is_an_error_not_a_fresh_start(folder: str):
    checkpoints = Checkpoints(folder, keep=1)
    save(checkpoints, 1)
    damage(folder, 1)
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole: .*move the folder away"):
        restore_newest(checkpoints, checked)


def test_every_flipped_bit_of_a_manifest_is_noticed(tmp_path: Path):
    """A step, a size or the driver's state with another digit is JSON as before."""
    manifest = Manifest(7, {"policy": [Part("rank_0.safetensors", 1234, "ab" * 32)]}, {"kl": 0.25, "seen": [1, None]})
    write_manifest(str(tmp_path), manifest)
    whole = (tmp_path / "manifest.json").read_bytes()
    assert read_manifest(str(tmp_path)) == manifest
    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        (tmp_path / "manifest.json").write_bytes(flipped)
        with pytest.raises(CheckpointError, match="manifest"):
            read_manifest(str(tmp_path))


def test_a_path_of_this_machine_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    save(Checkpoints("a::b/checkpoints", keep=2), 1)
    assert Checkpoints("a::b/checkpoints", keep=2).steps() == [1]
    assert (tmp_path / "a::b" / "checkpoints" / "step_1" / "manifest.json").is_file()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1, "step": 1, "parts": 3, "state": {}}'])
def test_a_manifest_that_says_nothing(folder: str, text: str):
    checkpoints = Checkpoints(folder, keep=2)
    save(checkpoints, 1)
    write_bytes(join(folder, "step_2"), "manifest.json", text.encode())
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.step == 1


def test_a_whole_one_is_never_written_over(folder: str):
    checkpoints = Checkpoints(folder, keep=1)
    save(checkpoints, 1)
    with pytest.raises(CheckpointError, match="this step is saved already"):
        checkpoints.begin(1)
    assert checkpoints.saved(1)


def test_parts_that_the_driver_does_not_see_are_not_committed(folder: str):
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.begin(1)
    with pytest.raises(CheckpointError, match=r"step 1 is not whole: .*rank_0 is missing"):
        checkpoints.commit(1, {"policy": [Part("rank_0", 3, "x")]}, {})
    assert checkpoints.latest() is None


def test_state_that_is_not_json(folder: str):
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.begin(1)
    with pytest.raises(CheckpointError, match="the driver's state is not JSON"):
        checkpoints.commit(1, {}, {"rng": object()})
    assert checkpoints.latest() is None


class Killed(BaseException):
    """The process ends here."""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.integers(1, 3), survives=st.integers(0, 60))
def test_whenever_the_process_dies_the_latest_is_whole(
    tmp_path_factory: pytest.TempPathFactory, keep: int, survives: int
):
    """Saves go on until a storage operation that is the process's last; then a new process looks."""
    folder = str(tmp_path_factory.mktemp("run") / "checkpoints")
    committed: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        _die_after(patch, survives)
        checkpoints = Checkpoints(folder, keep)
        try:
            for step in range(1, 5):
                save(checkpoints, step)
                committed.append(step)
        except Killed:
            pass
    latest = Checkpoints(folder, keep).latest()
    # The manifest may be down although `commit` did not return.
    newest = committed[-1] if committed else 0
    assert (latest.step if latest else 0) in (newest, newest + 1)
    if committed and latest:
        assert latest.step >= newest
    resumed = Checkpoints(folder, keep)
    for step in range((latest.step if latest else 0) + 1, 6):
        save(resumed, step)
    assert resumed.steps() == list(range(6 - keep, 6))
    assert sorted(entries(folder)) == [f"step_{step}" for step in range(6 - keep, 6)], "nothing half-written stays"


def _die_after(patch: pytest.MonkeyPatch, survives: int) -> None:
    """Let so many renames, writes and removals of a single file or folder happen, then raise at each."""
    left = [survives]

    def dying(operation: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return operation(*args, **kwargs)

        return run

    def remove_one_by_one(folder: str) -> None:
        path = Path(folder)
        for entry in sorted(path.rglob("*"), reverse=True) if path.is_dir() else []:
            dying(entry.rmdir if entry.is_dir() else entry.unlink)()
        if path.exists():
            dying(path.rmdir if path.is_dir() else path.unlink)()

    patch.setattr(storage.os, "replace", dying(storage.os.replace))
    patch.setattr(storage.os, "fsync", dying(lambda descriptor: None))
    patch.setattr(room, "remove", remove_one_by_one)
