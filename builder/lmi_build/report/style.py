"""The page's style: one column, system type, light, dark and paper."""

from __future__ import annotations

# Contrast of text against its ground is at least 4.5 in both schemes, of marks 3.
PALETTE = """
:root{color-scheme:light dark;--ground:#fbfaf7;--card:#fff;--ink:#1d1c1a;--soft:#605d57;
--line:#e4e0d8;--faint:#efece5;--accent:#1f5fa8;--band:#a9c6e8;--good:#1b6e42;
--good-ground:#e3f2e8;--bad:#a8281f;--bad-ground:#fbe7e4;--warn:#7a5200;
--warn-ground:#fbf0d9;--p0:#1f5fa8;--p1:#c2762b;--p2:#5f8f6b;--p3:#8a63a6;--p4:#8c867b;
--p5:#b0506a;--p6:#2f8a99;--p7:#7d8a2e;
--p8:#4a4f9c;--p9:#9a5b2e;--q0:#c9c3b8;--q1:#e4e0d8}
@media screen and (prefers-color-scheme:dark){:root{--ground:#161719;
--card:#1d1f22;--ink:#ebe8e2;--soft:#a8a49b;--line:#34363a;--faint:#26282c;--accent:#7fb2ee;--band:#34587f;
--good:#7fd0a0;--good-ground:#1b3126;--bad:#f39a8f;--bad-ground:#3d2220;--warn:#e5bd6b;
--warn-ground:#37301d;--p0:#7fb2ee;--p1:#e0a05c;--p2:#8fc09b;--p3:#bd9bd6;--p4:#a39d92;
--p5:#dc8ba1;--p6:#6fc3d1;--p7:#b9c46a;
--p8:#9a9fe8;--p9:#cf9468;--q0:#5a5d61;--q1:#34363a}}
""".strip()
STYLE = (
    f"{PALETTE}\n"
    + """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.55 ui-sans-serif,
system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
font-variant-numeric:tabular-nums}
main{max-width:1000px;margin:0 auto;padding:56px 32px 72px}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",
monospace;font-size:.86em;overflow-wrap:anywhere}
h1{font-size:34px;line-height:1.15;letter-spacing:-.02em;margin:0 0 10px;
font-weight:650;overflow-wrap:anywhere}
h2{font-size:21px;letter-spacing:-.01em;margin:0 0 6px;font-weight:650}
h3{font-size:15px;margin:0;font-weight:600}
p{margin:0 0 12px;max-width:68ch}
section{margin-top:60px}
section+header{margin-top:84px;border-top:1px solid var(--line);padding-top:48px}
.lead{color:var(--soft);font-size:18px;margin:0}
.soft,.note{color:var(--soft)}
.note{font-size:14.5px}
.badge{display:inline-block;border-radius:99px;padding:3px 12px;font-size:14px;
font-weight:600;background:var(--faint);color:var(--soft);white-space:nowrap}
.badge.good{background:var(--good-ground);color:var(--good)}
.badge.bad{background:var(--bad-ground);color:var(--bad)}
.badge.warn{background:var(--warn-ground);color:var(--warn)}
header .badge{margin-bottom:18px}
.figures{display:flex;flex-wrap:wrap;gap:1px;margin:36px 0 0;
background:var(--line);border:1px solid var(--line);border-radius:10px;overflow:hidden}
.figures div{background:var(--card);padding:18px 20px 16px;flex:1 1 190px}
.figures dt{color:var(--soft);font-size:14px}
.figures dd{margin:0}
.figures .value{font-size:28px;line-height:1.25;font-weight:600;letter-spacing:-.02em}
.figures .detail{font-size:13.5px;color:var(--soft)}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:20px 22px;margin-top:14px}
.reading{display:grid;grid-template-columns:minmax(0,1fr) auto;gap:2px 16px;
align-items:baseline}
.reading .value{font-size:24px;font-weight:600;letter-spacing:-.01em;line-height:1.3;
grid-column:1/-1}
.reading .value small{font-size:14.5px;font-weight:400;color:var(--soft);
letter-spacing:0;display:inline-block;line-height:1.4}
.reading svg,.reading p,.reading .ends{grid-column:1/-1}
.reading p{margin:4px 0 0;font-size:14.5px;color:var(--soft)}
.ends{display:flex;justify-content:space-between;font-size:13.5px;color:var(--soft);
gap:16px}
svg{display:block;width:100%;height:auto}
.defs{position:absolute}
.interval{height:40px;overflow:visible;margin-top:6px}
.readings{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));
gap:14px;margin-top:20px}
.readings .card{margin:0;grid-template-rows:auto auto auto auto 1fr}
.track{stroke:var(--line);stroke-width:6;stroke-linecap:round}
.refused{stroke:var(--bad);stroke-width:6;stroke-linecap:round;opacity:.28}
.band{stroke:var(--band);stroke-width:14;stroke-linecap:round}
.gate{stroke:var(--bad);stroke-width:2.5}
.dot{fill:var(--accent)}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));
gap:22px 20px;margin:20px 0 6px}
figure{margin:0}
figcaption{font-size:13.5px;line-height:1.4;margin-bottom:4px}
figcaption span{color:var(--soft);display:block;font-size:13px}
.grid{stroke:var(--line);stroke-width:1}
.tick{font-size:11px;fill:var(--soft)}
.end{text-anchor:end}.middle{text-anchor:middle}
.line{fill:none;stroke:var(--accent);stroke-width:1;opacity:.45}
.hot{fill:var(--ground);stroke:var(--bad);stroke-width:1.8}
.dots{fill:none;stroke:var(--accent);stroke-width:3.6;stroke-linecap:round}
.scroll{overflow-x:auto;margin-top:14px}
table{border-collapse:collapse;width:100%;font-size:14.5px}
caption{text-align:left;color:var(--soft);font-size:14px;padding-bottom:8px}
th,td{text-align:left;padding:8px 14px 8px 0;border-bottom:1px solid var(--line);
vertical-align:baseline}
th{font-weight:500;color:var(--soft);font-size:13.5px;white-space:nowrap}
tbody th{color:var(--ink);font-weight:400;font-size:inherit;white-space:normal;
min-width:108px}
td:last-child,th:last-child{padding-right:0}
.n{text-align:right;white-space:nowrap}
.w{width:26%;min-width:90px}
.meter{height:8px;border-radius:4px;overflow:hidden}
.rest{fill:var(--faint)}.bar{fill:var(--accent)}.bar.quiet{fill:var(--p4)}
.stack{height:24px;border-radius:6px;overflow:hidden;margin:18px 0 4px}
.part0{fill:var(--p0)}.part1{fill:var(--p1)}.part2{fill:var(--p2)}.part3{fill:var(--p3)}
.part4{fill:var(--p4)}.part5{fill:var(--p5)}
.key{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:8px}
.key svg{height:10px}
.plot{margin:14px 0 4px}
.plot.narrow,.only{display:none}
.legend{display:flex;flex-wrap:wrap;gap:4px 20px;list-style:none;margin:14px 0 0;
padding:0;font-size:14px}
.legend svg{display:inline-block;width:13px;height:13px;margin-right:7px;
vertical-align:-1px}
th small{display:block;font-size:12px}
.memory small{display:block;font-size:12px;color:var(--soft)}
.memory th{white-space:nowrap}
.memory td:last-child{min-width:210px}
.sum th,.sum td{border-bottom-color:transparent;padding-bottom:0;font-weight:600}
ol.sources{margin:14px 0 0;padding-left:20px;font-size:13.5px;color:var(--soft)}
sup{font-size:11px;color:var(--soft);line-height:0}
section>h2+.note+.scroll{margin-top:18px}
blockquote{margin:6px 0 0;padding:0;white-space:pre-wrap;overflow-wrap:anywhere}
dl.pairs{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:7px 22px;
margin:12px 0 0;font-size:14.5px}
dl.pairs dt{color:var(--soft)}
dl.pairs dd{margin:0;overflow-wrap:anywhere}
.card>p:last-child{margin-bottom:0}
details{margin-top:16px}
summary{cursor:pointer;color:var(--accent);font-size:14.5px}
summary:focus-visible{outline:2px solid var(--accent);outline-offset:3px;
border-radius:3px}
.matrix{font-size:12.5px}
.matrix th,.matrix td{padding:3px 12px 3px 0;border-bottom-color:var(--faint)}
ul.findings{padding-left:18px;margin:10px 0 0;font-size:14.5px}
footer{margin-top:64px;color:var(--soft);font-size:13.5px}
@media (max-width:560px){main{padding:32px 18px 48px}h1{font-size:27px}
section{margin-top:46px}.card{padding:16px}
.figures div{padding:14px;flex-basis:40%}.figures .value{font-size:22px}.panels{
grid-template-columns:repeat(auto-fill,minmax(160px,1fr));gap:16px 14px}
dl.pairs{grid-template-columns:1fr;gap:0}dl.pairs dd{margin-bottom:9px}
.opt{display:none}.panel .tick,#axes .tick{font-size:15px}}
@media (max-width:640px){.plot.wide{display:none}.plot.narrow{display:block}
.memory thead{display:none}.memory tr{display:grid;grid-template-columns:1fr 1fr;
border-bottom:1px solid var(--line);padding:9px 0}.memory th,.memory td{border:0;
padding:0;text-align:left}.memory th,.memory td:last-child{grid-column:1/-1}
.memory td:last-child{font-size:13.5px;color:var(--soft)}
.memory .low::before,.memory .high::before{content:"at least";font-size:12px;
color:var(--soft);display:block}.memory .high::before{content:"at most"}
.memory td{white-space:normal}.only{display:inline}
.memory,.memory tbody,.said,.said tbody{display:block}
.said thead{display:none}.said tr{display:block;padding:9px 0;
border-bottom:1px solid var(--line)}.said th,.said td{display:inline;border:0;padding:0;
margin-right:8px}.said td:nth-last-child(-n+2){display:block;margin-top:2px}
.said td:last-child{font-size:13px;margin-right:0}}
@media print{:root{--ground:#fff;--card:#fff;--ink:#000;--soft:#4a4a4a;--line:#ccc;
--faint:#eee;--accent:#1f5fa8;--band:#a9c6e8;--bad:#a8281f;--good:#1b6e42}
main{padding:0;max-width:none}section{margin-top:30px}.card,figure,tr{
break-inside:avoid}h2{break-after:avoid}body{font-size:11pt;
-webkit-print-color-adjust:exact;print-color-adjust:exact}}
""".strip()
)
