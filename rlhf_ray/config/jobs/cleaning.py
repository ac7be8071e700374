"""`rlhf data`: from raw rows to data sets that are clean, apart from each other, and accounted for."""

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf_ray.config.base import Section
from rlhf_ray.config.checks.files import absent_file, too_many_processes
from rlhf_ray.config.data import RowSource
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.jobs.row_sources import FILE_NAME, FileSource, Source
from rlhf_ray.config.numbers import NonNegativeFloat, NonNegativeInt, PositiveInt, Seed, Share, Workers
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.placement import ClusterConfig
from rlhf_ray.config.reading.documents import KeyPath, Problem

TextChoice = Literal["answer", "answers", "prompt", "row"]
"""Which texts of a row a rule looks at. A row without answers is judged by its prompt."""

USE_CASES = (
    "generation",
    "open_qa",
    "brainstorming",
    "chat",
    "rewrite",
    "summarization",
    "classification",
    "closed_qa",
    "extraction",
    "other",
)
"""What prompts ask for, in the use cases of InstructGPT (Ouyang et al. 2022, table 1)."""

TAKEN_FILES = {"audit.jsonl"}
"""Files of the output that no part may replace."""
PARQUET = ".parquet"
OTHER_ENDINGS = (".json", ".csv", ".tsv", ".txt", ".gz", ".bz2", ".xz")
"""Of formats that are read and not written here; in a part's name they would promise what is not so."""


def part_file(name: str) -> str:
    """Return the file of a part: its name where that ends in .jsonl or .parquet, otherwise with .jsonl."""
    return name if name.endswith((".jsonl", PARQUET)) else f"{name}.jsonl"


PrivacyAction = Literal["mask", "drop", "keep"]


class PrivacyConfig(Section):
    """Treatment of private data in each text and other column: masked, a reason to drop the row, or kept."""

    email: PrivacyAction = "mask"
    """E-mail addresses."""

    mobile: PrivacyAction = "mask"
    """Chinese mobile numbers."""

    identity: PrivacyAction = "mask"
    """Chinese identity numbers with a true checksum and date."""

    card: PrivacyAction = "mask"
    """Bank cards with a true checksum (Luhn)."""

    ip: PrivacyAction = "mask"
    """IPv4 and IPv6 addresses."""

    secret: PrivacyAction = "mask"
    """Keys, tokens, passwords."""


class LengthConfig(Section):
    """Rows whose texts are too short or too long are removed."""

    of: TextChoice = "answer"
    """Texts that are measured."""

    min_characters: NonNegativeInt = 2
    """Shorter texts are too short; white space at both ends does not count."""

    max_characters: PositiveInt = 32768
    """Longer texts are too long."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_characters > self.max_characters:
            raise ValueError(f"min_characters: {self.min_characters} is above max_characters, {self.max_characters}")
        return self


class PunctuationConfig(Section):
    """Rows whose texts are mostly punctuation, or have too little of it, are removed."""

    of: TextChoice = "answer"
    """Texts that are looked at."""

    max_share: Share = 0.5
    """Most punctuation and symbols among the characters that are no space."""

    max_run: PositiveInt = 12
    """Most times that one punctuation mark or symbol may stand in a row."""

    required_from: PositiveInt = 500
    """Texts with so many characters must have some punctuation."""


class QualityConfig(Section):
    """Rows whose texts look like no writing are removed."""

    of: TextChoice = "answer"
    """Texts that are looked at."""

    min_letters: Share = 0.2
    """Least letters (characters of any script) among the characters that are no space."""

    max_repetition: Share = 0.6
    """Most 5-grams of characters that stood in the same text before; measured from 50 characters on."""

    max_broken: Share = 0.0
    """Most characters that show a broken encoding: replacement marks, control and private-use characters."""

    phrases: list[str] = Field(default_factory=list)
    """A text that holds one of these is removed, whatever its capitals and widths."""


class LanguageConfig(Section):
    """Rows in other languages are removed."""

    of: TextChoice = "answer"
    """Texts that are looked at."""

    keep: list[
        Literal["zh", "en", "ja", "ko", "ru", "ar", "th", "hi", "de", "fr", "es", "it", "pt", "other", "none"]
    ] = Field(min_length=1)
    """Languages that stay; ru is any in Cyrillic letters, none a text without letters (numbers, emoji)."""

    min_share: Share = 0.5
    """Least share of the language in the text; five letters of an alphabet count as one Chinese character."""


class ClassifierConfig(Section):
    """Rows that a classifier of high and low quality scores low are removed; it is trained here or read from a file."""

    of: TextChoice = "answer"
    """Texts that are scored; of several the lowest score counts."""

    path: PathText | None = None
    """A classifier.safetensors of an earlier run. None: train one on `high` and `low`."""

    high: RowSource | None = None
    """Examples of high quality."""

    low: RowSource | None = None
    """Examples of low quality."""

    min_score: Share = 0.5
    """Least probability of high quality."""

    min_auc: Share = 0.7
    """Least area under the ROC curve on a fifth of the examples, held out of training; below it the job stops."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        examples = [self.high, self.low].count(None)
        if self.path is None and examples:
            raise ValueError("path: give a trained classifier, or examples in both `high` and `low`")
        if self.path is not None and examples < 2:
            raise ValueError("path: a trained classifier takes no examples; leave out path, or high and low")
        return self


