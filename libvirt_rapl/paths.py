"""Where things are that several parts of virt-rapl know: names of files, relative to the directory they are in."""

HOOK = "etc/libvirt/hooks/qemu.d/virt-rapl"
"""Relative to the root, as all that is installed."""
DISPATCHER = "etc/libvirt/hooks/qemu"
"""What a libvirt before 6.5 runs alone."""

MANIFEST = "etc/virt-rapl/installed.json"
"""What `virt-rapl install` has put in place."""

DAEMON = "daemon"
"""In the run directory: virt-rapld's own."""
STATUS_SOCKET = f"{DAEMON}/status.sock"
EVENTS = "events.jsonl"
OLDER_EVENTS = f"{EVENTS}.1"

LEDGER = "ledger.db"
"""In the state directory."""
