"""The part of a recipe that says what is read: the text or the task, its labels, its masking. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from limbeck.recipe.fields import Name, Own, Place, Positive, Share, Strict, TextField, wrong

Column = TextField | Annotated[int, Field(ge=0)]


class Masking(Strict):
    """BERT's masking of the input (masked language models only): of the chosen tokens 80 % become [MASK], 10 % another."""

    mode: Literal["dynamic", "static", "none"] = Field(
        default="dynamic", description="static: the same masks in every epoch"
    )
    probability: Share = Field(default=0.15, description="that a token is chosen")


class Augment(Strict):
    """Copies of training rows with some words replaced, as TinyBERT makes them (arXiv 1909.10351)."""

    copies: Positive = Field(default=20, description="tries for every row; equal ones are kept once")
    candidates: Positive = Field(default=15, description="words that may stand in the place of one")
    probability: Share = Field(default=0.4, description="that a word is replaced")
    model: Place | None = Field(
        default=None,
        description="masked language model that proposes words: a folder or a Hub id; what the teacher was fine-tuned from in an earlier stage when left out",
    )
    vectors: Place = Field(
        default="teacher",
        description="for words of several tokens: a file in GloVe's format, or teacher, the embeddings of the masked language model",
    )
    draw: Annotated[int, Field(ge=0)] = Field(default=0, description="which random draws: another number, other copies")
    as_published: bool = Field(
        default=False,
        description="also what TinyBERT's code does otherwise: special tokens, ends of words and the word itself among the candidates drawn from, a second text augmented beside the last copy of the first",
    )


class Task(Strict):
    """Rows of one or two texts and what is to be predicted of them, from .tsv, .csv, .jsonl, .parquet or the Hub."""

    kind: Literal["classification", "regression"] = Field(description="what is predicted of a row: a class, or a score")
    text: Column = Field(
        default="sentence", description="column of the text; a number (from 0) where files have no line of names"
    )
    pair: Column | None = Field(default=None, description="column of the second text, for tasks on pairs")
    label: Column | None = Field(
        default="label", description="column of the class or the score; null where nothing is labelled"
    )
    classes: Annotated[tuple[TextField, ...], Field(min_length=2)] | None = Field(
        default=None,
        description="labels in the order of their logits; those of the training rows, sorted, when left out",
    )
    augment: Augment | None = Field(
        default=None, description="copies of the training rows with words replaced; `{}` for the defaults"
    )

    @property
    def columns(self) -> dict[str, str | int]:
        """What is read of a row: `text`, `pair`, `label` -> column."""
        said = {"text": self.text, "pair": self.pair, "label": self.label}
        return {what: column for what, column in said.items() if column is not None}

    @model_validator(mode="after")
    def _hangs_together(self) -> Task:
        if len({isinstance(column, int) for column in self.columns.values()}) > 1:
            raise wrong("text", "some columns have names and others numbers; give all by name, or all by number")
        if len(set(self.columns.values())) < len(self.columns):
            raise wrong("text", "one column stands twice; text, pair and label are different ones")
        if self.classes and self.kind == "regression":
            raise wrong("classes", "a score has no classes; leave the key out")
        if self.classes and len(set(self.classes)) < len(self.classes):
            raise wrong("classes", "one class stands twice; name each once")
        return self


class Unlabelled(Strict):
    """Text beside the corpus of which labels are not used: it is learnt from teachers alone."""

    corpus: Place = Field(description="as data.corpus")
    share: Share = Field(description="of the rows of every batch")

    @property
    def labels(self) -> bool:
        """Whether its labels are learnt from."""
        return False


class Mixture(Strict):
    """Another text of a mixture."""

    corpus: Place = Field(description="as data.corpus")
    share: Share = Field(description="of the rows of every batch")
    labels: bool = Field(default=True, description="whether its labels are learnt from; false: from teachers alone")


