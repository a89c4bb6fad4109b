"""Who imports what, read from the source."""

import ast
from pathlib import Path

import diffusers_jdm

PACKAGE = Path(diffusers_jdm.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(path: Path, lazy: bool = True) -> set[str]:
    """Full names of modules; `from a import b` counts as both a and a.b.

    Imports for type checkers alone do not count, and without `lazy` neither do those within functions.
    """
    nodes, found = [ast.parse(path.read_text(encoding="utf-8"))], set()
    for node in nodes:  # which grows
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
        elif lazy or not isinstance(node, ast.FunctionDef | ast.Lambda):
            nodes += ast.iter_child_nodes(node)
    return found
