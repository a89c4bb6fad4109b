"""The house: short files and functions, small folders, imports that point one way, and bases that only bases/ names."""

import ast
import re
from collections import Counter
from graphlib import TopologicalSorter

import pytest
from small_imports import MODULES, PACKAGE, imports

PATHS = {path.relative_to(PACKAGE).as_posix(): path for path in MODULES.values()}
PIPELINES = {name for name in PATHS if re.fullmatch(r"bases/\w+/pipeline_\w+_jdm\.py", name)}
PAPER_TABLES = {
    "evaluation/overhead/table6.py",
    "evaluation/benchmarks/paper_tables.py",
    "evaluation/preference/table4.py",
}


def test_files_are_short():
    lines = {name: path.read_text(encoding="utf-8").count("\n") for name, path in PATHS.items()}
    assert {name: n for name, n in lines.items() if n > (520 if name in PIPELINES else 300)} == {}


def test_functions_are_short():
    for name, path in PATHS.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            may_be_long = name in PIPELINES and getattr(node, "name", None) in ("__call__", "denoise")
            if isinstance(node, ast.FunctionDef) and not may_be_long:
                assert node.end_lineno - node.lineno < 60, f"{name}: {node.name}"


def test_folders_are_small():
    assert {str(folder): n for folder, n in Counter(path.parent for path in PATHS.values()).items() if n > 12} == {}


@pytest.mark.parametrize("parts", [1, None], ids=["folders", "modules"])
def test_imports_make_no_circle(parts):
    def node_of(name):
        return tuple(name.split(".")[1:][:parts])

    graph = {}
    for name, path in MODULES.items():
        if name not in ("diffusers_jdm", "diffusers_jdm.cli"):  # which know all others
            ours = imports(path) & MODULES.keys() - {"diffusers_jdm", name}
            graph.setdefault(node_of(name), set()).update({node_of(other) for other in ours} - {node_of(name)})
    assert len(graph) > 10
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_only_bases_and_tables_of_the_paper_name_a_base():
    named = {name for name, path in PATHS.items() if re.search("cogvideo|modelscope", path.read_text(), re.IGNORECASE)}
    assert {name for name in named if not name.startswith("bases/")} == PAPER_TABLES
