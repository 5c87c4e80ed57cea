"""One self-contained HTML page of a drill: no script, nothing from elsewhere, pictures as inline SVG. Light and dark."""

import datetime
import html
import math
from collections.abc import Callable, Iterator, Sequence

from optml import __version__
from optml.console import count_text, duration_text
from optml.drills import costs, results
from optml.drills.advice import Advice, daly_interval
from optml.drills.evidence import AttemptEvidence, Evidence
from optml.drills.report import (
    DIFFERS,
    FAILS,
    NO_STEPS,
    SURVIVES,
    UNKNOWN,
    UNTESTED,
    Report,
    advice_text,
    criteria_texts,
    full_disk_text,
    lost_text,
    new_step_text,
    plan_text,
    step_texts,
)
from optml.drills.time_parts import PARTS

WIDTH = 960
MACHINES_LAST = {"30 min": 1800.0, "2 h": 7200.0, "12 h": 43_200.0, "2 days": 172_800.0}
COLOURS = {
    "useful": "#2a9d5c", "checkpointing": "#7bc8a4", "start-up": "#4a7fd0", "lost work": "#d64545", "notice": "#e8973a",
    "staging": "#7d6bd0", "waiting": "#a3a9b5", "finishing": "#5bb5c9", "unknown": "#b8a36a", "other": "#cfd3da",
}  # fmt: skip
EXPLAINED = {
    "useful": "steps that were done once and kept",
    "checkpointing": "steps with a checkpoint are longer by this",
    "start-up": "from a machine to the first step",
    "lost work": "steps that were done again",
    "notice": "from SIGTERM to the end of the programs",
    "staging": "input and checkpoints come to the machine",
    "waiting": "no machine",
    "finishing": "the result is uploaded",
    "unknown": "training, of which no step was seen",
    "other": "between machines, and the platform's own",
}
ATTEMPT_COLOURS = ("#2f6fde", "#c2571a", "#7b3fb5", "#118a7e", "#b5346c", "#6b7a1e")

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #dfe3ea; --back: #fff; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #353d49; --back: #14181e; --card: #1d232b; }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.1rem; font-weight: 600; color: var(--soft); margin: 0 }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem }
.verdict { font-size: 1.55rem; line-height: 1.3; font-weight: 650; margin: .3rem 0 1.2rem; padding: 1rem 1.2rem;
  border-left: .5rem solid; background: var(--card); border-radius: .3rem }
