"""docs/data_format.md: its code runs, and its tables are the schema."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa

from diffusers_jdm.data.check import check_dataset
from diffusers_jdm.data.manifest import SCHEMA, SCHEMA_VERSION, VERSION_KEY
from diffusers_jdm.data.prepare.write_dataset import dataset_schema

DOCUMENT = (Path(__file__).parents[2] / "docs" / "data_format.md").read_text(encoding="utf-8")
REGION = SCHEMA.field("regions").type.value_type


def rows_of(heading):
    """The cells of the table whose first column has this heading."""
    (body,) = re.findall(rf"\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", DOCUMENT)
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in body.splitlines()]


def in_words(kind):
    if pa.types.is_list(kind):
        inner = in_words(kind.value_type)
        return "list of " + inner.replace("list of", "lists of") if inner != "struct" else "list of structs"
    return "struct" if pa.types.is_struct(kind) else {"float": "float32"}.get(str(kind), str(kind))


def test_the_tables_are_the_schema_and_what_prepare_adds_is_named():
    assert [cells[:2] for cells in rows_of("Column")] == [[f"`{f.name}`", in_words(f.type)] for f in SCHEMA]
    assert [cells[:2] for cells in rows_of("Field")] == [[f"`{f.name}`", in_words(f.type)] for f in REGION]
    assert rows_of("Version")[-1][0] == str(SCHEMA_VERSION)
    assert f"`{VERSION_KEY.decode()}: {SCHEMA_VERSION}`" in DOCUMENT
    schema = dataset_schema()
    added = {*schema.names, *[field.name for field in schema.field("regions").type.value_type]}
    (paragraph,) = re.findall(r"\n(`prepare` adds .*?)\n\n", DOCUMENT, re.DOTALL)
    named = set(re.findall(r"`(\w+)`", paragraph)) - {"prepare", "regions"}
    assert named == added - {*SCHEMA.names, *[field.name for field in REGION]}


def test_its_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write, read, _ = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    exec(write, {})
    assert check_dataset(tmp_path) == []
    found = {}
    exec(read, found)
    assert found["masks"].shape == (16, 64, 96) and np.isclose(found["masks"].mean(), 30 * 40 / (64 * 96))
