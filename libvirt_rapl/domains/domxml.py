"""Registers in domain XML: whether a parsed <domain> can have them, putting them in, and out without a trace.

inject() makes four changes and records in the mark what strip() needs to undo them exactly, white space included:
  - <emulator> names the wrapper, which is beside the emulator and has its name with the suffix -rapl,
  - qemu:commandline gets `-accel kvm,rapl=true,rapl-helper-socket=SOCKET`, which the wrapper merges into libvirt's own,
  - the containers of these (metadata, devices, commandline) are made if the domain has none,
  - <metadata> gets the mark.

Only `definition` calls this; all others use the object that it makes of XML.
"""

import re

from lxml import etree
from lxml.etree import _Element

from libvirt_rapl.domains import marking
from libvirt_rapl.domains.marking import COMMANDLINE_TAG
from libvirt_rapl.domains.names import ACCELERATOR, QEMU, WRAPPER_SUFFIX, check_socket
from libvirt_rapl.domains.xml_layout import add_suffix, index_after, insert, remove, remove_suffix, string
from libvirt_rapl.domains.xml_uuid import uuid_of
from libvirt_rapl.errors import NoRegistersError, VirtRaplError

OUR_ARGUMENT = re.compile(re.escape(ACCELERATOR) + r"/[^,]*/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.sock")
"""Only we name a socket like this: another -accel argument is the domain's owner's."""

ARG_TAG = f"{{{QEMU}}}arg"


def check(domain: _Element, socket: str) -> None:
    """Raise VirtRaplError when this domain, as clear() has left it, cannot have a meter at `socket`."""
    check_kind(domain)
    uuid_of(domain)
    _check_vcpus(domain)
    if any(arg.get("value") in ("-accel", "--accel") for arg in domain.iterfind(f"{COMMANDLINE_TAG}/{ARG_TAG}")):
        raise VirtRaplError(
            "the domain has an -accel argument of its own in qemu:commandline", "remove it: QEMU takes only one"
        )
    _check_emulator(domain)
    marking.check(domain)
    check_socket(socket)


def check_kind(domain: _Element) -> None:
    """Raise VirtRaplError when no change of the XML could give this kind of domain a meter. Check this first."""
    if domain.get("type") != "kvm":
        raise NoRegistersError(f"the domain is of type {domain.get('type')!r}", "only domains of type kvm have RAPL")
    machine = domain.find("os/type")
    if machine is not None and machine.get("arch", "x86_64") != "x86_64":
        raise NoRegistersError(f"the domain is a {machine.get('arch')} machine", "only x86_64 machines have RAPL")


def _check_vcpus(domain: _Element) -> None:
    """Refuse a domain that can get more vCPUs: QEMU sizes its RAPL arrays by those at boot, and writes past the end."""
    vcpu = domain.find("vcpu")
    most = string(vcpu).strip()
    current = most if vcpu is None else vcpu.get("current", most).strip()
    listed = domain.findall("vcpus/vcpu")
    enabled = [each for each in listed if each.get("enabled") != "no"]
    if current != most or enabled != listed:
        first = current if current != most else len(enabled)
        raise NoRegistersError(
            "the domain's number of vCPUs can grow while it runs, which QEMU's RAPL does not survive",
            f"let it start with all of its vCPUs: <vcpu>{first}</vcpu> without current=, no <vcpus>, and a <topology> "
            f"in <cpu> that makes {first}; or give it the energy channel: `--via channel`",
        )


def _check_emulator(domain: _Element) -> None:
    emulator = domain.find("devices/emulator")
    if emulator is None:
        return
    path = string(emulator)
    if not path.startswith("/") or path != path.strip():
        raise VirtRaplError(f"the emulator {path!r} is not an absolute path", "correct <emulator>")
    if path.endswith(WRAPPER_SUFFIX):
        raise VirtRaplError(
            f"the emulator {path} has the name of a wrapper, but no mark says that virt-rapl has put it there",
            f"name the emulator itself in <emulator>: {path.removesuffix(WRAPPER_SUFFIX)}, if that is the one",
        )


def check_takes_effect(domain: _Element) -> None:
    """Raise VirtRaplError when the mark is there, but the guest would have no meter."""
    if not string(domain.find("devices/emulator")).endswith(WRAPPER_SUFFIX):
        message = "its emulator is not the wrapper, and without it QEMU ignores the argument"
        raise VirtRaplError(message, "run `virt-rapl enable` on it")


