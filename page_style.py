"""How a page of `inspect` looks, and what a browser may do with it: show pictures that it holds, and nothing else."""

import base64
import hashlib

STYLE = """
:root { color-scheme: light dark;
  --ground: #f6f5f2; --card: #ffffff; --ink: #1c1b19; --quiet: #5d5a54; --line: #d8d4cb; --link: #0b5a8c;
  --on: #0d4a21; --on-ground: #e2f3e5; --on-line: #1c7a37; --off-line: #8b8882; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #131416; --card: #1c1e21; --ink: #e9e7e3; --quiet: #aaa8a2; --line: #3a3d42; --link: #82c7f2;
  --on: #c0f0ca; --on-ground: #15351f; --on-line: #4fbf6d; --off-line: #77756f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; margin: 0 0 .6rem; text-wrap: balance; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; } h3 { font-size: 1.1rem; }
p { margin: 0 0 .8rem; } .card p:last-child, nav details { margin: 0; }
a { color: var(--link); text-underline-offset: .15em; }
a, summary { border-radius: .2rem; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
main:focus, article:focus { outline: none; }
header, nav, .row { margin-bottom: 1.5rem; }
nav, article, .card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; }
article { margin-bottom: 1.25rem; scroll-margin-top: .5rem; }
article:target { border-color: var(--link); }
.skip { position: absolute; left: 1rem; top: -4rem; padding: .5rem .8rem; background: var(--card); }
.skip:focus { top: .5rem; z-index: 1; }
.quiet { color: var(--quiet); }
.sr { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap;
  user-select: none; }
dl { display: grid; grid-template-columns: minmax(5.5rem, max-content) 1fr; gap: .15rem 1rem; margin: 0 0 .8rem; }
dt { color: var(--quiet); } dd { margin: 0; min-width: 0; font-variant-numeric: tabular-nums; }
.steps, .list { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
.steps a, .list a, summary { display: inline-block; padding: .25rem 0; min-height: 1.75rem; }
summary { display: list-item; cursor: pointer; color: var(--link); }
.text { white-space: pre-wrap; border-left: .25rem solid var(--line); padding: .1rem 0 .1rem .8rem; margin: 0 0 1rem;
  overflow: clip; overflow-clip-margin: 4px; }
mark, .off { -webkit-box-decoration-break: clone; box-decoration-break: clone; }
mark { color: var(--on); background: var(--on-ground); border-bottom: 2px solid var(--on-line); font-weight: 600;
  padding: 0 .1em; }
mark::before { content: "\\27E6"; } mark::after { content: "\\27E7"; }
.off { color: var(--quiet); }
.frames { list-style: none; margin: 0 0 1rem; padding: 0; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 8.25rem), 1fr)); }
.one { grid-template-columns: minmax(0, 16.5rem); }
figure { margin: 0; border: 2px dashed var(--off-line); border-radius: .4rem; padding: .25rem; height: 100%; }
figure.on { border: 3px solid var(--on-line); background: var(--on-ground); color: var(--on); }
figure img { display: block; width: 100%; height: auto; border-radius: .2rem; background: var(--line); }
figcaption { font-size: .8rem; line-height: 1.35; padding: .3rem .1rem .1rem; font-variant-numeric: tabular-nums; }
.none { display: grid; place-items: center; aspect-ratio: 1; text-align: center; font-size: .8rem; padding: .4rem;
  background: var(--card); color: var(--quiet); border-radius: .2rem; }
.turn { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .75rem 0; margin: 0 0 .75rem; min-width: 0;
  scroll-margin-top: .5rem; }
.turn:target, .chunk:target { border-color: var(--link); outline: 2px solid var(--link); }
.learnt { border-left: .25rem solid var(--on-line); }
h4 { font-size: 1rem; line-height: 1.3; margin: 0 0 .2rem; } h4 .quiet { font-weight: 400; }
.told { font-size: .85rem; line-height: 1.45; margin: 0 0 .5rem; }
.told a { display: inline-block; padding: .2rem 0; min-height: 1.6rem; }
.told svg { height: .6rem; margin-top: .3rem; }
svg { display: block; width: 100%; height: 3rem; }
svg rect { fill: var(--link); } svg .all { fill: var(--line); }
.scale { display: flex; justify-content: space-between; gap: 1rem; font-size: .8rem; margin: .2rem 0 1rem; }
.scale :not(:nth-child(2)) { flex: none; }
.context { border: 1px solid var(--line); border-radius: .4rem; padding: .6rem; margin: 0 0 1rem; max-height: 26rem;
  overflow-y: auto; }
.chunk { border: 1px solid transparent; border-radius: .3rem; padding: 0 .3rem; margin: 0;
  scroll-margin-top: .5rem; }
.context > p { margin: 0 .3rem; }
.chunk .text { margin-bottom: .4rem; } .context > :last-child { margin-bottom: 0; }
details { margin: 0 0 .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .5rem .25rem 0; border-bottom: 1px solid var(--line); }
th, td:first-child { overflow-wrap: normal; } td:nth-child(2) { min-width: 5.5rem; } td:last-child { padding-right: 0; }
td[colspan] { text-align: center; }
th { color: var(--quiet); font-weight: 600; }
@media (min-width: 40rem) { body { padding: 2rem; } article, nav, .card { padding: 1.25rem 1.5rem; } }
@media print { nav, .skip, .steps { display: none; } .context { max-height: none; }
  article { break-inside: avoid-page; } }
"""
_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; img-src data:; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'"
