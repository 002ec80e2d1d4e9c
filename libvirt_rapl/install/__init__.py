"""What is put in place on a machine, what was, and which domains still need it.

May import the ground, domains and helper; doctor and commands use it.
"""
