"""Wording check: ``python docs/wording.py [FILES]`` lists sentences that break the rules of CONTRIBUTING.md ("Language").

Docstrings must not open with a question word, identifiers must not be those of ``NAMES``, and text must not use the words of ``AVOID``.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPENING = re.compile(r"(What|Which|Where|How|Who|Whether|Whose)\b")
AVOID = {  # pattern: replacement
    r"\bstrangers?\b": "users, the public",
    r"\bvisitors?\b": "users, clients",
    r"\bwhoever\b": "a user",
    r"\b(is|are) ours\b": "chosen by us; the paper does not say",
    r"\bin vain\b": "without effect",
    r"\bhow manyth\b": "number",
    r"\bpassed over\b": "skipped",
    r"\bgo(es)? on with\b": "resume, continue",
    r"\bbehind (one|the same|a common) door\b": "with the same interface",
}
NAMES = re.compile(r"^(told|said|asked|seen|kept|made|given|found)$")
EXCLUDED = re.compile(
    r"^(CHANGELOG\.md|docs/wording\.py|sinkgate/demo/(LOG\.md|weights|gates(-large)?/|studies(-large)?/))"
)


def problems_in_python(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and problem of docstrings, comments and names in Python source."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and OPENING.match(docstring):
                line = node.body[0].lineno
                yield (
                    line,
                    f"docstring opens with {docstring.split()[0]!r}; use an imperative, 'Return ...' or a noun phrase",
                )
        if (name := named(node)) and NAMES.match(name):
            yield getattr(node, "lineno", 1), f"identifier {name!r}; name the value"
    yield from problems_in_prose(text)


def named(node: ast.AST) -> str | None:
    """Return the name that a node gives to a variable, attribute, argument, function or class; None if it gives none."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
            return name
        case ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return name
    return None


def problems_in_prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and problem of words to avoid."""
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, replacement in AVOID.items():
            if match := re.search(pattern, line, re.IGNORECASE):
                yield number, f"{match[0]!r}; use {replacement}"


def problems(paths: list[str]) -> Iterator[str]:
    """Yield a line ``path:line: problem`` for each problem."""
    for name in paths:
        path = ROOT / name
        if EXCLUDED.match(name) or path.suffix not in {".py", ".md"} or not path.exists():
            continue
        text = path.read_text(encoding="utf-8")
        check = problems_in_python if path.suffix == ".py" else problems_in_prose
        yield from (f"{name}:{line}: {problem}" for line, problem in check(text))


def main() -> None:
    """Check the files on the command line, or all tracked files."""
    paths = sys.argv[1:]
    if not paths:
        listed = ["git", "ls-files", "*.py", "*.md"]
        paths = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    lines = sorted({*problems(paths)})
    if lines:
        sys.exit("\n".join(lines))


if __name__ == "__main__":
    main()
