"""A machine that seems to have Intel RAPL, and a libvirt of its own on it.

Only the commands `simulate` and `demo`, and the tests, import it.
"""
