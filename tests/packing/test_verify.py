"""Whatever is done to a data set, verify says so; and it says nothing of a sound one."""

import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import worldloom.packing.shard as layout
from worldloom.errors import UserError
from worldloom.packing.batch import Batch  # noqa: F401
from worldloom.packing.check import Claim, check_shard, payloads
from worldloom.packing.row import example_row, payload, sequence_row
from worldloom.packing.shard import EXAMPLES, Kind, Shard, ShardWriter
from worldloom.packing.storage import Folder
from worldloom.packing.verify import data_sets, verify
