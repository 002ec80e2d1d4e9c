"""The energy channel in domain XML: a virtio-serial port by which the host sends the guest its joules.

inject() puts in `<channel type='unix'>` with the port's name, and a virtio-serial controller if the domain has none.
libvirt adds addresses to both when it defines the domain, and on PCI Express a port for the controller. strip() removes
all that. A channel of that name without our note in the mark is the owner's: it is used, and stays.

Only `definition` and `run_files` call this.
"""

from typing import NamedTuple

from lxml import etree
from lxml.etree import _Element

from libvirt_rapl.domains import marking
from libvirt_rapl.domains.xml_layout import index_after, insert, remove
from libvirt_rapl.errors import VirtRaplError

PORT = "org.virt-rapl.energy.0"
"""In the guest, /dev/virtio-ports/PORT."""
BEFORE_CONTROLLER = ("emulator", "disk", "controller")
BEFORE_CHANNEL = (*BEFORE_CONTROLLER, "lease", "filesystem", "interface", "smartcard", "serial", "parallel", "console")


class Channel(NamedTuple):
    """What libvirt shows of a domain's channel."""

    socket: str | None
    """Path of QEMU's socket; None if the domain does not run, or runs without the channel and has it from its next
    start on."""
    open: bool
    """Whether something in the guest has the port open."""


def check(domain: _Element) -> None:
    """Raise VirtRaplError when this domain cannot have the channel."""
    if domain.get("type") not in ("kvm", "qemu"):
        raise VirtRaplError(f"the domain is of type {domain.get('type')!r}", "only QEMU's domains have channels")
    marking.check(domain)
    channel = _named(domain)
    if channel is not None and not _is_usable(channel):
        raise VirtRaplError(
            f"the domain has a channel {PORT} to which virt-rapl cannot connect",
            "it has to be <channel type='unix'> with <source mode='bind'/>; remove it, virt-rapl makes its own",
        )


def find(domain: _Element) -> Channel | None:
    """Return what is known of the channel, ours or the owner's; None if there is none that we can use."""
    channel = _named(domain)
    if channel is None or not _is_usable(channel):
        return None
    source, target = channel.find("source"), channel.find("target")
    assert target is not None
    return Channel(None if source is None else source.get("path"), target.get("state") == "connected")


def inject(domain: _Element) -> None:
    """Put the channel in; check() has passed, and there is none."""
    mark = marking.found_or_made(domain)
    devices = marking.container(domain, "devices", mark)
    if devices.find("controller[@type='virtio-serial']") is None:
        # libvirt would do this, too, but then nobody knew afterwards that the controller is there for the channel.
        buses = (controller.get("index", "") for controller in devices.iterfind("controller[@type='pci']"))
        mark.set("pci", " ".join(buses))
        marking.note_created(mark, "controller")
        controller = etree.Element("controller", type="virtio-serial", index="0")
        insert(devices, index_after(devices, BEFORE_CONTROLLER), controller)
    marking.note_created(mark, "channel")
    channel = etree.Element("channel", type="unix")
    etree.SubElement(channel, "source", mode="bind")
    etree.SubElement(channel, "target", type="virtio", name=PORT)
    insert(devices, index_after(devices, (*BEFORE_CHANNEL, "channel")), channel)
    marking.order(mark)


def devices(domain: _Element) -> list[str]:
    """Return the XML of what inject() has put in: the controller, if the mark says that it is ours, and the channel."""
    mark = marking.find(domain)
    if mark is None:
        return []
    found = [_controller(domain) if marking.has_created(mark, "controller") else None]
    found += [_named(domain) if marking.has_created(mark, "channel") else None]
    return [etree.tostring(each, encoding="unicode", with_tail=False) for each in found if each is not None]


def strip(domain: _Element) -> None:
    """Undo inject(), if the mark says that the channel is ours."""
    mark = marking.find(domain)
    if mark is None or not marking.has_created(mark, "channel"):
        return
    channel = _named(domain)
    if channel is not None:
        remove(channel)
    controller = _controller(domain)
    if marking.has_created(mark, "controller") and controller is not None and not _is_used(domain):
        remove(controller)
        _remove_port(domain, controller, mark)
    marking.forget(mark, "channel", "controller", "pci")
    marking.tidy(domain, mark)


def _controller(domain: _Element) -> _Element | None:
    return domain.find("devices/controller[@type='virtio-serial'][@index='0']")


def _named(domain: _Element) -> _Element | None:
    target = domain.find(f"devices/channel/target[@type='virtio'][@name='{PORT}']")
    return None if target is None else target.getparent()


def _is_usable(channel: _Element) -> bool:
    source = channel.find("source")
    return channel.get("type") == "unix" and (source is None or source.get("mode", "bind") == "bind")


def _is_used(domain: _Element) -> bool:
    """Return whether the first virtio-serial controller has other ports by now."""
    for device in domain.iterfind("devices/*"):
        address, target = device.find("address[@type='virtio-serial']"), device.find("target[@type='virtio']")
        if address is not None and address.get("controller", "0") == "0":
            return True
        if address is None and target is not None and device.tag in ("channel", "console"):
            return True
    return False


def _remove_port(domain: _Element, controller: _Element, mark: _Element) -> None:
    """Remove the PCI controller that libvirt has added for our virtio-serial controller, if nothing else is on it."""
    address = controller.find("address[@type='pci']")
    if address is None:
        return
    bus = address.get("bus", "")
    index = str(int(bus, 0))
    port = domain.find(f"devices/controller[@type='pci'][@index='{index}']")
    used = any(each.get("bus") == bus for each in domain.iterfind("devices//address[@type='pci']"))
    if port is not None and index not in mark.get("pci", "").split() and not used:
        remove(port)
