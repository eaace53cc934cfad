"""The node's mind, one sentence at a time."""

from __future__ import annotations

from dataclasses import replace

from expert_node import effects as do
from expert_node import events as on
from expert_node.machine import MAX_OUTBOX, Machine
from expert_node.values import FinishedCommit, FinishedTask, TaskLease, TrainLease
from potluck.ids import NO_DIGEST, Digest, Fence, LineageId, TaskId

TRAIN = TrainLease(
    fence=Fence(7),
    term_ms=30_000,
    lineage=LineageId("L"),
    recipe_json="{}",
    segments_json="[]",
    profile_json="{}",
    head_step=0,
    head=NO_DIGEST,
    weights=NO_DIGEST,
    optimizer=NO_DIGEST,
    target_step=100,
    label="expert 0",
)
TASK = TaskLease(fence=Fence(8), term_ms=30_000, task=TaskId("T"), kind="score", params_json="{}", inputs=(), label="s")


def commit(entry: int, *, lineage: str = "L", fence: int = 7) -> FinishedCommit:
    return FinishedCommit(
        entry=entry,
        fence=Fence(fence),
        lineage=LineageId(lineage),
        parent=Digest(f"c{entry - 1}"),
        start_step=10 * (entry - 1),
        end_step=10 * entry,
        child=Digest(f"c{entry}"),
        weights=Digest("w"),
        optimizer=Digest("o"),
        figures={},
        files=(),
    )


RESULT = FinishedTask(entry=1, fence=Fence(8), task=TaskId("T"), blobs=(), figures={}, files=())


def asking() -> Machine:
    machine = Machine(first_request_id=100)
    assert machine.handle(on.SessionUp()) == [do.AskForLease(request_id=100)]
    return machine


def working(lease: TrainLease | TaskLease = TRAIN) -> Machine:
    machine = asking()
    assert machine.handle(on.GrantReceived(request_id=100, lease=lease)) == [do.FetchInputs(lease=lease)]
    machine.handle(on.InputsReady(fence=lease.fence))
    return machine


def test_it_asks_only_once_there_is_a_session() -> None:
    machine = Machine()
    assert machine.handle(on.Woken()) == []
    assert machine.handle(on.SessionUp()) == [do.AskForLease(request_id=1)]
    assert machine.handle(on.Woken()) == []


def test_a_wake_up_that_crosses_the_answer_nothing_is_not_lost() -> None:
    machine = asking()
    machine.handle(on.Woken())
    assert machine.handle(on.NothingReceived(request_id=100, reason="")) == [do.AskForLease(request_id=101)]
    assert machine.handle(on.NothingReceived(request_id=101, reason="")) == []


def test_an_unanswered_request_is_repeated_with_its_id() -> None:
    machine = asking()
    again = machine.handle(on.RequestFailed(verb="acquire", request_id=100))
    assert again == [do.AskForLease(request_id=100)]
    assert machine.handle(on.RequestFailed(verb="acquire", request_id=99)) == []


def test_an_answer_to_another_request_is_ignored() -> None:
    machine = asking()
    assert machine.handle(on.GrantReceived(request_id=99, lease=TRAIN)) == []
    assert machine.fence == 0


def test_inputs_are_fetched_before_the_worker_starts() -> None:
    machine = asking()
    machine.handle(on.GrantReceived(request_id=100, lease=TRAIN))
    assert (machine.fence, machine.activity) == (7, "fetching")
    assert machine.handle(on.InputsReady(fence=Fence(7))) == [do.StartTraining(lease=TRAIN)]
    assert machine.activity == "training"


def test_inputs_that_cannot_be_had_send_the_lease_back_with_the_reason() -> None:
    machine = asking()
    machine.handle(on.GrantReceived(request_id=100, lease=TRAIN))
    effects = machine.handle(on.InputsFailed(fence=Fence(7), error_id="data.digest-mismatch", message="m"))
    give = do.ReturnLease(request_id=100, fence=Fence(7), error_id="data.digest-mismatch", message="m")
    assert effects == [give]
    assert machine.handle(on.ReturnAnswered(request_id=100)) == [do.AskForLease(request_id=101)]


def test_a_commit_is_acknowledged_to_the_worker_and_delivered_while_it_trains_on() -> None:
    machine = working()
    effects = machine.handle(on.CheckpointWritten(commit=commit(1)))
    assert effects == [do.AckCheckpoint(fence=Fence(7), step=10), do.PutAndCommit(request_id=100, commit=commit(1))]
    machine.handle(on.CheckpointWritten(commit=commit(2)))
    answered = machine.handle(on.CommitAnswered(request_id=100, accepted=True))
    assert answered == [do.DropEntry(entry=1, reason=""), do.PutAndCommit(request_id=101, commit=commit(2))]


