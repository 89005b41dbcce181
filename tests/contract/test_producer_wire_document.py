"""docs/wire.md is enough: a client written from it alone, and its tables, agree with the code."""

from __future__ import annotations

import hashlib
import re
import secrets
import struct
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path

import msgpack
from echo import EchoWorker
from golden.kit import KIT

from producer import errors
from producer.keys import Keys
from producer.messages import LANES
from producer.protocol.tables import tables
from producer.protocol.wire import decode_request
from producer.sampling import sampled
from producer.transport import connection
from producer.transport.library import library, scripts

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "wire.md").read_text("utf-8")
SUBMIT = (ROOT / "producer" / "lua" / "submit.lua").read_text("utf-8")
#: `redis-cli -x COMMAND ...` at a URL: standard input is the last argument.
REDIS_CLI = """
import sys, redis
url, option, *words = sys.argv[1:]
assert option == "-x"
print(*redis.Redis.from_url(url).execute_command(*words, sys.stdin.buffer.read()))
"""
#: In the place of a default, of a field that must be there.
NONE = "\N{EN DASH}"
UNIT = struct.pack("<768f", 1.0, *[0.0] * 767)


def submit(client, request: dict, level: int = 2) -> list[int]:
    streams = ("requests:high", "requests", "requests:low")
    keys = [f"amn:{{main}}:{name}" for name in (*streams, *(f"bytes:{s}" for s in streams), "stats")]
    limits = (100000, 2147483648, 60000, "amn:{main}:seen:")
    one = (request["id"], level, "-", msgpack.packb(request))
    return client.eval(SUBMIT, 7, *keys, *limits, request["reply_to"], *one)


def request() -> dict:
    return {
        "version": 1,
        "id": secrets.token_hex(16),
        "reply_to": secrets.token_hex(8),
        "dtype": "f4",
        "shape": [5, 768],
        "context": UNIT * 5,
        "encoder": "all-mpnet-base-v2/mean/l2",
    }


def test_the_bytes_of_the_document_are_the_beginning_of_a_request():
    lines = re.findall(r"^    ((?:[0-9a-f]{2} {1,2})*[0-9a-f]{2})(?:  .*)?$", TEXT, re.MULTILINE)
    message = bytes.fromhex("".join(lines)) + UNIT * 5
    assert msgpack.unpackb(message) == request() | {"id": "my-1", "reply_to": "me-1"}
    assert decode_request(message).id == "my-1"


def test_a_client_written_from_the_document_alone_gets_its_answer(server):
    message = request()
    with EchoWorker(server.url):
        assert submit(server.admin, message) == [1]
        assert submit(server.admin, message) == [1]
        assert submit(server.admin, message | {"reply_to": "other"}, level=1) == [0]
        replies = f"amn:{{main}}:replies:{message['reply_to']}"
        ((_, [(entry_id, fields)]),) = server.admin.xread({replies: "0-0"}, count=512, block=5000)
        server.admin.xdel(replies, entry_id)
        assert server.admin.xlen(replies) == 0
    reply = msgpack.unpackb(fields[b"reply"])
    assert (reply["version"], reply["status"], reply["id"]) == (1, "answered", message["id"])
    assert reply["vector"] == UNIT


def test_the_example_for_the_command_line_works(real_server, tmp_path):
    message = request() | {"id": "my-id-1", "reply_to": "team-a.me"}
    (tmp_path / "request.bin").write_bytes(msgpack.packb(message))
    # The shell reads the example as it stands; what redis-cli would send is sent by its stand-in.
    loaded = re.search(r"redis-cli -x SCRIPT LOAD < \S+\.lua", TEXT).group()
    example = re.search(r"    q='amn.*\n    redis-cli -x EVALSHA.*\\\n.*\\\n.*request\.bin", TEXT).group()
    stand_in = f"redis-cli() {{ '{sys.executable}' -c '{REDIS_CLI}' '{real_server.url}' \"$@\"; }}\n"
    script = f"{stand_in}{loaded} > /dev/null\n" + example.replace(
        "request.bin", str(tmp_path / "request.bin")
    )
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "1", done
    with EchoWorker(real_server.url):
        assert real_server.admin.xread({"amn:{main}:replies:team-a.me": 0}, block=5000)


