#!/usr/bin/python3 -I
"""A virt-rapl for the Cockpit page: its answers are files. /mnt/fake/COMMAND.json is what a command prints.

`status` prints its file once a second, and fills in when it was sampled unless that is there. If there is a file
COMMAND.error, the command prints that on standard error and fails; COMMAND.warning it prints there, and goes on. It
waits until COMMAND.held is gone. Every call is noted in /mnt/fake/calls.
"""

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

FAKE = Path("/mnt/fake")


def main() -> None:
    command, *arguments = sys.argv[1:]
    with (FAKE / "calls").open("a") as calls:
        print(json.dumps([command, *arguments]), file=calls)
    while (FAKE / f"{command}.held").exists():
        time.sleep(0.05)
    if (error := FAKE / f"{command}.error").exists():
        sys.exit(error.read_text())
    if (warning := FAKE / f"{command}.warning").exists():
        print(warning.read_text(), file=sys.stderr)
    answer = FAKE / f"{command}.json"
    while command == "status":
        document = json.loads(answer.read_text())
        document["host"].setdefault("sampled_at", datetime.now(UTC).isoformat(timespec="milliseconds"))
        print(json.dumps(document), flush=True)
        time.sleep(1)
    print(answer.read_text() if answer.exists() else "")


if __name__ == "__main__":
    main()
