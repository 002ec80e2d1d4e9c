"""What the filters inject and strip share: domain XML in and out, in its own encoding."""

import sys

from libvirt_rapl.domains.xml_layout import decode


def read_xml() -> tuple[str, str]:
    """Read standard input; return the text and its encoding. Raises VirtRaplError when it is in another one."""
    return decode(sys.stdin.buffer.read())


def write_xml(xml: str, encoding: str) -> None:
    """Write to standard output, in the encoding that was read, whatever the locale."""
    sys.stdout.buffer.write(xml.encode(encoding))
    sys.stdout.buffer.flush()
