"""Libvirt's domains: the connection, their XML with the meter and without, their emulators and run-time files.

Only `connection` and `domain` import libvirt; what the hook wakes (definition, emulator, run_files) lives without it.
May import the ground and host.
"""
