# Short names for the commands of CONTRIBUTING.md.
.PHONY: install app test test-all test-nightly lint docs notebooks wheel

install:
	pip install -r requirements.txt -e ".[dev]"

app:
	python app/main.py

test:
	python -m pytest -n 2

test-all:
	python -m pytest -n 2 -m "not nightly"

test-nightly:
	python -m pytest -n 2 -m nightly

lint:
	ruff check .
	ruff format --check .
	codespell
	python docs/wording.py
	lint-imports
	pyright

docs:
	mkdocs serve -f docs/mkdocs.yml

notebooks:
	python notebooks/execute.py --check

wheel:
	pip wheel --no-deps -w dist .
