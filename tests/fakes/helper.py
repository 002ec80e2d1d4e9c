"""A helper process that behaves in the way that the environment variable HELPER_DOES names."""

import sys
from pathlib import Path

HELPER_DOES = "HELPER_DOES"
SERVES = "serves"
LAST = "no energy here"
"""What one that ends writes last, as an error."""

SCRIPT = f"""#!{sys.executable} -IS
import os, signal, socket, struct, sys, time
does, (run_directory, plan) = os.environ["{HELPER_DOES}"], os.path.split(sys.argv[-1])
uuid = plan.removesuffix(".plan")
os.close(os.open(run_directory + "/" + uuid + ".alive", os.O_CREAT))
if does == "ends":
    sys.exit("virt-rapl: error: first\\nvirt-rapl: error: {LAST}\\nhint: mend it\\n")
if does == "ends in silence":
    sys.exit(1)
if does == "ignores SIGTERM":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if does == "ends when it has served":
    def end(*_):
        time.sleep(0.05)
        os.close(os.open(run_directory + "/served", os.O_CREAT))
        os._exit(0)
    signal.signal(signal.SIGTERM, end)
if does == "hangs":
    signal.pause()
if does == "serves late":
    time.sleep(0.1)
listener = socket.socket(socket.AF_UNIX)
listener.bind(run_directory + "/" + uuid + ".sock")
listener.listen()
if does == "accepts and says nothing":
    signal.pause()
while True:
    peer, _ = listener.accept()
    while does != "hangs up" and peer.recv(12):
        peer.sendall(struct.pack("=Q", 0 if does == "reads 0" else 1))
    peer.close()
"""
"""What the interpreter is replaced by: it takes the command line of a real one, of which the last word is UUID.plan."""


def put(directory: Path) -> str:
    """Put the program into the directory that the run directory, `run`, is in; return its path."""
    path = directory / "python"
    path.write_text(SCRIPT)
    path.chmod(0o755)
    return str(path)
