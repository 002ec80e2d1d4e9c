"""The state of a domain's channel, for each that libvirt and virt-rapl-channel may report."""

import pytest

from libvirt_rapl.choices import ChannelState
from libvirt_rapl.domains.channel import Channel
from libvirt_rapl.domains.inventory import Entry
from libvirt_rapl.lifecycle import channel_state
from libvirt_rapl.lifecycle.channel_state import Delivery

UUID = "11111111-2222-4333-8444-555555555555"
OPEN, CLOSED, NEXT = Channel("/run/1.sock", open=True), Channel("/run/1.sock", open=False), Channel(None, open=False)
GIVEN, STALLED, REFUSED = Delivery(7, "connected"), Delivery(7, "stalled", "slow"), Delivery(7, "waiting", "refused")


def entry(channel: Channel | None, pid: int | None) -> Entry:
    return Entry(name="vm", uuid=UUID, id=1, state="running", pid=pid, mark=None, channel=channel)


@pytest.mark.parametrize(
    ("channel", "pid", "delivery", "expected"),
    [
        (None, 7, GIVEN, ("off", "")),
        (None, None, None, ("off", "")),
        (OPEN, None, GIVEN, ("off", "")),
        (OPEN, 7, GIVEN, ("connected", "")),
        (OPEN, 7, STALLED, ("stalled", "slow")),
        (OPEN, 7, REFUSED, ("waiting", "refused")),
        (OPEN, 7, None, ("waiting", channel_state.NOT_CONNECTED)),
        (OPEN, 8, GIVEN, ("waiting", channel_state.NOT_CONNECTED)),
        (CLOSED, 7, GIVEN, ("waiting", channel_state.NOT_OPEN)),
        (CLOSED, 7, STALLED, ("waiting", channel_state.NOT_OPEN)),
        (NEXT, 7, None, ("off", channel_state.NEXT_START)),
        (NEXT, None, None, ("off", "")),
    ],
)
def test_what_each_state_comes_of(
    channel: Channel | None, pid: int | None, delivery: Delivery | None, expected: tuple[ChannelState, str]
) -> None:
    report = {"another": GIVEN} | ({UUID: delivery} if delivery else {})
    assert channel_state.channel_state(entry(channel, pid), report) == expected


@pytest.mark.parametrize("channel", [OPEN, CLOSED])
def test_without_a_report_the_process_is_what_is_missing(channel: Channel) -> None:
    assert channel_state.channel_state(entry(channel, 7), None) == ("waiting", channel_state.DOES_NOT_RUN)
    assert channel_state.channel_state(entry(None, 7), None) == ("off", "")
    assert channel_state.channel_state(entry(channel, None), None) == ("off", "")
