"""The data card: what a reader of a data set's folder wants to know first."""

from typing import Any


def data_card(manifest: dict[str, Any]) -> str:
    """Write a data set's README.md: sources, filters, counts, licences."""
    ledger = manifest["ledger"]
    what = f"sequences of {manifest['length']:,} tokens" if manifest["length"] else "tokenized examples"
    lines = [
        f"# {manifest['rows']:,} {what}",
        "",
        *(f"{text}\n" for text in [manifest.get("description", "")] if text),
        f"{manifest['tokens']:,} tokens in {manifest['units']:,} shards, {manifest['bytes']:,} bytes.",
        f"Root `{manifest['root']}`, vocabulary `{manifest['fingerprint']}`, format {manifest['format']}.",
        *([f"Default loss weights: `{manifest['weights']}`."] if manifest["length"] else []),
        "",
        "## Sources",
        "",
        "| source | kind | licence | filters | sample | denied entries |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, about in manifest.get("about", {}).items():
        filters = ", ".join(f"{k} {v}" for k, v in about["filters"].items()) or "none"
        licence = about["licence"] or "not stated"
        cells = (name, about["kind"], licence, filters, f"{about['sample']:g}", str(len(about["deny"])))
        lines.append("| " + " | ".join(_escape(cell) for cell in cells) + " |")
    lines += ["", "## Ledger", "", "| read | kept | dropped | failed |", "| --- | --- | --- | --- |"]
    lines.append("| " + " | ".join(f"{ledger[name]:,}" for name in ("read", "kept", "dropped", "failed")) + " |")
    if ledger["reasons"]:
        lines += ["", "| reason | records |", "| --- | --- |"]
        lines += [f"| {_escape(reason)} | {n:,} |" for reason, n in ledger["reasons"].items()]
    if n := manifest.get("remove_eval_ngrams"):
        lines += [
            "",
            f"Of plain text {ledger['tokens_cut']:,} tokens were cut out: runs of {n} that the eval side has.",
        ]
    lines += ["", "| task | examples | tokens | trained |", "| --- | --- | --- | --- |"]
    lines += [f"| {t} | {c['examples']:,} | {c['tokens']:,} | {c['trained']:,} |" for t, c in ledger["tasks"].items()]
    made = ", ".join(f"{name} {version}" for name, version in sorted(manifest.get("versions", {}).items()))
    return "\n".join([*lines, "", f"Made with {made}.", ""])


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
