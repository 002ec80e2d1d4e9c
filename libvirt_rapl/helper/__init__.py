"""The domains' helpers: a record and a process for each, confined, that answers its QEMU.

Inside it `vmsr/` is what such a process runs; that imports next to nothing, as each domain has one. May import the
ground and host; lifecycle and all above use it.
"""