def test_training_goes_on_without_a_session_and_commits_wait_in_order() -> None:
    machine = working()
    machine.handle(on.SessionDown())
    for entry in (1, 2, 3):
        machine.handle(on.CheckpointWritten(commit=commit(entry)))
    machine.handle(on.WorkerDone(fence=Fence(7)))
    repeated = machine.handle(on.RequestFailed(verb="deliver", request_id=100))
    assert repeated == [do.PutAndCommit(request_id=100, commit=commit(1))]
    delivered = []
    for request_id in (100, 101, 102):
        effects = machine.handle(on.CommitAnswered(request_id=request_id, accepted=True))
        delivered += [e.entry for e in effects if isinstance(e, do.DropEntry)]
    assert delivered == [1, 2, 3]
    assert effects[-1] == do.ReturnLease(request_id=100, fence=Fence(7), error_id="", message="")


def test_blobs_the_store_lacks_are_put_again_under_the_same_request() -> None:
    machine = working()
    machine.handle(on.CheckpointWritten(commit=commit(1)))
    effects = machine.handle(on.CommitAnswered(request_id=100, accepted=False, missing=(Digest("w"),)))
    assert effects == [do.PutAndCommit(request_id=100, commit=commit(1), missing=(Digest("w"),))]


def test_a_refused_commit_drops_the_rest_of_its_lineage_and_the_lease_and_says_why() -> None:
    machine = Machine(first_request_id=100, outbox=[commit(1, lineage="other", fence=3)])
    machine.handle(on.SessionUp())
    machine.handle(on.CommitAnswered(request_id=100, accepted=True))
    machine.handle(on.GrantReceived(request_id=100, lease=TRAIN))
    machine.handle(on.InputsReady(fence=Fence(7)))
    for entry in (2, 3):
        machine.handle(on.CheckpointWritten(commit=commit(entry)))
    effects = machine.handle(on.CommitAnswered(request_id=101, accepted=False, reason="head has moved"))
    assert effects == [
        do.DropEntry(entry=2, reason="head has moved"),
        do.DropEntry(entry=3, reason="head has moved"),
        do.StopWorker(fence=Fence(7)),
    ]
    stopped = machine.handle(on.WorkerStopped(fence=Fence(7)))
    assert stopped == [do.ReturnLease(request_id=100, fence=Fence(7), error_id="", message="head has moved")]


def test_a_yield_stops_the_worker_and_the_node_asks_anew() -> None:
    machine = working()
    machine.handle(on.CheckpointWritten(commit=commit(1)))
    effects = machine.handle(on.CommitAnswered(request_id=100, accepted=True, yield_lease=True))
    assert effects == [do.DropEntry(entry=1, reason=""), do.StopWorker(fence=Fence(7))]
    assert machine.fence == 0
    assert machine.handle(on.WorkerStopped(fence=Fence(7))) == [do.AskForLease(request_id=101)]


def test_a_revoked_lease_stops_at_once_but_what_is_in_the_outbox_is_still_tried() -> None:
    machine = working()
    machine.handle(on.CheckpointWritten(commit=commit(1)))
    assert machine.handle(on.LeaseLost(fence=Fence(7), reason="lapsed")) == [do.StopWorker(fence=Fence(7))]
    assert machine.handle(on.WorkerStopped(fence=Fence(7))) == []
    effects = machine.handle(on.CommitAnswered(request_id=100, accepted=True))
    assert effects == [do.DropEntry(entry=1, reason=""), do.AskForLease(request_id=101)]


def test_losing_another_lease_changes_nothing() -> None:
    machine = working()
    assert machine.handle(on.LeaseLost(fence=Fence(6), reason="old")) == []
    assert machine.activity == "training"


def test_a_tasks_lease_is_held_until_its_result_is_answered_and_then_not_returned() -> None:
    machine = working(TASK)
    effects = machine.handle(on.TaskFinished(result=RESULT))
    assert effects == [do.PutAndComplete(request_id=100, result=RESULT)]
    assert machine.handle(on.WorkerDone(fence=Fence(8))) == []
    assert machine.fence == 8
    effects = machine.handle(on.TaskAnswered(request_id=100, accepted=True))
    assert effects == [do.DropEntry(entry=1, reason=""), do.AskForLease(request_id=101)]


