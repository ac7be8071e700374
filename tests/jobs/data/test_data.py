"""`rlhf data` on planted rows: all that was planted is found, nothing else is, and the account adds up."""

import hashlib
import json
import os
import re
import sys
from pathlib import Path

import pytest
import yaml

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.config.jobs.cleaning import DataJobConfig
from rlhf_ray.data.cleaning.classifier import TextClassifier, area_under_curve
from rlhf_ray.jobs.data import run as data
from rlhf_ray.jobs.data import sieve as data_sieve
from tests.jobs.data.cleaning_jobs import job, preferences, read_rows, write_rows

sys.path.append(str(Path(__file__).parents[2] / "data"))
from planted_rows import SHORTEST, clean_text, nearly, plant, spam_text

ROWS = 3000


@pytest.fixture(scope="module")
def planted():
    return plant(ROWS)


@pytest.fixture(scope="module")
def cleaned(planted, tmp_path_factory):
    """The folder of a job over planted rows."""
    folder = tmp_path_factory.mktemp("planted")
    path = write_rows(folder / "rows.jsonl", planted.rows)
    return job(folder / "out", [path], length={"min_characters": SHORTEST})


def test_all_that_was_planted_is_found_and_nothing_else(planted, cleaned):
    kept = {row["id"]: row["text"] for row in read_rows(cleaned / "train.jsonl")}
    assert not kept.keys() & (planted.exact.keys() | planted.near.keys() | planted.short)
    assert kept.keys() >= planted.clean | planted.low | planted.private.keys()
    texts = {row["id"]: row["text"] for row in planted.rows}
    assert all(kept[name] == texts[name] for name in planted.clean), "clean rows are unchanged"
    for name, (kind, datum) in planted.private.items():
        assert kept[name] == texts[name].replace(datum, f"<{kind.upper()}>")


def test_the_audit_names_the_original_and_shows_nothing_private(planted, cleaned):
    audit = read_rows(cleaned / "audit.jsonl")
    name_of = {f"rows.jsonl:{line}": row["id"] for line, row in enumerate(planted.rows, start=1)}
    by_rule = {}
    for entry in audit:
        by_rule.setdefault(entry["rule"], {})[name_of[Path(entry["place"]).name]] = entry
    assert by_rule.keys() == {"length.min_characters", "duplicates.exact", "duplicates.near"}
    for rule, copies in (("duplicates.exact", planted.exact), ("duplicates.near", planted.near)):
        for copy, original in copies.items():
            of = re.search(r"of \S*?(rows\.jsonl:\d+)", by_rule[rule][copy]["detail"])
            assert name_of[of[1]] == original
    written = "".join(file.read_text(encoding="utf-8") for file in cleaned.iterdir())
    assert not [datum for _, datum in planted.private.values() if datum in written]


def test_the_manifest_adds_up(planted, cleaned):
    manifest = json.loads((cleaned / "manifest.json").read_text(encoding="utf-8"))
    [source] = manifest["sources"]
    assert manifest["rows"] == source["rows"] == ROWS
    assert manifest["removed"] == {
        "length.min_characters": len(planted.short),
        "duplicates.exact": len(planted.exact),
        "duplicates.near": len(planted.near),
    }
    assert manifest["masked_rows"] == sum(manifest["masked"].values()) == len(planted.private)
    assert manifest["kept"] == ROWS - sum(manifest["removed"].values()) == manifest["splits"]["train"]["rows"]
    [file] = source["files"]
    content = (cleaned.parent / "rows.jsonl").read_bytes()
    assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    part = manifest["splits"]["train"]
    assert hashlib.sha256((cleaned / part["file"]).read_bytes()).hexdigest() == part["sha256"]
    assert manifest["duplicate_index"]["bytes_per_kept_row"] < 1200, "the first table is for 3,855 rows"
    assert yaml.safe_load((cleaned / "config.yaml").read_text())["duplicates"]["near"] == 0.8


