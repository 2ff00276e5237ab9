"""Every row of a pass exactly once, however often the number of readers changes."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.dealing import Deal, ItemRows, deal_to, list_items


def rows_of(deals, reader, sizes):
    """(unit, row, position after it) in the order in which a reader gets them; a unit comes in chunks of 5 rows."""
    for item, done in list_items(deals, reader):
        unit = item // deals[-1].slices
        chooser, size = ItemRows(deals, item, done), sizes[unit % len(sizes)]
        for begin in range(0, size, 5):
            rows, numbers = chooser.take(min(5, size - begin))
            for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
                yield unit, begin + row, (item, number + 1)


def consume(deals, counts, sizes):
    """Reader r takes counts[r] rows."""
    taken, moved = [], {}
    for reader, count in enumerate(counts):
        rows = rows_of(deals, reader, sizes)
        for _ in range(count):
            unit, row, moved[reader] = next(rows)
            taken.append((unit, row))
    return taken, [*deals[:-1], deals[-1].with_positions(moved)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(4, 17), min_size=1, max_size=7),
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), min_size=1, max_size=5),
)
def test_no_row_twice_and_none_left_out(sizes, sessions):
    deals: list[Deal] = []
    taken: list[tuple[int, int]] = []
    for counts in sessions:
        deals = deal_to(len(counts), len(sizes), deals)
        rows, deals = consume(deals, counts, sizes)
        taken += rows
    assert max(Counter(taken).values(), default=1) == 1
    # one reader alone gets all that is left of the units up to the last one touched, in any order, and nothing else
    last = max((unit for unit, _ in taken), default=0)
    deals = deal_to(1, len(sizes), deals)
    for unit, row, _ in rows_of(deals, 0, sizes):
        if unit > last:
            break
        taken.append((unit, row))
    assert sorted(taken) == [(unit, row) for unit in range(last + 1) for row in range(sizes[unit % len(sizes)])]


def test_the_same_readers_go_on_with_the_same_rows():
    sizes = [7, 4, 9, 5]
    straight, _ = consume(deal_to(2, 4), [20, 20], sizes)
    before, deals = consume(deal_to(2, 4), [8, 8], sizes)
    after, _ = consume(deal_to(2, 4, deals), [12, 12], sizes)
    assert before[:8] + after[:12] == straight[:20]
    assert before[8:] + after[12:] == straight[20:]
    assert deal_to(2, 4, deals) == deals


def test_fewer_units_than_readers_share_the_rows():
    deals = deal_to(3, 1)
    assert deals[0].slices == 3
    rows = [next(rows_of(deals, reader, [9]))[:2] for reader in range(3)]
    assert rows == [(0, 0), (0, 1), (0, 2)]


def test_the_work_of_readers_stays_even_when_units_do_not_divide():
    """Four readers over three units in two slices: a fixed deal by pass would give two of them twice the work."""
    deals = deal_to(4, 3)
    _, deals = consume(deals, [1000] * 4, [10, 10, 10])
    passes = [item / 6 for item, _ in deals[-1].positions]
    assert max(passes) - min(passes) <= 1


def test_forgets_deals_whose_units_are_done():
    deals: list[Deal] = []
    for readers in (1, 2, 1, 2, 1, 2):
        _, deals = consume(deal_to(readers, 3, deals), [40 // readers] * readers, [5, 5, 5])
        assert len(deals) <= 3
    assert deals[-1].first_unit > 10


def test_units_that_an_earlier_deal_finished_are_not_read():
    _, deals = consume(deal_to(2, 100), [45, 15], [10])
    items = list_items(deal_to(1, 100, deals), 0)
    assert [next(items)[0] for _ in range(6)] == [3, 5, 7, 8, 9, 10]  # of 0, 2, 4, 6, 8: five done but the half of 8
    assert np.flatnonzero(ItemRows(deal_to(1, 100, deals), 3, 0).take(10)[0] >= 5).tolist() == [0, 1, 2, 3, 4]
