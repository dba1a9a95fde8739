"""How a command ends that does not end well: a user's mistake, an interruption, settings that failed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

# What newcomers from elsewhere write, and what it is called here.
ELSEWHERE = {
    "learning_rate": "lr",
    "max_steps": "steps",
    "epochs": "steps",
    "num_train_epochs": "steps",
    "gradient_accumulation_steps": "accumulate",
    "max_grad_norm": "clip",
    "warmup_steps": "warmup",
    "warmup_ratio": "warmup",
    "lr_scheduler_type": "schedule",
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "intermediate",
    "max_seq_length": "max_length",
    "model_type": "family",
    "dataset": "corpus",
    "alpha": "weight",
    "output_dir": "out",
    "terms": "settings",
    "kd": "forward_kl",
    "kl": "forward_kl",
    "ce": "cross_entropy",
    "jsd": "jensen_shannon",
    "gkd": "jensen_shannon",
    "dkd": "decoupled_kl",
    "dist": "pearson",
    "uld": "universal_logit",
    "tvd": "total_variation",
    "hint": "mse",
    "fitnets": "mse",
    "hidden_mse": "mse",
    "pkd": "patient",
    "nst": "neuron_selectivity",
    "crd": "contrastive",
    "fsp": "flow",
    "rkd": "rkd_distance",
    "minilm": "relation_kl",
    "distillm": "skew_reverse_kl",
}


def printable(text: str) -> str:
    """A text in one line, of which nothing steers a terminal: what is not printable is written as its code.

    >>> print(printable("red: \\x1b[31m"))
    red: \\x1b[31m
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class UserError(Exception):
    """A mistake that the user can mend: one line that says what is wrong, where, and the remedy.

    The command line prints it without a traceback and ends with exit status 2.

    >>> str(UserError("two\\nlines"))
    'two\\\\nlines'
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class Interrupted(Exception):
    """The run was asked to stop, or lost one of its processes: running it again goes on. Exit status 75."""


class Failed(Exception):
    """Some settings did not end, for numbers that are not finite, while the others did; or an export answers otherwise than its student.
    Exit status 3.

    Args:
        lines: what happened to each; one line counts once.

    >>> str(Failed(["a stopped", "b stopped", "a stopped"]))
    'failed: a stopped (and 1 more)'
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = list(dict.fromkeys(lines))
        more = f" (and {len(self.lines) - 1} more)" if len(self.lines) > 1 else ""
        super().__init__(f"failed: {self.lines[0]}{more}")


def nearest(word: str, known: Iterable[str], alike: float = 0.6) -> str:
    """The nearest known name as a question, or all that are known when none is near.

    >>> nearest("temprature", ["temperature", "weight"])
    "did you mean 'temperature'?"
    >>> nearest("lerning_rate", ["lr", "steps"])
    "did you mean 'lr'?"
    """
    here = sorted(known)
    names = dict.fromkeys(here) | {name: here_called for name, here_called in ELSEWHERE.items() if here_called in here}
    close = get_close_matches(word, names, n=1, cutoff=alike)
    return f"did you mean '{names[close[0]] or close[0]}'?" if close else f"known: {', '.join(here)}"


KINDS: dict[
    str, tuple[str, Callable[[Any], bool]]
] = {  # of hyper-parameters: what is said of them, what holds for them
    "positive": ("a number above 0", lambda x: _number(x) and 0 < x < math.inf),
    "weight": ("a number, at least 0", lambda x: _number(x) and 0 <= x < math.inf),
    "share": ("a number from 0 to 1", lambda x: _number(x) and 0 <= x <= 1),
    "fraction": ("a number, at least 0 and below 1", lambda x: _number(x) and 0 <= x < 1),
    "count": ("a whole number above 0", lambda x: isinstance(x, int) and _number(x) and x > 0),
    "flag": ("true or false", lambda x: isinstance(x, bool)),
    "position": ("first or last", lambda x: x in ("first", "last")),
    "number": ("a finite number", lambda x: _number(x) and math.isfinite(x)),
}


def _number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)
