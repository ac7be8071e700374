"""`rlhf compare`: people choose blindly between the answers of two checkpoints."""

from collections.abc import Iterator, Sequence
from contextlib import closing

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.labelling import CompareConfig, FileAnswers
from rlhf_ray.data.cleaning.texts import joined
from rlhf_ray.data.records import Prompt
from rlhf_ray.evaluation.statistics import Estimate
from rlhf_ray.feedback.labelling.agreement import win_rates
from rlhf_ray.feedback.labelling.database import Database
from rlhf_ray.feedback.labelling.desk import Desk
from rlhf_ray.feedback.labelling.items import NewItem
from rlhf_ray.feedback.labelling.labels import Labels
from rlhf_ray.feedback.labelling.writers import AnswerFile, AnswerWriter
from rlhf_ray.jobs.people.page import Door, export, open_door, open_writers, read_pool, serve, settings_of
from rlhf_ray.tracking.terminal import say


def run(config: CompareConfig) -> None:
    """Fill the store with pairs and show the page; or, with `export`, write the choices and say who won.

    Raises:
        RlhfError: with what is wrong and what to do.
    """
    if config.export is not None:
        export(config, "compare", config.export)
        with closing(Database(config.store)) as database:
            report_win_rates(Labels(database, "compare"))
        return
    with open_door(config) as door:
        _show(config, door)


def _show(config: CompareConfig, door: Door) -> None:
    prompts = _prompts(config)
    with closing(Database(config.store)) as database, open_writers([config.a, config.b], config) as writers:
        desk = Desk(database, "compare", writers, settings_of(config, answers_per_prompt=2))
        both = all(isinstance(side, FileAnswers) for side in (config.a, config.b))
        to_write = (NewItem(prompt, name, _source(writers)) for prompt, name in prompts)
        desk.items.add(_written(prompts, writers) if both else to_write)
        serve(desk, door)
        report_win_rates(desk.labels)


def _prompts(config: CompareConfig) -> list[tuple[Prompt, str]]:
    """Read the prompts that both sides can answer."""
    files = {key: AnswerFile(side) for key, side in (("a", config.a), ("b", config.b)) if isinstance(side, FileAnswers)}
    pool = read_pool(config.prompts) if config.prompts is not None else next(iter(files.values())).prompts()
    answered = [{joined(prompt) for prompt, _ in file.prompts()} for file in files.values()]
    shared = [(prompt, name) for prompt, name in pool if all(joined(prompt) in known for known in answered)]
    if not shared:
        raise BadInput(
            f"{' and '.join(files)}: no prompt is answered by both sides; generate both from the same prompts"
        )
    if len(shared) < len(pool):
        say(f"  {len(pool) - len(shared)} prompts left out: only one side answers them")
    return shared


def _written(prompts: Sequence[tuple[Prompt, str]], writers: Sequence[AnswerWriter]) -> Iterator[NewItem]:
    versions = tuple(writer.version for writer in writers)
    same = 0
    for prompt, name in prompts:
        answers = tuple(writer.write(prompt, 1)[0] for writer in writers)
        if len(set(answers)) > 1:
            yield NewItem(prompt, name, _source(writers), answers, versions)
        else:
            same += 1
    if same:
        say(f"  {same} prompts left out: both sides say the same")


def _source(writers: Sequence[AnswerWriter]) -> str:
    return " against ".join(writer.version for writer in writers)


def report_win_rates(labels: Labels) -> None:
    """Print how often b was preferred to a, by class of prompt."""
    for line in win_rates(labels.all()):
        if line.rate.count:
            say(f"b preferred, {line.prompt_class}: {_percent(line.rate)}; a {line.a_wins}, equal {line.equal}")


def _percent(rate: Estimate) -> str:
    return f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%}, n = {rate.count})"
