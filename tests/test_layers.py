"""The packages import downwards only, and no two of them in a circle."""

import ast
import pathlib

import dicetalk_jax

# From the bottom up. A package imports from lower lines; packages of one line do not import each other.
LAYERS = (
  ("errors", "vocabulary"),
  ("files",),
  ("config",),
  ("models",),
  ("diffusion", "media", "world", "parallel"),
  ("weights",),
  ("data",),
  ("inference",),
  ("training",),
  ("planning",),
  ("evaluation",),
  ("app",),
  ("cli",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
ROOT = pathlib.Path(dicetalk_jax.__file__).parent


def imports(path):
  """Modules of the package that a file imports, anywhere in it: ("weights", "store", …)."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dicetalk_jax":
      for alias in node.names:
        yield (*node.module.split(".")[1:], alias.name)
    elif isinstance(node, ast.Import):
      yield from (tuple(a.name.split(".")[1:]) for a in node.names if a.name.split(".")[0] == "dicetalk_jax")


def modules():
  return {path.relative_to(ROOT).with_suffix("").parts: path for path in ROOT.rglob("*.py")}


def test_every_package_has_its_layer():
  assert {parts[0] for parts in modules()} - {"__init__"} == set(RANK)


def test_nothing_imports_upwards_or_sideways():
  wrong = [
    f"{path.relative_to(ROOT)} imports {'.'.join(target)}"
    for (room, *_), path in modules().items()
    if room != "__init__"
    for target in imports(path)
    if target[0] != room and RANK[target[0]] >= RANK[room]
  ]
  assert wrong == []


def test_no_files_import_each_other_in_a_circle():
  known = modules()
  graph = {}
  for name, path in known.items():
    found = {target if target in known else target[:-1] for target in imports(path)}
    found = {(*target, "__init__") if target not in known else target for target in found}
    graph[name] = {target for target in found if target in known and target != name}
  # Files that nothing which is left imports are taken away, again and again: what stays is in a circle, or behind one.
  while free := [name for name, targets in graph.items() if not targets & graph.keys()]:
    for name in free:
      del graph[name]
  assert sorted(graph) == []
