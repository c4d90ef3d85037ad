"""Rows written are the rows read, whatever the file system."""

import numpy as np
import pytest
from worldloom.errors import UserError
from worldloom.packing.dataset import open_dataset
from worldloom.packing.row import row_examples


@pytest.mark.parametrize("url", ["", "memory://toy-dataset"])
def test_rows_by_number_are_the_rows_in_order(toy_dataset, url):
    dataset = toy_dataset(rows=40, url=url)
    rows = list(dataset)
    assert len(rows) == dataset.rows == 40
    for i in (0, 13, 14, 39):
        again = dataset.row(i)
        assert np.array_equal(again.tokens, rows[i].tokens) and again.segments == rows[i].segments
        assert sum(len(e.tokens) for e in row_examples(again)) <= dataset.length == len(again.tokens)


def test_an_unfinished_directory_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        open_dataset(str(tmp_path))
