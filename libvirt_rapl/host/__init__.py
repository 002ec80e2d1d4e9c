"""What the host shows: its energy zones, registers, CPUs and processes, and the clocks made of them.

Readers only, each on a root that is a parameter, so that tests give them files. What has vanished is None or left out.
May import the ground alone; energy, helper and all above use it.
"""
