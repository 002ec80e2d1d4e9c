"""Fetch a URL, also in a world or a machine: python3 -I fetch.py [--status] URL

Prints what is there, or only the status. Ends with 1 where there is no answer, or without --status, a bad one.
"""

import sys
import urllib.error
import urllib.request

FETCH = ("python3", "-I", __file__)
"""Begins the command."""
SECONDS = 30.0


def main() -> None:
    only_status, url = "--status" in sys.argv, sys.argv[-1]
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            print(answer.status if only_status else answer.read().decode())
    except urllib.error.HTTPError as error:
        if not only_status:
            sys.exit(f"{url}: {error}")
        print(error.code)
    except OSError as error:
        sys.exit(f"{url}: {error}")


if __name__ == "__main__":
    main()
