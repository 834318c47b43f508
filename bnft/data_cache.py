"""What a large corpus was processed into, kept in the user's cache: cleaning and splitting it again takes a minute.

Knows nothing about how data is processed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from bnft import cleaning, corpus_files, data, splitting, talks, text
from bnft.corpus_files import read_corpus
from bnft.data import DatasetProcessor, ProcessedData
from bnft.kept_folders import kept_folder
from bnft.records import RunDirectory, read_json
from bnft.settings import DataConfig
from bnft.whole_files import write_json

KEPT = 4  # entries, the last used ones
WORTH_KEEPING = 5000  # rows; fewer are processed in seconds
REPORT = "data_report.json"


def processed(settings: DataConfig, seed: int) -> ProcessedData:
    """As `DatasetProcessor.process`, out of the cache where the same rows were processed in the same way before."""
    processor, source = DatasetProcessor(settings, seed), read_corpus(settings.path)
    if len(source.rows) < WORTH_KEEPING:
        return processor.process(source)

    def make(folder: Path) -> None:
        result = processor.process(source)
        RunDirectory(folder).write_splits(result.splits)
        write_json(folder / REPORT, result.report)

    entry = kept_folder("data", _key(source.name, source.sha256, settings, seed), make, KEPT)
    return ProcessedData(RunDirectory(entry).read_splits(), read_json(entry / REPORT))


def _key(name: str, sha256: str, settings: DataConfig, seed: int) -> str:
    """Hash of all that the result depends on: the rows, the settings, and the program."""
    rooms = (cleaning, corpus_files, data, splitting, talks, text)
    program = [Path(room.__file__).read_text(encoding="utf-8") for room in rooms]
    said = settings.model_dump(exclude={"path", "system_prompt"})
    return hashlib.sha256(json.dumps([name, sha256, said, seed, program]).encode()).hexdigest()[:32]