def test_parts_share_no_prompt(tmp_path):
    rows = preferences(600, 0)
    for row in rows[::3]:
        row["prompt"] = f" {row['prompt'].upper()}"
    splits = {
        "reward": {"share": 0.5},
        "ppo": {"share": 0.4, "content": "prompts"},
        "evaluation": {"share": 0.1},
    }
    out = job(tmp_path / "out", [write_rows(tmp_path / "d.jsonl", rows)], splits=splits, classes={})
    parts = {name: read_rows(out / f"{name}.jsonl") for name in splits}
    prompts = {name: {" ".join(row["prompt"].casefold().split()) for row in part} for name, part in parts.items()}
    assert sum(map(len, prompts.values())) == len(set().union(*prompts.values()))
    assert len(parts["ppo"]) == len(prompts["ppo"]), "a policy is asked each prompt once"
    assert parts["ppo"][0].keys() == {"prompt", "class"}
    assert all(row.keys() == {"prompt", "chosen", "rejected", "class"} for row in parts["reward"])
    assert 0.35 < len(parts["reward"]) / 600 < 0.65


def near_families(families, members):
    """Prompts that differ from another of their family in one place; families are far from each other."""
    import random

    source = random.Random(8)
    found = []
    for number in range(families):
        family = [clean_text(source) * 2]
        while len(family) < members:
            family.append(nearly(source.choice(family), source))
        found += [{"prompt": prompt, "family": number} for prompt in family]
    source.shuffle(found)
    return found


def test_parts_share_no_near_prompt(tmp_path):
    rows = [row | {"completion": f"answer {place}"} for place, row in enumerate(near_families(60, 5))]
    path = write_rows(tmp_path / "d.jsonl", rows)
    splits = {"reward": {"share": 0.5}, "ppo": {"share": 0.3, "content": "prompts"}, "evaluation": {"share": 0.2}}
    settings = {"splits": splits, "duplicates": None}

    def families(folder):
        by_prompt = {row["prompt"]: row["family"] for row in rows}
        return [{by_prompt[row["prompt"]] for row in read_rows(folder / f"{name}.jsonl")} for name in splits]

    out = job(tmp_path / "out", [path], **settings)
    first, second, third = families(out)
    assert first | second | third == set(range(60))
    assert not first & second
    assert not (first | second) & third
    assert len(read_rows(out / "ppo.jsonl")) == 5 * len(second), "near prompts are asked, each once"
    told = json.loads((out / "manifest.json").read_text())["prompt_groups"]
    assert (told["prompts"], told["groups"], told["largest"]) == (300, 60, 5)
    apart = families(job(tmp_path / "apart", [path], near_prompts=None, **settings))
    assert apart[0] & apart[1] & apart[2], "what would be without it"


def test_a_template_is_one_group_and_it_is_said(tmp_path, capsys):
    endings = [f"{one}{other}" for one in "abcdefghijklmnopqrst" for other in "uvwxyzabcdefghijklmn"]
    rows = [
        {"prompt": f"please answer the following question about the history of the town {ending}"} for ending in endings
    ]
    path = write_rows(tmp_path / "d.jsonl", rows)
    splits = {"train": {"share": 0.5}, "evaluation": {"share": 0.5}}
    out = job(tmp_path / "out", [path], splits=splits, duplicates=None)
    assert sorted(len(read_rows(out / f"{name}.jsonl")) for name in splits) == [0, len(rows)]
    told = json.loads((out / "manifest.json").read_text())["prompt_groups"]
    assert told["joined_without_comparison"] == len(rows) - 1
    assert f"{len(rows) - 1} were joined without comparison" in capsys.readouterr().out


def test_parts_of_prompts_hold_no_answers(tmp_path):
    """Alpaca's own rows have a column with all of their text."""
    rows = [
        {"instruction": f"请写第{number}首关于春天的诗", "output": f"这是第{number}首，春天已经来到了。"}
        for number in range(20)
    ]
    whole = [row | {"text": f"### 问：{row['instruction']}\n### 答：{row['output']}"} for row in rows]
    splits = {"asked": {"share": 1, "content": "prompts"}}
    path = write_rows(tmp_path / "d.jsonl", whole)
    asked = read_rows(job(tmp_path / "out", [path], splits=splits, duplicates=None) / "asked.jsonl")
    assert asked == [{"prompt": [{"role": "user", "content": row["instruction"]}]} for row in rows]


