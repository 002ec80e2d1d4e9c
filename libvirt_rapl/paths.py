"""Every path that virt-rapl knows, once: what it puts somewhere, and what it finds where others put it.

Paths are relative to the root, as tests and `--prefix-root` have a root of their own; files of a directory that the
configuration names are relative to that one. What a reader finds below PROC, SYS and DEV is its own matter, and the
files of a domain are that of libvirt_rapl.helper.run_directory.
"""

from pathlib import Path

PROC, SYS, DEV = Path("/proc"), Path("/sys"), Path("/dev")

# Installed.

CONFIGURATION = "etc/virt-rapl/virt-rapl.yaml"
MANIFEST = "etc/virt-rapl/installed.json"
"""What `virt-rapl install` has put in place."""
HOOK = "etc/libvirt/hooks/qemu.d/virt-rapl"
POLKIT_RULES = "etc/polkit-1/rules.d"
POLKIT_RULE = f"{POLKIT_RULES}/60-virt-rapl.rules"
APPARMOR = "etc/apparmor.d"
SELINUX_MODULE = "usr/share/selinux/packages/virt-rapl"
"""A directory, with the module's sources."""
UNITS = "etc/systemd/system"
"""The administrator's."""
PACKAGED_UNITS = "usr/lib/systemd/system"
DAEMON_UNIT = "virt-rapld.service"
WRAPPERS_PATH_UNIT, WRAPPERS_UNIT = "virt-rapl-wrappers.path", "virt-rapl-wrappers.service"

# Made as it runs.

RUN_DIRECTORY = "run/virt-rapl"
"""The default one, which the policies of SELinux and systemd know, and the wrapper."""
DAEMON = "daemon"
"""In the run directory: virt-rapld's own."""
STATUS_SOCKET = f"{DAEMON}/status.sock"
"""Whoever connects is given the document, once."""
STREAM_SOCKET = f"{DAEMON}/stream.sock"
"""Whoever connects is given each document from then on."""
EVENTS = "events.jsonl"
OLDER_EVENTS = f"{EVENTS}.1"

STATE_DIRECTORY = "var/lib/virt-rapl"
"""The default one."""
LEDGER = "ledger.db"
"""In the state directory."""

# libvirt's.

LIBVIRT_HOOK = "etc/libvirt/hooks/qemu"
"""Somebody else's, which libvirt runs before those in qemu.d."""
LIBVIRT_DEFINITIONS = "etc/libvirt/qemu"
LIBVIRT_RUN = "run/libvirt/qemu"
LIBVIRT_SAVES = "var/lib/libvirt/qemu/save"
"""Where it puts managed saves."""
LIBVIRT_LOGS = "var/log/libvirt/qemu"

# The system's.

SYSTEMD = "run/systemd/system"
"""Is there where systemd is init (sd_booted(3))."""
JOURNAL = "run/systemd/journal/socket"
SELINUX = "sys/fs/selinux/enforce"
"""Is there where SELinux is on; says whether it enforces."""