def is_in_order(domain: _Element, socket: str) -> bool:
    """Return whether all is there that inject() puts in for `socket`, wherever somebody may have moved it."""
    mark, argument = marking.find(domain), _argument(domain, ACCELERATOR + socket)
    if mark is None or argument is None or _option(argument) is None:
        return False
    return mark.get("socket") == socket and names_wrapper(string(domain.find("devices/emulator")), mark)


def inject(domain: _Element, socket: str, default_emulator: str) -> None:
    """Put the meter in, reading through the helper at `socket`; clear() has removed any that was there."""
    mark = marking.found_or_made(domain)
    mark.set("socket", socket)
    devices = marking.container(domain, "devices", mark)
    emulator = devices.find("emulator")
    if emulator is None:
        mark.set("emulator", default_emulator)
        marking.note_created(mark, "emulator")
        emulator = etree.Element("emulator")
        emulator.text = default_emulator + WRAPPER_SUFFIX
        insert(devices, 0, emulator)
    else:
        mark.set("emulator", string(emulator))
        add_suffix(emulator, WRAPPER_SUFFIX)

    commandline = marking.container(domain, "commandline", mark)
    for value in ("-accel", ACCELERATOR + socket):
        insert(commandline, index_after(commandline, (ARG_TAG,)), etree.Element(ARG_TAG, value=value))


def strip(domain: _Element) -> None:
    """Undo inject(), if the mark says that there are registers."""
    mark = marking.find(domain)
    if mark is None or not marking.has_registers(mark):
        return
    _strip_argument(domain, mark)
    _strip_emulator(domain, mark)
    marking.forget(mark, "socket", "emulator")
    marking.tidy(domain, mark)


def clear(domain: _Element, socket: str) -> None:
    """Remove what inject() is about to put in again: what the mark names or, if it is lost or wrong, the pair.

    The pair is the argument for this very socket and a wrapper: inject() would make just that, so it can only be ours.
    """
    argument = _argument(domain, ACCELERATOR + socket)
    emulator = domain.find("devices/emulator")
    strip(domain)
    if argument is None or emulator is None or not string(emulator).endswith(WRAPPER_SUFFIX):
        return
    remove_suffix(emulator, WRAPPER_SUFFIX)
    commandline = argument.getparent()
    if commandline is not None:
        _remove_option(argument)
        if marking.is_empty(commandline):
            remove(commandline)


def helper_socket(domain: _Element) -> str | None:
    """Return the socket that our argument names; None if there is no such argument."""
    argument = _our_argument(domain)
    return None if argument is None else argument.get("value", "").removeprefix(ACCELERATOR)


def names_wrapper(path: str, mark: _Element) -> bool:
    """Return whether this is the wrapper of the emulator that the mark names."""
    return path == mark.get("emulator", "") + WRAPPER_SUFFIX


def _argument(domain: _Element, value: str) -> _Element | None:
    arguments = domain.iterfind(f"{COMMANDLINE_TAG}/{ARG_TAG}")
    return next((argument for argument in arguments if argument.get("value") == value), None)


def _our_argument(domain: _Element) -> _Element | None:
    """Find the first one that looks like ours."""
    arguments = domain.iterfind(f"{COMMANDLINE_TAG}/{ARG_TAG}")
    return next((argument for argument in arguments if OUR_ARGUMENT.fullmatch(argument.get("value", ""))), None)


def _strip_argument(domain: _Element, mark: _Element) -> None:
    """Remove the argument that the mark names; if somebody has edited it, the first one that looks like ours."""
    argument = _argument(domain, ACCELERATOR + mark.get("socket", ""))
    if argument is None:
        argument = _our_argument(domain)
    if argument is not None:
        _remove_option(argument)


def _remove_option(arg: _Element) -> None:
    """Remove the argument and the -accel before it."""
    option = _option(arg)
    remove(arg)
    if option is not None:
        remove(option)


def _option(arg: _Element) -> _Element | None:
    """Find the -accel before the argument."""
    option = next(arg.itersiblings(ARG_TAG, preceding=True), None)
    return option if option is not None and option.get("value") == "-accel" else None


def _strip_emulator(domain: _Element, mark: _Element) -> None:
    emulator = domain.find("devices/emulator")
    if emulator is None or not names_wrapper(string(emulator), mark):
        return  # somebody has changed it since, and so it is not ours
    if marking.has_created(mark, "emulator"):
        remove(emulator)
    else:
        remove_suffix(emulator, WRAPPER_SUFFIX)