def test_samples_by_class(tmp_path):
    rows = [{"prompt": f"Write a poem about number {n} and the {n * 7} seas"} for n in range(100)]
    rows += [{"prompt": f"What is the capital of country number {n}, if {n} has one?"} for n in range(60)]
    rows += [{"prompt": f"Summarize the text about case {n}: it went on for {n} days"} for n in range(40)]
    path = write_rows(tmp_path / "d.jsonl", rows)
    settings = {"classes": {}, "duplicates": None}
    shares = {"generation": 2, "open_qa": 1}
    out = job(tmp_path / "all", [path], sample={"shares": shares}, **settings)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["splits"]["train"]["classes"] == {"generation": 100, "open_qa": 50}
    assert manifest["sample"]["not_sampled"] == {"open_qa": 10, "summarization": 40}
    out = job(tmp_path / "few", [path], sample={"shares": shares, "rows": 30}, **settings)
    assert json.loads((out / "manifest.json").read_text())["splits"]["train"]["classes"] == {
        "generation": 20,
        "open_qa": 10,
    }
    smaller = {row["prompt"] for row in read_rows(out / "train.jsonl")}
    assert smaller <= {row["prompt"] for row in read_rows(tmp_path / "all" / "train.jsonl")}, "samples are nested"


def test_quality_classifier(planted, tmp_path):
    import random

    source = random.Random(9)
    high = write_rows(tmp_path / "high.jsonl", [{"text": clean_text(source)} for _ in range(300)])
    low = write_rows(tmp_path / "low.jsonl", [{"text": spam_text(source)} for _ in range(300)])
    path = write_rows(tmp_path / "d.jsonl", planted.rows)
    out = job(tmp_path / "out", [path], classifier={"high": {"path": high}, "low": {"path": low}})
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["classifiers"]["quality"]["auc"] >= 0.9
    kept = {row["id"] for row in read_rows(out / "train.jsonl")}
    assert len(kept & planted.low) < 0.1 * len(planted.low)
    assert len(kept & planted.clean) > 0.9 * len(planted.clean)
    model = TextClassifier.load(str(out / "classifier.safetensors"), "quality")
    texts = {row["id"]: row["text"] for row in planted.rows}
    good, bad = ([texts[name] for name in sorted(names)] for names in (planted.clean, planted.low))
    assert area_under_curve(model.probabilities(good)[:, 0], model.probabilities(bad)[:, 0]) >= 0.9
    again = job(tmp_path / "again", [path], classifier={"path": str(out / "classifier.safetensors")})
    assert (again / "train.jsonl").read_bytes() == (out / "train.jsonl").read_bytes()


def test_trained_classes(tmp_path):
    texts = {"sport": "ball goal match team", "food": "rice soup salt oven"}
    examples = [
        {"prompt": f"{texts[name]} {number}", "class": name} for number in range(60) for name in ("sport", "food")
    ]
    rows = [{"prompt": "the team won the match", "class": "mine"}, {"prompt": "soup with rice"}]
    out = job(
        tmp_path / "out",
        [write_rows(tmp_path / "d.jsonl", rows)],
        classes={"examples": {"path": write_rows(tmp_path / "e.jsonl", examples)}},
    )
    assert read_rows(out / "train.jsonl") == [
        {"prompt": "the team won the match", "original_class": "mine", "class": "sport"},
        {"prompt": "soup with rice", "class": "food"},
    ]


def test_private_data_as_a_reason_to_drop(tmp_path):
    rows = [{"text": "写信给 me@example.com 就好"}, {"text": "我的手机是13812345678"}, {"text": "今天天气很好"}]
    out = job(
        tmp_path / "out",
        [write_rows(tmp_path / "d.jsonl", rows)],
        privacy={"email": "drop", "mobile": "keep"},
    )
    assert [row["text"] for row in read_rows(out / "train.jsonl")] == [rows[1]["text"], rows[2]["text"]]
    [entry] = read_rows(out / "audit.jsonl")
    assert entry["rule"] == "privacy.email"
    assert "example" not in json.dumps(entry)


def test_what_is_removed_is_masked_in_the_audit_even_where_rows_keep_it(tmp_path):
    texts = [f"{'很好' * 20}，我的手机是13812345678，{'再来' * 40}"] * 2 + ["a 13812345678"]
    out = job(
        tmp_path / "out",
        [write_rows(tmp_path / "d.jsonl", [{"text": text} for text in texts])],
        privacy=None,
        quality=None,
        length={"min_characters": 14},
    )
    assert "13812345678" in (out / "train.jsonl").read_text()
    assert "1381" not in (out / "audit.jsonl").read_text()


