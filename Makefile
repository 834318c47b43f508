.PHONY: check test smoke

check:
	ruff check .
	ruff format --check .

test:
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile
	OMP_NUM_THREADS=1 python -m pytest -m slow -n 2 --dist loadfile

smoke:
	python train.py --recipe smoke
