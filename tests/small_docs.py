"""The pages as tests read them: their code, their links, and their commands, parsed by the programs' own parsers."""

import argparse
import ast
import inspect
import re
import runpy
import shlex
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from accelerate.commands.launch import launch_command_parser

import diffusers_jdm
from diffusers_jdm.training import config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "train_scripts/README.md"]
PAGES += [*sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*/README.md"))]

CLI = ROOT / "src/diffusers_jdm/cli.py"
SCRIPTS = [path for folder in ("train_scripts", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
PROGRAMS = r"diffusers-jdm|accelerate launch|make|python3? (examples|benchmarks|train_scripts)/\S+|[\w/]+\.py(?= --)"


class Code(NamedTuple):
    line: int
    language: str  # empty: inline
    text: str


def code_of(page: Path) -> list[Code]:
    text, prose = page.read_text(encoding="utf-8"), prose_of(page)
    blocks = [Code(line_of(text, m.start()) + 1, m[1], textwrap.dedent(m[2])) for m in BLOCK.finditer(text)]
    return blocks + [Code(line_of(prose, m.start()), "", m[1].replace("\n", " ")) for m in INLINE.finditer(prose)]


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def prose_of(page: Path) -> str:
    """Without blocks, but with as many lines as before, so that they keep their numbers."""
    return BLOCK.sub(lambda found: "\n" * found[0].count("\n"), page.read_text(encoding="utf-8"))


def commands_of(page: Path) -> Iterator[tuple[int, str, bool]]:
    """Line, command, and whether it is whole: what stands inline may be the beginning of one."""
    for code in code_of(page):
        line = code.line
        for command in code.text.replace("\\\n", "\0").split("\n") if code.language in ("", "bash") else ():
            if re.fullmatch(rf"({PROGRAMS})( .*)?", command.replace("\0", " ")):
                yield line, command.replace("\0", " "), code.language == "bash"
            line += 1 + command.count("\0")


def check_command(command: str, whole: bool) -> None:
    """Raises ValueError if the program would not take it. Placeholders such as ORG/NAME are as good as any value."""
    words = shlex.split(re.sub(r"\[(--.*?)\]", r"\1", command), comments=True)
    match [word for word in words if word not in ("...", "…")]:
        case ["make", *targets]:
            known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            if unknown := {target for target in targets if "=" not in target} - {*known}:
                refuse(f"the Makefile has no target {', '.join(unknown)}")
        case ["diffusers-jdm", *arguments]:
            parse(CLI, arguments, whole)
        case ["accelerate", "launch", *arguments]:
            launch = parsed_by(launch_command_parser(), arguments, whole)
            if launch.training_script:
                script = CLI if launch.module else ROOT / launch.training_script
                parse(script, launch.training_script_args, whole)
        case ["python" | "python3", script, *arguments] | [script, *arguments]:
            paths = [path for path in SCRIPTS if path == ROOT / script or path.name == script]
            if not paths:
                refuse(f"there is no {script}")
            parse(paths[0], arguments, whole)


class Parsed(Exception):
    """Raised as soon as a program has parsed its arguments, so that nothing else of it runs."""


def parse(script: Path, arguments: list[str], whole: bool) -> None:
    if "parse_args(" not in script.read_text(encoding="utf-8"):
        if arguments:
            raise ValueError(f"{script.name} takes no arguments")
        return
    check_flags = config.parse_flags  # looks at flags that must go together, after parsing

    def parse_args(parser, *_):
        values = parsed_by(parser, arguments, whole)
        if whole and sys._getframe(1).f_code is check_flags.__code__:
            return values
        raise Parsed

    def parse_flags(*given):
        check_flags(*given)
        raise Parsed

    with (
        mock.patch.object(sys, "argv", [str(script), *arguments]),
        mock.patch.object(sys, "path", [str(script.parent), *sys.path]),
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args),
        mock.patch.object(argparse.ArgumentParser, "error", lambda _, message: refuse(message)),
        mock.patch.object(config, "parse_flags", parse_flags),
        suppress(Parsed),
    ):
        runpy.run_path(str(script), run_name="__main__")


def refuse(message: str, whole: bool = True) -> None:
    if whole or "required: " not in message:
        raise ValueError(message)


def parsed_by(parser: argparse.ArgumentParser, arguments: list[str], whole: bool) -> argparse.Namespace:
    with mock.patch.object(argparse.ArgumentParser, "error", lambda _, message: refuse(message, whole)):
        values, unknown = parser.parse_known_args(arguments)
    if unknown:
        refuse(f"unknown arguments: {' '.join(unknown)}")
    return values


def links_of(page: Path) -> list[tuple[int, str]]:
    text = prose_of(page)
    return [(line_of(text, found.start()), found[1]) for found in re.finditer(r"\]\((?!\w+:)([^)\s]+)\)", text)]


def check_link(page: Path, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    if not target.exists():
        refuse("there is no such file")
    headings = re.findall(r"^#+ (.*)$", prose_of(target), re.MULTILINE) if anchor else []
    if anchor and anchor not in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings]:
        refuse("there is no such heading")


def check_python(code: str, names: dict[str, object]) -> None:
    """Raises if it does not compile, or uses what diffusers_jdm has not, or with arguments that it does not take.

    names: what the page's blocks before have imported of ours, to which this one's imports are added.
    """
    pipe = object.__new__(diffusers_jdm.CogVideoXJDMPipeline)  # its methods alone are looked at
    pipe.__dict__["transformer"] = object.__new__(diffusers_jdm.JDMTransformer3DModel)
    names |= {"diffusers_jdm": diffusers_jdm, "pipe": pipe}
    nodes = [*ast.walk(ast.parse(code))]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "diffusers_jdm":
            module = import_module(node.module)
            names.update({alias.asname or alias.name: getattr(module, alias.name) for alias in node.names})
    for node in nodes:
        thing_of(node, names)
        if isinstance(node, ast.Call) and (function := thing_of(node.func, names)) is not None:
            inspect.signature(function).bind(*[None] * len(node.args), **{word.arg: None for word in node.keywords})


def thing_of(node: ast.AST, names: dict[str, object]) -> object | None:
    """What an expression such as `diffusers_jdm.inflate` or `pipe.segment` means; None if that is not of ours."""
    first, *rest = ast.unparse(node).split(".") if isinstance(node, ast.Attribute | ast.Name) else [""]
    thing = names.get(first)
    for name in rest if thing is not None else ():
        thing = getattr(thing, name)
    return thing
