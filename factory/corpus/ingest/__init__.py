"""Sources: splits of files in, record batches out.

Files are fsspec URLs or local paths with globs. A row's `id` is the record's own, else the file's name below the
glob's root and the record's place in it; records that cannot be read become failed rows with file and place.
"""

from factory.corpus.ingest.dataset import Dataset
from factory.corpus.ingest.folder import Folder
from factory.corpus.ingest.jsonl import JsonLines
from factory.corpus.ingest.packages import PythonPackages
from factory.corpus.ingest.parquet import Parquet
from factory.corpus.ingest.warc import Warc, Wet

__all__ = ["Dataset", "Folder", "JsonLines", "Parquet", "PythonPackages", "Warc", "Wet"]
