"""The words around each figure: its title, what it is for those who cannot see it, how to read it."""

from __future__ import annotations

from dataclasses import asdict
from typing import NamedTuple

from limbeck.lab import names
from limbeck.lab.data.run import RunData
from limbeck.recipe.keys import MEASURES


class Caption(NamedTuple):
    """The words around one figure."""

    title: str
    alt: str
    reading: str


LINES = "One line per setting: the mean over its seeds. The band runs from the lowest to the highest seed. "

CAPTIONS: dict[str, Caption] = {  # braces: words of the run
    "capacity": Caption(
        "{score} against size, on {heldout}",
        "Line chart of {score} on {heldout} against the number of parameters, one line per teacher.",
        "Left, the students: one line for each teacher, the mean over the seeds, with a bar from the lowest to the highest seed; marks "
        "of one student stand a little apart. Right, the teachers themselves, where that is known; the heights of the two axes differ. "
        "{way[score]} is better. Where the line of a larger teacher is the worse one, it teaches this student worse.",
    ),
    "metric-test": Caption(
        "{metric} on {heldout}",
        "Line chart of {metric} on {heldout} against the step, one line per setting.",
        LINES + "{never} {way[metric]} is better, 1 is the most. {dashed}",
    ),
    "metric-train": Caption(
        "{metric} on {train}",
        "Line chart of {metric} on {train} against the step, one line per setting.",
        LINES
        + "{way[metric]} is better; the axes equal those of the figure before. A curve far above the one there means "
        "that the student has memorised its training rows. {dashed}",
    ),
    "logit-loss-train": Caption(
        "{logit_loss} on {train}",
        "Line chart of the {logit_loss} on {train} against the step, one line per setting.",
        LINES + "Marks are evaluations of one fixed sample of the {train}, from the untouched student "
        "at step 0 on; the faint lines are the training batches, each seen once in its turn. Lower is "
        "closer to the teacher. Compare with the next figure: the axes are equal.",
    ),
    "logit-loss-test": Caption(
        "{logit_loss} on {heldout}",
        "Line chart of the {logit_loss} on {heldout} against the step, one line per setting.",
        LINES + "{never} Lower is closer to the teacher. Where the bands of two "
        "settings do not overlap, every seed of one lies below every seed of the other. A curve far "
        "above that of the figure before means that the student does better on {text} it has seen.",
    ),
    "label-loss-train": Caption(
        "{label_loss} on {train}",
        "Line chart of the {label_loss} on {train} against the step, one line per setting.",
        LINES + "{way[label_loss]} is better. {why}, so the labels of the {text} are the measure.",
    ),
    "label-loss-test": Caption(
        "{label_loss} on {heldout}",
        "Line chart of the {label_loss} on {heldout} against the step, one line per setting.",
        LINES + "{way[label_loss]} is better. {never} The axes equal those of the figure before.",
    ),
    "label-accuracy-train": Caption(
        "Label accuracy on {train}",
        "Line chart of the label accuracy on {train} against the step, one line per setting.",
        LINES + "The share of the labels that the student puts first. {way[label_accuracy]} is better.",
    ),
    "label-accuracy-test": Caption(
        "Label accuracy on {heldout}",
        "Line chart of the label accuracy on {heldout} against the step, one line per setting.",
        LINES + "The share of the labels that the student puts first. {never} {way[label_accuracy]} is better.",
    ),
    "multi-loss-terms": Caption(
        "Components of the multi-loss",
        "Lines of weight times value of each loss term against the step, beside stacked shares of the terms.",
        "Left, what each term adds to the loss that is minimised (its value times its weight; a "
        "running mean over steps, mean and range over seeds). Right, the same as shares of their sum. "
        "A term that fills most of the right panel drives the training at that time, and the others "
        "hardly count; terms in different units can be weighed against each other only here.",
    ),
    "gradient-norm": Caption(
        "Average gradient norm",
        "Line chart of the gradient norm, averaged over the layers, against the step, one line per setting.",
        LINES + "Lines are running means, the raw values are faint. This is the gradient of each setting's "
        "own loss before clipping, so a sum of several terms is larger by nature: look at the shape "
        "(a fall, a plateau, spikes), and compare heights in the figure of the common {logit_loss}.",
    ),
    "gradient-norm-layers": Caption(
        "Gradient norm by layer",
        "Heat maps of the gradient norm by step and layer, one per setting, with one colour scale.",
        "Layer 1 is next to the embedding. Mean over the seeds; all panels share one colour scale. "
        "Bright rows are layers that the loss pulls on most; an even column means that the gradient "
        "reaches all depths alike, a column that darkens downwards means that it fades on its way "
        "from the output to the input.",
    ),
    "logit-gradient-norm": Caption(
        "Gradient norm of the common {logit_loss}",
        "Line chart of the gradient norm of the {logit_loss}, averaged over the layers, against the step.",
        LINES + "The same loss is differentiated for every setting, whatever the setting trains on, so "
        "heights compare. Read it with the loss: a small gradient while the loss is still high is a "
        "plateau, a small gradient at a low loss means that the student has converged.",
    ),
    "update-ratio": Caption(
        "Relative size of the updates",
        "Line chart of the size of an update relative to the weights, mean over layers, against the step.",
        LINES + "How far the optimizer moves the weights, free of the scale of the loss: if the settings "
        "differ much here, they differ in their effective learning rate too.",
    ),
}


def caption(name: str, run: RunData) -> Caption:
    """The words around one figure of a run."""
    said = names.of(run)
    fill = asdict(said) | {"metric": said.metrics[0].name if said.metrics else ""}
    fill["score"] = fill["metric"] or said.label_loss
    fill["why"] = "Each setting has a teacher of its own" if run.taught else "This run has no teacher"
    fill["dashed"] = (
        "The dashed line is the teacher, the mean over the seeds where each has its own." if run.taught else ""
    )
    better = {name: it.better for name, it in MEASURES.items()}
    better |= {"metric": said.metrics[0].better} if said.metrics else {}
    better["score"] = better.get("metric", better["label_loss"])
    fill["way"] = {name: "Lower" if way < 0 else "Higher" for name, way in better.items()}
    parts = [part.format(**fill).strip() for part in CAPTIONS[name]]
    return Caption(parts[0][0].upper() + parts[0][1:], *parts[1:])
