"""Which links may be asked before any name is looked up."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.pipelines.fetching.addresses import is_public, literal
from worldloom.pipelines.fetching.links import read_link, shown
from worldloom.pipelines.media import Unfit
from yarl import URL

GOOD = {
    "http://a.example/x.jpg": "http://a.example/x.jpg",
    "  HTTPS://A.example./x y?q=ü#part\n": "https://a.example./x%20y?q=%C3%BC",
    "http://under_score.example:8080/": "http://under_score.example:8080/",
    "http://bücher.example/%2F?a=b&amp;c": "http://xn--bcher-kva.example/%2F?a=b&amp;c",
    "http://8.8.8.8/": "http://8.8.8.8/",
    "http://0x08080808:81443/".replace("81443", "8144"): "http://8.8.8.8:8144/",
    "http://134744072./a": "http://8.8.8.8/a",
    "http://[2606:4700::1]:8080/": "http://[2606:4700::1]:8080/",
}
BAD = {
    "not http or https": [
        "file:///etc/passwd",
        "ftp://a.example/x",
        "data:image/png;base64,AA",
        "gopher://a.example",
        "//a.example/x",
        "x.jpg",
        "javascript:1",
        "ws://a.example/",
        "httpx://a.example",
    ],
    "unusable link": [
        "",
        None,
        7,
        float("nan"),
        b"http://a.example/",
        "http://",
        "http:///x",
        "http:/a.example/x",
        "http://u:p@a.example/",
        "http://u@a.example/",
        "http://:@a.example/",
        "http://a.example:99999/",
        "http://a.example:x/",
        "http://a.example:0/",
        "http://a.example:25/",
        "https://a.example:22/",
        "http://a..example/",
        "http://a b.example/",
        "http://[::1",
        "http://[]@",
        "http://a\x00b.example/",
        "http://" + "a" * 64 + ".example/",
        "http://" + "ü" * 64 + ".example/",
        "http://%31%32%37.0.0.1/",
        "http://127.0.0.1%2f.a.example/",
        "http://1.2.3.4.5/",
        "http://a.example\\@b.example/",
        "http://a.example/" + "x" * 8000,
        "http://" + "a." * 127 + "example/",
    ],
    "private address": [
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f.1/x",
        "http://0177.0.0.1:8080/",
        "http://127.0.0.1./",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://\uff11\uff12\uff17.0.0.1/",
        "http://①②⑦.0.0.1/",
        "http://127。0。0。1/",
        "https://10.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://0/",
        "http://[64:ff9b::a00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[fe80::1%25eth0]/",
        "http://[2606:4700::1%25x]/",
        "http://0xa9fea9fe/",
    ],
}


@pytest.mark.parametrize("text", GOOD)
def test_good_links_are_read(text):
    assert str(read_link(text)) == GOOD[text]


@pytest.mark.parametrize(("reason", "text"), [(r, t) for r, texts in BAD.items() for t in texts])
def test_bad_links_are_refused(reason, text):
    with pytest.raises(Unfit) as caught:
        read_link(text)
    assert (caught.value.status, caught.value.reason) == ("failed", reason)
    assert len(caught.value.detail) < 1000 and caught.value.detail.isprintable() and caught.value.detail.isascii()


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("/y", "http://a.example/y"),
        ("y?z", "http://a.example/d/y?z"),
        ("//b.example/", "http://b.example/"),
        ("https://b.example/y", "https://b.example/y"),
        ("?z", "http://a.example/d/x?z"),
    ],
)
def test_a_target_is_read_relative_to_the_link(target, found):
    assert str(read_link(target, URL("http://a.example/d/x"))) == found


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "data:,x", "//127.1/", "http://[::1]/", "ftp://b.example/", "//u:p@b.example/"]
)
def test_a_target_is_checked_like_a_link(target):
    with pytest.raises(Unfit):
        read_link(target, URL("http://a.example/d/x"))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.text("0123456789.xXabcdef:[]%@/\\#?-_。\uff11 ", max_size=30))
def test_no_text_makes_another_error_or_gets_past_the_rule(text):
    for link in (text, f"http://{text}", f"http://{text}/x"):
        try:
            found = read_link(link)
        except Unfit:
            continue
        assert found.scheme in ("http", "https") and found.raw_user is None and found.raw_password is None
        address = literal(found.raw_host)
        assert address is None or (is_public(address) and address == found.raw_host)


def test_a_strangers_text_is_cut_and_escaped():
    assert shown("a\n\x1b[31mü'\u202e" + "x" * 500) == (r"a\n\x1b[31m\xfc'\u202e" + "x" * 500)[:200]
