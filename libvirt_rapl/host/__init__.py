"""What the host tells: CPU topology, thread clocks, RAPL zones. Knows nothing of libvirt; every root is a parameter."""
