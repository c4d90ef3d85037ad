"""Opt-outs in X-Robots-Tag headers, by a table worked out by hand."""

import pytest
from worldloom.pipelines.fetching.robots import opt_out

AGENT = "worldloom/0.1 (+https://example.org)"
FORBID = {
    "noai": "noai",
    "NoImageAI": "noimageai",
    "noindex": "noindex",
    "noarchive, noimageindex": "noimageindex",
    " none ": "none",
    "worldloom: noai": "noai",
    "WorldLoom : nofollow, noai": "noai",
    "otherbot: nofollow, worldloom: noindex": "noindex",
    "*: noindex": "noindex",
    "unavailable_after: 25 Jun 2030 15:00:00 PST, noai": "noai",
    "unavailable_after: Friday, 25 Jun 2030 15:00:00 PST, noai": "noai",
    "max-snippet: 20, noindex": "noindex",
    "noindex, otherbot: nofollow": "noindex",
    "worldloom: max-snippet: 1, noai": "noai",
}
ALLOW = [
    "",
    "all",
    "nofollow",
    "noaix",
    "otherbot: noai",
    "otherbot: nofollow, noindex",
    "googlebot: none",
    "img2dataset: noai",
    "otherbot: max-snippet: 1, noindex",
    "max-image-preview: none",
    "unavailable_after: noindex",
    ":::",
    ",,,",
    "noai noindex",
    "x" * 9000,
]


@pytest.mark.parametrize("header", FORBID)
def test_rules_that_forbid(header):
    assert opt_out([header], AGENT) == FORBID[header]
    assert opt_out(["nofollow", header], AGENT) == FORBID[header]


@pytest.mark.parametrize("header", ALLOW)
def test_rules_that_allow(header):
    assert opt_out([header], AGENT) is None


def test_a_name_holds_for_its_own_header_only():
    assert opt_out(["otherbot: nofollow", "noindex"], AGENT) == "noindex"
    assert opt_out([], AGENT) is None
