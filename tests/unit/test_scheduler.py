"""When and where a request goes out: closed forms over a clock of the tests' own."""

import itertools
from math import inf

import pytest

from potstill.teachers.scheduler import Bucket, Lane, choose


def test_a_limit_a_minute_is_spread_evenly() -> None:
    bucket, now, sent = Bucket(120), 0.0, []
    while now < 60:
        wait = bucket.wait(now, 1)
        if wait == 0:
            bucket.take(1)
            sent.append(now)
        now += wait
    assert len(sent) == pytest.approx(120, abs=3)
    assert all(later - earlier >= 0.49 for earlier, later in itertools.pairwise(sent[2:])), (
        "after what goes out at once"
    )


def test_a_request_larger_than_the_bucket_goes_out_and_is_paid_back() -> None:
    bucket = Bucket(600)  # ten a second
    assert bucket.wait(0, 100) == 0
    bucket.take(100)
    assert bucket.wait(0, 1) == pytest.approx((1 - (10 - 100)) / 10)
    bucket.take(-60)  # it used fewer
    assert bucket.wait(0, 1) == pytest.approx((1 - (10 - 40)) / 10)


def test_a_storm_of_refusals_cuts_once_a_round_trip() -> None:
    lane = Lane("a", 64)
    for _ in range(40):
        lane.take(0)
    for _ in range(40):  # all sent at 0, all refused at 1
        lane.overloaded(1.0, 0.0, 0.5)
        lane.release()
    assert (lane.width, lane.overloads, lane.wait(1.0, 0)) == (32.0, 1, 0.5)
    lane.overloaded(2.0, 1.5, 0.5)
    assert (lane.width, lane.overloads) == (16.0, 2)


def test_width_grows_back_by_one_a_round_trip_and_only_where_it_is_used() -> None:
    lane = Lane("a", 8)
    lane.overloaded(1.0, 0.0, 0.0)
    lane.overloaded(2.0, 1.5, 0.0)
    assert lane.width == 2
    lane.in_flight = 1
    lane.served(0, 0)
    assert lane.width == 2, "what is not used says nothing"
    grown = []
    for _ in range(4):
        lane.in_flight = int(lane.width)
        for _ in range(int(lane.width)):
            lane.served(0, 0)
        grown.append(lane.width)
    assert grown == sorted(grown)
    assert 4.5 < grown[-1] < 6.5
    lane.in_flight = 8
    for _ in range(200):
        lane.served(0, 0)
    assert lane.width == 8, "never beyond what the recipe allows"


def test_the_least_busy_of_those_that_may_be_asked() -> None:
    one, two = Lane("a", 4), Lane("b", 4)
    one.take(0)
    assert choose([one, two], 0.0, 0) is two
    two.rest_until = 3.0
    assert choose([one, two], 0.0, 0) is one
    for _ in range(3):
        one.take(0)
    assert choose([one, two], 0.0, 0) == 3.0
    assert choose([one], 0.0, 0) == inf


def test_a_request_goes_to_another_server_than_where_it_failed_while_one_is_up() -> None:
    one, two = Lane("a", 4), Lane("b", 4)
    one.failures = 1
    two.take(0)
    assert choose([one, two], 0.0, 0, avoid=one) is two
    two.rest_until = 9.0
    assert choose([one, two], 0.0, 0, avoid=one) == 9.0
    two.failures = 1
    assert choose([one, two], 0.0, 0, avoid=one) is one
    assert choose([one], 0.0, 0, avoid=one) is one
