"""`python -m libvirt_rapl` is `virt-rapl`: units and hooks name the interpreter, not a script on somebody's PATH."""

import sys

from libvirt_rapl.cli import main

sys.exit(main())