class Sampled(Strict):
    """Some of the positions, drawn at random: of dynamic masking anew in every epoch, else for every block once.

    A mean over them is an unbiased estimate of the mean over all, for the cost of that share of the heads.
    """

    sampled: Share = Field(description="of the positions of a row that would be selected; one at least")


class Data(Strict):
    """The text and how it becomes batches."""

    corpus: Place = Field(
        default="docs",
        description="docs, a file, folder or glob, or hub:ID[:CONFIG][@REVISION]; several joined by ' + '",
    )
    heldout: Share | Place = Field(default=0.02, description="share of the documents, or a corpus of its own")
    task: Task | None = Field(default=None, description="rows with a class or a score, in place of running text")
    unlabelled: Unlabelled | None = Field(default=None, description="a share of every batch that has no labels")
    mixture: dict[Name, Mixture] = Field(
        default={},
        exclude_if=lambda value: not value,
        description="name -> another corpus, with its share of the rows of every batch; the rest is of data.corpus, on which alone the run is measured",
    )
    fold: Literal["test", "validation"] = Field(
        default="test",
        description="validation: hold out other documents, as many, and leave those of the test out of all (for tuning)",
    )
    field: TextField = Field(default="text", description="column of .jsonl, .parquet, .tsv and .csv files")
    separator: TextField = Field(
        default="\n\n",
        description="what stands between the documents of a .txt file; empty lines, and lines of white space, when left out",
    )
    max_bytes: Positive | None = Field(
        default=None, description="stop reading the training corpus after so many bytes of text"
    )
    longest: Positive = Field(
        default=1 << 24,
        description="bytes of the longest document, and of the longest line of a file; more is an error",
    )
    train_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="of the training documents, or rows, drawn by hash: a smaller share lies within a larger one (for ladders)",
    )
    max_length: Annotated[int, Field(ge=4)] = Field(
        default=128, description="tokens of a block, special tokens included"
    )
    group_by_length: Positive = Field(
        default=1,
        description="of a task: batches whose rows are sorted by length together, so that there is less padding; 1: none",
    )
    pad_to: Literal["longest", "max_length"] = Field(
        default="longest",
        description="of a task: how far training rows are filled up; to max_length for losses in which padding counts",
    )
    masking: Masking = Field(default=Masking(), description="of the input of masked language models")
    positions: Literal["all", "masked"] | Sampled = Field(
        default="all",
        description="the tokens on which logit losses are taken: `all`, `masked`, or a share of all, `{sampled: 0.25}`",
    )
    kind: Own | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="how the text is read: the import path of a kind of text of one's own, package.module:name",
    )
    cache: Place | None = Field(default=None, description="folder of the token cache; ~/.cache/limbeck when left out")

    @property
    def others(self) -> dict[str, Unlabelled | Mixture]:
        """The texts beside the corpus, by their places in the table."""
        first = {"unlabelled": self.unlabelled} if self.unlabelled else {}
        return first | {f"mixture.{name}": it for name, it in self.mixture.items()}

    @model_validator(mode="after")
    def _masked_positions(self) -> Data:
        if self.positions == "masked" and self.masking.mode == "none":
            raise wrong("positions", "masked needs masking; set masking.mode to dynamic or static, or positions to all")
        if self.positions == "masked" and self.task is not None:
            raise wrong("positions", "rows of a task are not masked; leave the key out")
        if self.group_by_length > 1 and self.task is None:
            raise wrong("group_by_length", "running text is packed into blocks of one length; leave the key out")
        if self.pad_to != "longest" and self.task is None:
            raise wrong("pad_to", "running text is packed into blocks without padding; leave the key out")
        if self.positions != "all" and self.task is not None:
            raise wrong("positions", "rows of a task have one prediction each; leave the key out")
        if self.masking != Masking() and self.task is not None:
            raise wrong("masking", "rows of a task are not masked; leave the key out")
        return self
