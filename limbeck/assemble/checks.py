"""Whether it fits together: what is refused before anything is read."""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from limbeck.assemble import tasks, terms
from limbeck.assemble.kinds import kind_of
from limbeck.distil import lessons
from limbeck.errors import UserError
from limbeck.families import reserved_positions
from limbeck.recipe import recipe
from limbeck.recipe.keys import LOSS_KEYS
from limbeck.recipe.models import OF_STUDENTS
from limbeck.text.mixed_feed import counts_of

PER_BATCH = {name for name, keys in LOSS_KEYS.items() if keys.per == "batch"}


def same_words(mine: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, source: str) -> None:
    """Whether a student reads the vocabulary that it learned in an earlier stage."""
    if mine.get_vocab() != theirs.get_vocab():
        raise UserError(
            f"models.student.init: {source} learned another vocabulary than this stage's teacher or tokenizer has; give both "
            "stages the same, or set init to random"
        )


def fits(config: PretrainedConfig, length: int, vocabulary: int) -> None:
    """Whether a model has a position for every token of a block, and an embedding for every token."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions and length > (room := positions - reserved_positions(config)):
        raise UserError(
            f"data.max_length: {length} tokens are more than the {room} positions of the {config.model_type} model; lower it"
        )
    if vocabulary > config.vocab_size:
        raise UserError(
            f"the tokenizer has {vocabulary} tokens and the {config.model_type} model {config.vocab_size}; "
            "give the tokenizer that belongs to the model"
        )


def has_targets(table: recipe.Recipe, made: dict[str, tuple[lessons.Term, ...]], causal: bool) -> None:
    """Whether the data give every setting what its losses look at."""
    for name, setting in table.chosen.items():
        if causal and any(terms.reads_first_token(term) for term in setting.terms):
            raise UserError(
                f"settings.{name}: patient reads the first token, which sees nothing in a causal model; set position: last"
            )
    tasks.has_targets(table, made)
    kind_of(table).targets(table, made, causal)


def sees_enough(table: recipe.Recipe) -> None:
    """Whether losses between rows see more than one of them."""
    rows = table.train.batch_size // table.train.accumulate
    for name, setting in table.chosen.items():
        for term in setting.terms:
            least = 3 if term.loss == "rkd_angle" else 2
            between_rows = term.loss == "similarity" or (term.loss in PER_BATCH and term.taps == ("pooled",))
            if between_rows and rows < least:
                raise UserError(
                    f"settings.{name}.{term.label}: {term.loss} compares rows, and a micro-batch has {rows}; "
                    f"raise train.batch_size or lower train.accumulate, to {least} rows or more"
                )


def mixes(table: recipe.Recipe) -> None:
    """Whether the shares of the texts beside the corpus are whole numbers of rows."""
    counts_of({f"data.{place}": it.share for place, it in table.data.others.items()}, table.train.batch_size)


def can_be_cached(table: recipe.Recipe, taught: bool, causal: bool) -> None:
    """Whether every epoch reads the same text."""
    if table.cache is None or not taught:
        return
    kind_of(table).repeats(table.data, causal)
    for name, setting in table.chosen.items():
        for term in setting.terms:
            fixed = term.teacher not in OF_STUDENTS
            if fixed and term.loss in LOSS_KEYS and LOSS_KEYS[term.loss].padding:
                raise UserError(
                    f"settings.{name}.{term.label}: {term.loss} looks at padding, of which a cache keeps nothing; leave cache out"
                )