class DuplicatesConfig(Section):
    """Rows that repeat an earlier one are removed."""

    of: Literal["row", "prompt"] = "row"
    """What is compared. Texts are the same whatever their capitals, widths and white space."""

    near: float | None = Field(default=0.8, gt=0, lt=1)
    """Least Jaccard similarity of near duplicates; candidates come from MinHash. None: only same texts."""

    shingle: PositiveInt = 5
    """Characters of the pieces that are compared."""


class ClassesConfig(Section):
    """Each row gets column `class`: what its prompt asks for, in InstructGPT's use cases or classes of your own."""

    path: PathText | None = None
    """A classes.safetensors of an earlier run. None: train on `examples`, or go by rules where there are none."""

    examples: RowSource | None = None
    """Rows with `prompt` and `class`."""

    min_accuracy: Share = 0.5
    """Least accuracy on a fifth of the examples, held out of training; below it the job stops."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.path is not None and self.examples is not None:
            raise ValueError("path: a trained classifier takes no examples; leave out path or examples")
        return self


class SampleConfig(Section):
    """A sample with given shares of the classes."""

    shares: dict[str, NonNegativeFloat] = Field(min_length=1)
    """Share of each class, in any unit; rows of classes that are not named are left out."""

    rows: PositiveInt | None = None
    """Rows of the sample. None: as many as the shares allow."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(share < 0 for share in self.shares.values()) or not any(self.shares.values()):
            raise ValueError("shares: are 0 or more, and not all 0")
        return self


class SplitConfig(Section):
    """One part of the output."""

    share: float = Field(gt=0, le=1)
    """Share of the prompts."""

    content: Literal["rows", "prompts"] = "rows"
    """Whole rows, or only what a policy is asked: column `prompt`, and `class` where there is one."""


def _everything() -> dict[str, SplitConfig]:
    return {"train": SplitConfig(share=1)}


