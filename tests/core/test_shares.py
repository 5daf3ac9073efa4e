"""A rank's share of a step, by the arithmetic that the plan prints."""

from hypothesis import given
from hypothesis import strategies as st

from mgk_core.tools.shares import Share, share_of

COUNTS = st.integers(1, 40)


@given(COUNTS, COUNTS, COUNTS, st.integers(1, 10_000))
def test_the_turns_of_all_ranks_cover_every_micro_batch(ranks, batch, micro, numbers):
    """Spare turns are fewer than ranks; one process has none, no buffers and no traffic."""
    share = share_of(ranks, batch, micro, numbers)
    assert share.turns * ranks == share.micro_batches + share.repeated
    assert 0 <= share.repeated < ranks
    if ranks == 1 or share.micro_batches == 1:
        assert share.received == share.buffers == 0


def test_a_share_by_hand():
    """Eight micro-batches on four ranks: two rounds and a gather of three quarters of 400 bytes each."""
    assert share_of(4, 16, 2, 100) == Share(4, 8, 2, 0, 900, 900)
