"""The walk of a drift alert: one turn of the judge that raises it, and the sending to a webhook.

A server and a receiver run on this machine. A day of sums as the shadow worker writes them teaches the
judge its baseline; then the OOD mean drops, and the turn that pages is the one that is recorded.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.alerts import AlertSettings, apply
from ops.alerts.config import AlertsConfig, Sinks
from ops.alerts.secret import Secret
from ops.alerts.sender import Sender
from ops.alerts.sinks.services import Webhook
from ops.drift.loop import Judge
from ops.drift.settings import JudgeSettings
from ops.local.server import Server, ServerSettings
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.connection import connect
from workers.shadow.scores import MILLION, TARGET_INPUT, Labels

if TYPE_CHECKING:
    from tests.walk import Recorder, Walk

KEYS, MODEL = Keys("main"), "amn@walk"
START_MIN, DAY_MIN, STEP_MIN = 29_900_160, 24 * 60 + 15, 5
#: Requests a minute by slice that were sampled at 1 in 20, and their mean cosine before the drop.
OOD, ID, ONE_IN, DROP = (14, 0.6), (26, 0.5), 20, 0.15


def sums(drop: float, model: str = MODEL) -> dict[str, int]:
    """One minute of sampled and scored traffic of this model."""
    found = {}
    for name, (n, mean) in (("ood", (OOD[0], OOD[1] - drop)), ("id", ID)):
        total, squares = n * mean * MILLION, n * (mean**2 + 0.0225) * MILLION
        stats = {"predictions": n, "predictions.wsum": n * ONE_IN, "n": n, "w.sum": n * ONE_IN}
        stats |= {"w.squares": n * ONE_IN**2, "amn.sum": round(total), "amn.wsum": round(total * ONE_IN)}
        stats |= {"amn.squares": round(squares), "amn.wsquares": round(squares * ONE_IN), "h160": n}
        found |= {Labels(model, "general", name).field(stat): amount for stat, amount in stats.items()}
    inputs = Labels(model, "all", "all", TARGET_INPUT)
    return found | {inputs.field(stat): 40 * ONE_IN for stat in ("s40", "c3")} | {inputs.field("n"): 40}


@contextmanager
def receiver() -> Iterator[tuple[str, list[bytes]]]:
    """A webhook's other side on a loopback port: its address and the bodies that it accepted."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", bodies
        server.shutdown()
        thread.join()


def alert_walk(recorder: Recorder, folder: Path) -> Walk:
    """The walk of the first page after the drop.

    Raises:
        RuntimeError: Nobody was paged within three hours.
    """
    with Server(ServerSettings(data=folder)) as server, receiver() as (url, bodies):
        client = connect(ProducerSettings(url=server.url))
        key = Secret(base64.b64encode(bytes(32)).decode())
        sink = Webhook(name="hook", url=url, keys=(key,), severities=("page",))
        config, minute = AlertsConfig(settings=AlertSettings(), sinks={"hook": sink}), START_MIN

        def tell(findings: Any, now_ms: int, fence: int) -> None:
            apply(client, KEYS, findings, now_ms=now_ms, fence=fence)

        judge = Judge(client, KEYS, JudgeSettings(), tell)
        sender = Sender(client, KEYS, Sinks(lambda: config), clock=lambda: minute * 60_000)
        for length, drop in ((DAY_MIN, 0.0), *[(STEP_MIN, DROP)] * 36):
            with client.pipeline(transaction=False) as pipe:
                for one in range(minute, minute + length):
                    pipe.hset(f"{KEYS.drift_minute_prefix}{one}", mapping=sums(drop))
                    pipe.zadd(KEYS.drift_minutes, {str(one): one})
                pipe.execute()
            minute += length
            with recorder.recording("judge") as walk:
                judge.turn(minute * 60_000)
                sender.tick()
            if bodies:
                return walk
    raise RuntimeError("nobody was paged within three hours of the drop")
