"""Admission: nobody waits for ever, whatever the order in which lanes come and go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from panoserve.redirect.admission import Admission


def test_a_reservation_is_kept_for_the_oldest() -> None:
    admission = Admission(blocks=5, seats=5)
    assert admission.begin("a", lane_blocks=1, guaranteed=2, lanes=9, usual=2)
    assert admission.begin("b", lane_blocks=1, guaranteed=2, lanes=9, usual=2)
    assert not admission.begin("c", lane_blocks=1, guaranteed=2, lanes=9, usual=2), "only one block is not reserved"
    assert [admission.admit("a") for _ in range(4)] == [True, True, True, False], "two stay reserved for b"
    assert [admission.admit("b") for _ in range(3)] == [True, True, False]
    admission.release("a")
    assert admission.admit("b")


def test_a_panorama_that_ends_frees_what_it_held() -> None:
    admission = Admission(blocks=4, seats=9)
    assert admission.begin("a", lane_blocks=2, guaranteed=2, lanes=3, usual=2)
    assert admission.admit("a")
    assert not admission.begin("b", lane_blocks=1, guaranteed=1, lanes=1, usual=1)
    admission.end("a")
    assert admission.begin("b", lane_blocks=1, guaranteed=1, lanes=1, usual=1)


def test_lanes_ahead_of_their_turn_take_no_reserved_place() -> None:
    """Two of three places are reserved for lanes in order; one lane may come early, and counts in order once it is."""
    admission = Admission(blocks=3, seats=9)
    assert admission.begin("a", lane_blocks=1, guaranteed=2, lanes=6, usual=2)
    assert admission.admit("a")
    assert admission.admit("a", ahead=1)
    assert not admission.admit("a", ahead=2)
    assert admission.admit("a", ahead=0), "the lane before it is in, so both are in order now"
    assert not admission.admit("a", ahead=0), "three places hold three lanes"


def test_seats_count_too() -> None:
    admission = Admission(blocks=100, seats=2)
    assert admission.begin("a", lane_blocks=1, guaranteed=1, lanes=5, usual=1)
    assert admission.begin("b", lane_blocks=1, guaranteed=1, lanes=5, usual=1)
    assert admission.admit("a")
    assert not admission.admit("a"), "the second seat is b's"
    assert not admission.can_ever_hold(lane_blocks=1, lanes=3)


def test_a_panorama_waits_until_its_share_is_free() -> None:
    admission = Admission(blocks=100, seats=8)
    assert admission.begin("a", lane_blocks=1, guaranteed=1, lanes=6, usual=4)
    assert admission.begin("b", lane_blocks=1, guaranteed=1, lanes=6, usual=3)
    assert not admission.begin("c", lane_blocks=1, guaranteed=1, lanes=6, usual=2), "one place is nobody's"
    assert all(admission.admit("a") for _ in range(3))
    for _ in range(3):
        admission.release("a")
    assert admission.begin("c", lane_blocks=1, guaranteed=1, lanes=6, usual=2), "a has three lanes left"


def test_shares_are_counted_in_blocks_too() -> None:
    admission = Admission(blocks=8, seats=100)
    assert admission.begin("a", lane_blocks=2, guaranteed=1, lanes=6, usual=2)
    assert not admission.begin("b", lane_blocks=5, guaranteed=1, lanes=6, usual=2), "four blocks are a's"
    assert admission.begin("b", lane_blocks=2, guaranteed=1, lanes=6, usual=2)


def test_a_large_panorama_leaves_half_to_others_and_takes_it_while_nobody_comes() -> None:
    admission = Admission(blocks=100, seats=8)
    assert admission.begin("a", lane_blocks=1, guaranteed=2, lanes=90, usual=32)
    assert admission.begin("b", lane_blocks=1, guaranteed=2, lanes=90, usual=32)
    assert [admission.admit("a") for _ in range(7)] == [True] * 6 + [False], "two are reserved for b"
    assert not admission.begin("c", lane_blocks=1, guaranteed=1, lanes=1, usual=1)


def test_alone_a_panorama_begins_whatever_its_share() -> None:
    admission = Admission(blocks=2, seats=1)
    assert admission.begin("a", lane_blocks=2, guaranteed=1, lanes=9, usual=9)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=6),
    st.integers(6, 14),
    st.data(),
)
def test_every_panorama_finishes(panoramas: list[tuple[int, int, int]], blocks: int, data: st.DataObject) -> None:
    """Chains of lanes, each released only after the next is admitted (context reuse), in random order."""
    admission = Admission(blocks, seats=8)
    waiting = [(str(index), *values) for index, values in enumerate(panoramas)]
    running: dict[str, list[int]] = {}  # name -> [admitted, released, lanes]
    while waiting or running:
        while waiting:
            name, lane_blocks, lanes, usual = waiting[0]
            if not admission.begin(name, lane_blocks, min(2, lanes), lanes, usual):
                break
            del waiting[0]
            running[name] = [0, 0, lanes]
        moved = False
        for name in data.draw(st.permutations(sorted(running))):
            state = running[name]
            if state[0] < state[2] and admission.admit(name):
                state[0] += 1
                moved = True
            while state[1] < state[0] and (state[1] + 1 < state[0] or state[0] == state[2]):
                state[1] += 1
                admission.release(name)
                moved = True
            if state[1] == state[2]:
                admission.end(name)
                del running[name]
            held = sum(holding.held * holding.lane_blocks for holding in admission.holdings.values())
            assert held <= blocks
        assert moved, "deadlock"
