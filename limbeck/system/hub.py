"""What the Hub says of a name: asked once in a process, and never for long. No torch."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from limbeck.errors import Interrupted

PATIENCE = 10.0  # seconds until the Hub answers


class Answer(NamedTuple):
    """The commit that a revision stands for, or why there is none."""

    commit: str | None
    why: str = ""
    final: bool = False  # there will be none for whoever asks again: no such name, or HF_HUB_OFFLINE


@cache
def model(name: str, revision: str | None) -> Answer:
    """What the Hub says of a model."""
    return _asked("model_info", name, revision)


@cache
def data_set(name: str, revision: str | None) -> Answer:
    """What the Hub says of a data set."""
    return _asked("dataset_info", name, revision)


def _asked(question: str, name: str, revision: str | None) -> Answer:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if constants.HF_HUB_OFFLINE:
        return Answer(None, "HF_HUB_OFFLINE is set", final=True)
    try:
        return Answer(getattr(HfApi(), question)(name, revision=revision, timeout=PATIENCE).sha)
    except Interrupted:
        raise
    except RepositoryNotFoundError:
        return Answer(None, "it knows no such name, or a private one", final=True)
    except RevisionNotFoundError:
        return Answer(None, f"it has no revision {revision}", final=True)
    except HFValidationError as error:
        return Answer(None, sentence(error), final=True)
    except Exception as error:  # the Hub's other errors, and those of whichever HTTP client it uses
        return Answer(None, sentence(error))


def sentence(error: Exception) -> str:
    """The first sentence of an error."""
    line = " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__
    return line if len(line) <= 200 else f"{line[:200]}..."
