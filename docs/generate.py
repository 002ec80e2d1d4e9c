#!/usr/bin/env python3
"""Update what the docs say about commands, configuration and metrics: .venv/bin/python docs/generate.py [--check]

The command line is read from argparse, the configuration from libvirt_rapl.config, the metrics from
libvirt_rapl.daemon.exposition. In README, pages of docs/ and man pages the text between two marks is replaced; the
shipped configuration, the completions and Grafana's dashboards (docs/dashboards.py) are whole files.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from textwrap import dedent, wrap
from types import ModuleType

import dashboards
import shtab

from libvirt_rapl import cli
from libvirt_rapl.config import KEYS, Config
from libvirt_rapl.daemon.exposition import METRICS

ROOT = Path(__file__).resolve().parent.parent
MARKDOWN_MARKS = ("<!-- made by docs/generate.py -->", "<!-- end -->")
ROFF_MARKS = ('.\\" made by docs/generate.py', '.\\" end')

HEADER = """\
# virt-rapl: what an operator can choose. The values here are the defaults; files in conf.d/ beside this one override
# them.
"""

# compgen -W would run a `$(command)` in the name of a domain.
BASH_DOMAINS = """\
_virt_rapl_domains() {
  local name
  while IFS= read -r name; do
    [[ -n $name ]] && printf -v name %q "$name" && [[ $name == "$1"* ]] && printf '%s\\n' "$name"
  done < <(virsh --connect qemu:///system --readonly list --all --name 2>/dev/null)
}"""
ZSH_DOMAINS = """\
_virt_rapl_domains() {
  local -a names
  names=("${(@f)$(virsh --connect qemu:///system --readonly list --all --name 2>/dev/null)}")
  compadd -- ${names:#}
}"""
COMPLETE = {
    "DOMAIN": {"bash": "_virt_rapl_domains", "zsh": "_virt_rapl_domains"},
    "FILE": shtab.FILE,
    "DIR": shtab.DIRECTORY,
}
"""How an argument is completed, by its metavar."""


@dataclass(frozen=True)
class Key:
    """The documentation of one key of the configuration."""

    name: str
    default: str
    text: str
    """Markdown: paragraphs, `- ` items, and code that is indented by four columns."""
    expected: str


def main() -> int:
    """Write the files that are not current; with --check only name them, and return 1 if there are any."""
    stale = [path for path, text in made().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not current" if "--check" in sys.argv else path.relative_to(ROOT))
        if "--check" not in sys.argv:
            path.write_text(made()[path], encoding="utf-8")
    return 1 if stale and "--check" in sys.argv else 0


def made() -> dict[Path, str]:
    """Return the files as they should be."""
    parser = whole_parser()
    commands = subparsers(parser)
    keys = list(configuration())
    return {
        ROOT / "etc/virt-rapl.yaml": "\n".join([HEADER, *map(shipped_key, keys)]),
        ROOT / "README.md": between(ROOT / "README.md", MARKDOWN_MARKS, command_table(commands)),
        ROOT / "docs/configuration.md": between(
            ROOT / "docs/configuration.md", MARKDOWN_MARKS, "\n".join(map(markdown_key, keys))
        ),
        ROOT / "docs/metrics.md": between(ROOT / "docs/metrics.md", MARKDOWN_MARKS, metric_table()),
        ROOT / "etc/man/virt-rapl.1": between(
            ROOT / "etc/man/virt-rapl.1", ROFF_MARKS, "".join(roff_command(*each) for each in commands.items())
        ),
        ROOT / "etc/man/virt-rapl.yaml.5": between(
            ROOT / "etc/man/virt-rapl.yaml.5",
            ROFF_MARKS,
            ".Bl -tag -width Ds\n" + "".join(map(roff_key, keys)) + ".El\n",
        ),
        ROOT / "etc/completions/virt-rapl.bash": completion(parser, "bash", BASH_DOMAINS),
        ROOT / "etc/completions/_virt-rapl": completion(parser, "zsh", ZSH_DOMAINS),
        **dashboards.made(),
    }


def between(path: Path, marks: tuple[str, str], text: str) -> str:
    """Return the file with `text` between the marks."""
    begin, end = marks
    head, _, rest = path.read_text(encoding="utf-8").partition(begin + "\n")
    _, _, tail = rest.partition(end + "\n")
    return f"{head}{begin}\n{text}{end}\n{tail}"


def whole_parser() -> argparse.ArgumentParser:
    """Return all commands in one parser; the program itself only loads the one that is called."""
    parser = argparse.ArgumentParser(prog="virt-rapl", description="Energy meters for KVM guests under libvirt.")
    for action in cli._global_parser()._actions:  # noqa: SLF001 (argparse has no other way to ask)
        if action.option_strings and not isinstance(action, argparse._HelpAction):  # noqa: SLF001
            parser._add_action(action)  # noqa: SLF001
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, text in cli.COMMANDS.items():
        command(name).add_arguments(commands.add_parser(name, help=text, description=text))
    for each in (parser, *subparsers(parser).values()):
        for action in each._actions:  # noqa: SLF001
            if action.metavar in COMPLETE:
                action.complete = COMPLETE[str(action.metavar)]  # type: ignore[attr-defined]
    return parser


def command(name: str) -> ModuleType:
    """Return the module of a command."""
    return importlib.import_module(f"libvirt_rapl.cli.{name}")


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    (action,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))  # noqa: SLF001
    return dict(action.choices)


def completion(parser: argparse.ArgumentParser, shell: str, preamble: str) -> str:
    """Return a shell's completions."""
    text = str(shtab.complete(parser, shell=shell, preamble=preamble))
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return what a command takes, --help apart, positional arguments first."""
    actions = [each for each in parser._actions if not isinstance(each, argparse._HelpAction)]  # noqa: SLF001
    return sorted(actions, key=lambda action: bool(action.option_strings))


def written(action: argparse.Action) -> str:
    """Return how an argument is written: `--json`, `--[no-]colour`, `--since WHEN`, `DOMAIN...`."""
    name = str(action.metavar or "|".join(action.choices or ()) or action.dest.upper())
    if not action.option_strings:
        return name + ("..." if action.nargs in ("*", "+", argparse.REMAINDER) else "")
    if isinstance(action, argparse.BooleanOptionalAction):
        return action.option_strings[0].replace("--", "--[no-]", 1)
    return action.option_strings[-1] + ("" if action.nargs == 0 else f" {name}")


def synopsis(name: str, parser: argparse.ArgumentParser) -> str:
    """Return how a command is called."""
    if parser.usage:
        return parser.usage % {"prog": f"virt-rapl {name}"}
    words = [
        written(action) if action.required and action.nargs != "*" else f"[{written(action)}]"
        for action in arguments(parser)
    ]
    return " ".join(["virt-rapl", name, *words])


def help_text(action: argparse.Action) -> str:
    """Return an argument's help, with its default filled in."""
    return str(action.help) % {"default": action.default} if action.help else ""


def command_table(commands: dict[str, argparse.ArgumentParser]) -> str:
    """Return the table of commands in Markdown."""
    calls = {name: synopsis(name, parser).replace("|", "\\|") for name, parser in commands.items()}
    rows = (f"| `{call}` | {cli.COMMANDS[name]} |\n" for name, call in calls.items())
    return "| command | what it does |\n| --- | --- |\n" + "".join(rows)


def metric_table() -> str:
    """Return the table of metrics in Markdown."""
    rows = ["| metric | type | unit | labels | what it is |", "| --- | --- | --- | --- | --- |"]
    for each in METRICS:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        rows.append(f"| `{each.name}` | {each.type} | {each.unit or '-'} | {labels or '-'} | {each.help} |")
    return "\n".join(rows) + "\n"


def configuration() -> Iterator[Key]:
    """Yield the keys of the configuration."""
    for name, key in KEYS.items():
        default = getattr(Config(), name)
        plain = f"{default:g}" if isinstance(default, float) else str(default)
        yield Key(name, key.default or plain, cleandoc(key.text), key.expected)


def shipped_key(key: Key) -> str:
    """Return a key's part of the shipped configuration: a comment, then `key: default`."""
    lines = []
    for kind, text in paragraphs(key.text):
        if kind == "code":
            lines += [f"#     {line}" for line in text.splitlines()]
        else:
            first, others = ("# - ", "#   ") if kind == "item" else ("# ", "# ")
            lines += wrap(text, 120, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)
    return "\n".join([*lines, f"{key.name}: {key.default}"]) + "\n"


def paragraphs(text: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a Key's text: (`text`|`item`|`code`, the text of the part)."""
    kind, lines = "text", list[str]()
    for line in [*text.splitlines(), ""]:
        now = "code" if line.startswith("    ") else "item" if line.startswith("- ") else "text"
        goes_on = (now == "text" and kind == "item" and line.startswith("  ")) or (now == kind != "item")
        if lines and (not line or not goes_on):
            yield kind, dedent("\n".join(lines)) if kind == "code" else " ".join(each.strip() for each in lines)
            lines = []
        if line:
            kind = kind if lines and goes_on else now
            lines.append(line.removeprefix("- ") if now == "item" else line)


def markdown_key(key: Key) -> str:
    """Return a key's section of docs/configuration.md."""
    parts = [f"## `{key.name}`"]
    items = False
    for kind, text in paragraphs(key.text):
        body = {"text": text, "item": f"- {text}", "code": f"```yaml\n{text}\n```"}[kind]
        parts[-1:] = [f"{parts[-1]}\n{body}"] if kind == "item" and items else [parts[-1], body]
        items = kind == "item"
    return "\n\n".join([*parts, f"Expected: {key.expected}. Default: `{key.default}`."]) + "\n"


def roff(text: str) -> str:
    """Return text of Markdown as roff: a sentence a line, code in quotes, and no line that looks like a request."""
    quoted = re.sub(r"`([^`]*)`", r"\\(lq\1\\(rq", text.replace("\\", "\\e"))
    sentences = re.sub(r"(?<=[.?!]) +(?=[A-Z(])", "\n", quoted)
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in sentences.splitlines())


def roff_key(key: Key) -> str:
    """Return a key's entry of virt-rapl.yaml(5)."""
    lines = [f".It Ic {key.name}"]
    for number, (kind, text) in enumerate(paragraphs(key.text)):
        if kind == "code":
            lines += [".Bd -literal -offset indent", roff(text), ".Ed"]
        else:
            lines += [*([".Pp"] if number else []), ("\\(bu " if kind == "item" else "") + roff(text)]
    return "\n".join([*lines, ".Pp", roff(f"Expected: {key.expected}."), f"Default: {key.default}."]) + "\n"


def roff_command(name: str, parser: argparse.ArgumentParser) -> str:
    """Return a command's section of virt-rapl(1)."""
    lines = [f".Ss {synopsis(name, parser)}".replace("-", "\\-")]
    for number, paragraph in enumerate(dedent(str(command(name).__doc__)).strip().split("\n\n")):
        lines += [*([".Pp"] if number else []), roff(" ".join(paragraph.split()))]
    if actions := [action for action in arguments(parser) if action.help]:
        lines.append(".Bl -tag -width Ds")
        for action in actions:
            lines += [f".It Li {written(action)}".replace("-", "\\-"), roff(help_text(action))]
        lines.append(".El")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
