// What moves on the page: the slider, the curve of a site, and sorting. All numbers come from the data block.
const data = JSON.parse(document.getElementById("natprec").textContent);
const byId = (id) => document.getElementById(id);
const figures = (value, digits) => Number(value.toPrecision(digits)).toString();

function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; Math.abs(bytes) >= 1000 && unit < units.length - 1; unit++) bytes /= 1000;
  return `${bytes.toFixed(unit ? 1 : 0)} ${units[unit]}`;
}

// ---- the plan at the slider -------------------------------------------------------------------------------------
const stairs = data.stairs;
const planned = data.sites.map((site) => ({ bits: site.bits, format: site.format }));
const numberOf = new Map(data.sites.map((site, number) => [site.name, number]));

function showWidths(now) {
  const counts = new Map();
  now.forEach((site, number) => counts.set(site.bits, (counts.get(site.bits) || 0) + data.sites[number].elements));
  const total = data.sites.reduce((sum, site) => sum + site.elements, 0);
  const items = [...counts].sort((a, b) => a[0] - b[0]).map(([bits, count]) => {
    const item = document.createElement("li"), swatch = document.createElement("span");
    swatch.className = `swatch b${bits}`;
    swatch.textContent = bits;
    item.append(swatch, ` ${count.toLocaleString("en")} weights, ${((100 * count) / total).toFixed(1)}%`);
    return item;
  });
  byId("widths").replaceChildren(...items);
}

function show(now) {
  for (const cell of document.querySelectorAll(".map td[data-sites]")) {
    const bits = cell.dataset.sites.split(" ").map((number) => now[number].bits).sort((a, b) => a - b);
    const low = bits[0], high = bits[bits.length - 1];
    cell.querySelector(".bits").textContent = low === high ? low : `${low}–${high}`;
    cell.className = cell.className.replace(/\bb\d+\b/, `b${high}`);
  }
  for (const cell of document.querySelectorAll("[data-format]")) cell.textContent = now[cell.dataset.format].format || "16 bits";
  showWidths(now);
}

function formatsOf(found) {
  const now = planned.map((site) => ({ ...site }));
  stairs.groups.forEach((group, place) => {
    const [weight] = group.formats[found.chosen[place]].split("/");
    for (const site of group.sites) now[numberOf.get(site)] = { bits: group.bits[found.chosen[place]], format: weight };
  });
  return now;
}

function solveTo(target) {
  const found = solveStaircase(stairs, target);
  byId("slider-note").textContent = found === null
    ? `no plan reaches that: the smallest distortion is ${figures(stairs.kl[0] + stairs.lost, 3)}, the smallest size ${size(stairs.stored[stairs.stored.length - 1] + stairs.fixed)}`
    : target.eps === undefined ? `the most faithful plan of at most ${size(target.bytes)}` : `the cheapest plan for eps ${figures(target.eps, 4)}`;
  if (found === null) return;
  byId("now-kl").textContent = figures(found.kl, 4);
  byId("now-bits").textContent = found.bits.toFixed(3);
  byId("now-bytes").textContent = size(found.bytes);
  byId("now-uniform").textContent = found.uniform === null ? "–" : figures(found.uniform, 4);
  show(formatsOf(found));
}

if (stairs !== null) {
  const least = Math.log(Math.max(stairs.kl[0] + stairs.lost, 1e-9)), most = Math.log(stairs.kl[stairs.kl.length - 1] + stairs.lost) + 0.1;
  const place = (eps) => Math.round((1000 * (Math.log(eps) - least)) / (most - least));
  const reset = () => {
    show(planned);
    for (const id of ["now-kl", "now-bits", "now-bytes", "now-uniform"]) byId(id).textContent = "";
    byId("slider-note").textContent = "";
    byId("eps").value = data.plan.eps ?? "";
    byId("size").value = "";
    byId("slider").value = place(data.plan.eps ?? data.plan.kl_predicted);
  };
  byId("slider").addEventListener("input", (event) => {
    const eps = Math.exp(least + (event.target.value / 1000) * (most - least)) * (1 + 1e-12);
    byId("eps").value = figures(eps, 4);
    byId("size").value = "";
    solveTo({ eps: Number(byId("eps").value) });
  });
  byId("eps").addEventListener("change", (event) => {
    if (!(event.target.value > 0)) return;
    byId("slider").value = place(event.target.value);
    byId("size").value = "";
    solveTo({ eps: Number(event.target.value) });
  });
  byId("size").addEventListener("change", (event) => {
    if (!(event.target.value > 0)) return;
    byId("eps").value = "";
    solveTo({ bytes: Number(event.target.value) * 1e6 });
  });
  byId("reset").addEventListener("click", reset);
  reset();
}

