"""QEMU's arithmetic in the tests' own words: what QEMU 9.1 to 10.2 does once a second for a guest.

That is kvm_msr_energy_thread in target/i386/kvm/kvm.c. tests/test_qemu_oracle.py holds it against a recording of a real
QEMU, the register its guest read included; see record_threads.py. Energies are in units of the register, 2**-14 J;
times in clock ticks of 10 ms.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

RECORDING = json.loads((Path(__file__).parent.parent / "data/threads/disk-io.json").read_text())
CPUS: int = RECORDING["cpus"]
TICKS_PER_SECOND = 100
U32, U64 = 1 << 32, 1 << 64


@dataclass
class Qemu:
    """One guest on a host of one package, each vCPU in a socket of its own."""

    counters: dict[int, int] = field(default_factory=dict)
    """What each vCPU's register shows."""
    vcpus_counted: int = 0
    share: int = 0
    """What each vCPU is given for the threads that are no vCPU. Neither this nor the one above is ever reset."""

    def window(
        self, start: int, end: int, vcpus: Mapping[int, int], before: Mapping[int, int], after: Mapping[int, int]
    ) -> dict[int, int]:
        """Charge one second and return what each vCPU's register gained.

        `start` and `end`: what the package's register showed. `vcpus`: TID of each vCPU. `before` and `after`: ticks of
        each thread but the main one, which QEMU leaves out, by TID.
        """
        gained = max(0, end - start)
        ran = {tid: (after.get(tid, 0) - ticks) % U64 for tid, ticks in before.items()}
        parts = {tid: self._part(gained, ticks) for tid, ticks in ran.items()}
        self.vcpus_counted += len(vcpus)
        self.share = (self.share + sum(parts[tid] for tid in before.keys() - vcpus.values())) % U64
        self.share //= self.vcpus_counted
        gains = {vcpu: (parts[tid] + self.share) % U32 if ran[tid] else 0 for vcpu, tid in vcpus.items()}
        for vcpu, gain in gains.items():
            self.counters[vcpu] = (self.counters.get(vcpu, 0) + gain) % U32
        return gains

    @staticmethod
    def _part(gained: int, ticks: int) -> int:
        """The nearest whole number, in 64 bits; what does not fit into them is 2**63 on x86."""
        part = int(gained * ticks / (TICKS_PER_SECOND * CPUS) + 0.5)
        return part if part < 1 << 63 else 1 << 63
