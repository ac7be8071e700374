"""`rlhf data`: acquire, clean, classify, sample and split rows, with an account of all that was removed."""

import os
import shutil
import time
from pathlib import Path

from rich.console import Console

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.config.jobs.cleaning import DataJobConfig
from rlhf_ray.config.reading.loading import dump_config
from rlhf_ray.data.cleaning.cleaner import Cleaner
from rlhf_ray.jobs.data.account import Account
from rlhf_ray.jobs.data.classifiers import prompt_classifier, quality_classifier
from rlhf_ray.jobs.data.parts import Parts
from rlhf_ray.jobs.data.processes import open_processes
from rlhf_ray.jobs.data.sieve import Sieve
from rlhf_ray.jobs.data.sources import open_sources
from rlhf_ray.jobs.inference.rows import RowProgress


def run(config: DataJobConfig) -> None:
    """Write the folder `config.output`; it appears when everything in it is complete.

    It holds a file for each split, `manifest.json`, `audit.jsonl` (a line for each row that was removed), the trained
    classifiers, what HTTP sources gave, and `config.yaml`.

    Raises:
        BadInput: a source, file or row is wrong; the message names it.
        RlhfError: with what is wrong and what to do.
    """
    began = time.monotonic()
    if "://" in config.output:
        raise BadInput(f"output: {config.output} is a URL; name a local folder")
    output = Path(config.output).expanduser()
    unfinished = prepare(output)
    try:
        account = write_all(config, unfinished)
        (unfinished / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        os.replace(unfinished, output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    console = Console(highlight=False, markup=False)
    for line in account.lines(time.monotonic() - began):
        console.print(line, soft_wrap=True)
    console.print(f"manifest and audit in {config.output}", soft_wrap=True)
    if account.kept == 0:
        raise RlhfError(f"no row was kept; {config.output}/audit.jsonl says why of each")


def prepare(output: Path) -> Path:
    """Make a folder beside `output`, which takes its name when it is complete.

    Raises:
        BadInput: `output` is there already, or cannot be made.
    """
    if output.exists():
        raise BadInput(f"output: {output} exists; remove it, or name another folder")
    unfinished = output.with_name(f".{output.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f"output: cannot make {unfinished}: {error.strerror}") from None
    return unfinished


def write_all(config: DataJobConfig, folder: Path) -> Account:
    """Acquire, clean and write; everything goes below `folder`."""
    sources = open_sources(config, folder)
    account = Account(config, sources)
    quality = quality_classifier(config, folder, account)
    classes = prompt_classifier(config, folder, account)
    if classes is not None and config.sample is not None:
        unknown = [name for name in config.sample.shares if name not in classes.classes]
        if unknown:
            raise BadInput(f"sample.shares: no class is named {unknown[0]!r}; classes are {', '.join(classes.classes)}")
    cleaner = Cleaner(config, quality, classes)
    with Sieve(config, folder) as sieve, open_processes(config, cleaner, folder) as batches:
        with RowProgress("cleaning", None) as progress:
            for source in sources:
                for batch in batches(source):
                    account.add(source, batch, sieve.add(source.name, batch))
                    progress.advance(batch.rows)
                account.close(source)
        parts = Parts(config, folder, sieve)
        parts.write()
        account.finish(sieve, parts, folder)
    return account
