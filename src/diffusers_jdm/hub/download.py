"""A checkpoint from the Hub whose every file is what the Hub says it is.

`from_pretrained` compares sizes, and so does huggingface_hub's download: a file that was changed on the way or on the disk
and kept its size is loaded. Here the sha256 of weights and the git hash of the rest are compared before anything is loaded.
"""

import os
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from diffusers_jdm.errors import with_cause
from diffusers_jdm.hub.staging import PICKLES, check_weights


def download_checkpoint(repo_id: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Downloads a checkpoint, without pickles, and compares every file with the Hub's hashes; returns its folder.

        pipe = DiffusionPipeline.from_pretrained(diffusers_jdm.download_checkpoint("ORG/NAME", revision=COMMIT))

    Args:
        revision: branch, tag or, what others cannot change, a full commit hash.

    Raises:
        ValueError: a file differs from the Hub's, or its header is damaged.
        ConnectionError: the Hub, the repo or the revision is not to be had.
    """
    api = HfApi(token=token)
    try:
        commit = api.repo_info(repo_id, revision=revision).sha
        folder = snapshot_download(
            repo_id, revision=commit, token=token, ignore_patterns=[f"*{suffix}" for suffix in sorted(PICKLES)]
        )
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        raise ConnectionError(f"{repo_id} cannot be downloaded: {with_cause(error)}") from error
    except Exception as error:  # of requests, httpx or httpx2, by the client's version
        raise ConnectionError(f"{repo_id} cannot be downloaded ({with_cause(error)}); try again.") from error
    verify_checkpoint(folder, repo_id, revision=commit, token=token)
    return Path(folder)


def verify_checkpoint(
    folder: str | os.PathLike, repo_id: str, *, revision: str | None = None, token: str | None = None
) -> None:
    """Compares the files of a local copy with the Hub's hashes; files that only one of the two has do not matter.

    Raises:
        ValueError: a file differs, or its header is damaged.
        ConnectionError: the Hub is not to be had.
    """
    api = HfApi(token=token)
    try:
        found = api.verify_repo_checksums(repo_id, revision=revision, local_dir=folder)
    except Exception as error:
        raise ConnectionError(f"the checksums of {repo_id} cannot be had: {with_cause(error)}") from error
    if found.mismatches:
        first, more = found.mismatches[0], len(found.mismatches) - 1
        raise ValueError(
            f"{Path(folder, first['path'])}{f' and {more} more' if more else ''} is not what {repo_id} holds ({first['algorithm']} "
            f"{first['actual'][:12]}, not {first['expected'][:12]}): it was damaged or changed. Do not load it; get it anew with "
            f"`hf download {repo_id} --force-download`, and if it differs again, tell the owner of the repo."
        )
    for path in sorted(Path(folder).rglob("*.safetensors")):
        check_weights(path)
