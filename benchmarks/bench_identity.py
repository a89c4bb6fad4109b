"""Does the code still compute the same? Samples and training steps of this tree against those of another commit, bit for bit.

    make bench-identity REF=COMMIT

`identity_probe.py` runs on both trees, one after the other, and hashes what comes out. Exits with 1 if something differs. By
default the commit is origin/main or, without that, the one before the present one. Some four minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from report import write_report

from diffusers_jdm.files import read_json

ROOT = Path(__file__).parents[1]
PROBE = Path(__file__).with_name("identity_probe.py")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ref", help="the other commit; by default origin/main, else HEAD~1")
    return parser.parse_args(argv)


def git(*words: str | Path) -> str:
    """What git answers, without the line's end; SystemExit with its message if it fails."""
    result = subprocess.run(["git", *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"git {words[0]}: {result.stderr.strip()}")
    return result.stdout.strip()


def commit_of(ref: str | None) -> str:
    if ref is None:
        known = git("for-each-ref", "--format=%(refname:short)", "refs/remotes").split()
        ref = "origin/main" if "origin/main" in known else "HEAD~1"
    return git("rev-parse", f"{ref}^{{commit}}")


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """The files of a commit in `folder`, until the end."""
    git("worktree", "add", "--detach", folder, commit)
    try:
        yield folder
    finally:
        git("worktree", "remove", "--force", folder)


def probe(tree: Path, work: Path, output: Path) -> dict[str, str]:
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, PROBE, tree, work, output], check=True, env=environment)
    return read_json(output)


def difference(own: str | None, other: str | None) -> str:
    """Empty if they are the same; of losses it says from which step on they are not."""
    if own == other:
        return ""
    if None in (own, other):
        return "only in " + ("the other commit" if own is None else "this tree")
    if not own.startswith("["):
        return "different"
    steps = (one["step"] for one, two in zip(json.loads(own), json.loads(other)) if one != two)
    return f"different from step {next(steps, 'the end')} on"


def main(args) -> int:
    commit = commit_of(args.ref)
    with tempfile.TemporaryDirectory() as folder, worktree(commit, Path(folder, "tree")) as tree:
        before = probe(tree, Path(folder), Path(folder, "before.json"))
        now = probe(ROOT, Path(folder), Path(folder, "now.json"))
    found = {name: difference(now.get(name), before.get(name)) for name in before | now}
    for name, text in found.items():
        print(f"{name:<32}{text or 'equal'}")
    different = {name: text for name, text in found.items() if text}
    report = {"compared_with": commit, "equal": sorted(found.keys() - different.keys()), "different": different}
    print(f"{len(report['equal'])} of {len(found)} equal; written to {write_report('identity', report)}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))
