// Orders the results of a search. Sphinx scores a page by the best of its words and orders equal
// scores by title. Here the words of the query count that are in the title of a page, in one of its
// headings or in a main entry of the index (`! deblurring`), and pages that answer a question come
// before those that only mention it.

// A browser does not let a page that was opened as a file read others, here for their summaries.
if (window.location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

const RANKS = [
  [/^how_to_guides\/plot_/, 4],
  [/^(start|(tutorial_pages|gallery)\/plot_.*)$/, 3],
  [/^(architecture|benchmarks|changelog|contributing|promises|support)$/, -10],
  [/^(reference\/.*|api|.*\/index)$/, -2],
];

const stems = (text) => {
  const stemmer = new Stemmer();
  const words = splitQuery(text.toLowerCase()).filter((word) => !stopwords.has(word));
  return words.map((word) => stemmer.stemWord(word));
};

/** The largest part of the words of the query that one of the texts has. */
const part = (query, texts) => {
  const parts = texts.map((text) => {
    const found = new Set(stems(text));
    return query.filter((word) => found.has(word)).length / query.length;
  });
  return Math.max(0, ...parts);
};

/** From the name of a page to texts of the index of the search, where they are to be used. */
const byPage = (entries, used = () => true) => {
  const found = new Map();
  for (const [text, places] of Object.entries(entries))
    for (const [file, , main] of places) {
      const page = Search._index.docnames[file];
      if (used(main)) found.set(page, [...(found.get(page) ?? []), text]);
    }
  return found;
};
let headings = null;
let keywords = null;

var Scorer = {
  score: ([page, title, anchor, description, score, filename, kind]) => {
    headings ??= byPage(Search._index.alltitles);
    keywords ??= byPage(Search._index.indexentries, (main) => main);
    const asked = (new URLSearchParams(window.location.search).get("q") || "").toLowerCase().trim();
    const query = stems(asked);
    if (!query.length) return score;
    const [, rank] = RANKS.find(([pages]) => pages.test(page)) ?? [null, 1];
    const member = /^Python (method|property|attribute)/.test(description ?? "");
    const entries = keywords.get(page) ?? [];
    const found = Math.max(20 * part(query, [title]), 25 * part(query, entries));
    const below = 5 * part(query, headings.get(page) ?? []);
    // Sphinx lists a page again where its title, or an entry of the index, has the whole query.
    const whole = (text) => text.includes(asked) && asked.length >= text.length / 2;
    if (kind === "text" && entries.some(whole)) return -100;
    if (kind === "index" && whole(title.toLowerCase())) return -100;
    return (kind === "text" ? Math.min(score, 7) : score) + found + below + rank - 25 * member;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
