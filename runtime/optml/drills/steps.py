"""Which of the numbers that a job prints are its steps: one series, chosen once and read everywhere. Pure functions.

A line may have several numbers that look like a step's (an epoch and an iteration), and lines that are no progress have them too:
`epochs: 40` of a configuration, a command's `--epochs 40`. What tells them apart is that steps grow within an attempt. So the
series is the text around a number ("step=#") whose numbers are the most, grow, and do not begin again; or two of them, an outer
one that grows and an inner one that begins again with it.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from optml.events import AS_TOLD, BAR_AROUND, NUMBER, StepLine
from optml.spec import Trigger

Row = tuple[Mapping[str, int], str]  # numbers by the text around them, and the form of their line
MOST_TEXTS, MOST_LINES = 12, 64  # that are looked at one by one, the commonest first
FEWEST_NAMED = 4  # steps or epochs, to be preferred to a progress bar
AFTER_CHARACTERS = 200  # of a line, behind the number: what a trigger looks at


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a job prints its steps."""

    around: tuple[str, ...]  # the text around the number; of two, the outer one first
    lines: frozenset[str]  # forms of lines that have it
    refused: frozenset[str] = frozenset()  # forms of lines that have it too, and are no progress
    outer_first: int = 0
    inner_count: int = 1  # numbers of the inner one for each of the outer one

    def values(self, rows: Iterable[Row], *, also: frozenset[str] = frozenset()) -> Iterator[int | None]:
        """The step of each row of one attempt of one host, in the order of the rows; None for a row that has none."""
        *outer, inner = self.around
        last_outer: int | None = None
        for numbers, line in rows:
            if outer and outer[0] in numbers:
                last_outer = numbers[outer[0]]
            if inner not in numbers or (line not in self.lines and line not in also):
                yield None
            elif not outer:
                yield numbers[inner]
            else:
                yield (
                    None if last_outer is None else (last_outer - self.outer_first) * self.inner_count + numbers[inner]
                )

    def __str__(self) -> str:
        return " in ".join(repr(text) for text in reversed(self.around))


def choose(attempts: Sequence[Sequence[Row]]) -> Form | None:
    """Of the rows of each attempt of each host, one after the other; None if nothing grows."""
    times = Counter(text for numbers, _ in itertools.chain.from_iterable(attempts) for text in numbers)
    if AS_TOLD in times:
        return Form(around=(AS_TOLD,), lines=frozenset({AS_TOLD}))
    order = {text: place for place, (text, _) in enumerate(times.most_common(MOST_TEXTS))}
    candidates = [form for text in order if (form := _grown((text,), attempts)) is not None]
    # Where the finer one begins again with each of the coarser one.
    alone = {form.around[0] for form in candidates}
    for outer, inner in itertools.permutations(order, 2):
        if outer in alone and inner not in alone:
            numbers = [each[inner] for rows in attempts for each, _ in rows if inner in each]
            firsts = [each[outer] for rows in attempts for each, _ in rows if outer in each]
            count = max(numbers) - min(numbers) + 1
            form = _grown((outer, inner), attempts, outer_first=min(firsts), inner_count=count)
            if form is not None:
                candidates.append(form)
    counts = [(_count(form, attempts), form) for form in candidates]
    # A bar alone may be that of data which is made ready, each time again: what is called a step or an epoch goes first.
    named = [(count, form) for count, form in counts if count >= FEWEST_NAMED and not _is_bar(form)]
    return max(
        named or counts,
        key=lambda each: (each[0], -len(each[1].around), -order[each[1].around[-1]]),
        default=(0, None),
    )[1]


def _is_bar(form: Form) -> bool:
    return all(text.startswith(BAR_AROUND) for text in form.around)


def extended(form: Form, attempts: Sequence[Sequence[Row]]) -> Form:
    """With the lines of another run that fit in. Those that were refused once stay refused."""
    fresh = [line for line in _lines_with(form.around[-1], attempts) if line not in form.lines | form.refused]
    together = [frozenset({line}) for line in fresh[:MOST_LINES]]
    if len(fresh) > MOST_LINES:  # lines with words of their own
        together.append(frozenset(fresh[MOST_LINES:]))
    for lines in together:
        both = replace(form, lines=form.lines | lines)
        form = both if _grows(both, attempts) else replace(form, refused=form.refused | lines)
    return form


def _grown(
    around: tuple[str, ...], attempts: Sequence[Sequence[Row]], *, outer_first: int = 0, inner_count: int = 1
) -> Form | None:
    """The lines that have the number, beginning with those that tell most; None if what they tell does not grow."""
    lines = _lines_with(around[-1], attempts)
    whole = Form(around=around, lines=frozenset(lines), outer_first=outer_first, inner_count=inner_count)
    alone = [replace(whole, lines=frozenset({line})) for line in lines[:MOST_LINES]]
    growing = [form for form in alone if _grows(form, attempts) and _count(form, attempts) > 1]
    if not growing:  # each line has words of its own
        return whole if _grows(whole, attempts) and _count(whole, attempts) > 1 else None
    main = max(growing, key=lambda form: (_count(form, attempts), sorted(form.lines)))
    found = extended(main, attempts)
    return found if _grows(found, attempts) else main


def _lines_with(text: str, attempts: Sequence[Sequence[Row]]) -> list[str]:
    """The commonest first."""
    found = Counter(line for rows in attempts for numbers, line in rows if text in numbers)
    return sorted(found, key=lambda line: (-found[line], line))


def _grows(form: Form, attempts: Sequence[Sequence[Row]]) -> bool:
    return not any(begins_again([value for value in form.values(rows) if value is not None]) for rows in attempts)


def _count(form: Form, attempts: Sequence[Sequence[Row]]) -> int:
    """Different numbers; within one attempt, for those of all of them may be one number each."""
    return max((len({value for value in form.values(rows) if value is not None}) for rows in attempts), default=0)


JITTER = 2  # several processes of a host print the same steps, one a little later than the other


def begins_again(values: Sequence[int]) -> bool:
    """Whether numbers fall back, by more than processes that print side by side do."""
    seen: set[int] = set()
    for value in values:
        if not seen:
            first = top = value
        late = value in seen and top - value <= JITTER and not (value <= first and top >= first + JITTER)
        if value < top and not late:
            return True
        seen.add(value)
        top = max(top, value)
    return False


def trigger_at(step: int, line: str, found: StepLine, form: Form) -> Trigger | None:
    """Interrupt when this line is printed, whatever its other numbers are; None if the line alone does not tell the step, or
    is a progress bar, which shows other steps each time."""
    if not set(form.around) <= set(found.spans) or any(text.startswith(BAR_AROUND) for text in form.around):
        return None
    told = sorted(found.spans[text] for text in form.around)
    end = min(len(line), told[-1][1] + AFTER_CHARACTERS)
    pattern, at = "^", 0
    for match in NUMBER.finditer(line, 0, end):
        begin, stop = match.span()
        own = next(((low, high) for low, high in told if low < stop and begin < high), None)
        if own is not None:
            begin, stop = own
        if begin < at:
            continue
        pattern += re.escape(line[at:begin])
        pattern += rf"(?<!\d){re.escape(line[begin:stop])}(?!\d)" if own else r"[-+.\w]+"
        at = stop
    return Trigger(log=pattern, label=f"step {step}")
