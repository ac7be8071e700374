"""`rlhf label`: people rank answers in a browser."""

from contextlib import closing

from rlhf_ray.config.jobs.labelling import FileAnswers, LabelConfig
from rlhf_ray.feedback.labelling.database import Database
from rlhf_ray.feedback.labelling.desk import Desk
from rlhf_ray.feedback.labelling.items import NewItem
from rlhf_ray.feedback.labelling.writers import AnswerFile
from rlhf_ray.jobs.people.page import Door, export, open_door, open_writers, read_pool, serve, settings_of, show


def run(config: LabelConfig) -> None:
    """Fill the store with prompts and show the page; or, with `export`, write what the store holds.

    Raises:
        RlhfError: with what is wrong and what to do.
    """
    if config.export is not None:
        export(config, "label", config.export)
        return
    with open_door(config) as door:
        _show(config, door)


def _show(config: LabelConfig, door: Door) -> None:
    file = AnswerFile(config.answers) if isinstance(config.answers, FileAnswers) else None
    pool = read_pool(config.prompts) if config.prompts is not None else []
    sources = [] if isinstance(config.answers, FileAnswers) else [config.answers]
    with closing(Database(config.store)) as database, open_writers(sources, config) as writers:
        desk = Desk(database, "label", writers, settings_of(config, config.answers_per_prompt))
        if file is not None:
            desk.items.add(file.items(config.answers_per_prompt))
            show(file.report)
        for writer in writers:
            desk.items.add(NewItem(prompt, name, writer.version) for prompt, name in pool)
        serve(desk, door)
