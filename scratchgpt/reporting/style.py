"""How a report looks: light and dark, wide and narrow, without a script or anything from the network."""

from scratchgpt.reporting.figures import PALETTE
from scratchgpt.reporting.series import AXES

_DARK_PALETTE = ("#4aa8e0", "#ff8a50", "#35c49a", "#e39bc4", "#e0ac33", "#8fd0f5", "#b79bd6", "#a5a5a5")


def style_sheet() -> str:
    """CSS of a report."""
    light, dark = (_variables(palette) for palette in (PALETTE, _DARK_PALETTE))
    others = "\n".join(
        f"main:has(#axis-{axis}:checked) .over:not(.{axis}) {{ display: none; }}" for axis in AXES
    )  # without a switch there is one axis only
    return _STYLE.replace("/* light */", light).replace("/* dark */", dark) + others


def _variables(palette: tuple[str, ...]) -> str:
    return " ".join(f"--c{i}: {color};" for i, color in enumerate(palette))


_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1f2429; --soft: #596069; --line: #dfe3e8;
  --best: #0072b21a; --accent: #0072b2; /* light */ }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --card: #1d2126; --ink: #e5e8eb; --soft: #a0a8b1; --line: #343a42;
    --best: #4aa8e02e; --accent: #4aa8e0; /* dark */ }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 1.6rem 1.2rem 3rem; }
header p { margin: 0; color: var(--soft); }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; }
h3 { font-size: .95rem; margin: 0 0 .3rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.2rem 0 0; }
figure, details, pre, .wide, .tiles div {
  background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.tiles div { padding: .7rem .9rem; display: flex; flex-direction: column; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; overflow-wrap: anywhere; }
dd.figure { font-size: 1.5rem; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
dd.remark, .remark { color: var(--soft); font-size: .85rem; }
.first { border-top: .2rem solid var(--accent) !important; }
fieldset { border: 0; margin: 1.8rem 0 .8rem; padding: 0; display: flex; flex-wrap: wrap; align-items: center;
  gap: .3rem .6rem; position: relative; }
legend { float: left; padding: 0; color: var(--soft); }
.switch { display: inline-flex; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
.switch label { position: relative; padding: .25rem .9rem; cursor: pointer; border-radius: .45rem; }
.switch input { position: absolute; inset: 0; opacity: 0; margin: 0; width: 100%; cursor: pointer; }
.switch label:has(:checked) { background: var(--accent); color: var(--card); font-weight: 600; }
.switch label:has(:focus-visible), summary:focus-visible, .wide:focus-visible
  { outline: 2px solid var(--accent); outline-offset: 2px; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .9rem; }
.charts > :first-child.large { grid-column: 1 / -1; }
figure { margin: 0; padding: .8rem 1rem .5rem; min-width: 0; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
.small { display: none; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
td, th { padding: .35rem .8rem; text-align: left; vertical-align: top; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; min-width: 4rem; }
thead th { border-top: 0; color: var(--soft); font-weight: 500; overflow-wrap: normal; }
tbody th { font-weight: 500; min-width: 8rem; }
.number { white-space: nowrap; }
.best { font-weight: 700; background: var(--best); }
.changed { font-weight: 700; }
details { margin: .6rem 0; }
summary { padding: .5rem .9rem; cursor: pointer; font-weight: 500; overflow-wrap: anywhere; }
details > :not(summary) { margin: 0 .9rem .8rem; }
details > .wide { border-radius: .4rem; }
pre { padding: .7rem .9rem; margin: .5rem 0; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 24rem;
  overflow-y: auto; font: .88rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
details pre { background: var(--page); }
pre b { color: var(--accent); font-weight: 650; }
.mark { display: inline-block; width: .75em; height: .75em; border-radius: 50%; margin-right: .4em; }
@media (max-width: 46rem) {
  main { padding: 1rem .7rem 2rem; }
  h1 { font-size: 1.35rem; }
  .charts { grid-template-columns: minmax(0, 1fr); }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .5rem; }
  .tiles div { padding: .5rem .7rem; }
  dd.figure { font-size: 1.2rem; }
  figure { padding: .6rem .5rem .3rem; }
  .large > .big { display: none; }
  .large > .small { display: block; }
  td, th { overflow-wrap: break-word; min-width: 6rem; padding: .3rem .5rem; }
}
@media print { details > * { display: block; } fieldset { display: none; } }
"""
