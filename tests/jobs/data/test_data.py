"""`rlhf data` on planted rows: all that was planted is found, nothing else is, and the account adds up."""

import hashlib
import json
import os
import re
import sys
from pathlib import Path

import pytest
import yaml

from rlhf_ray import cli
from rlhf_ray.config.data import RowSource
from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.config.jobs.cleaning import DataJobConfig
from rlhf_ray.data import pieces
from rlhf_ray.data.cleaning.classifier import TextClassifier, area_under_curve
from rlhf_ray.data.sources import read_rows as data_rows
from rlhf_ray.jobs.data import run as data
from rlhf_ray.jobs.data import sieve as data_sieve
from rlhf_ray.jobs.data.run import run

sys.path.append(str(Path(__file__).parents[2] / "data"))
from planted_rows import SHORTEST, clean_text, nearly, plant, spam_text

ROWS = 3000


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def job(folder, sources, **settings):
    """Run a job and return its folder."""
    sources = [source if isinstance(source, dict) else {"kind": "files", "path": source} for source in sources]
    run(DataJobConfig.model_validate({"output": str(folder), "sources": sources} | settings))
    return folder


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


def preferences(count, seed):
    import random

    source = random.Random(seed)
    prompts = [clean_text(source) for _ in range(count // 3)]
    return [
        {"prompt": source.choice(prompts), "chosen": clean_text(source), "rejected": clean_text(source)}
        for _ in range(count)
    ]


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


EXTRAS = [
    {"prompt": "写一首诗，关于春天的雨", "completion": "好雨知时节", "score": 1, "tags": ["a", "b"]},
    {"prompt": "How do I boil an egg?", "completion": "In water, 8 minutes.", "score": 2.5, "source": {"page": 3}},
    {"prompt": "Name a colour of the sky", "completion": "Blue.", "source": {"book": "b"}, "tags": []},
    {"text": "A row of another kind, without a prompt.", "score": None},
]


def without_nulls(value):
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value


def test_parquet_holds_the_same_rows(tmp_path):
    numbered = [{**row, "number": number} for number in range(8) for row in EXTRAS]
    path = write_rows(tmp_path / "d.jsonl", numbered + preferences(120, 3)[:40])
    settings = {"classes": {}, "duplicates": None}
    written = {}
    for ending in (".jsonl", ".parquet"):
        splits = {f"rows{ending}": {"share": 0.8}, f"asked{ending}": {"share": 0.2, "content": "prompts"}}
        out = job(tmp_path / ending[1:], [path], splits=splits, **settings)
        files = sorted(file.name for file in out.iterdir() if file.suffix == ending and file.stem != "audit")
        assert files == [f"asked{ending}", f"rows{ending}"]
        manifest = json.loads((out / "manifest.json").read_text())["splits"]
        for name in splits:
            content = (out / name).read_bytes()
            assert (manifest[name]["file"], manifest[name]["bytes"]) == (name, len(content))
            assert manifest[name]["sha256"] == hashlib.sha256(content).hexdigest()
            read = [row for _, row in data_rows(RowSource(path=str(out / name)))]
            assert len(read) == manifest[name]["rows"] > 0
            written[name] = [without_nulls(row) for row in read]
    for stem in ("rows", "asked"):
        assert written[f"{stem}.parquet"] == written[f"{stem}.jsonl"]
    assert {"text", "prompt", "score", "source", "tags", "chosen"} <= set().union(*written["rows.parquet"])


def test_what_parquet_cannot_hold_is_named_before_all_is_cleaned(tmp_path):
    rows = [{"text": f"今天天气很好 {number}", "note": number} for number in range(30)]
    rows[17]["note"] = "seventeen"
    path = write_rows(tmp_path / "d.jsonl", rows)
    message = r"d\.jsonl:18: Parquet cannot hold column 'note', whose values differ in type .*; name the part \.jsonl"
    with pytest.raises(BadInput, match=message):
        job(tmp_path / "out", [path], splits={"train.parquet": {"share": 1}}, duplicates=None)
    assert os.listdir(tmp_path) == ["d.jsonl"]


def test_parquet_of_masked_numbers_and_of_objects_without_keys(tmp_path):
    rows = [{"text": f"今天天气很好 {number}", "order": 4111111111110000 + number, "meta": {}} for number in range(200)]
    path = write_rows(tmp_path / "d.jsonl", rows)
    out = job(tmp_path / "out", [path], splits={"train.parquet": {"share": 1}}, duplicates=None)
    masked = json.loads((out / "manifest.json").read_text())["masked"]["card"]
    read = [row for _, row in data_rows(RowSource(path=str(out / "train.parquet")))]
    orders = [row["order"] for row in read]
    assert len(orders) == 200
    assert orders.count("<CARD>") == masked > 0
    assert all(order in ("<CARD>", str(row["order"])) for order, row in zip(orders, rows, strict=True))
    assert all(row["meta"] is None for row in read)


def test_what_a_later_batch_makes_inexact_is_named(tmp_path, small_pieces):
    rows = [{"text": f"今天天气很好 {number}", "id": 2**53 + 1 + number} for number in range(1500)]
    rows[1400]["id"] = 0.5
    path = write_rows(tmp_path / "d.jsonl", rows)
    with pytest.raises(BadInput, match=r"d\.jsonl:1401: Parquet cannot hold column 'id'.*above 2\^53"):
        job(tmp_path / "out", [path], splits={"train.parquet": {"share": 1}}, duplicates=None, privacy=None)
    assert os.listdir(tmp_path) == ["d.jsonl"]


def test_parquet_of_nothing(tmp_path):
    path = write_rows(tmp_path / "d.jsonl", [{"text": "short"}] * 3)
    with pytest.raises(RlhfError, match="no row was kept"):
        job(tmp_path / "out", [path], length={"min_characters": 100}, splits={"train.parquet": {"share": 1}})


def test_message_tables_are_cleaned_as_trees(tmp_path, small_pieces):
    rows = []
    for number in range(400):
        names = [f"{number}{letter}" for letter in "abc"]
        rows.append({"message_id": names[0], "role": "prompter", "text": f"第{number}个问题是什么，谁知道呢？"})
        for rank, name in enumerate(names[1:]):
            answer = {"message_id": name, "parent_id": names[0], "role": "assistant", "rank": rank}
            rows.append(answer | {"text": f"第{number}个回答，共两个，这是{rank}号"})
    path = write_rows(tmp_path / "oasst.messages.jsonl", rows)
    out = job(tmp_path / "out", [path], duplicates=None)
    kept = read_rows(out / "train.jsonl")
    assert len(kept) == 400
    assert kept[7]["responses"] == ["第7个回答，共两个，这是0号", "第7个回答，共两个，这是1号"]
    assert kept[7]["prompt"] == [{"role": "user", "content": "第7个问题是什么，谁知道呢？"}]


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


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1 << 16)
    monkeypatch.setattr(pieces, "BLOCK_BYTES", 1 << 14)


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


GOOD = {"output": "out", "sources": [{"kind": "files", "path": "d.jsonl"}]}
CONFIGS = {
    "no sources": ({"sources": []}, r"c\.yaml:\d+: sources: "),
    "two of one name": ({"sources": GOOD["sources"] * 2}, r"sources: two are named 'd\.jsonl'; give each a `name`"),
    "no such file": ({"sources": [{"kind": "files", "path": "e.jsonl"}]}, r"sources\.0\.path: no such file or direc"),
    "unknown kind": ({"sources": [{"kind": "ftp", "path": "d"}]}, r"sources\.0.*kind.*files, http"),
    "unknown layout": (
        {"sources": [{"kind": "files", "path": "d.jsonl", "layout": "sharegtp"}]},
        r"layout: .*sharegpt",
    ),
    "not a URL": (
        {"sources": [{"kind": "http", "name": "x", "url": "example.com"}]},
        r"sources\.0\.url: begins with http:// or https://",
    ),
    "name with a path": ({"sources": [{"kind": "http", "name": "../x", "url": "http://x"}]}, r"name: names a file"),
    "pages in two ways": (
        {"sources": [{"kind": "http", "name": "x", "url": "http://x", "next": "n", "offset_parameter": "o"}]},
        r"offset_parameter: pages are found by `next` or by offset",
    ),
    "cursor from nowhere": (
        {"sources": [{"kind": "http", "name": "x", "url": "http://x", "next_parameter": "n"}]},
        r"next_parameter: takes the cursor that stands at `next`",
    ),
    "lengths crossed": ({"length": {"min_characters": 9, "max_characters": 3}}, r"length\.min_characters: 9 is above"),
    "no languages": ({"language": {"keep": []}}, r"language\.keep: "),
    "unknown language": ({"language": {"keep": ["cn"]}}, r"language\.keep\.0: .*zh"),
    "share above one": ({"quality": {"min_letters": 20}}, r"quality\.min_letters: .*1"),
    "similarity of one": ({"duplicates": {"near": 1}}, r"duplicates\.near: "),
    "unknown rule": ({"lenght": {}}, r"c\.yaml:\d+: lenght: unknown key\. Perhaps you meant length"),
    "classifier of nothing": ({"classifier": {}}, r"classifier\.path: give a trained classifier, or examples"),
    "classifier of both": (
        {"classifier": {"path": "x", "high": {"path": "d.jsonl"}, "low": {"path": "d.jsonl"}}},
        r"classifier\.path: a trained classifier takes no examples",
    ),
    "classifier that is not there": ({"classifier": {"path": "x.safetensors"}}, r"classifier\.path: no such file"),
    "examples that are not there": (
        {"classes": {"examples": {"path": "x.jsonl"}}},
        r"classes\.examples\.path: no such file or directory",
    ),
    "sample without classes": ({"sample": {"shares": {"chat": 1}}}, r"sample: goes by class, so `classes` must be set"),
    "sample of an unknown class": (
        {"classes": {}, "sample": {"shares": {"chats": 1}}},
        r"sample: no class is named 'chats'; classes are generation, open_qa",
    ),
    "sample of nothing": ({"classes": {}, "sample": {"shares": {"chat": 0}}}, r"sample\.shares: are 0 or more"),
    "splits that do not add up": (
        {"splits": {"a": {"share": 0.5}, "b": {"share": 0.3}}},
        r"splits: the shares add up to 0\.8, not 1",
    ),
    "split with a path": ({"splits": {"a/b": {"share": 1}}}, r"splits: 'a/b' cannot name a file here"),
    "split as the audit": ({"splits": {"audit": {"share": 1}}}, r"splits: 'audit' cannot name a file here"),
    "split of another format": (
        {"splits": {"train.csv": {"share": 1}}},
        r"splits: 'train\.csv': parts are written as \.jsonl or \.parquet",
    ),
    "splits of one file": (
        {"splits": {"a": {"share": 0.5}, "a.jsonl": {"share": 0.5}}},
        r"splits: 'a' and 'a\.jsonl' are one file, a\.jsonl",
    ),
    "prompts nearer than same": ({"near_prompts": 1.2}, r"near_prompts: .*less than 1"),
    "output is there": ({"output": "."}, r"output: \S* exists; remove it"),
    "output below a file": ({"output": "d.jsonl/out"}, r"output: cannot write to d\.jsonl/out: d\.jsonl is a file"),
    "output far away": ({"output": "s3://bucket/out"}, r"output: .* is a URL; name a local folder"),
    "too few examples": (
        {"classifier": {"high": {"path": "d.jsonl"}, "low": {"path": "d.jsonl"}}},
        r"class 'high' has 2 examples; at least 20 are needed",
    ),
    "examples without classes": (
        {"classes": {"examples": {"path": "d.jsonl"}}},
        r"classes\.examples: d\.jsonl: each row needs `prompt` and `class`",
    ),
    "too many bad rows": (
        {"sources": [{"kind": "files", "path": "bad.jsonl"}]},
        r"bad\.jsonl: 2 of 3 rows cannot be used.*\n.*bad\.jsonl:2: not JSON",
    ),
    "no rows": ({"sources": [{"kind": "files", "path": "empty.jsonl"}]}, r"empty\.jsonl: holds no rows"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_input_is_one_line_that_names_the_key(tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "d.jsonl", [{"text": "今天天气很好"}, {"text": "The weather is fine"}])
    (tmp_path / "bad.jsonl").write_text('{"text": "a b c"}\noops\n{"no": 1}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    changes, message = CONFIGS[case]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(GOOD | changes))
    assert cli.main(["data", "c.yaml"]) == 2
    told = capsys.readouterr().err
    assert re.search(message, told), told
    assert "Traceback" not in told
    left = {"c.yaml", "d.jsonl", "bad.jsonl", "empty.jsonl"}
    assert set(os.listdir(tmp_path)) == left, "nothing is left behind"


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "d.jsonl", [{"text": "今天天气很好 a@b.co"}] * 3)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(GOOD))
    assert cli.main(["data", "c.yaml", "--seed", "3"]) == 0
    told = capsys.readouterr().out
    assert "3 rows in" in told
    assert "2 removed: duplicates.exact" in told
    assert "3 masked: email" in told
    assert read_rows(tmp_path / "out" / "train.jsonl") == [{"text": "今天天气很好 <EMAIL>"}]
