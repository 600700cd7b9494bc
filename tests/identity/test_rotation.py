"""Authorities that follow each other: whoever is certified by one is believed by all, at every moment."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from podway.api.kinds.cluster_authority import AUTHORITY_LIVES, ClusterAuthoritySpec, KeyedCertificate
from podway.identity import rotation
from podway.identity.orders import SKEW


def _authority(now: float, lifetime: int) -> KeyedCertificate:
    begin, end = (datetime.fromtimestamp(at, UTC) for at in (now - SKEW, now + lifetime))
    return KeyedCertificate(certificate=f"made at {now}", private_key="", not_before=begin, not_after=end)


def _history(lifetime: int, authority_lifetime: int, looks: list[int]) -> list[tuple[float, ClusterAuthoritySpec]]:
    """Return what stands in the store after each look; `looks` are the seconds between them."""
    spec, now, history = ClusterAuthoritySpec(cluster="c", authorities=()), 1_800_000_000.0, []
    for pause in looks:
        now += pause
        spec = rotation.in_force(spec, lifetime, now)
        if rotation.is_due(spec, authority_lifetime, now):
            authorities = (*spec.authorities, _authority(now, authority_lifetime))
            spec = ClusterAuthoritySpec(cluster="c", authorities=authorities)
        history.append((now, spec))
    return history


@st.composite
def _histories(draw: st.DrawFn) -> tuple[int, list[tuple[float, ClusterAuthoritySpec]]]:
    lifetime = draw(st.integers(60, 100_000))
    authority_lifetime = lifetime * draw(st.integers(AUTHORITY_LIVES, 400))
    pauses = st.integers(1, lifetime // 12 + 1) | st.integers(1, authority_lifetime // 6)
    return lifetime, _history(lifetime, authority_lifetime, draw(st.lists(pauses, min_size=1, max_size=60)))


@given(_histories())
def test_a_certificate_is_believed_as_long_as_it_is_valid(
    drawn: tuple[int, list[tuple[float, ClusterAuthoritySpec]]],
) -> None:
    lifetime, history = drawn
    for issued, spec in history:
        signer = rotation.signer(spec, lifetime, issued)
        end = min(issued + lifetime, signer.not_after.timestamp())
        for later, then in history:
            if issued <= later < end:
                assert signer in then.authorities


@given(_histories())
def test_an_agent_cut_off_for_one_certificate_life_believes_everybody(
    drawn: tuple[int, list[tuple[float, ClusterAuthoritySpec]]],
) -> None:
    lifetime, history = drawn
    before = [ClusterAuthoritySpec(cluster="c", authorities=()), *(spec for _, spec in history)]
    fresh_starts = [
        spec.authorities[0]
        for old, (_, spec) in zip(before, history, strict=False)
        if len(spec.authorities) == 1 and spec.authorities[0] not in old.authorities
    ]
    for issued, spec in history:
        signer = rotation.signer(spec, lifetime, issued)
        if signer not in fresh_starts:
            assert all(signer in then.authorities for seen, then in history if issued - lifetime <= seen <= issued)


@given(_histories())
def test_few_authorities_are_ever_believed(drawn: tuple[int, list[tuple[float, ClusterAuthoritySpec]]]) -> None:
    assert all(1 <= len(spec.authorities) <= 2 for _, spec in drawn[1])


def test_a_cluster_that_slept_for_a_year_starts_anew() -> None:
    (_, before), (now, after) = _history(3600, 6 * 3600, [0, 365 * 24 * 3600])
    assert len(after.authorities) == 1
    assert after.authorities != before.authorities
    assert rotation.signer(after, 3600, now) == after.authorities[0]
