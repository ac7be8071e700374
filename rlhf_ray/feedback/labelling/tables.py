"""Tables of the store of labels, for SQLite and PostgreSQL alike."""

from sqlalchemy import (
    JSON,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

LAYOUT = 1
"""Number of this layout; a store of another is refused, not changed."""

metadata = MetaData()

about = Table("about", metadata, Column("layout", Integer, nullable=False))

items = Table(
    "items",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task", String(16), nullable=False),
    # Hash of task, prompt and where answers come from: the same source adds nothing twice.
    Column("key", String(64), nullable=False, unique=True),
    Column("prompt", JSON, nullable=False),
    Column("prompt_class", Text, nullable=False),
    # Lists of equal length; NULL until a model has answered.
    Column("answers", JSON(none_as_null=True)),
    Column("versions", JSON(none_as_null=True)),
    Column("created", Float, nullable=False),
)

# One row for each annotator that a prompt is meant for. Whoever is given it holds its lease.
slots = Table(
    "slots",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("item_id", ForeignKey("items.id"), nullable=False),
    Column("task", String(16), nullable=False),
    Column("state", String(8), nullable=False),
    # A random number, by which prompts are drawn without counting them.
    Column("draw", Float, nullable=False),
    Column("annotator", Text),
    Column("leased", Float),
    Column("expires", Float),
    Column("draft", JSON(none_as_null=True)),
    UniqueConstraint("item_id", "annotator"),
    Index("slots_to_draw", "task", "state", "draw"),
    Index("slots_by_annotator", "annotator", "task", "state"),
)

skips = Table(
    "skips",
    metadata,
    Column("item_id", ForeignKey("items.id"), primary_key=True),
    Column("annotator", Text, primary_key=True),
    Column("time", Float, nullable=False),
)

# Rows are never removed: what was undone, corrected or deleted stays with its state.
labels = Table(
    "labels",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("item_id", ForeignKey("items.id"), nullable=False),
    Column("task", String(16), nullable=False),
    Column("annotator", Text, nullable=False),
    # Made by the page once for each saving, so that one sent twice is stored once.
    Column("submission", String(64), nullable=False, unique=True),
    Column("state", String(10), nullable=False),
    Column("time", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("ranks", JSON, nullable=False),
    Column("shown", JSON, nullable=False),
    Column("overall", JSON, nullable=False),
    Column("flags", JSON, nullable=False),
    Column("reason", JSON, nullable=False),
    # Who changed the row last, where that was not the annotator by saving it.
    Column("changed_by", Text),
    Column("replaces", Integer),
    Index(
        "labels_once",
        "item_id",
        "annotator",
        unique=True,
        sqlite_where=text("state = 'saved'"),
        postgresql_where=text("state = 'saved'"),
    ),
    Index("labels_by_annotator", "task", "annotator", "state"),
)

# Two clips of an agent's behaviour, to be compared by whoever comes first.
clip_pairs = Table(
    "clip_pairs",
    metadata,
    Column("id", Integer, primary_key=True),
    # The run that asks, and its own number of the pair: a run that is resumed asks nothing twice.
    Column("run", String(64), nullable=False),
    Column("number", Integer, nullable=False),
    Column("left", JSON, nullable=False),
    Column("right", JSON, nullable=False),
    Column("created", Float, nullable=False),
    Column("state", String(8), nullable=False),
    Column("annotator", Text),
    Column("expires", Float),
    UniqueConstraint("run", "number"),
    Index("clip_pairs_to_draw", "run", "state", "number"),
)

# As with labels, what was taken back stays with its state.
clip_choices = Table(
    "clip_choices",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("pair_id", ForeignKey("clip_pairs.id"), nullable=False),
    Column("annotator", Text, nullable=False),
    Column("submission", String(64), nullable=False, unique=True),
    Column("state", String(10), nullable=False),
    Column("choice", String(12), nullable=False),
    Column("time", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Index(
        "clip_choices_once",
        "pair_id",
        unique=True,
        sqlite_where=text("state = 'saved'"),
        postgresql_where=text("state = 'saved'"),
    ),
    Index("clip_choices_by_annotator", "annotator", "state"),
)
