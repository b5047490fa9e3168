"""Every header we send, read by an independent parser; and every header we read, whatever the bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.strategies import v4, v6
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from agent.desired.addresses import Endpoint
from agent.desired.schema import ProxyProtocol
from agent.proxy_protocol.header import LONGEST, SIGNATURE, header, parse

PORTS = st.integers(1, 65_535)


def endpoints(family: int) -> st.SearchStrategy[Endpoint]:
    return st.builds(Endpoint, st.just(family), v4 if family == 4 else v6, PORTS)


PAIRS = st.sampled_from([4, 6]).flatmap(lambda family: st.tuples(endpoints(family), endpoints(family)))


@given(PAIRS)
def test_v2_says_who_and_where_to_an_independent_parser(pair: tuple[Endpoint, Endpoint]):
    source, destination = pair
    found = ProxyProtocolV2().unpack(header(ProxyProtocol.V2, source, destination))
    assert (str(found.source[0]), found.source[1]) == (source.host, source.port)
    assert (str(found.dest[0]), found.dest[1]) == (destination.host, destination.port)


@given(PAIRS)
def test_v1_says_who_and_where_to_an_independent_parser(pair: tuple[Endpoint, Endpoint]):
    source, destination = pair
    found = ProxyProtocolV1().unpack(header(ProxyProtocol.V1, source, destination))
    assert (str(found.source[0]), found.source[1]) == (source.host, source.port)
    assert (str(found.dest[0]), found.dest[1]) == (destination.host, destination.port)


@given(PAIRS, st.binary(max_size=40))
def test_what_is_written_is_read_and_nothing_behind_it(pair: tuple[Endpoint, Endpoint], behind: bytes):
    written = header(ProxyProtocol.V2, *pair)
    told = parse(written + behind)
    assert told is not None
    assert (told.client, told.destination, told.length) == (*pair, len(written))
    assert all(parse(written[:length]) is None for length in range(len(written)))


@given(st.sampled_from([b"", SIGNATURE]), st.binary(max_size=300))
def test_whatever_the_bytes_they_are_read_or_refused(beginning: bytes, data: bytes):
    try:
        told = parse(beginning + data)
    except ValueError:
        return
    assert told is None or 16 <= told.length <= LONGEST


def test_local_names_nobody():
    told = parse(SIGNATURE + b"\x20\x00\x00\x00")
    assert told is not None
    assert (told.client, told.length) == (None, 16)


@pytest.mark.parametrize(
    "data",
    [b"EHLO x\r\n", b"PROXY TCP4 ", SIGNATURE + b"\x11\x11\x00\x0c", SIGNATURE + b"\x21\x11\xff\xff",
     SIGNATURE + b"\x21\x31\x00\x00", SIGNATURE + b"\x21\x11\x00\x04abcd"],
)  # fmt: skip
def test_what_is_no_v2_header_is_refused(data: bytes):
    with pytest.raises(ValueError, match="PROXY"):
        parse(data)


def test_no_header_for_none_and_none_for_two_families():
    four, six = Endpoint(4, "192.0.2.1", 1), Endpoint(6, "2001:db8::1", 1)
    assert header(ProxyProtocol.NONE, four, four) == b""
    with pytest.raises(ValueError, match="different families"):
        header(ProxyProtocol.V2, four, six)
