import pytest
from scipy.stats import binomtest
from small_preference import FILES, write_folders

from diffusers_jdm import cli
from diffusers_jdm.evaluation.preference.pairs import draw, find_pairs

LINE = b'{"video": "videos/colour/000%d.mp4", "prompt": "", "seed": 0}\n'


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path)


def test_pairs_are_matched_by_prompt_and_seed_whatever_their_files_are_called(folders):
    a, b = folders
    lines = (b / "manifest.jsonl").read_text().splitlines()
    (b / "videos/other.mp4").write_bytes((b / "videos" / FILES[0]).read_bytes())
    lines[0] = lines[0].replace(FILES[0], "other.mp4")
    (b / "manifest.jsonl").write_text("\n".join([*lines[::-1], ""]))
    pairs = find_pairs(a, b)
    assert [pair.prompt for pair in pairs] == [f"prompt {number} ü" for number in range(6)]
    assert (pairs[0].a, pairs[0].b) == (a / "videos" / FILES[0], b / "videos/other.mp4")


@pytest.mark.parametrize("without", [("a", "b"), ("a",), ("b",)])
def test_without_a_manifest_on_both_sides_pairs_are_matched_by_file_name(without, tmp_path):
    folders = dict(zip("ab", write_folders(tmp_path)))
    for side in without:
        (folders[side] / "manifest.jsonl").unlink()
        (folders[side] / "masks/0.mp4").unlink()
        for path in (folders[side] / "videos").iterdir():
            path.rename(folders[side] / path.name)
        (folders[side] / "._0001.mp4").write_bytes(b"left by macOS")
    pairs = find_pairs(folders["a"], folders["b"])
    assert [pair.name for pair in pairs] == [(name.removesuffix(".mp4"),) for name in FILES]
    assert pairs[0].prompt == ("0000" if len(without) == 2 else "prompt 0 ü")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (b"", "jdm has no partner of {a}/videos/colour/0000.mp4, nor of 5"),
        (LINE % 9, "colour/0009.mp4 is missing; it is in {b}/manifest.jsonl"),
        (b"nonsense\n", "{b}/manifest.jsonl, line 1, must"),
        (b'\n["x"]\n', "{b}/manifest.jsonl, line 2, must"),
        (b"\xff\xfe", "{b}/manifest.jsonl is no text in UTF-8"),
        (LINE % 0 + LINE % 1, "have the same prompt and seed"),
    ],
)
def test_wrong_folders_are_one_line_that_names_the_file(manifest, message, folders, tmp_path, capsys):
    a, b = folders
    (b / "manifest.jsonl").write_bytes(manifest)
    for extra in (["--output", str(tmp_path / "page.html")], ["--tally", "votes.json"]):
        assert cli.main(["evaluate", "preference", str(a), str(b), *extra]) == 2
        error = capsys.readouterr().err
        assert message.format(a=a, b=b) in error and error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_folders_that_are_none_or_the_same_or_empty_are_refused(folders, tmp_path):
    a, _ = folders
    for name in ("void/x", "empty/x", "one/1.mp4", "two/1.mp4", "two/1.webm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    for one, two, message in (
        (a, "nowhere", "nowhere is no folder"),
        (a, a / "../base", "are the same folder"),
        ("void", "empty", "hold no videos"),
        ("one", "void", r"void has no partner of .*one/1.mp4 \(they are matched by file name\)"),
        ("two", "void", r"two/1.mp4 and .*two/1.webm have the same name"),
    ):
        with pytest.raises(ValueError, match=message):
            find_pairs(tmp_path / one, tmp_path / two)


def test_sides_order_and_subset_are_drawn_at_random(folders):
    pairs = find_pairs(*folders)
    left, first = dict.fromkeys(pairs, 0), dict.fromkeys(pairs, 0)
    for seed in range(2000):
        drawn = draw(pairs, seed)
        assert {pair for pair, _ in drawn} == set(pairs)
        first[drawn[0][0]] += 1
        for pair, a_is_left in drawn:
            left[pair] += a_is_left
    assert all(binomtest(count, 2000, 0.5).pvalue > 1e-4 for count in left.values())
    assert all(binomtest(count, 2000, 1 / 6).pvalue > 1e-4 for count in first.values())
    subsets = {frozenset(pair.name for pair, _ in draw(pairs, seed, 2)) for seed in range(300)}
    assert len(subsets) == 15 and all(len(subset) == 2 for subset in subsets)
    assert len(draw(pairs, 0, 100)) == 6