.good { border-color: #2a9d5c } .bad { border-color: #d64545 } .unsure { border-color: #e8973a }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .7rem }
.number { background: var(--card); border-radius: .3rem; padding: .6rem .9rem }
.number b { display: block; font-size: 1.35rem; white-space: nowrap } .number span { color: var(--soft); font-size: .85rem }
.finding { background: var(--card); border-radius: .3rem; border-left: .3rem solid #e8973a; padding: .7rem 1rem; margin: .6rem 0 }
.finding.fatal { border-color: #d64545 } .finding h3 { margin: 0 0 .3rem; font-size: 1rem } .finding p { margin: .2rem 0 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .92rem }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 600 }
.wrong { color: #d64545; font-weight: 600 }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--soft); font: 12px system-ui, sans-serif }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .88rem; color: var(--soft); margin-top: .5rem }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: .15rem; margin-right: .4rem;
  vertical-align: -.05rem }
.soft { color: var(--soft); font-size: .92rem }
"""


def page(report: Report) -> str:
    return "\n".join(_page(report))


def _page(report: Report) -> Iterator[str]:
    title = html.escape(f"Interruption drill: {report.disturbed.name.removesuffix('-drill')}")
    colour = {SURVIVES: "good", DIFFERS: "unsure", UNTESTED: "unsure", UNKNOWN: "unsure"}.get(report.outcome, "bad")
    broken = [text for text in report.broken_criteria if report.outcome not in (FAILS, UNTESTED)]
    if broken:
        colour = "bad"
    yield "<!doctype html>"
    yield f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{STYLE}</style></head><body>"
    yield f"<h1>{title}</h1>"
    yield f'<p class="verdict {colour}">{_e(report.verdict[:1].upper() + report.verdict[1:])}.</p>'
    for text in broken:
        yield f'<p class="wrong">Criterion not met: {_e(text)}</p>'
    if not broken and report.passed and (wanted := criteria_texts(report.criteria)):
        yield f"<p>Criteria met: {_e('; '.join(wanted))}.</p>"
    yield f'<p class="soft">What was done: {_e(plan_text(report.plan))}.<br>{_e(_setting(report))}</p>'
    yield f'<div class="numbers">{"".join(_number(value, label) for value, label in _numbers(report))}</div>'
    if report.findings:
        yield "<h2>What is wrong, and how to cure it</h2>"
        for finding in report.findings:
            yield f'<div class="finding{" fatal" if finding.fatal else ""}"><h3>{_e(finding.title)}</h3>'
            yield f"<p><b>Seen:</b> {_e(finding.evidence)}</p><p><b>Cure:</b> {_e(finding.cure)}</p></div>"
    if report.costs:
        yield "<h2>Each interruption</h2>"
        yield from _costs_table(report)
    if report.full_disks:
        yield "<h2>The disk that was full</h2>"
        yield '<div class="scroll"><table><tr><th>Host</th><th>From second of training</th><th>What became of it</th></tr>'
        for disk in report.full_disks:
            cells = (disk.host, f"{disk.began_seconds:.1f}", full_disk_text(disk))
            yield "<tr>" + "".join(f"<td>{_e(cell)}</td>" for cell in cells) + "</tr>"
        yield "</table></div>"
    yield "<h2>What the hosts did, and when</h2>"
    yield from _timeline(report)
    yield "<h2>Where the time went</h2>"
    yield from _parts_bars(report)
    yield "<h2>Is the result the same?</h2>"
    yield from _results(report)
    yield "<h2>How often to save</h2>"
    yield from _advice(report)
    yield "<h2>The two jobs</h2>"
    yield from _jobs_table(report)
    yield "</body></html>"


def _setting(report: Report) -> str:
    """When, where, and with what."""
    describe = report.disturbed.describe
    image = describe.get("AlgorithmSpecification", {}).get("TrainingImage", "")
    began = datetime.datetime.fromtimestamp(report.disturbed.created_at, datetime.UTC)
    hosts = count_text(len(report.disturbed.hosts), "host")
    where = f"{image or 'an image'} on {hosts}, {report.backend} backend"
    return f"{began.day} {began:%B %Y, %H:%M} UTC; {where}; optml {__version__}."


def _numbers(report: Report) -> Iterator[tuple[str, str]]:
    trained, billed = report.billing
    if report.costs:
        yield str(len(report.costs)), "interruption" + ("" if len(report.costs) == 1 else "s")
        if report.lost_steps is not None:
            yield f"{report.lost_steps:.3g}", "steps lost, each time"
        elif report.steps_seen:
            yield (
                f"{report.known_lost_steps} or more",
                f"steps lost in all; unknown of {report.unknown_losses} interruptions",
            )
        else:
            yield "unknown", "steps lost"
        texts = {new_step_text(cost) for cost in report.costs}
        apart = ", waiting for a machine apart" if report.waited else ""
        label = f"from the kill to the first new step{apart}"
        if report.recovery_seconds is not None:
            yield duration_text(report.recovery_seconds), label
        else:
            yield (texts.pop() if len(texts) == 1 else "never"), label
    elif report.full_disks:
        yield str(len(report.full_disks)), "full disk" + ("" if len(report.full_disks) == 1 else "s")
    elif report.disturbed.away:
        yield str(len(report.disturbed.away)), "times without the store"
    if report.goodput is None:
        yield "unknown", "goodput: the useful share of the time"
    else:
        whole = sum(report.baseline_parts.values())
        undisturbed = f" (undisturbed {100 * report.baseline_parts['useful'] / whole:.0f} %)" if whole else ""
        yield f"{100 * report.goodput:.0f} %", f"goodput: the useful share of the time{undisturbed}"
    saved = f": savings of {report.savings:.1f} % by not paying for waiting" if report.waited else ""
    yield f"{billed:.1f} s", f"billable as managed spot, of {trained:.1f} s{saved}"


def _number(value: str, label: str) -> str:
    return f'<div class="number"><b>{_e(value)}</b><span>{_e(label)}</span></div>'


def _costs_table(report: Report) -> Iterator[str]:
    heads = (
        "#", "At", "Why", "Notice", "Notice to last checkpoint", "Last step", "First step after", "Steps lost",
        "Kill to first new step",
    )  # fmt: skip
    yield '<div class="scroll"><table><tr>' + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"
    for cost in report.costs:
        notice = '<span class="wrong">wasted</span>' if cost.notice == "wasted" else cost.notice
        lost = lost_text(cost)
        if cost.from_zero and not cost.untested:
            lost += ' <span class="wrong">from zero</span>'
        elif cost.untested:
            lost += f" ({_e(cost.untested)})"
        waited = f" (of that, {duration_text(cost.waited_seconds)} without a machine)" if cost.waited_seconds else ""
        cells = [
            str(cost.number),
            duration_text(cost.at_seconds).replace(" ", "&nbsp;"),
            _e(cost.cause),
            notice,
            "-" if cost.save_seconds is None else duration_text(cost.save_seconds),
            *step_texts(cost),
            lost,
            '<span class="wrong">never</span>' if new_step_text(cost) == "never" else _e(new_step_text(cost) + waited),
        ]
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</table></div>"
    yield (
        '<p class="soft">At: after the job began. Notice: what the program made of it ("used": it saved). Steps lost: done '
        "twice.</p>"
    )
    if not report.steps_seen:
        yield f'<p class="soft">What was lost is unknown: {NO_STEPS}.</p>'


# The timeline.


def _timeline(report: Report) -> Iterator[str]:
    job = report.disturbed
    begin, end = job.created_at, max(job.ended_at, job.created_at + 0.001)
    left, right = 70, WIDTH - 10

    def x(at: float) -> float:
        return left + (right - left) * (min(max(at, begin), end) - begin) / (end - begin)

    row, hosts = 34, job.hosts[:16]
    height = row * len(hosts) + 34
    yield f'<div class="scroll"><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="States of each host over time">'
    for number, host in enumerate(hosts):
        y = 8 + number * row
        yield f'<text x="0" y="{y + 16}">{_e(host)}</text>'
        yield f'<rect x="{left}" y="{y}" width="{right - left}" height="22" fill="{COLOURS["other"]}"/>'
        for since, until, name in _segments(job, host):
            if until > since:
                yield (
                    f'<rect x="{x(since):.1f}" y="{y}" width="{max(0.6, x(until) - x(since)):.1f}" height="22" '
                    f'fill="{COLOURS[name]}"><title>{_e(host)}: {name}, {duration_text(until - since)}</title></rect>'
                )
        for since, until, name in _troubles(job, host):
            title = f"<title>{_e(host)}: {name}, {duration_text(until - since)}</title>"
            width = max(0.6, x(until) - x(since))
            yield f'<rect x="{x(since):.1f}" y="{y - 4}" width="{width:.1f}" height="4" fill="#d64545">{title}</rect>'
        for attempt in job.attempts:
            for saved in (saved for saved in attempt.saved if saved.host == host):
                title = f"<title>{_e(saved.path)}</title>"
                yield f'<circle cx="{x(saved.at):.1f}" cy="{y + 26}" r="2" fill="#2a9d5c">{title}</circle>'
    bottom = 8 + row * len(hosts)
    for number, attempt in enumerate(job.interruptions, start=1):
        at = x(attempt.interrupted_at or begin)
        yield f'<line x1="{at:.1f}" y1="2" x2="{at:.1f}" y2="{bottom}" stroke="#d64545" stroke-width="2"/>'
        yield f'<text x="{at + 4:.1f}" y="{bottom + 2}" style="fill:#d64545">{number}</text>'
    for at in _ticks(0.0, end - begin):
        yield f'<text x="{x(begin + at):.1f}" y="{height - 4}" text-anchor="middle">{_e(f"{at:g} s")}</text>'
    yield "</svg></div>"
    seen = {name for host in hosts for since, until, name in _segments(job, host) if until > since}
    yield from _legend([(COLOURS[name], name) for name in PARTS if name in seen or name == "other"])
    marks = ["Green dots: a file of a checkpoint arrived in the store."]
    if job.interruptions:
        marks.insert(0, "Red lines: interruptions.")
    if troubles := sorted({name for host in hosts for _, _, name in _troubles(job, host)}):
        marks.insert(0, f"Red bars: {' or '.join(troubles)}.")
    if len(job.hosts) > len(hosts):
        marks.append(f"The first {len(hosts)} of {len(job.hosts)} hosts are shown.")
    yield f'<p class="soft">{_e(" ".join(marks))}</p>'


def _troubles(job: Evidence, host: str) -> Iterator[tuple[float, float, str]]:
    for attempt in job.attempts:
        for disk in attempt.disks_full:
            if disk.host == host:
                yield disk.at, disk.until or attempt.end_of_programs or disk.at, "the disk was full"
    for since, seconds in job.away:
        yield since, min(job.ended_at, since + seconds), "the checkpoint store was away"


def _segments(job: Evidence, host: str) -> Iterator[tuple[float, float, str]]:
    report_steps = any(attempt.steps for attempt in job.attempts)
    for since, until in job.waits:
        yield since, until, "waiting"
    for place, attempt in enumerate(job.attempts):
        if attempt.training_at is None:
            continue
        yield attempt.started_at, attempt.training_at, "staging"
        end = _end_of(attempt, host)
        interrupted = min(end, attempt.interrupted_at) if attempt.interrupted_at is not None else end
        begin = next((at for at, name, _ in attempt.steps if name == host), None)
        begin = min(interrupted, begin if begin is not None else attempt.first_lines.get(host, interrupted))
        if report_steps and not attempt.steps and attempt.interrupted_at is not None:
            begin = interrupted
        yield attempt.training_at, begin, "start-up"
        kept = end
        if attempt.interrupted_at is not None or place < len(job.attempts) - 1:
            kept = min(end, max(begin, costs.kept_until(job, place, host)))
        if not report_steps:
            yield begin, interrupted, "unknown"
            yield interrupted, end, "notice"
            continue
        worked = costs.worked_until(attempt, interrupted, end, host)
        yield begin, kept, "useful"
        yield kept, worked, "lost work"
        yield max(kept, worked), end, "notice"
    last = job.attempts[-1]
    if last.interrupted_at is None and last.end_of_programs is not None:
        yield last.end_of_programs, job.ended_at, "finishing"


def _end_of(attempt: AttemptEvidence, host: str) -> float:
    if host in attempt.exits:
        return attempt.exits[host][0]
    return attempt.killed_at.get(host, attempt.end_of_programs or attempt.started_at)


def _ticks(low: float, high: float, count: int = 7) -> list[float]:
    """Round numbers."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    first = math.ceil(low / step)
    return [round(step * number, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


# Goodput.


def _parts_bars(report: Report) -> Iterator[str]:
    rows = (("undisturbed", report.baseline_parts), ("disturbed", report.parts))
    longest = max(sum(parts.values()) for _, parts in rows) or 1.0
    yield f'<svg viewBox="0 0 {WIDTH} 84" role="img" aria-label="How the time of both runs divides">'
    for number, (name, parts) in enumerate(rows):
        y, at = 4 + number * 40, 100.0
        yield f'<text x="0" y="{y + 19}">{name}</text>'
        for part in PARTS:
            width = (WIDTH - 110) * parts[part] / longest
            if width > 0.2:
                title = f"<title>{part}: {duration_text(parts[part])}</title>"
                yield f'<rect x="{at:.1f}" y="{y}" width="{width:.1f}" height="30" fill="{COLOURS[part]}">{title}</rect>'
                at += width
    yield "</svg>"
    yield "<table><tr><th>Part</th><th>Disturbed</th><th></th><th>Undisturbed</th><th>What it is</th></tr>"
    whole = sum(report.parts.values()) or 1.0
    for part in PARTS:
        if max(report.parts[part], report.baseline_parts[part]) < 0.005:
            continue
        swatch = f'<span class="legend" style="display:inline"><i style="background:{COLOURS[part]}"></i></span>'
        yield (
            f"<tr><td>{swatch}{part}</td><td>{duration_text(report.parts[part])}</td>"
            f"<td>{100 * report.parts[part] / whole:.1f} %</td><td>{duration_text(report.baseline_parts[part])}</td>"
            f'<td class="soft">{EXPLAINED[part]}</td></tr>'
        )
    yield "</table>"


# The result.


def _results(report: Report) -> Iterator[str]:
    if report.metrics:
        yield "<table><tr><th>Final metric</th><th>Undisturbed</th><th>Disturbed</th><th></th></tr>"
        for pair in report.metrics:
            same = "same" if pair.is_equal else '<span class="wrong">different</span>'
            values = ["missing" if value is None else f"{value:.6g}" for value in (pair.baseline, pair.disturbed)]
            yield f"<tr><td>{_e(pair.name)}</td><td>{values[0]}</td><td>{values[1]}</td><td>{same}</td></tr>"
        yield f'</table><p class="soft">Same: within {100 * report.criteria.tolerance:g} % of each other.</p>'
    else:
        yield '<p class="soft">The job has no metrics (--metric NAME=REGEX), so results were not compared.</p>'
    if report.artifact_differences is not None:
        differ = report.artifact_differences
        yield f"<p>The model is {'not the same: ' + _e(', '.join(differ[:10])) if differ else 'bit for bit the same'}.</p>"
    names = results.curve_metrics(report.baseline, report.disturbed)
    for name in names[:2]:
        yield from _curve(report, name)
    if not names:
        yield '<p class="soft">No line has a step and a metric in it, so there is no curve (--step-regex, --metric).</p>'


def _curve(report: Report, metric: str) -> Iterator[str]:
    baseline = [point for attempt in report.baseline.attempts for point in _points(attempt, metric)]
    parts = [_points(attempt, metric) for attempt in report.disturbed.attempts]
    everything = [*baseline, *(point for part in parts for point in part)]
    if len(everything) < 2:
        return
    low_x, high_x = min(step for step, _ in everything), max(step for step, _ in everything)
    low_y, high_y = min(value for _, value in everything), max(value for _, value in everything)
    pad = (high_y - low_y) * 0.05 or abs(high_y) * 0.05 or 1.0
    low_y, high_y = low_y - pad, high_y + pad
    left, right, top, bottom = 64, WIDTH - 12, 10, 250

    def x(step: float) -> float:
        return left + (right - left) * (step - low_x) / max(1, high_x - low_x)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low_y) / (high_y - low_y)

    yield f"<h3>{_e(metric)} by step</h3>"
    yield f'<svg viewBox="0 0 {WIDTH} 282" role="img" aria-label="{_e(metric)} by step, of both runs">'
    for value in _ticks(low_y, high_y, 6):
        yield f'<line x1="{left}" y1="{y(value):.1f}" x2="{right}" y2="{y(value):.1f}" stroke="var(--line)"/>'
        yield f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
    for step in _ticks(low_x, high_x, 10):
        if step == int(step):
            yield f'<text x="{x(step):.1f}" y="{bottom + 18}" text-anchor="middle">{step:g}</text>'
    yield f'<text x="{left - 6}" y="{bottom + 18}" text-anchor="end">step</text>'
    yield _polyline(baseline, x, y, colour="#9aa3b0", width=6)
    for number, part in enumerate(parts):
        colour = ATTEMPT_COLOURS[number % len(ATTEMPT_COLOURS)]
        yield _polyline(part, x, y, colour=colour, width=2)
    for attempt in report.disturbed.interruptions:
        if attempt.last_step is not None:
            at = x(attempt.last_step)
            yield f'<line x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{bottom}" stroke="#d64545" stroke-dasharray="4 3"/>'
    yield "</svg>"
    yield from _legend(
        [
            ("#9aa3b0", "undisturbed"),
            *(
                (ATTEMPT_COLOURS[number % len(ATTEMPT_COLOURS)], f"attempt {attempt.number}")
                for number, attempt in enumerate(report.disturbed.attempts[:12])
            ),
            *((("#d64545", "interruption"),) if report.disturbed.interruptions else ()),
        ]
    )


def _points(attempt: AttemptEvidence, metric: str) -> list[tuple[int, float]]:
    """At most a thousand, the last one included."""
    points = [
        (step, values[metric]) for step, values in attempt.curve if metric in values and math.isfinite(values[metric])
    ]
    stride = max(1, len(points) // 1000)
    return [*points[:-1:stride], *points[-1:]]


def _polyline(
    points: Sequence[tuple[int, float]],
    x: Callable[[float], float],
    y: Callable[[float], float],
    *,
    colour: str,
    width: int,
) -> str:
    if len(points) == 1:
        return f'<circle cx="{x(points[0][0]):.1f}" cy="{y(points[0][1]):.1f}" r="{width}" fill="{colour}"/>'
    path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"/>'


# The rest.


def _advice(report: Report) -> Iterator[str]:
    advice = report.advice
    if isinstance(advice, str):
        yield f'<p class="soft">{_e(advice_text(advice)[:1].upper() + advice_text(advice)[1:])}.</p>'
        return
    yield f"<p>{_e(advice_text(advice)[:1].upper() + advice_text(advice)[1:])}.</p>"
    if advice.checkpoint_seconds < advice.resolution_seconds:
        return  # there is no interval to speak of
    yield from _other_machines(advice)
    own = "" if advice.actual_goodput is None else f", and {100 * advice.actual_goodput:.1f} % at the job's own"
    yield (
        f'<p class="soft">By the same formula, {100 * advice.expected_goodput:.1f} % of the time would be useful at that interval'
        f"{own} "
        "(steps lost to interruptions without a notice; start-up and waiting between machines apart).</p>"
    )


def _other_machines(advice: Advice) -> Iterator[str]:
    """A drill interrupts more often than any cloud does: what the measured cost means for machines that last longer."""
    cost = advice.checkpoint_seconds
    cells = "".join(f"<td>{duration_text(daly_interval(cost, lasts))}</td>" for lasts in MACHINES_LAST.values())
    heads = "".join(f"<th>{name}</th>" for name in MACHINES_LAST)
    yield f'<div class="scroll"><table><tr><th>If a machine lasts, on average</th>{heads}</tr>'
    yield f"<tr><td>save every</td>{cells}</tr></table></div>"
    yield (
        f'<p class="soft">By Daly\'s formula, for a checkpoint of {duration_text(cost)}; more often costs more than it saves, '
        "where there is no notice.</p>"
    )


def _jobs_table(report: Report) -> Iterator[str]:
    jobs = (report.baseline, report.disturbed)
    failed = any(job.describe.get("FailureReason") for job in jobs)
    why = "<th>Why</th>" if failed else ""
    heads = "<th></th><th>Job</th><th>Ended</th><th>Attempts</th><th>Took</th><th>Its lines</th>"
    yield f'<div class="scroll"><table><tr>{heads}{why}</tr>'
    for kind, job in zip(("undisturbed", "disturbed"), jobs, strict=True):
        reason = f"<td>{_e(str(job.describe.get('FailureReason', ''))[:300])}</td>" if failed else ""
        yield (
            f"<tr><td>{kind}</td><td>{_e(job.name)}</td><td>{_e(job.secondary)}</td><td>{len(job.attempts)}</td>"
            f"<td>{duration_text(job.ended_at - job.created_at)}</td><td><code>optml logs {_e(job.name)}</code></td>{reason}</tr>"
        )
    yield "</table></div>"


def _legend(entries: Sequence[tuple[str, str]]) -> Iterator[str]:
    items = "".join(f'<span><i style="background:{colour}"></i>{_e(name)}</span>' for colour, name in entries)
    yield f'<div class="legend">{items}</div>'


def _e(text: str) -> str:
    return html.escape(text)
