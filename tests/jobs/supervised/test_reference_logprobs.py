"""The reference's log-probabilities on disk: what they are kept under, and what is never read."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.preferences import Answer
from rlhf_ray.jobs.supervised.reference import ReferenceLogprobs, answers_key, summed
from rlhf_ray.models.identity import model_identity
from tests.conftest import TinyModel


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


ANSWERS = [
    Answer(ids(1, 2), ids(3, 4, 5)),
    Answer(ids(1), ids(6), np.array([0.5], np.float32)),
    Answer(ids(7, 8, 9), ids(2, 2, 2, 2)),
]
SUMS = [-1.2, -0.3, -0.8]


class Reference:
    """Says of each response token minus a tenth of its id, and counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, batch: TokenBatch) -> np.ndarray:
        self.calls += 1
        starts = batch.offsets[:-1] + batch.prompt_lengths
        rows = zip(starts, batch.response_lengths, strict=True)
        return np.concatenate([-0.1 * batch.ids[start : start + length] for start, length in rows]).astype(np.float32)


@pytest.fixture
def said() -> list[str]:
    return []


def reference_of(folder: Path | None, said: list[str], identity: str = "one", tokens: int = 1000) -> ReferenceLogprobs:
    return ReferenceLogprobs(None if folder is None else str(folder), identity, Reference(), tokens, said.append)


@pytest.mark.parametrize("tokens", [1, 5, 1000])
def test_sums_come_in_the_order_asked_for_whatever_the_portions(tokens: int, said: list[str]) -> None:
    np.testing.assert_allclose(reference_of(None, said, tokens=tokens).sums("answers", ANSWERS), SUMS, rtol=1e-6)


def test_both_answers_to_a_prompt_come_in_one_call(said: list[str]) -> None:
    """So the prompt can be computed once for them."""
    seen: list[list[list[int]]] = []

    def reference(batch: TokenBatch) -> np.ndarray:
        seen.append([prompt.tolist() for prompt in batch.prompts])
        return Reference()(batch)

    prompts = [ids(1, 2, 3), ids(4), ids(5, 6)]
    answers = [Answer(prompt, np.full(size, 7, np.int32)) for prompt in prompts for size in (9, 1)]
    found = ReferenceLogprobs(None, "one", reference, 8, said.append).sums("answers", answers)
    np.testing.assert_allclose(found, [-0.7 * size for size in (9, 1) * 3], rtol=1e-6)
    assert seen == [[[1, 2, 3]] * 2, [[5, 6]] * 2, [[4]] * 2]


def test_a_second_run_reads_the_same_bits(tmp_path: Path, said: list[str]) -> None:
    first = reference_of(tmp_path, said).sums("answers", ANSWERS)
    second = reference_of(tmp_path, said)
    assert np.array_equal(second.sums("answers", ANSWERS), first)
    assert second._model.calls == 0
    assert "3 answers read from" in said[-1]
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"], "no partial file stays"


CHANGED = {
    "another reference": ("two", ANSWERS),
    "other rows": ("one", ANSWERS[:2]),
    "another order": ("one", ANSWERS[::-1]),
    "another token": ("one", [Answer(ids(1, 3), ids(3, 4, 5)), *ANSWERS[1:]]),
    "a token over the border": ("one", [Answer(ids(1, 2, 3), ids(4, 5)), *ANSWERS[1:]]),
    "a token in the next row": ("one", [Answer(ids(1, 2), ids(3, 4)), Answer(ids(5, 1), ids(6)), ANSWERS[2]]),
    "another share": ("one", [ANSWERS[0], Answer(ids(1), ids(6)), ANSWERS[2]]),
}


@pytest.mark.parametrize("case", CHANGED)
def test_anything_else_has_a_file_of_its_own(case: str) -> None:
    identity, answers = CHANGED[case]
    assert answers_key(identity, answers) != answers_key("one", ANSWERS)


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


DAMAGED = {
    "empty": lambda content: b"",
    "cut in the header": lambda content: content[:20],
    "cut in the values": lambda content: content[:-2],
    "a bit of the values": lambda content: flip(content, -2 + len(content)),
    "a bit of the header": lambda content: flip(content, 30),
    "no safetensors": lambda content: b"logprobs 1.0 2.0 3.0",
    "of other answers": lambda content: content.replace(b'"key":"', b'"key":"x')[: len(content)],
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_computed_anew(case: str, tmp_path: Path, said: list[str]) -> None:
    expected = reference_of(tmp_path, said).sums("answers", ANSWERS)
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(DAMAGED[case](whole))
    again = reference_of(tmp_path, said)
    assert np.array_equal(again.sums("answers", ANSWERS), expected)
    assert again._model.calls == 1
    assert any(str(file) in line and "anew" in line for line in said)
    assert file.read_bytes() == whole


def test_a_file_under_another_name_is_not_taken(tmp_path: Path, said: list[str]) -> None:
    reference_of(tmp_path, said).sums("answers", ANSWERS)
    [file] = tmp_path.iterdir()
    shutil.copy(file, tmp_path / f"{answers_key('two', ANSWERS)}.safetensors")
    other = reference_of(tmp_path, said, identity="two")
    other.sums("answers", ANSWERS)
    assert other._model.calls == 1


def test_a_folder_that_cannot_be_written_costs_the_cache_only(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "file").write_text("")
    sums = reference_of(tmp_path / "file" / "below", said).sums("answers", ANSWERS)
    np.testing.assert_allclose(sums, SUMS, rtol=1e-6)
    assert "not kept for later runs" in said[-1]


def test_sums_are_of_long_answers_too() -> None:
    """In float32 the running sum would lose what the last tokens add."""
    long = Answer(ids(1), np.ones(100_000, np.int32))
    total = summed(np.full(200_000, -1e-3, np.float32), [long, long])
    np.testing.assert_allclose(total, [-100, -100], rtol=1e-6)


def test_a_model_is_known_by_its_weights(tiny_model: TinyModel, tmp_path: Path) -> None:
    copied = shutil.copytree(tiny_model.tied, tmp_path / "copied")
    model = ModelConfig(path=str(tiny_model.tied), dtype="float32")
    identity = model_identity(model)
    assert model_identity(model.model_copy(update={"path": str(copied)})) == identity
    assert model_identity(model.model_copy(update={"dtype": "bfloat16"})) != identity
    assert model_identity(model.model_copy(update={"path": str(tiny_model.untied)})) != identity
    file = copied / "model.safetensors"
    file.write_bytes(flip(file.read_bytes(), -3 + file.stat().st_size))
    assert model_identity(model.model_copy(update={"path": str(copied)})) != identity
