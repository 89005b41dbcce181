"""Runs verbs: generators that yield each step of I/O as a function with its arguments.

A verb is given the result of each step, or its error. So the order of the steps is written once; threads call
the steps, and an event loop awaits them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Verb = Generator[tuple[Any, ...], Any, T]


def run(verb: Verb[T]) -> T:
    """Runs a verb whose steps are called."""
    try:
        step = next(verb)
        while True:
            try:
                found = step[0](*step[1:])
            except BaseException as error:
                step = verb.throw(error)
            else:
                step = verb.send(found)
    except StopIteration as ended:
        result: T = ended.value
        return result
    except BaseException:
        verb.close()  # an interrupt may have come between two of its steps
        raise


async def run_async(verb: Verb[T]) -> T:
    """Runs a verb whose steps are awaited."""
    try:
        step = next(verb)
        while True:
            try:
                found = await step[0](*step[1:])
            except BaseException as error:
                step = verb.throw(error)
            else:
                step = verb.send(found)
    except StopIteration as ended:
        result: T = ended.value
        return result
    except BaseException:
        verb.close()
        raise


def together(verbs: Sequence[Verb[Any]]) -> list[Any]:
    """Runs verbs one after another; the result or the error of each."""
    outcomes: list[Any] = []
    for verb in verbs:
        try:
            outcomes.append(run(verb))
        except Exception as error:
            outcomes.append(error)
    return outcomes


async def together_async(verbs: Sequence[Verb[Any]]) -> list[Any]:
    """Runs verbs at the same time; the result or the error of each."""
    return await asyncio.gather(*map(run_async, verbs), return_exceptions=True)
