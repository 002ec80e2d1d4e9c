"""Runs a module of this package in a Python that is started without `site`: what libvirt waits for begins here.

usage: python -I -S .../libvirt_rapl/without_site.py MODULE [ARGUMENT...]; without an ARGUMENT it is only imported.

`site` finds the libraries of others, and takes more time than all else that Python does when it starts. Who needs one
of them after all calls libvirt_rapl.libraries.find() first.
"""

import sys

PATH = __file__
"""To start Python with."""

if __name__ == "__main__":
    sys.path.append(__file__.rpartition("/libvirt_rapl/")[0])
    _, name, *arguments = sys.argv
    __import__(name)
    if arguments:
        sys.exit(sys.modules[name].run(*arguments))
