"""Names of queues, for property tests."""

from hypothesis import strategies as st

NOT_IN_NAMES = [*range(33), 127, ord("/")]

letters = st.one_of(
    st.sampled_from([b".", b"%", b"~", b"\xff", b"a", b"A"]), st.binary(min_size=1, max_size=1)
)
names = (
    st.one_of(
        st.lists(letters, min_size=1, max_size=250).map(b"".join),
        st.integers(70, 250).map(lambda n: b"\xff" * n),
    )
    .map(lambda name: bytes(c for c in name if c not in NOT_IN_NAMES))
    .filter(bool)
)
