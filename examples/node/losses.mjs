// Tells which requests the server no longer has (docs/wire.md, Losses), by what workers say of the streams.

/** The id of an entry, milliseconds and number, as one integer that can be compared. */
const asNumber = (entryId) => entryId.split('-').map(BigInt).reduce((ms, number) => (ms << 64n) | number);

/** The first and the last entry of a stream, by the hash `standing`; none where nothing is in it. */
const spanOf = (said = '') => String(said).split(' ').filter(Boolean).map(asNumber);

/** Whether a request that got in has left every stream that it can be in; notes on it how far that is known. */
export function hasLeft(request, standing) {
  const { search } = request, turn = Number(standing.turn); // NaN while no worker lives
  if (!search || !(turn >= search.turn)) // the first look, or another server
    return void (request.search = turn && { turn, stages: [request.named ? [1, 2, 3] : [request.level], [4], [5]] });
  if (turn === search.turn) return false;
  for (search.turn = turn; search.stages.length; search.stages.shift(), search.marks = undefined) {
    const spans = search.stages[0].map((place) => spanOf(standing[place]));
    search.marks ??= spans.map(([, last]) => last);
    const isGone = ([first], i) => first === undefined || search.marks[i] === undefined || first > search.marks[i];
    if (!spans.every(isGone)) return false;
  }
  return true;
}
