# `make demo` and `make test` do all the set-up themselves: an environment in .venv, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
LLAMA := .venv-llama
DEVELOPMENT := .[dev,hub,ray,scale,leaderboard,qlora,gguf,docs]

.DEFAULT_GOAL := help
.PHONY: help demo test check lint docs bench peers llama peers-data clean

# $(call install,ENVIRONMENT,CONSTRAINTS,WHAT,ALONE): into an environment that is made anew where the last install into
# it was cut short. The file `whole` stands in it only while nothing is being installed. DeepSpeed compiles nothing then.
# ALONE comes without what it depends on: of Liger only what needs no Triton is used.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "potstill needs Python 3.11 or later; name one: make PYTHON=python3.12")'
	@test -e $(1)/whole || $(PYTHON) -m venv --clear $(1)
	@rm -f $(1)/whole
	DS_BUILD_OPS=0 $(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(2) $(3)
	$(if $(4),$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c $(2) $(4))
	@touch $(1)/whole $@
endef

$(VENV)/run: pyproject.toml constraints.txt
	$(call install,$(VENV),constraints.txt,-e .)

$(VENV)/dev: $(VENV)/run
	$(call install,$(VENV),constraints.txt,-e '$(DEVELOPMENT)')

$(PEERS)/peers: constraints-peers.txt
	$(call install,$(PEERS),constraints-peers.txt,torch trl,liger-kernel)

# llama.cpp is compiled for minutes. Its package alone: tests add it to the environment that they run in. Where it does
# not compile, the tests of it are left out, and say so.
$(LLAMA)/peers: constraints-llama.txt
	$(call install,$(LLAMA),constraints-llama.txt,diskcache,llama-cpp-python)

# An environment a library that data stages are compared with; the first line of its constraints says what to install.
.venv-%/peers: constraints-%.txt
	$(call install,.venv-$*,$<,$$(sed -n 's/^# installs: //p' $<))

help:  ## say what can be made
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile | expand -t 12

demo: $(VENV)/run  ## the whole recipe in miniature: teacher, SFT, AI feedback, DPO, evaluation; minutes
	$(BIN)/potstill run miniature

test: lint  ## what every change must pass; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: $(VENV)/dev $(PEERS)/peers  ## what is slow: peers, kills, wheel, browser, the miniature three times
	-@$(MAKE) --no-print-directory llama
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --numprocesses=2 --dist=loadfile --durations=0

docs: $(VENV)/dev  ## the documentation as a site, in docs/_build
	$(BIN)/sphinx-build --fail-on-warning --nitpicky --builder html --quiet docs docs/_build
	@echo docs/_build/index.html

bench: $(VENV)/dev $(PEERS)/peers  ## training against TRL's, quickly; a quarter of an hour
	$(BIN)/python bench/dpo.py --quick
	$(BIN)/python bench/sft.py --quick

peers: $(PEERS)/peers  ## the environment of TRL, which training is compared with

llama: $(LLAMA)/peers  ## the environment of llama.cpp, which GGUF files are compared with; compiles for minutes

peers-data: .venv-distilabel/peers .venv-curator/peers .venv-datatrove/peers  ## those that data stages are compared with

clean:  ## remove what make made, but for runs/
	rm -rf $(VENV) $(PEERS) .venv-* build dist docs/_build
