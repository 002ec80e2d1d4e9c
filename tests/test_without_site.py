"""A Python that is started without `site`: what it imports, and that it finds the libraries of others when asked."""

import subprocess
import sys

import pytest

from libvirt_rapl import without_site

START = [sys.executable, "-I", "-S", without_site.PATH]
SHOW = f"""
import sys
sys.argv = [{without_site.PATH!r}, MODULE]
import runpy
runpy.run_path({without_site.PATH!r}, run_name="__main__")
print(*sys.modules)
"""
TOO_SLOW = {"lxml", "yaml", "dataclasses", "inspect", "shutil", "argparse", "site", "libvirt"}


def python(program: str) -> list[str]:
    command = [sys.executable, "-I", "-S", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("module", ["libvirt_rapl.lifecycle.hook", "libvirt_rapl.helper.process"])
def test_what_a_start_waits_for_imports_nothing_slow(module: str) -> None:
    imported = {name.partition(".")[0] for name in python(SHOW.replace("MODULE", repr(module)))}
    assert "libvirt_rapl" in imported
    assert imported & TOO_SLOW == set()


def test_the_libraries_of_others_are_found_when_they_are_needed() -> None:
    show = SHOW.replace("MODULE", "'libvirt_rapl.libraries'")
    program = f"{show}\nsys.modules['libvirt_rapl.libraries'].find()\nimport lxml.etree, yaml\nprint('found')"
    assert python(program)[-1] == "found"


def test_a_module_is_run_with_arguments_and_imported_without() -> None:
    helper = "libvirt_rapl.helper.process"
    assert subprocess.run([*START, helper], check=False).returncode == 0
    done = subprocess.run([*START, helper, "no-uuid"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("virt-rapl: error: ")
    assert "\nhint: " in done.stderr
