"""The energy channel in domain XML: a virtio-serial port by which the host sends the guest its joules.

inject() puts in `<channel type='unix'>` with the port's name, and a virtio-serial controller if the domain has none.
When libvirt defines the domain, it adds addresses to both, a controller if those that are there have no port left, and
on PCI Express perhaps a port for the controller, and a free one. The mark lists the controllers that were there before,
and so strip() removes all that. A channel of that name without our note in the mark is the owner's: it is used, and
stays.

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
NAMED = f"devices/channel/target[@type='virtio'][@name='{PORT}']"
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
    if len(domain.findall(NAMED)) > 1:
        raise VirtRaplError(f"the domain has two channels {PORT}", "remove one: QEMU does not start such a domain")
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
    if not marking.has_created(mark, "channel"):  # else somebody has removed the channel alone
        marking.note_created(mark, "channel")
        mark.set("controllers", " ".join(_name(each) for each in _controllers(domain)))
        if single := [_name(each) for each in _controllers(domain) if _is_single(each)]:
            mark.set("single", " ".join(single))
    if devices.find("controller[@type='virtio-serial']") is None:
        # libvirt would do this, too, but only when it defines the domain, and not for one that runs.
        controller = etree.Element("controller", type="virtio-serial", index="0")
        insert(devices, index_after(devices, BEFORE_CONTROLLER), controller)
    channel = etree.Element("channel", type="unix")
    etree.SubElement(channel, "source", mode="bind")
    etree.SubElement(channel, "target", type="virtio", name=PORT)
    insert(devices, index_after(devices, (*BEFORE_CHANNEL, "channel")), channel)


def devices(domain: _Element) -> list[str]:
    """Return the XML of what inject() has put in: the controller, if the mark says that it is ours, and the channel."""
    mark = marking.find(domain)
    if mark is None or not marking.has_created(mark, "channel"):
        return []
    channel = _named(domain)
    controller = _controller_of(domain, channel, mark)
    ours = [each for each in (controller, channel) if each is not None]
    return [etree.tostring(each, encoding="unicode", with_tail=False) for each in ours]


def strip(domain: _Element) -> None:
    """Undo inject(); the mark says that the channel is ours."""
    mark = marking.find(domain)
    assert mark is not None
    channel = _named(domain)
    controller = _controller_of(domain, channel, mark)
    if channel is not None:
        remove(channel)
    if controller is not None and not _is_used(domain, controller):
        remove(controller)
        _remove_ports(domain, controller, mark)
    marking.forget(mark, "channel", "controllers", "single")
    marking.tidy(domain, mark)


def _controllers(domain: _Element) -> list[_Element]:
    """Return those that libvirt may add others of: where the channel can be, and where those can be in turn."""
    return [each for each in domain.iterfind("devices/controller") if each.get("type") in ("virtio-serial", "pci")]


def _name(controller: _Element) -> str:
    return f"{controller.get('type')}:{controller.get('index', '0')}"


def _controller_of(domain: _Element, channel: _Element | None, mark: _Element) -> _Element | None:
    """Return the controller that the channel is on; None if it was there before."""
    address = None if channel is None else channel.find("address[@type='virtio-serial']")
    name = f"virtio-serial:{'0' if address is None else address.get('controller')}"
    return next((each for each in _controllers(domain) if _name(each) == name and not _was_there(each, mark)), None)


def _was_there(controller: _Element, mark: _Element) -> bool:
    """Return whether the controller is older than the channel; yes, if the mark does not say it."""
    listed = mark.get("controllers")
    return listed is None or _name(controller) in listed.split()


def _named(domain: _Element) -> _Element | None:
    target = domain.find(NAMED)
    return None if target is None else target.getparent()


def _is_usable(channel: _Element) -> bool:
    source = channel.find("source")
    return channel.get("type") == "unix" and (source is None or source.get("mode") == "bind")


def _is_used(domain: _Element, controller: _Element) -> bool:
    """Return whether a virtio-serial controller has other ports by now."""
    for device in domain.iterfind("devices/*"):
        address, target = device.find("address[@type='virtio-serial']"), device.find("target[@type='virtio']")
        if address is not None and address.get("controller", "0") == controller.get("index"):
            return True
        if address is None and target is not None and device.tag in ("channel", "console"):
            return True
    return False


def _remove_ports(domain: _Element, controller: _Element, mark: _Element) -> None:
    """Remove the PCI controllers that libvirt has added for our virtio-serial controller, if nothing else is on them.

    To the first port of a domain libvirt adds another one, which is free for a hot-plug.
    """
    address = controller.find("address[@type='pci']")
    if address is None:
        return
    bus = address.get("bus", "")
    port = next((each for each in _controllers(domain) if _bus(each) == bus and not _was_there(each, mark)), None)
    if port is None or _has_devices(domain, port):
        return
    remove(port)
    left = [each for each in _controllers(domain) if each.get("type") == "pci" and each.get("index") != "0"]
    # With more ports than the free one, libvirt would fill the gap in their numbers again.
    if len(left) == 1 and _is_free_port(domain, left[0]) and not _was_there(left[0], mark):
        remove(left[0])
    for other in _controllers(domain):
        shared = other.find("address[@multifunction='on']")
        if shared is not None and _name(other) in mark.get("single", "").split():
            del shared.attrib["multifunction"]  # libvirt has set it, and sets it again if the slot is still shared


def _is_free_port(domain: _Element, controller: _Element) -> bool:
    return controller.get("model") == "pcie-root-port" and not _has_devices(domain, controller)


def _has_devices(domain: _Element, controller: _Element) -> bool:
    """Return whether something is on the bus behind a PCI controller."""
    addresses = domain.iterfind("devices//address[@type='pci']")
    return any(each.get("bus") == _bus(controller) for each in addresses)


def _bus(controller: _Element) -> str | None:
    """Return the number of the bus behind a PCI controller, as libvirt writes it in addresses."""
    index = controller.get("index", "")
    return f"{int(index):#04x}" if controller.get("type") == "pci" and index.isdecimal() else None


def _is_single(controller: _Element) -> bool:
    """Return whether a PCI controller is the first in its slot, and alone there."""
    address = controller.find("address[@type='pci'][@function='0x0']")
    return controller.get("type") == "pci" and address is not None and address.get("multifunction") != "on"
