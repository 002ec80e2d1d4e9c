"""How energy is given out to domains, and kept: meter, attribution, and the ledger of totals.

Knows zones and clocks of the host, domains by UUID alone, and nothing of libvirt. May import the ground and host; the
daemon drives it.
"""
