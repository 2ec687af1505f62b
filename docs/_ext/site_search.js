// Asks the search of a built site, as its search page does: node site_search.js FOLDER QUERY...
// Prints, as JSON, the pages found for each query, the best first.
const fs = require("fs");
const path = require("path");
const vm = require("vm");

const [folder, ...queries] = process.argv.slice(2);
const context = vm.createContext({
  console,
  document: { getElementById: () => null },
  _: (text) => text,
  _removeChildren() {},
  addEventListener() {},
  DOCUMENTATION_OPTIONS: {},
  SPHINX_HIGHLIGHT_ENABLED: false,
  _ready() {},
  localStorage: { setItem() {} },
});
context.window = context;
const read = (name) => fs.readFileSync(path.join(folder, name), "utf-8");
const scripts = ["base-stemmer.js", "english-stemmer.js", "language_data.js", "searchtools.js"];
for (const name of scripts.filter((one) => fs.existsSync(path.join(folder, "_static", one))))
  vm.runInContext(read(path.join("_static", name)), context);
vm.runInContext(read("searchindex.js"), context);
context.queries = queries;
const found = vm.runInContext(
  `queries.map((query) => Search._performSearch(...Search._parseQuery(query)).reverse()
    .map(([page, title, anchor, , score]) => page + (anchor || "")))`,
  context,
);
console.log(JSON.stringify(found));
