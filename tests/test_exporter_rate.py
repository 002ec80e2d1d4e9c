"""The rate limit of the web configuration."""

from libvirt_rapl.exporter.rate import RateLimiter
from libvirt_rapl.exporter.web_config import RateLimit


class Clock:
    """One that the test moves."""

    now = 5.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_one_in_an_interval() -> None:
    clock = Clock()
    limiter, limit = RateLimiter(clock), RateLimit(interval=2.0, burst=3)
    assert [limiter.allows(limit) for _ in range(4)] == [True, True, True, False]
    clock.now += 1.0
    assert not limiter.allows(limit)
    clock.now += 1.0
    assert [limiter.allows(limit) for _ in range(2)] == [True, False]
    clock.now += 3600.0
    assert [limiter.allows(limit) for _ in range(4)] == [True, True, True, False]


def test_a_changed_limit_is_in_force_at_once() -> None:
    limiter = RateLimiter(Clock())
    assert [limiter.allows(RateLimit(2.0, 1)) for _ in range(2)] == [True, False]
    assert [limiter.allows(RateLimit(2.0, 2)) for _ in range(3)] == [True, True, False]
