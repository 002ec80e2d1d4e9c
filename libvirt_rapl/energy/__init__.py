"""How energy is given out to domains, and kept: meter, attribution, and the ledger of totals.

Knows the host's zones and clocks, domains by UUID only, and nothing of libvirt. May import the ground and host; the
daemon drives it.
"""
