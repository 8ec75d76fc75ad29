"""The documentation names only what exists: links, files, modules, functions, commands with their options."""

import ast
import functools
import pathlib
import re
import shlex

import pytest

import dicetalk_jax
from dicetalk_jax.cli import main, verbs

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = pathlib.Path(dicetalk_jax.__file__).parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
ROOMS = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
FOLDERS = ("benchmarks", "configs", "dicetalk_jax", "docs", "launch", "tests", "\\.github")
# A path from the root of the repository, and a dotted name from the root of the package.
PATH = re.compile(rf"(?<![\w/.])(?:{'|'.join(FOLDERS)})/[\w./-]*\w")
NAME = re.compile(r"(?:dicetalk_jax\.)?([a-z]\w*(?:\.\w+)+)(?:\(.*)?")
# Commands whose arguments stand for others (SOURCE, …).
PLACEHOLDER = re.compile(r"\$|…|\.\.\.|\[|\b[A-Z]{3,}\b")


def text_of(page):
  return page.read_text(encoding="utf-8")


def prose_of(page):
  return re.sub(r"^```.*?^```", "", text_of(page), flags=re.S | re.M)


def mentions(page):
  """Inline code."""
  return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose_of(page))]


def block_lines(page):
  blocks = re.findall(r"^```\w*\n(.*?)^```", text_of(page), re.S | re.M)
  return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def slugs(page):
  """Anchors of a page's headings, as GitHub makes them."""
  headings = re.findall(r"^#+ (.*)$", prose_of(page), re.M)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@functools.cache
def members(path):
  """Names that a module defines, and those of its classes as Class.name."""
  names = set()

  def define(node, prefix):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      names.add(prefix + node.name)
    for target in [*getattr(node, "targets", []), getattr(node, "target", None)]:
      names.update(prefix + leaf.id for leaf in ast.walk(target or ast.Pass()) if isinstance(leaf, ast.Name))
    for child in node.body if isinstance(node, ast.ClassDef) else ():
      define(child, f"{prefix}{node.name}.")

  tree = ast.parse(path.read_text())
  for node in tree.body:
    define(node, "")
    if isinstance(node, ast.ImportFrom | ast.Import):
      names.update(alias.asname or alias.name for alias in node.names)
  return names


def exists(dotted):
  """Whether a package, a module, or a name in a module is there: models, models.unet, models.unet.UNet.from_config."""
  path, parts = PACKAGE, dotted.split(".")
  while parts and (path / parts[0]).is_dir():
    path /= parts.pop(0)
  if parts and (path / f"{parts[0]}.py").is_file():
    path = path / f"{parts.pop(0)}.py"
  return not parts or (path.is_file() and ".".join(parts) in members(path))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_files_and_names_exist(page):
  missing = []
  for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
    if not target.startswith(("http://", "https://")):
      name, _, anchor = target.partition("#")
      file = (page.parent / name) if name else page
      if not file.exists() or (anchor and anchor not in slugs(file)):
        missing.append(target)
  for span in mentions(page) + block_lines(page):
    missing += [path for path in PATH.findall(span) if not (ROOT / path).exists()]
    match = NAME.fullmatch(span)
    if match and match[1].split(".")[0] in ROOMS and not match[1].endswith(".json") and not exists(match[1]):
      missing.append(match[1])
  for module, names in re.findall(r"^ *from (dicetalk_jax[\w.]*) import (.*)$", text_of(page), re.M):
    dotted = [".".join([*module.split(".")[1:], name]) for name in names.split(", ")]
    missing += [name for name in dotted if not exists(name)]
  assert not missing


def commands(page):
  """Arguments of the page's whole commands; a mention in a sentence need not be whole, and asks for help."""
  for lines, is_mention in ((block_lines(page), False), (mentions(page), True)):
    for line in lines:
      line = re.sub(r"\s+#.*", "", line).removeprefix(".venv/bin/")
      if line.startswith("dicetalk ") and not PLACEHOLDER.search(line):
        yield tuple(shlex.split(line)[1:]) + (("--help",) if is_mention else ())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page, monkeypatch, capsys):
  """Every whole command is one that `dicetalk` accepts; nothing is run."""
  monkeypatch.chdir(ROOT)
  for verb in verbs._VERBS.values():
    monkeypatch.setattr(verb, "run", lambda self: 0)
  refused = []
  for arguments in dict.fromkeys(commands(page)):
    try:
      main(list(arguments))
    except SystemExit as stop:
      if stop.code:
        refused.append((arguments, capsys.readouterr().err))
  assert not refused


def test_every_verb_is_documented():
  documented = {arguments[0] for page in PAGES for arguments in commands(page)}
  assert set(verbs._VERBS) <= documented
