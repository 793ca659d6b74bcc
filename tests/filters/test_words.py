"""The text form of a filter, and the object-add form: QEMU's keys, and errors that name the key."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.filters import FilterSpec, Queue, parse, spec_of
from vmm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("buffer,id=f0", FilterSpec("buffer", "f0")),
        ("filter-buffer,id=f0,queue=rx,interval=0", FilterSpec("buffer", "f0", queue=Queue.RX)),
        (
            "buffer,id=f0,netdev=net1,interval=1000,status=off,position=head",
            FilterSpec("buffer", "f0", "net1", on=False, position="head", interval_us=1000),
        ),
        (
            "mirror,id=m,outdev=unix:/run/m,queue=tx,position=id=f0,insert=before,vnet_hdr_support",
            FilterSpec(
                "mirror",
                "m",
                queue=Queue.TX,
                position="f0",
                before=True,
                outdev="unix:/run/m",
                vnet_hdr=True,
            ),
        ),
        ("dump,id=d,file=a=b.pcap", FilterSpec("dump", "d", file="a=b.pcap")),
    ],
)
def test_words_and_what_they_mean(text: str, spec: FilterSpec) -> None:
    assert parse(text) == spec


def test_object_add_brings_numbers_and_switches() -> None:
    properties = {"id": "f0", "netdev": "net0", "interval": 500, "status": "on"}
    assert spec_of("filter-buffer", properties) == FilterSpec("buffer", "f0", "net0", interval_us=500)
    mirror = spec_of("filter-mirror", {"id": "m", "outdev": "unix:/m", "vnet_hdr_support": True})
    assert mirror.vnet_hdr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no such kind"),
        ("rewriter,id=f0", "no such kind; expected buffer, dump, mirror"),
        ("buffer", "id: missing"),
        ("buffer,id=", "id="),
        ("buffer,id=0f", "id=0f: expected a letter"),
        ("buffer,id=f0,id=f1", "id: given twice"),
        ("buffer,id=f0,queue=both", "queue=both: expected all, rx"),
        ("buffer,id=f0,status=maybe", "status=maybe: expected on or off"),
        ("buffer,id=f0,interval=1.5", "interval=1.5: expected microseconds"),
        ("buffer,id=f0,interval=-1", "interval=-1: expected microseconds"),
        ("buffer,id=f0,interval=4294967296", "interval=4294967296: expected microseconds"),
        ("buffer,id=f0,interval=²", "interval=²: expected microseconds"),
        ("buffer,id=f0,position=middle", "position=middle: expected head, tail or id="),
        ("buffer,id=f0,insert=after", "insert=after: expected before or behind"),
        ("buffer,id=f0,file=x", "file: no such key; expected id, insert, interval"),
        ("mirror,id=m", "outdev: missing"),
        ("dump,id=d", "file: missing"),
        ("dump,id=d,file=", "file=: expected some text"),
    ],
)
def test_an_error_names_the_key(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse(text)
    assert said in str(found.value)


@given(st.text(max_size=60))
def test_any_text_is_a_filter_or_a_config_error(text: str) -> None:
    with suppress(ConfigError):
        assert parse(text).id


@given(
    st.dictionaries(st.sampled_from(["id", "queue", "interval", "status", "position"]), st.none() | st.text())
)
def test_any_object_is_a_filter_or_a_config_error(properties: dict[str, object]) -> None:
    with suppress(ConfigError):
        assert spec_of("filter-buffer", properties).id
