"""What the host shows: its energy zones, registers, CPUs and processes, and the clocks made from them.

Readers only; the root that each reads is a parameter, so that tests can give it files. What has vanished is None or
left out. May import only the ground; energy, helper and all rooms above use it.
"""
