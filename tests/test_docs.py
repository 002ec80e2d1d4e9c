"""What the docs say to do is done here: each command on a second machine, README's first, in the order of their page.

Every block of code says what it is: `sh` is run, `yaml` must be a configuration, `ini` a drop-in of a unit, `text` what
a program prints. Commands that stand in the middle of a sentence or a table are parsed, not run.
"""

import argparse
import configparser
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from machine import Machine, document

from libvirt_rapl import cli
from libvirt_rapl.config import load
from libvirt_rapl.exporter import web_config
from libvirt_rapl.simulator import guest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]

NOT_RUN = {
    "./etc/quickstart": "installs from the network; tests/test_demo.py runs it where that is done",
    "./etc/build-deb": "tests/test_packages.py runs it, and installs what it makes",
    "./tests/run": "this is it",
    "./tests/bench/run --json figures.json": "takes minutes; tests/test_bench.py runs the same measurements, smaller",
}
"""Only parsed, and why."""

BEFORE = {"docs/automatic.md": "virsh destroy web1; virt-rapl disable web1; virsh start web1"}
"""What a page takes for granted and README has left otherwise."""

PROGRAMS = ("apt", "journalctl", "modprobe", "systemctl", "virsh", "virt-rapl")


class Block(NamedTuple):
    page: Path
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text.splitlines()[0] if self.text else 'nothing'}"


def blocks(kind: str = "") -> list[Block]:
    found = [
        Block(page, *match)
        for page in PAGES
        for match in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    return [block for block in found if kind in ("", block.kind)]


def prose(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", blocks(), ids=str)
def test_every_block_says_what_it_is(block: Block) -> None:
    assert block.kind in ("sh", "yaml", "ini", "text")
    if block.kind == "text":
        assert not [line for line in block.text.splitlines() if line.split(" ")[0] in PROGRAMS], "is that no command?"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_no_code_hides_by_indentation(page: Path) -> None:
    assert not re.findall(r"(?<=\n\n) {4}.*", prose(page)), "write it between ``` and say what it is"


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_configuration_is_valid(block: Block, tmp_path: Path) -> None:
    """A block on the page about Prometheus is its configuration, or the exporter's web configuration."""
    file = tmp_path / "virt-rapl.yaml"
    file.write_text(block.text)
    if block.page.name != "prometheus.md":
        load(file)
    elif "scrape_configs" not in yaml.safe_load(block.text):
        web_config.parse(file, block.text.encode())


@pytest.mark.parametrize("block", blocks("ini"), ids=str)
def test_drop_ins_are_well_formed(block: Block) -> None:
    drop_in = configparser.ConfigParser(strict=False)
    drop_in.read_string(block.text)
    assert drop_in.sections() == ["Service"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_links_lead_somewhere(page: Path) -> None:
    links = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", prose(page))]
    assert [link for link in links if "://" not in link and link and not (page.parent / link).exists()] == []


def commands_of_ours(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command of ours in the text, but those that show where arguments go."""
    for code in re.findall(r"`([^`]+)`", prose(page)):
        for part in re.split(r"\\?\||[<>;]", code):
            if part.strip().startswith("virt-rapl ") and not re.search(r"\[|\.\.\.|\bUUID\b|check$", part):
                yield shlex.split(part)[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_commands_in_the_text_are_ours(page: Path) -> None:
    for words in commands_of_ours(page):
        ours, rest = cli._split(words)
        command = cli._global_parser().parse_args(ours).command
        parser = argparse.ArgumentParser(prog=f"virt-rapl {command}")
        importlib.import_module(f"libvirt_rapl.cli.{command}").add_arguments(parser)
        if command not in ("enable", "disable"):  # the text speaks of them without a domain
            parser.parse_args(rest)


@pytest.mark.parametrize("command", NOT_RUN)
def test_what_is_not_run_is_there(command: str) -> None:
    program = ROOT / command.split()[0]
    assert program.stat().st_mode & 0o111
    assert command in [block.text.strip() for block in blocks("sh")]


def names_in_the_tree(text: str) -> list[str]:
    """Return what looks like a path of this tree, but those that show where a name goes."""
    names = re.findall(r"(?<![\w/.~@-])(?:\.?/)?((?:[\w.-]+/)+[\w.-]*|[\w-]+\.md)", text)
    return [name for name in names if "NAME" not in name and not name.startswith(".venv/")]


def test_paths_in_contributing_are_there() -> None:
    text = CONTRIBUTING.read_text()
    names = [name for code in re.findall(r"`([^`\n]+)`", prose(CONTRIBUTING)) for name in names_in_the_tree(code)]
    names += [name for block in blocks("sh") if block.page == CONTRIBUTING for name in names_in_the_tree(block.text)]
    assert len(names) > 30
    homes = (ROOT, ROOT / "libvirt_rapl")
    assert [name for name in names if not any((home / name).exists() for home in homes)] == []
    for file, test in re.findall(r"(tests/\w+\.py)::(\w+)", text):
        assert f"def {test}(" in (ROOT / file).read_text()


def to_run(page: Path) -> list[str]:
    """Return the commands of a page, but of CONTRIBUTING, whose commands run the tests."""
    if page == CONTRIBUTING:
        return []
    return [block.text for block in blocks("sh") if block.page == page and block.text.strip() not in NOT_RUN]


def run(machine: Machine, page: Path, script: str) -> None:
    """Run commands of a page as an operator would: what pip installs is what runs, from the checkout for README."""
    directory = ROOT if page.parent == ROOT else Path("/root")
    environment = "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    environment += " PIP_NO_INDEX=1 PIP_FIND_LINKS=/opt/for-pip"
    machine.run(["sh", "-euc", f"{environment}; cd {directory}\n{script}"], timeout=180)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine without network that has the guest web1, and all done that README says."""
    wheels = tmp_path_factory.mktemp("wheels")
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels), "setuptools>=68"]
    subprocess.run(fetch, check=True)
    with Machine() as machine:
        machine.path("/opt/for-pip").mkdir()  # what pip would fetch to build the project
        for wheel in wheels.iterdir():
            machine.path(f"/opt/for-pip/{wheel.name}").write_bytes(wheel.read_bytes())
        for name, file in {"web1": "web1.xml", "transient": "domain.xml"}.items():
            rom = f"/var/lib/libvirt/images/{name}.rom"
            machine.path(rom).write_bytes(guest.rom(100))
            xml = guest.domain_xml(name, rom, f"/var/log/libvirt/qemu/{name}.out")
            machine.path(f"/root/{file}").write_text(xml)
        machine.run(["virsh", "define", "/root/web1.xml"])
        for script in to_run(README):
            run(machine, README, script)
        yield machine


def check(machine: Machine) -> None:
    (web1,) = [domain for domain in document(machine)["domains"] if domain["name"] == "web1"]
    assert web1["vrapl"] == "active"


@pytest.mark.e2e
def test_readme_installs_it_and_gives_web1_its_meter(machine: Machine) -> None:
    check(machine)
    for installed in ("man/man1/virt-rapl.1", "bash-completion/completions/virt-rapl"):
        assert machine.path(f"/usr/local/share/{installed}").exists(), "the wheel carries it"
    assert "/opt/virt-rapl/bin/python" in machine.path("/etc/systemd/system/virt-rapld.service").read_text()


@pytest.mark.e2e
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if to_run(page)], ids=lambda page: str(page.name))
def test_commands_work(machine: Machine, page: Path) -> None:
    run(machine, page, BEFORE.get(str(page.relative_to(ROOT)), ":"))
    for script in to_run(page):
        run(machine, page, script)
    check(machine)
