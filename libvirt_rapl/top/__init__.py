"""`virt-rapl top`: what comes in by threads (background), how it looks at any size, and what keys do to it.

All but background, terminal and csv_file is pure: figures, state and size in, lines out. May import the ground and
daemon; only cli/top.py imports it.
"""
