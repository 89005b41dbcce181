// Tells which requests the server no longer has (docs/wire.md, Losses), by what workers say of the streams.

/** What `HGETALL amn:{main}:standing` says: its turn, and by place the first and last entry of each stream. */
export function standingOf(words) {
  const said = {};
  for (let i = 0; i < words.length; i += 2) said[words[i]] = String(words[i + 1]);
  const spans = [1, 2, 3, 4, 5].map((place) => (said[place] ?? '').split(' ').filter(Boolean).map(asNumber));
  return { turn: Number(said.turn), spans };
}

/** The id of an entry, milliseconds and number, as one integer that can be compared. */
const asNumber = (entryId) => entryId.split('-').map(BigInt).reduce((ms, number) => (ms << 64n) | number);

/** Whether a request that got in has left every stream that it can be in; notes on it how far that is known. */
export function hasLeft(request, { turn, spans }) {
  const { search } = request;
  if (!search || !(turn >= search.turn)) // the first look, or another server; without workers, turn is NaN
    return void (request.search = turn && { turn, passed: 0 });
  if (turn === search.turn) return false;
  search.turn = turn;
  const stages = [request.named ? [1, 2, 3] : [request.level], [4], [5]];
  for (; search.passed < stages.length; search.passed++, search.marks = undefined) {
    const streams = stages[search.passed].map((place) => spans[place - 1]);
    const marks = (search.marks ??= streams.map(([, last]) => last));
    const isGone = ([first], i) => first === undefined || marks[i] === undefined || first > marks[i];
    if (!streams.every(isGone)) return false;
  }
  return true;
}
