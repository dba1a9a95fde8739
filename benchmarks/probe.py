"""What a probe costs, in steps: `quickstart`'s settings with a teacher, blocks of 128 tokens, one thread, probe and step alternating, medians.

python benchmarks/probe.py [repetitions]
"""

from __future__ import annotations

import sys
from statistics import median
from time import perf_counter

import torch

from limbeck.assemble import design
from limbeck.assemble.study import build_study
from limbeck.assemble.text import read_text
from limbeck.distil.probe import probe
from limbeck.distil.reduce import Share, counts_of
from limbeck.recipe.load import load
from limbeck.system.processes import World
from limbeck.training.loop import Course, micro_batches

REPETITIONS = int(sys.argv[1]) if len(sys.argv) > 1 else 6


def main() -> None:
    """Measures, and prints one line."""
    torch.set_num_threads(1)
    table = load("quickstart", ["seeds=[0]", "only=[logit,multi]", "data.max_length=128"])
    plan, world = design.design(table), World()
    study = build_study(plan, world, read_text(plan, print))
    still, probes, steps = study.stills[0], [], []
    course = Course(study.stills, study.feeds, REPETITIONS, 1, lambda learner: {}, lambda step: False, world)
    for step in range(REPETITIONS + 1):
        batches = micro_batches(course, 0, step)
        share, begin = Share(batches, counts_of(batches)), perf_counter()
        for learner in still.learners:
            probe(still, learner, share.batches, share.counts, step)
        middle = perf_counter()
        still.step(share, step)
        probes.append(middle - begin)
        steps.append(perf_counter() - middle)
    cost = median(probes[1:]) / median(steps[1:])
    print(f"a probe takes {cost:.2f} steps: {cost / plan.recipe.train.probe_every:.1%} of a run at the default")


if __name__ == "__main__":
    main()
