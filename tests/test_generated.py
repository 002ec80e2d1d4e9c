"""What is made from the command line and the configuration's schema is current, and the tools that read it take it."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from libvirt_rapl.config import KEYS, Config
from libvirt_rapl.simulator.world import World

ROOT = Path(__file__).parent.parent
MAN = sorted((ROOT / "etc/man").iterdir())
BASH = ROOT / "etc/completions/virt-rapl.bash"
ZSH = ROOT / "etc/completions/_virt-rapl"


def test_docs_man_pages_and_completions_are_current() -> None:
    command = [sys.executable, str(ROOT / "docs/generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_key_is_in_the_shipped_configuration() -> None:
    keys = {field.name for field in fields(Config)}
    assert set(yaml.safe_load((ROOT / "etc/virt-rapl.yaml").read_text())) == keys
    assert KEYS.keys() == keys


@pytest.mark.needs("mandoc")
@pytest.mark.parametrize("page", MAN, ids=lambda page: page.name)
def test_man_pages_are_well_formed(page: Path) -> None:
    done = subprocess.run(["mandoc", "-Tlint", "-Wwarning", page], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def completions(world: World, *words: str) -> list[str]:
    """Return what bash offers in the world for the last of these words."""
    script = (
        'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_virt_rapl; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = world.run(["bash", "-c", script, str(BASH), "virt-rapl", *words])
    return sorted(done.stdout.split("\n")[:-1])


@pytest.mark.e2e
def test_bash_completes_commands_options_and_domains(world: World) -> None:
    names = ["web1", "web 2", "web$(id)", "db"]
    for name in names:
        xml = f"<domain type='kvm'><name>{name}</name><memory>1</memory><os><type>hvm</type></os></domain>"
        world.run(["virsh", "define", "/dev/stdin"], input=xml)
    try:
        assert completions(world, "en") == ["enable"]
        assert completions(world, "--config", "/dev/null", "di") == ["disable"]
        assert completions(world, "enable", "--l") == ["--live"]
        assert completions(world, "config", "") == ["check", "show"]
        assert completions(world, "enable", "d") == ["db"]
        assert completions(world, "status", "db", "web") == ["web1", r"web\ 2", r"web\$\(id\)"]
    finally:
        for name in names:
            world.run(["virsh", "undefine", name])


@pytest.mark.needs("zsh")
def test_zsh_takes_its_completions() -> None:
    script = (
        'fpath=("$1" $fpath); autoload -Uz compinit && compinit -D -u && print $_comps[virt-rapl] && zsh -n "$1/$2"'
    )
    command = ["zsh", "-f", "-c", script, "zsh", str(ZSH.parent), ZSH.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "_virt-rapl\n", "")
