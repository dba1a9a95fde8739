"""Families of whole runs: how many of their members `make test` runs, the first ones; `make test-all` runs all."""

FIRST = {
    "faults/test_checkpoints.py": {
        "test_killed_before_older_ones_go": 1,
        "test_every_file_of_a_checkpoint": 1,
        "test_a_damaged_run_ends_in_the_same_bits": 1,
        "test_a_disk_that_takes_no_more": 1,
    },
    "faults/test_memory_faults.py": {"test_a_probe_that_runs_short_is_taken_again": 1},
    "faults/test_memory_of_evaluations.py": {"test_an_evaluation_is_the_same": 1},
    "unit/lab/test_verdicts.py": {"test_a_study_of_four_settings_makes_any_false_claim_in_one_of_twenty": 1},
    "runs/test_change_runs.py": {
        "test_micro_batches_and_processes": 1,
        "test_a_student_that_was_pruned_is_trained_on": 2,
        "test_at_the_end_of_the_training": 1,
    },
    "runs/test_every_loss.py": {"test_all_losses_in_one_setting": 1},
    "runs/test_flops.py": {"test_what_is_written_is_what_is_multiplied": 2},
    "runs/test_teacher_cache.py": {
        "test_other_answers_are_other_caches": 1,
        "test_a_shard_from_elsewhere_is_refused": 1,
        "test_the_run_of_the_live_teacher": 1,
        "test_modules_read_what_was_kept": 1,
        "test_damage_is_named_and_mended": 1,
    },
}
