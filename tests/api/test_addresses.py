"""Addresses and networks as text: what is read and written faster than by ipaddress reads and writes the same."""

from ipaddress import IPv4Network, IPv6Network, ip_network

from hypothesis import example, given
from hypothesis import strategies as st

from podway.api.addresses import Network, parse_plain_network

LENGTHS = st.one_of(st.integers(0, 140).map(str), st.text("0123456789./-+ \u0661", max_size=4))
ADDRESSES = st.one_of(st.ip_addresses().map(str), st.text("0123456789abcdef.:%", max_size=24))
NETWORKS = st.one_of(
    st.builds(
        lambda number, length: IPv4Network((number, length), strict=False),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
    st.builds(
        lambda number, length: IPv6Network((number, length), strict=False),
        st.integers(0, 2**128 - 1),
        st.integers(0, 128),
    ),
)


@given(NETWORKS)
def test_a_network_is_read_from_its_text(network: Network) -> None:
    assert parse_plain_network(str(network)) == parse_plain_network(network.exploded) == network


@given(st.one_of(ADDRESSES, st.builds("{}/{}".format, ADDRESSES, LENGTHS)))
@example("10.0.0.0/255.255.255.0")
@example("10.0.0.1/24")
@example("fe80::%eth0/64")
@example("010.0.0.0/8")
@example("10.0.0.0/33")
@example("")
def test_other_texts_are_taken_and_refused_as_ipaddress_does(text: str) -> None:
    try:
        expected: Network | str = ip_network(text)
    except ValueError as error:
        expected = str(error)
    try:
        found: Network | str = parse_plain_network(text)
    except ValueError as error:
        found = str(error)
    assert found == expected
