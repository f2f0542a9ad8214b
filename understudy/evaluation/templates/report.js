"use strict";
(() => {
  const PAGE = 10, MAX_GROUPS = 400;
  const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu, KEPT = "\n\t\u200c\u200d";
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("sample-data").textContent);
  const rows = data.rows.map(([id, group, prompt, left, gain, texts], place) => ({ id, group, prompt, left, gain, texts, place }));
  const form = byId("filters"), list = byId("sample-list"), status = byId("sample-count");
  const choose = byId("group"), previous = byId("previous"), next = byId("next"), where = byId("where");
  let found = rows, page = 0, timer = 0;

  const make = (name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  // What a browser would hide is spelled out, as in the rest of the page.
  const write = (node, text, left) => {
    let from = 0;
    for (const match of text.matchAll(HIDDEN)) {
      if (KEPT.includes(match[0])) continue;
      node.append(text.slice(from, match.index));
      node.append(make("span", "control", "U+" + match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0")));
      from = match.index + match[0].length;
    }
    node.append(text.slice(from));
    if (!text && !left) node.append(make("span", "none", "empty"));
    if (left) node.append(make("span", "control", left + " more characters"));
    node.dir = "auto";
    return node;
  };

  const digits = (value) => (value === 0 ? "0" : Math.abs(value) >= 1000 ? value.toFixed(0) : value.toPrecision(3));
  const number = (value) => (value === null ? "undecided" : digits(value).replace("-", "\u2212"));

  const card = (row) => {
    const article = make("article", "sample");
    const heading = make("h3");
    const marks = make("p", "who");
    heading.append(make("span", "count", String(row.place + 1)), write(make("span"), row.prompt, row.left));
    marks.append(write(make("span", "mark"), "group " + row.group, 0));
    if (data.measure !== null) {
      const mark = make("span", "mark", data.measure + " difference ");
      mark.append(make("b", "", number(row.gain)));
      marks.append(mark);
    }
    const texts = make("div", "texts");
    data.columns.forEach(([key, label], column) => {
      const cell = row.texts[column];
      if (cell === null) return;
      const [text, left, scores, ended] = cell;
      const box = make("div", "text"), who = make("p", "who");
      who.append(make("span", "policy " + key.replace(/_/g, "-"), label));
      for (const [judge, score] of scores) {
        const mark = make("span", "mark", judge + " ");
        mark.append(make("b", "", number(score)));
        who.append(mark);
      }
      if (!ended) who.append(make("span", "mark cut", "cut off"));
      const body = write(make("pre"), text, left);
      body.tabIndex = 0;
      body.setAttribute("role", "group");
      body.setAttribute("aria-label", label);
      box.append(who, body);
      texts.append(box);
    });
    article.setAttribute("aria-label", "Sample " + (row.place + 1));
    article.append(heading, marks, texts);
    return article;
  };

  const haystack = (row) => {
    if (row.haystack === undefined) {
      const texts = row.texts.filter((cell) => cell !== null).map((cell) => cell[0]);
      row.haystack = [row.id, row.group, row.prompt, ...texts].join("\n").toLowerCase();
    }
    return row.haystack;
  };

  const outcome = (row) => (row.gain === null ? "undecided" : row.gain > 0 ? "better" : row.gain < 0 ? "worse" : "same");
  const gain = (row, absent) => (row.gain === null ? absent : row.gain);
  const orders = {
    drawn: (a, b) => a.place - b.place,
    worst: (a, b) => gain(a, Infinity) - gain(b, Infinity) || a.place - b.place,
    best: (a, b) => gain(b, -Infinity) - gain(a, -Infinity) || a.place - b.place,
  };

  const draw = () => {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const first = page * PAGE, shown = found.slice(first, first + PAGE);
    list.replaceChildren(...shown.map(card));
    status.textContent = found.length
      ? `${found.length} of ${rows.length} prompts; ${first + 1} to ${first + shown.length} shown.`
      : `0 of ${rows.length} prompts: nothing fits. Take a filter away.`;
    where.textContent = `Page ${page + 1} of ${pages}`;
    previous.setAttribute("aria-disabled", String(page === 0));
    next.setAttribute("aria-disabled", String(page === pages - 1));
  };

  const filter = () => {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const every = choose.selectedIndex === 0, group = choose.value, wanted = byId("outcome").value;
    found = rows.filter(
      (row) =>
        (every || row.group === group) &&
        (wanted === "all" || outcome(row) === wanted) &&
        words.every((word) => haystack(row).includes(word)),
    );
    found.sort(orders[byId("order").value]);
    page = 0;
    draw();
  };

  const counts = new Map();
  for (const row of rows) counts.set(row.group, (counts.get(row.group) || 0) + 1);
  const groups = [...counts].sort((a, b) => b[1] - a[1]).slice(0, MAX_GROUPS).sort((a, b) => (a[0] < b[0] ? -1 : 1));
  choose.append(new Option("all groups", ""));
  for (const [name, count] of groups) choose.append(new Option(`${name.slice(0, 80).replace(HIDDEN, "\u00b7")} (${count})`, name));

  const turn = (by) => {
    const before = page;
    page += by;
    draw();
    if (page !== before) form.scrollIntoView();
  };
  previous.addEventListener("click", () => turn(-1));
  next.addEventListener("click", () => turn(1));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", filter);
  byId("search").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(filter, 120);
  });
  form.addEventListener("reset", () => setTimeout(filter, 0));
  form.hidden = false;
  byId("pager").hidden = false;
  filter();
})();
