// The rules of ranking as a browser needs them at each key; rlhf_ray/feedback/labelling/ranking.py has them for the
// server, and a test holds both together. Ranks are numbers from 1, best first, or null; places are those on the page.

export const letter = (place) => String.fromCharCode(65 + place);

/** The first rank that no answer holds: that of the answer which is named next as the best of the rest. */
export function nextRank(ranks) {
  for (let rank = 1; rank <= ranks.length; rank += 1) {
    if (!ranks.includes(rank)) return rank;
  }
  return null;
}

/** For each place the earlier place that holds its rank already, or null. */
export function holders(ranks) {
  return ranks.map((rank, place) => {
    const first = rank === null ? place : ranks.indexOf(rank);
    return first === place ? null : first;
  });
}

/** The order in signs: `B > A = C`, and after `?` what has no rank yet. */
export function orderLine(ranks) {
  const named = (rank) => ranks.flatMap((one, place) => (one === rank ? [letter(place)] : []));
  const held = [...new Set(ranks.filter((rank) => rank !== null))].sort((one, other) => one - other);
  const missing = named(null);
  const order = held.map((rank) => named(rank).join(" = ")).join(" > ");
  return `${order}${missing.length ? ` ? ${missing.join(", ")}` : ""}`.trim();
}
