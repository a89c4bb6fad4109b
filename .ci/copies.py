"""Keeps code equal that is repeated: marked blocks of the files that go to Hub repos, and those files in the shipped checkpoints.

    python .ci/copies.py          writes what differs
    python .ci/copies.py --check  says what differs, and exits with 1

A block is a function, a class, a method or an assignment below a line `# Copied from MODULE.NAME`, where MODULE is a file's
name and NAME may be `Class.method`. `# Copied from MODULE.NAME with A->B, C->D` replaces words in the copy.
"""

import argparse
import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ISLANDS = sorted((ROOT / "src/diffusers_jdm/bases").rglob("*_jdm.py"))
MARK = re.compile(r" *# Copied from (\w+)\.([\w.]+)(?: with (.+))?\n")


def names_of(node: ast.AST) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node]
    return [getattr(target, "name", getattr(target, "id", None)) for target in targets]


def span(node: ast.AST) -> slice:
    """The lines of a definition, counted from 0, with its decorators."""
    return slice(min(n.lineno for n in [node, *getattr(node, "decorator_list", [])]) - 1, node.end_lineno)


def block(module: str, name: str) -> str:
    """The source of what a mark names. Raises ValueError if there is no such thing."""
    paths = [path for path in ISLANDS if path.stem == module]
    text = paths[0].read_text() if paths else ""
    node = ast.parse(text)
    for part in name.split("."):
        node = next((child for child in getattr(node, "body", []) if part in names_of(child)), None)
        if node is None:
            raise ValueError(f"there is no {module}.{name} to copy")
    return "".join(text.splitlines(keepends=True)[span(node)])


def with_copies(path: Path) -> str:
    """The text of a file in which each marked block is as its original."""
    lines = path.read_text().splitlines(keepends=True)
    blocks = {
        span(node).start: span(node) for node in ast.walk(ast.parse("".join(lines))) if isinstance(node, ast.stmt)
    }
    for number in reversed(range(len(lines))):  # from the end, so that the numbers above stay right
        mark = MARK.fullmatch(lines[number])
        if mark is None:
            continue
        if number + 1 not in blocks:
            raise ValueError(f"{path.relative_to(ROOT)}:{number + 1}: there is nothing below this mark")
        module, name, words = mark.groups()
        copy = block(module, name)
        for pair in words.split(", ") if words else []:
            copy = copy.replace(*pair.split("->"))
        lines[blocks[number + 1]] = [copy]
    return "".join(lines)


def shipped() -> dict[Path, Path]:
    """The copies in the shipped checkpoints, with what they are copies of: of each class of ours that a checkpoint names."""
    classes = {name: path for path in ISLANDS for name in re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE)}
    copies = {}
    for index in (ROOT / "examples/shapes").glob("*/model_index.json"):
        for component, value in json.loads(index.read_text()).items():
            if component == "_class_name" and value in classes:
                copies[index.parent / classes[value].name] = classes[value]
            elif isinstance(value, list) and value[0] == "diffusers_jdm":
                copies[index.parent / component / "diffusers_jdm.py"] = classes[value[1]]
    return copies


def main(check: bool) -> int:
    wanted = {path: with_copies(path) for path in ISLANDS}
    wanted |= {copy: wanted[original] for copy, original in shipped().items()}
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    for path in stale:
        print(
            f"{path.relative_to(ROOT)} {'differs from what it is a copy of: run `make copies`' if check else 'written'}"
        )
        if not check:
            path.write_text(wanted[path])
    return int(check and bool(stale))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the copies of repeated code.")
    parser.add_argument("--check", action="store_true", help="Report copies that differ, and write nothing.")
    raise SystemExit(main(parser.parse_args().check))
