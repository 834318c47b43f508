.PHONY: check test smoke

check:
	ruff check .
	ruff format --check .

test:
	python -m pytest

smoke:
	python train.py --recipe smoke
