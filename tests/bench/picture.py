"""The table as a picture: a panel of bars for each measure, as SVG, written by hand."""

from html import escape

#: Rondel in strong colours, the others in quiet ones; the paper is part of the picture, so that it reads on dark pages too.
COLOURS = {"rondel-full": "#c2410c", "rondel": "#f59e0b"}
OTHERS = "#94a3b8"
INK, QUIET, PAPER, LINE = "#0f172a", "#475569", "#ffffff", "#e2e8f0"
COLUMNS, PANEL, GAP, MARGIN = 3, 400, 28, 28
NAME, VALUE, BAR, STEP, HEAD = 88, 96, 15, 22, 46
FONT = "font-family='system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif'"


def draw(summary):
    pairs = [pair for pair in summary["pairs"] if pair != "direct"]
    rows = [row for row in summary["table"] if any(pair in row["pairs"] for pair in pairs)]
    height = HEAD + STEP * len(pairs) + GAP
    lines = -(-len(rows) // COLUMNS)
    top = MARGIN + 56
    wide = 2 * MARGIN + COLUMNS * PANEL + (COLUMNS - 1) * GAP
    high = top + lines * height + MARGIN
    on = summary["machine"]
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {wide} {high}' width='{wide}' height='{high}' {FONT}>",
        f"<title>{escape('Rondel beside other sidecars on the same work')}</title>",
        f"<rect width='{wide}' height='{high}' fill='{PAPER}'/>",
        text(MARGIN, MARGIN + 14, "Rondel beside other sidecars on the same work", 20, INK, weight=700),
        text(MARGIN, MARGIN + 38, f"{on['cores']} cores of {on['cpu']}, {on['date']}; both sidecars on one core. rondel-full: token, 20 policies, "
             f"metrics, access log. ×: ratio to {summary['base']}", 12.5, QUIET),
    ]
    for index, row in enumerate(rows):
        left = MARGIN + index % COLUMNS * (PANEL + GAP)
        parts += panel(left, top + index // COLUMNS * height, row, pairs, summary["base"])
    return "\n".join([*parts, "</svg>"]) + "\n"


def panel(left, top, row, pairs, base):
    values = {pair: row["pairs"][pair]["value"] for pair in pairs if pair in row["pairs"]}
    longest = max([*values.values(), 1e-9])
    title, unit = row["measure"], "less is better" if row["better"] == "less" else "more is better"
    room = PANEL - NAME - VALUE
    parts = [text(left, top + 15, title, 13, INK, weight=600), text(left, top + 32, unit, 11, QUIET)]
    bottom = top + HEAD + STEP * len(pairs)
    parts.append(f"<line x1='{left + NAME}' y1='{top + HEAD - 5}' x2='{left + NAME}' y2='{bottom - 3}' stroke='{LINE}'/>")
    for index, pair in enumerate(pairs):
        y = top + HEAD + index * STEP
        ours = pair in COLOURS
        parts.append(text(left + NAME - 8, y + 12, pair, 12, INK if ours else QUIET, anchor="end", weight=600 if ours else 400))
        if pair not in values:
            parts.append(text(left + NAME + 6, y + 12, "–", 12, QUIET))
            continue
        value = values[pair]
        width = max(1.5, room * max(value, 0) / longest)
        ratio = row["pairs"][pair]["ratio"]
        said = f"{value:,.{row['digits']}f}".replace(",", " ")
        parts.append(f"<rect x='{left + NAME}' y='{y}' width='{width:.1f}' height='{BAR}' rx='2' fill='{COLOURS.get(pair, OTHERS)}'/>")
        parts.append(f"<text x='{left + NAME + width + 6:.1f}' y='{y + 12}' font-size='12' fill='{INK}'>{said}"
                     + (f"<tspan dx='6' fill='{QUIET}' font-size='11'>×{ratio:.2f}</tspan>" if ratio is not None and pair != base else "") + "</text>")
    return parts


def text(x, y, words, size, colour, anchor="start", weight=400):
    return f"<text x='{x}' y='{y}' font-size='{size}' fill='{colour}' text-anchor='{anchor}' font-weight='{weight}'>{escape(words)}</text>"
