"""Files of a set that is being written, each finished on its own, so that a stopped command continues."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from dicetalk_jax.data.index import Index, index_path
from dicetalk_jax.data.sets import Shard, write_info, write_shard
from dicetalk_jax.files import write_json


@dataclasses.dataclass(frozen=True)
class SetFile:
  """One file of a set, and the JSON file with its facts, which exists once the file is complete."""

  folder: Path
  split: str
  name: str
  number: int

  @property
  def path(self) -> Path:
    return self.folder / self.name

  @property
  def _facts_path(self) -> Path:
    return self.folder / "shards" / f"{self.split}-{self.number:05d}.json"

  @property
  def facts(self) -> dict | None:
    """Rows of the index, sizes in bytes, and what else was stored; None if the file is not complete."""
    try:
      facts = json.loads(self._facts_path.read_text())
      return facts if self.path.stat().st_size == facts["file_bytes"] else None
    except (OSError, ValueError, KeyError, TypeError):
      return None

  def write(self, examples: Iterable[tuple[bytes, Sequence]], facts: Mapping | None = None) -> None:
    """Writes serialised examples, each with its row of the index, then `facts`, which `examples` may have filled."""
    rows = []

    def serialized() -> Iterator[bytes]:
      for example, row in examples:
        rows.append(row)
        yield example

    self.path.unlink(missing_ok=True)
    size = write_shard(self.path, serialized()).bytes
    sizes = {"bytes": size, "file_bytes": self.path.stat().st_size}
    write_json({**(facts or {}), "rows": rows, **sizes}, self._facts_path, indent=None)


def finish_set(folder: Path, name: str, features, files: Sequence[SetFile], description: str = "") -> None:
  """Writes the indices and descriptions that turn a folder of complete files into a set."""
  splits = {}
  for split in dict.fromkeys(file.split for file in files):
    facts = [file.facts for file in files if file.split == split]
    Index.of_rows(row for fact in facts for row in fact["rows"]).save(index_path(folder, split))
    splits[split] = [Shard(len(fact["rows"]), fact["bytes"]) for fact in facts]
  write_info(folder, name, features, splits, description)
