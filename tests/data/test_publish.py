"""Everything but the network: a data set is checked, described and listed for real; an upload fails, as there is no Hub."""

import json
import re
import shutil
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard, constants
from small_clips import NUM_FRAMES, clip_row, write_clips, write_rows, write_signals

from diffusers_jdm.data.manifest import SCHEMA, Manifest
from diffusers_jdm.data.prepare.settings import PrepareSettings, read_settings
from diffusers_jdm.data.publish import MARK, count, push_dataset, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ANNOTATIONS = ["README.md", "manifest-00000-of-00001.parquet"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    cmi = [[0.0, 0.25], [0.25, 0.0]]
    return write_rows(folder, [clip_row(folder, number) | {"cmi": cmi} for number in range(3)])


def prepare(folder, *changes, **more):
    """As `diffusers-jdm prepare` leaves it."""
    prepared = {"versions": {"diffusers-jdm": "0.1.0", "transformers": "5.0.0"}, "commits": {"caption": COMMIT}}
    prepared |= {"settings": asdict(read_settings(changes=changes)), "clips": {"kept": 3, "too_few_objects": 1200}}
    (folder / "prepare.json").write_text(json.dumps(prepared | more))


def push(folder, **options):
    return push_dataset(folder, "org/camels", dry_run=True, **options)


def card_text(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def test_annotations_alone_are_pushed_and_footage_if_asked_for(folder):
    assert push(folder) == ANNOTATIONS
    assert push(folder, with_footage=True) == [*ANNOTATIONS, "0.mp4", "1.mp4", "2.mp4"]
    prepare(folder)
    (folder / "verdicts").mkdir()
    for private in ("report.html", "notes.txt", "verdicts/verdicts.parquet"):
        (folder / private).write_bytes(b"with frames, or paths")
    assert push(folder) == ["README.md", "prepare.json", ANNOTATIONS[1]]
    (folder / "1.mp4").write_bytes(b"no video")
    push(folder)
    with pytest.raises(ValueError, match=r"1 problem\(s\) .*1.mp4 cannot be decoded"):
        push(folder, with_footage=True)


def test_signals_are_footage(tmp_path):
    write_signals(tmp_path, 2)
    (path,) = tmp_path.glob("*.parquet")
    table = pq.read_table(path)
    rows = [row | {"cmi": None} for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    assert push(tmp_path) == ANNOTATIONS
    assert {"0.mp4", "signals/depth/0.mp4", "signals/depth/1.mp4"} < set(push(tmp_path, with_footage=True))
    assert "Further columns: `depth`, `hed`." in card_text(tmp_path)
    (tmp_path / "signals/depth/0.mp4").unlink()
    with pytest.raises(ValueError, match=r"nothing was uploaded, .* its depth: .*signals/depth/0\.mp4 is missing"):
        push(tmp_path, with_footage=True)


def test_a_data_set_with_problems_or_a_wrong_name_is_not_pushed(folder):
    for name in ("camels", "org/camels/2", "", "org/ca mels"):
        with pytest.raises(ValueError, match=f"must be named \"org/name\", got '{name}'"):
            push_dataset(folder, name, dry_run=True)
    rows = [Manifest(folder)[number] for number in range(3)]
    rows[1]["regions"][0]["area"] = 0.9
    write_rows(folder, [rows[0], rows[1], rows[2] | {"fps": 0.0}])
    with pytest.raises(
        ValueError, match=r"nothing was uploaded, .* finds 2 problem\(s\) .*: clip-1: object 0 is said"
    ):
        push(folder)
    assert not (folder / "README.md").exists()


def test_the_card_is_one_for_the_hub(folder, capsys):
    push(folder)
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == "unknown" and "No licence has been stated" in card.text
    assert card.data.configs == [{"config_name": "default", "data_files": [{"split": "train", "path": "*.parquet"}]}]
    assert card.data.size_categories == "n<1K" and "# camels" in card.text
    assert "The videos are not in this repo" in card.text and "Nothing is recorded" in card.text
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    exec(code.replace("org/camels", str(folder)))
    assert len(capsys.readouterr().out.splitlines()) == len(Manifest(folder)[0]["regions"])
    (table,) = re.findall(r"## Columns\n\n(.*?)\n\n", card.text, re.DOTALL)
    columns = [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(columns) == sorted(SCHEMA.names)
    push(folder, license="cc-by-4.0", with_footage=True)  # writes it anew
    card = DatasetCard.load(folder / "README.md")
    assert MARK in card_text(folder) and card.data.license == "cc-by-4.0" and "under cc-by-4.0" in card.text
    assert "The videos are in this repo" in card.text and "not in this repo" not in card.text
    (folder / "README.md").write_text("# Mine")
    push(folder)
    assert card_text(folder) == "# Mine"
    (folder / "prepare.json").write_text("[1]")
    with pytest.raises(ValueError, match="is not a JSON object"):
        push(folder)


def test_its_figures_are_counted(folder):
    rows = [Manifest(folder)[number] for number in range(3)]
    rows[1] |= {"caption": None, "cmi": None}
    rows[2] |= {"regions": [], "cmi": None}
    push(write_rows(folder, rows))
    figures = count(Manifest(folder))
    assert list(figures.values())[:6] == ["3", "2", "1", str(3 * NUM_FRAMES), "4", "0: 1 clips, 2: 2 clips"]
    size = sum(len(rle) for row in rows for region in row["regions"] for rle in region["rle"])
    assert figures["Masks"] == f"{4 * NUM_FRAMES}, of {size / (4 * NUM_FRAMES):.0f} bytes on average"
    assert figures["Sizes (height × width)"] == "24×32 (3)"
    assert all(f"| {name} | {value} |" in card_text(folder) for name, value in figures.items())


def test_the_card_tells_how_it_was_made(folder, tmp_path):
    prepare(folder, "filters.min_area=0.07", f"boxes.model={tmp_path / 'my-detector'}")
    push(folder)
    text = card_text(folder)
    assert f"| caption | {PrepareSettings().caption.model} | {COMMIT} | bfloat16 |" in text
    assert "| boxes | my-detector | not recorded | float32 |" in text
    assert "| tracks | facebook/sam2.1-hiera-large | not recorded | bfloat16 |" in text
    assert "| depth |" not in text  # the stage is off
    assert "| `filters.min_area` | 0.07 |" in text and "| `cmi.negatives` | 1024 |" in text
    assert "Of 1,203 clips" in text and "| too_few_objects | 1,200 |" in text
    assert "transformers 5.0.0" in text and "Nothing is recorded" not in text and str(tmp_path) not in text
    prepare(folder, "clips.importer=davis")  # whose masks are of no model
    push(folder)
    assert "| tracks |" not in card_text(folder) and "| caption |" in card_text(folder)


def test_an_upload_that_fails_loses_nothing(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConnectionError, match=r"the upload to org/camels failed .*nothing is lost: push") as error:
        push_dataset(folder, "org/camels", token="hf_none")
    assert "\n" not in str(error.value) and "hf_none" not in str(error.value)
    assert before.items() <= {path.name: path.read_bytes() for path in folder.iterdir()}.items()


def test_a_folder_comes_before_the_hubs_copy_and_that_before_the_hub(tmp_path, monkeypatch):
    """The copy is as an earlier download leaves it."""
    repo = tmp_path / "cache/datasets--org--camels"
    write_clips(repo / "snapshots" / COMMIT, 2)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for revision in (None, "main", COMMIT):
        assert Manifest(resolve("org/camels", revision)).ids == ["clip-0", "clip-1"]
    with pytest.raises(ValueError, match="org/camels is not a folder, and cannot be had from the Hub"):
        resolve("org/camels", "v2")
    for name in ("nowhere", "org/camels/train", "/no/such/folder", "../camels"):
        with pytest.raises(ValueError, match=f"^{re.escape(name)} is not a folder, and "):
            resolve(name)
    shutil.copytree(repo, tmp_path / "org/camels")
    assert resolve("org/camels").samefile(tmp_path / "org" / "camels")
