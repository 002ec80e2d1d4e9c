"""How often a peer gets an answer, by a clock that the test sets."""

from libvirt_rapl.helper.vmsr.pace import Bucket


def test_a_bucket_gives_what_it_holds_and_then_what_drips_in() -> None:
    bucket = Bucket(3, 2, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert bucket.take(0.25) == 0.25
    assert bucket.take(0.5) == 0.0
    assert [bucket.take(100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
