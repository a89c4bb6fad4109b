"""Two trees of a small repository are compared, by a probe that reads one file; the real one runs for minutes."""

import json
import subprocess
from argparse import Namespace

import pytest
from small_scripts import script

bench_identity = script("bench_identity")
PROBE = """
import json, pathlib, sys
tree, work, output = map(pathlib.Path, sys.argv[1:])
code = (tree / "code.txt").read_text()
losses = json.dumps([{"step": 1, "loss": 0.5}, {"step": 2, "loss": code}])
output.write_text(json.dumps({"weights": code, "losses": losses, "always": "same"}))
"""
DIFFERENT = {"weights": "different", "losses": "different from step 2 on"}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Two commits, in which code.txt is "one" and "two"."""
    root = tmp_path / "repository"
    root.mkdir()
    git = ["git", "-C", root, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for text in ("one", "two"):
        (root / "code.txt").write_text(text)
        subprocess.run([*git, "add", "code.txt"], check=True)
        subprocess.run([*git, "commit", "--quiet", "--message", text], check=True)
    (tmp_path / "probe.py").write_text(PROBE)
    monkeypatch.setattr(bench_identity, "ROOT", root)
    monkeypatch.setattr(bench_identity, "PROBE", tmp_path / "probe.py")
    monkeypatch.chdir(tmp_path)
    return root


@pytest.mark.parametrize(("ref", "code", "different"), [(None, 1, DIFFERENT), ("HEAD", 0, {})])
def test_what_differs_is_reported_and_no_worktree_stays(repository, tmp_path, ref, code, different):
    assert bench_identity.main(Namespace(ref=ref)) == code
    report = json.loads((tmp_path / "outputs/bench/identity.json").read_text())
    assert report["different"] == different and "always" in report["equal"]
    assert report["compared_with"] == bench_identity.git("rev-parse", ref or "HEAD~1")
    assert len(bench_identity.git("worktree", "list").splitlines()) == 1


def test_a_wrong_commit_is_one_line(repository):
    with pytest.raises(SystemExit, match=r"^git rev-parse: fatal: .*nothing"):
        bench_identity.commit_of("nothing")
