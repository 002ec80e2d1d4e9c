"""Parsing the XML of domains, where their owners can write anything: hardened, and no stricter than libvirt."""

from lxml import etree
from lxml.etree import _Element


def parse(text: bytes) -> _Element:
    """Return the root element of UTF-8 text, whatever encoding it declares. Raises ValueError that says what is wrong.

    No entity is resolved and nothing is loaded.
    """
    # libvirt accepts a namespace that is no URI, and a prefix without a namespace: neither is fatal to libxml2. lxml
    # returns such a document only with `recover`, which accepts others as well; so fatal errors are looked for below.
    parser = etree.XMLParser(
        encoding="utf-8", strip_cdata=False, resolve_entities=False, no_network=True, huge_tree=False, recover=True
    )
    try:
        root = etree.fromstring(text, parser)
    except etree.XMLSyntaxError as error:
        raise ValueError(error.msg) from error
    if fatal := parser.error_log.filter_from_fatals():
        raise ValueError(f"{fatal[0].message}, line {fatal[0].line}, column {fatal[0].column}")
    return root
