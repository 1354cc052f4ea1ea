/* The page's own script: tables, column browser, and what Bokeh's figures show.
 *
 * Names and texts of the run reach the document through textContent alone, never as HTML.
 */
(() => {
  "use strict";

  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const figures = JSON.parse(byId("figures").textContent);
  const columns = data.columns;
  const n = columns.name.length;
  const every = Array.from({ length: n }, (_, i) => i);
  // Line breaks and other characters that would change how a name or its neighbours read, made visible (as in words.py).
  const SHORT = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };
  const shown = columns.name.map((name) =>
    name.replace(/[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff]/g, (character) =>
      SHORT[character] ?? `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`) || "(no name)");
  const lower = columns.name.map((name) => name.toLowerCase());

  // Words and numbers

  const whole = new Intl.NumberFormat("en");
  const tenths = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  const FIGURES = { vif: "VIF", r2: "R²", n_valid: "valid", missing_ratio: "missing", normalised_variance: "norm. variance" };
  // Similarities: what their matrix is called, what stands before a value, whether they have a sign.
  const MEASURES = Object.fromEntries(Object.entries(data.measures).map(([name, [title, symbol, signed]]) => [name, { title, symbol, signed }]));
  const titled = (number) => `${number} ${data.passes[number]?.title ?? ""}`;
  const decided = (i) => data.decisions[text(columns.decision, i)] ?? text(columns.decision, i);
  const kindOf = (i) => columns.kinds[text(columns.kind, i)];

  const real = (value) => (value === "inf" ? Infinity : value === "-inf" ? -Infinity : value);
  const text = (coded, i) => (coded.code[i] < 0 ? null : coded.table[coded.code[i]]);
  // What rounds to 0 has no sign.
  const minus = (string) => string.replace(/-/g, Number(string) === 0 ? "" : "−");

  function digits(value) {
    value = real(value);
    if (value === null || value === undefined) return "–";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    if (Number.isInteger(value) && Math.abs(value) < 1e7) return minus(whole.format(value));
    const size = Math.abs(value);
    if (size >= 1e6 || size < 1e-4) return minus(value.toExponential(2));
    if (size >= 1e4) return minus(whole.format(Math.round(value)));
    return minus(size >= 100 ? tenths.format(value) : String(Number(value.toPrecision(4))));
  }
  const similarity = (value) => minus(real(value).toFixed(4));
  const isSimilarity = (measure) => measure in MEASURES || measure === "r2";
  function measured(i) {
    const value = columns.value[i];
    if (value === null) return "";
    const measure = text(columns.measure, i);
    return `${MEASURES[measure]?.symbol ?? FIGURES[measure] ?? measure ?? ""} ${isSimilarity(measure) ? similarity(value) : digits(value)}`;
  }
  const plural = (count, noun) => `${whole.format(count)} ${noun}${count === 1 ? "" : "s"}`;

  const isKept = (i) => text(columns.decision, i) === "kept";
  const isDropped = (i) => text(columns.decision, i) === "dropped";
  function missingShare(i) {
    const missing = columns.missing[i];
    const all = missing + columns.valid[i];
    return missing === null ? null : all ? missing / all : 0;
  }
  const share = (value) => {
    if (value === null) return "–";
    const percent = 100 * value;
    return `${percent === 0 ? "0" : percent < 0.1 ? "<0.1" : percent.toFixed(1)} %`;
  };

  /** The column itself, its representative, and so on to one that stayed. */
  function chain(i) {
    const steps = [i];
    while (columns.representative[steps.at(-1)] >= 0 && steps.length <= n) {
      steps.push(columns.representative[steps.at(-1)]);
    }
    return steps;
  }
  const root = new Int32Array(n);
  const stands = every.map(() => []);
  for (let i = 0; i < n; i++) {
    root[i] = chain(i).at(-1);
    if (root[i] !== i) stands[root[i]].push(i);
  }
  // Each link of such a chain is a similarity of two columns, but for those of some passes: what they
  // drop several kept columns determine together.
  const joint = (number) => data.passes[number]?.pairwise === false;
  const jointly = (i) => chain(i).some((k) => joint(columns.pass[k]));
  // A pass that keeps a number of columns says nothing of that: what it drops is like the next at most.
  const rations = (number) => data.passes[number]?.rations === true;
  const rationed = (i) => chain(i).some((k) => rations(columns.pass[k]));
  const rationing = [...new Set(columns.pass.filter(rations))].join(" and ");
  const jointPasses = `pass ${[...new Set(columns.pass.filter(joint))].sort().join(" and ")}`;
  const similar = new Int32Array(n);
  for (let i = 0; i < n; i++) if (root[i] !== i && !jointly(i)) similar[root[i]]++;
  // Similar ones first, the direct ones first of all, the most similar first among those.
  const rank = (i) => [Number(jointly(i)), chain(i).length, -columns.pass[i], isSimilarity(text(columns.measure, i)) ? -Math.abs(real(columns.value[i])) : 0, i];
  for (const others of stands) {
    if (others.length < 2) continue;
    const keys = new Map(others.map((i) => [i, rank(i)]));
    others.sort((a, b) => {
      const x = keys.get(a), y = keys.get(b);
      const k = x.findIndex((part, place) => part !== y[place]);
      return k < 0 ? 0 : x[k] - y[k];
    });
  }

  // Building blocks

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") node.className = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  const nameOf = (i, tag = "span") => make(tag, { class: "name", title: shown[i] }, shown[i]);

  const ORDER = new Intl.Collator("en", { numeric: true });

  /** A table of any length: only the rows in sight are in the document. */
  class DataTable {
    static ROW = 32;

    constructor(place, { fields, rows, sort, height, search, filter, label, open, pick, noun = "row", title, least }) {
      Object.assign(this, { fields, rows, open, pick, noun, search, filter });
      this.sorted = sort;
      this.shown = rows;
      this.body = make("tbody");
      this.heads = fields.map((field, place) =>
        make("th", { scope: "col", style: field.width ? `width:${field.width}` : null, class: field.right ? "right" : "" },
          make("button", { type: "button", title: field.title, onclick: () => this.sortBy(place) }, field.label)));
      this.table = make("table", { "aria-label": label, style: least ? `min-width:${least}px` : null }, make("thead", {}, make("tr", {}, ...this.heads)), this.body);
      this.scroll = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, this.table);
      this.height = height;
      this.count = make("p", { class: "count", "aria-live": "polite" });
      this.query = make("input", { type: "search", placeholder: "Search names", "aria-label": `Search: ${label}`, spellcheck: "false", autocomplete: "off" });
      this.query.addEventListener("input", () => this.refresh());
      this.scroll.addEventListener("scroll", () => this.draw(), { passive: true });
      this.choice = filter ? this.makeFilter(filter) : null;
      place.replaceChildren(
        make("div", { class: "tools" }, title, search ? this.query : null, this.choice, title && !search ? null : this.count),
        this.scroll);
      this.refresh();
    }

    makeFilter(groups) {
      const select = make("select", { "aria-label": "Show", onchange: () => this.refresh() });
      this.tests = [];
      for (const { label, options } of groups) {
        const parent = label ? make("optgroup", { label }) : select;
        for (const option of options) {
          parent.append(make("option", { value: this.tests.length }, option.label));
          this.tests.push(option.test);
        }
        if (label) select.append(parent);
      }
      return select;
    }

    sortBy(place) {
      const descending = this.sorted?.[0] === place ? !this.sorted[1] : Boolean(this.fields[place].falling);
      this.sorted = [place, descending];
      this.refresh();
    }

    refresh() {
      const words = this.query.value.toLowerCase().split(/\s+/).filter(Boolean);
      const test = this.choice ? this.tests[Number(this.choice.value)] : null;
      const shown = this.rows.filter((row) =>
        (!test || test(row)) && words.every((word) => this.search(row).includes(word)));
      const [place, descending] = this.sorted ?? [];
      this.shown = this.sorted ? this.inOrder(shown, this.fields[place].key, descending ? -1 : 1) : shown;
      this.heads.forEach((head, i) => {
        if (i === place) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      });
      const of = this.shown.length === this.rows.length ? "" : ` of ${whole.format(this.rows.length)}`;
      this.count.textContent = `${whole.format(this.shown.length)}${of} ${this.noun}${this.rows.length === 1 ? "" : "s"}`;
      this.table.setAttribute("aria-rowcount", this.shown.length + 1);
      this.scroll.style.height = `${Math.min(this.height, 37 + DataTable.ROW * Math.max(1, this.shown.length))}px`;
      this.scroll.scrollTop = 0;
      this.drawn = null;
      this.draw();
    }

    /** Rows by their keys, those without one last; equal ones stay in the order they came in. */
    inOrder(rows, key, sign) {
      const keys = new Map(rows.map((row) => [row, key(row)]));
      return rows.sort((a, b) => {
        const x = keys.get(a), y = keys.get(b);
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (typeof x === "string" ? ORDER.compare(x, y) : x < y ? -1 : x > y ? 1 : 0);
      });
    }

    draw() {
      const first = Math.max(0, Math.floor(this.scroll.scrollTop / DataTable.ROW) - 8);
      const last = Math.min(this.shown.length, first + Math.ceil(this.height / DataTable.ROW) + 16);
      if (this.drawn === `${first}-${last}`) return;
      this.drawn = `${first}-${last}`;
      if (!this.shown.length) {
        this.body.replaceChildren(make("tr", {}, make("td", { colspan: this.fields.length, class: "empty" }, "Nothing matches.")));
        return;
      }
      const focused = this.body.contains(document.activeElement) ? document.activeElement.closest("tr").dataset.row : null;
      const pad = (rows) => make("tr", { class: "pad", "aria-hidden": "true" },
        make("td", { colspan: this.fields.length, style: `height:${rows * DataTable.ROW}px` }));
      const lines = [];
      for (let k = first; k < last; k++) lines.push(this.line(this.shown[k], k));
      this.body.replaceChildren(pad(first), ...lines, pad(this.shown.length - last));
      if (focused !== null) this.body.querySelector(`tr[data-row="${focused}"] button`)?.focus({ preventScroll: true });
    }

    line(row, k) {
      const cells = this.fields.map((field) => {
        const content = field.cell(row);
        const cell = make("td", { class: field.right ? "right" : field.name ? "name" : "" });
        cell.append(content);
        if (typeof content === "string" && content.length > 12) cell.title = content;
        return cell;
      });
      const line = make("tr", { class: this.open ? "row" : "", "aria-rowindex": k + 2, "data-row": k,
        "aria-current": this.pick?.(row) ? "true" : null }, ...cells);
      if (this.open) line.addEventListener("click", () => this.open(row));
      return line;
    }

    redraw() { this.drawn = null; this.draw(); }

    /** Scroll no further than it takes to see a row. */
    reveal(row) {
      const top = this.shown.indexOf(row) * DataTable.ROW;
      const room = this.scroll.clientHeight - this.table.tHead.offsetHeight - DataTable.ROW;
      if (top > this.scroll.scrollTop + room) this.scroll.scrollTop = top - room / 2;
      this.redraw();
    }
  }

  const opener = (i, act) => make("button", { type: "button", class: "open", title: shown[i],
    onclick: (event) => { event.stopPropagation(); act(i); } }, shown[i]);
  const jumpTo = (i) => openColumn(i, { jump: true });

  /** A field with the name of a column of the row, which opens it; without one (null) it is empty. */
  const columnField = (label, width, of) => ({ label, width,
    key: (row) => (of(row) === null ? null : columns.name[of(row)]),
    cell: (row) => (of(row) === null ? "" : opener(of(row), jumpTo)) });
  const decisionOf = (i) => make("span", { class: isKept(i) ? "is-kept" : isDropped(i) ? "is-gone" : "" }, decided(i));
  const meter = (share, words, look = "") => make("span", {},
    make("span", { class: "meter", "aria-hidden": "true" }, make("i", { class: look, style: `width:${100 * share}%` })), words);

  /** The choices of a filter, each with the number of the rows that it shows. */
  const choices = (rows, tests) => tests.map(([label, test]) => ({ label: `${label} (${whole.format(rows.filter(test).length)})`, test }));

  // Column browser

  const find = byId("find");
  const list = byId("columns");
  const pane = byId("column");
  const OPTION = 32;
  const byStrength = [...every].sort(
    (a, b) => (isKept(b) - isKept(a)) || similar[b] - similar[a] || stands[b].length - stands[a].length || a - b);
  const keptFirst = byStrength.filter(isKept);
  const explained = !keptFirst.some((i) => stands[i].length) ? "" : columns.pass.some(joint)
    ? `; “for 5 + 8” means 5 similar ones and 8 of those that ${jointPasses} dropped` : "; “for 5” means 5 similar ones";
  let options = keptFirst;
  let asked = -1; // the column that was picked
  let current = -1; // the column that stands for it, which the pane is about
  let partner = -1; // the one of its alternatives that is looked at
  let active = 0; // the option the keyboard is on

  function matchOptions() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    // The very name first, whatever it stands for, then names that begin like it.
    const typed = find.value.trim(), loose = typed.toLowerCase();
    const far = (i) => (columns.name[i] === typed ? 0 : lower[i] === loose ? 1 : lower[i].startsWith(loose) ? 2 : 3);
    options = words.length
      ? byStrength.filter((i) => words.every((word) => lower[i].includes(word))).sort((a, b) => far(a) - far(b)) : keptFirst;
    active = 0;
    list.scrollTop = 0;
    byId("columns-count").textContent = words.length
      ? `${plural(options.length, "column")} of ${whole.format(n)}`
      : `${plural(options.length, "kept column")}${explained}`;
    drawOptions();
  }

  /** How many similar columns a kept one stands for, and how many more are listed with it. */
  function standing(i) {
    if (!stands[i].length) return "alone";
    const more = stands[i].length - similar[i];
    return `for ${whole.format(similar[i])}${more ? ` + ${whole.format(more)}` : ""}`;
  }

  function drawOptions() {
    const first = Math.max(0, Math.floor(list.scrollTop / OPTION) - 4);
    const last = Math.min(options.length, first + Math.ceil((list.clientHeight || 520) / OPTION) + 8);
    const nodes = [make("div", { role: "presentation", style: `height:${options.length * OPTION}px` })];
    for (let k = first; k < last; k++) {
      const i = options[k];
      const about = isKept(i) ? standing(i) : (kindOf(i)?.label ?? decided(i));
      nodes.push(make("div", { role: "option", id: `option-${k}`, class: isKept(i) ? "option" : "option dropped",
        style: `top:${k * OPTION}px`, "aria-setsize": options.length, "aria-posinset": k + 1,
        "aria-selected": i === current || i === partner ? "true" : "false",
        onclick: () => { active = k; openColumn(i); } },
        nameOf(i), make("small", {}, about)));
    }
    if (!options.length) {
      nodes.push(make("p", { class: "empty" }, find.value.trim() || !n ? "No such column." : "No column was kept. Type a part of a name to find a dropped one."));
    }
    list.replaceChildren(...nodes);
    const target = options.length ? `option-${active}` : "";
    list.setAttribute("aria-activedescendant", target);
    find.setAttribute("aria-activedescendant", target);
  }

  function moveActive(event) {
    const page = Math.max(1, Math.floor(list.clientHeight / OPTION) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page };
    const ends = event.currentTarget === list ? { Home: 0, End: options.length - 1 } : {};
    if (event.key in steps) active += steps[event.key];
    else if (event.key in ends) active = ends[event.key];
    else if (event.key !== "Enter") return;
    event.preventDefault();
    if (!options.length) return;
    active = Math.min(options.length - 1, Math.max(0, active));
    const top = active * OPTION;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + OPTION > list.scrollTop + list.clientHeight) list.scrollTop = top + OPTION - list.clientHeight;
    openColumn(options[active]);
  }

  function fact(label, value, title) {
    return make("div", { title }, make("dt", {}, label), make("dd", {}, value));
  }

  function openColumn(i, { jump = false } = {}) {
    if (i < 0) return;
    asked = i;
    current = root[i];
    partner = i === root[i] ? (stands[i][0] ?? -1) : i;
    drawColumn();
    drawOptions();
    if (jump) {
      byId("browser").scrollIntoView();
      pane.querySelector("h3").focus({ preventScroll: true });
    }
  }

  /** Why the column that was picked was dropped, where the pane is about the one that stands for it. */
  function drawAsked() {
    const i = asked;
    const way = chain(i).slice(1, -1).flatMap((k, place) => [place ? " and " : " By way of ", nameOf(k)]);
    byId("asked").replaceChildren(nameOf(i), " was ", make("b", { class: "is-gone" }, "dropped"), ` ${whyDropped(i)}.`, ...way, way.length ? ", " : " ",
      rationed(i) ? (way.length ? "of the columns kept" : "Of the columns kept") + " the most similar is:"
        : jointly(i) ? (way.length ? "kept columns" : "Kept columns") + " determine it together; the one that shares most with it is:"
        : (way.length ? "this" : "This") + " column stands for it:");
  }
  const whyDropped = (i) =>
    `by pass ${columns.pass[i]} – ${text(columns.reason, i)}${columns.value[i] === null ? "" : ` (${measured(i)}${columns.threshold[i] === null ? "" : `, limit ${digits(columns.threshold[i])}`})`}`;

  /** The values of a column in a line. */
  function valuesOf(i) {
    if (columns.valid[i] === null) return null;
    const range = columns.min[i] === null ? "" : `; ${digits(columns.min[i])} to ${digits(columns.max[i])}, mean ${digits(columns.mean[i])}`;
    return make("small", { class: "values" },
      `${whole.format(columns.valid[i])} valid, ${share(missingShare(i))} missing, ${digits(columns.unique[i])} different${range}`);
  }

  function drawColumn() {
    const i = current;
    const others = stands[i];
    const verdict = make("p", { class: "verdict" });
    if (isKept(i)) {
      verdict.append(make("b", { class: "is-kept" }, "kept"), ` – ${text(columns.reason, i)}`);
    } else if (isDropped(i)) {
      verdict.append(make("b", { class: "is-gone" }, "dropped"), ` ${whyDropped(i)}`);
    } else {
      verdict.append(text(columns.reason, i));
    }
    const counted = columns.valid[i] !== null;
    const long = columns.name[i].length > 60 ? "long" : "";
    const other = asked !== i;
    pane.replaceChildren(
      ...(other ? [make("p", { id: "asked", class: "asked" })] : []),
      make("h3", { tabindex: "-1", class: long, "aria-describedby": other ? "asked" : null }, shown[i]), verdict,
      make("dl", { class: "stats" },
        fact("type", text(columns.type, i)),
        ...(counted ? [
          fact("valid", digits(columns.valid[i])),
          fact("missing", share(missingShare(i))),
          fact("different", digits(columns.unique[i]), "different values"),
        ] : []),
        ...(columns.relevance[i] === null ? [] : [fact("relevance", digits(columns.relevance[i]), "what it tells of the target")]),
        ...(columns.min[i] === null ? [] : [
          fact("minimum", digits(columns.min[i])), fact("mean", digits(columns.mean[i])), fact("maximum", digits(columns.max[i])),
        ])));
    if (other) drawAsked();
    if (!others.length) {
      pane.append(make("p", { class: "hint" }, isKept(i) ? "It stands for no other column." : "No other column stands for it."));
      return;
    }
    const more = others.length - similar[i];
    const title = make("p", { class: "title" }, make("b", {}, `Stands for ${plural(others.length, "column")}`),
      more ? `: ${whole.format(similar[i])} similar to it, ${whole.format(more)} by ${jointPasses}` : "");
    const place = make("div", { class: "table alternatives" });
    pane.append(place);
    if (more) {
      pane.append(make("p", { class: "hint" },
        rationing ? `What pass ${rationing} drops goes for the number of columns alone; it is listed with the column that it is most similar to.`
          : `What ${jointPasses} drops, several kept columns determine together; it is listed with the one that shares most with it.`));
    }
    alternatives = new DataTable(place, {
      label: "Alternatives", rows: others.slice(), sort: null, height: 172, noun: "column", title,
      pick: (j) => j === partner,
      search: others.length > 12 ? (j) => lower[j] : null,
      open: (j) => {
        partner = j;
        if (byId("asked")) { asked = j; drawAsked(); }
        drawPair(); drawOptions(); alternatives.redraw();
      },
      fields: [
        { label: "Column", width: "36%", key: (j) => columns.name[j], cell: (j) => opener(j, (j) => alternatives.open(j)) },
        { label: "Pass", width: "17%", key: (j) => columns.pass[j], cell: (j) => titled(columns.pass[j]) },
        { label: "Value", width: "20%", falling: true, key: (j) => absolute(columns.value[j]), cell: measured },
        { label: "By way of", width: "27%", key: (j) => chain(j).length, cell: (j) => {
          const way = chain(j).slice(1, -1).map((k) => shown[k]).join(" → ");
          return make("span", way ? { class: "name", title: way } : { class: "hint" }, way || "direct");
        } },
      ],
    });
    pane.append(make("div", { id: "pair" }));
    drawPair();
    alternatives.reveal(partner);
  }
  let alternatives = null;
  const absolute = (value) => (value === null ? null : Math.abs(real(value)));

  function drawPair() {
    const steps = chain(partner);
    const items = steps.map((i, k) => {
      const why = k === steps.length - 1 ? (isKept(i) ? "kept" : "not kept") :
        `dropped by pass ${columns.pass[i]}: ${text(columns.reason, i)}; ${measured(i)}${kindOf(i)?.partner ? `; ${kindOf(i).partner}` : " with the next"}`;
      return make("li", { class: isKept(i) ? "kept" : "" }, nameOf(i), make("small", {}, why),
        k === steps.length - 1 ? null : valuesOf(i)); // those of the last one stand above
    });
    const words = make("div", {}, make("b", {}, "From the dropped column to the kept one"), make("ol", { class: "chain" }, ...items));
    byId("pair").replaceChildren(make("div", { class: "pair" }, words, scatter.place(partner, steps[1])));
    scatter.show(partner, steps[1]);
  }

  find.addEventListener("input", matchOptions);
  find.addEventListener("keydown", moveActive);
  list.addEventListener("keydown", moveActive);
  list.addEventListener("scroll", drawOptions, { passive: true });

  // Ranks of a pair, where the run left a sample of them

  const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

  const scatter = {
    sample: data.sample && { ...data.sample, codes: bytesOf(data.sample.codes), slot: new Map(data.sample.columns.map((i, slot) => [i, slot])) },
    stage: null,
    has(i) { return this.sample && this.sample.slot.has(i); },
    place(a, b) {
      if (!this.has(a) || !this.has(b)) return null;
      if (!this.stage) this.stage = make("div", { id: "figure-pair" });
      return make("div", { class: "scatter" }, this.stage,
        make("p", {}, "→ ranks of ", nameOf(a)), make("p", {}, "↑ ranks of ", nameOf(b)),
        make("p", {}, `${plural(this.sample.rows, "row")}; larger points hold more`));
    },
    async show(a, b) {
      if (!this.has(a) || !this.has(b)) return;
      if (!this.drawn) this.drawn = drawFigure("pair");
      const plot = await this.drawn;
      const { rows, codes, slot } = this.sample;
      const spots = new Map(); // columns of few values put many rows on one spot
      for (let r = 0; r < rows; r++) {
        const u = codes[slot.get(a) * rows + r], v = codes[slot.get(b) * rows + r];
        if (!u || !v) continue;
        const spot = spots.get(256 * u + v) ?? { x: (u - 1) / 254, y: (v - 1) / 254, rows: 0 };
        spot.rows++;
        spots.set(256 * u + v, spot);
      }
      const all = [...spots.values()];
      model(plot, "pair-points").data = {
        x: all.map((spot) => spot.x), y: all.map((spot) => spot.y), size: all.map((spot) => 5 * Math.sqrt(spot.rows)),
      };
    },
  };

  // Figures

  const roots = [];
  const scheme = matchMedia("(prefers-color-scheme: dark)");

  async function drawFigure(name) {
    const manager = await Bokeh.embed.embed_item(figures[name], byId(`figure-${name}`));
    const plot = [...manager.roots][0].model;
    roots.push(plot);
    paint(plot);
    return plot;
  }
  const model = (plot, name) => [...plot.references()].find((part) => part.name === name);

  /** Set the colours that models name in their tags. */
  function paint(plot) {
    const style = getComputedStyle(document.documentElement);
    for (const part of plot.references()) {
      const colours = {};
      for (const tag of part.tags || []) {
        const [property, variable] = String(tag).split("=");
        colours[property] = style.getPropertyValue(`--${variable}`).trim();
      }
      if (Object.keys(colours).length) part.setv(colours);
    }
  }
  scheme.addEventListener("change", () => { roots.forEach(paint); if (matrix) matrix.recolour(); });

  // From −1 over 0 to 1; safe for colour-blind readers, and 0 is the paper.
  const RAMPS = {
    light: ["#0b3c6f", "#2f7fbc", "#9cc9e3", "#f6f6f4", "#f6b98b", "#d95f0e", "#7a2504"],
    dark: ["#bfe3ff", "#5aaee8", "#235a86", "#1c2227", "#8a4a1c", "#ee8b3c", "#ffe0b8"],
  };
  function ramp(from, to) {
    const stops = RAMPS[scheme.matches ? "dark" : "light"].map((hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)));
    const colours = [];
    for (let value = from; value <= to; value++) {
      const at = ((value + 100) / 200) * (stops.length - 1);
      const low = Math.min(stops.length - 2, Math.floor(at));
      colours.push("#" + stops[low].map((part, k) =>
        Math.round(part + (at - low) * (stops[low + 1][k] - part)).toString(16).padStart(2, "0")).join(""));
    }
    return colours;
  }

  class MatrixView {
    constructor(plot) {
      this.plot = plot;
      this.unpacked = data.matrices.map(() => null);
      this.buttons = [...document.querySelectorAll("[data-matrix]")];
      this.buttons.forEach((button, place) => button.addEventListener("click", () => this.show(place)));
      const zooms = { in: () => this.zoom(0.5), out: () => this.zoom(2), all: () => this.whole() };
      for (const button of document.querySelectorAll("[data-zoom]")) button.addEventListener("click", zooms[button.dataset.zoom]);
      byId("figure-matrix").addEventListener("keydown", (event) => this.key(event));
      byId("figure-matrix").addEventListener("wheel", (event) => this.wheel(event), { passive: false });
      plot.on_event("mousemove", (event) => { this.aim([], []); this.point(event.x, event.y); });
      plot.on_event("mouseleave", () => this.rest());
      plot.on_event("tap", (event) => this.click(event.x, event.y));
      this.show(0);
    }

    unpack(place) {
      const { side, cells } = data.matrices[place];
      const packed = new Int8Array(bytesOf(cells).buffer);
      const full = new Int8Array(side * side);
      for (let row = 0, k = 0; row < side; row++) {
        for (let column = row; column < side; column++, k++) {
          full[row * side + column] = full[column * side + row] = packed[k];
        }
      }
      return full;
    }

    show(place) {
      this.matrix = data.matrices[place];
      this.buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(k === place)));
      this.codes = this.unpacked[place] ??= this.unpack(place);
      const { side, step, order, sizes, measure } = this.matrix;
      const { ndarray } = Bokeh.require("core/util/ndarray");
      const image = ndarray(this.codes, { dtype: "int8", shape: [side, side] });
      model(this.plot, "matrix-cells").data = { image: [image], x: [0], y: [0], w: [side * step], h: [side * step] };
      const ordered = sizes.length ? "columns, by community" : "columns, in the order of the input";
      for (const side of ["above", "left"]) model(this.plot, `matrix-${side}`).axis_label = ordered;
      byId("undefined").hidden = !this.codes.includes(-128);
      const low = [], high = [];
      const least = Math.max(3, Math.ceil(order.length / 150));
      let at = 0;
      for (const size of sizes) {
        if (size >= least) { low.push(at); high.push(at + size); }
        at += size;
      }
      model(this.plot, "matrix-frames").data = { low, high };
      this.whole();
      this.recolour();
      const name = MEASURES[measure].title;
      const grouped = sizes.reduce((sum, size) => sum + size, 0);
      byId("matrix-note").textContent =
        (sizes.length
          ? `${plural(order.length, "column")}: ${sizes.length === 1 ? "one community" : `${whole.format(sizes.length)} communities by falling size`}${grouped < order.length ? ", then the columns of none" : ""}. `
          : `${plural(order.length, "column")} of no community, in the order of the input. `) +
        (low.length ? `Framed: those of ${least} columns or more. ` : "") +
        (step > 1
          ? `Too many for one cell a pair: a cell shows the largest |value| of ${step} × ${step} pairs, a column with itself left out.`
          : `A cell is a pair; its ${name} is rounded to 0.01.`);
      this.rest();
    }

    recolour() {
      const { signed } = MEASURES[this.matrix.measure];
      const mapper = model(this.plot, "matrix-colours");
      const missing = getComputedStyle(document.documentElement).getPropertyValue("--missing").trim();
      const palette = ramp(signed ? -100 : 0, 100);
      mapper.setv({ palette, low: (signed ? -100 : 0) - 0.5, high: 100.5, low_color: missing });
      const bar = document.querySelector(".scale");
      bar.querySelector(".ramp").style.background = `linear-gradient(to right, ${palette.filter((_, k) => k % 10 === 0).join(",")})`;
      bar.querySelector(".ticks").replaceChildren(...(signed ? ["−1", "−0.5", "0", "0.5", "1"] : ["0", "0.25", "0.5", "0.75", "1"]).map((tick) => make("span", {}, tick)));
    }

    whole() { this.set(0, this.matrix.order.length, 0, this.matrix.order.length); }

    set(left, right, top, bottom) {
      const p = this.matrix.order.length;
      const width = Math.min(p, Math.max(Math.min(p, 4 * this.matrix.step), right - left));
      const fit = (low) => Math.min(p - width, Math.max(0, low));
      left = fit((left + right - width) / 2);
      top = fit((top + bottom - width) / 2);
      this.plot.x_range.setv({ start: left, end: left + width });
      this.plot.y_range.setv({ start: top + width, end: top });
    }

    /** Zoom around a point, or around the middle; what is at the point stays there. */
    zoom(factor, point) {
      const { x_range: x, y_range: y } = this.plot;
      const [px, py] = point ?? [(x.start + x.end) / 2, (y.start + y.end) / 2];
      const scaled = (at, to) => at + (to - at) * factor;
      this.set(scaled(px, x.start), scaled(px, x.end), scaled(py, y.end), scaled(py, y.start));
    }

    /** The wheel alone scrolls the page. */
    wheel(event) {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      this.zoom(event.deltaY < 0 ? 0.8 : 1.25, this.at);
    }

    key(event) {
      const { x_range: x, y_range: y } = this.plot;
      const by = (x.end - x.start) / 5;
      const move = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] }[event.key];
      if (move) this.set(x.start + move[0], x.end + move[0], y.end + move[1], y.start + move[1]);
      else if (event.key === "+" || event.key === "=") this.zoom(0.5);
      else if (event.key === "-") this.zoom(2);
      else if (event.key === "0") this.whole();
      else if (event.key !== "Enter") return;
      event.preventDefault();
      const middle = [(x.start + x.end) / 2, (y.start + y.end) / 2];
      this.aim([middle[0]], [middle[1]]);
      this.point(...middle);
      if (event.key === "Enter") this.click(...middle);
    }

    /** The cross at the cell that the keyboard reads, or none. */
    aim(x, y) { model(this.plot, "matrix-aim").data = { x, y }; }

    cell(x, y) {
      const { step, side, order } = this.matrix;
      if (!(x >= 0 && y >= 0 && x < order.length && y < order.length)) return null;
      const row = Math.floor(y / step), column = Math.floor(x / step);
      return { row, column, code: this.codes[row * side + column] };
    }

    names(k) { return this.matrix.order.slice(k * this.matrix.step, (k + 1) * this.matrix.step); }

    point(x, y) {
      this.at = [x, y];
      const cell = this.cell(x, y);
      if (!cell) { this.rest(); return; }
      const { step, measure } = this.matrix;
      const listed = (k) => {
        const names = this.names(k).filter((i) => i >= 0);
        const shown = names.slice(0, 3).map((i) => nameOf(i, "dd"));
        if (names.length > 3) shown.push(make("dd", {}, `and ${names.length - 3} more`));
        return shown;
      };
      const value = cell.code === -128 ? "undefined" : minus((cell.code / 100).toFixed(2));
      byId("readout").replaceChildren(
        make("b", {}, `${MEASURES[measure].title} ${value}`), step > 1 ? `, the largest in size of ${step} × ${step} pairs` : "",
        make("dl", {}, make("dt", {}, "row"), ...listed(cell.row), make("dt", {}, "column"), ...listed(cell.column)));
    }

    rest() {
      byId("readout").replaceChildren(make("span", { class: "hint" }, "Point at a cell to read it."));
    }

    click(x, y) {
      const cell = this.cell(x, y);
      if (cell) openColumn(this.names(cell.row)[0], { jump: true });
    }
  }
  let matrix = null;

  // Other thresholds

  class CurveView {
    constructor(plot) {
      this.plot = plot;
      this.slider = byId("threshold");
      this.slider.addEventListener("input", () => this.ask(Number(this.slider.value)));
      byId("as-run").addEventListener("click", () => this.ask(this.run));
      this.buttons = [...document.querySelectorAll("[data-curve]")];
      this.buttons.forEach((button, place) => button.addEventListener("click", () => this.show(place)));
      plot.on_event("tap", (event) => this.ask(this.nearest(event.x)));
      const change = ([, goes]) => (goes ? "go" : "come back");
      this.table = new DataTable(place("changes"), {
        label: "Columns that would go or come back", rows: [], sort: null, height: 264, noun: "column",
        search: ([i]) => lower[i],
        fields: [
          columnField("Column", "38%", ([i]) => i),
          { label: "It would", width: "96px", key: change, cell: (row) => make("span", { class: row[1] ? "is-gone" : "is-kept" }, change(row)) },
          { label: "In this run", key: ([i]) => text(columns.reason, i), cell: ([i]) => (isKept(i) ? "kept" : `${text(columns.reason, i)}, ${measured(i)}`) },
        ],
      });
      this.show(0);
    }

    show(place) {
      this.curve = data.curves[place];
      this.buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(k === place)));
      const { thresholds, sizes, now } = this.curve;
      this.now = bytesOf(now);
      this.run = this.nearest(this.curve.threshold);
      this.slider.max = thresholds.length - 1;
      const margin = 0.02 * (thresholds.at(-1) - thresholds[0]) || 0.01;
      this.plot.x_range.setv({ start: thresholds[0] - margin, end: thresholds.at(-1) + margin });
      this.plot.y_range.setv({ start: 0, end: 1.06 * Math.max(1, ...sizes) });
      model(this.plot, "curve-points").data = { x: thresholds, y: sizes };
      model(this.plot, "curve-run").data = { x: [thresholds[this.run]], y: [sizes[this.run]] };
      this.ask(this.run);
    }

    nearest(x) {
      const far = this.curve.thresholds.map((threshold) => Math.abs(threshold - x));
      return far.indexOf(Math.min(...far));
    }

    /** What the pass would keep at one of its thresholds, beside what it kept. */
    ask(k) {
      const { thresholds, sizes, kept, doubt, open } = this.curve;
      const bits = bytesOf(kept[k]);
      const at = (bytes, place) => (bytes[place >> 3] >> (place & 7)) & 1;
      const changed = this.curve.columns.map((i, place) => [i, at(this.now, place), at(bits, place)]).filter(([, before, after]) => before !== after);
      const going = changed.filter(([, before]) => before);
      const back = changed.filter(([, , after]) => after);
      const word = String(thresholds[k]);
      this.slider.value = k;
      this.slider.setAttribute("aria-valuetext", word);
      byId("asked-threshold").textContent = word;
      byId("as-run").disabled = k === this.run;
      model(this.plot, "curve-here").data = { x: [thresholds[k]], y: [sizes[k]] };
      model(this.plot, "curve-asked").location = thresholds[k];
      const total = plural(this.curve.columns.length, "column");
      const { title, signed } = MEASURES[this.curve.measure] ?? { title: this.curve.measure };
      const compared = `${signed ? `|${title}|` : title} ≥ ${word}`;
      byId("verdict").replaceChildren(...(k === this.run
        ? [`This run: at ${compared} pass ${this.curve.pass} kept `, make("b", {}, whole.format(sizes[k])), ` of ${total}. Move the slider, or click the curve, to see what another threshold would change.`]
        : [`At ${compared} pass ${this.curve.pass} would keep `, make("b", {}, whole.format(sizes[k])), ` of ${total}: of those it kept in this run `,
          make("b", { class: "is-gone" }, whole.format(going.length)), " would go, and ", make("b", { class: "is-kept" }, whole.format(back.length)), " would come back."]));
      const rest = text(open, k);
      const unsettled = doubt[k] ? `${plural(doubt[k], "pair")} so close to it that a run would compute ${doubt[k] === 1 ? "it" : "them"} again first. ` : "";
      byId("left-open").textContent = unsettled + (rest ? rest[0].toUpperCase() + rest.slice(1) : "");
      this.table.rows = [...going.map(([i]) => [i, true]), ...back.map(([i]) => [i, false])];
      place("changes").hidden = !changed.length;
      if (changed.length) this.table.refresh();
    }
  }

  // Tables

  const place = (name) => document.querySelector(`[data-table="${name}"]`);

  function decisionFilter() {
    const other = columns.decision.table.filter((name) => name !== "kept" && name !== "dropped");
    const groups = [{ options: choices(every, [["All columns", () => true], ["Kept", isKept], ["Dropped", isDropped],
      ...other.map((name) => [data.decisions[name] ?? name, (i) => text(columns.decision, i) === name])]) }];
    const passes = [...new Set(columns.pass.filter((number) => number !== null))].sort();
    if (passes.length) groups.push({ label: "Dropped by pass", options: choices(every, passes.map((number) => [titled(number), (i) => columns.pass[i] === number])) });
    const kinds = columns.kind.table;
    const labels = kinds.map((kind) => columns.kinds[kind].label);
    const label = (kind) => columns.kinds[kind][labels.filter((other) => other === columns.kinds[kind].label).length > 1 ? "full" : "label"];
    if (kinds.length) groups.push({ label: "Reason", options: choices(every, kinds.map((kind) => [label(kind), (i) => text(columns.kind, i) === kind])) });
    return groups;
  }

  function drawTables() {
    const code = (coded) => (i) => text(coded, i);
    const representative = (i) => (columns.representative[i] < 0 ? null : columns.representative[i]);
    const relevant = columns.relevance.some((value) => value !== null);
    new DataTable(place("decisions"), {
      label: "All decisions", rows: every, sort: [0, false], height: 560, least: relevant ? 1220 : 1120, noun: "column", open: jumpTo,
      search: (i) => lower[i], filter: decisionFilter(),
      fields: [
        { label: "#", width: "64px", right: true, title: "place in the input", key: (i) => i, cell: (i) => whole.format(i + 1) },
        columnField("Column", "15%", (i) => i),
        { label: "Decision", width: "106px", key: code(columns.decision), cell: decisionOf },
        { label: "Pass", width: "58px", right: true, key: (i) => columns.pass[i], cell: (i) => (columns.pass[i] === null ? "" : String(columns.pass[i])) },
        { label: "Reason", width: "17%", key: code(columns.reason), cell: code(columns.reason) },
        { label: "Value", width: "124px", falling: true, key: (i) => absolute(columns.value[i]), cell: measured },
        columnField("Representative", null, representative),
        { label: "Community", width: "100px", right: true, key: (i) => columns.community[i], cell: (i) => (columns.community[i] === null ? "" : digits(columns.community[i])) },
        ...(relevant ? [{ label: "Relevance", width: "94px", right: true, falling: true, title: "what it tells of the target", key: (i) => columns.relevance[i], cell: (i) => (columns.relevance[i] === null ? "" : similarity(columns.relevance[i])) }] : []),
        { label: "Missing", width: "78px", right: true, falling: true, key: missingShare, cell: (i) => share(missingShare(i)) },
        { label: "Different", width: "82px", right: true, falling: true, title: "different values", key: (i) => columns.unique[i], cell: (i) => digits(columns.unique[i]) },
      ],
    });

    if (place("relevance")) drawRelevance();
    if (place("chosen")) drawChosen();

    if (place("near")) {
      const pairs = data.near;
      const gap = ([number, , , value]) => Math.abs(real(value)) - data.passes[number].threshold;
      new DataTable(place("near"), {
        label: "Pairs near a threshold", rows: pairs, sort: [4, false], height: 420, noun: "pair",
        search: ([, a, b]) => `${lower[a]}\n${lower[b]}`,
        fields: [
          { label: "Pass", width: "120px", key: (pair) => pair[0], cell: (pair) => titled(pair[0]) },
          columnField("Column", "28%", (pair) => pair[1]),
          columnField("Column", "28%", (pair) => pair[2]),
          { label: "Value", width: "120px", right: true, falling: true, key: (pair) => real(pair[3]), cell: (pair) => minus(real(pair[3]).toFixed(6)) },
          { label: "From the threshold", width: "170px", right: true, key: (pair) => Math.abs(gap(pair)), cell: (pair) => `${gap(pair) >= 0 ? "+" : "−"}${Math.abs(gap(pair)).toFixed(6)}` },
          { label: "Redundant", width: "110px", key: (pair) => Number(gap(pair) >= -5e-7), cell: (pair) => (gap(pair) >= -5e-7 ? "yes" : "no") },
        ],
      });
    }

    if (place("incomplete")) {
      const incomplete = every.filter((i) => columns.missing[i]);
      const empty = (i) => columns.missing[i] - columns.nan[i] - columns.inf[i];
      const counted = (label, key) => ({ label, width: "10%", right: true, falling: true, key, cell: (i) => digits(key(i)) });
      new DataTable(place("incomplete"), {
        label: "Columns with missing values", rows: incomplete, sort: [1, true], height: 420, noun: "column", open: jumpTo,
        search: (i) => lower[i], filter: [{ options: choices(incomplete, [
          ["With missing values", () => true], ["Kept", isKept], ["Dropped", isDropped],
          ["With NaN", (i) => columns.nan[i] > 0], ["With infinite values", (i) => columns.inf[i] > 0],
        ]) }],
        fields: [
          columnField("Column", "28%", (i) => i),
          { label: "Missing", width: "17%", falling: true, key: missingShare, cell: (i) => meter(missingShare(i), share(missingShare(i))) },
          counted("Empty", empty), counted("NaN", (i) => columns.nan[i]), counted("Infinite", (i) => columns.inf[i]),
          counted("Valid", (i) => columns.valid[i]),
          { label: "Decision", width: "15%", key: code(columns.reason), cell: (i) => (isDropped(i) ? text(columns.reason, i) : decided(i)) },
        ],
      });
    }
  }

  /** Every column by what it tells of the target, beside the one that stands for it. */
  function drawRelevance() {
    const own = (i) => columns.relevance[i];
    const standIn = (i) => (root[i] === i ? null : root[i]);
    const its = (i) => (root[i] === i ? null : own(root[i]));
    const less = (i) => (its(i) === null ? null : own(i) - its(i));
    const number = (value) => (value === null ? "" : similarity(value));
    const rows = every.filter((i) => own(i) !== null);
    new DataTable(place("relevance"), {
      label: "Relevance of every column", rows, sort: [1, true], height: 420, noun: "column", open: jumpTo,
      search: (i) => lower[i], filter: [{ options: choices(rows, [["All columns", () => true], ["Kept", isKept], ["Dropped", isDropped]]) }],
      fields: [
        columnField("Column", "22%", (i) => i),
        { label: "Relevance", width: "19%", falling: true, key: own, cell: (i) => meter(own(i), number(own(i)), isDropped(i) ? "gone" : "") },
        { label: "Decision", width: "15%", key: decided, cell: decisionOf },
        columnField("Stands for it", "22%", standIn),
        { label: "Its relevance", width: "11%", right: true, falling: true, key: its, cell: (i) => number(its(i)) },
        { label: "Less by", width: "11%", right: true, falling: true, key: less, cell: (i) => number(less(i)) },
      ],
    });
  }

  /** The columns of a budget in the order they were taken, with what they explain together. */
  function drawChosen() {
    const rows = data.chosen.map((step, at) => [at + 1, ...step]);
    const part = (label, at, title) => ({ label, width: "17%", right: true, title, key: (row) => row[at], cell: (row) => (row[at] === null ? "" : share(row[at])) });
    const told = ([, i]) => columns.relevance[i];
    new DataTable(place("chosen"), {
      label: "Columns in the order they were taken", rows, sort: [0, false], height: 420, noun: "column", open: ([, i]) => jumpTo(i),
      search: ([, i]) => lower[i],
      fields: [
        { label: "Taken", width: "12%", right: true, key: (row) => row[0], cell: (row) => whole.format(row[0]) },
        columnField("Column", "36%", ([, i]) => i),
        part("Of the table", 2, "share of the variance of all columns that the columns up to this one explain"),
        ...(rows.some((row) => row[3] !== null) ? [
          part("Of the target", 3, "share of the variance of the target that the columns up to this one explain"),
          { label: "Relevance", width: "17%", right: true, falling: true, key: told, cell: (row) => (told(row) === null ? "" : similarity(told(row))) },
        ] : []),
      ],
    });
  }

  /** The ledger, when it is looked at: a table has no size while it is folded away. */
  function drawLedger() {
    const mib = (bytes) => (bytes === null ? "–" : `${whole.format(Math.round(bytes / 2 ** 20))} MiB`);
    const size = (label, at) => ({ label, width: "11%", right: true, falling: true, key: (row) => row[at], cell: (row) => mib(row[at]) });
    new DataTable(place("ledger"), {
      label: "Memory readings", rows: data.ledger, sort: [0, false], height: 380, noun: "reading",
      search: (row) => `${row[3]} ${row[1]}`.toLowerCase(),
      fields: [
        { label: "At", width: "12%", right: true, key: (row) => row[0], cell: (row) => `${row[0].toFixed(1)} s` },
        { label: "Moment", width: "16%", key: (row) => `${row[1]} ${row[2]}`, cell: (row) => row[1] + (row[2] ? ` pass ${row[2]}` : "") },
        { label: "Process", width: "17%", name: true, key: (row) => row[3], cell: (row) => row[3] },
        { label: "pid", width: "11%", right: true, key: (row) => row[4], cell: (row) => String(row[4]) },
        size("Resident", 5), size("Peak", 6), size("GPU", 7), size("GPU peak", 8),
      ],
    });
  }
  place("ledger")?.closest("details").addEventListener("toggle", drawLedger, { once: true });

  // Start

  drawTables();
  matchOptions();
  if (n) openColumn(keptFirst[0] ?? byStrength[0]);
  if (figures.matrix) drawFigure("matrix").then((plot) => { matrix = new MatrixView(plot); });
  if (figures.curve) drawFigure("curve").then((plot) => { new CurveView(plot); });
  if (figures.memory) drawFigure("memory");

  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const id of links.keys()) watcher.observe(byId(id));
  document.documentElement.dataset.ready = "true";
})();
