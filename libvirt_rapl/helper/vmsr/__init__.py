"""QEMU's virtual RAPL: the wire protocol between QEMU and its helper, a client and our helper."""
