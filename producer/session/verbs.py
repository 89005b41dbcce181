"""The verbs of every producer and the order of their steps, without I/O.

A verb is a generator. It yields each step as a function with its arguments; the face of the producer calls
it, or awaits it, and gives the verb the result or the error. A queue of partitions is several channels, of
which each request goes through one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from producer.errors import Cancelled, InvalidRequest, QueueError, ServerError, ServerUnavailable
from producer.options import Options
from producer.partitions import Spread, partition_queues
from producer.session.handle import BaseHandle
from producer.session.pending import Pending
from producer.session.requests import Outgoing
from producer.session.session import Session, id_of, watch
from producer.settings import ProducerSettings

T = TypeVar("T")
H = TypeVar("H", bound=BaseHandle)
B = TypeVar("B", bound=BaseHandle)
K = TypeVar("K", bound=BaseHandle)
#: Yields functions with their arguments, is given what comes of each, and returns a result.
Verb = Generator[tuple[Any, ...], Any, T]


class IOChannel(Protocol):
    """The I/O of one producer with the server of one queue; each method but `check_open` may be awaitable.

    Attributes:
        session: The state behind it.
        started: Whether `start` has ended.
    """

    session: Session
    started: bool

    def check_open(self) -> None:
        """Raises ProducerClosed when nothing may be sent from here."""
        ...

    def start(self) -> Any:
        """Checks the server, measures its clock, and starts the reply reader."""
        ...

    def send(self, requests: Sequence[Outgoing]) -> Any:
        """Runs lua/submit.lua; gives its statuses."""
        ...

    def cancel(self, request_id: str) -> Any:
        """Runs lua/cancel.lua; gives what it returns."""
        ...

    def report(self, request: BaseHandle | str, vector: Any) -> Any:
        """Sends a true vector; gives whether it may belong to a sample."""
        ...

    def close(self) -> Any:
        """Stops the reader and closes the connections."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Face(Generic[H, B]):
    """The parts of a producer that differ between threads and an event loop.

    Attributes:
        channel: Opens the I/O with one queue.
        pause: Waits for a number of seconds.
        together: Runs several verbs; gives each one's result or error, in order.
        handle, batch_handle: Classes of the handles.
    """

    channel: Callable[[ProducerSettings], IOChannel]
    pause: Callable[[float], Any]
    together: Callable[[Sequence[Verb[Any]]], Any]
    handle: type[H]
    batch_handle: type[B]


