// Orders the results of a search. Sphinx scores a page by the best of its words: a title with one
// word of the query counts as much as a title with all of them. Here each word of the query in the
// title counts.
var Scorer = {
  score: ([docname, title, anchor, descr, score]) => {
    const stemmer = new Stemmer();
    const words = (text) =>
      splitQuery(text.toLowerCase()).map((word) => stemmer.stemWord(word));
    const query = words(new URLSearchParams(window.location.search).get("q") || "");
    const inTitle = new Set(words(title));
    return score + (15 * query.filter((word) => inTitle.has(word)).length) / query.length;
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
