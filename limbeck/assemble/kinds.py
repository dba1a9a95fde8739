"""Kinds of text: running text, rows of a task, or one's own. A kind is a value that says how a text is read and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from limbeck.assemble import augmentation, own, tasks
from limbeck.distil.lessons import Term
from limbeck.errors import UserError
from limbeck.recipe.data import Augment, Data
from limbeck.recipe.recipe import Recipe
from limbeck.system.processes import World
from limbeck.text.block_feed import Feed
from limbeck.text.blocks import PARTS, Corpus, prepare
from limbeck.text.feed import Repeatable
from limbeck.text.heldout import separate, separate_rows
from limbeck.text.row_feed import TaskFeed
from limbeck.text.rows import TaskCorpus, as_text, label_of, prepare_task

if TYPE_CHECKING:
    from limbeck.assemble.design import Design

TextSources = Corpus | TaskCorpus
Tell = Callable[[str], None]
BLOCKS = 64  # of an evaluation


class TextKind(Protocol):
    """How a text is read. One's own kind says what it does otherwise than `RunningText` or `Rows`, of which it is a class.

    Example:
        class Backwards(RunningText):
            '''Every block from its end to its beginning.'''

            def feed(self, plan, blocks, seed, part):
                return Turned(super().feed(plan, blocks, seed, part))
    """

    noun: str  # of what is measured
    unit: str  # of what a corpus holds
    one_length: bool  # all rows of a batch have `data.max_length` tokens
    of_tokens: bool  # tokens are predicted, not classes or scores

    def require(self, plan: Design) -> None:
        """Whether all is there that its text is made with; raises UserError where not. Asked before any is read."""
        ...

    def prepare(self, plan: Design, tell: Tell) -> TextSources:
        """The tokenised text, from the cache or made now."""
        ...

    def copied(self, plan: Design, world: World, corpus: TextSources, tell: Tell) -> TextSources:
        """The text with what the recipe adds to it before training."""
        ...

    def added(self, plan: Design) -> str:
        """What `copied` adds, in words; empty where it adds nothing."""
        ...

    def added_flops(self, plan: Design) -> float:
        """What that costs."""
        ...

    def texts(self, data: Data) -> Iterator[tuple[str, str]] | None:
        """Part (`train`, `heldout` or another word) and text of every document, as `prepare` hashes them; None where only files tell."""
        ...

    def masks(self, data: Data, causal: bool) -> bool:
        """Whether tokens of the input are masked."""
        ...

    def feed(self, plan: Design, blocks: Any, seed: int, part: str) -> Repeatable:
        """The batches of one seed from a part, `train` or `heldout`."""
        ...

    def selected(self, data: Data, rows: int) -> float:
        """How many tokens of so many full rows a logit loss looks at."""
        ...

    def measured(self, table: Recipe, heldout: Any) -> int:
        """How many are measured at an evaluation."""
        ...

    def explained(self, table: Recipe, heldout: Any) -> int:
        """On how many reasons are looked for."""
        ...

    def metrics(self, data: Data) -> str | None:
        """The kind of task whose metrics are told, None where there is none."""
        ...

    def targets(self, table: Recipe, made: Mapping[str, Sequence[Term]], causal: bool) -> None:
        """Whether the text gives every setting what its losses look at; raises UserError where not."""
        ...

    def repeats(self, data: Data, causal: bool) -> None:
        """Whether every epoch reads the same, as a cache needs; raises UserError where not."""
        ...


class RunningText(TextKind):
    """Documents, packed into blocks of one length."""

    noun, unit, one_length, of_tokens = "blocks", "documents", True, True

    def require(self, plan: Design) -> None:
        """The files alone."""

    def prepare(self, plan: Design, tell: Tell) -> TextSources:
        """Tokens of the documents, packed."""
        return prepare(plan.data, plan.teacher_tokenizer, plan.student_tokenizer, tell=tell)

    def copied(self, plan: Design, world: World, corpus: TextSources, tell: Tell) -> TextSources:
        """The text as it is."""
        return corpus

    def added(self, plan: Design) -> str:
        """Nothing."""
        return ""

    def added_flops(self, plan: Design) -> float:
        """None."""
        return 0.0

    def texts(self, data: Data) -> Iterator[tuple[str, str]] | None:
        """The documents."""
        return ((part, text) for part, _, text in separate(data))

    def masks(self, data: Data, causal: bool) -> bool:
        """As the recipe says, but never of a causal model."""
        return not causal and data.masking.mode != "none"

    def feed(self, plan: Design, blocks: Any, seed: int, part: str) -> Repeatable:
        """Blocks, masked unless the model is causal."""
        data, rows = plan.recipe.data, plan.recipe.train.batch_size
        how = {"masking": data.masking, "positions": data.positions, "causal": plan.causal}
        return Feed(blocks, seed=seed, batch_size=rows, **how)

    def selected(self, data: Data, rows: int) -> float:
        """The masked ones, a share, or all."""
        share = data.masking.probability if data.positions == "masked" else getattr(data.positions, "sampled", 1.0)
        return share * rows * data.max_length

    def measured(self, table: Recipe, heldout: Any) -> int:
        """What the recipe says, or `BLOCKS`."""
        return table.train.eval_blocks or BLOCKS

    def explained(self, table: Recipe, heldout: Any) -> int:
        """What the recipe says."""
        return table.train.reasons_blocks

    def metrics(self, data: Data) -> str | None:
        """None."""
        return None

    def targets(self, table: Recipe, made: Mapping[str, Sequence[Term]], causal: bool) -> None:
        """Masked positions and labels need masking."""
        if causal and table.data.positions == "masked":
            raise UserError("data.positions: masked, but a causal model is never masked; set data.positions to all")
        if causal or self.masks(table.data, causal):
            return
        for name, learned in made.items():
            if any("labels" in term.needs for term in learned):
                raise UserError(
                    f"settings.{name}: without masking there are no labels to learn; set data.masking.mode to dynamic or static"
                )

    def repeats(self, data: Data, causal: bool) -> None:
        """Not where it is masked anew."""
        if data.masking.mode == "dynamic" and not causal:
            raise UserError(
                "cache: every epoch masks the text anew, and a cache holds one masking; set data.masking.mode to static"
            )


class Rows(RunningText):
    """Rows of a task, each with a class or a score."""

    noun, unit, one_length, of_tokens = "rows", "rows", False, False

    def require(self, plan: Design) -> None:
        """The model that proposes words for copies."""
        if _augments(plan.data):
            augmentation.masked_model(plan)

    def prepare(self, plan: Design, tell: Tell) -> TextSources:
        """Tokens and labels of the rows."""
        tokenizers = (plan.teacher_tokenizer, plan.student_tokenizer)
        return prepare_task(plan.data, *tokenizers, tell=tell, classes=plan.classes or None)

    def copied(self, plan: Design, world: World, corpus: TextSources, tell: Tell) -> TextSources:
        """With the copies of its rows that the recipe asks for, of which every process makes a share."""
        if not _augments(plan.data):
            return corpus
        assert isinstance(corpus, TaskCorpus)
        return augmentation.augmented(plan, world, corpus, tell)

    def added(self, plan: Design) -> str:
        """Copies of rows."""
        how = _augments(plan.data)
        return f"up to {how.copies} copies of each row, made when the run begins" if how else ""

    def added_flops(self, plan: Design) -> float:
        """Of the model that proposes words for the copies."""
        return augmentation.flops(plan) if _augments(plan.data) else 0.0

    def texts(self, data: Data) -> Iterator[tuple[str, str]] | None:
        """The rows, each with its label; copies are not made again."""
        return None if _augments(data) else _rows(data)

    def masks(self, data: Data, causal: bool) -> bool:
        """Never."""
        return False

    def feed(self, plan: Design, blocks: Any, seed: int, part: str) -> Repeatable:
        """Rows, filled up to the longest of a batch."""
        data, tokenizer = plan.recipe.data, plan.student_tokenizer
        types = any("token_type_ids" in one.model_input_names for one in (plan.teacher_tokenizer, tokenizer))
        length = data.max_length if data.pad_to == "max_length" and part == "train" else None
        how = {"pad_id": tasks.padding(tokenizer), "types": types, "pool": data.group_by_length, "length": length}
        return TaskFeed(blocks, seed=seed, batch_size=plan.recipe.train.batch_size, **how)

    def selected(self, data: Data, rows: int) -> float:
        """One prediction a row."""
        return rows

    def measured(self, table: Recipe, heldout: Any) -> int:
        """What the recipe says, or all."""
        return table.train.eval_blocks or len(heldout)

    def explained(self, table: Recipe, heldout: Any) -> int:
        """All, where reasons are looked for at all."""
        return len(heldout) if table.train.reasons_blocks else 0

    def metrics(self, data: Data) -> str | None:
        """Those of classes or of scores."""
        return data.task.kind if data.task else None

    def targets(self, table: Recipe, made: Mapping[str, Sequence[Term]], causal: bool) -> None:
        """What a task has is looked at with the losses."""

    def repeats(self, data: Data, causal: bool) -> None:
        """Always."""


def _rows(data: Data) -> Iterator[tuple[str, str]]:
    assert data.task is not None
    for part, name, row in separate_rows(data):
        yield part, as_text(row, label_of(row, name, data.task.kind)) if part in PARTS else ""


def _augments(data: Data) -> Augment | None:
    return data.task and data.task.augment


def kind_of(table: Recipe) -> TextKind:
    """The kind of text of a recipe.

    Raises:
        UserError: it names one of its own, and there is none.
    """
    if table.data.kind:
        return own.made(table.data.kind, "data.kind", TextKind)
    return Rows() if table.data.task else RunningText()