class Verbs(Generic[H, B]):
    """The verbs of one producer.

    Attributes:
        channels: One, or one for each partition.
        spread: Chooses the partition; None without partitions.
    """

    def __init__(
        self,
        settings: ProducerSettings,
        partitions: int | None,
        face: Face[H, B],
        cancel: Callable[[Any], Any],
    ) -> None:
        queues = [settings.queue] if partitions is None else partition_queues(settings.queue, partitions)
        self.channels = [face.channel(replace(settings, queue=queue)) for queue in queues]
        self.spread = None if partitions is None else Spread(partitions)
        self._face, self._settings, self._cancel = face, settings, cancel

    def start(self) -> Verb[None]:
        """Starts every channel; a partition that is away is tried again when it is needed."""
        if self.spread is None:
            yield (self.channels[0].start,)
            return
        outcomes = yield self._face.together, [_once(channel.start) for channel in self.channels]
        failed = [error for error in outcomes if error is not None]
        others = [error for error in failed if not isinstance(error, ServerError)]
        if others or len(failed) == len(self.channels):
            raise (others or failed)[0]

    def close(self) -> Verb[None]:
        """Closes every channel, also when one fails to."""
        here = [channel for channel in self.channels if not channel.session.elsewhere]
        if len(here) == 1:
            yield (here[0].close,)
            return
        # In the child of a fork there is nothing to close, and no event loop.
        outcomes = (yield self._face.together, [_once(channel.close) for channel in here]) if here else []
        for error in outcomes:
            if error is not None:
                raise error

    def submit(self, context: Any, options: Options, block: bool) -> Verb[H]:
        """Sends one context."""
        channel = self.channels[0] if self.spread is None else self._channel_for(options)
        if not channel.session.clock.known:
            yield from self._measure(channel)
        outgoing = channel.session.prepare_all([context], options)
        return (yield from self._submit_to(channel, outgoing, block, self._face.handle))[0]

    def submit_batch(self, contexts: Any, options: Options, block: bool) -> Verb[B]:
        """Sends many contexts as one request."""
        channel = self._channel_for(options)
        yield from self._measure(channel)
        outgoing = channel.session.prepare_batch(contexts, options)
        return (yield from self._submit_to(channel, [outgoing], block, self._face.batch_handle))[0]

    def submit_many(
        self, contexts: Sequence[Any], options: Sequence[Options] | Options, block: bool
    ) -> Verb[Any]:
        """Sends several contexts; each channel has its own part, and a wrong context refuses all."""
        if not isinstance(options, Options) and len(options) != len(contexts):
            raise InvalidRequest(f"{len(contexts)} contexts, but {len(options)} options; send one for each")
        if self.spread is None:
            [channel] = self.channels
            yield from self._measure(channel)
            outgoing = channel.session.prepare_all(contexts, options)
            return (yield from self._submit_to(channel, outgoing, block, self._face.handle))
        each = [options] * len(contexts) if isinstance(options, Options) else options
        parts: dict[int, list[int]] = {}
        for index, option in enumerate(each):
            parts.setdefault(self.spread.of(option.sequence, option.request_id), []).append(index)
        channels = {part: self.channels[part] for part in parts}
        yield self._face.together, [self._measure(channel) for channel in channels.values()]
        sent = []
        for part, indices in parts.items():
            chosen = [contexts[i] for i in indices], [each[i] for i in indices]
            outgoing = channels[part].session.prepare_all(*chosen)
            sent.append(self._submit_to(channels[part], outgoing, block, self._face.handle))
        outcomes = yield self._face.together, sent
        return _joined(list(parts.values()), outcomes)

    def submit_chunk(
        self, chunk: Sequence[tuple[int, Any]], options: Options, put: Callable[[Any], None]
    ) -> Verb[None]:
        """Sends numbered contexts; `(index, answer)` is put once each, now or when the answer comes."""
        channel = self._channel_for(options)
        indices, outgoing, refused = channel.session.prepare_each(chunk, options)
        for item in refused:
            put(item)
        self._note(channel, outgoing, streamed=True)
        try:
            accepted = list(enumerate((yield from self._accepted(channel, outgoing, block=True))))
        except QueueError as error:
            accepted = list(error.accepted)
            for i in set(range(len(indices))) - {i for i, _ in accepted}:
                put((indices[i], error))
        for i, answer in accepted:
            watch(answer, indices[i], put)

    def cancel(self, request: BaseHandle | str) -> Verb[bool]:
        """Takes a request back; gives whether that was in time."""
        request_id = id_of(request)
        channel = self._channel_of(request_id)
        if (yield from _twice(channel, channel.cancel, request_id)) != 1:
            return False
        channel.session.inflight.settle(request_id, Cancelled(f"request {request_id} was cancelled"))
        return True

    def report_truth(self, request: BaseHandle | str, vector: Any) -> Verb[bool]:
        """Sends a true vector; gives whether it may belong to a sample."""
        channel = self._channel_of(id_of(request))
        return bool((yield from _twice(channel, channel.report, request, vector)))

    def _submit_to(
        self, channel: IOChannel, outgoing: Sequence[Outgoing], block: bool, handle: type[K]
    ) -> Verb[list[K]]:
        """Takes the requests into the queue of a channel; gives their handles."""
        wait_ms, cancel = self._settings.result_timeout_ms, self._cancel
        if self.spread is not None:
            self._note(channel, outgoing)
        try:
            accepted = yield from self._accepted(channel, outgoing, block)
            return [handle(pending, wait_ms, cancel) for pending in accepted]
        except QueueError as error:
            error.accepted = [handle(pending, wait_ms, cancel) for _, pending in error.accepted]
            raise

    def _accepted(self, channel: IOChannel, outgoing: Sequence[Outgoing], block: bool) -> Verb[list[Pending]]:
        """Takes the requests into the queue, through refusals and outages; gives their pending answers."""
        submission = channel.session.submission(outgoing, block=block)
        try:
            while not submission.done:
                try:
                    channel.check_open()
                    if not channel.started:
                        yield (channel.start,)
                    requests = submission.next_requests()
                    statuses = (yield channel.send, requests) if requests else []
                    pause_ms = submission.landed(statuses)
                except ServerError as error:
                    pause_ms = submission.failed(error)
                if pause_ms:
                    yield self._face.pause, pause_ms / 1000
        except BaseException as error:
            submission.give_up(error)
            raise
        return submission.pending

    def _measure(self, channel: IOChannel) -> Verb[None]:
        """Starts, so that the first request too is stamped by the server's clock; an outage shows later."""
        if not channel.session.clock.known:
            with suppress(ServerError):
                yield (channel.start,)

    def _channel_for(self, options: Options) -> IOChannel:
        if self.spread is None:
            return self.channels[0]
        return self.channels[self.spread.of(options.sequence, options.request_id)]

    def _channel_of(self, request_id: str) -> IOChannel:
        return self.channels[0 if self.spread is None else self.spread.where(request_id)]

    def _note(self, channel: IOChannel, outgoing: Sequence[Outgoing], *, streamed: bool = False) -> None:
        if self.spread is not None:
            part = self.channels.index(channel)
            self.spread.note((item.id for item in outgoing), part, streamed=streamed)


def _once(step: Callable[[], Any]) -> Verb[Any]:
    return (yield (step,))


def _twice(channel: IOChannel, *step: Any) -> Verb[Any]:
    """A connection that broke while idle is noticed only by the next command on it."""
    channel.check_open()
    try:
        return (yield step)
    except ServerUnavailable:
        channel.check_open()  # it may have been closed meanwhile
        return (yield step)


def _joined(parts: Sequence[Sequence[int]], outcomes: Sequence[Any]) -> list[Any]:
    """The handles of all partitions in the order of the contexts.

    Raises:
        BaseException: The first partition's that failed; its `accepted` has those of whole ones first.
    """
    failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    whole = {
        index: handle
        for indices, outcome in zip(parts, outcomes, strict=True)
        if not isinstance(outcome, BaseException)
        for index, handle in zip(indices, outcome, strict=True)
    }
    found = [whole[index] for index in sorted(whole)]
    if failed:
        partly = [handle for error in failed for handle in getattr(error, "accepted", ())]
        if isinstance(failed[0], QueueError):
            failed[0].accepted = found + partly
        raise failed[0]
    return found
