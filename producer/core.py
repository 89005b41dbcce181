"""The verbs of every producer and the order of their steps; the faces in client.py and aio.py do the I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

from producer.errors import InvalidRequest, QueueError, ServerError
from producer.messages import Answer
from producer.options import Options
from producer.partitions import Spread, partition_queues
from producer.session.channel import Channel
from producer.session.handle import BaseHandle
from producer.session.requests import Outgoing, prepare, prepare_all, prepare_batches
from producer.session.tracing import CallSpans, RequestTraces, tracer
from producer.settings import ProducerSettings, settings_of
from producer.stages import StageHistogram, merged
from producer.transport.verbs import Verb

H = TypeVar("H", bound=BaseHandle)
B = TypeVar("B", bound=BaseHandle)


class Core(Generic[H, B]):
    """The part that the producers have in common.

    Attributes:
        settings: The settings that it was given; `queue` is the name without the partition.
        channels: The I/O with the queue, or with each partition in order.
    """

    #: These differ between threads and an event loop: the I/O with one queue, how to wait for some seconds,
    #: how to run several verbs, and the handles.
    _channel: Callable[[ProducerSettings], Any]
    _pause: Callable[[float], Any]
    _together: Callable[[Sequence[Verb[Any]]], Any]
    _handle: type[H]
    _batch_handle: type[B]
    #: Requests of a stream that go out together at most.
    _chunk_max = 64

    def __init__(
        self,
        url: str | None = None,
        *,
        settings: ProducerSettings | None = None,
        partitions: int | None = None,
    ) -> None:
        self.settings = settings = settings_of(url, settings)
        queues = [settings.queue] if partitions is None else partition_queues(settings.queue, partitions)
        self.channels: list[Channel] = [self._channel(replace(settings, queue=queue)) for queue in queues]
        self._spread = None if partitions is None else Spread(partitions)
        if (found := tracer("amn-producer")) is not None:
            RequestTraces(found, settings.queue).follow(self)

    @property
    def client_id(self) -> str:
        """The random name of this client and its reply stream; with partitions, of the first one."""
        return self.channels[0].client_id

    @property
    def in_flight(self) -> int:
        """Requests without their final answer."""
        return sum(len(channel.inflight) for channel in self.channels)

    @property
    def stray_replies(self) -> int:
        """Final answers that nobody waited for; 0 in a healthy system."""
        return sum(channel.inflight.stray for channel in self.channels)

    @property
    def stages(self) -> list[StageHistogram]:
        """The times that this producer counted itself; empty without `settings.stages`.

        `end_to_end` is from the submit to the handle's final answer, and `reply` its last part, since the
        answer lay on the server. The other parts are the workers' to count (`amn metrics`).
        """
        counted = (channel.inflight.times for channel in self.channels)
        found = [one for times in counted if times is not None for one in times.counts.histograms()]
        return merged(found, "stage", "kind", "level", "outcome")

    def _starting(self) -> Verb[None]:
        """Starts every channel; a partition that is away is tried again when it is needed."""
        outcomes = yield self._together, [channel.starting() for channel in self.channels]
        failed = [error for error in outcomes if error is not None]
        others = [error for error in failed if not isinstance(error, ServerError)]
        if others or len(failed) == len(self.channels):
            raise (others or failed)[0]

    def _closing(self) -> Verb[None]:
        """Closes every channel, also when one fails to; in the child of a fork there is nothing to close."""
        here = [channel for channel in self.channels if not channel.elsewhere]
        outcomes = (yield self._together, [channel.closing() for channel in here]) if here else []
        for error in outcomes:
            if error is not None:
                raise error

    def _submitting(
        self,
        contexts: Sequence[Any],
        options: Sequence[Options] | Options,
        block: bool,
        batched: bool = False,
        spans: CallSpans | None = None,
    ) -> Verb[list[Any]]:
        """Sends several contexts, or one batch, each to its partition; a wrong one refuses all."""
        if not isinstance(options, Options) and len(options) != len(contexts):
            raise InvalidRequest(f"{len(contexts)} contexts, but {len(options)} options; send one for each")
        count, spread = len(contexts), self._spread
        parts = {0: range(count)} if spread is None else spread.parts(options, count)
        channels = [self.channels[part] for part in parts]
        if not all(channel.clock.known for channel in channels):
            yield self._together, [channel.measuring() for channel in channels]
        make_handle: Any = partial(self._batch_handle if batched else self._handle, self)
        verbs = []
        for channel, (part, indices) in zip(channels, parts.items(), strict=True):
            own: Any = options if isinstance(options, Options) else [options[i] for i in indices]
            chosen, made = [contexts[i] for i in indices], prepare_batches if batched else prepare_all
            traces = () if spans is None else [spans.traceparents[i] for i in indices]
            outgoing = made(chosen, own, channel.client_id, channel.settings, channel.clock.now_ms(), traces)
            maker = make_handle if spans is None else spans.noted(outgoing, indices, make_handle)
            if spread is not None:
                spread.note([item.id for item in outgoing], part)
            verbs.append(channel.submitting(outgoing, maker, block, self._pause))
        if len(verbs) == 1:
            return (yield from verbs[0])
        return _joined(list(parts.values()), (yield self._together, verbs))

    def _streaming(
        self,
        options: Options,
        chunk: Sequence[tuple[int, Any]],
        put: Callable[[tuple[int, Any]], object],
        spans: CallSpans | None = None,
    ) -> Verb[None]:
        """Sends numbered contexts; `(index, answer)` is put once each, now or when the answer comes."""
        [part] = self._spread.parts(options, 1) if self._spread is not None else [0]
        channel = self.channels[part]
        outgoing: list[Outgoing] = []
        numbers: dict[str, int] = {}
        places: list[int] = []
        about = options, channel.client_id, channel.settings, channel.clock.now_ms()
        for place, (index, context) in enumerate(chunk):
            traces = () if spans is None else (spans.traceparents[place],)
            try:
                item = prepare(context, *about, traces)
            except QueueError as error:
                if spans is not None:
                    spans.end(place, error)
                put((index, error))
            else:
                outgoing.append(item)
                numbers[item.id] = index
                places.append(place)
        if self._spread is not None:
            self._spread.note([item.id for item in outgoing], part, streamed=True)

        def ended(handle: BaseHandle, outcome: Answer | QueueError) -> None:
            put((numbers.pop(handle.id), outcome))

        try:
            make_handle: Any = partial(self._handle, self, on_end=ended)
            if spans is not None:
                make_handle = spans.noted(outgoing, places, make_handle)
            yield from channel.submitting(outgoing, make_handle, True, self._pause)
        except QueueError as error:
            # The others that it raised for have ended by it, or are accepted.
            for request_id in set(numbers).difference(handle.id for handle in error.accepted):
                put((numbers.pop(request_id), error))

    def _cancelling(self, request: BaseHandle | str) -> Verb[bool]:
        """Takes a request back; gives whether that was in time."""
        request_id = request.id if isinstance(request, BaseHandle) else request
        return (yield from self._channel_of(request_id).cancelling(request_id))

    def _reporting(self, request: BaseHandle | str, vector: Any) -> Verb[bool]:
        """Sends a true vector; gives whether it may belong to a sample."""
        request_id, key = (
            (request.id, request.sample_key) if isinstance(request, BaseHandle) else (request, "")
        )
        return (yield from self._channel_of(request_id).reporting(request_id, key, vector))

    def _channel_of(self, request_id: str) -> Channel:
        return self.channels[0 if self._spread is None else self._spread.where(request_id)]


def _joined(parts: Sequence[Sequence[int]], outcomes: Sequence[Any]) -> list[Any]:
    """The handles of all partitions in the order of the contexts, or the error of the first that failed."""
    failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    whole = {
        index: handle
        for indices, outcome in zip(parts, outcomes, strict=True)
        if not isinstance(outcome, BaseException)
        for index, handle in zip(indices, outcome, strict=True)
    }
    found = [whole[index] for index in sorted(whole)]
    if not failed:
        return found
    if isinstance(failed[0], QueueError):
        failed[0].accepted = found + [one for error in failed for one in getattr(error, "accepted", ())]
    raise failed[0]
