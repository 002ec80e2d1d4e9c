"""When somebody has scraped last, as systemd is told and doctor reads."""

import pytest

from libvirt_rapl.exporter.last_scrape import REPORT_SECONDS, LastScrape, parse

ANSWER: tuple[str, dict[str, str], bytes] = ("text/plain", {}, b"virt_rapl_up 1")


class Clock:
    """One that the test moves."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Systemd:
    """What is told to systemd."""

    def __init__(self) -> None:
        self.clock, self.messages = Clock(), list[str]()
        self.last_scrape = LastScrape(lambda *_: ANSWER, self.messages.append, self.clock)

    def reported(self) -> list[tuple[float, bool] | None]:
        return [parse(message.removeprefix("STATUS=")) for message in self.messages]


def test_a_scrape_is_reported_and_answered() -> None:
    systemd = Systemd()
    assert systemd.last_scrape.respond("", "") == ANSWER
    assert systemd.reported() == [(systemd.clock.now, True)]


def test_before_the_first_it_is_known_since_when_there_is_none() -> None:
    systemd = Systemd()
    assert parse(systemd.last_scrape.none_yet().removeprefix("STATUS=")) == (systemd.clock.now, False)


@pytest.mark.parametrize(("later", "reports"), [(0.0, 1), (REPORT_SECONDS - 1, 1), (REPORT_SECONDS, 2), (-3600.0, 2)])
def test_systemd_is_not_kept_busy(later: float, reports: int) -> None:
    systemd = Systemd()
    systemd.last_scrape.respond("", "")
    systemd.clock.now += later
    systemd.last_scrape.respond("", "")
    assert len(systemd.messages) == reports


def test_a_scrape_that_fails_is_none() -> None:
    systemd = Systemd()

    def fail(*_: str) -> tuple[str, dict[str, str], bytes]:
        raise RuntimeError("no metrics")

    with pytest.raises(RuntimeError):
        LastScrape(fail, systemd.messages.append, systemd.clock).respond("", "")
    assert systemd.messages == []


@pytest.mark.parametrize("status", ["", "last scraped at noon", "something of another version"])
def test_another_status_is_not_understood(status: str) -> None:
    assert parse(status) is None
