"""What keys do, and what columns mean."""

HELP = """\
arrows, j k, page up, page down, home, end   choose a domain
Enter     open it: its vCPUs and their threads, its zones, its helper
< >       sort by the next column to the left or right; R reverses
letters   sort, too: n domain, s state, m meter, v vCPUs, p CPU,
          w power or energy, t today, c cost, e total
/         show only domains that have this in name, title, UUID, state or meter
u         unit: power now (W), or energy since counting began (J, kWh)
d         seconds between two frames
space     pause, and go on; Ctrl-L draws the screen anew
q         back; from the table, quit. Esc goes back, too, and ends a filter

METER     active: the guest reads its energy    off: it cannot
          pending: at its next start            degraded: it runs without
          waiting, connected, stalled: its energy channel
CPU %     of one CPU of the host, in the last interval
W         power in the last interval; beside it, how it was in the last minutes
kWh TODAY since midnight, by the history, which is asked once a minute
.../h     what an hour at this power costs at the present price, with PUE
TOTAL J   since counting began
"""