// The distortion by format after GPTQ, on a logarithmic axis; the chosen format is the large mark.
function drawn(curve, chosen) {
  const points = curve.gptq.map((value, place) => [place, value]).filter(([, value]) => value > 0);
  const logs = points.map(([, value]) => Math.log10(value)), low = Math.min(...logs), high = Math.max(...logs);
  const at = ([place], index) => [20 + (place * 360) / Math.max(1, curve.formats.length - 1), 90 - (80 * (logs[index] - low)) / (high - low || 1)];
  const marks = points.map((point, index) => {
    const [x, y] = at(point, index);
    return `<circle class="point${curve.formats[point[0]] === chosen ? " own" : ""}" cx="${x}" cy="${y}" r="${curve.formats[point[0]] === chosen ? 6 : 3}"/>`;
  });
  const picture = document.createElement("template");
  picture.innerHTML = `<svg class="chart" viewBox="0 0 400 100" role="img" aria-label="distortion by format"><polyline class="line" fill="none" points="${points.map(at).join(" ")}"/>${marks.join("")}</svg>`;
  return picture.content;
}

// ---- the curve of a site ----------------------------------------------------------------------------------------
function showCurve(number) {
  const site = data.sites[number], curve = site.curve, box = byId("curve");
  for (const cell of document.querySelectorAll(".map td.chosen")) cell.classList.remove("chosen");
  const own = [...document.querySelectorAll(".map td[data-sites]")].find((cell) => cell.dataset.sites.split(" ").includes(String(number)));
  if (own) own.classList.add("chosen");
  const title = document.createElement("h3");
  title.textContent = `${site.name}: ${site.format || "16 bits"}`;
  if (curve === null) {
    const none = document.createElement("p");
    none.textContent = "No curve: the measurement is not beside the plan, or the engine keeps this site at 16 bits.";
    box.replaceChildren(title, none);
    return;
  }
  const table = document.createElement("table"), rows = [["format", ...curve.formats], ["round to nearest", ...curve.nearest], ["after GPTQ", ...curve.gptq]];
  if (curve.backward) rows.push(["of the gradient lost", ...curve.backward]);
  for (const row of rows) {
    const line = table.insertRow();
    row.forEach((value, place) => {
      const cell = document.createElement(place ? "td" : "th");
      cell.textContent = typeof value === "number" ? figures(value, 3) : value;
      cell.className = place ? "number" : "";
      if (place && curve.formats[place - 1] === site.format) cell.style.fontWeight = "700";
      line.append(cell);
    });
  }
  const wide = document.createElement("div");
  wide.className = "wide";
  wide.append(table);
  box.replaceChildren(title, drawn(curve, site.format), wide);
}

for (const cell of document.querySelectorAll(".map td[data-sites]")) {
  const first = Number(cell.dataset.sites.split(" ")[0]);
  cell.addEventListener("pointerenter", () => showCurve(first));
  cell.addEventListener("click", () => showCurve(first));
}
for (const button of document.querySelectorAll("button[data-site]")) {
  button.addEventListener("click", () => { showCurve(Number(button.dataset.site)); byId("curve").scrollIntoView({ block: "center" }); });
}

// ---- sorting ----------------------------------------------------------------------------------------------------
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const key = (row) => row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)], difference = Number(x) - Number(y);
        return (Number.isNaN(difference) ? x.localeCompare(y, "en") : difference) * (rising ? 1 : -1);
      });
      table.tBodies[0].append(...rows);
    });
  });
}
