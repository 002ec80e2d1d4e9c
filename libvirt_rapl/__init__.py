"""virt-rapl: gives every KVM guest under libvirt its own energy meter."""

__version__ = "0.1.0"
