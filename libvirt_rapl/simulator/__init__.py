"""A simulated machine with RAPL, Intel's or AMD's, and a separate libvirt on it.

Only the commands `simulate` and `demo`, and the tests, import it.
"""
