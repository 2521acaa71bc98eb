"""Tests that `make test` leaves out, and `make test-all` runs: more cases of what other tests show for one.

A few minutes is what people wait for before they share a change. Each entry is a pattern of test ids; where
it names some cases of a test, the others stay in `make test`.
"""

import re
from collections.abc import Iterable

PATTERNS = (
    # Whole runs, again and again, beside one that is always made.
    r"parallel/test_resume.py::(test_interrupted_again_and_again|test_other_replicas_take_the_same_samples)",
    r"parallel/test_resume.py::test_what_a_custom_optimizer_keeps",
    r"parallel/test_stops.py::test_stopped_run_continues_with_the_same_bits\[(1-|2-rank)",
    r"parallel/test_sharding.py::test_four_replicas",
    r"parallel/test_speech.py::test_tones_are_learnt",
    r"parallel/test_images.py::test_equal_bits\[(2|4) stages",
    r"parallel/test_images.py::(test_resuming_changes_images_alike|test_an_image_that_breaks_later\[0)",
    r"parallel/test_bert.py::test_equal_bits\[(2-|4-overrides2)",
    r"parallel/test_generated.py::test_fixed_numbers\[two ranks of one replica",
    r"parallel/test_data.py::test_a_mixture",
    r"parallel/test_precision.py::test_rounding_only_at_cuts_is_found",
    r"parallel/test_verify.py::test_existing_modules_and_another_recomputation",
    r"parallel/test_verify.py::test_mistakes_are_found\[(averaging_is_of|norm_is_of|seeds_count|tie_begins|tie_loses)",
    r"test_wheel.py::test_it_trains",
    # Many random or large schedules.
    r"test_validate_random.py::test_accepted_schedules_compute_the_same",
    r"test_schedule.py::test_(zb_v_splits_only_where_it_pays|zb_v_keeps_within_1f1b_memory_and_near_its_bound)",
    r"test_schedule.py::test_every_stage_computes_every_micro_batch_once_and_backwards_in_order",
    r"test_schedule.py::test_(complete_lists_read_back|interleaved_terminates_with_any_number)",
    r"test_golden_orders.py::test_orders_are_unchanged\[zb_v",
    r"test_merge.py::test_merged_lists_are_valid_and_complete\[3",
    r"test_simulate.py::test_a_thousand_ranks",
    r"test_partition.py::test_equals_brute_force",
    # Every combination of models, recomputation and schedules.
    r"test_recomputation.py::test_saved_bytes_match_the_prediction\[.*(gpipe|zb_h1)",
    r"test_recomputation.py::test_recomputation_changes_no_bit\[.*selective-1f1b",
    r"test_hf_generation.py::test_a_padded_batch_is_continued_as_transformers_does\[(bloom|gemma2|llama|mistral|qwen3)",
    # Outputs and imports that change seldom.
    r"test_report.py::(test_figures_of_the_docs_are_the_same_each_time|test_a_report_of_a_run\[200)",
    r"test_lazy_compiler.py::(test_other_uses_import_it_once|test_uses_that_only_hide_do_not_import_it)",
    r"test_mixture.py::test_any_position_continues_the_whole",
    r"test_scheduling.py::test_a_group_runs_in_one_process",
)
collected: list[str] = []  # the ids of all tests, also of those that are not chosen
_ANY = re.compile("|".join(f"tests/{pattern}" for pattern in PATTERNS))


def is_thorough(test: str) -> bool:
    """Return whether `make test` leaves out the test with this id."""
    return _ANY.search(test) is not None


def stale(tests: Iterable[str]) -> list[str]:
    """Return the patterns that match none of all tests."""
    every = list(tests)
    return [p for p in PATTERNS if not any(re.search(f"tests/{p}", test) for test in every)]
