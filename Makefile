# The usual verbs; each is one command that also works when typed.
.PHONY: help install format lint type test slow oldest bench generated docs ci
help:
	@echo "make install | format | lint | type | test | slow | oldest | bench | generated | docs | ci"
install:
	python -m pip install --editable ".[test]"
format:
	ruff format . && ruff check --fix .
lint:
	ruff check . && ruff format --check . && lint-imports
type:
	mypy
test:
	python -m pytest
slow:
	python -m pytest --runslow
oldest:
	.ci/oldest
bench:
	python -m benchmarks
generated:
	python -m docs.generate
docs:
	python -m sphinx -W -b html docs build/docs
ci:
	.ci/run
