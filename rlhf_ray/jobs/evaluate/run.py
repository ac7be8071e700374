"""`rlhf evaluate`: several models side by side on the same held-out prompts, in figures and on one page."""

import json
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from rich.console import Console

from rlhf_ray.cluster.connect import Cluster, connect
from rlhf_ray.cluster.session import ray_session
from rlhf_ray.config.jobs.evaluate import ComparedModel, EvaluateConfig
from rlhf_ray.config.reading.loading import dump_config
from rlhf_ray.evaluation.answers import ModelResult
from rlhf_ray.evaluation.page import PAGE_FILE, summary_table, title_of, write_page
from rlhf_ray.evaluation.row_log import RowLogs
from rlhf_ray.evaluation.summary import as_json, summarise
from rlhf_ray.jobs.evaluate.answers import answer_all, answers_keys, read_all_prompts
from rlhf_ray.jobs.evaluate.logprobs import check_reference, divergences, read_texts
from rlhf_ray.jobs.evaluate.scores import score_all
from rlhf_ray.jobs.evaluate.verdicts import check_judges, judge_all
from rlhf_ray.runs.folder import lock_folder
from rlhf_ray.runs.model_checks import check_reward_sources
from rlhf_ray.tracking.records import replace_file
from rlhf_ray.tracking.run_record import RunRecord
from rlhf_ray.tracking.terminal import say

SUMMARY_FILE = "summary.json"
NARROWEST = 100
"""Columns that the table needs."""


def run(config: EvaluateConfig) -> None:
    """Answer, score, measure and judge what is not on file yet; write `summary.json` and `comparison.html`.

    Raises:
        RlhfError: with what is wrong and what to do. What was found before stays, and the same command goes on.
    """
    check_reward_sources(config)
    check_judges(config)
    check_reference(config)
    prompts = read_all_prompts(config)
    texts = read_texts(config)
    folder = Path(config.output).expanduser()
    with lock_folder(folder), ExitStack() as stack:
        replace_file(folder / "config.yaml", dump_config(config).encode())
        for line in next(iter(prompts.values())).report.lines():
            say(line)
        logs, start = RowLogs(folder), _Start(config, stack)
        keys = answers_keys(config, prompts)
        answers = answer_all(config, logs, prompts, keys, start, say)
        records = {name: {record.prompt_id: record for record in loaded.rows} for name, loaded in prompts.items()}
        scores = score_all(config, logs, answers, records, keys, start, say)
        ratios, fits = divergences(config, logs, answers, records, keys, texts, start)
        results = [
            ModelResult(
                name, model.path, answers[name], scores[name], ratios.get(name), fits.get(name), *cost_of(model)
            )
            for name, model in config.models.items()
        ]
        baseline = config.baseline or next(iter(config.models))
        win_rates, verdicts = judge_all(config, logs, results, baseline, keys, say)
        summary = summarise(results, baseline, config.reference, win_rates)
        content = json.dumps(as_json(summary), indent=2, ensure_ascii=False) + "\n"
        replace_file(folder / SUMMARY_FILE, content.encode())
        write_page(folder / PAGE_FILE, title_of(summary), summary, results, verdicts, config.model_dump(mode="json"))
        table = Console(width=max(Console().width, NARROWEST))
        table.print(summary_table(summary))
        say(f"figures: {folder / SUMMARY_FILE}\npage:    {folder / PAGE_FILE}")


class _Start:
    """Makes a cluster for each phase in one Ray session, which begins where the first phase has something to do."""

    def __init__(self, config: EvaluateConfig, stack: ExitStack) -> None:
        self._config, self._stack = config, stack
        self._began = False

    def __call__(self) -> AbstractContextManager[Cluster]:
        if not self._began:
            self._stack.enter_context(ray_session(self._config.cluster, self._config.groups, say))
            self._began = True
        return connect(self._config.cluster, self._config.groups, say, self._config.environment)


def cost_of(model: ComparedModel) -> tuple[float | None, int | None]:
    """Return the seconds and the peak memory in bytes of the run that made a model, as far as its folder tells."""
    folder = Path(model.run or Path(model.path).parent).expanduser()
    record = RunRecord.read(folder)
    if record is None or record.closed is None:
        return None, None
    return record.closed - record.started, record.peak_memory
