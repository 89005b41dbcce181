"""A service that asks for predictions: Starlette and `AsyncProducer`, one of them for the whole process.

    uvicorn --app-dir examples service:app --port 8001
    curl http://127.0.0.1:8001/next -H 'Content-Type: application/json' -d @context.json

Within the deadline, a caller gets an answer, or an error that says whether to try again. Where you need HTTP
and no code of your own, start `amn gateway` instead (docs/gateway.md).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from producer import AsyncProducer, QueueError

DEADLINE_MS = 2_000
#: Statuses of errors; every other one that may be repeated is 503, and every other one that may not is 400.
STATUS = {"queue_full": 429, "deadline_exceeded": 504, "result_timeout": 504, "inference_failed": 500}


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Open the producer when the service starts, in the event loop that will use it."""
    async with AsyncProducer() as producer:
        app.state.producer = producer
        yield


async def predict_next(request: Request) -> JSONResponse:
    """Answer `{"context": [[...], ...], "lane": "code-api"}` with the predicted vector."""
    try:
        body = await request.json()
        context, lane = body["context"], body.get("lane", "general")
    except (ValueError, KeyError, TypeError, AttributeError):
        return JSONResponse({"error": "send JSON with the field 'context', five lists of 768 numbers"}, 400)
    reply = await request.app.state.producer.predict(
        context, lane=lane, normalize=True, deadline_ms=DEADLINE_MS
    )
    return JSONResponse(
        {
            "vector": reply.vector.tolist(),
            "confidence": round(reply.confidence, 4),
            "served_by": reply.served_by,
        }
    )


async def failed(_: Request, error: Exception) -> JSONResponse:
    """Turn an error of the queue into a status, with the text that says what to do."""
    assert isinstance(error, QueueError)
    status = STATUS.get(error.code, 503 if error.retryable else 400)
    return JSONResponse(
        {"error": str(error), "code": error.code, "retryable": error.retryable}, status_code=status
    )


app = Starlette(
    routes=[Route("/next", predict_next, methods=["POST"])],
    exception_handlers={QueueError: failed},
    lifespan=lifespan,
)