def test_bad_rows_are_masked_too(tmp_path):
    rows = [{"ranked_texts": None}, {"prompt": "q", "chosen": "call 13812345678", "rejected": "call 13812345678"}]
    path = write_rows(tmp_path / "d.jsonl", [*rows, {"text": "今天天气很好"}])
    out = job(tmp_path / "out", [{"kind": "files", "path": path, "bad_rows": 0.9}])
    assert "1381" not in (out / "audit.jsonl").read_text()
    assert json.loads((out / "manifest.json").read_text())["sources"][0]["bad_rows"] == 2


def test_several_processes_give_the_same_bytes(planted, tmp_path, small_pieces):
    path = write_rows(tmp_path / "d.jsonl", planted.rows)
    settings = {
        "classes": {},
        "language": {"keep": ["zh", "en"]},
        "sample": {"shares": {"other": 1, "open_qa": 1}},
        "splits": {"a": {"share": 0.6}, "b": {"share": 0.4}},
    }
    one = job(tmp_path / "one", [path], **settings)
    two = job(tmp_path / "two", [path], processes=2, **settings)
    names = {file.name for file in one.iterdir()} - {"config.yaml"}
    assert names == {"a.jsonl", "b.jsonl", "audit.jsonl", "manifest.json"}
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert len(read_rows(one / "a.jsonl")) > 100


def test_a_broken_file_is_named_by_other_processes_too(tmp_path):
    (tmp_path / "d.csv").write_text('text\n"open')
    with pytest.raises(BadInput, match=r"d\.csv:\d: not CSV"):
        job(tmp_path / "out", [str(tmp_path / "d.csv")], processes=2)


def test_a_job_that_keeps_nothing_is_no_success_and_says_where_the_reasons_are(tmp_path):
    path = write_rows(tmp_path / "d.jsonl", [{"text": "short"}] * 3)
    with pytest.raises(RlhfError, match=r"no row was kept; .*out/audit\.jsonl says why of each"):
        job(tmp_path / "out", [path], length={"min_characters": 100})
    assert len(read_rows(tmp_path / "out" / "audit.jsonl")) == 3


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "d.jsonl", [{"text": f"今天天气很好 {number}"} for number in range(10)])
    monkeypatch.setattr(data_sieve.Sieve, "rows", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        job(tmp_path / "out", [path])
    assert os.listdir(tmp_path) == ["d.jsonl"]
    monkeypatch.undo()
    # What a killed run left is no obstacle.
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "audit.jsonl").write_text("old")
    job(tmp_path / "out", [path])
    assert sorted(os.listdir(tmp_path)) == ["d.jsonl", "out"]


def test_memory_grows_by_the_index_alone(tmp_path, small_pieces):
    """Peak of Python's own memory on one file and on a file of twice the rows."""
    import tracemalloc

    def peak(rows, name):
        path = write_rows(tmp_path / f"{name}.jsonl", plant(rows).rows)
        tracemalloc.start()
        account = data.write_all(
            DataJobConfig.model_validate({"output": "o", "sources": [{"kind": "files", "path": path}]}),
            data.prepare(tmp_path / name),
        )
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most, account.index_bytes

    peak(1000, "warm")
    first, first_index = peak(4000, "one")
    second, second_index = peak(8000, "two")
    # A table that grows holds its old half for a moment.
    assert second - first < 1.6 * (second_index - first_index) + 300_000


def test_http_sources_are_kept(tmp_path, monkeypatch):
    rows = [{"text": f"今天天气很好 {number}"} for number in range(5)]
    monkeypatch.setattr("rlhf_ray.jobs.data.sources.http_rows", lambda source: iter(rows))
    source = {"kind": "http", "name": "api", "url": "http://127.0.0.1/x", "licence": "MIT"}
    out = job(tmp_path / "out", [source])
    assert read_rows(out / "sources" / "api.jsonl") == rows == read_rows(out / "train.jsonl")
    [told] = json.loads((out / "manifest.json").read_text())["sources"]
    assert (told["name"], told["origin"], told["licence"]) == ("api", "http://127.0.0.1/x", "MIT")
