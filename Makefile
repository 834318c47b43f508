.PHONY: check test smoke

check:
	ruff check .
	ruff format --check .

test:
	python -m pytest
	python -m pytest -m slow

smoke:
	python train.py --recipe smoke
