"""Libvirt's domains: the connection, their XML with and without the meter, their emulators and run-time files.

Only `connection` and `domain` import libvirt; what the hook imports (definition, emulator, run_files) works without it.
May import the ground and host.
"""
