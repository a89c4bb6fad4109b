"""The last stage: the training set, of the kept clips. It writes no shards."""

from diffusers_jdm.data.prepare.stage import Stage
from diffusers_jdm.data.prepare.write_dataset import write_dataset

STAGE = Stage(run_all=write_dataset, filtered=True)
