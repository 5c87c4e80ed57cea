"""The usual mistakes of checkpointing code: each with what shows it, and how to cure it. Pure functions of the evidence."""

import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from optml.checkpoints import CLOSED_SECONDS
from optml.console import count_text, duration_text
from optml.drills.costs import BEFORE_ALL, BEFORE_SAVE, InterruptionCost
from optml.drills.evidence import AttemptEvidence, Evidence
from optml.drills.full_disk import full_disks
from optml.drills.results import Jump
from optml.drills.saves import HEARD_SECONDS, FirstSave, first_save, has_checkpoint, never_kept, on_the_way, unnumbered
from optml.spec import InterruptionPlan, TrainingJob

# What loading half a file says, in the words of json, pickle, torch, numpy, safetensors, HDF5, zip, XGBoost.
TORN = re.compile(
    r"EOFError|UnpicklingError|JSONDecodeError|Ran out of input|invalid load key|unexpected (EOF|end)|BadZipFile|"
    r"PytorchStreamReader|central directory|truncated|Truncated|SafetensorError|HeaderTooLarge|corrupt|"
    r"Unable to (synchronously )?open file|pickle data was truncated|Expecting value|Unterminated string",
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`fatal`: by itself it keeps the job from surviving."""

    kind: str
    title: str
    evidence: str
    cure: str
    fatal: bool = True


def diagnose(
    job: TrainingJob,
    baseline: Evidence,
    disturbed: Evidence,
    found: Sequence[InterruptionCost],
    jump: Jump | None,
    *,
    plan: InterruptionPlan | None = None,
) -> tuple[Finding, ...]:
    """The gravest first."""
    first = first_save(baseline, disturbed)
    findings = [
        *_no_space(disturbed),
        *_never_whole(job, disturbed, found, first),
        *_nothing_saved(job, disturbed),
        *(link := list(_link_not_kept(disturbed, found))),
        *([] if link else _never_read(job, disturbed, found, first)),
        *_saved_at_the_end(disturbed, found, first),
        *_older_read(disturbed, found),
        *_never_opened(job, disturbed, found),
        *_torn(disturbed),
        *_one_rank(disturbed, found),
        *_state_missing(found, jump),
        *_notices(job, disturbed, found),
        *_no_time_for_a_step(baseline, disturbed, found, plan),
        *_no_time_to_save(disturbed, found, first, plan),
        *_too_long(job, baseline, disturbed),
        *_could_not_start_again(disturbed),
    ]
    kinds: set[str] = set()
    unique = [each for each in findings if not (each.kind in kinds or kinds.add(each.kind))]  # type: ignore[func-returns-value]
    return tuple(sorted(unique, key=lambda each: not each.fatal))


def _no_space(disturbed: Evidence) -> Iterator[Finding]:
    """What became of a disk that was full: the program died of it, or left half a file."""
    for disk in full_disks(disturbed):
        when = (
            f"the disk of {disk.host}'s checkpoints was full from second {disk.began_seconds:.1f} of training on, for "
            f"{disk.seconds:.1f} s"
        )
        if disk.ended_seconds is not None:
            attempt = _attempt(disturbed, disk.attempt)
            assert attempt is not None
            words = disk.said or next(
                (line.strip() for line in reversed(attempt.log_tail.get(disk.host, ()))), "nothing"
            )
            stands = (
                f"{disk.last_before} from before is in the store" if disk.last_before else "nothing is in the store"
            )
            yield Finding(
                kind="no space left",
                title="The program ends when there is no space left to save",
                evidence=f"{when}; after {disk.ended_seconds:.1f} s of that the program ended with exit code {disk.exit_code} "
                f"and said: {words[:200]}; {stands}",
                cure="where it saves, catch the error (OSError, errno ENOSPC), remove what was written in part, and go on: "
                "training needs no checkpoint now, and the next one may find room; keep only the newest few",
            )
        if disk.torn:
            yield Finding(
                kind="torn by a full disk",
                title="With no space left, half a checkpoint is left under its final name",
                evidence=f"{when}; meanwhile a file arrived in the store that is smaller than it should be: {disk.torn}"
                + ("" if disk.torn_stands else "; a later one took its place"),
                cure="write to another name beside it, close it, then rename it (os.replace): what is not whole then never "
                "has the final name; and keep the one before",
                fatal=disk.torn_stands,
            )


def _ended_well(attempt: AttemptEvidence) -> bool:
    """Its programs ended by themselves, with exit code 0."""
    return bool(attempt.exits) and not attempt.killed_at and all(code == 0 for _, code in attempt.exits.values())


def _saved(job: Evidence) -> list[str]:
    return sorted({saved.path for attempt in job.attempts for saved in attempt.saved})


def _nothing_saved(job: TrainingJob, disturbed: Evidence) -> Iterator[Finding]:
    if (
        not disturbed.interruptions
        or _saved(disturbed)
        or any(attempt.restored_count for attempt in disturbed.attempts)
    ):
        return
    elsewhere = sorted({path for attempt in disturbed.attempts for path in attempt.elsewhere})
    at_notice = [
        attempt
        for attempt in disturbed.interruptions
        if attempt.signalled_at and attempt.elsewhere and _ended_well(attempt)
    ]
    left_out = sorted({path for attempt in disturbed.attempts for _, path in attempt.left_out})
    if not left_out and any(attempt.unsettled for attempt in disturbed.interruptions):
        return  # something was written: see _never_whole and _no_time_to_save
    folder = job.checkpoint.local_path if job.checkpoint is not None else "/opt/ml/checkpoints"
    if left_out:
        yield Finding(
            kind="save longer than the grace",
            title="No checkpoint was ever whole: each was still being written when its machine went",
            evidence=f"being written when the machine went: {_few(left_out)}; nothing else arrived in the store",
            cure="save while training goes on, and save less or faster: what is started at the notice must end within it",
        )
    elif elsewhere:
        yield Finding(
            kind="written elsewhere",
            title="Checkpoints are written where they are lost with the machine",
            evidence=f"nothing was written to {folder}, but these look like checkpoints: {_few(elsewhere)}"
            + ("; SIGTERM was heard (exit code 0)" if at_notice else ""),
            cure=f"write them to {folder}: only that folder is kept and given to the next machine"
            + ("" if job.checkpoint else "; and give the job a CheckpointConfig (--checkpoint)"),
        )
    elif job.checkpoint is None:
        yield Finding(
            kind="no checkpoint",
            title="The job has no checkpoints",
            evidence="the request has no CheckpointConfig, so nothing outlives a machine",
            cure="add CheckpointConfig (--checkpoint FOLDER), save to /opt/ml/checkpoints now and then, and load the newest at "
            "start",
        )
    else:
        yield Finding(
            kind="no checkpoint",
            title="No checkpoint is written",
            evidence=f"in {len(disturbed.attempts)} attempts not one file arrived in the store from {folder}",
            cure=f"save the state of training to {folder} now and then, and when SIGTERM comes",
        )


def _never_whole(
    job: TrainingJob, disturbed: Evidence, found: Sequence[InterruptionCost], first: FirstSave | None
) -> Iterator[Finding]:
    """Checkpoints are written, and none of them could be taken: their file is open, or another, whenever somebody looks."""
    for cost in found:
        attempt = _attempt(disturbed, cost.attempt)
        following = _attempt(disturbed, cost.attempt + 1)
        if attempt is None or job.checkpoint is None or cost.untested or not (often := never_kept(attempt, first)):
            continue
        if attempt.saved or (following is not None and following.restored_count) or attempt.left_out:
            continue
        worst = max(often, key=lambda each: each.open_count + each.closed_count)
        seen = count_text(worst.open_count + worst.closed_count, "time")
        where = f"{job.checkpoint.local_path}/{worst.path}"
        if worst.open_count >= worst.closed_count:
            yield Finding(
                kind="never closed",
                title="Checkpoints are written into one file that is hardly ever closed, so none could be kept",
                evidence=f"in attempt {attempt.number}, {where} was seen to have changed {seen}, {worst.open_count} of them open "
                f"for writing, and none known to be whole; nothing was in the store at interruption {cost.number}",
                cure="write to another name beside it, close it, then rename it (os.replace), and not all the time: what is open "
                "may be half written, and is taken by nobody",
            )
        else:
            yield Finding(
                kind="replaced too fast",
                title="Checkpoints are replaced before they could be kept",
                evidence=f"in attempt {attempt.number}, {where} was seen to have changed {seen}, each time before it had stood "
                f"for {CLOSED_SECONDS:g} s; nothing was in the store at interruption {cost.number}",
                cure="save less often, so that a checkpoint stands for a second, or under names with a number in them, and "
                "remove the oldest",
            )
        return


def _link_not_kept(disturbed: Evidence, found: Sequence[InterruptionCost]) -> Iterator[Finding]:
    """A program that goes by a link to a folder finds no checkpoint, though all of its files are there."""
    for cost in found:
        attempt, following = _attempt(disturbed, cost.attempt), _attempt(disturbed, cost.resumed_attempt)
        if attempt is None or following is None or not attempt.links or following.read or cost.untested:
            continue
        if cost.from_zero and following.restored_count:
            yield Finding(
                kind="link not kept",
                title="The link that leads to the newest checkpoint is not kept, for a store has no links to folders",
                evidence=f"attempt {attempt.number} had {_few(attempt.links)}; attempt {following.number} found "
                f"{count_text(following.restored_count, 'restored file')}, not that link, and began with step {cost.next_step}, "
                f"although step {cost.last_step} had been reached",
                cure="write the name of the newest checkpoint into a file (and rename that into place), or look for the newest "
                "folder at start; a link to a file is kept, as a copy of the file",
            )
            return


def _saved_at_the_end(
    disturbed: Evidence, found: Sequence[InterruptionCost], first: FirstSave | None
) -> Iterator[Finding]:
    """A checkpoint arrives, and not before all the work is done."""
    last = disturbed.attempts[-1]
    if (
        first is not None
        or not last.saved
        or any(attempt.unsettled or attempt.left_out for attempt in disturbed.interruptions)
    ):
        return
    zeros = [cost for cost in found if cost.from_zero and not cost.untested]
    if not zeros or last.why != "finished" or any(attempt.saved for attempt in disturbed.interruptions):
        return
    yield Finding(
        kind="saved at the end",
        title="A checkpoint is written only when the work is done",
        evidence=f"nothing was in the store at interruption {zeros[0].number}, after step {zeros[0].last_step}; the first file, "
        f"{min(last.saved, key=lambda saved: saved.written_at).path}, was written after the last step",
        cure="save now and then while training goes on, and when SIGTERM comes",
    )


def _never_opened(job: TrainingJob, disturbed: Evidence, found: Sequence[InterruptionCost]) -> Iterator[Finding]:
    """Of a job whose steps nobody knows: it did not look at what was restored."""
    for cost in found:
        following = _attempt(disturbed, cost.attempt + 1)
        if following is None or job.checkpoint is None or cost.steps_seen:
            continue
        if following.why != "finished":
            continue
        if following.restored_count and following.reads_known and following.unread and not following.read:
            yield Finding(
                kind="never opened",
                title="Restored checkpoints were not opened, so the job may have begun again at zero",
                evidence=f"attempt {following.number} found {count_text(following.restored_count, 'restored file')} in "
                f"{job.checkpoint.local_path} and was not seen to read any; it prints no steps that would tell more",
                cure=f"at start, look into {job.checkpoint.local_path}; if there is a checkpoint, load the newest and go on from "
                "it; and print the number of each step",
                fatal=False,
            )
            return


def _older_read(disturbed: Evidence, found: Sequence[InterruptionCost]) -> Iterator[Finding]:
    """Several checkpoints were restored; one that is not the newest was read, and the newest was not."""
    for cost in found:
        following = _attempt(disturbed, cost.resumed_attempt)
        if following is None or not following.read or cost.from_zero or not cost.steps_lost or cost.last_step is None:
            continue
        if following.number != cost.attempt + 1 or len(disturbed.hosts) > 1:
            continue
        written = {saved.path: saved for attempt in disturbed.attempts[: cost.attempt] for saved in attempt.saved}
        for old in sorted(set(following.read) & written.keys()):
            alike = [path for path in written if unnumbered(path) == unnumbered(old) and path in following.unread]
            newest = max(alike, key=lambda path: written[path].written_at, default=None)
            if newest is None or written[newest].written_at <= written[old].written_at:
                continue
            if any(unnumbered(path) == unnumbered(old) and path != old for path in following.read):
                continue  # it looked at several
            reached = [
                step for each in disturbed.attempts for at, _, step in each.steps if at <= written[newest].written_at
            ]
            if cost.next_step is None or cost.next_step > max(reached, default=-1):
                continue  # the newest is another part of what was read
            yield Finding(
                kind="older checkpoint",
                title="The job goes on from an older checkpoint than the newest",
                evidence=f"attempt {following.number} found {newest} and {old}, read {old} alone, and went on with step "
                f"{cost.next_step}, although step {cost.last_step} had been reached",
                cure="choose the newest by the number in its name, as a number (as text, checkpoint-90 comes after "
                "checkpoint-100), and take an older one only where the newest is not whole",
                fatal=False,
            )
            return


def _never_read(
    job: TrainingJob, disturbed: Evidence, found: Sequence[InterruptionCost], first: FirstSave | None
) -> Iterator[Finding]:
    """Restored, and yet the job began with its first step."""
    # That a file was read is known for certain, that it was not may be wrong (it was replaced meanwhile): the former first.
    for cost in sorted(found, key=lambda each: not _read_after(disturbed, each)):
        following = _attempt(disturbed, cost.resumed_attempt)
        if following is None or not cost.from_zero or not following.restored_count or cost.untested:
            continue
        if first is not None and not has_checkpoint(disturbed, following.number - 2, first):
            continue  # there are files, and no checkpoint among them
        if len(disturbed.hosts) > 1 and not all(
            following.first_step_of(host) == cost.next_step for host in disturbed.hosts if following.first_step_of(host)
        ):
            continue  # some hosts went on: see _one_rank
        assert job.checkpoint is not None
        if following.read:
            yield Finding(
                kind="read but not used",
                title="A checkpoint is read at start, and training begins with the first step all the same",
                evidence=f"attempt {following.number} read {_few(following.read)} and then printed step {cost.next_step}, "
                f"although step {cost.last_step} had been reached",
                cure="restore the number of the step with the rest of the state, and begin the loop there",
            )
        else:
            how = "and none was opened" if following.reads_known else "and none had an effect"
            yield Finding(
                kind="never read",
                title="Checkpoints are written but never read at start",
                evidence=f"attempt {following.number} found {count_text(following.restored_count, 'restored file')} in "
                f"{job.checkpoint.local_path}, {how}: it began with step {cost.next_step}, although step {cost.last_step} had "
                "been reached",
                cure=f"at start, look into {job.checkpoint.local_path}; if there is a checkpoint, load the newest and go on "
                "from it",
            )
        return


def _read_after(disturbed: Evidence, cost: InterruptionCost) -> bool:
    following = _attempt(disturbed, cost.resumed_attempt)
    return following is not None and bool(following.read)


def _torn(disturbed: Evidence) -> Iterator[Finding]:
    for attempt in disturbed.attempts[1:]:
        failed = [host for host, (_, code) in attempt.exits.items() if code != 0]
        if attempt.why != "failed" or not attempt.restored_count or not failed:
            continue
        lines = [line for host in failed for line in attempt.log_tail.get(host, ())]
        said = next((line.strip() for line in reversed(lines) if TORN.search(line)), None)
        if said is None:
            continue
        yield Finding(
            kind="torn file",
            title="A checkpoint that was written only in part is loaded, and the job fails",
            evidence=f"attempt {attempt.number} read {_few(attempt.read or attempt.unread)} and failed with: {said[:200]}",
            cure="write to another name beside it, close it, then rename it (os.replace): a file under its final name is whole; "
            "and keep the one before, to fall back on",
        )


def _one_rank(disturbed: Evidence, found: Sequence[InterruptionCost]) -> Iterator[Finding]:
    """Several hosts: some go on, others begin again, or the loss of some does not continue."""
    if len(disturbed.hosts) < 2:
        return
    savers = sorted({saved.host for attempt in disturbed.attempts for saved in attempt.saved})
    for cost in found:
        before, after = _attempt(disturbed, cost.attempt), _attempt(disturbed, cost.resumed_attempt)
        if before is None or after is None:
            continue
        firsts = {host: after.first_step_of(host) for host in disturbed.hosts}
        zeros = {host: before.first_step_of(host) for host in disturbed.hosts}
        known = [host for host in disturbed.hosts if firsts[host] is not None and zeros[host] is not None]
        behind = [host for host in known if _number(firsts[host]) <= _number(zeros[host])]
        ahead = [host for host in known if host not in behind]
        if (
            behind
            and ahead
            and max(_number(firsts[host]) for host in ahead) > max(_number(firsts[host]) for host in behind)
        ):
            yield Finding(
                kind="one rank",
                title="Only some hosts' state is saved",
                evidence=f"after interruption {cost.number}, {_few(ahead)} went on with step {firsts[ahead[0]]} and "
                f"{_few(behind)} began with step {firsts[behind[0]]}; files came from {_few(savers) or 'no host'}",
                cure="every host must save what only it has, under a name of its own (all share one folder), and all must load "
                "the same step",
            )
            return


def _state_missing(found: Sequence[InterruptionCost], jump: Jump | None) -> Iterator[Finding]:
    if jump is None:
        return
    before = [cost for cost in found if cost.resumed_attempt == jump.attempt]
    if not before or any(cost.from_zero for cost in before):
        return
    yield Finding(
        kind="state missing",
        title="The job goes on, but not from the same state: optimiser, random numbers or data position are not restored",
        evidence=f"attempt {jump.attempt} of the disturbed run: {jump.metric} at step {jump.step} is {jump.disturbed:.6g} where "
        f"the undisturbed run has {jump.baseline:.6g}; before the first interruption they were at most {jump.noise:.2g} apart",
        cure="save and restore, with the model: the optimiser (momentum and the like), the learning rate schedule, the states of "
        "random numbers, and the position in the data",
        fatal=False,
    )


def _notices(job: TrainingJob, disturbed: Evidence, found: Sequence[InterruptionCost]) -> Iterator[Finding]:
    """What became of the notices that were given."""
    wasted = [cost for cost in found if cost.notice == "wasted"]
    if not wasted:
        return
    cost = wasted[0]
    attempt = _attempt(disturbed, cost.attempt)
    assert attempt is not None
    assert attempt.interrupted_at is not None
    folder = "" if job.checkpoint is None else f" to {job.checkpoint.local_path}"
    killed = [host for host in attempt.killed_at if host in attempt.signalled_at]
    later = [
        step for at, host, step in attempt.steps if host in killed and at > attempt.signalled_at[host] + HEARD_SECONDS
    ]
    many = f"{len(wasted)} of {len(found)} interruptions"
    # Of a host that heard: one that went on with its steps was in the middle of any save, and others are torn down at once.
    torn = sorted({path for host, path in attempt.left_out if host in killed}) if len(set(later)) < 2 else []
    if torn:
        yield Finding(
            kind="save longer than the grace",
            title="Saving takes longer than the notice",
            evidence=f"{many}: {_few(torn)} was still being written when "
            f"{_few(killed)} was killed, {cost.notice_seconds:g} s after the notice",
            cure="save less or faster at the notice (the newest periodic checkpoint may do), or save in the background while "
            "training goes on",
            fatal=False,
        )
    elif killed:
        go_on = f", and went on with step {later[-1]}" if later else ""
        yield Finding(
            kind="SIGTERM not heard",
            title="SIGTERM never reaches the script, or is ignored",
            evidence=f"{many}: {_few(killed)} was sent SIGTERM{go_on} and had to be killed {cost.notice_seconds:g} s later",
            cure="handle SIGTERM in the training program; if a shell or a launcher starts it, let that exec it or pass "
            "the signal on",
            fatal=False,
        )
    elif cost.went_on_seconds is not None:
        yield Finding(
            kind="SIGTERM not heard",
            title="SIGTERM was not heard: the program went on with its work until it was done",
            evidence=f"{many}: the program went on for {cost.went_on_seconds:.1f} s after SIGTERM, until its last "
            f"step, {cost.last_step}; work that does not fit into {cost.notice_seconds:g} s would have been cut off",
            cure="handle SIGTERM in the training program; if a shell or a launcher starts it, let that exec it or pass "
            "the signal on",
            fatal=False,
        )
    else:
        codes = sorted({code for _, code in attempt.exits.values()})
        handled = codes == [0]
        if handled and not _saved(disturbed) and attempt.elsewhere:
            return  # it was used, and what it saved is not kept: see _nothing_saved
        yield Finding(
            kind="notice wasted",
            title="The notice is heard, and nothing is saved that is kept"
            if handled
            else "The notice is not used to save",
            evidence=f"{many}: the program ended {cost.programs_ended_seconds or 0:.1f} s after SIGTERM (exit code "
            f"{_few([str(code) for code in codes])}), and nothing {'arrived in the store' if handled else 'was saved'} from that "
            "time",
            cure=f"when SIGTERM comes, save a checkpoint{folder} before the program ends"
            if handled
            else "handle SIGTERM: save a checkpoint, then exit. Without a handler the program ends at once; so does one that "
            "has a handler where a shell or a launcher without one starts it: let that exec it (exec python train.py) or pass "
            "the signal on",
            fatal=False,
        )


def _no_time_for_a_step(
    baseline: Evidence, disturbed: Evidence, found: Sequence[InterruptionCost], plan: InterruptionPlan | None
) -> Iterator[Finding]:
    """Machines go before their first step: with such a plan the job would never end."""
    started = [
        attempt.first_step[0] - attempt.training_at
        for job in (baseline, disturbed)
        for attempt in job.attempts
        if attempt.first_step and attempt.training_at is not None
    ]
    early = [
        attempt.interrupted_at - attempt.training_at
        for attempt in disturbed.interruptions
        if not attempt.steps and attempt.training_at is not None and attempt.interrupted_at is not None
    ]
    periodic = plan is not None and (plan.every_seconds or plan.mean_seconds)
    if not started or not early or not (periodic or all(cost.untested == BEFORE_ALL for cost in found)):
        return
    stops = ""
    if plan is not None and periodic and plan.most is not None and len(found) >= plan.most:
        stops = f"; it ended only because the drill stops after {count_text(plan.most, 'interruption')}"
    needed = statistics.median(started)
    yield Finding(
        kind="no time for a step",
        title="The plan leaves no time for a step",
        evidence=f"{len(early)} of {count_text(len(found), 'interruption')} came before the first step of its attempt, after "
        f"{duration_text(statistics.median(early))} of training; the start takes {duration_text(needed)}{stops}",
        cure=f"interrupt less often: an attempt needs {duration_text(needed)} to start, and then time to do and save some steps; "
        "or start faster",
        fatal=False,
    )


def _no_time_to_save(
    disturbed: Evidence, found: Sequence[InterruptionCost], first: FirstSave | None, plan: InterruptionPlan | None
) -> Iterator[Finding]:
    """Machines go before their first checkpoint: if all do, a job would never end."""
    early = [cost for cost in found if cost.untested == BEFORE_SAVE]
    if not early or first is None:
        return
    latest = max(early, key=lambda cost: cost.last_step or 0)
    attempt = _attempt(disturbed, latest.attempt)
    assert attempt is not None
    assert attempt.interrupted_at is not None
    assert attempt.training_at is not None
    way = _few(on_the_way(attempt, first))
    # Machines that go at random last long enough now and then, unless most of them do not.
    way = _few(on_the_way(attempt, first))
    periodic = plan is not None and (plan.every_seconds or (plan.mean_seconds or math.inf) <= first.seconds)
    never = bool(periodic) and len(found) > 1 and all(cost.untested in (BEFORE_ALL, BEFORE_SAVE) for cost in found)
    yield Finding(
        kind="no time to save",
        title="Machines go before the first checkpoint",
        evidence=f"{len(early)} of {count_text(len(found), 'interruption')} came when nothing was saved yet, at the latest after "
        f"step {latest.last_step} and {duration_text(attempt.interrupted_at - attempt.training_at)} of training; the first "
        f"checkpoint is written after step {first.step} and in the store after {duration_text(first.seconds)}"
        + (f"; on the way there: {way}" if way else ""),
        cure=("save sooner and more often than machines go" if never else "interrupt later, or save sooner")
        + "; with a notice (--notice), a program that saves at SIGTERM loses nothing",
        fatal=never,
    )


def _too_long(job: TrainingJob, baseline: Evidence, disturbed: Evidence) -> Iterator[Finding]:
    limits = {"MaxWaitTimeExceeded": "MaxWaitTimeInSeconds", "MaxRuntimeExceeded": "MaxRuntimeInSeconds"}
    if (limit := limits.get(disturbed.secondary)) is None:
        return
    seconds = job.stopping.max_wait_seconds if "Wait" in limit else job.stopping.max_runtime_seconds
    needed = baseline.ended_at - baseline.created_at
    if not any(attempt.training_at for attempt in disturbed.attempts):
        yield Finding(
            kind="no machine",
            title="No machine ever came",
            evidence=f"the job waited for {disturbed.ended_at - disturbed.created_at:.0f} s, until {limit} ({seconds})",
            cure=f"with a --trace that has a machine before {seconds} s are over, or with a longer {limit}, there is "
            "something to test",
        )
        return
    waited = sum(until - since for since, until in disturbed.waits)
    yield Finding(
        kind="longer than allowed",
        title=f"With interruptions the job is longer than {limit} allows",
        evidence=f"{limit} is {seconds}; undisturbed, the job takes {needed:.0f} s; it was stopped after "
        f"{disturbed.ended_at - disturbed.created_at:.0f} s, {waited:.0f} s of them without a machine",
        cure=f"raise {limit}, or lose less: save more often, start faster",
    )


def _could_not_start_again(disturbed: Evidence) -> Iterator[Finding]:
    """It failed in a later attempt, for whatever reason."""
    last = disturbed.attempts[-1]
    if disturbed.status != "Failed" or len(disturbed.attempts) < 2:
        return
    failed = [host for host, (_, code) in last.exits.items() if code != 0]
    words = next(
        (line.strip() for host in failed for line in reversed(last.log_tail.get(host, ())) if line.strip()), ""
    )
    yield Finding(
        kind="fails after the restart",
        title="The job fails when it is started again",
        evidence=f"attempt {last.number}: {str(disturbed.describe.get('FailureReason', ''))[:300]}"
        + (f"; its last words: {words[:200]}" if words else ""),
        cure="see its log: what a second start finds is an empty disk, and /opt/ml/checkpoints as the first one left it",
    )


def _attempt(job: Evidence, number: int | None) -> AttemptEvidence | None:
    return next((attempt for attempt in job.attempts if attempt.number == number), None)


def _number(step: int | None) -> int:
    return -1 if step is None else step


def _few(names: Sequence[str], most: int = 4) -> str:
    text = ", ".join(names[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text
