"""The libraries of others, in a Python that was started without `site`; see libvirt_rapl.without_site."""

import sys


def find() -> None:
    """Let the libraries of others be imported from now on, as in any Python."""
    if sys.flags.no_site and "site" not in sys.modules:
        import site

        site.main()
