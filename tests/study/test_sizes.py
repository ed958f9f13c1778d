"""The rule that turns a measured curve into a role's size, on curves worked out by hand."""

from ssah_lens.results import SizeChoice
from ssah_lens.study.sizes import pick
from ssah_lens.units import Role

BASE = (0.9, 0.2)  # predicted refusals, nats per token


def curve(*points):
    return tuple(SizeChoice(*p) for p in points)


def test_scu_is_the_smallest_set_that_reaches_the_drop():
    got = pick(Role.SCU, curve((0.01, 0.7, 0.21), (0.02, 0.1, 0.3), (0.03, 0.0, 0.4)), *BASE)
    assert (got.chosen, got.reached, got.largest_within_tolerance) == (0.02, True, 0.03)


def test_scu_that_costs_too_much_utility_does_not_count():
    got = pick(Role.SCU, curve((0.01, 0.7, 0.21), (0.02, 0.3, 0.9)), *BASE)
    assert (got.chosen, got.reached, got.largest_within_tolerance) == (0.01, False, 0.01)


def test_scu_beyond_tolerance_everywhere_is_taken_but_said_to_have_failed():
    got = pick(Role.SCU, curve((0.01, 0.7, 1.21), (0.02, 0.3, 1.9)), *BASE)
    assert (got.chosen, got.reached, got.largest_within_tolerance) == (0.02, False, None)


def test_ucu_is_mirrored():
    got = pick(Role.UCU, curve((0.01, 0.9, 0.3), (0.02, 0.85, 0.8), (0.05, 0.2, 3.0)), *BASE)
    assert (got.chosen, got.reached, got.largest_within_tolerance) == (0.02, True, 0.02)


def test_ru_is_the_largest_set_that_harms_nothing():
    got = pick(Role.RU, curve((0.05, 0.9, 0.2), (0.1, 0.85, 0.4), (0.2, 0.5, 0.4)), *BASE)
    assert (got.chosen, got.reached) == (0.1, True)


def test_ru_that_makes_the_model_refuse_more_is_not_redundant():
    got = pick(Role.RU, curve((0.05, 0.75, 0.2), (0.1, 1.2, 0.2)), *BASE)
    assert (got.chosen, got.reached, got.largest_within_tolerance) == (0.05, False, None)
