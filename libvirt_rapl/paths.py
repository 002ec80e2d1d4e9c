"""Every path that virt-rapl knows, once: of its own files, and of files that belong to others.

Paths are relative to the root, because tests and `--prefix-root` have a root of their own; files in a directory that
the configuration names are relative to that one. Not here: what is read below PROC, SYS and DEV (in the reader), and
the files of a domain (in libvirt_rapl.helper.run_directory).
"""

from pathlib import Path

PROC, SYS, DEV = Path("/proc"), Path("/sys"), Path("/dev")

# Installed.

CONFIGURATION = "etc/virt-rapl/virt-rapl.yaml"
MANIFEST = "etc/virt-rapl/installed.json"
"""What `virt-rapl install` has put in place."""
DEFAULT_EMULATOR = "usr/local/bin/qemu-system-x86_64"
"""The link that makes the wrapper libvirt's default emulator; the hook names it, too."""
HOOK = "etc/libvirt/hooks/qemu.d/virt-rapl"
POLKIT_RULES = "etc/polkit-1/rules.d"
POLKIT_RULE = f"{POLKIT_RULES}/60-virt-rapl.rules"
APPARMOR = "etc/apparmor.d"
SELINUX_MODULE = "usr/share/selinux/packages/virt-rapl"
"""A directory, with the module's sources."""
COCKPIT = "usr/share/cockpit"
"""Exists where Cockpit is installed."""
COCKPIT_PAGE = f"{COCKPIT}/virt-rapl"
COCKPIT_METAINFO = "usr/share/metainfo/org.virt_rapl.cockpit.metainfo.xml"
"""What AppStream shows of the page."""
UNITS = "etc/systemd/system"
"""The administrator's."""
PACKAGED_UNITS = "usr/lib/systemd/system"
DAEMON_UNIT = "virt-rapld.service"
EXPORTER_UNIT = "virt-rapl-exporter.service"
CHANNEL_UNIT = "virt-rapl-channel.service"
WRAPPERS_PATH_UNIT, WRAPPERS_UNIT = "virt-rapl-wrappers.path", "virt-rapl-wrappers.service"
EXPORTER_OPTIONS = "etc/default/virt-rapl-exporter"
"""Its unit reads ARGS= there; nothing of ours writes it."""

# Made at run time.

RUN_DIRECTORY = "run/virt-rapl"
"""The default one; the rules for SELinux, the systemd units and the wrapper name it, too."""
DAEMON = "daemon"
"""In the run directory: virt-rapld's own."""
STATUS_SOCKET = f"{DAEMON}/status.sock"
"""A client that connects gets the document, once."""
STREAM_SOCKET = f"{DAEMON}/stream.sock"
"""A client that connects gets each document from then on."""
CHANNEL_STREAM_SOCKET = f"{DAEMON}/channel.sock"
"""The same, but only while a domain has an energy channel: for the channel process."""
HISTORY_SOCKET = f"{DAEMON}/history.sock"
"""A client that says which time it wants gets the history of it."""
CHANNEL = "channel"
"""In the run directory: the channel process's own."""
CHANNEL_REPORT = f"{CHANNEL}/report.json"
"""What it says of each domain's channel."""
CHANNEL_LOCK = f"{CHANNEL}/lock"
"""Locked while it runs: a second one would take the first one's connections."""
CHOSEN = "chosen"
"""In the default run directory: by which patterns the configuration may choose a domain, for the hook."""
EVENTS = "events.jsonl"
OLDER_EVENTS = f"{EVENTS}.1"
REMEMBERED = "remembered"
"""In the default run directory: see libvirt_rapl.remembered."""

STATE_DIRECTORY = "var/lib/virt-rapl"
"""The default one."""
LEDGER = "ledger.db"
"""In the state directory."""

# libvirt's.

LIBVIRT_HOOK = "etc/libvirt/hooks/qemu"
"""Somebody else's, which libvirt runs before those in qemu.d."""
QEMU_CONFIGURATION = "etc/libvirt/qemu.conf"
LIBVIRT_DEFINITIONS = "etc/libvirt/qemu"
LIBVIRT_RUN = "run/libvirt/qemu"
LIBVIRT_SAVES = "var/lib/libvirt/qemu/save"
"""For managed saves."""
LIBVIRT_LOGS = "var/log/libvirt/qemu"

# The system's.

GROUPS = ("etc/group", "usr/lib/group")
"""The second has those of the distribution where /usr is an image; the first counts."""
SYSTEMD = "run/systemd/system"
"""Exists if systemd is init (sd_booted(3))."""
JOURNAL = "run/systemd/journal/socket"
SELINUX = "sys/fs/selinux/enforce"
"""Exists if SELinux is on; says whether it enforces."""