class DataJobConfig(JobConfig):
    """Acquire, clean, classify, sample and split rows; every removed row is accounted for."""

    output: PathText
    """Folder to write; it appears when all is done, and must not exist before."""

    sources: list[Source] = Field(min_length=1)
    """Where rows come from, in this order; of duplicates the first stays."""

    seed: Seed = 0
    """Chooses the sample and the split."""

    processes: Workers = 1
    """Processes that clean rows, on this machine up to 4 for each of its CPUs. More than 1 takes Ray Data; the output
    is the same, byte for byte."""

    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    """Which Ray to use where there is more than one process; sources must then be on storage that every node sees."""

    privacy: PrivacyConfig | None = Field(default_factory=PrivacyConfig)
    """Private data. None: left alone."""

    length: LengthConfig | None = Field(default_factory=LengthConfig)
    """Length of texts. None: any."""

    punctuation: PunctuationConfig | None = Field(default_factory=PunctuationConfig)
    """Punctuation. None: any."""

    quality: QualityConfig | None = Field(default_factory=QualityConfig)
    """Letters, repetition, broken encodings. None: any."""

    language: LanguageConfig | None = None
    """Languages that stay. None: all."""

    classifier: ClassifierConfig | None = None
    """Classifier of quality. None: none."""

    duplicates: DuplicatesConfig | None = Field(default_factory=DuplicatesConfig)
    """Duplicates. None: they stay."""

    classes: ClassesConfig | None = None
    """Classes of prompts. None: rows get none."""

    sample: SampleConfig | None = None
    """A sample by class. None: all rows."""

    splits: dict[str, SplitConfig] = Field(default_factory=_everything, min_length=1)
    """Parts of the output by name, each a file NAME.jsonl, or Parquet where the name ends in .parquet."""

    near_prompts: float | None = Field(default=0.8, gt=0, lt=1)
    """Parts share no prompts of this Jaccard similarity or more that MinHash finds. None: only no same prompts."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [
            source.name or source.path if isinstance(source, FileSource) else source.name for source in self.sources
        ]
        twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
        if twice is not None:
            raise ValueError(f"sources: two are named {twice!r}; give each a `name` of its own")
        self._check_splits()
        if self.sample is not None:
            self._check_sample(self.sample)
        return self

    def data_sets(self) -> dict[KeyPath, RowSource]:
        """Return the files among the sources, and examples that train classifiers."""
        sources = enumerate(self.sources)
        found: dict[KeyPath, RowSource | None] = {
            ("sources", index): source for index, source in sources if isinstance(source, FileSource)
        }
        if self.classifier is not None:
            found |= {("classifier", "high"): self.classifier.high, ("classifier", "low"): self.classifier.low}
        if self.classes is not None:
            found["classes", "examples"] = self.classes.examples
        return {key: source for key, source in found.items() if source is not None}

    def output_folder(self) -> str | None:
        """Return `output`."""
        return self.output

    def missing(self) -> Iterator[Problem]:
        """Find classifiers that are not there, and CPUs that are too few."""
        yield from too_many_processes(self.processes, self.cluster)
        for name, trained in (("classifier", self.classifier), ("classes", self.classes)):
            if trained is not None:
                yield from absent_file((name, "path"), trained.path)

    @property
    def near_prompts_to_group(self) -> float | None:
        """`near_prompts`, where there are several parts that could share them."""
        return self.near_prompts if len(self.splits) > 1 else None

    @property
    def prompt_shingle(self) -> int:
        """Characters of the pieces by which prompts are compared."""
        return (self.duplicates or DuplicatesConfig()).shingle

    def _check_splits(self) -> None:
        files: dict[str, str] = {}
        for name in self.splits:
            file = part_file(name)
            if not FILE_NAME.fullmatch(name) or file in TAKEN_FILES:
                raise ValueError(f"splits: {name!r} cannot name a file here: letters, digits, - and _, and not audit")
            if name.endswith(OTHER_ENDINGS):
                raise ValueError(f"splits: {name!r}: parts are written as .jsonl or .parquet")
            if file in files:
                raise ValueError(f"splits: {files[file]!r} and {name!r} are one file, {file}")
            files[file] = name
        whole = sum(split.share for split in self.splits.values())
        if abs(whole - 1) > 1e-6:
            raise ValueError(f"splits: the shares add up to {whole:g}, not 1")

    def _check_sample(self, sample: SampleConfig) -> None:
        if self.classes is None:
            raise ValueError("sample: goes by class, so `classes` must be set (`classes: {}` takes rules)")
        if self.classes.path is None and self.classes.examples is None:
            unknown = [name for name in sample.shares if name not in USE_CASES]
            if unknown:
                raise ValueError(f"sample: no class is named {unknown[0]!r}; classes are {', '.join(USE_CASES)}")
