"""The domains' helpers: for each domain a record, and a confined process that answers its QEMU.

Such a process runs what is in `vmsr/`, which imports next to nothing, because each domain has one. May import the
ground and host; lifecycle and all above use it.
"""
