# Every target sets up .venv by itself the first time. Variables:
#   PYTHON=PATH   the interpreter that makes .venv; otherwise the first that fits of python3, python3.13, 3.12, 3.11
#   MARK=EXPR     which tests `make test` runs: "not slow" by default, all of them when empty
#   LOCK=OPTIONS  more options for uv in `make lock`, such as "--upgrade" or "--constraint FILE"
SHELL := bash
.DELETE_ON_ERROR:
.PHONY: help demo test check bench bench-gpu lock

MARK = not slow
VENV_PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
PYTHONS := $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11)

# Asks each candidate rather than its file name: a pyenv shim can exist and fail, and Debian splits venv off.
define find_python
python=; \
for candidate in $(PYTHONS); do \
  if "$$candidate" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; \
  then python=$$candidate; break; fi; \
done; \
if [ -z "$$python" ]; then \
  for candidate in $(PYTHONS); do got="$${got:-}$$candidate: $$("$$candidate" --version 2>&1 | head -n 1); "; done; \
  printf '%s\n' 'No Python that can make .venv.' "  got:      $$got" \
    '  expected: Python >= 3.11, < 3.14 with the venv module (on Debian and Ubuntu: apt install python3-venv)' \
    '  do:       install one, or name one: make PYTHON=/path/to/python3.12' >&2; \
  exit 1; \
fi
endef

help: ## list the targets (the default)
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | while IFS='	' read -r target text; do \
	  printf '  make %-9s %s\n' "$$target" "$$text"; done

demo: $(INSTALLED) ## draw the small `shapes` data set and train five tasks on it with Ray: no GPU, six minutes
	$(VENV_PYTHON) jobs/train.py shapes

test: $(INSTALLED) ## run the tests; with MARK= the slow ones too
	$(VENV_PYTHON) -m pytest -n 2 --dist worksteal -m "$(MARK)"

check: $(INSTALLED) ## lint, formatting and types
	$(VENV_PYTHON) -m ruff check
	$(VENV_PYTHON) -m ruff format --check
	$(VENV_PYTHON) -m pyright

bench: $(INSTALLED) ## run every benchmark at its quick size
	@shopt -s nullglob; for script in benchmarks/*.py; do \
	  echo "$(VENV_PYTHON) $$script --quick"; $(VENV_PYTHON) "$$script" --quick || exit; done

bench-gpu: $(INSTALLED) ## measure all that needs a GPU, on this machine's; says so where there is none
	$(VENV_PYTHON) benchmarks/gpu.py

lock: ## resolve pyproject.toml anew into requirements.lock
	@set -e; $(find_python); \
	scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	"$$python" -m venv "$$scratch"; \
	"$$scratch/bin/python" -m pip --disable-pip-version-check install --quiet uv; \
	"$$scratch/bin/python" -m uv pip compile pyproject.toml --extra ray --extra tune --extra timm --group dev --universal \
	  --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet \
	  -o requirements.lock $(LOCK)

# The stamp is a copy of the lock file, made last: an interrupted install has none and starts over, and a lock file
# that git only touched costs nothing. pip shows no progress when quiet and hundreds of lines when not; one line a
# file is kept.
$(INSTALLED): requirements.lock
	@if cmp -s requirements.lock $@; then touch $@; exit; fi; \
	set -e -o pipefail; $(find_python); \
	echo "Setting up .venv with $$("$$python" --version), once. On Linux x86-64 it downloads about 3.4 GB, most of it"; \
	echo "CUDA for torch, and takes 6.7 GB of disk; elsewhere less."; \
	rm -f $@; "$$python" -m venv --clear .venv; \
	$(VENV_PYTHON) -m pip --disable-pip-version-check --no-input install --progress-bar off --require-hashes \
	  -r requirements.lock | awk ' \
	    /^ *(Downloading|Using cached|Processing) .*[^a]$$/ { sub(/^ *(Downloading|Using cached|Processing) (.*\/)?/, ""); \
	      sub(/ \(from .*/, ""); printf "  %3d  %s\n", ++files, $$0; fflush() } \
	    /^Installing / { print "Unpacking them; this takes a minute or two."; fflush() }'; \
	cp requirements.lock $@; echo ".venv is ready."
