"""What QEMU makes of an energy difference: the arithmetic of its thread `kvm-msr`, and its inverse. Pure.

Once a second QEMU takes a window: it reads the clock ticks of its threads, asks the helper for the energy register of
each package, sleeps a second, asks again and reads the ticks again (kvm_msr_energy_thread of QEMU's
target/i386/kvm/kvm.c; 9.1 to 11.x do the same). A thread belongs to the package where it was when the window began; the
main thread is left out. Each thread's part of its package's difference d is

    part = round(d / 100 * (100 / maxticks * ticks))      maxticks: ticks a second x CPUs of the package

in double precision, halves rounded away from zero. The parts of threads that are no vCPU make up the share:

    share = (share + sum of parts) // vcpus_counted       vcpus_counted grows by the vCPUs of the package each window

and neither share nor vcpus_counted is ever reset. Each vCPU that ran for at least a tick gains part + share; one that
did not gains nothing, and its portion of the share is lost. Gains go to the virtual socket of the vCPU, and the vCPU's
register shows its socket's sum when the vCPU has run; libvirt gives each vCPU its own socket unless the domain has a
<topology>. One difference applies to all vCPUs, so a domain's total can be made exact; QEMU decides how it is split
among them: by ticks, and the share in equal parts.

Ticks may be fractions here: an expected value where QEMU may have seen one tick more. Numbers do not overflow here, as
QEMU's would with differences that solve() tries and rejects.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # a helper's memory is counted in kilobytes, and typing takes 1,700 of them
    from collections.abc import Iterable, Sequence

OLDEST, TOO_NEW = (9, 1), (12, 0)
"""QEMU versions from OLDEST up to, but not including, TOO_NEW are known to compute this."""

MOST = (1 << 31) - 1
"""Gains up to this can be solved for; a guest takes a greater one for a wrap of its counter."""


def known(version: str) -> bool:
    """Return whether a QEMU of this version, such as `10.0.2`, computes as described here."""
    major, minor = version.split(".")[:2]
    return OLDEST <= (int(major), int(minor)) < TOO_NEW


class Qemu:
    """What QEMU keeps from window to window of one package of the host. Energy is in units of the register."""

    __slots__ = ("maxticks", "share", "vcpus_counted")

    def __init__(self, maxticks: int) -> None:
        """Take the ticks that all CPUs of the package had in a second when QEMU started."""
        self.maxticks = maxticks
        self.share = 0
        self.vcpus_counted = 0

    def gains(self, difference: int, vcpus: Sequence[float], others: Iterable[float]) -> list[int]:
        """Return what each vCPU gains in a window.

        `vcpus`, `others`: ticks of the threads that were on this package when the window began.
        """
        share = self._share(difference, len(vcpus), others)
        return [self._part(difference, ticks) + share if ticks > 0 else 0 for ticks in vcpus]

    def advance(self, difference: int, vcpus: Sequence[float], others: Iterable[float]) -> int:
        """Record a window as over and return what all vCPUs gained."""
        gained = sum(self.gains(difference, vcpus, others))
        self.share = self._share(difference, len(vcpus), others)
        self.vcpus_counted += len(vcpus)
        return gained

    def solve(self, most: int, vcpus: Sequence[float], others: Sequence[float]) -> int:
        """Return the largest difference for which all vCPUs together gain `most` at most.

        0 when no vCPU ran. With `most` up to MOST, QEMU's own numbers do not overflow for the difference returned.
        """
        ran = sum(vcpus)
        if ran <= 0 or most <= 0:
            return 0
        # Every vCPU's part is rounded down by half a unit at most, so any difference above this gains too much.
        low, high = 0, int((most + len(vcpus)) * self.maxticks / ran) + 1
        while high - low > 1:
            middle = (low + high) // 2
            if sum(self.gains(middle, vcpus, others)) <= most:
                low = middle
            else:
                high = middle
        return low

    def _share(self, difference: int, vcpus: int, others: Iterable[float]) -> int:
        share = self.share + sum(self._part(difference, ticks) for ticks in others if ticks > 0)
        counted = self.vcpus_counted + vcpus
        return share // counted if counted else share

    def _part(self, difference: int, ticks: float) -> int:
        exact = difference / 100.0 * (100.0 / self.maxticks * ticks)
        whole = int(exact)
        return whole + (exact - whole >= 0.5)
