"""What is put in place on a machine, what was, and who needs it still.

May import the ground, domains and helper; doctor and commands use it.
"""