def test_a_result_the_store_will_never_take_gives_the_lease_back_with_the_error() -> None:
    machine = working(TASK)
    machine.handle(on.TaskFinished(result=RESULT))
    machine.handle(on.WorkerDone(fence=Fence(8)))
    effects = machine.handle(on.DeliveryFailed(request_id=100, error_id="resource.quota", message="full"))
    give = do.ReturnLease(request_id=100, fence=Fence(8), error_id="resource.quota", message="full")
    assert effects == [do.DropEntry(entry=1, reason="full"), give]


def test_an_outbox_from_before_a_crash_is_delivered_before_a_lease_is_asked_for() -> None:
    machine = Machine(first_request_id=5, outbox=[commit(1), commit(2)])
    assert machine.handle(on.SessionUp()) == [do.PutAndCommit(request_id=5, commit=commit(1))]
    assert machine.handle(on.CommitAnswered(request_id=5, accepted=True))[-1] == do.PutAndCommit(
        request_id=6, commit=commit(2)
    )
    assert machine.handle(on.CommitAnswered(request_id=6, accepted=True))[-1] == do.AskForLease(request_id=5)


def test_a_full_outbox_holds_the_workers_acknowledgement_back() -> None:
    machine = working()
    machine.handle(on.SessionDown())
    last: list[do.Effect] = []
    for entry in range(1, MAX_OUTBOX + 1):
        last = machine.handle(on.CheckpointWritten(commit=commit(entry)))
    assert last == []
    effects = machine.handle(on.CommitAnswered(request_id=100, accepted=True))
    assert do.AckCheckpoint(fence=Fence(7), step=10 * MAX_OUTBOX) in effects


def test_a_node_that_leaves_stops_its_worker_gives_back_its_lease_and_exits() -> None:
    machine = working()
    assert machine.handle(on.StopRequested()) == [do.StopWorker(fence=Fence(7))]
    effects = machine.handle(on.WorkerStopped(fence=Fence(7)))
    assert effects == [do.ReturnLease(request_id=100, fence=Fence(7), error_id="", message="the node is leaving")]
    assert machine.handle(on.ReturnAnswered(request_id=100)) == [do.Exit()]
    assert machine.handle(on.SessionDown()) == []


def test_a_node_that_leaves_without_a_session_waits_for_its_worker_only() -> None:
    machine = working()
    machine.handle(on.SessionDown())
    machine.handle(on.CheckpointWritten(commit=commit(1)))
    assert machine.handle(on.StopRequested()) == [do.StopWorker(fence=Fence(7))]
    assert machine.handle(on.WorkerStopped(fence=Fence(7))) == [do.Exit()]
    assert machine.outbox == [commit(1)]


def test_a_lease_granted_to_a_node_that_is_leaving_goes_straight_back() -> None:
    machine = asking()
    assert machine.handle(on.StopRequested()) == []
    effects = machine.handle(on.GrantReceived(request_id=100, lease=TRAIN))
    assert [type(e) for e in effects] == [do.ReturnLease]


def test_a_draining_coordinator_is_not_asked_until_its_next_welcome() -> None:
    machine = working()
    machine.handle(on.Drained())
    machine.handle(on.CheckpointWritten(commit=replace(commit(1), end_step=100)))
    machine.handle(on.WorkerDone(fence=Fence(7)))
    effects = machine.handle(on.CommitAnswered(request_id=100, accepted=True, yield_lease=True))
    assert effects == [do.DropEntry(entry=1, reason="")]
    machine.handle(on.SessionDown())
    assert machine.handle(on.SessionUp()) == [do.AskForLease(request_id=101)]


def test_a_stop_that_crosses_the_end_of_the_work_is_not_waited_for() -> None:
    machine = working()
    machine.handle(on.LeaseLost(fence=Fence(7), reason="lapsed"))
    assert machine.handle(on.WorkerDone(fence=Fence(7))) == [do.AskForLease(request_id=101)]
    assert machine.handle(on.WorkerStopped(fence=Fence(7))) == []


def test_news_of_an_older_lease_changes_nothing() -> None:
    machine = working()
    for event in (
        on.WorkerStopped(fence=Fence(6)),
        on.WorkerFailed(fence=Fence(6), error_id="bug.worker", message=""),
        on.InputsReady(fence=Fence(6)),
    ):
        assert machine.handle(event) == []
    assert machine.activity == "training"