def test_the_document_names_every_code_lane_key_and_word_of_the_server():
    for code in set(errors.BY_CODE) - {"queue_error", "wire_error"}:
        assert f"`{code}`" in TEXT, code
    for lane in LANES:
        assert f"`{lane}`" in TEXT, lane
    for words in (*connection._PASSING, *connection._DENIED):
        assert f"`{words.strip()}`" in TEXT, words
    keys = Keys("main")
    for name in (*keys.places, keys.shadow, keys.dead, keys.stats, keys.standing):
        assert f"`{name}`" in TEXT, name


def test_a_client_may_choose_its_truths_by_bytes_alone():
    threshold = bytes.fromhex(re.search(r"`?sampled = hash < threshold.*: ((\w\w ){7})at 5 %", TEXT).group(1))
    for n in range(2000):
        digest = blake2b(f"doc#{n}".encode(), digest_size=7, key=b"amn").digest()
        assert (digest < threshold) == sampled(f"doc#{n}", 0.05)
    assert threshold == int(0.05 * 2**56).to_bytes(7)


def test_the_document_shows_the_sampling_vectors():
    for row in KIT["sampling"]:
        one, five = ("yes" if row[f"sampled_at_{n}_percent"] else "no" for n in (1, 5))
        assert f"| `{row['key']}` | `{row['salt']}` | {row['hash']} | {one} | {five} |" in TEXT


def documented(heading: str) -> dict[str, tuple[str, str]]:
    """Type and default of each field in the first table behind a text; a row may name several fields."""
    lines = TEXT[TEXT.index(heading) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| field |"))
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return found
        names, kind, default, _ = (cell.strip() for cell in line.strip("|").split(" | ", 3))
        found |= dict.fromkeys(re.findall(r"`(\w+)`", names), (kind.removesuffix(" of text"), default))
    return found


def tabled(kind: str) -> dict[str, tuple[str, str]]:
    """The same of the table that the code decodes by, in the words of the document."""
    words = {"": "empty", "{}": "empty", "False": "false", "0.0": "0", "-1": "\N{MINUS SIGN}1"}
    found = {}
    for row in tables()["messages"][kind]:
        default = NONE if row["required"] else str(row["default"])
        named = row["type"] == "text" and default not in (NONE, "")
        found[row["name"]] = row["type"], f"`{default}`" if named else words.get(default, default)
    return found


def test_the_tables_of_the_document_are_those_that_messages_are_decoded_by():
    ends = documented("one more field says where the")
    assert ends == {"ends": ("bin", "absent")}
    request = tabled("request") | ends
    assert documented("## Request") | ends == request
    answered = documented("**`answered`**")
    assert answered == tabled("answered")
    assert documented("**`failed`**") == tabled("failed")
    batch = documented("The answer has the fields of a [reply]")
    gone = {"vector", "confidence", "margin", "reasons", "gain"}
    kept = {name: row for name, row in answered.items() if name not in gone}
    # One byte for each row, in place of the text of the answer to a single context.
    assert kept | batch == tabled("answered_batch")
    for row in tables()["messages"]["timings"]:
        assert f"`{row['name']}`" in TEXT


def test_the_document_names_the_scripts_as_they_are():
    for one in scripts():
        row = (
            f"| `{one['file']}` | {one['version']} | {one['keys']} | `{one['function']}` | `{one['sha1']}` |"
        )
        assert row in TEXT
        text = (ROOT / one["file"]).read_bytes()
        assert hashlib.sha1(text, usedforsecurity=False).hexdigest() == one["sha1"]
        assert text.decode() in library()


def test_the_document_gives_the_limits_of_the_table():
    limits = tables()["limits"]
    for name in ("message_bytes", "bytes_beside_bins", "list_items", "map_fields"):
        assert re.search(rf"\b{limits[name]:,}\b", TEXT), name
    assert f"{limits['batch_bytes'] // 2**20} MiB" in TEXT
